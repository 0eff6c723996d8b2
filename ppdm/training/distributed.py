"""Data-parallel training: several processes (ranks), each with its own GPU, started by ``torchrun``.

Every rank holds the whole network and processes its share of every batch. Each rank samples times, noise and flips for
the whole batch from the same generator and keeps its share. The result therefore does not depend on the number of
ranks, except for rounding. A single process is the only rank; for it, every function here has no effect.

Gradients are averaged after the backward pass, in one ``all_reduce``, instead of by ``DistributedDataParallel`` (DDP).
DDP holds buckets of the gradients' size all the time; here, gradients exist only from the backward pass to the update.
Where activations determine the peak, this is the difference. Measured with ``ppdm_bench.measure_peak``, PPDM
(factor 2, width 32, 30.9 MiB of gradients) at 96³ voxels peaks at 690.1 MiB, and wrapped in DDP (torch 2.13, with or
without ``gradient_as_bucket_view``) at 721.0 MiB. At 32³ voxels, where the copy for the ``all_reduce`` is the peak, DDP
with that option saves 10.1 of 185.8 MiB. DDP would also need a module around the loss, since the loss calls parts of
the network directly, a new wrapper for each stage, and ``no_sync`` for accumulation. The drawback of one
``all_reduce`` is that communication does not overlap with the backward pass.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

T = TypeVar("T")


class RankError(ValueError):
    """Another rank failed, so all ranks stop; the message names the rank and the cause."""


class RankLostError(ConnectionError):
    """Another rank ended without reporting an error, or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """The group of processes that train together, from the view of one process.

    All ranks must call the same methods in the same order.

    Args:
        rank: index of this process, from 0.
        world: number of processes.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Self:
        """Return the ranks of the current process group, or a single rank without one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files and reports progress."""
        return self.rank == 0

    def share(self, batch: Sequence[T]) -> Sequence[T]:
        """Return this rank's share of a batch whose length is a multiple of the number of ranks."""
        size = len(batch) // self.world
        return batch[self.rank * size : (self.rank + 1) * size]

    def sharing_samples(self, generator: torch.Generator) -> AbstractContextManager[Any]:
        """Return a context in which a sample from the generator is this rank's share of a sample for all ranks."""
        return nullcontext() if self.world == 1 else _SharedSamples(self, generator)

    def average_gradients(self, network: nn.Module) -> None:
        """Replace every gradient with its mean over the ranks, bit-identical on all ranks."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of a tensor over the ranks; the tensor may be overwritten."""
        if self.world == 1:
            return value
        with _reporting_lost_ranks():
            dist.all_reduce(value)
        return value.div_(self.world)

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))
        with _reporting_lost_ranks():
            dist.all_reduce(flags)
        return bool(flags)

    def gather(self, value: T) -> list[T]:
        """Return the values of all ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with _reporting_lost_ranks():
            dist.all_gather_object(values, value)
        return values

    def by_first(self, call: Callable[[], T]) -> T:
        """Call a function on the first rank only and return its result on all ranks.

        Raises:
            RankError: the call failed; the first rank raises the original exception.
        """
        if self.world == 1:
            return call()
        result: list[Any] = [None]
        with self.together():
            if self.is_first:
                result = [call()]
        with _reporting_lost_ranks():
            dist.broadcast_object_list(result)
        return result[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Wait at the end of the block until all ranks complete it; if one fails, raise on all ranks.

        Code in the block must not wait for another rank.

        Raises:
            RankError: the block failed on a rank; the first rank raises its own exception instead, if it had one.
        """
        if self.world == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        if not self.any(own is not None):
            return
        faults = self.gather("" if own is None else str(own) or type(own).__name__)
        if own is not None and self.is_first:
            raise own
        rank = next(rank for rank, fault in enumerate(faults) if fault)
        raise RankError(f"Rank {rank} of {self.world} failed: {faults[rank]}") from own


SINGLE_RANK = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the process group that ``torchrun`` started; without ``torchrun``, use a single rank.

    Raises:
        RankLostError: the other processes cannot be reached.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
        yield SINGLE_RANK
        return
    with _reporting_lost_ranks():
        dist.init_process_group()  # gloo for CPU tensors, NCCL for GPU tensors
    try:
        yield Ranks.here()
    finally:
        dist.destroy_process_group()


def own_gpu() -> int:
    """Return the index of this process's GPU on its machine.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    index, processes, gpus = int(os.environ["LOCAL_RANK"]), os.environ["LOCAL_WORLD_SIZE"], torch.cuda.device_count()
    if index >= gpus:
        raise ValueError(
            f"{processes} processes were started on a machine with {gpus} GPUs, and each needs its own; give torchrun "
            f"--nproc-per-node {gpus}."
        )
    return index


class _SharedSamples(TorchFunctionMode):
    """Sample from a generator for all ranks and return the share of one rank.

    Methods, windows and augmentations, including user-defined ones, need no code for ranks: they sample along the first
    axis for every subject, as in a single process.
    """

    def __init__(self, ranks: Ranks, generator: torch.Generator) -> None:
        super().__init__()
        self.ranks, self.generator = ranks, generator

    def __torch_function__(
        self, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if options.get("generator") is not self.generator:
            return function(*args, **options)
        if function not in (torch.rand, torch.randn, torch.randint):
            raise ValueError(
                f"{function.__name__} gives samples that cannot be shared among ranks; use torch.rand, torch.randn or "
                "torch.randint, with the subjects along the first axis."
            )
        if "size" in options:
            args = (*args, options.pop("size"))
        if not isinstance(args[-1], Sequence):  # torch.rand(2, 3)
            args = (args,)
        *before, size = args
        first, *others = size
        samples = function(*before, (first * self.ranks.world, *others), **options)
        return samples.narrow(0, first * self.ranks.rank, first).clone()


@contextmanager
def _reporting_lost_ranks() -> Iterator[None]:
    """Convert a communication error to a :class:`RankLostError`."""
    try:
        yield
    except RuntimeError as error:  # gloo has no exception class of its own
        raise RankLostError(
            "Another rank ended without an error message, or cannot be reached; a run that has a checkpoint can be "
            "resumed."
        ) from error

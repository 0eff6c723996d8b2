"""Several processes, each with a GPU of its own, that train one network: ranks, as ``torchrun`` starts them.

Every rank holds the whole network and takes its share of every batch. Times, noise and flips are drawn for the whole
batch on each rank, from the same generator, and each keeps its share, so that what is learned does not depend on the
number of ranks beyond rounding. A process alone is the only rank, and for it nothing here does anything.

Gradients are averaged after the backward pass, in one ``all_reduce``, and not by ``DistributedDataParallel``. That
wraps the forward pass of one module, while a method's loss calls parts of its network as it needs them: three networks
of three views, the encoder and the decoder of a representation, in one stage the one and in the next the other. It also
keeps buckets of the gradients' size all along, where this makes a copy once the activations are gone. What is given up
is that DDP communicates while the backward pass is still at work.
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
    """Another rank could not go on, so none does; the message says which one, and why."""


class RankLostError(ConnectionError):
    """Another rank has ended without a word, or cannot be reached."""


@dataclass(frozen=True)
class Ranks:
    """The processes that train together, seen from one of them.

    What one rank calls of this, all must call, in the same order.

    Args:
        rank: the number of this one, from 0.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1

    @classmethod
    def here(cls) -> Self:
        """Those of the process group that this process has joined, or it alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes, shows and speaks."""
        return self.rank == 0

    def share(self, batch: Sequence[T]) -> Sequence[T]:
        """What this rank takes of a batch whose length is a multiple of their number."""
        size = len(batch) // self.world
        return batch[self.rank * size : (self.rank + 1) * size]

    def drawing(self, generator: torch.Generator) -> AbstractContextManager[Any]:
        """Within it, what is drawn from the generator for this rank's share is its share of a draw for all."""
        return nullcontext() if self.world == 1 else _SharedDraws(self, generator)

    def average_gradients(self, network: nn.Module) -> None:
        """Make every gradient the mean over the ranks, the same bits on each."""
        if self.world == 1:
            return
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks of a tensor, which it may overwrite."""
        if self.world == 1:
            return value
        with _heard():
            dist.all_reduce(value)
        return value.div_(self.world)

    def any(self, flag: bool) -> bool:
        """Whether it is so on any rank."""
        if self.world == 1:
            return flag
        flags = torch.tensor(int(flag))
        with _heard():
            dist.all_reduce(flags)
        return bool(flags)

    def gather(self, value: T) -> list[T]:
        """The value of each rank."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        with _heard():
            dist.all_gather_object(values, value)
        return values

    def by_first(self, call: Callable[[], T]) -> T:
        """What the first rank finds out alone, told to all.

        Raises:
            RankError: it could not; the first rank raises what it met with.
        """
        if self.world == 1:
            return call()
        found: list[Any] = [None]
        with self.together():
            if self.is_first:
                found = [call()]
        with _heard():
            dist.broadcast_object_list(found)
        return found[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Go on after the block once every rank has come through it, or raise on all of them.

        Nothing within may wait for another rank.

        Raises:
            RankError: a rank could not; the first one raises what it met with itself, if it did.
        """
        if self.world == 1:
            yield
            return
        met: Exception | None = None
        try:
            yield
        except Exception as error:
            met = error
        if not self.any(met is not None):
            return
        faults = self.gather("" if met is None else str(met) or type(met).__name__)
        if met is not None and self.is_first:
            raise met
        rank = next(rank for rank, fault in enumerate(faults) if fault)
        raise RankError(f"Rank {rank} of {self.world} could not go on: {faults[rank]}") from met


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the other processes that ``torchrun`` started with this one; without it, a process is alone.

    Raises:
        RankLostError: they cannot be reached.
    """
    if not (dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1):
        yield ALONE
        return
    with _heard():
        dist.init_process_group()  # gloo for what is on the CPU, NCCL for what is on a GPU
    try:
        yield Ranks.here()
    finally:
        dist.destroy_process_group()


def own_gpu() -> int:
    """The number of the GPU that is this process's, of those on its machine.

    Raises:
        ValueError: there are more processes than GPUs.
    """
    here, processes, there = int(os.environ["LOCAL_RANK"]), os.environ["LOCAL_WORLD_SIZE"], torch.cuda.device_count()
    if here >= there:
        raise ValueError(
            f"{processes} processes were started on a machine with {there} GPUs, and each needs its own; give torchrun "
            f"--nproc-per-node {there}."
        )
    return here


class _SharedDraws(TorchFunctionMode):
    """Draws from a generator are made for all ranks, and what is given back is the share of one.

    So no method, window or augmentation, a user's own included, has to know of ranks: it draws something along the
    first axis for every subject, as it does alone.
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
                f"{function.__name__} draws what cannot be shared among ranks; use torch.rand, torch.randn or "
                "torch.randint, with a size whose first axis is that of the subjects."
            )
        if "size" in options:
            args = (*args, options.pop("size"))
        if not isinstance(args[-1], Sequence):  # torch.rand(2, 3)
            args = (args,)
        *before, size = args
        first, *others = size
        drawn = function(*before, (first * self.ranks.world, *others), **options)
        return drawn.narrow(0, first * self.ranks.rank, first).clone()


@contextmanager
def _heard() -> Iterator[None]:
    """A rank that does not answer, in words."""
    try:
        yield
    except RuntimeError as error:  # gloo has no kind of its own
        raise RankLostError(
            "Another rank has ended without a word, or cannot be reached; a run that has a checkpoint can be resumed."
        ) from error

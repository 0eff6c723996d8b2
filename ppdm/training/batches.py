"""Batches: checks of the training pairs, and conversion of pairs to tensors.

Shapes: a volume of a pair is (D, H, W) or (C, D, H, W), a batch is (N, C, D, H, W); all are float32 network values. S
sources of C channels each are one array with S·C channels.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from ppdm.arrays import Array, volume_of
from ppdm.training.schedule import TrainingError

ArrayPair = tuple[Array, Array]
Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Survey:
    """Result of checking every pair once.

    Attributes:
        count: number of pairs.
        channels: number of channels of every target, and of each of its sources.
        sha256: SHA-256 of all values in order; it changes with the data, the order or the scaling, but not with the
            location of the files. Empty if it was not requested.
    """

    count: int
    channels: int
    sha256: str


def survey(
    pairs: Sequence[ArrayPair],
    batch_size: int = 1,
    *,
    sources: Sequence[str] = ("source",),
    digest: bool = False,
    purpose: str = "train on",
) -> Survey:
    """Check every pair before the first step, so that an invalid pair cannot stop a run after hours.

    Args:
        pairs: the pairs.
        batch_size: pairs per batch.
        sources: names of the sources whose channels the first volume of a pair holds.
        digest: whether to compute the SHA-256.
        purpose: use of the pairs, for messages.

    Raises:
        TrainingError: there are no pairs, the two volumes of a pair differ in shape, values are not finite, or pairs
            cannot form a batch.
    """
    seen = hashlib.sha256()
    shapes: dict[tuple[int, ...], int] = {}  # maps each shape to the first pair that has it
    for index in range(len(pairs)):
        volumes = _checked(f"Pair {index} to {purpose}", pairs[index], sources)
        shapes.setdefault(tuple(volumes[1].shape), index)
        for volume in volumes if digest else ():
            seen.update(str(tuple(volume.shape)).encode())
            seen.update(volume.cpu().contiguous().numpy().data)
    if not shapes:
        raise TrainingError(f"There are no pairs to {purpose}; give at least one.")
    (a, i), *others = shapes.items()
    if different := [(b, j) for b, j in others if batch_size > 1 or b[0] != a[0]]:
        b, j = different[0]
        raise TrainingError(
            f"Pair {i} has the shape {a} and pair {j} {b}: a batch of {batch_size} needs one shape, and all pairs need "
            "the same number of channels; crop the volumes to one size, or train with batch_size 1."
        )
    return Survey(len(pairs), a[0], seen.hexdigest() if digest else "")


def batch(pairs: Sequence[ArrayPair], device: str | torch.device) -> Batch:
    """Return sources and targets (N, C, D, H, W) on the device."""
    return moved(stacked(pairs, device), device)


def stacked(pairs: Sequence[ArrayPair], device: str | torch.device) -> Batch:
    """Stack sources and targets to (N, C, D, H, W); host tensors for a CUDA device are in pinned memory."""
    source, target = (torch.stack([_volume(v) for v in volumes]) for volumes in zip(*pairs, strict=True))
    if torch.device(device).type != "cuda" or not source.is_cpu or not target.is_cpu:
        return source, target
    return source.pin_memory(), target.pin_memory()


def moved(batch: Batch, device: str | torch.device) -> Batch:
    """Move the batch to the device; the copy from pinned memory to CUDA is asynchronous."""
    source, target = (volumes.to(device, non_blocking=torch.device(device).type == "cuda") for volumes in batch)
    return source, target


class ReadAhead:
    """Iterator over batches that loads the next batch in a thread while the current one is processed.

    Leaving the context ends the thread. An error while loading a batch is raised when that batch is requested.

    Args:
        wanted: indices of each batch; they are consumed one batch ahead.
        read: loads a batch; it runs in one thread, one batch at a time.
    """

    def __init__(self, wanted: Iterator[Sequence[int]], read: Callable[[Sequence[int]], Batch]) -> None:
        self._wanted, self._read = wanted, read
        self._thread = ThreadPoolExecutor(1, "pairs")
        self._next: Future[Batch] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(cancel_futures=True)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        self._request_next()
        if self._next is None:
            raise StopIteration
        batch, self._next = self._next.result(), None
        self._request_next()
        return batch

    def wait_until_idle(self) -> None:
        """Wait until the thread is idle, so that other code may read the same pairs."""
        if self._next is not None:
            wait([self._next])

    def _request_next(self) -> None:
        if self._next is None and (indices := next(self._wanted, None)) is not None:
            self._next = self._thread.submit(self._read, indices)


def _checked(name: str, pair: ArrayPair, sources: Sequence[str]) -> tuple[Tensor, Tensor]:
    source, target = (_volume(v) for v in pair)
    if target.ndim != 4 or source.shape != (len(sources) * target.shape[0], *target.shape[1:]):
        several = f", the first with the channels of {len(sources)} sources ({', '.join(sources)})"
        raise TrainingError(
            f"{name} has the shapes {tuple(source.shape)} and {tuple(target.shape)}; expected two volumes "
            f"(D, H, W) or (C, D, H, W) of one shape{several if len(sources) > 1 else ''}."
        )
    if not (source.isfinite().all() and target.isfinite().all()):
        raise TrainingError(f"{name} holds values that are not finite; replace them first.")
    return source, target


def _volume(array: Array) -> Tensor:
    """Convert to (C, D, H, W) float32."""
    tensor = volume_of(array)
    return tensor[None] if tensor.ndim == 3 else tensor

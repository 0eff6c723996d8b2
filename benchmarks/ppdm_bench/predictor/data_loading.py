"""Data loaders: samplers, data sets, transforms and collate functions run on real data, in this process.

A data pipeline reads files, and for example crops depend on their content, so its tensors are real. They are in host
memory until the code moves them. This process does the work of worker processes, one batch after another. It does not
record their memory, which belongs to other processes, but only the memory of the batch. In reality, fast workers
prefetch batches, which wait in this process until the code uses them. Their number depends on the speed of the workers,
so a prediction records only an upper bound. A measurement records the batches that really wait.
"""

import copy
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any
from unittest import mock
from weakref import WeakSet

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter
from torch.utils.data import DataLoader, dataloader
from torch.utils.data._utils import pin_memory, worker

from ppdm_bench.predictor.restore_state import generator_states, restore_generators
from ppdm_bench.predictor.timeline import Timeline
from ppdm_bench.predictor.trace import Trace


def loader_patches(trace: Trace) -> Iterator[Any]:
    """Patches of ``torch.utils.data.DataLoader``."""

    def on_real_data(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(self: Any) -> Any:
            with trace.on_real_tensors():
                return method(self)

        return run

    class InProcessIterator(_InProcessIterator):
        followed = trace

    yield mock.patch.object(DataLoader, "__iter__", on_real_data(DataLoader.__iter__))
    base = dataloader._BaseDataLoaderIter
    yield mock.patch.object(base, "__next__", on_real_data(base.__next__))
    yield mock.patch.object(dataloader, "_MultiProcessingDataLoaderIter", InProcessIterator)


@contextmanager
def watching_loaders(trace: Trace) -> Iterator[None]:
    """In a measurement, record in ``trace.waiting`` the bytes of prefetched batches, which wait to be used."""
    iterators = WeakSet[Any]()
    workers = dataloader._MultiProcessingDataLoaderIter
    get_data, next_data = workers._get_data, workers._next_data

    def record(event: int, *arriving: Any) -> None:
        waiting = [info[1:] for each in iterators for info in each._task_info.values()]
        trace.waiting.append((event, _size([waiting, arriving])))

    def get(self: Any) -> Any:
        iterators.add(self)
        start = trace.timeline.now
        index, batch = get_data(self)
        if index != self._rcvd_idx:  # not the batch that is used next
            record(start, batch)
        return index, batch

    def take(self: Any) -> Any:
        try:
            return next_data(self)
        finally:
            record(trace.timeline.now)

    with mock.patch.object(workers, "_get_data", get), mock.patch.object(workers, "_next_data", take):
        yield


def raised_by_prefetched(timeline: Timeline, waiting: Sequence[tuple[int, int]]) -> int:
    """Bytes by which prefetched batches raise the peak; ``waiting`` is the attribute of :class:`Trace`."""
    peak_without = at = size = 0
    for event, live in enumerate(timeline.live()):
        while at < len(waiting) and waiting[at][0] <= event + 1:
            size = waiting[at][1]
            at += 1
        peak_without = max(peak_without, live - size)
    return timeline.peak()[1] - peak_without


class _InProcessIterator(dataloader._BaseDataLoaderIter):
    """Iterator of a data loader that does the work of the workers in this process.

    Attributes:
        followed: the trace.
    """

    followed: Trace

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._prefetch_factor = loader.prefetch_factor
        with self.followed.on_real_tensors(followed=False):
            self._workers = [_Worker(self, loader, number) for number in range(loader.num_workers)]
        self._reset(loader, first_iter=True)

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._fetches = [(each, each.fetcher(loader)) for each in self._workers]
        self._batch_numbers = count()

    def _next_data(self) -> Any:
        while self._fetches:
            index = self._next_index()
            at = next(self._batch_numbers) % len(self._fetches)
            each, fetcher = self._fetches[at]
            try:
                with self.followed.on_real_tensors(followed=False), each.active():
                    batch = fetcher.fetch(index)
            except StopIteration:  # an iterable data set of this worker has ended
                del self._fetches[at]
                self._batch_numbers = count(at)
                continue
            self._record_prefetched(batch)
            if self._pin_memory:
                batch = pin_memory.pin_memory(batch, self._pin_memory_device)
            self._follow(batch)
            return batch
        raise StopIteration

    def _follow(self, batch: Any) -> None:
        """Follow a batch from its arrival, even if the code does not use it."""
        if not self.followed.is_elsewhere:
            for x in _tensors(batch):
                self.followed.loaded(x, None)

    def _record_prefetched(self, batch: Any) -> None:
        """Record an upper bound of the bytes of prefetched batches: all requested batches except the one in use."""
        in_flight = self._num_workers * self._prefetch_factor
        if self._dataset_kind == dataloader._DatasetKind.Map:
            in_flight = min(in_flight, len(self._index_sampler))
        self.followed.prefetched = max(self.followed.prefetched, (in_flight - 1) * _size(batch))


class _Worker:
    """A simulated worker with its own copy of the data set and its own random generators."""

    def __init__(self, iterator: Any, loader: Any, number: int) -> None:
        seed = iterator._base_seed + number
        self.data = _shallow_copy(iterator._dataset)
        self.info = worker.WorkerInfo(id=number, num_workers=loader.num_workers, seed=seed, dataset=self.data)
        self._generators: Any = None
        with self.active():
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if numpy := sys.modules.get("numpy"):
                numpy.random.seed(worker._generate_state(iterator._base_seed, number))
            if loader.worker_init_fn is not None:
                loader.worker_init_fn(number)

    def fetcher(self, loader: Any) -> Any:
        """Return an object that fetches batches during one pass over the data."""
        create = dataloader._DatasetKind.create_fetcher
        with self.active():
            return create(loader._dataset_kind, self.data, loader._auto_collation, loader.collate_fn, loader.drop_last)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Run the block with this worker's information and random generators."""
        main = generator_states()
        if self._generators:
            restore_generators(self._generators)
        try:
            with mock.patch.object(worker, "_worker_info", self.info):
                yield
        finally:
            self._generators = generator_states()
            restore_generators(main)


def _size(batch: Any) -> int:
    """Bytes of the tensors in a batch."""
    return sum(x.numel() * x.element_size() for x in _tensors(batch))


def _tensors(batch: Any) -> Iterator[Tensor]:
    return (x for x in tree_iter(batch) if isinstance(x, Tensor))


def _shallow_copy(data: Any) -> Any:
    """Copy a data set, because each worker may set attributes of its own, such as the range that it reads."""
    try:
        return copy.copy(data)
    except TypeError:  # it holds something that cannot be copied
        return data

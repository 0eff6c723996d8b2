"""Data loaders: samplers, data sets, transforms and collate functions run on real data, in this process.

A data pipeline reads files and crops by what it finds in them, so its tensors are real ones. They lie in host memory
until the code moves them. What a worker process would do is done here, one batch after another, and its memory is not
followed, because it is the memory of another process. Only the batch arrives. In reality, batches of fast workers
arrive before their turn and wait in this process; how many depends on the speed of the workers, so that a prediction
notes only a bound, and a measurement those that have arrived.
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

    def in_earnest(method: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def run(self: Any) -> Any:
            with trace.in_earnest():
                return method(self)

        return run

    class Workers(_Workers):
        followed = trace

    yield mock.patch.object(DataLoader, "__iter__", in_earnest(DataLoader.__iter__))
    base = dataloader._BaseDataLoaderIter
    yield mock.patch.object(base, "__next__", in_earnest(base.__next__))
    yield mock.patch.object(dataloader, "_MultiProcessingDataLoaderIter", Workers)


@contextmanager
def watching_loaders(trace: Trace) -> Iterator[None]:
    """In a measurement, record how many bytes of batches have arrived before their turn."""
    iterators = WeakSet[Any]()
    workers = dataloader._MultiProcessingDataLoaderIter
    get_data, next_data = workers._get_data, workers._next_data

    def record(event: int, *arriving: Any) -> None:
        waiting = [info[1:] for each in iterators for info in each._task_info.values()]
        trace.arrived.append((event, _size([waiting, arriving])))

    def get(self: Any) -> Any:
        iterators.add(self)
        began = trace.timeline.now
        index, batch = get_data(self)
        if index != self._rcvd_idx:
            record(began, batch)
        return index, batch

    def take(self: Any) -> Any:
        try:
            return next_data(self)
        finally:
            record(trace.timeline.now)

    with mock.patch.object(workers, "_get_data", get), mock.patch.object(workers, "_next_data", take):
        yield


def raised_by_early_batches(timeline: Timeline, arrived: Sequence[tuple[int, int]]) -> int:
    """By how many bytes batches that arrived before their turn raise the peak; ``arrived`` as in :class:`Trace`."""
    least = at = waiting = 0
    for event, live in enumerate(timeline.live()):
        while at < len(arrived) and arrived[at][0] <= event + 1:
            waiting = arrived[at][1]
            at += 1
        least = max(least, live - waiting)
    return timeline.peak()[1] - least


class _Workers(dataloader._BaseDataLoaderIter):
    """Iterator of a data loader that does the work of its workers itself.

    Attributes:
        followed: the trace.
    """

    followed: Trace

    def __init__(self, loader: Any) -> None:
        super().__init__(loader)
        self._prefetch_factor = loader.prefetch_factor
        with self.followed.in_earnest(apart=True):
            self._workers = [_Worker(self, loader, number) for number in range(loader.num_workers)]
        self._reset(loader, first_iter=True)

    def _reset(self, loader: Any, first_iter: bool = False) -> None:
        super()._reset(loader, first_iter)
        self._fetches = [(each, each.fetcher(loader)) for each in self._workers]
        self._turns = count()

    def _next_data(self) -> Any:
        while self._fetches:
            index = self._next_index()
            at = next(self._turns) % len(self._fetches)
            each, fetcher = self._fetches[at]
            try:
                with self.followed.in_earnest(apart=True), each.running():
                    batch = fetcher.fetch(index)
            except StopIteration:  # an iterable data set of this worker has ended
                del self._fetches[at]
                self._turns = count(at)
                continue
            self._note(batch)
            if self._pin_memory:
                batch = pin_memory.pin_memory(batch, self._pin_memory_device)
            self._follow(batch)
            return batch
        raise StopIteration

    def _follow(self, batch: Any) -> None:
        """Follow a batch from its arrival on, whether or not the code uses it."""
        if not self.followed.is_elsewhere:
            for x in _tensors(batch):
                self.followed.loaded(x, None)

    def _note(self, batch: Any) -> None:
        """Note how many bytes of batches may arrive before their turn: of all that workers have been asked for."""
        asked = self._num_workers * self._prefetch_factor
        if self._dataset_kind == dataloader._DatasetKind.Map:
            asked = min(asked, len(self._index_sampler))
        self.followed.early = max(self.followed.early, (asked - 1) * _size(batch))


class _Worker:
    """A worker with its own copy of the data set and its own random generators."""

    def __init__(self, iterator: Any, loader: Any, number: int) -> None:
        seed = iterator._base_seed + number
        self.data = _copied(iterator._dataset)
        self.info = worker.WorkerInfo(id=number, num_workers=loader.num_workers, seed=seed, dataset=self.data)
        self._generators: Any = None
        with self.running():
            random.seed(seed)
            torch.default_generator.manual_seed(seed)
            if numpy := sys.modules.get("numpy"):
                numpy.random.seed(worker._generate_state(iterator._base_seed, number))
            if loader.worker_init_fn is not None:
                loader.worker_init_fn(number)

    def fetcher(self, loader: Any) -> Any:
        """An object that fetches batches; one for each pass over the data."""
        create = dataloader._DatasetKind.create_fetcher
        with self.running():
            return create(loader._dataset_kind, self.data, loader._auto_collation, loader.collate_fn, loader.drop_last)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run the block as this worker."""
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


def _copied(data: Any) -> Any:
    """A copy, because workers set attributes such as the range that each of them reads."""
    try:
        return copy.copy(data)
    except TypeError:  # it holds something that cannot be copied
        return data

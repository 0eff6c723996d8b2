"""A thread reads the next batch while a training step runs."""

import threading
from collections.abc import Sequence
from itertools import islice

import pytest
import torch
from tiny_training import TINY, pair, same

from ppdm.training.augment import Flip
from ppdm.training.batches import ReadAhead, batch, moved, stacked
from ppdm.training.loop import Interrupted, fit, train
from ppdm.training.schedule import Schedule, TrainingError, batch_indices, learning_rate, step_generator
from ppdm.training.trainer import Training
from ppdm_baselines import METHODS

LATENT = METHODS["latent"].with_network(width=8, multipliers=(1, 2))
LONG = 60  # seconds after which a test that hangs fails


class Pairs(Sequence):
    """Pairs that record who reads them.

    Training first reads every pair once, in a survey. ``deeds`` has functions to call at later readings, by number.
    """

    def __init__(self, count=3, deeds=None):
        self.made = [pair(i) for i in range(count)]
        self.deeds = deeds or {}
        self.read = []  # (index, whether the main thread read it)
        self.busy = threading.Lock()

    def __len__(self):
        return len(self.made)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        if index >= len(self):
            raise IndexError(index)
        assert self.busy.acquire(blocking=False), "pairs are read by two threads at once"
        with_main = threading.current_thread() is threading.main_thread()
        try:
            self.read.append((index, with_main))
            self.deeds.get(len(self.read) - len(self), lambda: None)()
            return self.made[index]
        finally:
            self.busy.release()

    @property
    def after_the_survey(self):
        return self.read[len(self) :]


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def fail(error):
    def deed():
        raise error

    return deed


# --- readings


def test_the_next_batch_is_read_while_a_step_runs(monkeypatch):
    reading, stepping = threading.Event(), threading.Event()
    met, real = [], Training.update

    def second():
        reading.set()
        met.append(stepping.wait(LONG))

    def update(self, rate):
        if not self.done:
            stepping.set()
            met.append(reading.wait(LONG))
        return real(self, rate)

    monkeypatch.setattr(Training, "update", update)
    fit(TINY, Pairs(deeds={2: second}), steps=2)
    assert met == [True, True]


def test_reading_ahead_gives_the_same_weights_as_reading_each_batch_in_turn():
    pairs, schedule = Pairs(5), Schedule(steps=4, batch_size=2, accumulate=3, augment=Flip("dw"), seed=3)
    training = Training.start(TINY, seed=3)
    batches = batch_indices(5, 2, 3)
    for k in range(4):
        generator = step_generator(3, k)
        for indices in islice(batches, 3):
            volumes = Flip("dw")(*batch([pairs.made[i] for i in indices], "cpu"), generator)
            training.add_gradient(*volumes, generator, 3)
        training.update(learning_rate(TINY.optimisation, k, 4))
    assert same(train(TINY, pairs, schedule), training.average)
    wanted = [i for indices in islice(batch_indices(5, 2, 3), 12) for i in indices]
    compared = [(i, True) for i in range(4)]  # the comparison with an untrained network
    assert pairs.after_the_survey == [*((i, False) for i in wanted), *compared]  # and no other readings


def test_a_time_budget_and_a_stop_leave_one_batch_unused():
    pairs = Pairs()
    done = []
    fit(TINY, pairs, minutes=1e-6, batch_size=2, progress=done.append)
    assert (len(done), len(pairs.after_the_survey)) == (1, 2 + 2 + min(len(pairs), 4))  # last: the final comparison
    pairs, asked = Pairs(), iter([False, True])
    with pytest.raises(Interrupted):
        train(TINY, pairs, Schedule(steps=9, batch_size=2), stop=lambda: next(asked))
    assert len(pairs.after_the_survey) == 2 * 2 + 2


@pytest.mark.slow
def test_pairs_are_never_read_by_two_threads_at_once():
    pairs = Pairs()
    fit(LATENT, pairs, steps=5, validation=pairs, validate_every=1)
    by_main = [index for index, main in pairs.read if main]
    # Two surveys, the calibration of the latents, five validations, and the final comparison.
    assert len(by_main) == 2 * 3 + 3 + 5 * 3 + 3
    assert len(pairs.read) - len(by_main) == 5


# --- errors


@pytest.mark.parametrize("error", [OSError("the scan cannot be read"), TrainingError("so it is"), KeyError("seven")])
def test_the_error_of_a_pair_is_raised_at_the_step_that_needs_it(tmp_path, error):
    shown = []
    pairs = Pairs(deeds={4: fail(error)})
    with pytest.raises(type(error)) as caught:
        fit(TINY, pairs, steps=9, progress=lambda r: shown.append(r.step), log=tmp_path / "log.jsonl")
    assert caught.value is error
    assert shown == [1, 2, 3]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 3
    assert len(pairs.after_the_survey) == 4


def test_an_error_in_a_batch_that_no_step_needs_is_ignored():
    asked = iter([False, True])
    with pytest.raises(Interrupted, match="after step 2"):
        train(TINY, Pairs(deeds={3: fail(OSError())}), Schedule(steps=9), stop=lambda: next(asked))


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)])
def test_the_thread_ends_with_training_after_any_error(error):
    with pytest.raises(type(error)):
        fit(TINY, Pairs(), steps=9, progress=lambda report: fail(error)())


# --- the reader itself


def test_batches_come_in_order_and_are_requested_one_ahead():
    asked, read = [], []

    def wanted():
        for index in range(4):
            asked.append(index)
            yield [index]

    def make(indices):
        read.append(indices)
        return torch.tensor(indices), torch.tensor(indices)

    with ReadAhead(wanted(), make) as reader:
        assert (asked, read) == ([], [])
        for place, (source, _) in enumerate(reader):
            assert source.tolist() == [place]
            assert asked == list(range(min(place + 2, 4)))
            reader.wait_until_idle()
            assert read == [[index] for index in asked]
        assert list(reader) == []
        reader.wait_until_idle()


def test_on_the_cpu_nothing_is_copied_or_pinned(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pytest.fail("it was pinned"))
    made = stacked([pair()], "cpu")
    assert all(a is b for a, b in zip(moved(made, "cpu"), made, strict=True))


def test_for_cuda_a_batch_is_pinned_and_copied_without_waiting(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: calls.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *a, **how: calls.append((*a, *how.items())) or self)
    source, target = batch([pair(0), pair(1)], "cuda:1")
    assert calls == ["pinned", "pinned", *[("cuda:1", ("non_blocking", True))] * 2]
    assert source.shape == target.shape == (2, 1, 8, 8, 8)

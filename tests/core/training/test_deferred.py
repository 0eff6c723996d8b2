"""Deferred metrics: losses stay on the accelerator, and the host reads them only when it must."""

import json
import math
from functools import partial
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from tiny_training import TINY, pair, same
from torch.overrides import TorchFunctionMode
from waiting import Waits

from ppdm.training.augment import Flip
from ppdm.training.deferred import READING_INTERVAL, PendingReports, reading_interval
from ppdm.training.distributed import RankLostError
from ppdm.training.log import StepReport
from ppdm.training.loop import Interrupted, fit, train
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule, TrainingError, step_generator
from ppdm.training.state import read_state
from ppdm.training.trainer import Training
from ppdm.training.validation import DRAWS
from ppdm_baselines import METHODS

LATENT = METHODS["latent"].with_network(width=8, multipliers=(1, 2))
PAIRS = [pair(i) for i in range(3)]


@pytest.fixture
def unhurried(monkeypatch):
    """Set the reading interval to 5 s, and replace the clock with one that advances by 1 s per step."""
    now = count()
    monkeypatch.setattr("ppdm.training.session.time", SimpleNamespace(perf_counter=lambda: next(now)))
    monkeypatch.setattr("ppdm.training.session.reading_interval", lambda device: 5.0)


@pytest.fixture
def readings(monkeypatch):
    """Return a list that collects the steps of each reading."""
    seen, real = [], PendingReports.read

    def read(self, seconds):
        if reports := real(self, seconds):
            seen.append([report.step for report in reports])
        return reports

    monkeypatch.setattr(PendingReports, "read", read)
    return seen


def steps(log):
    return [json.loads(line)["step"] for line in log.read_text().splitlines()]


# --- a step


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_no_step_of_any_method_makes_the_host_wait(name):
    method = METHODS[name].with_network(width=8, multipliers=(1, 2))
    pairs = torch.rand(2, 2, 1, *(max(size, 8) for size in method.multiple))
    for stage in range(len(method.stages)):
        training = Training.start(method, stage=stage)
        for k in range(2):  # the first step creates the optimiser state
            with Waits() as waits:
                generator = step_generator(0, k)
                training.step(*Flip("dh")(*pairs, generator), 1e-3, generator)
            assert waits.found == []


@pytest.mark.parametrize(
    "look",
    [
        lambda x: float(x[0]),
        lambda x: bool(x[0]),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
        lambda x: x.to(device="cpu"),
        lambda x: x[x > 0],
        lambda x: x.nonzero(),
        lambda x: torch.equal(x, x),
        lambda x: torch.tensor([1.0]) + x,
    ],
)
def test_waits_records_operations_that_make_the_host_wait(look):
    with Waits() as waits:
        look(torch.ones(2))
    assert waits.found


# --- a training run


def test_losses_are_read_at_every_step_on_the_cpu_and_less_often_on_accelerators():
    assert reading_interval("cpu") == reading_interval(torch.device("cpu")) == 0
    assert [reading_interval(device) for device in ("cuda", "cuda:1", torch.device("mps"))] == [READING_INTERVAL] * 3


def test_pending_steps_are_read_together_in_one_copy():
    pending = PendingReports(2.0)
    assert (len(pending), pending.is_due(0.0), pending.read(0.0)) == (0, False, [])
    due = []
    for step in range(1, 8):
        report = partial(StepReport, step, step / 7, learning_rate=1e-3, seconds=float(step))
        pending.add(report, torch.tensor(0.5 * step), torch.tensor(2.0 * step))
        due.append(pending.is_due(float(step)))
        if due[-1]:
            with Waits() as waits:
                reports = pending.read(float(step))
            assert waits.found == ["tolist"]
            assert [(one.loss, one.gradient_norm) for one in reports] == [(r.step / 2, r.step * 2) for r in reports]
    assert due == [True, False, True, False, True, False, True]
    assert len(pending) == 0


def test_on_the_cpu_every_step_is_reported_before_the_next_begins(monkeypatch, readings):
    order, real = [], Training.update
    monkeypatch.setattr(Training, "update", lambda self, rate: order.append("update") or real(self, rate))
    fit(TINY, PAIRS, steps=3, progress=lambda report: order.append(report.step))
    assert order == ["update", 1, "update", 2, "update", 3]
    assert readings == [[1], [2], [3]]


def test_losses_are_read_once_per_interval_and_at_the_end(unhurried, readings, tmp_path):
    shown = []
    network = fit(TINY, PAIRS, steps=12, progress=lambda r: shown.append(r.step), log=tmp_path / "log.jsonl")
    assert readings == [[1], [2, 3, 4, 5, 6], [7, 8, 9, 10, 11], [12]]
    assert shown == steps(tmp_path / "log.jsonl") == list(range(1, 13))
    assert same(network, fit(TINY, PAIRS, steps=12))


def test_deferred_reports_equal_immediate_reports(unhurried, monkeypatch, tmp_path):
    told = {}
    for name, seconds in (("late", 1e9), ("at once", 0.0)):
        monkeypatch.setattr("ppdm.training.session.reading_interval", lambda device, seconds=seconds: seconds)
        told[name] = []
        options = {"steps": 7, "validate_every": 3, "validation": PAIRS[:1], "log": tmp_path / name}
        fit(TINY, PAIRS, progress=told[name].append, **options)
    assert told["late"] == [
        StepReport(**{**vars(report), "seconds": late.seconds})
        for report, late in zip(told["at once"], told["late"], strict=True)
    ]
    assert [report.validation_loss is not None for report in told["late"]] == [False, False, True] * 2 + [True]
    assert all(math.isfinite(report.loss) for report in told["late"])


class Looks(TorchFunctionMode):
    """Count how often the host reads a float32 scalar, such as a loss; clocks and flags are on the host anyway."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.__float__, torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist):
            self.count += args[0].dtype is torch.float32
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
def test_the_loop_reads_losses_only_for_reports_and_the_final_comparison(unhurried):
    with Looks() as looks:
        fit(TINY, PAIRS, steps=30, batch_size=2, accumulate=2, augment=Flip("dhw"))
    compared = 3 * DRAWS * min(len(PAIRS), 4)  # of the network and of two predictions that need no training
    assert looks.count == 7 + compared  # readings after steps 1, 6, 11, ... and the last


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"steps": 4, "validate_every": 2}, [[1], [2], [3, 4]]),
        ({"steps": 5, "validate_every": 4}, [[1], [2, 3, 4], [5]]),
        ({"minutes": 4 / 60}, [[1], [2, 3, 4]]),
    ],
)
def test_pending_losses_are_read_before_a_validation_and_at_the_end(unhurried, readings, options, wanted):
    validation = PAIRS[:1] if "validate_every" in options else ()
    fit(TINY, PAIRS, validation=validation, **options)
    assert readings == wanted


def test_pending_losses_are_read_before_a_checkpoint_which_contains_its_step(unhurried, readings, tmp_path):
    fit(TINY, PAIRS, steps=5, run=Run(tmp_path / "run", save_steps=3, save_minutes=None))
    assert readings == [[1], [2, 3], [4, 5]]
    report = read_state(tmp_path / "run" / "state-000003.safetensors").report
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[2])
    assert (report.loss, report.gradient_norm) == (row["loss"], row["gradient_norm"])


def test_pending_losses_are_read_before_a_change_of_stage(unhurried, readings):
    fit(LATENT, PAIRS, steps=6)
    first = math.ceil(6 * LATENT.representation.share)
    assert readings == [[1], list(range(2, first + 1)), list(range(first + 1, 7))]


def test_a_stop_reads_pending_losses_and_saves_a_checkpoint(unhurried, readings, tmp_path):
    asked = iter([False, False, False, True])
    with pytest.raises(Interrupted, match=r"after step 4 as requested; the last good checkpoint is .*state-000004"):
        train(TINY, PAIRS, Schedule(steps=9), run=Run(tmp_path / "run"), stop=lambda: next(asked))
    assert readings == [[1], [2, 3, 4]]
    assert steps(tmp_path / "run" / "log.jsonl") == [1, 2, 3, 4]
    network = fit(TINY, PAIRS, steps=9, run=Run(tmp_path / "run", resume=True))
    assert same(network, fit(TINY, PAIRS, steps=9))
    assert steps(tmp_path / "run" / "log.jsonl") == list(range(1, 10))


# --- errors before a reading


def poisoned(monkeypatch, step):
    """Make losses NaN from this step on."""
    real = Training.add_gradient
    monkeypatch.setattr(
        Training, "add_gradient", lambda self, *a: real(self, *a) * (torch.nan if self.done >= step - 1 else 1)
    )


def test_the_first_step_with_a_nan_loss_is_named_and_nothing_after_it_is_written(unhurried, monkeypatch, tmp_path):
    poisoned(monkeypatch, 4)
    monkeypatch.setattr(
        "ppdm.training.session.validation_loss", lambda *_: pytest.fail("what was not finite was validated")
    )
    keeper = Run(tmp_path / "run", save_steps=2, save_minutes=None)
    options = {"steps": 9, "validate_every": 5, "validation": PAIRS[:1]}
    shown = []
    with pytest.raises(TrainingError, match=r"stopped at step 4: the loss is nan.*checkpoint is .*state-000002"):
        fit(TINY, PAIRS, run=keeper, progress=lambda r: shown.append(r.step), **options)
    assert shown == steps(tmp_path / "run" / "log.jsonl") == [1, 2, 3]
    assert [path.name for path in sorted((tmp_path / "run").glob("state-*"))] == [
        "state-000002.json",
        "state-000002.safetensors",
    ]


@pytest.mark.parametrize("poison", [None, 3])
def test_steps_before_an_error_are_still_reported(unhurried, monkeypatch, tmp_path, poison):
    if poison:
        poisoned(monkeypatch, poison)
    real = Training.update

    def failing(self, rate):
        if self.done == 4:
            raise OSError("the scan cannot be read")
        return real(self, rate)

    monkeypatch.setattr(Training, "update", failing)
    with pytest.raises((OSError, TrainingError)) as caught:
        fit(TINY, PAIRS, steps=9, log=tmp_path / "log.jsonl")
    if poison:  # the earlier error is reported
        assert "stopped at step 3: the loss is nan" in str(caught.value)
        assert steps(tmp_path / "log.jsonl") == [1, 2]
    else:
        assert str(caught.value) == "the scan cannot be read"
        assert steps(tmp_path / "log.jsonl") == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("error", "tries"), [(RankLostError("another rank has ended"), 0), (RuntimeError("device-side assert"), 1)]
)
def test_pending_losses_are_not_read_after_a_lost_rank_and_cannot_hide_the_error_of_a_failed_device(
    unhurried, monkeypatch, tmp_path, error, tries
):
    """Without a rank, the device may never finish an operation, so nothing waits for it."""
    real, tried = Training.update, []

    def failing(self, rate):
        if self.done == 3:
            monkeypatch.setattr(torch, "stack", unreadable)
            raise error
        return real(self, rate)

    def unreadable(scalars):
        tried.append(len(scalars))
        raise RuntimeError("the device has failed")

    monkeypatch.setattr(Training, "update", failing)
    with pytest.raises(type(error), match=str(error)):
        fit(TINY, PAIRS, steps=9, log=tmp_path / "log.jsonl")
    assert tried == [4] * tries  # the losses and gradient norms of steps 2 and 3
    assert steps(tmp_path / "log.jsonl") == [1]

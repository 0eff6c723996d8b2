"""A training whose numbers lie on an accelerator: the host asks for steps, and looks at them when it must."""

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
    """Numbers may lie where they are for five seconds of a clock that is a second further after each step."""
    now = count()
    monkeypatch.setattr("ppdm.training.session.time", SimpleNamespace(perf_counter=lambda: next(now)))
    monkeypatch.setattr("ppdm.training.session.reading_interval", lambda device: 5.0)


@pytest.fixture
def readings(monkeypatch):
    """The steps that were looked at together, each time."""
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
        for k in range(2):  # the optimiser makes its state in the first
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
def test_what_makes_the_host_wait_is_found(look):
    with Waits() as waits:
        look(torch.ones(2))
    assert waits.found


# --- a training


def test_the_cpu_is_read_at_every_step_and_an_accelerator_less_often():
    assert reading_interval("cpu") == reading_interval(torch.device("cpu")) == 0
    assert [reading_interval(device) for device in ("cuda", "cuda:1", torch.device("mps"))] == [READING_INTERVAL] * 3


def test_steps_are_read_together_in_one_copy():
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


def test_on_the_cpu_every_step_is_told_before_the_next_begins(monkeypatch, readings):
    order, real = [], Training.update
    monkeypatch.setattr(Training, "update", lambda self, rate: order.append("update") or real(self, rate))
    fit(TINY, PAIRS, steps=3, progress=lambda report: order.append(report.step))
    assert order == ["update", 1, "update", 2, "update", 3]
    assert readings == [[1], [2], [3]]


def test_an_accelerator_is_waited_for_at_most_so_often(unhurried, readings, tmp_path):
    shown = []
    network = fit(TINY, PAIRS, steps=12, progress=lambda r: shown.append(r.step), log=tmp_path / "log.jsonl")
    assert readings == [[1], [2, 3, 4, 5, 6], [7, 8, 9, 10, 11], [12]]
    assert shown == steps(tmp_path / "log.jsonl") == list(range(1, 13))
    assert same(network, fit(TINY, PAIRS, steps=12))


def test_what_is_told_is_what_is_told_at_once(unhurried, monkeypatch, tmp_path):
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
    """How often a number of float32, as losses are, is looked at; clocks and flags lie on the host anyway."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function in (torch.Tensor.__float__, torch.Tensor.__bool__, torch.Tensor.item, torch.Tensor.tolist):
            self.count += args[0].dtype is torch.float32
        return function(*args, **(kwargs or {}))


@pytest.mark.slow
def test_nothing_else_in_the_loop_looks_at_what_lies_on_the_device(unhurried):
    with Looks() as looks:
        fit(TINY, PAIRS, steps=30, batch_size=2, accumulate=2, augment=Flip("dhw"))
    compared = 3 * DRAWS * min(len(PAIRS), 4)  # after the last step, with two predictions that need no training
    assert looks.count == 7 + compared  # of steps 1, 6, 11, ... and the last


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"steps": 4, "validate_every": 2}, [[1], [2], [3, 4]]),
        ({"steps": 5, "validate_every": 4}, [[1], [2, 3, 4], [5]]),
        ({"minutes": 4 / 60}, [[1], [2, 3, 4]]),
    ],
)
def test_a_validation_and_the_end_are_waited_for(unhurried, readings, options, wanted):
    validation = PAIRS[:1] if "validate_every" in options else ()
    fit(TINY, PAIRS, validation=validation, **options)
    assert readings == wanted


def test_a_checkpoint_is_waited_for_and_holds_its_step(unhurried, readings, tmp_path):
    fit(TINY, PAIRS, steps=5, run=Run(tmp_path / "run", save_steps=3, save_minutes=None))
    assert readings == [[1], [2, 3], [4, 5]]
    report = read_state(tmp_path / "run" / "state-000003.safetensors").report
    row = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[2])
    assert (report.loss, report.gradient_norm) == (row["loss"], row["gradient_norm"])


def test_a_change_of_stage_is_waited_for(unhurried, readings):
    fit(LATENT, PAIRS, steps=6)
    first = math.ceil(6 * LATENT.representation.share)
    assert readings == [[1], list(range(2, first + 1)), list(range(first + 1, 7))]


def test_a_stop_is_waited_for_and_kept(unhurried, readings, tmp_path):
    asked = iter([False, False, False, True])
    with pytest.raises(Interrupted, match=r"after step 4 as requested; the last good checkpoint is .*state-000004"):
        train(TINY, PAIRS, Schedule(steps=9), run=Run(tmp_path / "run"), stop=lambda: next(asked))
    assert readings == [[1], [2, 3, 4]]
    assert steps(tmp_path / "run" / "log.jsonl") == [1, 2, 3, 4]
    network = fit(TINY, PAIRS, steps=9, run=Run(tmp_path / "run", resume=True))
    assert same(network, fit(TINY, PAIRS, steps=9))
    assert steps(tmp_path / "run" / "log.jsonl") == list(range(1, 10))


# --- what fails while nobody looks


def poisoned(monkeypatch, step):
    """Losses are not finite from one step on."""
    real = Training.add_gradient
    monkeypatch.setattr(
        Training, "add_gradient", lambda self, *a: real(self, *a) * (torch.nan if self.done >= step - 1 else 1)
    )


def test_the_first_step_that_was_not_finite_is_named_and_nothing_is_written_after_it(unhurried, monkeypatch, tmp_path):
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
def test_steps_before_one_that_fails_are_told_all_the_same(unhurried, monkeypatch, tmp_path, poison):
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
    if poison:  # what came first is what is told
        assert "stopped at step 3: the loss is nan" in str(caught.value)
        assert steps(tmp_path / "log.jsonl") == [1, 2]
    else:
        assert str(caught.value) == "the scan cannot be read"
        assert steps(tmp_path / "log.jsonl") == [1, 2, 3, 4]


@pytest.mark.parametrize("error", [RankLostError("another rank has ended"), RuntimeError("device-side assert")])
def test_a_device_that_may_never_answer_is_not_waited_for(unhurried, monkeypatch, tmp_path, error):
    real = Training.update

    def failing(self, rate):
        if self.done == 3:
            monkeypatch.setattr(torch, "stack", fail)
            raise error
        return real(self, rate)

    def fail(*_):
        if isinstance(error, RankLostError):
            pytest.fail("it was looked at")
        raise RuntimeError("the device has failed")

    monkeypatch.setattr(Training, "update", failing)
    with pytest.raises(type(error), match=str(error)):
        fit(TINY, PAIRS, steps=9, log=tmp_path / "log.jsonl")
    assert steps(tmp_path / "log.jsonl") == [1]

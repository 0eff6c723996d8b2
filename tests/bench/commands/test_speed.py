"""``ppdm-bench speed``: operations compared with counts by hand, times of a made-up clock, and a real measurement."""

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from commands import refused, run
from torch import nn

from ppdm_baselines import METHODS
from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation import sweep
from ppdm_bench.isolation.runner import ChildAnswer
from ppdm_bench.memory import feasibility as gate
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.figures.step_time import speed_figure
from ppdm_bench.report.tables import speed as table
from ppdm_bench.report.timings import gather_times
from ppdm_bench.timing import arithmetic, clock, command, timing_output, worker
from ppdm_bench.timing.clock import FULL, LEAST, QUICK, Protocol, Stopwatch
from ppdm_bench.timing.command import TimingPlan, TimingTask, carry_out
from ppdm_bench.timing.timing_output import collect, failures, present

pytestmark = pytest.mark.slow

SHAPE = (8, 16, 8)
TINY = Configuration("ppdm", SHAPE, factor=2, width=8)
OWN = METHODS["ppdm"].sampling.steps


def plan(phases=("sample",), evaluations=(1, 4, None), protocol=FULL, configurations=(TINY,), **options):
    return TimingPlan(list(configurations), list(phases), "cpu", list(evaluations), protocol, **options)


def records_of(asked, task, answer):
    """Return the records made from the answer of a child process."""
    asked = replace(asked, configurations=[task.configuration], phases=[task.phase])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sweep, "run_child", lambda *_: answer)
        (made,) = carry_out(asked)
    return made


# --- operations compared with counts by hand


def convolution(stride, gradient_of_input):
    def work():
        net, x = nn.Conv3d(3, 5, 3, stride, 1), torch.randn(2, 3, 8, 8, 8, requires_grad=gradient_of_input)
        net(x).sum().backward()

    return work


@pytest.mark.parametrize(("stride", "voxels"), [(1, 8**3), (2, 4**3)])
def test_a_convolution_is_counted_forward_and_backward(stride, voxels):
    forward = 2 * 2 * voxels * 5 * 3 * 3**3  # multiply and add; batch, voxels, output and input channels, kernel
    assert arithmetic.count(convolution(stride, gradient_of_input=False)) == 2 * forward  # plus the weight gradient
    assert arithmetic.count(convolution(stride, gradient_of_input=True)) == 3 * forward  # plus both gradients


def test_attention_is_counted_forward_and_backward():
    def work():
        q = torch.randn(1, 2, 50, 16, requires_grad=True)  # batch, heads, voxels, channels
        nn.functional.scaled_dot_product_attention(q, q, q).sum().backward()

    product = 2 * 2 * 50 * 50 * 16
    assert arithmetic.count(work) == 2 * product + 4 * product  # two products forward, and two gradients of each


def test_counting_allocates_no_tensors():
    huge = 2**20
    assert arithmetic.count(lambda: torch.ones(huge, huge) @ torch.ones(huge, huge)) == 2 * huge**3


def test_a_step_costs_about_three_evaluations_and_all_evaluations_cost_the_same():
    method = TINY.resolve()
    drawn = arithmetic.volume_flops(method, SHAPE, 1, [1, 3, 7])
    three = replace(method, sampling=replace(method.sampling, steps=3))
    from ppdm.method import sample

    whole = arithmetic.count(lambda: sample(three, three.build(), torch.zeros(1, 1, *SHAPE)))
    assert drawn[3] == whole == 3 * drawn[1]
    assert drawn[7] == 7 * drawn[1]
    step = arithmetic.step_flops(method, SHAPE, 1)
    assert 2.8 * drawn[1] < step < 3 * drawn[1]  # the gradient of the network's input is not computed
    assert arithmetic.step_flops(method, SHAPE, 2) == 2 * step


def test_operations_that_checkpointing_repeats_are_counted_again():
    method = TINY.resolve()
    again = method.with_network(checkpointing="block")
    assert arithmetic.step_flops(again, SHAPE, 1) > 1.1 * arithmetic.step_flops(method, SHAPE, 1)


def test_the_ceiling_is_operations_divided_by_time():
    times = iter([1.0, 1.0, 4.0, 2.0, 8.0, 4.0, 4.0])  # the first two are the warm-up

    def made_up(work):
        work()
        return next(times)

    found = arithmetic.ceiling("bf16", "cpu", made_up, size=64)
    assert found.rates == tuple(2 * 64**3 / seconds for seconds in (4, 2, 8, 4, 4))
    assert found.what == "product of two 64×64 matrices in bf16"


def test_the_ceiling_of_fp32_on_cuda_is_measured_in_tf32(monkeypatch):
    before, seen = torch.get_float32_matmul_precision(), []
    monkeypatch.setattr(arithmetic.torch, "randn", lambda *size, device: torch.ones(size))

    def made_up(work):
        seen.append(torch.get_float32_matmul_precision())
        return 1.0

    assert arithmetic.ceiling("fp32", "cuda", made_up, size=4).what.endswith("tf32")
    assert set(seen) == {"high"}
    assert torch.get_float32_matmul_precision() == before


# --- a made-up clock


def stopwatch(*seconds, protocol=FULL, budget=1e6):
    """Return a stopwatch whose runs take these seconds in order; the last value repeats."""
    times = list(seconds)

    def made_up(work):
        work()
        return times.pop(0) if len(times) > 1 else times[0]

    return Stopwatch(made_up, protocol, budget)


def test_repetitions_continue_until_both_minimum_count_and_time_are_reached():
    assert stopwatch(0.5).repeat(int) == [0.5] * 20
    assert stopwatch(3.0).repeat(int) == [3.0] * 10
    assert stopwatch(0.25, protocol=QUICK).repeat(int) == [0.25] * 4


def test_a_time_budget_limits_repetitions_but_not_below_the_minimum_for_a_median():
    watch = stopwatch(3.0, budget=15.0)
    assert watch.repeat(int) == [3.0] * 5
    assert watch.spent == 15.0
    assert watch.repeat(int) == [3.0] * LEAST
    assert not watch.affords(0.1)


def test_a_warm_up_takes_at_least_two_runs_and_one_second():
    ran = []
    assert stopwatch(5.0, 2.0).warm_up(lambda: ran.append(1)) == [5.0, 2.0]
    assert len(ran) == 2
    assert stopwatch(0.25).warm_up(lambda: ran.append(1)) == [0.25] * 4
    assert len(ran) == 6


def test_the_cpu_clock_measures_time_and_the_cuda_clock_reads_gpu_events(monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 0.0)  # a clock that can be set back
    start = time.perf_counter()
    measured = clock.clock_of("cpu")(lambda: time.sleep(0.02))
    assert 0.02 <= measured <= time.perf_counter() - start
    told = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            told.append("record")

        def synchronize(self):
            told.append("synchronize")

        def elapsed_time(self, end):
            assert told == ["record", "work", "record", "synchronize"]
            return 1500.0  # ms

    monkeypatch.setattr(torch.cuda, "Event", Event)
    assert clock.clock_of("cuda")(lambda: told.append("work")) == 1.5


def volumes(counts, budget, seconds_each):
    """Return the times of volumes that take 1 s, plus ``seconds_each`` for each evaluation."""
    now = []
    watch = Stopwatch(lambda work: work() or now.pop(), Protocol(LEAST, 0.0), budget)
    first, found = worker.time_volumes(watch, lambda k: lambda: now.append(1 + seconds_each * k), counts)
    assert first == 1 + seconds_each
    return found


def test_every_number_of_evaluations_within_the_budget_is_measured():
    found = volumes([10, 1, 4], budget=1e6, seconds_each=2)
    assert found == {1: [3.0] * 3, 4: [9.0] * 3, 10: [21.0] * 3}
    assert list(found) == [1, 4, 10]


def test_numbers_over_the_budget_are_left_out_but_two_are_measured_for_an_estimate():
    assert set(volumes([1, 4, 250], budget=200, seconds_each=2)) == {1, 4}
    assert set(volumes([1, 250], budget=200, seconds_each=2)) == {1, 4}
    assert set(volumes([250], budget=200, seconds_each=2)) == {1, 4}
    assert set(volumes([1], budget=200, seconds_each=2)) == {1}


# --- records


CEILING = {"rates": [90.0, 100.0, 80.0], "what": "product of two 4×4 matrices in fp32"}
TRAINED = ChildAnswer(
    "ok", "", {"step_seconds": [3.0, 1.0, 2.0] * 4, "step_flops": 50, "matmul": CEILING}, {"torch": "x"}
)
DRAWN = ChildAnswer(
    "ok",
    "",
    {
        "volume_seconds": {"1": [3.0] * 10, "4": [9.0] * 4},
        "volume_flops": {"1": 30, "4": 120, "250": 7500},
        "matmul": CEILING,
    },
    {"torch": "x"},
)


def of(records, metric, **wanted):
    found = [r for r in records if r.metric == metric and all(getattr(r, n) == v for n, v in wanted.items())]
    assert len(found) == 1, [r.metric for r in records]
    return found[0]


def test_the_records_of_a_step_have_a_median_raw_values_and_a_share_of_the_ceiling():
    records = records_of(plan(("train",)), TimingTask(TINY, "train"), TRAINED)
    step = of(records, "step_seconds")
    assert (step.value, step.stat, step.n, step.unit, step.kind) == (2.0, "median", 12, "s", "measured")
    assert step.samples == (3.0, 1.0, 2.0) * 4
    assert (step.steps, step.reason, step.env["torch"], records[-1]) == (None, "", "x", step)
    best = of(records, "matmul_flops_per_second")
    assert (best.value, best.stat, best.samples, best.reason) == (100.0, "max", (90.0, 100.0, 80.0), CEILING["what"])
    assert of(records, "flops_share").value == 50 / 2.0 / 100.0
    counted = of(records, "step_flops")
    assert (counted.value, counted.unit, counted.kind, counted.stat) == (50, "FLOP", "predicted", "count")
    for record in records:
        assert (record.command, record.method, record.variant, record.shape) == ("speed", "ppdm", "r=2", SHAPE)
        assert (record.phase, record.device, record.config_id) == ("train", "cpu", records[0].config_id)
        assert record.options["protocol"] == {"repetitions": 10, "seconds": 10.0, "timeout": 600, "evaluations": []}


def test_records_of_speed_have_the_config_id_of_the_configuration():
    from ppdm_bench.records import config_id

    records = records_of(plan(("train",)), TimingTask(TINY, "train"), TRAINED)
    assert records[0].config_id == config_id(TINY.describe())


def test_a_volume_over_the_budget_is_skipped_and_has_a_separate_estimate():
    asked = plan(evaluations=(1, 4, 250))
    records = records_of(asked, TimingTask(TINY, "sample"), DRAWN)
    assert [(r.steps, r.value, r.status) for r in records if r.metric == "volume_seconds"] == [
        (1, 3.0, "ok"),
        (4, 9.0, "ok"),
        (250, None, "skipped"),
    ]
    assert "longer --timeout" in of(records, "volume_seconds", steps=250).reason
    assert of(records, "volume_seconds", steps=4).reason.startswith("4 instead of 10 repetitions")
    guess = of(records, "volume_seconds_estimate")
    assert (guess.value, guess.steps, guess.kind, guess.stat) == (pytest.approx(501), 250, "predicted", "extrapolated")
    assert "not run" in guess.reason
    assert {r.steps for r in records if r.metric == "flops_share"} == {1, 4}
    assert failures(records) == []


def test_evaluations_none_selects_the_own_number_of_the_method():
    assert plan().counts(TimingTask(TINY, "sample")) == sorted({1, 4, OWN})
    assert plan().counts(TimingTask(Configuration("ddpm3d", SHAPE), "sample")) == [1, 4, 250]
    assert plan().counts(TimingTask(TINY, "train")) == []


@pytest.mark.parametrize("status", ["oom", "timeout", "error", "killed"])
def test_a_failed_child_gives_a_row_for_every_requested_value(status):
    for phase, metric, steps in (("train", "step_seconds", [None]), ("sample", "volume_seconds", [1, 4])):
        records = records_of(plan(evaluations=(1, 4)), TimingTask(TINY, phase), ChildAnswer(status, "so it is"))
        assert [(r.metric, r.status, r.reason, r.value) for r in records] == [(metric, status, "so it is", None)] * len(
            steps
        )
        assert [r.steps for r in records] == steps
        assert bool(failures(records)) == (status != "oom")
    assert failures(records) == ([] if status == "oom" else ["ppdm r=2 sample: so it is"])


def with_first(answer, seconds):
    return replace(answer, metrics=answer.metrics | {"first_call_seconds": seconds})


def test_the_first_call_is_a_separate_metric():
    step = of(records_of(plan(("train",)), TimingTask(TINY, "train"), with_first(TRAINED, 40.0)), "first_call_seconds")
    assert (step.value, step.unit, step.stat, step.n) == (40.0, "s", "first", 1)
    assert (step.kind, step.phase, step.steps) == ("measured", "train", None)
    volume = of(
        records_of(plan(evaluations=(4,)), TimingTask(TINY, "sample"), with_first(DRAWN, 30.0)), "first_call_seconds"
    )
    assert (volume.value, volume.steps, volume.phase) == (30.0, 1, "sample")


def test_the_table_shows_the_first_call_only_if_a_network_is_compiled():
    eager = [
        *records_of(plan(("train",)), TimingTask(TINY, "train"), with_first(TRAINED, 2.5)),
        *records_of(plan(evaluations=(4,)), TimingTask(TINY, "sample"), with_first(DRAWN, 3.5)),
    ]
    assert "first step" not in table.speed_page(eager).to_text()
    assert list(table.speed_page(eager).data["first_call"]) == [2.5, 3.5, 3.5]
    compiled = [replace(r, variant="r=2 network.compile=true", compile=True) for r in eager]
    compiled = [replace(r, value=10 * r.value) if r.metric == "first_call_seconds" else r for r in compiled]
    text = table.speed_page([*eager, *compiled]).to_markdown()
    assert "| first step, s |" in text
    assert "| 2.50 |" in text
    assert "| 25.0 |" in text
    assert "| 35.0 |" in text
    assert "First: the call that compiles the network" in text
    older = [r for r in compiled if r.metric != "first_call_seconds"]
    assert "first step" not in table.speed_page(older).to_text()
    assert speed_figure(older).axes


def test_the_time_is_recorded_even_if_flops_cannot_be_counted():
    metrics = {name: value for name, value in TRAINED.metrics.items() if name != "step_flops"}
    records = records_of(
        plan(("train",)), TimingTask(TINY, "train"), replace(TRAINED, metrics=metrics, reason="no FLOPs")
    )
    assert {r.metric for r in records} == {"step_seconds", "matmul_flops_per_second"}
    assert of(records, "step_seconds").reason == "no FLOPs"


@pytest.mark.parametrize(
    ("status", "then", "asked_again", "children"),
    [
        ("ok", {}, {}, 1),
        ("oom", {}, {}, 1),
        ("timeout", {}, {}, 1),
        ("timeout", {}, {"timeout": 900}, 2),
        ("killed", {}, {}, 2),
        ("ok", {"torch": "0.0"}, {}, 2),
        ("ok", {"dirty": True}, {}, 2),
        ("ok", {}, {"protocol": QUICK}, 2),
        ("ok", {}, {"evaluations": (1,)}, 2),
    ],
)
def test_a_repeated_command_measures_only_what_is_missing_or_changed(
    tmp_path, monkeypatch, status, then, asked_again, children
):
    asked = []
    for env, options in (({}, {}), (then, asked_again)):
        env = {"dirty": False, "torch": "1.0"} | env

        def child(module, request, timeout, env=env):
            asked.append(request)
            return replace(DRAWN, status=status, env=env, reason="" if status == "ok" else "so it is")

        monkeypatch.setattr(sweep, "run_child", child)
        monkeypatch.setattr("ppdm_bench.environment.environment", lambda env=env: env)
        records = collect(plan(**({"evaluations": (1, 4, 250)} | options)), tmp_path)
        assert {r.status for r in records} >= {status}
    assert len(asked) == children
    if children == 1:
        assert len(RecordFile(tmp_path / "records.jsonl").read()) == len(records)


# --- several sizes, and cases that do not fit

SIZED = [replace(TINY, shape=(n,) * 3) for n in (8, 16, 24)]


@pytest.fixture
def children(monkeypatch):
    """Replace child processes and return the list of requested sizes; sizes above 8 run out of memory."""
    asked = []

    def child(module, request, timeout):
        asked.append(request["configuration"]["shape"][0])
        return ChildAnswer("oom", "too little memory") if asked[-1] > 8 else DRAWN

    monkeypatch.setattr(sweep, "run_child", child)
    return asked


def outcomes(records):
    return [(r.shape[0], r.steps, r.status) for r in records if r.metric == "volume_seconds"]


def test_a_case_not_smaller_than_one_that_ran_out_of_memory_is_skipped(children, tmp_path):
    asked = plan(evaluations=(1, 4), configurations=SIZED)
    wanted = [(n, k, status) for n, status in ((8, "ok"), (16, "oom"), (24, "skipped")) for k in (1, 4)]
    records = collect(asked, tmp_path)
    assert (outcomes(records), children) == (wanted, [8, 16])
    assert (
        records[-1].reason == "the same case at 16×16×16, batch size 1 ran out of memory, and this one is not smaller"
    )
    assert failures(records) == []
    frame = table.speed_page(records).data
    assert frame["shape"].tolist() == [f"{n}x{n}x{n}" for n in (8, 8, 16, 16, 24, 24)]
    assert table.speed_page(records).to_text().count("ppdm r=2  ") == 3
    assert speed_figure(records)


def test_a_case_that_is_predicted_not_to_fit_is_skipped(children, monkeypatch):
    small, large = (Target(capacity=GIB // 2 + room) for room in (2**20, GIB))
    (record,) = carry_out(plan(("train",), configurations=SIZED[:1], card=small))
    assert [(r.metric, r.status) for r in record] == [("step_seconds", "skipped")]
    assert record[0].reason.startswith("predicted not to fit: it needs 0.70 GiB")
    assert record[0].reason.endswith("--no-gate runs it anyway")
    for card in (None, large):
        (record,) = carry_out(plan(evaluations=(1, 4), configurations=SIZED[:1], card=card))
        assert outcomes(record) == [(8, 1, "ok"), (8, 4, "ok")]
    assert children == [8, 8]
    monkeypatch.setattr(gate, "predict_peak", lambda *_: 1 / 0)
    (record,) = carry_out(plan(evaluations=(1, 4), configurations=SIZED[:1], card=small))
    assert outcomes(record) == [(8, 1, "ok"), (8, 4, "ok")]  # without a prediction, it is measured


def test_a_case_with_earlier_records_is_not_predicted_again(children, monkeypatch, tmp_path):
    monkeypatch.setattr("ppdm_bench.environment.environment", lambda: {"dirty": False, "torch": "x"})
    asked = plan(evaluations=(1, 4), configurations=SIZED[:1])
    first = collect(asked, tmp_path)
    monkeypatch.setattr(command, "doubt", lambda *_: 1 / 0)
    second = collect(replace(asked, card=Target(capacity=GIB)), tmp_path)
    assert {record.content() for record in first} == {record.content() for record in second}
    assert children == [8]


def test_the_feasibility_check_uses_the_present_card_unless_it_is_off_or_on_the_cpu(tmp_path, monkeypatch):
    from ppdm_bench import devices

    monkeypatch.chdir(tmp_path)
    card, plans = Target(capacity=8 * GIB), []
    monkeypatch.setattr(devices, "training_device", lambda choice: choice)
    monkeypatch.setattr(Target, "of_this_machine", lambda: card)
    monkeypatch.setattr(timing_output, "collect", lambda plan, folder: plans.append(plan) or answered())
    words = ("speed", "--res", "16,8", "--method", "ppdm", "--factor", "2", "--width", 8)
    for more in (("--device", "cuda"), ("--device", "cuda", "--no-gate"), ("--device", "cpu")):
        assert run(*words, *more)[0] == 0
    assert [plan.card for plan in plans] == [card, None, None]
    assert [c.shape for c in plans[0].configurations] == [(8, 8, 8), (16, 16, 16)]


# --- tables and figures


def answered(evaluations=(1, 4, 250), protocol=FULL):
    asked = plan(("train", "sample"), evaluations, protocol)
    return [
        *records_of(asked, TimingTask(TINY, "train"), TRAINED),
        *records_of(asked, TimingTask(TINY, "sample"), DRAWN),
    ]


def test_the_table_data_have_separate_rows_for_measurements_and_estimates():
    frame = table.speed_page(answered()).data
    rows = frame.set_index(["phase", "evaluations", "kind"])
    assert len(frame) == 5
    step = frame[frame.phase == "train"].iloc[0]
    assert (step.seconds, step.q1, step.q3, step.per_second, step.n) == (2.0, 1.0, 3.0, 0.5, 12)
    assert (step.flop, step.flop_per_second, step["share"]) == (50, 25.0, 0.25)
    four = rows.loc[("sample", 4, "measured")]
    assert (four.seconds, four.per_second, four.flop_per_second) == (9.0, 1 / 9, 120 / 9)
    assert rows.loc[("sample", 250, "measured")].status == "skipped"
    assert rows.loc[("sample", 250, "predicted")].seconds == pytest.approx(501)


def test_volumes_per_second_count_the_whole_batch():
    two = replace(TINY, batch_size=2)
    records = records_of(plan(evaluations=(1, 4), configurations=[two]), TimingTask(two, "sample"), DRAWN)
    assert table.speed_page(records).data.per_second.tolist() == [2 / 3, 2 / 9]


def test_the_text_shows_rates_and_shares_and_marks_estimates():
    text = table.speed_page(answered()).to_text()
    assert "0.500 (0.333 to 1.00)" in text
    assert "25 (25%)" in text
    assert "≈501 est." in text
    assert "est.: an estimate" in text
    assert "ppdm r=2, sample: a volume of 250 evaluations cannot be repeated" in text
    assert "of 100FLOP/s" in text
    assert "Quick" not in text
    assert "Quick: fewer than the 10" in table.speed_page(answered(protocol=QUICK)).to_text()
    assert table.speed_page(answered()).to_markdown().count("| ppdm r=2 |") == 1


def test_the_column_of_the_own_evaluations_states_their_number():
    four = replace(TINY, setting="sampling.steps=4")
    asked = plan(evaluations=(1, None), configurations=(four,))
    assert "9.00 (4)" in table.speed_page(records_of(asked, TimingTask(four, "sample"), DRAWN)).to_text()


def test_a_failure_is_shown_in_its_cell_with_a_note():
    records = records_of(plan(("train",)), TimingTask(TINY, "train"), ChildAnswer("oom", "too little memory"))
    text = table.speed_page(records).to_text()
    assert "OOM" in text
    assert "ppdm r=2, train: too little memory." in text


def test_records_without_times_are_ignored_and_no_times_at_all_are_refused():
    peak = Record(metric="peak_allocated", value=1, kind="measured", method="m")
    assert len(gather_times([peak, *answered()])) == 1
    with pytest.raises(ValueError, match="no record has a time"):
        gather_times([peak])


def test_the_figure_draws_steps_as_bars_and_estimates_as_hollow_markers():
    figure = speed_figure(answered())
    bars, curves = figure.axes
    assert [bar.get_width() for bar in bars.patches] == [2.0]
    hollow = [line for line in curves.lines if line.get_markerfacecolor() == "white"]
    assert [(list(line.get_xdata()), [round(y) for y in line.get_ydata()]) for line in hollow] == [([250], [501])]
    assert curves.get_xscale() == curves.get_yscale() == "log"
    assert figure.legends
    assert not speed_figure(answered(evaluations=(1, 4))).legends


@pytest.mark.parametrize("phase", ["train", "sample"])
def test_a_figure_of_only_one_phase_is_drawn(tmp_path, phase):
    _, written = present([record for record in answered() if record.phase == phase], tmp_path)
    assert {path.suffix for path in written} >= {".png", ".pdf"}


def test_the_reported_files_are_written_and_records_without_samples_have_no_figure(tmp_path):
    text, written = present(answered(), tmp_path)
    assert "ppdm r=2" in text
    assert {path.name for path in written[1:]} == {path.name for path in tmp_path.iterdir()}
    assert {path.suffix for path in written} == {".jsonl", ".csv", ".md", ".tex", ".png", ".pdf"}
    _, without = present([replace(r, samples=()) for r in answered()], tmp_path)
    assert {path.suffix for path in without} == {".jsonl", ".csv", ".md", ".tex"}


# --- the command


@pytest.fixture
def in_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


WORDS = ("speed", "--res", "8", "--width", "8", "--method", "ppdm", "--factor", "2", "--device", "cpu", "--quick")


def test_a_real_run_gives_consistent_records_and_all_files(in_folder, monkeypatch):
    quick = replace(QUICK, seconds=0.1)
    monkeypatch.setattr("ppdm_bench.timing.clock.QUICK", quick)
    code, out, err = run(*WORDS, "--evaluations", "1,2", "--json", "--out", "o")
    records = [Record(**row) for row in json.loads(out)]
    assert code == 0, err
    assert "quick: 3 repetitions or 0.1 s" in err
    step = of(records, "step_seconds")
    assert step.n == len(step.samples) >= quick.repetitions
    assert sum(step.samples) >= quick.seconds
    assert min(step.samples) <= step.value <= max(step.samples)
    assert {r.phase for r in records if r.metric == "first_call_seconds" and r.value > 0} == {"train", "sample"}
    assert step.env["threads"] == 1
    method = replace(TINY, shape=(8, 8, 8)).resolve()
    assert of(records, "step_flops").value == arithmetic.step_flops(method, (8, 8, 8), 1)
    assert {r.steps for r in records if r.metric == "volume_seconds"} == {1, 2}
    for record in (r for r in records if r.metric == "flops_share"):
        assert 0 < record.value < 1
        assert "2048×2048 matrices in fp32" in record.reason
    assert {path.name for path in Path("o").iterdir()} == {
        ".lock",
        "records.jsonl",
        *(f"speed.{end}" for end in ("csv", "md", "tex", "png", "pdf")),
    }


def test_a_child_reports_its_error(in_folder):
    request = {"configuration": replace(TINY, method="nobody").to_dict(), "phase": "train", "device": "cpu"}
    answer = worker._answer(
        request | {"evaluations": [], "protocol": {"repetitions": 3, "seconds": 1.0}, "timeout": 60}
    )
    assert answer["status"] == "error"
    assert "nobody" in answer["reason"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "give one size"),
        (["--res", "8", "--shape", "8x8x8"], "give one size"),
        (["--res", "8", "--device", "predict"], "a predicted time needs a card, and this machine has none"),
        (["--res", "8,0"], "'--res': expected a whole number of at least 1, got '0'"),
        (["--res", "8", "--evaluations", "0"], "'--evaluations'"),
        (["--res", "8", "--evaluations", "many"], "'--evaluations'"),
        (["--res", "8", "--phase", "fly"], "'--phase': expected train or sample, got 'fly'"),
        (["--res", "8", "--precision", "fp8"], "precision must be one of fp32"),
        (["--res", "8", "--method", "pdpm"], "did you mean ppdm?"),
        (["--res", "8", "--timeout", "0"], "'--timeout'"),
    ],
)
def test_a_usage_error_gives_a_message_and_creates_no_files(tmp_path, monkeypatch, words, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in refused(2, "speed", *words)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_cuda_device_is_reported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in refused(1, "speed", "--res", "8", "--device", "cuda")


def test_every_option_reaches_the_plan(tmp_path, monkeypatch):

    monkeypatch.chdir(tmp_path)
    plans = []
    monkeypatch.setattr(timing_output, "collect", lambda plan, folder: plans.append(plan) or answered())
    words = ("--shape", "8x16x8", "--method", "ppdm", "--factor", "2,4", "--precision", "fp32,bf16", "--batch-size", 2)
    words += ("--checkpointing", "norm", "--width", 8, "--phase", "sample", "--timeout", 90, "--evaluations", "2,own")
    assert run("speed", *words, "--device", "cpu")[0] == 0
    (made,) = plans
    assert [(c.factor, c.precision) for c in made.configurations] == [(r, p) for r in (2, 4) for p in ("fp32", "bf16")]
    assert {(c.shape, c.checkpointing, c.width, c.batch_size) for c in made.configurations} == {(SHAPE, "norm", 8, 2)}
    assert (made.phases, made.evaluations, made.timeout, made.protocol) == (["sample"], [2, None], 90.0, FULL)


def test_importing_the_command_needs_no_pytorch():
    code = "import sys; sys.modules['torch'] = None; import ppdm_bench.commands.speed"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


def test_tasks_are_listed_in_order():
    asked = plan(("train", "sample"))
    assert [task.text for task in asked.tasks] == [
        "timing ppdm r=2 train 8×16×8 fp32 none",
        "timing ppdm r=2 sample 8×16×8 fp32 none",
    ]


def test_a_plan_is_carried_out_task_by_task(monkeypatch):
    answers = {"train": TRAINED, "sample": DRAWN}
    monkeypatch.setattr(sweep, "run_child", lambda module, request, timeout: answers[request["phase"]])
    told = []
    made = list(carry_out(plan(("train", "sample"), (1, 4)), told.append))
    assert [task.phase for task in told] == ["train", "sample"]
    assert [records[-1].metric for records in made] == ["step_seconds", "volume_seconds"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from PyTorch's compiler about its own code
def test_channels_last_and_compile_do_not_change_the_count():
    counted = {
        arithmetic.step_flops(METHODS["ppdm"].with_network(width=8, multipliers=(1, 2), **change), (8, 8, 8), 1)
        for change in ({}, {"channels_last": True}, {"compile": True})
    }
    assert len(counted) == 1

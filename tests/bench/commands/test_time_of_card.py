"""Predicted times of ``speed``, ``plan`` and ``memory`` for a card that is not present."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from commands import refused, run

from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.command import MemoryPlan, MemoryTask, carry_out
from ppdm_bench.memory.explain import costs
from ppdm_bench.memory.memory_output import failures
from ppdm_bench.planning import planning_output as planned
from ppdm_bench.planning.duration import duration_table, durations
from ppdm_bench.planning.questions import Bounds
from ppdm_bench.predictor.cards import find_card, find_sheet
from ppdm_bench.predictor.target import Target
from ppdm_bench.predictor.timing import LIMITS
from ppdm_bench.records import Record
from ppdm_bench.report.figures.step_time import speed_figure
from ppdm_bench.report.figures.time_by_operator import save_times, time_figure, times_page
from ppdm_bench.report.tables.budget import gather_plan
from ppdm_bench.report.tables.speed import speed_page, speed_table
from ppdm_bench.report.timings import gather_times
from ppdm_bench.timing.clock import FULL
from ppdm_bench.timing.command import TimingPlan
from ppdm_bench.timing.prediction import predicted_times, step_duration, volume_durations
from ppdm_bench.units import significant

SHAPE = (16, 16, 16)
TINY = Configuration("tiny_training:TINY", SHAPE, factor=2, width=8)  # the network has two levels
OPTIONS = ["--method", "tiny_training:TINY", "--factor", "2", "--width", "8", "--res", "16"]
A100 = find_sheet("A100 80GB")


@pytest.fixture(scope="module")
def records() -> list[Record]:
    plan = TimingPlan([TINY], ["train", "sample"], "predict", [1, 4, 9], FULL)
    return [record for made in predicted_times(plan, A100) for record in made]


@pytest.mark.slow
def test_each_predicted_time_records_its_card_interval_and_parts(records: list[Record]) -> None:
    assert [(r.metric, r.steps) for r in records] == [
        ("step_seconds", None),
        *(("volume_seconds", k) for k in (1, 4, 9)),
    ]
    for record in records:
        assert (record.kind, record.gpu, record.device, record.samples) == ("predicted", "A100 80GB", "cuda", ())
        told = record.options["predicted_time"]
        low, high = told["interval"]
        assert low < record.value < high
        assert sum(told["parts"][name] for name in LIMITS) == pytest.approx(record.value, rel=1e-3)


def test_each_further_evaluation_takes_the_same_time(records: list[Record]) -> None:
    one, four, nine = (record.value for record in records[1:])
    assert (nine - four) / 5 == pytest.approx((four - one) / 3)
    assert volume_durations(TINY, A100, [3])[3].seconds == pytest.approx(one + 2 * (four - one) / 3)


def test_the_table_shows_rates_with_their_intervals_and_limits(records: list[Record]) -> None:
    page = speed_page(records)
    text = page.to_text(())
    assert "Predicted time on A100 80GB" in text
    assert "launches" in text
    assert "nothing was measured" in text
    assert "quartiles" not in text
    table = speed_table(gather_times(records))
    assert list(table["kind"].unique()) == ["predicted"]
    assert (table["low"] < table["seconds"]).all()
    assert (table["high"] > table["seconds"]).all()
    assert (table[list(LIMITS)].sum(axis=1) - 1).abs().max() < 1e-3
    assert table["q1"].isna().all()


def test_predicted_times_are_drawn_hollow(records: list[Record]) -> None:
    figure = speed_figure(records)
    bars, curves = figure.axes
    assert bars.patches[0].get_facecolor()[:3] == (1, 1, 1)
    assert bars.patches[0].get_hatch()
    assert curves.lines[0].get_markerfacecolor() == "white"


@pytest.mark.slow
def test_a_configuration_that_does_not_fit_the_card_has_no_time() -> None:
    small = find_card("RTX 3070").target(capacity=660 * 2**20)
    plan = TimingPlan([TINY], ["train"], "predict", [1], FULL, card=small)
    ((record,),) = predicted_times(plan, find_sheet("RTX 3070"))
    assert (record.status, record.value) == ("skipped", None)
    assert "--no-gate" in record.reason


@pytest.mark.slow
def test_more_channels_take_longer() -> None:
    wider = Configuration("ppdm", SHAPE, factor=2, width=32)
    parts, of_wider = (step_duration(one, A100).parts for one in (TINY, wider))
    assert of_wider["arithmetic"] + of_wider["bandwidth"] > 2 * (parts["arithmetic"] + parts["bandwidth"])


@pytest.mark.slow
def test_speed_predicts_times_for_a_card_and_writes_its_files(tmp_path: Path) -> None:
    options = [*OPTIONS, "--evaluations", "1,2", "--no-gate"]
    code, text, _ = run("speed", "--gpu", "RTX 4090", *options, "--json", "--out", tmp_path)
    assert code == 0
    found = json.loads(text)
    assert {record["kind"] for record in found} == {"predicted"}
    assert {record["env"]["target_gpu"] for record in found} == {"RTX 4090"}
    assert {"speed.csv", "speed.png", "records.jsonl"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.slow
def test_a_plan_predicts_hours_of_training_and_seconds_per_volume(records: list[Record]) -> None:
    found = list(durations([(TINY, "train"), (TINY, "sample"), (TINY, "decode")], 36_000, A100))
    assert [(r.metric, r.unit) for r in found] == [("training_hours", "h"), ("volume_seconds", "s")]
    assert found[0].value == pytest.approx(10 * records[0].value)
    own = TINY.resolve().sampling.steps
    one, four = records[1].value, records[2].value
    assert found[1].value == pytest.approx(one + (own - 1) * (four - one) / 3)
    table = duration_table(found)
    assert table is not None
    ((name, hours, seconds),) = table.texts()
    assert name == TINY.label
    assert hours.startswith(significant(found[0].value) + " (")
    assert seconds.startswith(significant(found[1].value) + " (")
    assert gather_plan(found) == []  # the table of memory ignores durations
    assert duration_table([]) is None


@pytest.mark.parametrize("options", [["--steps", "0"], ["--steps", "5", "--precision", "bf16"]])
def test_plan_refuses_zero_steps_and_times_in_a_precision_that_the_card_lacks(options: list[str]) -> None:
    words = refused(2, "plan", "--gpu", "T4", "--res", "32", "--method", "ppdm", *options)
    assert "--steps" in words or "does not compute in bf16" in words


@pytest.mark.slow
def test_plan_csv_has_columns_for_the_durations(tmp_path: Path) -> None:
    bounds = Bounds(step=16, edge=16, batch=1, factors=(1,))
    asked = planned.CapacityPlan([TINY], None, find_card("T4").target(), (), bounds, 36_000, find_sheet("T4"))
    planned.present(planned.collect(asked, workers=1), tmp_path)
    train, sample = csv.DictReader((tmp_path / "plan.csv").read_text().splitlines())
    hours = step_duration(TINY, find_sheet("T4")).seconds * 10
    assert (train["purpose"], float(train["training_hours"])) == ("train", pytest.approx(hours, rel=1e-4))
    assert (sample["purpose"], sample["training_hours"], train["volume_seconds"]) == ("sample", "", "")
    assert float(sample["volume_seconds_low"]) < float(sample["volume_seconds"]) < float(sample["volume_seconds_high"])


@pytest.mark.slow
def test_the_table_of_memory_has_columns_of_time_only_with_the_option_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppdm_bench.memory.memory_output.save", lambda *_: [])  # figures are tested elsewhere
    asked = ["memory", *OPTIONS, "--out", tmp_path]
    code, _, _ = run(*asked, "--gpu", "A100 80GB")
    assert code == 0
    (row,) = csv.DictReader((tmp_path / "memory.csv").read_text().splitlines())
    assert "train_seconds" not in row
    code, text, _ = run(*asked, "--gpu", "A100 80GB", "--time", "--columns", "train seconds,sample seconds")
    assert code == 0
    (row,) = csv.DictReader((tmp_path / "memory.csv").read_text().splitlines())
    seconds = step_duration(TINY, A100).seconds
    assert float(row["train_seconds"]) == pytest.approx(seconds, rel=1e-4)
    assert float(row["sample_seconds_low"]) < float(row["sample_seconds"]) < float(row["sample_seconds_high"])
    assert f"{significant(seconds)} ({significant(0.8 * seconds)} to" in text
    assert "eight of ten published timings" in text


@pytest.mark.slow
def test_cases_that_do_not_fit_and_phases_without_a_time_model_have_no_time() -> None:
    plan = MemoryPlan([TINY], ["train", "sample"], "predict", find_card("RTX 3070").target())
    needs = [r.value for records in carry_out(plan) for r in records if r.metric == "needs"]
    card = find_card("RTX 3070").target(capacity=round(sum(needs) / 2))
    made = [record for records in carry_out(replace(plan, target=card, sheet=A100)) for record in records]
    assert {r.phase for r in made if r.metric == "peak_allocated" and r.status == "oom"} == {"train"}
    assert [r.metric for r in made if r.unit == "s"] == ["volume_seconds"]
    latent = Configuration("latent", SHAPE, width=8)
    plan = MemoryPlan([latent], ["autoencoder_train", "decode"], "predict", find_card("T4").target(), sheet=A100)
    assert not [r for records in carry_out(plan) for r in records if r.unit == "s"]


@pytest.mark.slow
def test_a_time_that_cannot_be_predicted_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr("ppdm_bench.timing.prediction.step_duration", fails)
    plan = MemoryPlan([TINY], ["train"], "predict", find_card("A100 80GB").target(), sheet=A100)
    made = [record for records in carry_out(plan) for record in records]
    (fault,) = failures(made)
    assert "no such kernel" in fault
    assert next(r for r in made if r.metric == "peak_allocated").status == "ok"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--time"], 'name one, such as --gpu "A100 80GB"'),
        (["--time", "--gpu", "A100 80GB", "--explain", "ppdm"], "leave it out, --explain predicts times too"),
        (["--time", "--gpu", "T4", "--precision", "bf16"], "T4 does not compute in bf16"),
        (["--time", "--gpu", "T44"], "did you mean"),
    ],
)
def test_invalid_options_with_time_are_refused(options: list[str], words: str, tmp_path: Path) -> None:
    assert words in refused(2, "memory", "--res", "16", "--method", "ppdm", *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "work"),
    [("memory", "ppdm_bench.memory.memory_output.collect"), ("plan", "ppdm_bench.planning.planning_output.collect")],
)
def test_memory_in_an_emulated_precision_is_predicted_with_a_warning(
    command: str, work: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = MemoryPlan([TINY], ["train"], "predict", find_card("T4").target())
    made = [record for records in carry_out(plan) for record in records]
    monkeypatch.setattr(work, lambda *_: made if command == "memory" else [])
    asked = [command, "--res", "16", "--method", "ppdm", "--gpu", "T4", "--out", tmp_path]
    code, _, warned = run(*asked, "--precision", "bf16")
    assert code == 0
    assert "T4 does not compute in bf16, and PyTorch would emulate it slowly; take --precision fp16" in warned
    assert "bf16" not in run(*asked, "--precision", "fp16")[2]


@pytest.mark.slow
def test_a_step_is_explained_by_operator(tmp_path: Path) -> None:
    task = MemoryTask(TINY, "train", measured=False)
    found = costs(task, find_card("A100 80GB").target())
    assert sum(cost.seconds for cost in found) == pytest.approx(step_duration(TINY, A100).seconds, rel=0.05)
    assert {"forward", "backward", "optimizer", "outside the network"} == {cost.stage for cost in found}
    assert {"convolution", "convolution_backward"} <= {cost.operator for cost in found}
    lines = times_page("tiny", found).to_markdown().strip().splitlines()
    shares = [float(line.split("|")[3].strip().rstrip("%")) for line in lines[4:]]
    assert sum(shares) == pytest.approx(100, abs=1)
    assert "all others" in lines[-1]
    names = {path.name for path in save_times("tiny", found, tmp_path / "time")}
    assert names == {"time.png", "time.pdf", "time.csv", "time.md", "time.tex"}
    assert costs(task, Target()) == []


def test_a_figure_of_a_step_without_operators_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        time_figure("tiny", [])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpu", "RTX 4900"], "did you mean RTX 4090"),
        (["--gpu", "T4", "--precision", "bf16"], "T4 does not compute in bf16, and PyTorch would emulate it slowly"),
        (["--gpu", "GTX 1080 Ti", "--precision", "bf16"], "take --precision fp32"),
        (["--gpu", "T4", "--device", "cpu"], "leave one out"),
        (["--device", "predict"], 'name one, such as --gpu "RTX 4090"'),
    ],
)
def test_invalid_options_of_speed_are_refused(options: list[str], words: str, tmp_path: Path) -> None:
    assert words in refused(2, "speed", "--res", "16", "--method", "ppdm", *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()

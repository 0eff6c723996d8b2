"""Memory of one step: its modules in the forward and backward pass, its timeline, and its largest blocks."""

import csv
import io
import json
from math import prod
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from typer.testing import CliRunner

from ppdm_bench.cli import app
from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.command import MemoryPlan, MemoryTask
from ppdm_bench.memory.explain import HOLDERS, explain, stem
from ppdm_bench.predictor.modules import Modules
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import GIB, Target
from ppdm_bench.report.figures.memory_timeline import (
    MemoryTimeline,
    Span,
    TimelineBlock,
    save_timeline,
    timeline_figure,
    timeline_page,
)

TARGET = Target(torch="2.10.0", compute_capability=(8, 0))
SMALL = Configuration("ppdm", (16, 16, 16), factor=2, width=8)


def two_layers(recompute: bool) -> tuple[list[tuple[str, str]], Modules]:
    """Return the stage and the module that allocated each tensor of a step with two layers, and the modules."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(300, 400), nn.Linear(400, 500)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = checkpoint(self.first, x, use_reentrant=False) if recompute else self.first(x)
            return self.second(torch.tanh(h))

    def step(net: nn.Module) -> None:
        net(torch.zeros(9, 300, requires_grad=True)).sum().backward()

    modules = Modules()
    timeline = predict_peak(Net, step, 1, TARGET, modules).timeline
    assert timeline is not None
    assert predict_peak(Net, step, 1, TARGET).iterations == timeline.peaks()
    return [(block.site.stage, block.site.path) for block in timeline.blocks if block.site and block.shape], modules


@pytest.mark.parametrize("recompute", [False, True])
def test_tensors_are_assigned_to_modules_in_the_forward_and_the_backward_pass(recompute: bool) -> None:
    sites, _ = two_layers(recompute)
    assert {("forward", name) for name in (".", "first", "second")} <= set(sites)
    assert {("backward", name) for name in (".", "first", "second")} <= set(sites)
    order = list(dict.fromkeys(path for stage, path in sites if stage == "backward" and path in ("first", "second")))
    assert order == ["second", "first"]


@pytest.fixture(scope="module", params=["none", "block"])
def explained(request: pytest.FixtureRequest) -> tuple[MemoryTimeline, dict[str, float]]:
    configuration = Configuration("ppdm", (64, 64, 64), factor=2, width=16, checkpointing=request.param)
    records, course = explain(
        MemoryPlan([configuration], ["train"], "predict", TARGET), MemoryTask(configuration, "train", False)
    )
    assert course is not None
    return course, {record.metric: record.value or 0 for record in records}


@pytest.mark.slow
def test_the_timeline_has_the_peak_and_the_breakdown_of_the_prediction(
    explained: tuple[MemoryTimeline, dict[str, float]],
) -> None:
    course, values = explained
    assert course.peak_size == values["peak_allocated"]
    assert {kind: live[course.peak] for kind, live in course.live.items()} == {
        kind: values[kind] for kind in course.live
    }
    assert max(map(sum, zip(*course.live.values(), strict=True))) == course.peak_size
    assert values["peak_process"] == values["peak_reserved"] + values["context"]


def test_spans_have_no_gaps_and_follow_the_unet_forward_and_backward(
    explained: tuple[MemoryTimeline, dict[str, float]],
) -> None:
    course, _ = explained
    ends = [0, *(span.end for span in course.spans)]
    assert [span.start for span in course.spans] == ends[:-1]
    assert ends[-1] == len(course.live["params"])
    levels = [f"level {level}" for level in range(4)]
    down, up = [f"encoder {level}" for level in levels], [f"decoder {level}" for level in reversed(levels)]
    for stage, order in (("forward", [*down, "middle", *up]), ("backward", [*up[::-1], "middle", *down[::-1]])):
        seen = dict.fromkeys(span.part for span in course.spans if span.stage == stage)
        assert [part for part in seen if part in order] == order
    assert course.spans[-1].stage == "update"
    assert {span.part for span in course.spans if span.stage == "backward"} >= {"loss", "head", "stem"}


def test_holders_are_the_largest_blocks_with_module_level_shape_and_dtype(
    explained: tuple[MemoryTimeline, dict[str, float]],
) -> None:
    course, _ = explained
    assert len(course.blocks) == HOLDERS
    sizes = [holder.size for holder in course.blocks]
    assert sizes == sorted(sizes, reverse=True)
    joined = next(holder for holder in course.blocks if holder.operator == "cat")
    # The skip of one level, concatenated with the features from below: (1 + 2) · 16 channels of 32³ voxels in fp32.
    assert (joined.part, joined.shape, joined.dtype) == ("decoder level 0", (1, 48, 32, 32, 32), "float32")
    assert joined.size == 48 * 32**3 * 4
    assert any(holder.module.startswith("up.") for holder in course.blocks)


@pytest.mark.slow
def test_blocks_of_weights_and_of_their_moments_have_the_name_of_the_parameter() -> None:
    _, course = explain(MemoryPlan([SMALL], ["train"], "predict", TARGET), MemoryTask(SMALL, "train", False))
    assert course is not None
    held = [holder for holder in course.blocks if holder.kind in ("params", "optimizer")]
    weights = {name: tuple(p.shape) for name, p in SMALL.resolve().build().named_parameters()}
    largest = max(weights, key=lambda name: prod(weights[name]))
    assert [holder.kind for holder in held if holder.module == largest] == ["params", "optimizer", "optimizer"]
    assert all(holder.shape == weights[holder.module] for holder in held if holder.module)
    assert {holder.kind for holder in held if not holder.module} == {"params"}  # the moving average of the weights


def course() -> MemoryTimeline:
    spans = [Span(0, 1, "forward", "encoder level 0"), Span(1, 2, "backward", "loss"), Span(2, 3, "update", "clipping")]
    holder = TimelineBlock(GIB, "activations", "encoder level 0", "down.0", "forward", "silu", (1, 2), "float32")
    live = {"params": [GIB, GIB, GIB], "activations": [0, 3 * GIB, 0]}
    return MemoryTimeline("toy, train", live, spans, peak=1, peak_size=4 * GIB, blocks=[holder])


def test_the_table_names_the_peak_and_each_holder() -> None:
    table = timeline_page(course()).to_markdown()
    assert "predicted peak 4.00 GiB, backward of loss" in table
    assert "| 1 | 1.000 | 25.0% | activations | encoder level 0 | down.0 | forward | silu | 1×2 | float32 |" in table
    assert "Together 1.00 GiB, 25.0% of the peak." in table


def test_the_figure_labels_its_parts_and_the_peak_and_an_empty_one_is_refused() -> None:
    drawn = timeline_figure(course())
    words = [text.get_text() for axes in drawn.axes for text in axes.texts]
    assert "peak 4.00 GiB: backward, loss" in words
    assert {"forward", "backward", "E0", "loss"} <= set(words)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["parameters", "activations"]
    empty = MemoryTimeline("nothing", {"params": [0]}, course().spans, 0, 0, [])
    with pytest.raises(ValueError, match="nothing to draw"):
        timeline_figure(empty)


@pytest.mark.slow
def test_saving_the_same_timeline_twice_gives_identical_files(tmp_path: Path) -> None:
    first, second = ([path.read_bytes() for path in save_timeline(course(), tmp_path / name)] for name in ("a", "b"))
    assert first == second
    rows = list(csv.DictReader(io.StringIO((tmp_path / "a.csv").read_text())))
    assert [(row["rank"], row["bytes"], row["share"], row["module"]) for row in rows] == [
        ("1", str(GIB), "0.25", "down.0")
    ]


def test_a_file_is_named_after_its_configuration_and_phase() -> None:
    assert stem(SMALL, "train") == "explain-ppdm-r2"
    other = Configuration("ddpm3d", (16, 16, 16), precision="bf16", checkpointing="block")
    assert stem(other, "sample") == "explain-ddpm3d-bf16-block-sample"


@pytest.mark.slow
def test_memory_explain_writes_records_tables_and_figures(tmp_path: Path) -> None:
    asked = [
        "memory",
        "--res",
        "16",
        "--explain",
        "ppdm",
        "--factor",
        "2",
        "--width",
        "8",
        "--phase",
        "sample",
        "--device",
        "predict",
        "--json",
        "--out",
    ]
    result = CliRunner().invoke(app, [*asked, str(tmp_path)])
    assert result.exit_code == 0, result.stderr
    metrics = {record["metric"]: record["value"] for record in json.loads(result.stdout)}
    assert metrics["peak_process"] == metrics["peak_reserved"] + metrics["context"]
    names = {path.name for path in tmp_path.iterdir()}
    drawn = {f"explain-ppdm-r2-sample.{end}" for end in ("png", "pdf", "csv", "md", "tex")}
    assert names == {".lock", "records.jsonl", *drawn}

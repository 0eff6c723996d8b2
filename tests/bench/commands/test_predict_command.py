"""``ppdm-bench predict``: its output, its files and its error messages."""

import json
import sys
from pathlib import Path

import pytest
from commands import refused, run

from ppdm_bench.isolation.sweep import RECORDS
from ppdm_bench.memory.script import program
from ppdm_bench.predictor.script import prediction
from ppdm_bench.records import RecordFile

SCRIPT = """
import torch

device = "cuda" if torch.cuda.is_available() else "cpu"
net = torch.nn.Linear(2000, 1000).to(device)
optimizer = torch.optim.Adam(net.parameters())
kept = []
while True:
    loss = net(torch.randn(100, 2000, device=device)).square()
    kept.append(loss)
    if torch.isnan(loss.sum()):
        break
    loss.mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    print("step", flush=True)
"""


@pytest.fixture(autouse=True)
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write a training script with an endless loop into a new current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").write_text(SCRIPT)


def predicted(*words: str) -> tuple[str, str]:
    code, out, err = run("predict", *words, "--", sys.executable, "train.py", "--gpu")  # the script's own option
    assert code == 0, err
    return out, err


@pytest.mark.slow
def test_the_text_shows_peak_verdict_parts_blocks_growth_and_made_up_values(tmp_path: Path) -> None:
    out, _ = predicted("--gpu", "RTX 4090", "--torch", "2.8.0", "--out", "made")
    assert out.startswith("train.py: 3 steps, predicted in ")
    assert "for RTX 4090 with PyTorch 2.8.0\n" in out
    for line in (
        r"fits on a card with                          23.5 GiB",
        r"  params         7.63 MiB",
        r"  391 KiB per step  train.py:9, pow, 1 block per step",
        r"  train.py:11 (3 times), which decided a branch",
    ):
        assert line in out
    assert "train.py:13, backward, mm, 1000×2000 float32" in out
    names = {path.name for path in (tmp_path / "made").iterdir()} - {".lock"}
    stems = {f"predict-train.{end}" for end in ("png", "pdf", "csv", "md", "tex")}
    assert names == {RECORDS, "predict-train-output.txt"} | stems
    assert (tmp_path / "made" / "predict-train-output.txt").read_text() == "step\nstep\n"
    records = {r.metric: r for r in RecordFile(tmp_path / "made" / RECORDS).read()}
    peak = records["peak_allocated"]
    assert (peak.command, peak.method, peak.kind, peak.status) == ("predict", "train.py", "predicted", "ok")
    assert (peak.gpu, peak.env["torch"]) == ("RTX 4090", "2.8.0")
    assert peak.options == {"command": [sys.executable, "train.py", "--gpu"], "keep_files": False, "steps": 3}
    assert records["growth_per_step"].value == 400_384


@pytest.mark.slow
def test_json_is_an_array_of_records_and_a_capacity_that_is_too_small_is_a_result() -> None:
    out, _ = predicted("--capacity", "600MB", "--steps", "1", "--json")
    records = json.loads(out)
    (peak,) = [r for r in records if r["metric"] == "peak_allocated"]
    assert peak["status"] == "oom"
    assert "the card has 0.59 GiB" in peak["reason"]
    parts = ("params", "grads", "optimizer", "inputs", "activations", "workspace")
    assert sum(r["value"] for r in records if r["metric"] in parts) == peak["value"]
    assert [r["stat"] for r in records if r["metric"] == "holder"] == [f"rank {n}" for n in range(1, 11)]


@pytest.mark.slow
def test_a_prediction_for_the_cpu_shows_no_reserved_memory() -> None:
    out, _ = predicted("--device", "cpu", "--steps", "1")
    assert "for the CPU" in out
    assert "reserved" not in out
    assert "growth needs at least three steps" in out


@pytest.mark.slow
def test_a_failing_script_is_reported_with_the_last_lines_of_its_output() -> None:
    Path("train.py").write_text("print('no data here')\nraise SystemExit(4)\n")
    error = refused(1, "predict", "--", sys.executable, "train.py")
    assert error == (
        "ppdm-bench: the program called sys.exit(4) before its first optimizer step\n"
        "The last lines of its output:\n  no data here\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "there is nothing to run"),
        (("--",), "there is nothing to run"),
        (("--", "python", "nope.py"), "nope.py is missing"),
        (("--steps", "0", "--", "train.py"), "whole number of at least 1"),
        (("--capacity", "much", "--", "train.py"), "expected an amount of memory"),
        (("--gpu", "RTX 1", "--", "train.py"), "no card is known as 'RTX 1'"),
        (("--torch", "latest", "--", "train.py"), "a release of PyTorch such as 2.9.0"),
        (("--device", "cpu", "--gpu", "T4", "--", "train.py"), "leave out --device cpu"),
        (("--timeout", "0", "--", "train.py"), "expected seconds"),
    ],
)
def test_usage_errors_are_refused_before_anything_runs(
    words: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "predict_script", lambda *_: pytest.fail("the script was run"))
    assert said in refused(2, "predict", *words)


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_script_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prediction, "predict_script", lambda *_: pytest.fail("the script was run"))
    (tmp_path / "file").write_text("x")
    said = refused(1, "predict", "--out", "file", "--", sys.executable, "train.py")
    assert "file" in said
    assert (tmp_path / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (("python", "-u", "src/train.py", "x"), "train.py"),
        (("A=1", "python", "-m", "package.train"), "package.train"),
        (("torchrun", "--nproc-per-node", "1", "train.py"), "train.py"),
        (("nnUNetv2_train", "2", "3d_fullres"), "nnUNetv2_train"),
    ],
)
def test_a_prediction_is_named_after_its_program(command: tuple[str, ...], name: str) -> None:
    assert program(command) == name

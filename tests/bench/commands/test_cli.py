"""The command line as a user sees it: options, messages, exit codes and output files."""

import json
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import typer
import warm
from commands import refused, run
from dicom_series import dicom, image, tilt
from processes import ended, wait_until

from ppdm_baselines import METHODS, PRESETS
from ppdm_bench import cli
from ppdm_bench.commands.terminal import with_earlier_records
from ppdm_bench.predictor.target import GIB
from ppdm_bench.records import PHASES, Record, RecordFile

TINY = ("memory", "--width", "8", "--phase", "sample", "--method", "ppdm", "--factor", "2")
SHALLOW = "network.multipliers=[1,2]"
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def write_scan(path: Path, shape=(17, 18, 15), dtype=np.float32, affine=None, seed=0) -> Path:
    data = np.random.default_rng(seed).random(shape) * 100
    image = nib.Nifti1Image(data.astype(dtype), np.diag([1.0, 2.0, 3.0, 1.0]) if affine is None else affine)
    nib.save(image, path)
    return path


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)


# --- memory


@pytest.fixture(scope="module")
def predicted(tmp_path_factory):
    """The result of one run with most options and ``--json``: exit code, records, stderr and output folder."""
    folder = tmp_path_factory.mktemp("memory")
    scan = write_scan(folder / "scan.nii.gz")
    words = ("memory", "--like", scan, "--width", 8, "--set", SHALLOW, "--phase", "sample", "--factor", "2,1x2x2")
    more = ("--device", "predict", "--budget", "24GB", "--batch-size", 2, "--json", "--out", folder / "out")
    code, out, err = run(*words, *more)
    return code, [Record(**row) for row in json.loads(out)], err, folder / "out"


@pytest.mark.slow
def test_memory_covers_all_methods_and_the_requested_factors(predicted):
    code, records, _, _ = predicted
    assert code == 0
    rows = dict.fromkeys((record.method, record.variant) for record in records)
    assert {method for method, _ in rows} == set(METHODS)
    assert [variant for method, variant in rows if method == "ppdm"] == [f"r=2 {SHALLOW}", f"r=1x2x2 {SHALLOW}"]


@pytest.mark.slow
def test_size_and_spacing_come_from_the_scan(predicted):
    _, records, _, _ = predicted
    assert {(record.shape, record.spacing) for record in records} == {((17, 18, 15), (1.0, 2.0, 3.0))}


@pytest.mark.slow
def test_every_other_option_is_in_the_records(predicted):
    _, records, _, _ = predicted
    assert {(r.phase, r.batch_size, r.kind, r.device) for r in records} == {("sample", 2, "predicted", "cuda")}
    assert {r.options["width"] for r in records} == {8}
    assert {r.env["capacity"] for r in records} == {24 * GIB}


@pytest.mark.slow
def test_the_printed_records_equal_those_on_disk(predicted):
    _, records, err, folder = predicted
    assert RecordFile(folder / "records.jsonl").read() == records
    assert f"written: {folder / 'records.jsonl'}" in err


@pytest.mark.slow
def test_the_reported_files_are_those_in_the_folder(predicted):
    _, _, err, folder = predicted
    named = {Path(name).name for name in err.strip().removeprefix("written: ").split(", ")}
    assert named == {path.name for path in folder.iterdir() if path.name != ".lock"}
    assert "sample_fits" in (folder / "memory.csv").read_text()


@pytest.mark.slow
def test_a_repeated_command_adds_no_records_and_prints_the_table():
    for _ in range(2):
        code, out, err = run(*TINY, "--res", 16, "--device", "predict")
        assert (code, err) == (0, "")
    assert "Peak memory, 16×16×16" in out
    assert ", predicted\n" in out
    assert "ppdm r=2  " in out
    assert "written: runs/memory/records.jsonl" in out
    records = RecordFile(Path("runs/memory/records.jsonl")).read()
    assert len({record.content() for record in records}) == len(records)
    assert {record.shape for record in records} == {(16, 16, 16)}


@pytest.mark.slow
def test_a_second_run_into_the_same_folder_adds_its_rows_to_the_table():
    words = (*TINY, "--device", "predict", "--out", "o")
    assert run(*words, "--res", 16)[0] == 0
    code, out, err = run(*words, "--res", 24, "--checkpointing", "block", "--json")
    assert code == 0
    assert {tuple(row["shape"]) for row in json.loads(out)} == {(24, 24, 24)}
    assert "tables and figures also show 1 configuration of earlier runs in o" in err
    shapes = [line.split(",")[2] for line in Path("o/memory.csv").read_text().splitlines()]
    assert shapes == ["shape", "16x16x16", "24x24x24"]


def test_a_later_record_of_a_measurement_replaces_the_earlier_one(tmp_path, capsys):
    def peak(value, config="a", **other):
        return Record(metric="peak_allocated", kind="predicted", value=value, config_id=config, **other)

    RecordFile(tmp_path / "records.jsonl").append(
        [peak(1, command="memory"), peak(2, "b", command="memory"), peak(3, "c", command="speed")]
    )
    shown = with_earlier_records([peak(4, command="memory")], tmp_path)
    assert [(record.config_id, record.value) for record in shown] == [("a", 4), ("b", 2)]
    assert "1 configuration of earlier runs" in capsys.readouterr().err


@pytest.mark.slow
def test_all_combinations_of_precision_and_checkpointing_are_predicted():
    more = ("--precision", "bf16,fp32", "--checkpointing", "none,block")
    code, out, _ = run(*TINY, "--shape", "8x9x10", "--device", "predict", *more, "--json")
    assert code == 0
    peaks = [row for row in json.loads(out) if row["metric"] == "peak_allocated"]
    assert [(row["precision"], row["checkpointing"]) for row in peaks] == [
        ("bf16", "none"),
        ("bf16", "block"),
        ("fp32", "none"),
        ("fp32", "block"),
    ]
    assert {tuple(row["shape"]) for row in peaks} == {(8, 9, 10)}


@pytest.mark.slow
def test_set_and_vary_accept_any_field_of_the_design_space():
    more = ("--set", SHALLOW, "--vary", "network.checkpointing=block", "--vary", "kernel=i2sb")
    words = (*TINY, "--method", "patch", "--res", 8, "--device", "predict", "--phase", "train", *more)
    code, out, err = run(*words, "--json")
    assert code == 0
    rows = [(r["method"], r["variant"], r["checkpointing"]) for r in json.loads(out) if r["metric"] == "peak_allocated"]
    assert rows == [
        ("ppdm", f"r=2 {SHALLOW}", "none"),
        ("ppdm", f"r=2 {SHALLOW}", "block"),
        ("ppdm", f"r=2 {SHALLOW}+kernel=i2sb", "none"),
        ("patch", SHALLOW, "none"),
        ("patch", SHALLOW, "block"),
    ]
    assert "left out: kernel=i2sb of patch: target 'noise' does not determine x0" in err
    assert f"ppdm r=2 {SHALLOW}+kernel=i2sb" in Path("runs/memory/memory.md").read_text()


@pytest.mark.parametrize("command", ["memory", "speed", "plan", "train"])
def test_an_unknown_field_is_a_usage_error(command):
    about = {"plan": ("--res", 16, "--budget", "1GB"), "train": ("--task", "mri-t1t2")}.get(command, ("--res", 16))
    sentence = refused(2, command, *about, "--method", "ppdm", "--set", "kernel.beta=1", "--out", "made")
    assert "a method has no kernel.beta; it has" in sentence
    assert not Path("made").exists()


@pytest.mark.slow
def test_sizes_are_measured_in_ascending_order_until_one_runs_out_of_memory():
    """With real children and a real memory limit, the second size runs out of memory and the third is skipped."""
    words = (*TINY, "--res", "32,16,24", "--device", "cpu", "--budget", "3MB", "--no-gate", "--out", "o")
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    peaks = [r for r in RecordFile(Path("o/records.jsonl")).read() if r.metric == "peak_allocated"]
    assert [(r.kind, r.shape[0], r.status) for r in peaks] == [
        ("predicted", 16, "ok"),
        ("predicted", 24, "oom"),
        ("predicted", 32, "oom"),
        ("measured", 16, "ok"),
        ("measured", 24, "oom"),
        ("measured", 32, "skipped"),
    ]
    assert (
        "bytes of tensors are live, and the limit is 3,145,728; the budget leaves 0.00293 GiB for tensors"
        in peaks[4].reason
    )
    assert peaks[5].reason.startswith("the same case at 24×24×24, batch size 1 ran out of memory")
    rows = [line.split() for line in out.splitlines() if line.startswith("ppdm r=2  ")]
    measured = {row[2]: row for row in rows if row[3] == "measured"}
    fits = {size: next((cell for cell in row if cell in ("yes", "no")), "–") for size, row in measured.items()}
    assert fits == {"16×16×16": "yes", "24×24×24": "no", "32×32×32": "–"}
    assert "+0.00%" in measured["16×16×16"]  # error of the prediction
    assert "ppdm r=2 24×24×24, measured, sample: out of memory" in out


def test_the_preset_authors_adds_its_configurations(monkeypatch):
    from ppdm_bench.memory import memory_output

    monkeypatch.setattr(memory_output, "carry_out", lambda *_: iter([[]]))  # the test checks only the request
    plans = []
    monkeypatch.setattr(memory_output, "present", lambda *_: ("", []))
    monkeypatch.setattr("ppdm_bench.memory.command.MemoryPlan", lambda *a: plans.append(a) or _Planned())
    assert run("memory", "--res", 16, "--preset", "matched,authors", "--out", "o")[0] == 0
    ((asked, phases, *_),) = plans
    assert len([c for c in asked if c.preset == "authors"]) == len(PRESETS["authors"])
    assert phases == [*PHASES]


class _Planned:
    tasks = ()


OWN = """
from dataclasses import dataclass, replace
from ppdm import PPDM
from ppdm.representation import Puzzle

print("a method that prints")

@dataclass(frozen=True)
class Fails(Puzzle):
    def encode(self, x):
        raise RuntimeError("cannot be encoded")

MINE = replace(PPDM, name="mine")
FAILS = replace(PPDM, representation=Fails(2))
"""


@pytest.fixture
def own(tmp_path):
    (tmp_path / "own_methods.py").write_text(OWN)
    yield
    sys.modules.pop("own_methods", None)


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_a_user_method_that_prints_does_not_corrupt_the_json():
    words = ("memory", "--width", 8, "--phase", "sample", "--res", 16, "--factor", "2", "--device", "predict")
    code, out, err = run(*words, "--method", "own_methods:MINE", "--json")
    assert code == 0
    assert {row["method"] for row in json.loads(out)} == {"mine"}
    assert "a method that prints" in err
    by_name = json.loads(run(*words, "--method", "mine", "--json")[1])
    assert {row["config_id"] for row in by_name} == {row["config_id"] for row in json.loads(out)}


@pytest.mark.slow
@pytest.mark.usefixtures("own")
def test_a_failed_row_is_reported_and_the_other_rows_are_shown():
    code, out, err = run(*TINY, "--method", "own_methods:FAILS", "--res", 16, "--device", "predict")
    assert code == 1
    assert "ppdm-bench: fails r=2 sample, predicted: RuntimeError: cannot be encoded" in err
    assert "ppdm r=2 " in out
    assert "error" in out


# --- invalid input


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--res", "0"], "'--res'"),
        (["--res", "-3"], "'--res'"),
        (["--res", "abc"], "'--res'"),
        (["--res", "16,0"], "'--res': expected a whole number of at least 1, got '0'"),
        (["--res", ","], "'--res': expected values"),
        (["--res", "16", "--factor", "0"], "'--factor': expected a positive factor"),
        (["--res", "16", "--factor", "2,x"], "got 'x'"),
        (["--res", "16", "--factor", ""], "'--factor': expected values"),
        (["--shape", "1x2"], "'--shape': expected three positive sizes"),
        (
            ["--shape", "8,8"],
            "'--shape': expected three positive sizes DxHxW in voxels such as 160x192x160, got '8,8'",
        ),
        ([], "give one size"),
        (["--res", "16", "--shape", "1x2x3"], "give one size"),
        (["--res", "16", "--method", "ppmd"], "did you mean ppdm?"),
        (["--res", "16", "--method", "nothing_of_that_name:X"], "cannot be loaded"),
        (["--res", "16", "--method", "json:dumps"], "expected a ppdm.Method"),
        (["--res", "16", "--preset", "mine"], "there are matched, authors"),
        (
            ["--res", "16", "--phase", "fly"],
            "'--phase': expected train, sample, autoencoder_train or decode, got 'fly'",
        ),
        (["--res", "16", "--precision", "fp8"], "precision must be one of fp32"),
        (["--res", "16", "--checkpointing", "all"], "checkpointing must be one of none"),
        (["--res", "16", "--device", "tpu"], "'tpu' is not one of 'auto', 'cuda', 'cpu', 'predict'"),
        (["--res", "16", "--budget", "lots"], "'--budget': expected an amount of memory such as 24GB"),
        (["--res", "16", "--budget", ""], "'--budget'"),
        (["--res", "16", "--width", "0"], "'--width'"),
        (["--res", "16", "--batch-size", "0"], "'--batch-size'"),
        (["--res", "16", "--timeout", "0"], "'--timeout'"),
        (["--res", "16", "--timeout", "inf"], "'--timeout'"),
        (["--res", "16", "--resolution", "3"], "--resolution"),
    ],
)
def test_a_usage_error_gives_a_message_and_creates_no_files(tmp_path, words, sentence):
    assert sentence in refused(2, "memory", *words)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_command_or_option_is_a_usage_error():
    assert "memory" in refused(2, "memroy")
    assert "--nothing" in refused(2, "--nothing")


def test_files_that_are_not_a_3d_volume_are_refused(tmp_path):
    good = write_scan(tmp_path / "good.nii.gz").read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(good[:100])
    (tmp_path / "text.nii").write_text("hello")
    write_scan(tmp_path / "flat.nii", (5, 6))
    write_scan(tmp_path / "series.nii", (5, 6, 7, 2))
    faults = {"missing.nii": "does not exist", "short.nii.gz": "truncated", "text.nii": "not a NIfTI", "flat.nii": "2"}
    for name, words in (faults | {"series.nii": "4 axes"}).items():
        assert words in refused(1, "memory", "--like", name)
    assert not Path("runs").exists()


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_an_output_folder_that_cannot_be_created_is_refused_before_the_run(tmp_path, monkeypatch, out):
    monkeypatch.setattr("ppdm_bench.memory.memory_output.carry_out", lambda *_: pytest.fail("it was run"))
    (tmp_path / "file").write_text("mine")
    assert "a file is in its place" in refused(1, *TINY, "--res", 16, "--out", out)
    assert (tmp_path / "file").read_text() == "mine"


def test_without_a_gpu_the_device_cuda_is_refused():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert "--device predict" in refused(1, *TINY, "--res", 16, "--device", "cuda")
    assert not Path("runs").exists()


def test_debug_shows_the_traceback():
    for words in (("--debug", "memory", "--like", "missing.nii"), ("memory", "--like", "missing.nii", "--debug")):
        code, _, err = run(*words)
        assert code == 1
        assert err.startswith("Traceback")
        assert err.splitlines()[-1].startswith("ppdm-bench: missing.nii does not exist")


def test_an_unexpected_error_is_reported_with_a_hint_to_debug(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("ppdm_bench.commands.methods.catalogue", fail)
    code, _, err = run("methods")
    assert code == 1
    assert "unexpected ZeroDivisionError" in err
    assert "--debug" in err


# --- interruption, in real processes

HANGS = """
import os, sys, time
from ppdm import PPDM
if "worker" in sys.argv[0]:
    with open("part", "w") as file:
        file.write(str(os.getpid()))
    os.replace("part", "pid")
    time.sleep(600)
MINE = PPDM
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)]
)
def test_a_signal_ends_the_command_with_complete_records_and_no_child_process(tmp_path, number, code):
    (tmp_path / "hangs.py").write_text(HANGS)
    words = ("memory", "--width", "8", "--phase", "sample", "--res", "16", "--factor", "2", "--device", "cpu")
    command = [sys.executable, "-m", "ppdm_bench", *words, "--method", "hangs:MINE"]
    process = warm.Popen(command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert wait_until(Path("pid").exists)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (code, "")
    assert ("interrupted" in err) == (number == signal.SIGINT)
    assert "Traceback" not in err
    assert wait_until(lambda: ended(int(Path("pid").read_text())))
    records = RecordFile(Path("runs/memory/records.jsonl")).read()
    assert {record.metric for record in records} >= {"peak_allocated", "activations", "parameters"}
    assert {record.kind for record in records} == {"predicted"}


# --- without PyTorch


WITHOUT_TORCH = """
import sys
sys.modules["torch"] = None  # importing it fails
import ppdm_bench, ppdm_bench.report, ppdm_bench.records
from ppdm_bench.cli import main
sys.argv = ["ppdm-bench", *sys.argv[1:]]
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--help"], ["--version"], ["memory", "--help"], ["memory", "--res", "0"], []])
def test_help_version_and_usage_errors_need_no_pytorch(words):
    command = [sys.executable, "-c", WITHOUT_TORCH, *words]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)
    assert "torch" not in done.stderr
    assert "Traceback" not in done.stderr
    if words == ["--version"]:
        from ppdm import __version__

        assert done.stdout == f"ppdm-bench {__version__}\n"
    elif "--help" in words or not words:
        assert done.returncode == 0
        assert "--help" in done.stdout
    else:
        assert done.returncode == 2


EVERY_HELP = """
import contextlib, io, json, sys
import typer
from ppdm_bench.cli import app
commands = list(typer.main.get_command(app).commands)
for command in commands:
    with contextlib.redirect_stdout(io.StringIO()) as page:
        app([command, "--help"], standalone_mode=False)
    assert "Usage" in page.getvalue()
print(json.dumps([commands, sorted({name.partition(".")[0] for name in sys.modules})]))
"""
HEAVY = {"torch", "numpy", "scipy", "pandas", "matplotlib", "seaborn", "skimage", "nibabel", "monai", "ppdm"}


@pytest.mark.slow
def test_the_help_of_every_command_imports_no_heavy_package():
    done = subprocess.run([sys.executable, "-c", EVERY_HELP], env=ENVIRONMENT, capture_output=True, text=True)
    commands, imported = json.loads(done.stdout)
    assert {"memory", "speed", "plan", "ablate", "gpu", "quality", "train"} <= set(commands)
    assert set(imported) & HEAVY == set()


# --- methods, env


@pytest.mark.slow
def test_methods_lists_every_preset():
    code, out, _ = run("methods", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [(row["method"], row["preset"]) for row in rows] == [(m, p) for p, ms in PRESETS.items() for m in ms]
    assert all(row["parameters"] > 10**6 and row["evaluations"] >= 1 for row in rows)
    code, out, _ = run("methods")
    assert code == 0
    shown = [tuple(line.split()[:2]) for line in out.splitlines()]
    assert [pair for pair in shown if pair in {(row["method"], row["preset"]) for row in rows}] == [
        (row["method"], row["preset"]) for row in rows
    ]
    assert max(map(len, out.splitlines())) <= 100
    assert "med-ddpm" in run("methods", "--columns", "source")[1]
    assert {row["phases"] for row in rows} == {"train,sample", "train,sample,autoencoder_train,decode"}
    assert "did you mean wavelet" in refused(2, "methods", "--method", "wavelett")


def test_env_prints_the_environment_that_records_contain():
    from ppdm_bench.environment import environment

    code, out, _ = run("env", "--json")
    assert code == 0
    assert json.loads(out) == environment()
    code, out, _ = run("env")
    assert code == 0
    assert all(key in out for key in environment())


# --- train, translate

SHAPE = (11, 9, 7)


def oblique() -> np.ndarray:
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3] = rotation * [1.0, 1.5, 2.0]
    affine[:3, 3] = (-10.5, 3.25, 7)
    return affine


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with one oblique pair of odd sizes, and the result of the command that trains on it."""
    folder = tmp_path_factory.mktemp("train")
    for seed, name in enumerate(("source.nii.gz", "target.nii.gz")):
        write_scan(folder / name, SHAPE, np.int16, oblique(), seed)
    (folder / "pairs.csv").write_text("subject,split,source,target\na,train,source.nii.gz,target.nii.gz\n")
    words = ("--manifest", folder / "pairs.csv", "--width", 8, "--steps", 3, "--factor", 2, "--device", "cpu")
    words = (*words, "--set", "network.multipliers=[1,2,2]")
    return folder, run("train", *words, "--out", folder / "run")


def test_train_writes_a_run_and_reports_its_files(trained):
    folder, (code, out, err) = trained
    assert (code, err) == (0, "")
    assert "3 steps" in out
    assert "on 1 pair," in out
    for name in ("model.safetensors", "model.json", "log.jsonl"):
        assert str(folder / "run" / name) in out
    steps = [json.loads(line)["step"] for line in (folder / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]
    described = json.loads((folder / "run" / "model.json").read_text())
    assert described["method"]["network"]["width"] == 8
    assert described["method"]["network"]["multipliers"] == [1, 2, 2]
    assert described["steps"] == 3


def test_a_second_training_into_the_same_folder_is_refused(trained):
    folder, _ = trained
    before = {path.name: path.read_bytes() for path in (folder / "run").iterdir()}
    words = ("train", "--manifest", folder / "pairs.csv", "--steps", 1, "--width", 8, "--device", "cpu")
    sentence = refused(1, *words, "--out", folder / "run")
    assert "holds a run already (model.safetensors, model.json, log.jsonl, options.json, state-000003" in sentence
    assert {path.name: path.read_bytes() for path in (folder / "run").iterdir()} == before


@pytest.mark.parametrize("of", ["run", "run/model.safetensors"])
def test_a_translation_keeps_the_geometry_of_its_source(trained, tmp_path, of):
    folder, _ = trained
    code, out, err = run("translate", folder / of, folder / "source.nii.gz", "made.nii.gz", "--device", "cpu")
    assert (code, err) == (0, "")
    assert out.startswith("made.nii.gz  (")
    source, made = nib.load(folder / "source.nii.gz"), nib.load(tmp_path / "made.nii.gz")
    assert made.shape == SHAPE
    assert np.array_equal(made.affine, source.affine)
    assert made.header["sform_code"] == source.header["sform_code"]
    assert made.get_data_dtype() == np.float32
    assert np.isfinite(made.get_fdata()).all()


def test_only_blocks_smaller_than_the_volume_change_a_translation(trained, tmp_path):
    folder, _ = trained
    write_scan(tmp_path / "long.nii", (40, 9, 7), affine=oblique())
    made = {}
    for name, words in {"whole": (), "covered": ("--block", 40), "blocks": ("--block", "16x16x8")}.items():
        place = tmp_path / f"{name}.nii"
        code, _, err = run(
            "translate", folder / "run", "long.nii", place, "--evaluations", 1, "--device", "cpu", *words
        )
        assert (code, err) == (0, "")
        made[name] = nib.load(place)
    assert np.array_equal(made["covered"].dataobj, made["whole"].dataobj)
    assert not np.array_equal(made["blocks"].dataobj, made["whole"].dataobj)
    assert np.array_equal(made["blocks"].affine, nib.load("long.nii").affine)


@pytest.mark.parametrize("text", ["0", "16x16", "x"])
def test_an_invalid_block_and_an_overlap_without_a_block_are_refused(trained, text):
    folder, _ = trained
    words = ("translate", folder / "run", folder / "source.nii.gz", "made.nii")
    assert f"expected a number of voxels such as 128, or three DxHxW such as 64x128x128, got '{text}'" in refused(
        2, *words, "--block", text
    )
    assert "give their size as well (block, --block)" in refused(1, *words, "--overlap", 0.5)


def test_a_broken_scan_does_not_stop_the_translation_of_a_folder(trained, tmp_path):
    folder, _ = trained
    (tmp_path / "in").mkdir()
    write_scan(tmp_path / "in" / "good.nii.gz", SHAPE, np.int16, oblique())
    (tmp_path / "in" / "bad.nii").write_text("no volume")
    code, out, err = run("translate", folder / "run", "in", "out", "--evaluations", 1, "--device", "cpu")
    assert code == 1
    assert out.startswith("out/good.nii.gz  (")
    assert "bad.nii is not a NIfTI file" in err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.nii.gz"]


def test_a_different_voxel_size_causes_a_warning_of_one_line(trained, tmp_path):
    folder, _ = trained
    write_scan(tmp_path / "coarse.nii", SHAPE, affine=np.diag([4.0, 4.0, 4.0, 1.0]))
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        words = (folder / "run", "coarse.nii", "made.nii", "--evaluations", 1, "--device", "cpu")
        code, _, err = run("translate", *words)
    assert code == 0
    assert err.startswith("ppdm-bench: warning: coarse.nii has voxels of 4 × 4 × 4 mm")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["missing", "damaged"])
def test_a_missing_or_damaged_checkpoint_is_refused(trained, tmp_path, name):
    folder, _ = trained
    if name == "damaged":
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.json").write_bytes((folder / "run" / "model.json").read_bytes())
        (tmp_path / name / "model.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    assert name in refused(1, "translate", name, folder / "source.nii.gz", "made.nii.gz")
    assert not (tmp_path / "made.nii.gz").exists()


@pytest.mark.parametrize(
    ("manifest", "sentence"),
    [
        (None, "is not a file"),
        ("subject,split\na,train\n", "column 'source' is missing"),
        ("subject,split,source,target\na,train,x.nii,y.nii\n", "x.nii is not a file"),
        ("subject,split,source,target\n", "no rows"),
    ],
)
def test_an_unusable_manifest_is_refused_and_no_folder_is_created(tmp_path, manifest, sentence):
    if manifest is not None:
        (tmp_path / "pairs.csv").write_text(manifest)
    assert sentence in refused(1, "train", "--manifest", "pairs.csv", "--out", "run", "--device", "cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--method", "ddpm3d", "--factor", "4"], "no puzzle factor"),
        (["--method", "pdpm"], "did you mean ppdm?"),
        (["--precision", "fp8"], "'fp8' is not one of 'fp32', 'bf16', 'fp16'"),
        (["--factor", "x"], "'--factor'"),
        (["--device", "tpu"], "'--device'"),
        (["--steps", "0"], "'--steps'"),
        (["--seed", "-1"], "'--seed'"),
        (["--accumulate", "0"], "'--accumulate'"),
        (["--minutes", "0"], "expected minutes, a positive number, got '0'"),
        (["--minutes", "nan"], "expected minutes"),
        (["--steps", "5", "--minutes", "5"], "one budget: --steps or --minutes"),
        (["--learning-rate", "-1e-3"], "expected a rate, a positive number"),
        (["--augment", "rotate"], "'--augment': expected none, flip"),
        (["--augment", "flip:dd"], "'--augment': expected none, flip"),
        (["--save-every", "5 hours"], "'--save-every': expected steps such as 200, or minutes such as 5min"),
        (["--save-every", "0"], "'--save-every'"),
        (["--validate-every", "0"], "'--validate-every'"),
        (["--task", "mri-t1t2"], "one source of pairs: --manifest pairs.csv, or --task"),
        (["--data-seed", "1"], "--data-seed is for synthetic subjects; give it with --task"),
        (["--size", "16"], "--size is for synthetic subjects"),
    ],
)
def test_invalid_training_options_are_refused(words, sentence):
    assert sentence in refused(2, "train", "--manifest", "pairs.csv", "--out", "run", *words)
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "one source of pairs"),
        (["--task", "ct"], "'ct' is not one of 'pet-denoise', 'pet-joint', 'mri-t1t2'"),
        (["--task", "mri-t1t2", "--size", "3"], "'--size'"),
        (["--task", "mri-t1t2", "--subjects", "0"], "'--subjects'"),
        (["--task", "mri-t1t2", "--resample"], "give --resample with --manifest"),
    ],
)
def test_invalid_training_options_without_a_manifest_are_refused(words, sentence):
    assert sentence in refused(2, "train", "--out", "run", *words)
    assert not Path("run").exists()


# --- several processes (torchrun)


@pytest.fixture(params=["0", "1"])
def rank(request, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("RANK", request.param)
    return request.param


def commands():
    return typer.main.get_command(cli.app).commands


@pytest.mark.parametrize("command", sorted({*commands()} - {*cli.DISTRIBUTED, *cli.READ_ONLY}))
def test_under_torchrun_a_non_distributed_command_is_refused_by_rank_0_only(rank, command):
    code, out, err = run(command, "--out", "out")
    told = "start it without torchrun, which is for train and quality" in err and command in err
    assert (code, out, told, bool(err)) == ((2, "", True, True) if rank == "0" else (0, "", False, False))
    assert not Path("out").exists()


def test_read_only_commands_run_under_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("RANK", "0")
    assert run("env")[0] == 0
    assert run("--help")[0] == 0
    assert {*cli.DISTRIBUTED, *cli.READ_ONLY} <= {*commands()}


def test_a_folder_of_several_formats_is_translated_with_a_notice_about_dicom(trained, tmp_path):
    folder, _ = trained
    dicom(tmp_path / "in" / "p1")
    (tmp_path / "in" / "p2").mkdir()
    sitk.WriteImage(image(), tmp_path / "in" / "p2" / "t1.mha")
    words = ("translate", folder / "run", "in", "out", "--evaluations", 1, "--device", "cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the voxel size
        code, out, err = run(*words)
    assert (code, err) == (0, "ppdm-bench: DICOM scans are written as NIfTI; --format selects another format.\n")
    assert [line.split("  ")[0] for line in out.splitlines()] == ["out/p1.nii.gz", "out/p2/t1.mha"]
    assert "2 outputs exist, such as out/p1.nii.gz; name another output, or replace with --overwrite" in refused(
        1, *words
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        code, out, err = run(*words, "--overwrite", "--format", "nrrd")
    assert (code, err) == (0, "")
    assert sorted(str(path) for path in Path("out").rglob("*.nrrd")) == ["out/p1.nrrd", "out/p2/t1.nrrd"]


@pytest.mark.slow
def test_dicom_and_nrrd_scans_work_in_data_train_evaluate_and_translate(tmp_path):
    for n, subject in enumerate(("a", "b")):
        source = image(np.random.default_rng(n).integers(0, 900, (13, 12, 11)).astype(np.int16), tilt())
        dicom(tmp_path / subject / "t1", source)
        sitk.WriteImage(source * 2 + 5, tmp_path / subject / "t2.nhdr")
    pattern = r"(?P<subject>[^/]+)/(?P<kind>t1|t2)(?:\.nhdr)?"
    words = ("--layout", "bids", "--pattern", pattern, "--source", "t1", "--target", "t2")
    assert run("data", "manifest", ".", *words, "--out", "pairs.csv")[0] == 0
    rows = Path("pairs.csv").read_text().splitlines()
    table = [rows[0] + ",site", *(row.replace(row.split(",")[1], "train") + ",Ulm" for row in rows[1:])]
    Path("pairs.csv").write_text("\n".join(table).replace(",", ";"))
    code, out, _ = run("data", "check", "pairs.csv")
    assert code == 0, out
    words = ("--steps", 1, "--width", 8, "--set", "network.multipliers=[1,2]", "--device", "cpu")
    assert run("train", "--manifest", "pairs.csv", *words, "--out", "run")[0] == 0
    words = ("--manifest", "pairs.csv", "--split", "train", "--device", "cpu")
    code, out, err = run("evaluate", "run", *words, "--out", "scores")
    assert code == 0, err
    assert "psnr" in out.lower()
    code, _, err = run("translate", "run", ".", "made", "--device", "cpu")
    assert code == 0, err
    predictions = Path("made")
    assert sorted(str(path) for path in predictions.rglob("*.n*")) == [
        *(f"made/{subject}/{name}" for subject in "ab" for name in ("t1.nii.gz", "t2.nhdr"))
    ]
    code, out, err = run("evaluate", "--predictions", "made/a", "--targets", "made/b", "--out", "same")
    assert code == 0, err

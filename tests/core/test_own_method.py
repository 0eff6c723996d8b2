"""The user-defined methods of docs/own_method.md, which are not registered, run through all commands with a method."""

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from commands import refused, run
from tiny_training import pair

from ppdm.data.manifest import read_manifest
from ppdm.data.volume import Volume, write_volume
from ppdm_bench.commands import pair_sources
from ppdm_bench.planning.search import CasePrediction
from ppdm_bench.records import RecordFile

pytestmark = pytest.mark.slow

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "own_method.md"
NAMES = ["HAAR_BRIDGE", "PUZZLED_PATCHES", "LATENT_BRIDGE"]
TINY = ("--width", 8, "--set", "network.multipliers=[1,2]")
TINIEST = ("--width", 8, "--set", "network.multipliers=[1]", "--set", "network.residual_blocks=1")
OWN_VALUE = """
from dataclasses import dataclass, replace
from ppdm import PPDM
from ppdm.representation import Puzzle

@dataclass(frozen=True)
class Mirrored(Puzzle):
    def encode(self, x):
        return super().encode(x.flip(2))

MIRRORED = replace(PPDM, name="mirrored", representation=Mirrored(2))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, unrendered):
    """A working folder with the document's methods and pairs of 16 × 18 × 17 voxels; rendering is switched off."""
    code, *_ = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    (tmp_path / "my_methods.py").write_text(code)
    (tmp_path / "own_value.py").write_text(OWN_VALUE)
    rows = ["subject,split,source,target"]
    for number, split in enumerate(("train", "test")):
        for name, data in zip("ab", pair(number, (16, 18, 17)), strict=True):
            volume = Volume.from_array(100 * (data + 1), (1.0, 1.0, 2.0))
            write_volume(tmp_path / f"{number}{name}.nii.gz", volume.data, volume)
        rows.append(f"s{number},{split},{number}a.nii.gz,{number}b.nii.gz")
    (tmp_path / "pairs.csv").write_text("\n".join(rows))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppdm_bench.memory.memory_output.present", lambda *_: ("", []))
    yield tmp_path
    for module in ("my_methods", "own_value"):
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name", NAMES)
def test_a_user_defined_method_runs_from_memory_and_training_to_quality(name, monkeypatch):
    own = ("--method", f"my_methods:{name}")
    code, out, err = run("methods", *own, "--json")
    (row,) = json.loads(out)
    assert (code, row["source"]) == (0, "your own"), err
    learned = "autoencoder_train" in row["phases"]
    tiny = (*TINY, "--set", "representation.width=8", "--set", "representation.norm_groups=4") if learned else TINY
    code, _, err = run("memory", *own, *tiny, "--res", 16, "--device", "predict", "--out", "memory")
    assert code == 0, err
    peaks = [r for r in RecordFile("memory/records.jsonl").read() if r.metric == "peak_allocated"]
    assert {r.phase for r in peaks} == set(row["phases"].split(","))
    assert all(r.status == "ok" and r.value > 0 for r in peaks)
    small = (*tiny, "--steps", 2, "--device", "cpu")
    code, _, err = run("train", *own, *small, "--manifest", "pairs.csv", "--out", "run")
    assert code == 0, err
    code, _, err = run("translate", "run", "1a.nii.gz", "made.nii.gz", "--evaluations", 1, "--device", "cpu")
    assert code == 0, err
    made, source = nib.load("made.nii.gz"), nib.load("1a.nii.gz")
    assert made.shape == source.shape
    assert np.array_equal(made.affine, source.affine)
    words = ("--manifest", "pairs.csv", "--steps", 1, "--device", "cpu", "--out", "evaluation")
    code, _, err = run("evaluate", "run", *words)
    assert code == 0, err
    scored = [r.metric for r in RecordFile("evaluation/records.jsonl").read() if r.method == row["method"]]
    assert ("reconstruction_psnr" in scored, "psnr" in scored) == (learned, True)
    pairs = read_manifest(Path("pairs.csv"))
    monkeypatch.setattr(pair_sources, "cached_set", lambda *_, **__: pairs)
    code, _, err = run("quality", *own, *small, "--task", "mri-t1t2", "--evaluations", 1, "--out", "quality")
    assert code == 0, err
    scored = [r.metric for r in RecordFile("quality/mri-t1t2/records.jsonl").read() if r.subject]
    assert ("reconstruction_psnr" in scored, "psnr" in scored) == (learned, True)


def test_plan_speed_and_ablate_take_a_user_defined_method_by_its_name(monkeypatch):
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", lambda *_: CasePrediction(True, 1))
    own, card = ("--method", "haar-bridge", *TINIEST, "--json"), ("--gpu", "RTX 4090", "--phase", "sample")
    trained = ("--manifest", "pairs.csv", "--steps", 1, "--evaluations", 1, "--device", "cpu", "--out", "ablation")
    for words in (
        ("plan", *own, *card, "--res", 16),
        ("speed", *own, *card, "--res", 8, "--device", "predict", "--evaluations", 1, "--out", "speed"),
        ("ablate", *own, "--configurations", "none", *trained),
    ):
        code, out, err = run(*words)
        assert code == 0, err
        rows = [row for row in json.loads(out) if row["status"] == "ok"]
        assert {row["method"] for row in rows} == {"haar-bridge"}
        assert {"plan": "fits", "speed": "volume_seconds", "ablate": "psnr"}[words[0]] in {r["metric"] for r in rows}


def test_an_unregistered_representation_is_measured_but_refused_for_training():
    own = ("--method", "own_value:MIRRORED", "--width", 8)
    code, _, err = run("memory", *own, "--res", 16, "--phase", "train", "--device", "predict", "--out", "memory")
    assert code == 0, err
    err = refused(1, "train", *own, "--manifest", "pairs.csv", "--steps", 1, "--out", "run")
    assert "is not one of identity, puzzle, haar, autoencoder, so it cannot be written to a file" in err
    assert not Path("run").exists()


def test_a_phase_that_no_method_has_is_refused():
    err = refused(2, "memory", "--method", "ppdm", "--res", 16, "--phase", "decode")
    assert "none of the methods has the phase decode; they have train, sample" in err

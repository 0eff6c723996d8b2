"""The example scans of the repository: valid, small, all used, and with their source and licence."""

from pathlib import Path

import numpy as np
import pytest

from ppdm.data.checking import check_pairs
from ppdm.data.manifest import read_manifest
from ppdm.data.volume import read_volume

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "brain_mri"
MANIFESTS = {"pairs.csv": 1, "several.csv": 2}  # number of sources in each manifest


@pytest.mark.parametrize(("name", "sources"), MANIFESTS.items())
def test_the_manifests_pass_all_checks_and_the_scans_are_scaled(name, sources):
    pairs = read_manifest(FOLDER / name)
    assert [(pair.split, len(pair.sources)) for pair in pairs] == [(s, sources) for s in ("train", "train", "test")]
    for report in check_pairs(pairs).reports:
        assert not report.faults
        assert not report.remarks
    for pair in pairs:
        brain = read_volume(pair.mask).data > 0
        for path in pair.scans:
            scan = read_volume(path)
            assert scan.spacing == pytest.approx((2, 2, 2))
            assert 800 < np.median(scan.data[brain]) < 1200


def test_every_scan_is_used_and_all_are_small():
    scans = {path for path in FOLDER.iterdir() if path.name.endswith(".nii.gz")}
    used = {path for name in MANIFESTS for pair in read_manifest(FOLDER / name) for path in (*pair.scans, pair.mask)}
    assert scans == {path.absolute() for path in used}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3e6


def test_source_licence_and_changes_are_stated():
    text = (FOLDER / "README.md").read_text()
    for words in ("Lesjak", "open_ms_data", "CC BY", "Apache licence", "**Changes:**"):
        assert words in text

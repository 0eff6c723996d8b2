"""Time to read and write a scan, compared with plain nibabel: the cost of all checks and of atomic writing."""

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import Beside

from ppdm.data.volume import read_volume, write_volume

SHAPE = (128, 128, 64)
SUFFIXES = pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])


@pytest.fixture
def scan(tmp_path: Path, suffix: str) -> Path:
    """Write a scan with smooth values and noise, for realistic compression, and with axes that need reorientation."""
    d, h, w = np.meshgrid(*(np.linspace(0, 3, n) for n in SHAPE), indexing="ij")
    values = 1000 * np.sin(d) * np.cos(h) * np.sin(w) + np.random.default_rng(0).normal(0, 5, SHAPE)
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    path = tmp_path / f"scan{suffix}"
    nib.save(nib.Nifti1Image(values.astype(np.float32), affine), path)
    return path


def plainly_read(path: Path) -> Any:
    return nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32, caching="unchanged")


@pytest.mark.benchmark(group="NIfTI")
@SUFFIXES
def test_read(beside: Beside, scan: Path) -> None:
    volume = beside(lambda: read_volume(scan), {"nibabel": lambda: plainly_read(scan)}, rounds=10)
    assert np.array_equal(volume.data, plainly_read(scan))


@pytest.mark.benchmark(group="NIfTI")
@SUFFIXES
def test_write(beside: Beside, scan: Path, suffix: str) -> None:
    volume, plain = read_volume(scan), nib.load(scan)
    ours, theirs = scan.with_name(f"ours{suffix}"), scan.with_name(f"theirs{suffix}")
    values = np.asarray(plain.dataobj)

    def plainly_write() -> None:
        nib.save(nib.Nifti1Image(values, plain.affine, plain.header), theirs)

    beside(lambda: write_volume(ours, volume.data, volume), {"nibabel": plainly_write}, rounds=10)
    assert np.array_equal(plainly_read(ours), plainly_read(theirs))

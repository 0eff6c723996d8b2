"""A manifest of twelve pairs, each with a different fault, and two valid pairs.

``python tests/broken_pairs.py FOLDER`` writes them, for example to look at the output of `ppdm-bench data check`.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

SHAPE = (12, 14, 10)
AFFINE = np.diag([2.0, 2.0, 2.0, 1.0])
HEADER = ("subject", "split", "source", "target", "mask")

# For each broken pair: the faulty file, and words that the message about its only fault must contain.
BROKEN = {
    "four-axes": ("source", "4 axes of lengths (12, 14, 10, 2)"),
    "truncated": ("target", "is truncated"),
    "lying-header": ("source", "claims (100000, 100000, 100000) voxels"),
    "nan-affine": ("target", "an affine with values that are not finite"),
    "other-shape": ("target", "their shapes are (12, 14, 10) and (12, 14, 9)"),
    "other-affine": ("target", "lie up to 1.5 mm apart"),
    "all-zero": ("target", "every voxel is 0"),
    "constant": ("source", "every voxel is 7"),
    "all-nan": ("target", "none of its 1680 voxels is finite"),
    "empty-mask": ("mask", "no voxel of the mask lies above 0"),
    "same-image": ("target", "hold the same voxels"),
    "leaked": ("source", "which is in train, and this one in test"),
}
SOUND = ("sound-a", "sound-b")


def image(seed: int, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Return noise with a bright box, float32."""
    array = np.random.default_rng(seed).normal(10, 1, shape).astype(np.float32)
    array[3:9, 3:9, 3:7] += 50
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(array, affine), path)


def make_broken_pairs(folder: Path) -> Path:
    """Write all pairs into an existing folder and return the manifest; the faults are in the files, not in its rows."""
    names = (*SOUND, *BROKEN)
    for number, name in enumerate(names):
        save(folder / f"{name}-source.nii.gz", image(2 * number))
        save(folder / f"{name}-target.nii.gz", image(2 * number + 1))
        save(folder / f"{name}-mask.nii.gz", (image(0) > 30).astype(np.uint8))
        if name in BROKEN:
            _BREAK[name](folder / f"{name}-{BROKEN[name][0]}.nii.gz")
    manifest = folder / "pairs.csv"
    with manifest.open("w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(HEADER)
        for name in names:
            files = [f"{name}-{role}.nii.gz" for role in ("source", "target", "mask")]
            rows.writerow([name, "test" if name == "leaked" else "train", *files])
    return manifest


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _claim_too_much(path: Path) -> None:
    header = nib.Nifti2Image(image(0), AFFINE).header
    header["dim"][:4] = 3, 100_000, 100_000, 100_000  # lengths in NIfTI-1 are at most 32767
    with nib.openers.Opener(path, "wb") as stream:
        stream.write(header.binaryblock + bytes(100))


def _spoil_affine(path: Path) -> None:
    affine = AFFINE.copy()
    affine[0, 3] = np.nan
    picture = nib.Nifti1Image(image(1), None)
    picture.header["srow_x"], picture.header["srow_y"], picture.header["srow_z"] = affine[:3]
    picture.header["sform_code"] = 1
    nib.save(picture, path)


def _copy_source(path: Path) -> None:
    """Write the source image in another orientation: the bytes differ, the content is equal."""
    source = nib.load(path.with_name("same-image-source.nii.gz"))
    turned = source.as_reoriented(nib.orientations.axcodes2ornt("LPS"))
    save(path, np.asarray(turned.dataobj), turned.affine)


_BREAK: dict[str, Callable[[Path], None]] = {
    "four-axes": lambda path: save(path, image(0, (*SHAPE, 2))),
    "truncated": _truncate,
    "lying-header": _claim_too_much,
    "nan-affine": _spoil_affine,
    "other-shape": lambda path: save(path, image(3, (12, 14, 9))),
    "other-affine": lambda path: save(path, image(99), AFFINE + np.eye(4, k=3) * 1.5),
    "all-zero": lambda path: save(path, np.zeros(SHAPE, np.float32)),
    "constant": lambda path: save(path, np.full(SHAPE, 7, np.int16)),
    "all-nan": lambda path: save(path, np.full(SHAPE, np.nan, np.float32)),
    "empty-mask": lambda path: save(path, np.zeros(SHAPE, np.uint8)),
    "same-image": _copy_source,
    "leaked": lambda path: save(path, image(0)),  # the source of sound-a
}

if __name__ == "__main__":
    where = Path(sys.argv[1])
    where.mkdir(parents=True, exist_ok=True)
    print(make_broken_pairs(where))

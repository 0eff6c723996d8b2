"""Picture data: slices of one subject for several methods, and the spectra of their errors.

Whole volumes are too large for a repository, so that an evaluation keeps three slices of each. A file contains only
numbers and JSON; reading it executes no code.
"""

from __future__ import annotations

import json
import math
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal, get_args

import numpy as np

from ppdm_bench.records import RecordError
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures.orientation import PLANES, PlaneName

SUFFIX = "snapshot.npz"
_MAX_BYTES = 1 << 26  # of all arrays of a file; a usual file has a few hundred thousand
_LEVELS = 65535  # quantization levels of a slice over its range of values; a figure shows fewer

_FIELDS = ("role", "label", "config_id", "steps", "design", "env")  # fields of a view that are stored as they are

Role = Literal["input", "target", "prediction"]


@dataclass(frozen=True, eq=False)
class View:
    """The slices of one volume.

    Attributes:
        role: input, target or prediction.
        label: method and variant.
        sections: slices by plane, with their rows from top to bottom.
        spectra: of a prediction, the mean power spectrum of the error along D, H, W at k/n cycles per voxel,
            k = 0 … n/2.
        config_id, steps, design: as in the records of the prediction; design is the resolved method.
        env: environment of the prediction.
        unit: of an input that has another unit than the target; HU, or empty.
    """

    role: Role
    label: str
    sections: Mapping[PlaneName, np.ndarray]
    spectra: Sequence[np.ndarray] = ()
    config_id: str = ""
    steps: int | None = None
    design: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    unit: str = ""

    def __post_init__(self) -> None:
        texts = (self.label, self.config_id, self.unit)
        if self.role not in get_args(Role) or not all(isinstance(text, str) for text in texts):
            raise ValueError(
                f"the role of a view is {', '.join(get_args(Role))}, and label, config_id and unit are text; "
                f"got {self.role!r}, {self.label!r}, {self.config_id!r}, {self.unit!r}"
            )
        if not isinstance(self.steps, int | None) or not all(isinstance(d, Mapping) for d in (self.design, self.env)):
            raise ValueError(
                f"the steps of a view are a whole number or None, and design and env are mappings; got {self.steps!r}, "
                f"{type(self.design).__name__} and {type(self.env).__name__} of {self.label}"
            )


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One subject of one task.

    Attributes:
        task, subject: as in the records.
        spacing: mm along D, H, W.
        shape: voxels along D, H, W.
        unit: SUV, HU, or empty.
        views: input and target first.
        place: name of the file.
    """

    task: str
    subject: str
    spacing: tuple[float, float, float]
    shape: tuple[int, int, int]
    unit: str
    views: Sequence[View]
    place: str = ""

    def __post_init__(self) -> None:
        if not all(isinstance(text, str) for text in (self.task, self.subject, self.unit)):
            raise ValueError(f"task, subject and unit are text, got {self.task!r}, {self.subject!r}, {self.unit!r}")
        for sizes in (self.spacing, self.shape):
            if len(sizes) != 3 or not all(isinstance(s, int | float) and 0 < s < math.inf for s in sizes):
                raise ValueError(f"spacing and shape are three positive numbers, got {self.spacing} and {self.shape}")

    def of(self, role: Role) -> list[View]:
        """Return the views of a role."""
        return [view for view in self.views if view.role == role]

    def with_earlier(self, earlier: Snapshot) -> Snapshot:
        """Return this snapshot with the predictions of an earlier one of the same volume; new predictions come last."""
        same = ("task", "subject", "spacing", "shape", "unit")
        if any(getattr(self, name) != getattr(earlier, name) for name in same) or not _same_target(self, earlier):
            return self
        new = {view.label: view for view in self.of("prediction")}
        old = {view.label: view for view in earlier.of("prediction")}
        return replace(self, views=[*self.of("input"), *self.of("target"), *(old | new).values()])


def _same_target(one: Snapshot, other: Snapshot) -> bool:
    (ours,), (theirs,) = one.of("target"), other.of("target")
    steps = {plane: np.ptp(picture) / _LEVELS for plane, picture in ours.sections.items()}
    return all(np.allclose(ours.sections[plane], theirs.sections[plane], 0, step) for plane, step in steps.items())


def sections(volume: np.ndarray, at: Sequence[int]) -> dict[PlaneName, np.ndarray]:
    """Return the three slices of a volume (D, H, W) through the voxel `at`."""
    return {name: plane.picture(volume, at[plane.through]) for name, plane in PLANES.items()}


def write_snapshot(snapshot: Snapshot, path: Path) -> Path:
    """Write picture data; equal content gives equal bytes.

    Raises:
        OSError: the place cannot be written.
    """
    arrays: dict[str, np.ndarray] = {}
    views: list[dict[str, Any]] = []
    for number, view in enumerate(snapshot.views):
        ranges: dict[str, list[float]] = {}
        for plane, picture in view.sections.items():
            arrays[f"{number}_{plane}"], ranges[plane] = _quantized(picture)
        for axis, spectrum in enumerate(view.spectra):
            arrays[f"{number}_spectrum{axis}"] = np.asarray(spectrum, dtype=np.float32)
        about = {name: getattr(view, name) for name in _FIELDS} | {"ranges": ranges, "spectra": len(view.spectra)}
        about |= {"unit": view.unit} if view.unit == "HU" else {}
        views.append(about)
    whole: dict[str, Any] = {"format": 1, "task": snapshot.task, "subject": snapshot.subject, "unit": snapshot.unit}
    whole |= {"spacing": list(snapshot.spacing), "shape": list(snapshot.shape), "views": views}
    arrays["about"] = np.frombuffer(json.dumps(whole, sort_keys=True).encode(), dtype=np.uint8)
    buffer = BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return replace_file(path, buffer.getvalue())


def read_snapshot(path: Path, place: str = "") -> Snapshot:
    """Read what :func:`write_snapshot` wrote.

    Raises:
        RecordError: the file contains no picture data.
    """
    try:
        arrays = _arrays(path)
        about = json.loads(arrays["about"].tobytes())
        views = [_view(arrays, number, view) for number, view in enumerate(about["views"])]
        spacing, shape = tuple(about["spacing"]), tuple(about["shape"])
        return Snapshot(about["task"], about["subject"], spacing, shape, about["unit"], views, place)
    except _DAMAGE as error:
        raise RecordError(f"{path} contains no picture data ({error}); remove it, or evaluate again") from None


# Exceptions that the readers of zip files, NumPy headers and JSON raise for damaged files.
_DAMAGE = (
    *(OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, SyntaxError, TokenError),
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError),
)


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """Return the arrays of a file, without trusting the sizes in its headers."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > _MAX_BYTES:
            raise ValueError(f"its arrays would take more than {_MAX_BYTES >> 20} MiB")
        return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """Return an array as NumPy wrote it; `numpy.load` would allocate any shape that a damaged header states."""
    with archive.open(member) as stream:
        content = BytesIO(stream.read(member.file_size))  # without a limit, it could expand beyond the stated size
    if np.lib.format.read_magic(content) != (1, 0):
        raise ValueError("its arrays have another version of NumPy's format than 1.0")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(content)
    values = np.frombuffer(content.read(), dtype)  # refuses a dtype of objects
    return values.reshape(shape, order="F" if by_column else "C")


def _view(arrays: Mapping[str, np.ndarray], number: int, about: Mapping[str, Any]) -> View:
    pictures = {plane: _dequantized(arrays[f"{number}_{plane}"], about["ranges"][plane]) for plane in PLANES}
    spectra = [arrays[f"{number}_spectrum{axis}"].astype(np.float64) for axis in range(about["spectra"])]
    return View(
        **{name: about[name] for name in _FIELDS}, sections=pictures, spectra=spectra, unit=about.get("unit", "")
    )


def _quantized(picture: np.ndarray) -> tuple[np.ndarray, list[float]]:
    low, high = float(picture.min()), float(picture.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("a picture needs finite values")
    scale = _LEVELS / (high - low) if high > low else 0.0
    return np.round((picture.astype(np.float64) - low) * scale).astype(np.uint16), [low, high]


def _dequantized(levels: np.ndarray, ends: Sequence[float]) -> np.ndarray:
    if levels.ndim != 2:
        raise ValueError(f"a picture has two axes, got shape {levels.shape}")
    low, high = map(float, ends)
    return low + levels.astype(np.float64) * ((high - low) / _LEVELS)

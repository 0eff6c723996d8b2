"""Pictures of volumes: a montage of three planes with one row per volume, and a contact sheet of many subjects.

Axes: a volume is (D, H, W) in RAS+ order, with the spacing along them in mm. All pictures of a figure have the same
scale and the true ratio of their sides, also for voxels of unequal length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ppdm_bench.report.figures.image_grid import ImageGrid
from ppdm_bench.report.figures.orientation import CONVENTION, PLANES, Plane, PlaneName, centre_of_mass
from ppdm_bench.report.figures.style import SMALL

Spacing = tuple[float, float, float]
Colours = Literal["gray", "pet", "error"]
Window = tuple[float, float]

# Grey as in MRI, inverted grey as in nuclear medicine, and a scale with white at zero for errors.
COLOUR_MAPS = {"gray": "gray", "pet": "gray_r", "error": "RdBu_r"}

# Usual windows of CT: width 400 at level 40, and width 1800 at level 400, both in HU.
HU_WINDOWS: dict[str, Window] = {"soft tissue": (-160.0, 240.0), "bone": (-500.0, 1300.0)}

_PERCENTILES = {"gray": (0.5, 99.5), "pet": (0.0, 99.8), "error": (0.0, 99.5)}


@dataclass(frozen=True, eq=False)
class DisplayedVolume:
    """A volume to draw, with its name, colours and window.

    Attributes:
        array: finite values (D, H, W).
        name: name beside the pictures.
        colours: gray (MRI), pet (dark is high) or error (red is positive, blue negative).
        window: values at the two ends of the scale. The default are percentiles of the array: 0.5 and 99.5 for gray;
            zero and 99.8 for pet; plus and minus the 99.5th percentile of the absolute values for error.
        unit: unit of the values; a volume with a unit has a colour bar.

    Raises:
        ValueError: the array is not a finite volume, or the window does not suit the colours.
    """

    array: np.ndarray
    name: str
    colours: Colours = "gray"
    window: Window | None = None
    unit: str = ""

    def __post_init__(self) -> None:
        if self.array.ndim != 3 or not self.array.size or not np.isfinite(self.array).all():
            raise ValueError(f"{self.name}: a figure needs a finite volume (D, H, W), got shape {self.array.shape}")
        if self.colours not in COLOUR_MAPS:
            raise ValueError(f"{self.name}: colours are {', '.join(COLOUR_MAPS)}, got {self.colours!r}")
        low, high = self.limits
        if not low < high or (self.colours == "error" and low != -high):
            raise ValueError(f"{self.name}: a window is (low, high), of an error (-x, x); got ({low:g}, {high:g})")

    @cached_property
    def limits(self) -> Window:
        """The given window, or the default."""
        if self.window is not None:
            return self.window
        values = np.abs(self.array) if self.colours == "error" else self.array
        low, high = np.percentile(values, _PERCENTILES[self.colours]).tolist()
        if self.colours == "gray":
            return low, high if high > low else low + 1.0
        high = high if high > 0 else 1.0
        return (0.0 if self.colours == "pet" else -high), high

    @property
    def beyond(self) -> tuple[bool, bool]:
        """Whether values lie below the window, and above it."""
        low, high = self.limits
        return bool(self.array.min() < low), bool(self.array.max() > high)


def ct_rows(array: np.ndarray, name: str) -> list[DisplayedVolume]:
    """Return a volume in HU in each window of CT, with a colour bar."""
    return [DisplayedVolume(array, f"{name}, {tissue}", "gray", window, "HU") for tissue, window in HU_WINDOWS.items()]


def with_window_of(target: DisplayedVolume, source: DisplayedVolume) -> DisplayedVolume:
    """Return a PET source with the window of its target; MRI keeps its own window.

    A PET source that reaches less than half of the window keeps its own too: it has no attenuation correction.
    """
    is_shared = target.colours == "pet" and source.limits[1] > target.limits[1] / 2
    return replace(source, window=target.limits) if is_shared else source


def draw_pair(
    sources: Mapping[str, np.ndarray],
    target: np.ndarray,
    spacing: Spacing,
    *,
    title: str,
    colours: Colours = "gray",
    unit: str = "",
    in_hu: tuple[bool, bool] = (False, False),
) -> Figure:
    """Return the montage of a pair, with slices through the centre of the target.

    Args:
        sources: volumes (D, H, W) of one shape, by name.
        target: volume (D, H, W) of the same shape.
        spacing: spacing along D, H, W in mm.
        title: text above the figure.
        colours, unit: as for :class:`DisplayedVolume`, for all volumes; see :func:`with_window_of` for their windows.
        in_hu: whether the sources, and the target, are CT, which is drawn in the windows of soft tissue and of bone.

    Raises:
        ValueError: as for :func:`draw_montage`.
    """
    last = DisplayedVolume(target, "target", colours, None, unit)
    rows = [DisplayedVolume(array, name, colours, None, unit) for name, array in sources.items()]
    rows = [with_window_of(last, row) for row in rows]
    shown = [(row, in_hu[0]) for row in rows] + [(last, in_hu[1])]
    rows = [row for one, ct in shown for row in (ct_rows(one.array, one.name) if ct else [one])]
    return draw_montage(rows, spacing, title=title, at=centre_of_mass(target - last.limits[0]))


def draw_montage(
    rows: Sequence[DisplayedVolume], spacing: Spacing, *, title: str, at: tuple[int, int, int] | None = None
) -> Figure:
    """Return an axial, a coronal and a sagittal slice of every volume, with one row per volume.

    Args:
        rows: volumes of one shape.
        spacing: spacing along D, H, W in mm.
        title: text above the figure.
        at: voxel (d, h, w) through which all slices run; by default the middle.

    Raises:
        ValueError: there are no rows, the shapes differ, the spacing is not positive, the voxel is outside, or the rows
            do not fit on a page.
    """
    shape = _one_shape(rows)
    _check_spacing(spacing)
    at = at or (shape[0] // 2, shape[1] // 2, shape[2] // 2)
    if not all(0 <= index < size for index, size in zip(at, shape, strict=True)):
        raise ValueError(f"the planes run through voxel {at}, which is outside of shape {shape}")
    planes = list(PLANES.values())
    sizes = [plane.size(shape, spacing) for plane in planes]
    grid = ImageGrid(
        title,
        "double",
        [width for width, _ in sizes],
        [max(height for _, height in sizes)] * len(rows),
        names=True,
        bars=any(volume.unit for volume in rows),
        captions="first",
    )
    for i, (plane, size) in enumerate(zip(planes, sizes, strict=True)):
        index = at[plane.through]
        grid.caption(0, i, f"{plane.name}, {index + 1}/{shape[plane.through]}")
        for number, volume in enumerate(rows):
            axes = grid.cell(number, i, size)
            draw_picture(axes, plane.picture(volume.array, index), volume.colours, volume.limits, size)
            write_directions(axes, plane, volume.colours)
    for number, volume in enumerate(rows):
        grid.name(number, volume.name)
        if volume.unit:
            colour_bar(grid.bar(number, volume.unit), volume.limits, volume.colours, volume.beyond)
    grid.footnote(CONVENTION)
    return grid.figure


def contact_sheet(
    volumes: Sequence[np.ndarray],
    spacing: Spacing,
    names: Sequence[str],
    columns: int = 6,
    *,
    title: str,
    plane: PlaneName = "axial",
    colours: Colours = "gray",
) -> Figure:
    """Return the middle slice of every volume, with its name above it.

    Args:
        volumes: arrays (D, H, W); their shapes may differ.
        spacing: common spacing along D, H, W in mm.
        names: one name per volume.
        columns: pictures per row.
        title: text above the figure.
        plane: the plane of the slices.
        colours: as for :class:`DisplayedVolume`.

    Raises:
        ValueError: there are no volumes, the number of names differs, there are no columns, the spacing is not
            positive, or the rows do not fit on a page.
    """
    if not volumes or len(names) != len(volumes) or columns < 1:
        raise ValueError(
            f"a contact sheet needs a name for each volume and a column or more; got {len(volumes)} volumes, "
            f"{len(names)} names and {columns} columns"
        )
    _check_spacing(spacing)
    shown = [DisplayedVolume(array, name, colours) for array, name in zip(volumes, names, strict=True)]
    cut = PLANES[plane]
    sizes = [cut.size(array.shape, spacing) for array in volumes]
    columns = min(columns, len(shown))
    rows = math.ceil(len(shown) / columns)
    width, height = (max(lengths) for lengths in zip(*sizes, strict=True))
    grid = ImageGrid(title, "double", [width] * columns, [height] * rows, names=False, bars=False, captions="every")
    for number, (volume, size) in enumerate(zip(shown, sizes, strict=True)):
        row, place = divmod(number, columns)
        grid.caption(row, place, volume.name)
        axes = grid.cell(row, place, size)
        middle = cut.picture(volume.array, volume.array.shape[cut.through] // 2)
        draw_picture(axes, middle, volume.colours, volume.limits, size)
        if number == 0:
            write_directions(axes, cut, volume.colours)
    grid.footnote(f"{plane.capitalize()} slices through the middle. {CONVENTION}")
    return grid.figure


def write_directions(axes: Axes, plane: Plane, colours: Colours) -> None:
    """Write the letters of the patient's directions at the four sides of a picture."""
    for letter, x, y, ha, va in (
        (plane.left, 0.02, 0.5, "left", "center"),
        (plane.right, 0.98, 0.5, "right", "center"),
        (plane.top, 0.5, 0.98, "center", "top"),
        (plane.bottom, 0.5, 0.02, "center", "bottom"),
    ):
        write_on_image(axes, x, y, letter, colours, ha=ha, va=va)


def write_on_image(axes: Axes, x: float, y: float, text: str, colours: Colours, **style: Any) -> None:
    """Write at a fraction of the width and height of a picture, with an outline, to be legible on any background."""
    ink, outline = ("white", "black") if colours == "gray" else ("black", "white")
    written = axes.text(x, y, text, transform=axes.transAxes, color=ink, **{"fontsize": SMALL, **style})
    written.set_path_effects([withStroke(linewidth=1.4, foreground=outline)])


def colour_bar(
    axes: Axes,
    limits: Window,
    colours: Colours,
    beyond: tuple[bool, bool] = (False, False),
    orientation: Literal["vertical", "horizontal"] = "vertical",
) -> None:
    """Draw a colour bar between two limits into empty axes.

    `beyond` states whether values lie below the limits, and above them; such an end of the bar is pointed.
    """
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    scale = ScalarMappable(Normalize(*limits), COLOUR_MAPS[colours])
    bar = axes.figure.colorbar(scale, cax=axes, extend=extend, extendfrac=0.06, orientation=orientation)
    style_colour_bar(bar, 4 if orientation == "vertical" else 2, symmetric=colours == "error")


def style_colour_bar(bar: Colorbar, ticks: int, *, symmetric: bool) -> None:
    """Give a colour bar up to so many intervals between ticks, at round numbers, and thin lines."""
    bar.locator = MaxNLocator(ticks, steps=[1, 2, 5, 10], symmetric=symmetric)
    bar.update_ticks()
    bar.outline.set_linewidth(0.5)
    bar.ax.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)


def _check_spacing(spacing: Spacing) -> None:
    if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise ValueError(f"spacing is three positive numbers of mm, got {spacing}")


def _one_shape(rows: Sequence[DisplayedVolume]) -> tuple[int, int, int]:
    shapes = {volume.array.shape for volume in rows}
    if len(shapes) != 1:
        raise ValueError(f"a montage needs volumes of one shape, got {sorted(shapes) or 'none'}")
    d, h, w = shapes.pop()
    return d, h, w


def draw_picture(axes: Axes, picture: np.ndarray, colours: Colours, limits: Window, size: tuple[float, float]) -> None:
    """Draw a slice with coordinates in mm from the lower left corner."""
    look: dict[str, Any] = {"cmap": COLOUR_MAPS[colours], "interpolation": "antialiased"}
    axes.imshow(picture, vmin=limits[0], vmax=limits[1], extent=(0.0, size[0], 0.0, size[1]), **look)

"""Pictures of volumes: a montage of three planes, a row a volume, and a contact sheet of many subjects.

Axes: a volume is (D, H, W) in RAS+ order, spacing in mm along them. All pictures of a figure have one scale, and their
sides the true ratio, however long the voxels are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from ppdm_bench.report.figures.panel import COLOUR_MAPS, Colours, Panel, Window
from ppdm_bench.report.figures.planes import CONVENTION, PLANES, Plane, PlaneName, centre_of_mass
from ppdm_bench.report.figures.sheet import Sheet
from ppdm_bench.report.figures.style import SMALL, Column

__all__ = ["Panel", "contact_sheet", "draw_montage", "draw_pair"]

Spacing = tuple[float, float, float]


def draw_pair(
    source: np.ndarray,
    target: np.ndarray,
    spacing: Spacing,
    *,
    title: str,
    names: tuple[str, str] = ("source", "target"),
    colours: Colours = "gray",
    unit: str = "",
    ranges: tuple[Window, Window] | None = None,
    mask: np.ndarray | None = None,
    column: Column = "double",
) -> Figure:
    """Return the montage of a pair, cut through the middle of the mask, or else of the target.

    Args:
        source, target: (D, H, W), one shape.
        spacing: mm along D, H, W.
        title: stands above the figure.
        names: of the rows.
        colours, unit: as for :class:`Panel`, of both.
        ranges: windows of source and target; if absent, PET has the target's for both, so that the two can be compared,
            unless the source does not reach half of it (no attenuation correction), and MRI each its own.
        mask: (D, H, W), positive inside.
        column: width of the figure.

    Raises:
        ValueError: as for :func:`draw_montage`.
    """
    windows = ranges or (None, None)
    last = Panel(target, names[1], colours, windows[1], unit)
    first = Panel(source, names[0], colours, windows[0], unit)
    if ranges is None and colours == "pet" and first.limits[1] > last.limits[1] / 2:
        first = replace(first, window=last.limits)
    rows = [first, last]
    seen = target - last.limits[0] if mask is None else np.asarray(mask) > 0
    return draw_montage(rows, spacing, title=title, at=centre_of_mass(seen), column=column)


def draw_montage(
    rows: Sequence[Panel],
    spacing: Spacing,
    *,
    title: str,
    at: tuple[int, int, int] | None = None,
    column: Column = "double",
) -> Figure:
    """Return three planes of every volume: a row a volume; axial, coronal, sagittal.

    Args:
        rows: volumes of one shape.
        spacing: mm along D, H, W.
        title: stands above the figure.
        at: the voxel (d, h, w) that all planes run through; the middle if absent.
        column: width of the figure.

    Raises:
        ValueError: no rows, shapes that differ, spacing that is not positive, a voxel outside, or more rows than a
            page holds.
    """
    shape = _one_shape(rows)
    _check_spacing(spacing)
    at = at or (shape[0] // 2, shape[1] // 2, shape[2] // 2)
    if not all(0 <= index < size for index, size in zip(at, shape, strict=True)):
        raise ValueError(f"the planes run through voxel {at}, which is outside of shape {shape}")
    planes = list(PLANES.values())
    sizes = [plane.size(shape, spacing) for plane in planes]
    sheet = Sheet(
        title,
        column,
        [width for width, _ in sizes],
        [max(height for _, height in sizes)] * len(rows),
        names=True,
        bars=any(panel.unit for panel in rows),
        captions="first",
    )
    for i, (plane, size) in enumerate(zip(planes, sizes, strict=True)):
        index = at[plane.through]
        sheet.caption(0, i, f"{plane.name}, {index + 1}/{shape[plane.through]}")
        for number, panel in enumerate(rows):
            axes = sheet.cell(number, i, size)
            _draw(axes, panel, plane, index, size)
            _letters(axes, panel, plane)
    for number, panel in enumerate(rows):
        sheet.name(number, panel.name)
        if panel.unit:
            _colour_bar(sheet.bar(number, panel.unit), panel)
    sheet.footnote(CONVENTION)
    return sheet.figure


def contact_sheet(
    volumes: Sequence[np.ndarray],
    spacing: Spacing,
    names: Sequence[str],
    columns: int = 6,
    *,
    title: str,
    plane: PlaneName = "axial",
    colours: Colours = "gray",
    window: Window | None = None,
    unit: str = "",
    column: Column = "double",
) -> Figure:
    """Return one slice of every volume, through its middle, with its name above.

    Args:
        volumes: (D, H, W) each; their shapes may differ.
        spacing: mm along D, H, W, of all.
        names: one a volume.
        columns: pictures in a row.
        title: stands above the figure.
        plane: the plane that is shown.
        colours: as for :class:`Panel`.
        window: of all volumes; if absent, each has its own, as for :class:`Panel`.
        unit: of the values; with a common window, there is a colour bar.
        column: width of the figure.

    Raises:
        ValueError: no volumes, another number of names, no columns, spacing that is not positive, or more rows than a
            page holds.
    """
    if not volumes or len(names) != len(volumes) or columns < 1:
        raise ValueError(
            f"a contact sheet needs a name for each volume and a column or more; got {len(volumes)} volumes, "
            f"{len(names)} names and {columns} columns"
        )
    _check_spacing(spacing)
    panels = [Panel(array, name, colours, window, unit) for array, name in zip(volumes, names, strict=True)]
    cut = PLANES[plane]
    sizes = [cut.size(array.shape, spacing) for array in volumes]
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    bar = bool(unit and window)
    width, height = (max(lengths) for lengths in zip(*sizes, strict=True))
    sheet = Sheet(title, column, [width] * columns, [height] * rows, names=False, bars=bar, captions="every")
    for number, (panel, size) in enumerate(zip(panels, sizes, strict=True)):
        row, place = divmod(number, columns)
        sheet.caption(row, place, panel.name)
        axes = sheet.cell(row, place, size)
        _draw(axes, panel, cut, panel.array.shape[cut.through] // 2, size)
        if number == 0:
            _letters(axes, panel, cut)
    if bar:
        _colour_bar(sheet.bar(0, unit), panels[0])
    sheet.footnote(f"{plane.capitalize()} slices through the middle. {CONVENTION}")
    return sheet.figure


def _check_spacing(spacing: Spacing) -> None:
    if len(spacing) != 3 or not all(math.isfinite(mm) and mm > 0 for mm in spacing):
        raise ValueError(f"spacing is three positive numbers of mm, got {spacing}")


def _one_shape(rows: Sequence[Panel]) -> tuple[int, int, int]:
    shapes = {panel.array.shape for panel in rows}
    if len(shapes) != 1:
        raise ValueError(f"a montage needs volumes of one shape, got {sorted(shapes) or 'none'}")
    d, h, w = shapes.pop()
    return d, h, w


def _draw(axes: Axes, panel: Panel, plane: Plane, index: int, size: tuple[float, float]) -> None:
    """Draw a slice in mm, from the lower left corner of the picture."""
    low, high = panel.limits
    axes.imshow(
        plane.picture(panel.array, index),
        cmap=COLOUR_MAPS[panel.colours],
        vmin=low,
        vmax=high,
        extent=(0.0, size[0], 0.0, size[1]),
        interpolation="antialiased",
    )


def _letters(axes: Axes, panel: Panel, plane: Plane) -> None:
    """Write at each side of a picture where in the patient it lies; legible on any ground."""
    ink, outline = ("white", "black") if panel.colours == "gray" else ("black", "white")
    for letter, x, y, ha, va in (
        (plane.left, 0.02, 0.5, "left", "center"),
        (plane.right, 0.98, 0.5, "right", "center"),
        (plane.top, 0.5, 0.98, "center", "top"),
        (plane.bottom, 0.5, 0.02, "center", "bottom"),
    ):
        text = axes.text(x, y, letter, ha=ha, va=va, transform=axes.transAxes, color=ink, fontsize=SMALL)
        text.set_path_effects([withStroke(linewidth=1.4, foreground=outline)])


def _colour_bar(axes: Axes, panel: Panel) -> None:
    """Draw the scale of a panel, with points where values lie beyond it."""
    low, high = panel.limits
    beyond = (bool(panel.array.min() < low), bool(panel.array.max() > high))
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get(beyond, "neither")
    colours = ScalarMappable(Normalize(low, high), COLOUR_MAPS[panel.colours])
    bar = axes.figure.colorbar(colours, cax=axes, extend=extend, extendfrac=0.06)
    bar.locator = MaxNLocator(4, steps=[1, 2, 5, 10], symmetric=panel.colours == "error")
    bar.update_ticks()
    bar.outline.set_linewidth(0.5)
    axes.tick_params(labelsize=SMALL, length=2, width=0.5, pad=1.5)

"""All figures of a paper, in their order."""

from __future__ import annotations

from ppdm_bench.report.paper import (
    ablation,
    agreement,
    breakdown,
    gallery,
    grid,
    learning,
    quality_cost,
    resolution,
    seam,
)
from ppdm_bench.report.paper_figure import Exhibit

EXHIBITS = (
    Exhibit("memory-resolution", "Peak memory against resolution", resolution.show),
    Exhibit("memory-breakdown", "Parts of the peak memory", breakdown.show),
    Exhibit("quality-memory", "Quality against the largest peak of memory", quality_cost.show_memory),
    Exhibit("quality-seconds", "Quality against time per volume", quality_cost.show_seconds),
    Exhibit("quality-evaluations", "Quality against network evaluations", quality_cost.show_evaluations),
    Exhibit("learning-curves", "Learning curves", learning.show),
    Exhibit("ablation", "Puzzle factor, puzzle-gradient loss and bridge", ablation.show_axes, ("double",)),
    Exhibit("puzzle-or-bridge", "The puzzle or the bridge?", ablation.show_space, ("double",)),
    Exhibit("seam-index", "Seams with and without the puzzle-gradient loss", seam.show),
    Exhibit("grid-artefact", "The grid, its spectrum and the puzzle-gradient loss", grid.show),
    Exhibit("gallery", "Every method on one subject of each task", gallery.show),
    Exhibit("prediction", "Predicted against measured and published peaks", agreement.show),
)

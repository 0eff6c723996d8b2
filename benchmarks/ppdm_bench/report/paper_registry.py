"""All figures of the paper, in their order."""

from __future__ import annotations

from ppdm_bench.report.paper import (
    ablation,
    agreement,
    breakdown,
    factors,
    gallery,
    grid,
    learning,
    quality_cost,
    resolution,
    seam,
)
from ppdm_bench.report.paper_figure import PaperFigure

PAPER_FIGURES = (
    PaperFigure("memory-resolution", "Peak memory against resolution", resolution.show),
    PaperFigure("memory-breakdown", "Parts of the peak memory", breakdown.show),
    PaperFigure("quality-memory", "Quality against the largest peak of memory", quality_cost.show_memory),
    PaperFigure("quality-seconds", "Quality against time per volume", quality_cost.show_seconds),
    PaperFigure("quality-evaluations", "Quality against network evaluations", quality_cost.show_evaluations),
    PaperFigure("factors", "Puzzle factors and network widths after equal training time", factors.show, ("double",)),
    PaperFigure("learning-curves", "Learning curves", learning.show),
    PaperFigure("ablation", "Puzzle factor, puzzle-gradient loss and bridge", ablation.show_axes, ("double",)),
    PaperFigure("puzzle-or-bridge", "The puzzle or the bridge?", ablation.show_space, ("double",)),
    PaperFigure("seam-index", "Seams with and without the puzzle-gradient loss", seam.show),
    PaperFigure("grid-artefact", "The grid, its spectrum and the puzzle-gradient loss", grid.show),
    PaperFigure("gallery", "Every method on one subject of each task", gallery.show),
    PaperFigure("prediction", "Predicted against measured and published peaks", agreement.show),
)

"""The figures: peak memory of every method, what the peak holds, and how well prediction agrees with what was published
and measured."""

from ppdm_bench.report.figures.agreement import validation_figure
from ppdm_bench.report.figures.breakdown import breakdown_figure
from ppdm_bench.report.figures.measured import measured_figure
from ppdm_bench.report.figures.memory import headline, memory_figure
from ppdm_bench.report.figures.style import save

__all__ = ["breakdown_figure", "headline", "measured_figure", "memory_figure", "save", "validation_figure"]

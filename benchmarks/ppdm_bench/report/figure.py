"""The figures: peak memory of every method, what the peak holds, and how well prediction agrees with what was published
and measured."""

from ppdm_bench.report.agreement import validation_figure
from ppdm_bench.report.bars import headline, memory_figure
from ppdm_bench.report.breakdown import breakdown_figure
from ppdm_bench.report.canvas import save
from ppdm_bench.report.measured import measured_figure

__all__ = ["breakdown_figure", "headline", "measured_figure", "memory_figure", "save", "validation_figure"]

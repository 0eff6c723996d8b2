"""Feasibility check: a run that is predicted not to fit on the card is skipped, unless the user gives --no-gate."""

from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation.runner import TimeIsUpError, time_limit
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import Peak, predict_peak
from ppdm_bench.predictor.target import GIB, MARGIN, Target


def doubt(configuration: Configuration, phase: str, card: Target, seconds: float) -> str:
    """Return why one phase of a configuration should be skipped.

    The result is empty if the phase fits or cannot be predicted.

    Args:
        configuration, phase: the run to check.
        card: target card, with its capacity.
        seconds: time limit of the prediction.
    """
    work = workload(configuration.resolve(), phase, configuration.shape, configuration.batch_size, "cuda")
    try:
        with time_limit(seconds):
            short = shortage(card, predict_peak(work.build, work.step, work.iterations, card))
    except (TimeIsUpError, Exception):  # the code of a method can raise any exception; the run itself reports it
        return ""
    return skipping(short) if short else ""


def skipping(short: str) -> str:
    """Return the reason to record for a run that is skipped because it does not fit."""
    return f"predicted not to fit: {short}; --no-gate runs it anyway"


def shortage(card: Target, peak: Peak) -> str:
    """Return why a predicted peak does not fit on a card; empty if it fits, or if the capacity is not known."""
    if peak.fits is not False:
        return ""
    assert card.capacity is not None
    assert peak.needs is not None
    return (
        f"it needs {peak.needs / GIB:.2f} GiB, with {card.context / GIB:.2f} GiB for the CUDA context and a margin of "
        f"{MARGIN / GIB:.2f} GiB, and the card has {card.capacity / GIB:.2f} GiB"
    )

"""Feasibility gate: runs that are predicted not to fit on a card are skipped unless the user disables the gate."""

from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation.runner import TimeIsUpError, time_limit
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import GIB, Target


def doubt(configuration: Configuration, phase: str, card: Target, seconds: float) -> str:
    """Return why one phase of a configuration should be skipped.

    The result is empty if the phase fits, or if the prediction fails.

    Args:
        configuration, phase: the run to check.
        card: target card, with its capacity.
        seconds: time limit of the prediction.
    """
    work = workload(configuration.resolve(), phase, configuration.shape, configuration.batch_size, "cuda")
    try:
        with time_limit(seconds):
            fits = predict_peak(work.build, work.step, work.iterations, card).fits
    except (TimeIsUpError, Exception):  # the code of a method can raise any exception; the run itself reports it
        return ""
    return skipping(too_much(card)) if fits is False else ""


def skipping(shortage: str) -> str:
    """Return the reason of a skipped run that is predicted not to fit."""
    return f"predicted not to fit: {shortage}; --no-gate tries it"


def too_much(card: Target) -> str:
    """Return why a prediction does not fit on a card of known capacity."""
    assert card.capacity is not None
    whole, context = card.capacity / GIB, card.context / GIB
    return (
        f"the card has {whole:.2f} GiB, the CUDA context takes {context:.2f} GiB of it, and the rest does not suffice"
    )

"""Whether it is worth a try on a card: what is predicted not to fit is left out, unless people ask for it."""

from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation.runner import TimeIsUpError, time_limit
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import GIB, Target


def doubt(configuration: Configuration, phase: str, card: Target, seconds: float) -> str:
    """Why one phase of a configuration is not worth a try, or nothing: it fits, or that could not be predicted.

    Args:
        configuration, phase: what would be tried.
        card: where, with its capacity.
        seconds: that the prediction may take.
    """
    work = workload(configuration.resolve(), phase, configuration.shape, configuration.batch_size, "cuda")
    try:
        with time_limit(seconds):
            fits = predict_peak(work.build, work.step, work.iterations, card).fits
    except (TimeIsUpError, Exception):  # a method's code may fail in any way, and the try itself says how
        return ""
    return skipping(too_much(card)) if fits is False else ""


def skipping(shortage: str) -> str:
    """The reason of what is left out since it is predicted to run short."""
    return f"predicted not to fit: {shortage}; --no-gate tries it"


def too_much(card: Target) -> str:
    """Why a prediction does not fit a card of known capacity."""
    assert card.capacity is not None
    whole, context = card.capacity / GIB, card.context / GIB
    return (
        f"the card has {whole:.2f} GiB, the CUDA context takes {context:.2f} GiB of it, and the rest does not suffice"
    )

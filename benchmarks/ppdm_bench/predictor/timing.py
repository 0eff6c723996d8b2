"""Time of any PyTorch code on a card, predicted without a GPU.

>>> predict_time(build, step, find_sheet("A100 80GB")).seconds  # doctest: +SKIP

The real code runs on tensors without memory, as for :func:`ppdm_bench.predictor.peak.predict_peak`. Every kernel takes

    max(operations / peak · cost(shape, type), traffic / bandwidth · cost(kind)) + launch

seconds, and a step takes the sum over its kernels, in the order in which one stream executes them. Peak and bandwidth
are those of the card's data sheet. A convolution's cost is ``full + narrow / columns + narrow / depth``: the narrower
its channels, the less of the tensor cores it fills. The remaining constants (:class:`Constants`) are fitted to the
fitting half of ``results/published/timings.jsonl``, by ``benchmarks/harness/time_truth.py --fit``; nothing was fitted
to the half that judges them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ppdm_bench.predictor.cards import Sheet
from ppdm_bench.predictor.kernels import Kernel
from ppdm_bench.predictor.modules import Modules
from ppdm_bench.predictor.peak import predicting
from ppdm_bench.predictor.target import Target

__all__ = [
    "FITTED",
    "IDEAL",
    "INTERVAL",
    "LIMITS",
    "RATIO",
    "Constants",
    "Duration",
    "KernelTable",
    "Rates",
    "kernels_of_step",
    "predict_time",
]

State = TypeVar("State")

Limit = Literal["arithmetic", "bandwidth", "launches"]
LIMITS: tuple[Limit, ...] = ("arithmetic", "bandwidth", "launches")


@dataclass(frozen=True)
class Constants:
    """Fitted constants of the model of time; all are factors on the ideal time, except ``launch``.

    Attributes:
        full: by type of arithmetic, the cost of an operation of a wide product; 1 would reach the peak.
        narrow: the same, what narrow products add, in channels.
        generation: by compute capability, a factor on half precision; 1 for generations without published timings.
        stage: by gradient, a factor on a convolution's arithmetic.
        memory: cost of traffic of kernels that are not limited by arithmetic.
        copy: cost of the traffic of copies into another memory layout.
        launch: seconds that each kernel adds.
    """

    full: Mapping[str, float]
    narrow: Mapping[str, float]
    generation: Mapping[tuple[int, int], float]
    stage: Mapping[str, float]
    memory: float
    copy: float
    launch: float


# Fitted to the fitting half of results/published/timings.jsonl by benchmarks/harness/time_truth.py --fit.
FITTED = Constants(
    full={"half": 2.06, "tf32": 1.60, "fp32": 1.92},
    narrow={"half": 21.6, "tf32": 20.1, "fp32": 0.0},
    generation={(7, 0): 0.895, (7, 5): 0.969},
    stage={"forward": 1.0, "input": 1.04, "weight": 1.03},
    memory=1.89,
    copy=1.72,
    launch=1.08e-5,
)
# Every kernel reaches the rates of its device, and launches cost nothing.
IDEAL = Constants(
    full=dict.fromkeys(FITTED.full, 1.0),
    narrow=dict.fromkeys(FITTED.narrow, 0.0),
    generation={},
    stage=dict.fromkeys(FITTED.stage, 1.0),
    memory=1.0,
    copy=1.0,
    launch=0.0,
)

# True time over predicted time: 10 % and 90 % quantiles over the published timings, each source predicted by constants
# that were fitted without it (`time_truth.py`). Most of them are U-Nets in fp16 on Volta to Ampere; steps of small
# networks, which wait for the host, were published up to three times slower.
INTERVAL = (0.80, 1.45)
# Eight of ten published ratios of two networks or sizes on one card lie within this factor of the predicted ratio, when
# their source is predicted by constants that were fitted without it (`time_truth.py`).
RATIO = 1.28


@dataclass(frozen=True)
class Rates:
    """What a device can do at most.

    Attributes:
        peaks: operations per second by type of arithmetic: ``half``, ``tf32`` and ``fp32``; 0 if it has none.
        bandwidth: bytes per second.
        compute_capability: of a card; None for a CPU.
    """

    peaks: Mapping[str, float]
    bandwidth: float
    compute_capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, sheet: Sheet, tf32: bool = True) -> "Rates":
        """Rates of a data sheet; ``tf32``: whether fp32 may be computed in TF32."""
        peaks = {"half": sheet.half * 1e12, "tf32": sheet.tf32 * 1e12 * tf32, "fp32": sheet.fp32 * 1e12}
        return cls(peaks, sheet.bandwidth * 1e9, sheet.compute_capability)

    def arithmetic(self, kernel: Kernel) -> str:
        """The type in which a product is computed; half precision without tensor cores is computed in fp32."""
        if kernel.dtype == "half":
            return "half" if self.peaks["half"] else "fp32"
        return "tf32" if kernel.dtype == "float32" and self.peaks["tf32"] else "fp32"


@dataclass(frozen=True)
class KernelTable:
    """Kernels of a step as columns: each different kernel once, with its count.

    Attributes:
        kernels: the different kernels.
        counts, flops, traffic, narrowness, launched: one number for each kernel; ``narrowness`` is the sum of the
            inverse widths of a product.
    """

    kernels: tuple[Kernel, ...]
    counts: Tensor
    flops: Tensor
    traffic: Tensor
    narrowness: Tensor
    launched: Tensor

    @classmethod
    def of(cls, kernels: Iterable[Kernel]) -> "KernelTable":
        """Count equal kernels."""
        counted = Counter(kernels)

        def column(values: Iterable[float]) -> Tensor:
            return torch.tensor(list(values), dtype=torch.float64)

        return cls(
            tuple(counted),
            column(counted.values()),
            column(k.flops for k in counted),
            column(k.traffic for k in counted),
            column(1 / max(k.columns, 1) + 1 / max(k.depth, 1) for k in counted),
            column(k.launched for k in counted),
        )

    def seconds(self, rates: Rates, constants: Constants) -> tuple[Tensor, Tensor, Tensor]:
        """Seconds of arithmetic, of traffic, and of launches, for one call of each kernel."""
        kinds = [rates.arithmetic(kernel) for kernel in self.kernels]
        older = constants.generation.get(rates.compute_capability or (0, 0), 1.0)
        factor = [
            (older if kind == "half" else 1.0) * constants.stage[kernel.stage] / (rates.peaks[kind] or torch.inf)
            for kernel, kind in zip(self.kernels, kinds, strict=True)
        ]
        full, narrow = ([values[kind] for kind in kinds] for values in (constants.full, constants.narrow))
        cost = self._column(full) + self._column(narrow) * self.narrowness
        slow = [constants.copy if kernel.kind == "copy" else constants.memory for kernel in self.kernels]
        traffic = self.traffic * self._column(slow) / rates.bandwidth
        return self.flops * cost * self._column(factor), traffic, self.launched * constants.launch

    def _column(self, values: Iterable[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64)


class Share(NamedTuple):
    """Seconds of all calls of one kernel, and what limits it."""

    kernel: Kernel
    seconds: float
    limit: Limit


@dataclass(frozen=True)
class Duration:
    """Predicted time of a step.

    Attributes:
        seconds: the time.
        parts: seconds by what limits them: ``arithmetic``, ``bandwidth`` and ``launches``.
        by_kernel: the share of each different kernel.
    """

    seconds: float
    parts: Mapping[Limit, float]
    by_kernel: tuple[Share, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """Seconds within which eight of ten published timings lie, each predicted without its own source."""
        return self.seconds * INTERVAL[0], self.seconds * INTERVAL[1]

    @property
    def limit(self) -> Limit:
        """What limits the largest part."""
        return max(self.parts, key=lambda name: self.parts[name])

    def __str__(self) -> str:
        """Return the time in words."""
        low, high = self.interval
        shares = ", ".join(f"{name} {part / self.seconds:.0%}" for name, part in self.parts.items())
        return f"predicted {self.seconds:.3g} s ({low:.3g} to {high:.3g}; {shares})"

    @classmethod
    def of(cls, table: KernelTable, rates: Rates, constants: Constants = FITTED) -> "Duration":
        """The time of the kernels on a device."""
        arithmetic, traffic, launches = table.seconds(rates, constants)
        bound, started = arithmetic > traffic, table.counts * launches
        times = table.counts * torch.maximum(arithmetic, traffic)
        parts: dict[Limit, float] = {
            "arithmetic": float(times[bound].sum()),
            "bandwidth": float(times[~bound].sum()),
            "launches": float(started.sum()),
        }
        limits: list[Limit] = [
            "launches" if launch > time else "arithmetic" if is_arithmetic else "bandwidth"
            for launch, time, is_arithmetic in zip(started.tolist(), times.tolist(), bound.tolist(), strict=True)
        ]
        shares = map(Share, table.kernels, (times + started).tolist(), limits)
        return cls(sum(parts.values()), parts, tuple(shares))

    @classmethod
    def combined(cls, weighted: Iterable[tuple[float, "Duration"]]) -> "Duration":
        """The weighted sum of times, part by part."""
        terms = [*weighted]
        parts = {name: sum(weight * one.parts[name] for weight, one in terms) for name in LIMITS}
        return cls(sum(parts.values()), parts)


def kernels_of_step(
    build: Callable[[], State],
    step: Callable[[State], Any],
    target: Target | None,
    iterations: int = 2,
    modules: Modules | None = None,
) -> list[Kernel]:
    """Kernels of the last iteration of some code; without a target, on the CPU.

    Args:
        build, step, iterations, modules: as for :func:`ppdm_bench.predictor.peak.predict_peak`.
        target: card and software, which decide about copies into other memory layouts.

    Raises:
        ValueError: iterations below 1.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
    """
    if iterations < 1:
        raise ValueError(f"a time needs at least one iteration, got {iterations}")
    kernels: list[Kernel] = []
    with predicting(target or "cpu", modules=modules, kernels=kernels) as trace:
        state = build()
        for _ in range(iterations):
            trace.timeline.mark()
            kernels.clear()
            step(state)
    return kernels


def predict_time(
    build: Callable[[], State],
    step: Callable[[State], Any],
    sheet: Sheet,
    target: Target | None = None,
    iterations: int = 2,
    modules: Modules | None = None,
) -> Duration:
    """Predict the time of one iteration on a card.

    Args:
        build, step, iterations, modules: as for :func:`ppdm_bench.predictor.peak.predict_peak`.
        sheet: data sheet of the card, see :func:`ppdm_bench.predictor.cards.find_sheet`.
        target: software of the prediction, the installed PyTorch if absent; its compute capability is the sheet's.

    Raises:
        ValueError: iterations below 1.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
    """
    target = replace(target or Target(), compute_capability=sheet.compute_capability)
    table = KernelTable.of(kernels_of_step(build, step, target, iterations, modules))
    return Duration.of(table, Rates.of(sheet, target.allows_tf32))

"""Time of any PyTorch code on a card, predicted without a GPU.

>>> predict_time(build, step, find_sheet("A100 80GB")).seconds  # doctest: +SKIP

The real code runs on fake tensors, as for :func:`ppdm_bench.predictor.peak.predict_peak`. Every kernel takes

    max(operations / peak · cost(shape, type), traffic / bandwidth · cost(kind)) + launch

seconds. A step takes the sum over its kernels, which one stream executes one after another. Peak and bandwidth are
those of the card's data sheet. The cost of a product is ``full + narrow / columns + narrow / depth``: with fewer
channels, it uses less of the tensor cores. The constants (:class:`Constants`) are fitted by
``benchmarks/harness/time_truth.py --fit`` to one half of ``results/published/timings.jsonl``; the other half only
validates them.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor

from ppdm_bench.predictor.cards import Sheet
from ppdm_bench.predictor.kernels import KernelWork
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
    """Fitted constants of the time model; all except ``launch`` are factors relative to the ideal time.

    Attributes:
        full: by type of arithmetic, the cost of an operation in a wide product; 1 means the peak rate.
        narrow: by type of arithmetic, the additional cost of narrow products; it is divided by the widths, see above.
        generation: by compute capability, a factor for half precision; 1 for generations without published timings.
        stage: a factor for the arithmetic of a convolution, by pass: forward, or gradient of input or weight.
        memory: cost of memory traffic.
        copy: cost of the traffic of copies into another memory layout.
        launch: seconds per kernel launch.
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
# Constants of an ideal device: every kernel reaches the peak rates, and launches take no time.
IDEAL = Constants(
    full=dict.fromkeys(FITTED.full, 1.0),
    narrow=dict.fromkeys(FITTED.narrow, 0.0),
    generation={},
    stage=dict.fromkeys(FITTED.stage, 1.0),
    memory=1.0,
    copy=1.0,
    launch=0.0,
)

# True time divided by predicted time: the 10 % and 90 % quantiles over the published timings, with each source
# predicted by constants that were fitted without it (`time_truth.py`). Most timings are of U-Nets in fp16 on Volta to
# Ampere. Steps of small networks, which wait for the host, took up to three times as long as predicted.
INTERVAL = (0.80, 1.45)
# For two networks or sizes on one card, 80 % of the published time ratios lie within this factor of the predicted
# ratio, with each source predicted by constants that were fitted without it (`time_truth.py`).
RATIO = 1.28


@dataclass(frozen=True)
class Rates:
    """Peak rates of a device.

    Attributes:
        peaks: operations per second by type of arithmetic: ``half``, ``tf32`` and ``fp32``; 0 if it is not supported.
        bandwidth: memory bandwidth in bytes per second.
        compute_capability: compute capability of a card; None for a CPU.
    """

    peaks: Mapping[str, float]
    bandwidth: float
    compute_capability: tuple[int, int] | None = None

    @classmethod
    def of(cls, sheet: Sheet, tf32: bool = True) -> "Rates":
        """Rates of a data sheet; ``tf32``: whether fp32 may be computed in TF32."""
        peaks = {"half": sheet.half * 1e12, "tf32": sheet.tf32 * 1e12 * tf32, "fp32": sheet.fp32 * 1e12}
        return cls(peaks, sheet.bandwidth * 1e9, sheet.compute_capability)

    def arithmetic(self, kernel: KernelWork) -> str:
        """Type of arithmetic of a kernel; without tensor cores, half precision is computed in fp32."""
        if kernel.dtype == "half":
            return "half" if self.peaks["half"] else "fp32"
        return "tf32" if kernel.dtype == "float32" and self.peaks["tf32"] else "fp32"


@dataclass(frozen=True)
class KernelTable:
    """Kernels of a step as columns: each distinct kernel once, with its count.

    Attributes:
        kernels: the distinct kernels.
        counts, flops, traffic, narrowness, launched: one number per kernel; ``narrowness`` is
            ``1 / columns + 1 / depth``.
    """

    kernels: tuple[KernelWork, ...]
    counts: Tensor
    flops: Tensor
    traffic: Tensor
    narrowness: Tensor
    launched: Tensor

    @classmethod
    def of(cls, kernels: Iterable[KernelWork]) -> "KernelTable":
        """Count equal kernels."""
        counted = Counter(kernels)
        return cls(
            tuple(counted),
            _column(counted.values()),
            _column(k.flops for k in counted),
            _column(k.traffic for k in counted),
            _column(1 / max(k.columns, 1) + 1 / max(k.depth, 1) for k in counted),
            _column(k.launched for k in counted),
        )

    def seconds(self, rates: Rates, constants: Constants) -> tuple[Tensor, Tensor, Tensor]:
        """Seconds of arithmetic, of memory traffic and of the launch, for one call of each kernel."""
        kinds = [rates.arithmetic(kernel) for kernel in self.kernels]
        older = constants.generation.get(rates.compute_capability or (0, 0), 1.0)
        factor = [
            (older if kind == "half" else 1.0) * constants.stage[kernel.stage] / (rates.peaks[kind] or torch.inf)
            for kernel, kind in zip(self.kernels, kinds, strict=True)
        ]
        full, narrow = ([values[kind] for kind in kinds] for values in (constants.full, constants.narrow))
        cost = _column(full) + _column(narrow) * self.narrowness
        slow = [constants.copy if kernel.kind == "copy" else constants.memory for kernel in self.kernels]
        traffic = self.traffic * _column(slow) / rates.bandwidth
        return self.flops * cost * _column(factor), traffic, self.launched * constants.launch


def _column(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


class Share(NamedTuple):
    """Total seconds of all calls of one kernel, and what limits it."""

    kernel: KernelWork
    seconds: float
    limit: Limit


@dataclass(frozen=True)
class Duration:
    """Predicted time of a step.

    Attributes:
        seconds: the time.
        parts: seconds by what limits them: ``arithmetic``, ``bandwidth`` and ``launches``.
        by_kernel: seconds of each distinct kernel.
    """

    seconds: float
    parts: Mapping[Limit, float]
    by_kernel: tuple[Share, ...] = ()

    @property
    def interval(self) -> tuple[float, float]:
        """Interval in seconds that contains 80 % of the published timings, each predicted without its own source."""
        return self.seconds * INTERVAL[0], self.seconds * INTERVAL[1]

    @property
    def limit(self) -> Limit:
        """What limits the largest part of the time."""
        return max(self.parts, key=lambda name: self.parts[name])

    def __str__(self) -> str:
        """Return the time as text."""
        low, high = self.interval
        total = self.seconds or 1.0  # without kernels, every share is 0
        shares = ", ".join(f"{name} {part / total:.0%}" for name, part in self.parts.items())
        return f"predicted {self.seconds:.3g} s ({low:.3g} to {high:.3g}; {shares})"

    @classmethod
    def of(cls, table: KernelTable, rates: Rates, constants: Constants = FITTED) -> "Duration":
        """Time of the kernels on a device."""
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
        """Weighted sum of durations, for each part separately."""
        terms = [*weighted]
        parts = {name: sum(weight * one.parts[name] for weight, one in terms) for name in LIMITS}
        return cls(sum(parts.values()), parts)


def kernels_of_step(
    build: Callable[[], State],
    step: Callable[[State], Any],
    target: Target | None,
    iterations: int = 2,
    modules: Modules | None = None,
) -> list[KernelWork]:
    """Return the kernels of the last iteration of some code; without a target, those of the CPU.

    Args:
        build, step, iterations, modules: as for :func:`ppdm_bench.predictor.peak.predict_peak`.
        target: card and software, which determine the copies into other memory layouts.

    Raises:
        ValueError: iterations below 1.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
    """
    if iterations < 1:
        raise ValueError(f"a time needs at least one iteration, got {iterations}")
    kernels: list[KernelWork] = []
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
        target: software to predict for; None means the installed PyTorch. The sheet gives the compute capability.

    Raises:
        ValueError: iterations below 1.
        PredictionError: shapes depend on data, or an operator has no fake implementation.
    """
    target = replace(target or Target(), compute_capability=sheet.compute_capability)
    table = KernelTable.of(kernels_of_step(build, step, target, iterations, modules))
    return Duration.of(table, Rates.of(sheet, target.allows_tf32))

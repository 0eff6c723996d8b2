"""Fit two constants for memory that no rule predicts: ``python -m ppdm_bench.memory.constants``.

The context (driver, CUDA, loaded modules) is the median of the measured values. The workspace is the median difference
of measured and predicted peaks of allocated memory: memory of libraries that no rule explains. The file of the
constants contains the identifiers of their source records. Predictions use the constants only on request (``ppdm-bench
memory --constants``).
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Self

from ppdm.serialization import restore
from ppdm_bench.predictor.target import MIB, Target
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.atomic_io import replace_file

LEAST = 3  # minimum number of pairs; fewer do not show the spread


class ConstantsError(ValueError):
    """Constants cannot be fitted or read."""


@dataclass(frozen=True)
class FittedConstants:
    """Fitted constants and their source data.

    Attributes:
        gpu, torch: GPU and PyTorch release of the measurements.
        workspace: median excess of allocated memory over the prediction in bytes, at least 0.
        residuals: measured minus predicted bytes of each pair, in ascending order; they show the spread.
        context: median of the bytes outside the allocator; None if NVML reported none.
        records: identifiers of all source records (:func:`identify`).
    """

    gpu: str
    torch: str
    workspace: int
    residuals: tuple[int, ...]
    context: int | None
    records: tuple[str, ...]

    def of(self, target: Target) -> Target:
        """Return the target with these constants applied."""
        context = target.context if self.context is None else self.context
        return replace(target, workspace=self.workspace, context=context)

    def save(self, path: Path) -> Path:
        """Write the constants as JSON and return the path.

        Raises:
            OSError: the file cannot be written.
        """
        return replace_file(path, (json.dumps(asdict(self), indent=1) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read constants that :meth:`save` wrote.

        Raises:
            ConstantsError: the file cannot be read, or does not hold constants.
        """
        if path.exists() and not path.is_file():
            raise ConstantsError(
                f"{path} contains no constants: it is not a file; name a file that was written by "
                "python -m ppdm_bench.memory.constants"
            )
        try:
            made = restore(cls, json.loads(path.read_text()), {})
            made.of(Target())
            return made
        except (OSError, ValueError, RecursionError) as error:
            raise ConstantsError(
                f"{path} contains no constants ({error}); write it with python -m ppdm_bench.memory.constants"
            ) from None


def identify(record: Record) -> str:
    """Return a record's identifier: configuration, phase, metric, kind and 12 digits of the SHA-256 of its line."""
    digest = hashlib.sha256(record.to_json().encode()).hexdigest()[:12]
    return f"{record.config_id}/{record.phase}/{record.metric}/{record.kind}/{digest}"


def fit(records: Sequence[Record], truth: str = "measured") -> FittedConstants:
    """Fit the constants to records of one GPU and one release of PyTorch.

    Args:
        records: predictions and measurements on CUDA; they are paired by configuration and phase.
        truth: kind of the reference records: ``measured``, or ``published``, which only validation uses.

    Raises:
        ConstantsError: there are too few pairs, several GPUs or releases, or predictions that already use constants.
    """
    usable = [r for r in records if r.status == "ok" and r.device == "cuda" and r.value is not None]
    predicted = {(r.config_id, r.phase): r for r in usable if r.kind == "predicted" and r.metric == "peak_allocated"}
    true = [r for r in usable if r.kind == truth and r.metric == "peak_allocated"]
    pairs = [(r, predicted[r.config_id, r.phase]) for r in true if (r.config_id, r.phase) in predicted]
    _check(pairs, truth)
    contexts = [r for r in usable if r.kind == truth and r.metric == "context"]
    used = [record for pair in pairs for record in pair] + contexts
    residuals = sorted(round((true.value or 0) - (made.value or 0)) for true, made in pairs)
    return FittedConstants(
        gpu=str(pairs[0][0].env.get("gpu")),
        torch=str(pairs[0][0].env.get("torch")),
        workspace=max(round(median(residuals)), 0),
        residuals=tuple(residuals),
        context=round(median(r.value or 0 for r in contexts)) if contexts else None,
        records=tuple(identify(record) for record in used),
    )


def _check(pairs: Sequence[tuple[Record, Record]], truth: str) -> None:
    if len(pairs) < LEAST:
        raise ConstantsError(
            f"{len(pairs)} {truth} peaks on CUDA have a prediction of the same configuration and phase, and a fit "
            f"needs at least {LEAST}; run ppdm-bench memory --device cuda"
        )
    for name in ("gpu", "torch"):
        if len(found := {str(true.env.get(name)) for true, _ in pairs}) > 1:
            raise ConstantsError(
                f"the records have several values of {name}: {', '.join(sorted(found))}; fit each of them separately"
            )
    if any("fitted_workspace" in made.env for _, made in pairs):
        raise ConstantsError("some predictions were made with fitted constants; predict without --constants first")


def main() -> None:
    """Fit the constants, save them and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("records", type=Path, nargs="+", help="files of records, such as results/memory/records.jsonl")
    parser.add_argument("--out", type=Path, required=True, help="file for the constants, such as constants.json")
    arguments = parser.parse_args()
    try:
        found = fit([record for path in arguments.records for record in RecordFile(path).read()])
    except ConstantsError as error:
        parser.exit(1, f"{error}\n")
    found.save(arguments.out)
    print(describe(found))


def describe(constants: FittedConstants) -> str:
    """Return the constants as one sentence."""
    low, high = (constants.residuals[at] / MIB for at in (0, -1))
    context = "not measured" if constants.context is None else f"{constants.context / MIB:.0f} MiB"
    return (
        f"{constants.gpu}, torch {constants.torch}: workspace {constants.workspace / MIB:.0f} MiB "
        f"(median of {len(constants.residuals)} residuals, {low:+.0f} to {high:+.0f} MiB), context {context}"
    )


def with_constants(path: Path | None, target: Target | None) -> Target | None:
    """Return the target with the constants of a file; without a file, return it unchanged.

    Raises:
        ConstantsError: the file contains no constants, or there is no CUDA target.
    """
    if path is None:
        return target
    if target is None:
        raise ConstantsError("the constants are for CUDA, and --device cpu predicts nothing for CUDA")
    return FittedConstants.read(path).of(target)


if __name__ == "__main__":
    main()

"""``ppdm-bench train``: a method, a manifest, a run's folder."""

from collections.abc import Callable
from pathlib import Path

from ppdm import Method
from ppdm.checkpoint import NAME, Trained, save
from ppdm.data.pairs import TrainingSet
from ppdm.train import StepReport, fit
from ppdm_bench.terminal import writable

LOG = "log.jsonl"


class RunError(ValueError):
    """A folder cannot take a run."""


def train_run(
    method: Method,
    manifest: Path,
    out: Path,
    steps: int,
    batch_size: int,
    seed: int,
    device: str,
    show: Callable[[int, str], None],
) -> str:
    """Train on the pairs of a manifest's training split, save the run, and say what became of it.

    Args:
        method: the point in the design space.
        manifest: CSV of pairs.
        out: the run's folder, made once the pairs are known to be sound: ``model.safetensors``, ``model.json``,
            ``log.jsonl``.
        steps, batch_size, seed, device: as :func:`ppdm.train.fit` has them.
        show: called with the steps done and a line of text.

    Raises:
        RunError: the folder holds a run already; two are never mixed.
        OSError: the folder cannot be written.
        ValueError: a manifest, a volume or a training that cannot be, in words.
    """
    method.to_dict()  # a method that cannot be written to a checkpoint is refused before the first step
    _refuse_second_run(out)
    pairs = TrainingSet.from_manifest(manifest)
    last: list[StepReport] = []

    def progress(report: StepReport) -> None:
        last[:] = [report]
        show(report.step, f"loss {report.loss:.4f}  {report.steps_per_second:.2f} steps/s")

    network = fit(
        method,
        pairs,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        device=device,
        log=writable(out) / LOG,
        progress=progress,
    )
    path = save(out, Trained(method, network, pairs.scaling, pairs.spacing, steps, seed))
    end = last[0]
    return (
        f"{steps} steps in {end.seconds:.1f} s on {len(pairs)} pairs, last loss {end.loss:.4f}\n"
        f"written: {path}, {path.with_suffix('.json')}, {out / LOG}"
    )


def _refuse_second_run(out: Path) -> None:
    weights = out / NAME
    there = [path.name for path in (weights, weights.with_suffix(".json"), out / LOG) if path.exists()]
    if there:
        raise RunError(f"{out} holds a run already ({', '.join(there)}); give another --out, or delete them first")

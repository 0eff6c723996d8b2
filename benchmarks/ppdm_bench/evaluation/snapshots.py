"""Picture data of the first subject for later figures: slices and error spectra of every candidate."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from ppdm.evaluation.subjects import EvaluationCase, read_case
from ppdm.metrics.texture import error_spectrum
from ppdm_bench.environment import environment
from ppdm_bench.evaluation.candidates import Candidate, candidates_to_draw
from ppdm_bench.evaluation.scoring import EvaluationPlan
from ppdm_bench.records import Record, RecordError
from ppdm_bench.report.figures.orientation import centre_of_mass
from ppdm_bench.report.snapshot import SUFFIX, Snapshot, View, read_snapshot, sections, write_snapshot


def save_snapshot(plan: EvaluationPlan, records: Sequence[Record], folder: Path) -> list[Path]:
    """Write ``snapshot.npz``: the first case of the plan, predicted by every candidate that has a score for it.

    The first case is used because this choice does not depend on the results. A candidate with several numbers of
    network evaluations is drawn at the method's own number, else at the largest. Predictions of the same case in an
    existing file are kept.

    Args:
        plan: the evaluation that was carried out.
        records: its records.
        folder: folder for the file.

    Returns:
        The file, or an empty list if no candidate has a score for this case.
    """
    first = plan.cases[0]
    scored = {(r.method, r.variant, r.steps): r for r in records if r.subject == first.name and r.value is not None}
    wanted = [c for c in candidates_to_draw(plan.candidates) if (c.method, c.variant, c.steps) in scored]
    if not wanted:
        return []
    case = read_case(first, resample=plan.resample)
    target = case.target.numpy()
    inside = target - np.percentile(target, 0.5) if case.mask is None else case.mask.numpy() > 0
    at = centre_of_mass(inside)
    inputs = case.inputs.items()
    views = [View("input", name, sections(x.numpy(), at), unit=case.source_unit) for name, x in inputs]
    views.append(View("target", "target", sections(target, at)))
    for candidate in wanted:
        record = scored[candidate.method, candidate.variant, candidate.steps]
        views.append(_view(candidate, record, plan.predict(candidate, case), case, at))
    d, h, w = target.shape
    snapshot = Snapshot(plan.task, first.name, case.grid.spacing, (d, h, w), case.unit, views)
    with suppress(RecordError):  # there is no earlier file, or it is damaged
        snapshot = snapshot.with_earlier(read_snapshot(folder / SUFFIX))
    return [write_snapshot(snapshot, folder / SUFFIX)]


def _view(
    candidate: Candidate, record: Record, prediction: Tensor, case: EvaluationCase, at: tuple[int, int, int]
) -> View:
    return View(
        "prediction",
        candidate.label,
        sections(prediction.numpy(), at),
        [error_spectrum(prediction, case.target, axis).numpy() for axis in range(3)],
        record.config_id,
        candidate.steps,
        candidate.options.get("resolved", {}),
        environment(),
    )

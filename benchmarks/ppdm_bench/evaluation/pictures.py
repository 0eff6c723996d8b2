"""Pictures of the best and the worst subject: input, prediction, target and error in three planes."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from ppdm.evaluation.subjects import CaseFiles, EvaluationCase, read_case
from ppdm_bench.evaluation.candidates import Candidate, candidates_to_draw
from ppdm_bench.evaluation.scoring import EvaluationPlan
from ppdm_bench.records import Record
from ppdm_bench.report.figures.orientation import centre_of_mass
from ppdm_bench.report.figures.quality import MAX_CONFIGURATIONS
from ppdm_bench.report.figures.style import save
from ppdm_bench.report.figures.volumes import Colours, DisplayedVolume, ct_rows, draw_montage, with_window_of
from ppdm_bench.report.metrics import metric_name
from ppdm_bench.report.scores import Scores, by_configuration


def draw_extremes(plan: EvaluationPlan, records: Sequence[Record], folder: Path) -> list[Path]:
    """Draw the best and the worst scan of every candidate, and return the written files.

    A candidate with several numbers of network evaluations is drawn at the method's own number, else at the largest.
    The error images of the best and the worst scan have one scale, so that they can be compared. If there are more than
    `MAX_CONFIGURATIONS` candidates, only the best one is drawn.

    Args:
        plan: the evaluation that was carried out.
        records: its records.
        folder: folder for the pictures, ``<candidate>-best.png`` and so on.
    """
    everything = {(series.label, series.evaluations): series for series in by_configuration(records)}
    drawn = []
    for candidate in candidates_to_draw(plan.candidates):
        series = everything.get((candidate.label, candidate.steps))
        if series is not None and series.ranking_metric:
            drawn.append((candidate, series))
    if len(drawn) > MAX_CONFIGURATIONS:
        drawn = [max(drawn, key=lambda one: one[1].ranking_value)]
    return [path for candidate, series in drawn for path in _draw_candidate(plan, candidate, series, folder)]


def _draw_candidate(plan: EvaluationPlan, candidate: Candidate, series: Scores, folder: Path) -> list[Path]:
    ranked = series.ranked(series.ranking_metric)
    chosen = {"best": ranked[0], "worst": ranked[-1]} if len(ranked) > 1 else {"best": ranked[0]}
    files = {case.name: case for case in plan.cases}
    cases = {which: _predicted(plan, candidate, files[name]) for which, (name, _) in chosen.items()}
    errors = [prediction - case.target.numpy() for case, prediction in cases.values()]
    reach = max(DisplayedVolume(error, "error", "error").limits[1] for error in errors)
    written: list[Path] = []
    for which, (name, value) in chosen.items():
        place = f"{which} of {len(ranked)} by {metric_name(series.ranking_metric).split()[0]}"
        unit = {"dB": " dB", "%": " %"}.get(series.units[series.ranking_metric], "")
        title = f"{candidate.text}: {name}, {place} ({value:.4g}{unit})"
        figure = _montage(*cases[which], candidate.label, title, reach)
        written += save(figure, folder / f"{_file_name(candidate.label)}-{which}")
    return written


def _predicted(plan: EvaluationPlan, candidate: Candidate, files: CaseFiles) -> tuple[EvaluationCase, np.ndarray]:
    case = read_case(files, resample=plan.resample)
    return case, plan.predict(candidate, case).numpy()


def _montage(case: EvaluationCase, prediction: np.ndarray, name: str, title: str, reach: float) -> Figure:
    target = case.target.numpy()
    colours: Colours = "pet" if case.in_suv else "gray"
    wanted = DisplayedVolume(target, "target", colours, None, case.unit)
    if case.unit == "HU":  # alternate, so that the target follows the prediction in each window
        pairs = zip(ct_rows(prediction, name), ct_rows(target, "target"), strict=True)
        rows = [row for pair in pairs for row in pair]
    else:
        rows = [DisplayedVolume(prediction, name, colours, wanted.limits, case.unit), wanted]
    rows.append(DisplayedVolume(prediction - target, "error", "error", (-reach, reach), case.unit or "a.u."))
    inputs = [_input(source.numpy(), wanted, name, case.source_unit) for name, source in case.inputs.items()]
    seen = target - wanted.limits[0] if case.mask is None else case.mask.numpy() > 0
    return draw_montage([*inputs, *rows], case.grid.spacing, title=title, at=centre_of_mass(seen))


def _input(source: np.ndarray, target: DisplayedVolume, name: str, unit: str) -> DisplayedVolume:
    """Return an input to draw: CT in the window of soft tissue, else see :func:`with_window_of`."""
    if unit == "HU":
        return ct_rows(source, name)[0]
    shown = DisplayedVolume(source, name, target.colours, None, target.unit if target.colours == "pet" else "")
    return with_window_of(target, shown)


def _file_name(label: str) -> str:
    return re.sub(r"[^\w.]+", "-", label).strip("-")

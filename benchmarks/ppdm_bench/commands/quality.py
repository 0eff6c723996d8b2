"""``ppdm-bench quality``: train methods on synthetic tasks and own pairs under one budget, and score them."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import requested_jobs, requested_reference, requested_sets
from ppdm_bench.commands.terminal import (
    INTERRUPTED,
    OverallProgress,
    is_first_process,
    locked_folder,
    notify,
    progress,
    report_outcome,
    under_torchrun,
)
from ppdm_bench.commands.values import (
    comma_separated,
    integer_option,
    or_usage_error,
    read_evaluations,
    read_names,
    read_option,
    whole_number,
)
from ppdm_bench.units import plural

if TYPE_CHECKING:
    from ppdm import Method
    from ppdm.training.log import StepReport
    from ppdm_bench.commands.pair_sources import Subjects
    from ppdm_bench.evaluation.comparison import RunSampling
    from ppdm_bench.evaluation.trials import Outcome, Trial
    from ppdm_bench.records import Record

# Two methods and one task take less than ten minutes on two cores: enough to see that everything works.
QUICK: dict[str, Any] = {
    "task": ["mri-t1t2"],
    "subjects": 8,
    "size": 32,
    "minutes": 2.0,
    "width": 16,
    "evaluations": "1,4,own",
}
FULL: dict[str, Any] = {"subjects": 20, "size": 64, "evaluations": "1,2,4,10,own"}

# Durations of training and evaluating a run, relative to each other.
_TRAINING, _EVALUATING = 100.0, 10.0


def quality(
    task: options.Tasks = None,
    manifest: options.Manifests = None,
    method: options.Methods = None,
    vary: options.Variations = None,
    start: options.Start = None,
    steps: Annotated[
        int | None, integer_option("Training steps of each training; default: 2000 (--quick: 2 minutes instead).")
    ] = None,
    minutes: options.Minutes = None,
    paces: Annotated[
        Path | None,
        typer.Option(
            help="File of step times, with --minutes: each training has as many steps as fit at the step time of its "
            "method, so that the load of the machine does not matter. Missing step times are measured and added. "
            "Default: train by the clock."
        ),
    ] = None,
    curve: Annotated[
        int | None,
        integer_option(
            "Number of equal parts of each training; after each, the model is scored on the split val, for learning "
            "curves. Default: no curves.",
            2,
        ),
    ] = None,
    subjects: Annotated[
        int | None, integer_option("Synthetic subjects per task, over all splits; default: 20 (--quick: 8).")
    ] = None,
    size: Annotated[
        int | None, integer_option("Longest axis of the synthetic volumes in voxels; default: 64 (--quick: 32).", 4)
    ] = None,
    grid: options.PhantomGrid = None,
    resample: options.Resample = False,
    width: options.Width = None,
    batch_size: options.BatchSize = 1,
    seeds: Annotated[str, typer.Option(help="Random seeds, such as 0,1,2; one training for each.")] = "0",
    evaluations: Annotated[
        str | None,
        typer.Option(
            help="Network evaluations per volume; default: 1,2,4,10,own (--quick: 1,4,own), where own means the "
            "method's number."
        ),
    ] = None,
    samples: options.Samples = None,
    split: options.Split = "test",
    reference: Annotated[
        str | None, typer.Option(help="Row that differences are taken from; default: the input.")
    ] = None,
    device: options.Device = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Small profile: two methods, minutes on two cores.")] = False,
    launcher: options.Launcher = None,
    launcher_option: options.LauncherOptions = None,
    metrics: options.Metrics = None,
    columns: options.Columns = None,
    out: options.Runs = Path("runs/quality"),
    json: options.Json = False,
) -> None:
    """Train methods on tasks under one budget and evaluate them. Run the same command again to continue."""
    default = QUICK if quick else FULL
    if steps is None and minutes is None:
        steps, minutes = (None, default["minutes"]) if "minutes" in default else (2000, None)
    evaluations = default["evaluations"] if evaluations is None else evaluations
    look = {"metrics": read_names("--metrics", metrics), "columns": read_names("--columns", columns)}
    wanted = read_option("--evaluations", comma_separated(read_evaluations), evaluations)
    from_seeds = read_option("--seeds", comma_separated(whole_number(0)), seeds)
    jobs = requested_jobs(launcher, launcher_option)

    with redirect_stdout(sys.stderr):
        from ppdm.training.distributed import joined
        from ppdm.training.loop import Interrupted
        from ppdm.training.schedule import Schedule
        from ppdm_baselines import METHODS, REFERENCE
        from ppdm_bench.commands.pair_sources import check_contents, check_sets, pair_counts, require_pairs
        from ppdm_bench.configuration import find_method
        from ppdm_bench.devices import training_device
        from ppdm_bench.evaluation.comparison import SAMPLES_NEED_NOISE, RunSampling
        from ppdm_bench.evaluation.curves import CURVE_SPLIT
        from ppdm_bench.evaluation.jobs import train_in_jobs
        from ppdm_bench.evaluation.trials import check_resumable, plan_trials

        _check_curve(curve, steps, minutes, paces, jobs is not None)
        schedule = or_usage_error(Schedule, steps, minutes, batch_size)
        sets = requested_sets(task, manifest, resample, default, subjects=subjects, size=size, grid=grid)
        names = method or ([next(iter(METHODS)), REFERENCE] if quick else list(METHODS))
        reference = requested_reference(reference)
        plan = or_usage_error(
            plan_trials, sets, names, vary or [], schedule, from_seeds, width or default.get("width"), start or []
        )
        own = [find_method(name) for name in names]
        check_sets(sets, split, batch_size)
        validated = [] if curve is None else [CURVE_SPLIT]
        for one, name in product(sets, validated):
            require_pairs(one, pair_counts(one), name, "mark some rows with it, or leave --curve out")
        if paces is not None:
            plan = _with_steps_for_minutes(plan, paces, training_device(device), curve or 1)
        plan = [replace(trial, parts=curve or 0) for trial in plan]
        _check_reference(reference, plan, own, samples, out)
        check_resumable(plan, out)
        if is_first_process():
            check_contents(sets, [split, *validated], [out / one.task for one in sets])
        sampled = RunSampling(steps=wanted, samples=samples)
        if samples is not None and not any(sampled.samples_differ(one.method) for one in plan):
            raise typer.BadParameter(SAMPLES_NEED_NOISE)
        if quick:
            notify(
                "quick profile: few or small volumes, short training; it shows that everything works, not which method "
                "is best"
            )
        try:
            with locked_folder(out) if is_first_process() else nullcontext(), progress() as bar:
                parts = [_TRAINING] * len(plan) + [_EVALUATING * len(plan) / len(sets)] * len(sets)
                whole = OverallProgress(bar, parts)
                with joined() as ranks:
                    # This machine scores the runs that cluster jobs trained, on its GPU if it has one.
                    here = device if jobs is None or device == "cpu" else "auto"
                    sampling = RunSampling(training_device(here, ranks), wanted, samples=samples)
                    if jobs is None:
                        outcomes = _train(plan, out, sampling.device, whole)
                    else:
                        whole.show(f"{plural(len(plan), 'training')} in jobs")
                        outcomes = train_in_jobs(plan, out, device, jobs, lambda trial: whole.ended())
                if not ranks.is_first:  # only one process scores
                    raise typer.Exit
                results = [_evaluate(one, outcomes, split, sampling, own, reference, out, whole, look) for one in sets]
        except Interrupted as stopped:
            notify(f"{stopped}; the same command continues from there")
            raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(_report([result for result in results if result], outcomes, json))


def _check_reference(
    reference: str | None, plan: "Sequence[Trial]", known: "Sequence[Method]", samples: int | None, out: Path
) -> None:
    """Check before the training that the tables will have the row from which differences are taken.

    Raises:
        typer.BadParameter: they will not have it.
    """
    from ppdm_bench.evaluation.candidates import INPUT, row_name
    from ppdm_bench.evaluation.evaluation_output import earlier_records

    if reference is None or Path(reference) in [trial.folder(out) for trial in plan]:
        return
    labels = [f"{one.method.name} {row_name(one.method, one.schedule.seed, known)}".strip() for one in plan]
    means = [] if samples is None else [f"{label} mean of {samples}" for label in labels]
    earlier = [record.label for one in {t.subjects.task for t in plan} for record in earlier_records(out / one)]
    if reference not in (INPUT, *labels, *means, *earlier):
        there = ", ".join(dict.fromkeys([INPUT, *labels, *earlier]))
        raise typer.BadParameter(f"there is no {reference!r} to take differences from; there are {there}")


def _check_curve(
    curve: int | None, steps: int | None, minutes: float | None, paces: Path | None, in_jobs: bool
) -> None:
    """Check the options ``--curve`` and ``--paces``.

    Raises:
        typer.BadParameter: an option needs another one, or there are fewer steps than parts.
    """
    if paces is not None and minutes is None:
        raise typer.BadParameter("--paces turns minutes into steps; give --minutes, or leave --paces out")
    if paces is not None and (in_jobs or under_torchrun()):
        raise typer.BadParameter("--paces measures step times on this machine and in one process; give --steps instead")
    if curve is not None and steps is None and paces is None:
        raise typer.BadParameter("--curve needs the number of steps: give --steps, or --minutes with --paces")
    if curve is not None and steps is not None and steps < curve:
        few = f"{plural(steps, 'step')}: too few for {plural(curve, 'validation')}"
        raise typer.BadParameter(f"{few} (--curve); increase --steps")


def _with_steps_for_minutes(plan: "Sequence[Trial]", paces: Path, device: str, least: int) -> "list[Trial]":
    """Return the trials with a number of steps in place of minutes.

    Raises:
        typer.BadParameter: a trial has fewer steps than its learning curve has parts.
    """
    from ppdm_bench.evaluation.steps_for_minutes import with_steps_for_minutes

    with progress() as bar:
        shown = bar.add_task("step times", total=None)
        made = with_steps_for_minutes(plan, paces, device, lambda text: bar.update(shown, description=text))
    for trial in made:
        if (steps := trial.schedule.steps or 0) < least:
            raise typer.BadParameter(
                f"in this time, {trial.label} on {trial.subjects} has {plural(steps, 'step')}, too few for "
                f"{plural(least, 'validation')} (--curve); increase --minutes"
            )
    return made


@dataclass(frozen=True)
class _Result:
    """The results on one task."""

    records: list["Record"]
    text: str
    written: list[Path]
    failures: list[str]


def _train(plan: Sequence["Trial"], out: Path, device: str, whole: OverallProgress) -> list["Outcome"]:
    from ppdm_bench.commands.training_run import memory_in_use
    from ppdm_bench.evaluation.trials import carry_out_trials

    def preparing(made: int, total: int) -> None:
        whole.show(f"making subjects, {made} of {total}")

    def show(trial: "Trial", report: "StepReport") -> None:
        text = f"{trial.subjects.task}, {trial.label}: loss {report.loss:.4f}, {memory_in_use(device)}"
        whole.show(text, min(report.share, 1.0))

    outcomes = []
    for outcome in carry_out_trials(plan, out, device, preparing, show):
        whole.ended()
        outcomes.append(outcome)
    return outcomes


def _evaluate(
    subjects: "Subjects",
    outcomes: Sequence["Outcome"],
    split: str,
    sampling: "RunSampling",
    known: "Sequence[Method]",
    reference: str | None,
    out: Path,
    whole: OverallProgress,
    look: dict[str, list[str]],
) -> _Result | None:
    """Compare the runs of one task with one another; return None if every training failed."""
    from ppdm_bench.evaluation.comparison import MetricOptions, compare_runs, reference_label
    from ppdm_bench.evaluation.curves import score_curves
    from ppdm_bench.evaluation.evaluation_output import collect, draw_curves, earlier_records, failures, present
    from ppdm_bench.evaluation.trials import record_costs, with_budgets
    from ppdm_bench.isolation.sweep import RECORDS
    from ppdm_bench.records import RecordFile

    own = [outcome for outcome in outcomes if outcome.trial.subjects == subjects and not outcome.fault]
    if not own:
        whole.ended()
        return None
    folder = out / subjects.task
    earlier = earlier_records(folder)
    arguments = ([one.run for one in own], subjects, split, MetricOptions(), sampling)
    plan = with_budgets(compare_runs(*arguments, known=known, earlier=earlier), own)
    against = reference_label(plan.candidates, reference, earlier)
    records = collect(plan, folder, lambda text, done, total: whole.show(f"{subjects.task}, {text}", done / total))
    whole.ended()
    record_costs(plan, folder)
    text, written = present(plan, records, against, folder, earlier, **look)
    points, lacking = score_curves(own, sampling, folder, lambda text: whole.show(text, 1.0))
    for sentence in lacking:
        notify(sentence)
    if points:
        written += draw_curves(RecordFile(folder / RECORDS).read(), folder)
    records += points
    return _Result(records, text, written, failures(records))


def _report(results: Sequence[_Result], outcomes: Sequence["Outcome"], json: bool) -> int:
    """Print the tables or the records, report files, notes and faults, and return the exit code."""
    from ppdm_bench.records import to_json_array

    if json:
        print(to_json_array([record for result in results for record in result.records]))
    for result in results:
        if not json:
            print(result.text)
        report_outcome(result.written, [], sys.stderr if json else sys.stdout)
    faults = [outcome.fault for outcome in outcomes if outcome.fault]
    faults += [failure for result in results for failure in result.failures]
    for sentence in (*(outcome.note for outcome in outcomes if outcome.note), *faults):
        notify(sentence)
    return 1 if faults else 0

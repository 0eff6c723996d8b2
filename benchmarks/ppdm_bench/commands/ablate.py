"""``ppdm-bench ablate``: configurations around a method, each with its memory, speed and quality."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ppdm_bench.commands import options
from ppdm_bench.commands.requested import requested_jobs, requested_sets
from ppdm_bench.commands.terminal import INTERRUPTED, OverallProgress, locked_folder, notify, progress, report_results
from ppdm_bench.commands.values import (
    comma_separated,
    integer_option,
    number_option,
    one_of,
    or_usage_error,
    read_evaluations,
    read_if_given,
    read_names,
    read_option,
    whole_number,
)
from ppdm_bench.units import plural

if TYPE_CHECKING:
    from rich.progress import Progress

    from ppdm import Method
    from ppdm_bench.ablation.plan import Ablation, CellTraining
    from ppdm_bench.commands.pair_sources import Subjects
    from ppdm_bench.evaluation.scoring import EvaluationPlan
    from ppdm_bench.records import Record

# About twenty minutes on two idle cores. The network has three levels: with four levels, the largest factor would pad
# 32 voxels to 64.
QUICK: dict[str, Any] = {
    "task": ["mri-t1t2", "pet-joint"],
    "subjects": 20,
    "size": 32,
    "width": 12,
    "base": ["network.multipliers=[1,2,2]"],
    "steps": 120,
    "seeds": "0",
    "evaluations": "1,4",
}
FULL: dict[str, Any] = {"subjects": 32, "size": 64, "steps": 2000, "seeds": "0,1,2", "evaluations": "1,4,10"}
_SCORING = 10.0  # seconds to score a run that a cluster job trained; the weight of this part in the progress bar
LONGEST_QUICK_MINUTES = 30  # the quick profile warns if the estimate is longer


def ablate(
    configurations: Annotated[
        str,
        typer.Option(
            help="Configurations: one (one axis at a time: factor, loss, bridge), full (all combinations), "
            "space (each representation with and without the bridge, at equal steps and at equal time), or none."
        ),
    ] = "one,space",
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="More configurations, such as kernel.gamma=0.25,1 or optimisation.learning_rate=1e-4; repeatable. "
            "Default: none."
        ),
    ] = None,
    start: options.Start = None,
    method: options.MethodName = "ppdm",
    task: options.Tasks = None,
    manifest: options.Manifests = None,
    seeds: Annotated[
        str | None, typer.Option(help="Random seeds, one training each; default: 0 (quick), 0,1,2 (full).")
    ] = None,
    steps: Annotated[
        int | None,
        integer_option("Training steps, for the comparison at equal steps; default: 120 (quick), 2000 (full)."),
    ] = None,
    minutes: Annotated[
        float | None,
        number_option(
            "minutes",
            "Training time, for the comparison at equal time. Default: with --configurations space, the time that the "
            "method needs for its steps; else none.",
        ),
    ] = None,
    subjects: Annotated[
        int | None, integer_option("Synthetic subjects per task, over all splits; default: 20 (quick), 32 (full).")
    ] = None,
    size: Annotated[
        int | None,
        integer_option("Longest axis of the synthetic volumes in voxels; default: 32 (quick), 64 (full).", 4),
    ] = None,
    grid: options.PhantomGrid = None,
    resample: options.Resample = False,
    width: options.Width = None,
    batch_size: Annotated[
        int | None, integer_option("Batch size; default: 2, or 1 if scans of --manifest have several sizes.")
    ] = None,
    evaluations: Annotated[
        str | None,
        typer.Option(
            help="Network evaluations per volume; own means the method's number. Default: 1,4 (quick), 1,4,10 (full)."
        ),
    ] = None,
    split: options.Split = "test",
    memory_res: Annotated[
        str | None, typer.Option(help="Also predict memory at these cubic sizes, such as 128,256; default: none.")
    ] = None,
    profile: Annotated[
        Literal["auto", "quick", "full"],
        typer.Option(help="Defaults for options not given; auto: full with a GPU or with cluster jobs, else quick."),
    ] = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Same as --profile quick.")] = False,
    device: options.Device = "auto",
    launcher: options.Launcher = None,
    launcher_option: options.LauncherOptions = None,
    columns: options.Columns = None,
    out: options.Runs = Path("runs/ablations"),
    json: options.Json = False,
) -> None:
    """Run ablations of puzzle factor, loss, bridge or any other field. Run the same command again to continue."""
    chosen = read_names("--columns", columns)
    kind = "quick" if quick else profile
    grids = read_option("--configurations", comma_separated(one_of("one", "full", "space", "none")), configurations)
    jobs = requested_jobs(launcher, launcher_option)
    sizes = read_if_given("--memory-res", comma_separated(whole_number()), memory_res) or []

    with redirect_stdout(sys.stderr):
        from ppdm.training.loop import Interrupted
        from ppdm.training.schedule import Schedule
        from ppdm_bench.ablation.ablation_output import present
        from ppdm_bench.ablation.cells import plan_cells
        from ppdm_bench.ablation.plan import Ablation
        from ppdm_bench.commands.pair_sources import check_contents, check_sets
        from ppdm_bench.devices import training_device
        from ppdm_bench.evaluation.comparison import RunSampling

        # This machine scores the runs that cluster jobs trained, on its GPU if it has one.
        spread = jobs is not None and device != "cpu"
        where = training_device("auto" if spread else device)
        small = kind == "quick" or (kind == "auto" and where == "cpu" and not spread)
        default = QUICK if small else FULL
        sets = requested_sets(task, manifest, resample, default, subjects=subjects, size=size, grid=grid)
        batch = batch_size or _batch_size(sets)
        base = or_usage_error(_base_method, method, default, start or [], width)
        base = or_usage_error(_with_sources, base, sets)
        read = comma_separated(read_evaluations)
        evaluations = default["evaluations"] if evaluations is None else evaluations
        plan = Ablation(
            base=base,
            cells=or_usage_error(plan_cells, base, [one for one in grids if one != "none"], vary or []),
            sets=sets,
            schedule=or_usage_error(Schedule, steps or default["steps"], None, batch),
            seeds=read_option(
                "--seeds", comma_separated(whole_number(0)), default["seeds"] if seeds is None else seeds
            ),
            minutes=minutes,
            sampling=RunSampling(where, read_option("--evaluations", read, evaluations)),
            split=split,
            memory_shapes=[(n, n, n) for n in sizes],
        )
        check_sets(sets, split, batch)
        check_contents(sets, [split], [out])
        try:
            with locked_folder(out):
                records, faults, pictures = _carry_out(plan, out, small, device, jobs)
                text, written = present(records, out, chosen)
                written += pictures
        except Interrupted as stopped:
            notify(f"{stopped}; the same command continues from there")
            raise typer.Exit(INTERRUPTED) from None
    raise typer.Exit(report_results(text, records, written, faults, json))


def _base_method(name: str, default: Mapping[str, Any], changes: Sequence[str], width: int | None) -> "Method":
    """Return the method that the configurations vary; the levels of a profile apply only to the U-Net."""
    from ppdm import UNetOptions
    from ppdm_bench.configuration import find_method, with_width
    from ppdm_bench.variation import parse_assignments, with_assignments

    method = with_width(find_method(name), width or default.get("width"))
    levels = default.get("base", []) if isinstance(method.network, UNetOptions) else []
    for text in [*levels, *changes]:
        method = with_assignments(method, parse_assignments(text))
    return method


def _with_sources(base: "Method", sets: "Sequence[Subjects]") -> "Method":
    """Return the method with the sources of all sets; their number changes the time of a step and the memory."""
    from ppdm.training.on_manifest import with_sources_of

    first, *others = {one.sources(): one for one in sets}.items()
    if others:
        raise ValueError(
            f"{first[1]} and {others[0][1]} have different sources; run one ablation for each, with its own --out"
        )
    return with_sources_of(base, first[0])


def _batch_size(sets: "Sequence[Subjects]") -> int:
    """Return the batch size that all sets allow: volumes of different sizes cannot form a batch."""
    if several := [one for one in sets if len(set(one.shapes("train"))) > 1]:
        notify(f"the scans of {several[0]} have several sizes, so the batch size is 1")
        return 1
    return 2


def _carry_out(
    plan: "Ablation", out: Path, quick: bool, device: str, jobs: dict[str, Any] | None
) -> tuple[list["Record"], list[str], list[Path]]:
    """Measure, train and score; return all requested records, the failures, and the files of picture data."""
    from ppdm_bench.ablation import run
    from ppdm_bench.ablation.jobs import train_in_jobs_and_score
    from ppdm_bench.ablation.plan import memory_seconds, plan_trainings
    from ppdm_bench.evaluation.trials import check_resumable

    _introduce(plan, quick)
    with progress() as bar:
        step_times = _step_times(plan, out, bar, device, jobs)
        wanted, each = plan_trainings(plan, step_times), memory_seconds(plan)
        check_resumable([work.trial for work in wanted], out)
        _announce(plan, wanted, step_times, sum(each), out, quick, jobs is not None)
        scoring = [_SCORING] * len(wanted) if jobs is not None else []
        whole = OverallProgress(bar, [*each, *(work.seconds for work in wanted), *scoring])
        records = [*step_times.values(), *run.record_left_out(plan, step_times, out)]
        faults: list[str] = []
        scored: list[EvaluationPlan] = []
        if jobs is None:
            trained = run.train_and_score(plan, wanted, out, whole.show)
        else:
            trained = train_in_jobs_and_score(plan, wanted, out, device, jobs, whole.show, whole.ended)
        for done in chain(run.record_memory(plan, out, whole.show), trained):
            records += done.records
            faults += [done.fault] if done.fault else []
            if done.note:
                notify(done.note)
            scored += [done.scored] if done.scored else []
            whole.ended()
    return records, faults, run.save_picture_data(scored, records, out)


def _step_times(
    plan: "Ablation", out: Path, bar: "Progress", device: str, jobs: dict[str, Any] | None
) -> dict[str, "Record"]:
    """Return the record ``step_seconds`` of each configuration, by its label."""
    from ppdm_bench.ablation.jobs import step_times_in_job
    from ppdm_bench.isolation.sweep import RECORDS
    from ppdm_bench.records import RecordFile

    shown = bar.add_task("step times of all configurations in a job", total=None)
    try:
        if jobs is not None:
            return step_times_in_job(plan, out, device, jobs)
        file, where = RecordFile(out / RECORDS), plan.sampling.device
        found = plan.step_times.measure(where, file, lambda text: bar.update(shown, description=text))
        return plan.step_times.by_label(found)
    finally:
        bar.remove_task(shown)


def _introduce(plan: "Ablation", quick: bool) -> None:
    """Report the part of the plan that is known before any measurement."""
    if quick:
        notify("quick profile: small networks, few or small volumes, short training; it shows a direction, not a proof")
    for cell in plan.cells:
        if cell.reason:
            notify(f"left out: {cell.label}: {cell.reason}")
    if plan.too_large:
        grids = ", ".join(str(factor) for factor in plan.too_large)
        notify(f"the volumes are too small for the seam index at factor {grids}; it is not computed")
    notify(f"{plural(len(plan.present), 'configuration')}; first, a few training steps of each are timed")


def _announce(
    plan: "Ablation",
    wanted: Sequence["CellTraining"],
    step_times: dict[str, "Record"],
    memory: float,
    out: Path,
    quick: bool,
    spread: bool,
) -> None:
    """Report the trainings to run and their estimated duration."""
    from ppdm.checkpoint import NAME

    left = [work for work in wanted if not (work.trial.folder(out) / NAME).exists()]
    steps = sorted((float(record.value), label) for label, record in step_times.items() if record.value is not None)
    fast, slow = (f"{seconds:.3g} s ({label})" for seconds, label in (steps[0], steps[-1])) if steps else ("", "")
    minutes = (memory + sum(work.seconds for work in left)) / 60
    whose = " of all machines" if spread else ""
    notify(
        f"{plural(len(plan.present), 'configuration')} on {', '.join(one.task for one in plan.sets)}: "
        f"{plural(len(wanted), 'training')}, {len(wanted) - len(left)} of them done; "
        f"a step takes {fast} to {slow}; about {minutes:.0f} min{whose} left"
    )
    if quick and minutes > LONGEST_QUICK_MINUTES and not spread:
        notify(
            f"this is more than {LONGEST_QUICK_MINUTES} min: the machine is slow or busy; choose fewer --steps, or one "
            "--task"
        )

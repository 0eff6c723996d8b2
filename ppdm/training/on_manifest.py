"""Training on the pairs of a manifest, into the folder of a run."""

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import torch
from torch import nn

from ppdm.checkpoint import NAME, CheckpointError, Trained, load, save
from ppdm.data.manifest import Pair, read_manifest, with_intensities
from ppdm.data.normalise import HounsfieldWindow
from ppdm.data.pairs import PairsError, TrainingSet
from ppdm.method import Method
from ppdm.model import PPDM
from ppdm.sources import SOURCE, described_sources
from ppdm.training.augment import Flip
from ppdm.training.distributed import Ranks
from ppdm.training.log import StepReport
from ppdm.training.loop import describe
from ppdm.training.loop import train as train_arrays
from ppdm.training.run import AFTER, BEST, Run
from ppdm.training.schedule import Schedule


def train(
    manifest: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    method: Method = PPDM,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 1,
    accumulate: int = 1,
    augment: Flip | None = None,
    seed: int = 0,
    validate_every: int | None = None,
    resample: bool = False,
    source_intensity: str | None = None,
    target_intensity: str | None = None,
    bridge_from: str | None = None,
    resume: bool = False,
    init_from: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress: Callable[[StepReport], None] = lambda _: None,
) -> Trained:
    """Train a method on the split ``train`` of a manifest, as ``ppdm-bench train`` does, and return the result.

    Args:
        manifest: CSV file of pairs (:func:`ppdm.data.manifest.read_manifest`).
        out: folder of the run: the model, its log and its options; with ``validate_every`` also ``best``, the model
            with the lowest validation loss on the split ``val``.
        method: the point in the design space.
        steps, minutes: training budget; give one of them.
        batch_size, accumulate, augment, seed, validate_every: as for :func:`~ppdm.training.loop.fit`.
        resample: whether to interpolate volumes on other grids onto the grids of their (first) sources.
        source_intensity, target_intensity: ``ct`` or ``ct:LOW,HIGH`` if these volumes are CT
            (:class:`ppdm.data.normalise.HounsfieldWindow`); by default what the manifest says.
        bridge_from: where a bridge starts: ``mean`` of the sources, or the name of one; None keeps the method's.
        resume: whether to continue the run in the folder. A finished run is returned as it is.
        init_from: a run, or the .safetensors file in it, whose weights replace the random initial weights.
        device: device on which the network is trained.
        progress: called with the report of every step.

    Raises:
        ManifestError, PairsError, VolumeError: the manifest or a volume has faults.
        IntensityError: ``source_intensity`` or ``target_intensity`` is invalid.
        ValueError: ``bridge_from`` or the sources of the method do not match the sources of the manifest.
        RunError, TrainingError, CheckpointError: as for :func:`~ppdm.training.loop.fit`.
    """
    schedule = Schedule(steps, minutes, batch_size, accumulate, augment, seed, validate_every)
    texts = {"source": source_intensity, "target": target_intensity}
    windows = {role: HounsfieldWindow.parse(text) for role, text in texts.items() if text is not None}
    intensities = {f"{role}_intensity": str(window) for role, window in windows.items()}
    asked = {"task": None, "resample": resample, **intensities}  # as in the command, which can resume the run
    notes = {"manifest": os.path.abspath(manifest)}
    run = Run(out, resume=resume, asked=asked, notes=notes)
    listed = with_intensities(read_manifest(manifest), **windows)
    method = with_sources_of(method, tuple(listed[0].sources), bridge_from)
    if finished_steps(run, method, schedule, keep_last=True) is None:
        pairs, held = training_sets(listed, schedule, str(manifest), resample=resample)
        with run:
            train_sets(
                method,
                pairs,
                held,
                schedule,
                run,
                device=device,
                keep_last=True,
                init_from=init_from,
                progress=progress,
            )
    return load(out, device)


def with_sources_of(method: Method, names: tuple[str, ...], bridge_from: str | None = None) -> Method:
    """Return the method for the sources of some pairs.

    Args:
        method: the point in the design space; its own sources must be those of the pairs, unless they are the default.
        names: names of the sources of the pairs, in their order.
        bridge_from: as for :func:`train`.

    Raises:
        ValueError: the method has other sources, or the bridge starts from a source that is not among them.
    """
    if method.sources not in ((SOURCE,), names):
        raise ValueError(
            f"{method.name} has {described_sources(method.sources)}, and the pairs have {described_sources(names)}; "
            "give both the same sources in the same order"
        )
    return method.with_sources(names, bridge_from)


def finished_steps(run: Run, method: Method, schedule: Schedule, *, keep_last: bool) -> int | None:
    """Return the steps of a finished run with the same options; remove files that a process killed later left behind.

    None means that the run must be trained: it is new, unfinished, or given more steps.

    Raises:
        RunError: the folder holds a run that must not be resumed, or was started with other options.
        ValueError: the method has values that are not from this package, so that it could not be saved.
    """
    run.check(describe(method, schedule))
    if not run.resume or not (run.folder / NAME).exists():
        return None
    try:
        trained = load(run.folder)
    except CheckpointError:  # killed between the two files of the model: the last checkpoint still exists
        return None
    if schedule.steps is not None and trained.steps < schedule.steps:  # it is given more steps
        return None
    with run:
        run.clear(keep_last=keep_last)
    return trained.steps


def training_sets(
    pairs: Sequence[Pair], schedule: Schedule, name: str, *, resample: bool = False
) -> tuple[TrainingSet, TrainingSet | tuple[()]]:
    """Return the pairs to train on, and those to validate on if the schedule has validations.

    Args:
        pairs: pairs of all splits.
        schedule: duration and validations.
        name: name of the source of the pairs in messages.
        resample: as for :class:`ppdm.data.pairs.TrainingSet`.

    Raises:
        PairsError: a split has no pairs, or the pairs are unsuitable.
        VolumeError: a volume cannot be read.
    """

    def of_split(split: str, remedy: str) -> list[Pair]:
        chosen = [pair for pair in pairs if pair.split == split]
        if not chosen:
            raise PairsError(f"{name} has no pairs in the split {split!r}; {remedy}.")
        return chosen

    chosen = of_split("train", "mark some rows with it")
    if schedule.validate_every is None:
        return TrainingSet(chosen, resample=resample), ()
    held = of_split("val", "validation needs some: add subjects, or leave --validate-every out")
    training_set = TrainingSet(chosen, resample=resample)
    return training_set, TrainingSet(held, resample=resample, scaling=training_set.scaling)


def kept_model(folder: Path, step: int) -> Path:
    """Return the folder, inside the folder of a run, of the model after a number of steps."""
    return folder / AFTER / f"{step:06d}"


def train_sets(
    method: Method,
    pairs: TrainingSet,
    held: TrainingSet | tuple[()],
    schedule: Schedule,
    run: Run,
    *,
    device: str | torch.device,
    keep_last: bool,
    init_from: str | os.PathLike[str] | None = None,
    keep_after: Collection[int] = (),
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[StepReport], None] = lambda _: None,
) -> tuple[Path, StepReport] | None:
    """Train in the folder of a run, which the caller has locked, and save the model there.

    Args:
        method, schedule, run: the point in the design space, the duration, and the folder.
        pairs, held: from :func:`training_sets`.
        device, init_from, stop, progress: as for :func:`ppdm.training.loop.train`.
        keep_last: whether to keep the last checkpoint, so that the run can be given more steps.
        keep_after: numbers of steps after which the model is kept in a folder of its own, see :func:`kept_model`.

    Returns:
        The path of the weights and the last report; None on every rank but the first.
    """
    last: list[StepReport] = []

    def follow(report: StepReport) -> None:
        last[:] = [report]
        progress(report)

    def save_to(folder: Path, report: StepReport, network: nn.Module) -> Path:
        return save(folder, Trained(method, network, pairs.scaling, pairs.spacing, report.step, schedule.seed))

    def on_best(report: StepReport, network: nn.Module) -> None:
        save_to(run.folder / BEST, report, network)

    def on_keep(report: StepReport, network: nn.Module) -> None:
        save_to(kept_model(run.folder, report.step), report, network)

    network = train_arrays(
        method,
        pairs,
        schedule,
        device=device,
        validation=held,
        run=run,
        init_from=init_from,
        on_best=on_best,
        keep_after=keep_after,
        on_keep=on_keep,
        stop=stop,
        progress=follow,
    )
    if not Ranks.here().is_first:
        return None
    path = save_to(run.folder, last[0], network)
    run.clear(keep_last=keep_last)
    return path, last[0]

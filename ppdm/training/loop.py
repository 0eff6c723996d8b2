"""Training: one loop for every method; it can be interrupted at any moment and resumed.

Shapes: a volume of a pair is (D, H, W) or (C, D, H, W), a batch is (N, C, D, H, W); all are float32 network values.
Steps are counted from k = 0.
"""

import hashlib
import math
import os
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ppdm.checkpoint import CheckpointError, load, versions
from ppdm.method import Method
from ppdm.sources import described_sources
from ppdm.training.augment import Flip
from ppdm.training.batches import ArrayPair, ReadAhead, Survey, stacked, survey
from ppdm.training.distributed import Ranks
from ppdm.training.log import StepReport, best_validation, opened_log
from ppdm.training.optimizer import optimizer_class
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule, TrainingError, batch_indices, parts
from ppdm.training.session import Session
from ppdm.training.state import State
from ppdm.training.trainer import Training


class Interrupted(KeyboardInterrupt):
    """A training run stopped on request after a complete step; the message names the checkpoint to resume from."""


def fit(
    method: Method,
    pairs: Sequence[ArrayPair],
    *,
    steps: int | None = None,
    minutes: float | None = None,
    batch_size: int = 1,
    accumulate: int = 1,
    augment: Flip | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    validation: Sequence[ArrayPair] = (),
    validate_every: int | None = None,
    log: str | os.PathLike[str] | None = None,
    run: Run | None = None,
    init_from: str | os.PathLike[str] | None = None,
    on_best: Callable[[StepReport, nn.Module], None] = lambda report, network: None,
    progress: Callable[[StepReport], None] = lambda _: None,
) -> nn.Module:
    """Train a method and return its network with the averaged weights, in evaluation mode.

    On the CPU, the same arguments give bit-identical weights (with the same torch version and number of threads),
    whether the run was interrupted or not: the seed determines the initial weights, the order of the pairs, and the
    times, noise and flips of each step. This holds for a budget of steps; with a budget of minutes, the number of steps
    depends on the machine. ``method.network`` sets the precision and the activation checkpointing.

    In a process group (:func:`ppdm.training.distributed.joined`), the processes train one network together, each on its
    share of every batch. Only the first process writes the log and the run, and reports the progress.

    Args:
        method: the point in the design space.
        pairs: (source, target) of normalised, finite values, each (D, H, W) or (C, D, H, W); all have one shape unless
            the batch size is 1. The source of a method with S sources is (S·C, D, H, W), in the order of
            ``method.sources``. A sequence may read its pairs on access, as :class:`ppdm.data.pairs.TrainingSet` does:
            a thread loads the next batch during the current step, and nothing else accesses the sequence meanwhile.
            The pairs are reshuffled after each epoch.
        steps, minutes, batch_size, accumulate, augment, seed, validate_every: the fields of
            :class:`ppdm.training.schedule.Schedule`; give either steps or minutes.
        device: device on which the network is trained.
        validation: pairs on which the averaged weights are validated.
        log: a file of JSON lines, overwritten, with one line per step: step, loss, gradient_norm, learning_rate,
            seconds, steps_per_second; validation_loss after a validation, and best if it is the lowest so far.
        run: folder for checkpoints and the log, from which the run can be resumed; without it, nothing is saved. A
            finished run continues if it is given more steps; a warning says how its learning rate changes.
        init_from: a checkpoint (:func:`ppdm.checkpoint.save`) of the same network; its weights replace random ones.
        on_best: called with the report and the averaged network after each validation with the lowest loss so far, for
            example to save it.
        progress: called with the report of every step; a resumed run first calls it with the last completed step.

    Raises:
        TrainingError: the arguments or pairs are invalid, a loss, gradient or weight is not finite, the accelerator
            runs out of memory, or the log cannot be written.
        RankError: another process of the group failed.
        RunError: the run's folder cannot be used, or the run was started with other arguments.
        CheckpointError: a checkpoint cannot be written, or none of the existing checkpoints can be read.
    """
    schedule = Schedule(steps, minutes, batch_size, accumulate, augment, seed, validate_every)
    options: dict[str, Any] = {"init_from": init_from, "on_best": on_best, "progress": progress}
    return train(method, pairs, schedule, device=device, validation=validation, log=log, run=run, **options)


def train(
    method: Method,
    pairs: Sequence[ArrayPair],
    schedule: Schedule,
    *,
    device: str | torch.device = "cpu",
    validation: Sequence[ArrayPair] = (),
    log: str | os.PathLike[str] | None = None,
    run: Run | None = None,
    init_from: str | os.PathLike[str] | None = None,
    on_best: Callable[[StepReport, nn.Module], None] = lambda report, network: None,
    keep_after: Collection[int] = (),
    on_keep: Callable[[StepReport, nn.Module], None] = lambda report, network: None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[StepReport], None] = lambda _: None,
) -> nn.Module:
    """Train as :func:`fit` does, given a schedule.

    After each number of steps in ``keep_after``, ``on_keep`` receives the report and the averaged network, except in
    stages before the last, where there is no complete method; the training itself stays the same.

    Raises:
        Interrupted: ``stop`` returned true; the loop has finished the step and saved a checkpoint.
        TrainingError, RankError, RunError, CheckpointError: as for :func:`fit`.
    """
    ranks = Ranks.here()
    _check_request(method, schedule, validation, log, run, ranks)
    with ExitStack() as opened, _explained_memory_error(method):
        inputs: dict[str, Any] = {"device": device, "validation": validation, "log": log, "run": run}
        inputs |= {"init_from": init_from, "progress": progress, "on_best": on_best}
        inputs |= {"keep_after": keep_after, "on_keep": on_keep}
        session = _open_session(opened, method, pairs, schedule, ranks, **inputs)
        with session.reporting_errors():
            while not session.ended:
                session.step()
                if session.needs_report:
                    session.report()
                if stopping := ranks.any(stop()):
                    session.report()
                if session.is_reported:
                    session.save(stopping)
                if stopping and not session.ended:
                    raise _interrupted(session)
    return session.trainer.average


def describe(method: Method, schedule: Schedule) -> dict[str, Any]:
    """Describe the method and the schedule of a run as JSON values, without the pairs.

    Raises:
        ValueError: the method has values that are not from this package.
    """
    return {"method": method.to_dict(), **asdict(schedule)}


def _open_session(
    opened: ExitStack,
    method: Method,
    pairs: Sequence[ArrayPair],
    schedule: Schedule,
    ranks: Ranks,
    *,
    device: str | torch.device,
    validation: Sequence[ArrayPair],
    log: str | os.PathLike[str] | None,
    run: Run | None,
    init_from: str | os.PathLike[str] | None,
    progress: Callable[[StepReport], None],
    on_best: Callable[[StepReport, nn.Module], None],
    keep_after: Collection[int],
    on_keep: Callable[[StepReport, nn.Module], None],
) -> Session:
    """Open the run's folder, its log and the reader, and restore the latest checkpoint, if there is one."""
    own_run = run if ranks.is_first else None
    with ranks.together():
        surveyed, held = _survey_all(method, pairs, validation, schedule, digest=own_run is not None)
        if own_run is not None:
            opened.enter_context(own_run)
        trainer = Training.start(method, surveyed.channels, schedule.seed, device)
        weights = "" if init_from is None else _warm_start(trainer, init_from)
    data = {"pairs": asdict(surveyed), "validation_pairs": asdict(held) if held else None}
    options = describe(method, schedule) | data | {"init_from": weights or None}
    last = ranks.by_first(lambda: _begin(own_run, options, _environment(method, device, ranks)))
    with ranks.together():
        if last is not None:
            assert run is not None
            _restore(trainer, last, run.folder)
        place = None if not ranks.is_first else log if run is None else run.log
        stream = opened.enter_context(opened_log(place, last.log_bytes if last else 0))
        best = best_validation(place) if last is not None and place is not None else None
    if not ranks.is_first:
        progress, on_best, on_keep = _ignore, _ignore, _ignore
    if last is not None:
        progress(last.report)
    session = Session(
        trainer=trainer,
        reader=opened.enter_context(_reader(pairs, schedule, trainer.done, device, ranks)),
        log=stream,
        run=own_run,
        ranks=ranks,
        schedule=schedule,
        pairs=pairs,
        validation=validation,
        device=device,
        show=progress,
        on_best=on_best,
        keep_after=keep_after,
        on_keep=on_keep,
        last=last.report if last else None,
        lowest=best[1] if best else math.inf,
    )
    if own_run is not None and own_run.extended_from is not None:
        _warn_of_learning_rate(session, own_run.extended_from)
    return session


def _reader(
    pairs: Sequence[ArrayPair], schedule: Schedule, done: int, device: str | torch.device, ranks: Ranks
) -> ReadAhead:
    """Read this rank's share of every remaining batch."""
    batches = batch_indices(len(pairs), schedule.batch_size, schedule.seed)
    last = None if schedule.steps is None else schedule.steps * schedule.accumulate
    left = islice(batches, done * schedule.accumulate, last)
    return ReadAhead(map(ranks.share, left), lambda indices: stacked([pairs[i] for i in indices], device))


def _interrupted(session: Session) -> Interrupted:
    saved = "nothing was saved" if session.run is None else session.run.last_checkpoint()
    return Interrupted(f"stopped after step {session.trainer.done} as requested; {saved}")


def _begin(run: Run | None, options: Mapping[str, Any], environment: Mapping[str, Any]) -> State | None:
    """Prepare the run's folder, if there is one, and load its latest checkpoint."""
    if run is None:
        return None
    run.begin(options, environment)
    return run.latest()


def _warm_start(training: Training, path: str | os.PathLike[str]) -> str:
    """Start from the weights of a checkpoint; return their SHA-256."""
    trained, wanted = load(path), training.method.sources
    weights = trained.network.state_dict()
    if len(wanted) > 1 and trained.method.sources != wanted:  # channels of another order would be mixed up
        raise CheckpointError(
            f"{path} was trained on {described_sources(trained.method.sources)}, and this training has "
            f"{described_sources(wanted)}; give the same sources in the same order, or start from random weights."
        )
    try:
        training.initialise(weights)
    except ValueError as error:
        raise CheckpointError(
            f"{path} holds another network than that of {training.method.name} in this training ({error}); train with "
            "the network options of that checkpoint, or start from random weights."
        ) from None
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()


def _warn_of_learning_rate(session: Session, before: int) -> None:
    steps, rate = session.schedule.steps, session.learning_rate
    warnings.warn(
        f"The run that was finished after step {before} continues to step {steps}. Its learning rate had fallen to 0; "
        f"now it rises to {rate:.3g}, as in a run of {steps} steps, and falls to 0 again. The result is not that of a "
        f"run of {steps} steps from the start",
        stacklevel=4,
    )


def _restore(training: Training, state: State, folder: Path) -> None:
    try:
        training.restore(state.tensors, state.report.step)
    except ValueError as error:
        raise CheckpointError(
            f"The checkpoint of step {state.report.step} in {folder} belongs to another network: {error}; files of two "
            "runs were mixed. Start again in another folder."
        ) from None


def _survey_all(
    method: Method, pairs: Sequence[ArrayPair], validation: Sequence[ArrayPair], schedule: Schedule, digest: bool
) -> tuple[Survey, Survey | None]:
    """Check the training pairs and, if the schedule has validations, the validation pairs."""
    surveyed = survey(pairs, schedule.batch_size, sources=method.sources, digest=digest)
    if schedule.validate_every is None:
        return surveyed, None
    held = survey(validation, sources=method.sources, digest=digest, purpose="validate on")
    if held.channels != surveyed.channels:
        raise TrainingError(
            f"Pairs to train on have {surveyed.channels} channels, and pairs to validate on {held.channels}; give both "
            "the same number of channels."
        )
    return surveyed, held


def _environment(method: Method, device: str | torch.device, ranks: Ranks) -> Mapping[str, Any]:
    """Describe the environment on which bit-identical results depend, in addition to the options."""
    kind = torch.device(device).type
    threads = {"threads": torch.get_num_threads()} if kind == "cpu" else {}
    several = {"ranks": ranks.world} if ranks.world > 1 else {}
    return {**versions(), **optimizer_class(method.optimisation).library(), "device": kind, **threads, **several}


def _ignore(*_: object) -> None:
    """Ignore a report; the first rank shows it."""


def _check_request(
    method: Method,
    schedule: Schedule,
    validation: Sequence[ArrayPair],
    log: str | os.PathLike[str] | None,
    run: Run | None,
    ranks: Ranks,
) -> None:
    if method.network.precision == "fp16" and method.optimisation.optimiser != "adamw":
        raise TrainingError(
            f"fp16 needs loss scaling, which {method.optimisation.optimiser} does not support without waiting for the "
            "accelerator at every step; use the optimiser adamw, or train in bf16 or fp32."
        )
    if schedule.steps is not None and 0 in (divided := [schedule.steps_of(part) for part in parts(method)]):
        raise TrainingError(
            f"{method.name} trains in {len(method.stages)} stages ({', '.join(method.stages)}) of at least one step "
            f"each; got {schedule.steps} in total, divided into {' and '.join(map(str, divided))}; give more steps, or "
            "another share for the representation (representation.share)."
        )
    if len(validation) and schedule.validate_every is None:
        raise TrainingError("Validation pairs were given without validate_every; give validate_every too.")
    if log is not None and run is not None:
        raise TrainingError(f"A run keeps its own log, {run.log}; leave out {log}.")
    if schedule.batch_size % ranks.world:
        raise TrainingError(
            f"A batch of {schedule.batch_size} cannot be shared equally among {ranks.world} processes; give a batch "
            f"size that is a multiple of {ranks.world}."
        )


@contextmanager
def _explained_memory_error(method: Method) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The accelerator's memory does not suffice to train {method.name} ({str(error).split('. ')[0]}); try "
            f"{'a larger puzzle factor, ' if method.has_factor else ''}bf16, checkpointing 'block' or smaller volumes."
        ) from None

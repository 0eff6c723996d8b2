"""Training: one loop for every method, which can be interrupted at any moment and continued.

Axes: a volume of a pair (D, H, W) or (C, D, H, W), a batch (N, C, D, H, W), all float32 network values. Steps count
from k = 0.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ppdm.checkpoint import CheckpointError, versions
from ppdm.method import Method
from ppdm.training.augment import Flip
from ppdm.training.batches import Array, ArrayPair, ReadAhead, Survey, batch, moved, stacked, survey
from ppdm.training.deferred import Taken, Unread, patience
from ppdm.training.distributed import ALONE, RankLostError, Ranks
from ppdm.training.log import Log, StepReport, opened_log
from ppdm.training.optimizer import library_of
from ppdm.training.run import Run, RunError
from ppdm.training.schedule import (
    Schedule,
    TrainingError,
    batch_indices,
    learning_rate,
    parts,
    step_generator,
    timed_learning_rate,
)
from ppdm.training.state import State
from ppdm.training.trainer import Training, average_decay
from ppdm.training.validation import validation_loss

__all__ = [
    "Array",
    "ArrayPair",
    "Flip",
    "Interrupted",
    "Run",
    "RunError",
    "Schedule",
    "StepReport",
    "Training",
    "TrainingError",
    "average_decay",
    "batch_indices",
    "fit",
    "learning_rate",
    "step_generator",
    "timed_learning_rate",
    "train",
]


# Pairs whose targets an autoencoder's latents are scaled by; MONAI takes those of the first batch.
_SETTLED_ON = 8


class Interrupted(KeyboardInterrupt):
    """A training was asked to stop and did, after a whole step; the message says what there is to go on from."""


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
    progress: Callable[[StepReport], None] = lambda _: None,
) -> nn.Module:
    """Train a method and return its network with the averaged weights, in evaluation mode.

    On the CPU the same arguments give the same weights bit for bit (with the same torch and number of threads), whether
    the training was interrupted or not: the seed fixes the first weights, the order of the pairs, and the times, noise
    and flips of each step. That holds for a number of steps; how many there are in some minutes, nothing can fix.
    Precision and activation checkpointing are those of ``method.network``.

    In a process group (:func:`ppdm.training.distributed.joined`), the processes train one network together, each on its
    share of every batch; the first process writes the log and the run, and shows the progress.

    Args:
        method: the point in the design space.
        pairs: (source, target) of normalised, finite values, each (D, H, W) or (C, D, H, W); all of one shape unless
            the batch size is 1. A sequence may read its pairs when they are asked for, as
            :class:`ppdm.data.pairs.TrainingSet` does; while a batch is at work, a thread asks for the next, and nobody
            else for any. They are shuffled anew whenever all have been seen.
        steps, minutes, batch_size, accumulate, augment, seed, validate_every: the fields of
            :class:`ppdm.training.schedule.Schedule`; give either steps or minutes.
        device: where the network is trained.
        validation: pairs that the averaged weights are validated on.
        log: a file of JSON lines, written anew, one line a step: step, loss, gradient_norm, learning_rate, seconds,
            steps_per_second; validation_loss where there was one.
        run: a folder to keep checkpoints and the log in, and to continue from; without it, the training is in memory.
        progress: called after every step; also before the first one of a training that is continued, with the last
            one that was done.

    Raises:
        TrainingError: arguments or pairs that cannot be trained with, a loss, gradient or weight that is not finite,
            an accelerator's memory that does not suffice, or a log that cannot be written.
        RankError: another process of the group could not go on.
        RunError: the run's folder cannot be used, or was started with other arguments.
        CheckpointError: a checkpoint cannot be written, or none that is there can be read.
    """
    schedule = Schedule(steps, minutes, batch_size, accumulate, augment, seed, validate_every)
    return train(method, pairs, schedule, device=device, validation=validation, log=log, run=run, progress=progress)


def train(
    method: Method,
    pairs: Sequence[ArrayPair],
    schedule: Schedule,
    *,
    device: str | torch.device = "cpu",
    validation: Sequence[ArrayPair] = (),
    log: str | os.PathLike[str] | None = None,
    run: Run | None = None,
    stop: Callable[[], bool] = lambda: False,
    progress: Callable[[StepReport], None] = lambda _: None,
) -> nn.Module:
    """The same, with a schedule; asked to ``stop``, it ends the step, keeps a checkpoint and raises `Interrupted`."""
    _check_request(method, schedule, validation, log, run)
    ranks = Ranks.here()
    _check_shares(schedule, ranks)
    kept = run if ranks.is_first else None
    with ExitStack() as opened, _memory_in_words(method):
        with ranks.together():
            seen, held = _surveyed(pairs, validation, schedule, digest=kept is not None)
            if kept is not None:
                opened.enter_context(kept)
            training = Training.start(method, seen.channels, schedule.seed, device)
        last = ranks.by_first(lambda: _begin(kept, method, schedule, seen, held, _environment(method, device, ranks)))
        with ranks.together():
            if last is not None:
                assert run is not None
                _restore(training, last, run.folder)
            place = None if not ranks.is_first else log if run is None else run.log
            stream = opened.enter_context(opened_log(place, last.log_bytes if last else 0))
        if not ranks.is_first:
            progress = _unseen
        if last is not None:
            progress(last.report)
        reader = opened.enter_context(_reader(pairs, schedule, training.done, device, ranks))
        unread = Unread(patience(device))

        def told(ranks: Ranks) -> StepReport:
            """Look at the steps that are unread, validate, log and show them; returns the report of the last."""
            for report in unread.read():
                _check_finite(report, method, kept)
                if schedule.validates(report.step, report.share >= 1):
                    stage = method.stages[training.stage]
                    reader.rest()
                    loss = validation_loss(method, training.average, validation, schedule.seed, device, stage, ranks)
                    report = replace(report, validation_loss=loss)
                with ranks.together():
                    stream.write(report)
                    progress(report)
            return report

        with _told_before_an_error(unread, lambda: told(ALONE)):
            for step in _steps(training, pairs, reader, schedule, device, last.report if last else None, ranks):
                unread.add(step)
                due = ranks.any(kept is not None and kept.due(step.report))
                if due or step.ends or unread.is_late or schedule.validates(step.report.step, step.ends):
                    report = told(ranks)
                stopping = ranks.any(stop())
                if stopping and unread:
                    report = told(ranks)
                if unread:
                    continue  # nobody has to know yet
                with ranks.together():
                    _keep(training, report, stream, kept, stopping)
                if stopping and report.share < 1:
                    raise _interrupted(report, kept)
    return training.average


def describe(method: Method, schedule: Schedule) -> dict[str, Any]:
    """What a run is started with, as JSON values, but the pairs.

    Raises:
        ValueError: the method has values that are not of this package.
    """
    return {"method": method.to_dict(), **schedule.describe()}


def _steps(
    training: Training,
    pairs: Sequence[ArrayPair],
    reader: ReadAhead,
    schedule: Schedule,
    device: str | torch.device,
    last: StepReport | None,
    ranks: Ranks,
) -> Iterator[Taken]:
    """Take the steps that are left; whatever is done between them counts as time of the training.

    Nothing here waits for an accelerator, so that it is asked for the next step while it is at work on this one.
    """
    method, seconds = training.method, last.seconds if last else 0.0
    stages = parts(method)
    began = time.perf_counter() - seconds
    resumed = last is not None
    while True:
        part = stages[training.stage]
        if training.done > training.began and schedule.used(part, training.done, seconds):
            if training.is_last:
                return
            reader.rest()
            with ranks.together():
                training.advance(batch([pair], device)[1] for pair in islice(pairs, _SETTLED_ON))
            continue
        rate = schedule.learning_rate(method.optimisation, training.done, seconds, part, training.began)
        generator = step_generator(schedule.seed, training.done, device)
        losses = []
        with ranks.together(), ranks.drawing(generator):
            for read in islice(reader, schedule.accumulate):
                source, target = moved(read, device)
                if schedule.augment is not None:
                    source, target = schedule.augment(source, target, generator)
                losses.append(training.add_gradient(source, target, generator, schedule.accumulate))
        ranks.average_gradients(training.trained)
        with ranks.together():
            norm = training.update(rate)
        loss = ranks.mean(torch.stack(losses).mean())
        # One clock for all ranks: a schedule may follow it.
        seconds = float(ranks.mean(torch.tensor(time.perf_counter() - began, dtype=torch.float64)))
        share = schedule.share(training.done, seconds)
        if not training.is_last:
            share = min(share, part.end)  # so that 1 is the end of all, however slow a first step was
        stage = method.stages[training.stage] if len(stages) > 1 else None
        report = StepReport(
            training.done,
            share,
            math.nan,
            math.nan,
            rate,
            seconds,
            resumed=resumed,
            stage=stage,
            peak_allocated=_peaks(device, ranks),
        )
        yield Taken(report, loss, norm, ends=schedule.used(part, training.done, seconds))
        resumed = False


@contextmanager
def _told_before_an_error(unread: Unread, tell: Callable[[], object]) -> Iterator[None]:
    """The steps before one that fails are in the log, and one that was not finite is the fault that is named."""
    try:
        yield
    except RankLostError:
        raise  # what a rank that is gone had a part in, the device may wait for without end
    except Exception:
        with suppress(RuntimeError):  # of a device that has failed for good
            if unread:
                tell()
        raise


def _reader(
    pairs: Sequence[ArrayPair], schedule: Schedule, done: int, device: str | torch.device, ranks: Ranks
) -> ReadAhead:
    """This rank's share of every batch that is left."""
    batches = batch_indices(len(pairs), schedule.batch_size, schedule.seed)
    last = None if schedule.steps is None else schedule.steps * schedule.accumulate
    left = islice(batches, done * schedule.accumulate, last)
    return ReadAhead(map(ranks.share, left), lambda indices: stacked([pairs[i] for i in indices], device))


def _keep(training: Training, report: StepReport, log: Log, run: Run | None, stopping: bool) -> None:
    """Write a checkpoint where one is due; the last weights must be numbers, whether they are written or not."""
    ended = report.share >= 1
    due = run is not None and (stopping or run.due(report))
    if (ended or due) and not training.is_finite():
        raise _diverged(report, "a weight is not finite", training.method, run)
    if run is not None and due:
        run.save(State(report, log.secure(), training.tensors()))


def _interrupted(report: StepReport, run: Run | None) -> Interrupted:
    kept = "nothing was kept of it" if run is None else run.last_checkpoint()
    return Interrupted(f"stopped after step {report.step} as asked; {kept}")


def _begin(
    run: Run | None,
    method: Method,
    schedule: Schedule,
    seen: Survey,
    held: Survey | None,
    environment: Mapping[str, Any],
) -> State | None:
    """Take the run's folder, if there is one, and find the last checkpoint in it."""
    if run is None:
        return None
    looked_at = {"pairs": seen.describe(), "validation_pairs": held.describe() if held else None}
    run.begin(describe(method, schedule) | looked_at, environment)
    return run.latest()


def _restore(training: Training, state: State, folder: Path) -> None:
    try:
        training.restore(state.tensors, state.report.step)
    except ValueError as error:
        raise CheckpointError(
            f"The checkpoint of step {state.report.step} in {folder} is of another network: {error}; files of two "
            "runs were mixed, start anew in another folder."
        ) from None


def _surveyed(
    pairs: Sequence[ArrayPair], validation: Sequence[ArrayPair], schedule: Schedule, digest: bool
) -> tuple[Survey, Survey | None]:
    seen = survey(pairs, schedule.batch_size, digest=digest)
    if schedule.validate_every is None:
        return seen, None
    held = survey(validation, digest=digest, purpose="validate on")
    if held.channels != seen.channels:
        raise TrainingError(f"Pairs to train on have {seen.channels} channels, those to validate on {held.channels}.")
    return seen, held


def _environment(method: Method, device: str | torch.device, ranks: Ranks) -> Mapping[str, Any]:
    """What bits depend on, beside what was asked for."""
    kind = torch.device(device).type
    threads = {"threads": torch.get_num_threads()} if kind == "cpu" else {}
    several = {"ranks": ranks.world} if ranks.world > 1 else {}
    return {**versions(), **library_of(method.optimisation), "device": kind, **threads, **several}


def _check_shares(schedule: Schedule, ranks: Ranks) -> None:
    if schedule.batch_size % ranks.world:
        raise TrainingError(
            f"A batch of {schedule.batch_size} cannot be shared equally among {ranks.world} processes; give a batch "
            f"size that is a multiple of {ranks.world}."
        )


def _peaks(device: str | torch.device, ranks: Ranks) -> tuple[int, ...] | None:
    """Bytes that each of several ranks has had allocated at most so far, where a GPU counts them."""
    if ranks.world == 1 or torch.device(device).type != "cuda":
        return None
    return tuple(ranks.gather(torch.cuda.max_memory_allocated()))


def _unseen(report: StepReport) -> None:
    """A step that another rank shows."""


def _check_request(
    method: Method,
    schedule: Schedule,
    validation: Sequence[ArrayPair],
    log: str | os.PathLike[str] | None,
    run: Run | None,
) -> None:
    if method.network.precision == "fp16":
        raise TrainingError("Gradients vanish in fp16 without loss scaling; train in bf16 or fp32.")
    if schedule.steps is not None and schedule.steps < len(method.stages):
        raise TrainingError(
            f"{method.name} trains in {len(method.stages)} stages ({', '.join(method.stages)}), each of a step at "
            f"least; got {schedule.steps} in all."
        )
    if len(validation) and schedule.validate_every is None:
        raise TrainingError("Pairs to validate on are of use with validate_every alone; give that too.")
    if log is not None and run is not None:
        raise TrainingError(f"A run keeps its own log, {run.log}; leave out {log}.")


def _check_finite(report: StepReport, method: Method, run: Run | None) -> None:
    if not (math.isfinite(report.loss) and math.isfinite(report.gradient_norm)):
        what = f"the loss is {report.loss} and the norm of the gradient {report.gradient_norm}"
        raise _diverged(report, what, method, run)


def _diverged(report: StepReport, what: str, method: Method, run: Run | None) -> TrainingError:
    precision = method.network.precision
    remedy = "" if precision == "fp32" else f"precision fp32 instead of {precision}, or "
    kept = "" if run is None else f"Nothing was written after that; {run.last_checkpoint()}. "
    return TrainingError(
        f"Training stopped at step {report.step}: {what}, at a learning rate of {report.learning_rate:g}. {kept}"
        f"Try {remedy}a learning rate below {method.optimisation.learning_rate:g}."
    )


@contextmanager
def _memory_in_words(method: Method) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"The accelerator's memory does not suffice to train {method.name} ({str(error).split('. ')[0]}); try a "
            "larger puzzle factor, bf16, checkpointing 'block' or smaller volumes."
        ) from None

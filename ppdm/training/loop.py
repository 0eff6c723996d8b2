"""Training: one loop for every method; it can be interrupted at any moment and resumed.

Shapes: a volume of a pair is (D, H, W) or (C, D, H, W), a batch is (N, C, D, H, W); all are float32 network values.
Steps are counted from k = 0.
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


# Number of pairs whose targets determine the scale of an autoencoder's latents; MONAI uses the first batch.
_SETTLED_ON = 8


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
            the batch size is 1. A sequence may read its pairs on access, as :class:`ppdm.data.pairs.TrainingSet` does:
            a thread loads the next batch during the current step, and nothing else accesses the sequence meanwhile.
            The pairs are reshuffled after each epoch.
        steps, minutes, batch_size, accumulate, augment, seed, validate_every: the fields of
            :class:`ppdm.training.schedule.Schedule`; give either steps or minutes.
        device: device on which the network is trained.
        validation: pairs on which the averaged weights are validated.
        log: a file of JSON lines, overwritten, with one line per step: step, loss, gradient_norm, learning_rate,
            seconds, steps_per_second; validation_loss after a validation.
        run: folder for checkpoints and the log, from which the run can be resumed; without it, nothing is saved.
        progress: called with the report of every step; a resumed run first calls it with the last completed step.

    Raises:
        TrainingError: the arguments or pairs are invalid, a loss, gradient or weight is not finite, the accelerator
            runs out of memory, or the log cannot be written.
        RankError: another process of the group failed.
        RunError: the run's folder cannot be used, or the run was started with other arguments.
        CheckpointError: a checkpoint cannot be written, or none of the existing checkpoints can be read.
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
    """Train as :func:`fit` does, given a schedule.

    When ``stop`` returns true, the loop finishes the step, saves a checkpoint and raises `Interrupted`.
    """
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
            """Read, validate, log and report the pending steps; return the report of the last one."""
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
                    continue  # losses are still on the device; read them later
                with ranks.together():
                    _keep(training, report, stream, kept, stopping)
                if stopping and report.share < 1:
                    raise _interrupted(report, kept)
    return training.average


def describe(method: Method, schedule: Schedule) -> dict[str, Any]:
    """Describe the method and the schedule of a run as JSON values, without the pairs.

    Raises:
        ValueError: the method has values that are not from this package.
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
    """Run the remaining steps; time that the caller spends between them counts as training time.

    Nothing here waits for the accelerator, so that the host queues the next step while the device runs this one.
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
        # All ranks use one clock, because a schedule may depend on it.
        seconds = float(ranks.mean(torch.tensor(time.perf_counter() - began, dtype=torch.float64)))
        share = schedule.share(training.done, seconds)
        if not training.is_last:
            share = min(share, part.end)  # 1 means the end of the last stage, even if a first step was slow
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
    """On an error, log the pending steps first; a non-finite value in one of them is then the reported error."""
    try:
        yield
    except RankLostError:
        raise  # do not read: the device may wait forever for an operation that needs the lost rank
    except Exception:
        with suppress(RuntimeError):  # raised if the device has failed permanently
            if unread:
                tell()
        raise


def _reader(
    pairs: Sequence[ArrayPair], schedule: Schedule, done: int, device: str | torch.device, ranks: Ranks
) -> ReadAhead:
    """Read this rank's share of every remaining batch."""
    batches = batch_indices(len(pairs), schedule.batch_size, schedule.seed)
    last = None if schedule.steps is None else schedule.steps * schedule.accumulate
    left = islice(batches, done * schedule.accumulate, last)
    return ReadAhead(map(ranks.share, left), lambda indices: stacked([pairs[i] for i in indices], device))


def _keep(training: Training, report: StepReport, log: Log, run: Run | None, stopping: bool) -> None:
    """Write a checkpoint if one is due; the final weights must be finite, even if they are not written."""
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
    """Prepare the run's folder, if there is one, and load its latest checkpoint."""
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
    """Describe the environment on which bit-identical results depend, in addition to the options."""
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
    """Return the peak allocated bytes of each rank's GPU so far; None for a single rank or without CUDA."""
    if ranks.world == 1 or torch.device(device).type != "cuda":
        return None
    return tuple(ranks.gather(torch.cuda.max_memory_allocated()))


def _unseen(report: StepReport) -> None:
    """Ignore a report; the first rank shows it."""


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

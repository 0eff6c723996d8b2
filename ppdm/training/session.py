"""One training run in progress: what a step does, what it reports, and when it is saved."""

import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice

import torch
from torch import nn

from ppdm.training.batches import ArrayPair, ReadAhead, batch, moved
from ppdm.training.deferred import PendingReports, reading_interval
from ppdm.training.distributed import SINGLE_RANK, RankLostError, Ranks
from ppdm.training.log import Log, StepReport
from ppdm.training.run import Run
from ppdm.training.schedule import Part, Schedule, TrainingError, parts, step_generator
from ppdm.training.state import State
from ppdm.training.trainer import Training
from ppdm.training.validation import compared_with_untrained, validation_loss

# Number of training pairs whose targets determine the scale of an autoencoder's latents; MONAI uses the first batch.
_CALIBRATION_PAIRS = 8

# Number of training pairs on which the result is compared with an untrained network.
_COMPARED_ON = 4


@dataclass(eq=False)
class Session:
    """One training run in one process; :meth:`step`, :meth:`report` and :meth:`save` are called in this order.

    Attributes:
        trainer: weights, their average, and the optimiser.
        reader: batches of this process that remain to be trained on.
        log: log of the steps.
        run: folder for checkpoints; only the first process has one.
        ranks: processes that train together.
        schedule: duration, batches and learning rate.
        pairs, validation: pairs for training and for validation.
        device: device of the network.
        show: called with the report of every step.
        on_best: called with the report and the averaged network when the validation loss is the lowest so far.
        keep_after: numbers of steps after which `on_keep` is called, if they are in the last stage.
        on_keep: called with the report and the averaged network, too.
        lowest: lowest validation loss so far.
        last: report of the last step whose loss is known, if any.
        seconds: training time so far; the same on all ranks, because a schedule may depend on it. Time that the caller
            spends between steps counts.
    """

    trainer: Training
    reader: ReadAhead
    log: Log
    run: Run | None
    ranks: Ranks
    schedule: Schedule
    pairs: Sequence[ArrayPair]
    validation: Sequence[ArrayPair]
    device: str | torch.device
    show: Callable[[StepReport], None]
    on_best: Callable[[StepReport, nn.Module], None]
    keep_after: Collection[int] = ()
    on_keep: Callable[[StepReport, nn.Module], None] = lambda report, network: None
    last: StepReport | None = None
    lowest: float = math.inf
    seconds: float = field(init=False)

    def __post_init__(self) -> None:
        self.seconds = self.last.seconds if self.last else 0.0
        self._began = time.perf_counter() - self.seconds
        self._resumed = self.last is not None
        self._pending = PendingReports(reading_interval(self.device))

    @property
    def ended(self) -> bool:
        """Whether the last stage has used its part of the budget."""
        return self.trainer.is_last and self._stage_ended

    @property
    def needs_report(self) -> bool:
        """Whether the losses must be read now: for a checkpoint, a validation, a model to keep, or the display."""
        saves = self.ranks.any(self._saves)
        asked = self._stage_ended or self._validates or self._keeps
        return saves or asked or self._pending.is_due(self.seconds)

    @property
    def is_reported(self) -> bool:
        """Whether the reports of all steps were made."""
        return not self._pending

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step, if the stage has not ended."""
        trainer = self.trainer
        return self.schedule.learning_rate(trainer.method, trainer.done, self.seconds, self._part, trainer.began)

    def step(self) -> None:
        """Update the weights once. On an accelerator, this only queues the step: nothing here waits for the device."""
        if self._stage_ended:
            self._advance()
        trainer, schedule, ranks = self.trainer, self.schedule, self.ranks
        rate = self.learning_rate
        generator = step_generator(schedule.seed, trainer.done, self.device)
        losses = []
        with ranks.together(), ranks.sharing_samples(generator):
            for read in islice(self.reader, schedule.accumulate):
                source, target = moved(read, self.device)
                if schedule.augment is not None:
                    source, target = schedule.augment(source, target, generator)
                losses.append(trainer.add_gradient(source, target, generator, schedule.accumulate))
        for module in trainer.trained_modules:
            ranks.average_gradients(module)
        with ranks.together():
            norm = trainer.update(rate)
        loss = ranks.mean(torch.stack(losses).mean())
        self.seconds = float(ranks.mean(torch.tensor(time.perf_counter() - self._began, dtype=torch.float64)))
        self._pending.add(self._report(rate), loss, norm)
        self._resumed = False

    def report(self, ranks: Ranks | None = None) -> None:
        """Read the losses of the pending steps, validate if it is time, and log and show the reports.

        Args:
            ranks: processes that call this together; all of the session if absent.

        Raises:
            TrainingError: a loss or a gradient is not finite, overflow in fp16 persists, or the log cannot be written.
        """
        ranks = ranks or self.ranks
        before = self._skipped
        for report in map(self._checked, self._pending.read(self.seconds)):
            if report.step == self.trainer.done and self._validates:
                loss = self._validation_loss(ranks)
                if not math.isfinite(loss):
                    raise self._diverged(report, f"the validation loss is {loss}")
                # Losses of different stages cannot be compared, and only the last stage gives a complete method.
                report = replace(report, validation_loss=loss, best=self.trainer.is_last and loss < self.lowest)
                self.lowest = loss if report.best else self.lowest
            if report.step == self.trainer.done and self.ended:
                report = self._compared(report, ranks)
            with ranks.together():
                if report.best:
                    self.on_best(report, self.trainer.average)
                if report.step == self.trainer.done and self._keeps:
                    self.on_keep(report, self.trainer.average)
                self.log.write(report)
                self.show(report)
            self.last = report
        # Each overflow halves the scale. It is read only after an overflow: the read waits for the device.
        if self.last and self._skipped > before and (scale := self.trainer.scaler.get_scale()) < 1:
            raise self._diverged(self.last, f"gradients still overflowed in fp16 when the loss scale fell to {scale:g}")

    @property
    def _skipped(self) -> int:
        return (self.last and self.last.skipped) or 0

    def _checked(self, report: StepReport) -> StepReport:
        """Check the values of a report; in fp16, mark a step as skipped if its gradients overflowed.

        Raises:
            TrainingError: the loss is not finite, or the gradient norm in another precision.
        """
        assert report.gradient_norm is not None
        if math.isfinite(report.loss) and math.isfinite(report.gradient_norm):
            return replace(report, skipped=self._skipped or None)
        if not self.trainer.scaler.is_enabled() or not math.isfinite(report.loss):
            what = f"the loss is {report.loss} and the norm of the gradient {report.gradient_norm}"
            raise self._diverged(report, what)
        return replace(report, gradient_norm=None, skipped=self._skipped + 1)

    def save(self, stopping: bool = False) -> None:
        """Write a checkpoint of the last reported step if one is due or the training is stopping.

        Raises:
            TrainingError: a weight is not finite; the final weights are checked even if they are not written.
            CheckpointError: the checkpoint cannot be written.
        """
        assert self.last is not None
        with self.ranks.together():
            saves = self._saves or (stopping and self.run is not None)
            if (self.ended or saves) and not self.trainer.is_finite():
                raise self._diverged(self.last, "a weight is not finite")
            if self.run is not None and saves:
                self.run.save(State(self.last, self.log.flush(), self.trainer.tensors()))

    @contextmanager
    def reporting_errors(self) -> Iterator[None]:
        """On an error, report the pending steps first; a non-finite value in one of them is then the error raised."""
        try:
            yield
        except RankLostError:
            raise  # do not read: the device may wait forever for an operation that needs the lost rank
        except Exception:
            with suppress(RuntimeError):  # raised if the device has failed permanently
                self.report(SINGLE_RANK)
            raise

    @property
    def _part(self) -> Part:
        return parts(self.trainer.method)[self.trainer.stage]

    @property
    def _stage_ended(self) -> bool:
        trainer = self.trainer
        return trainer.done > trainer.began and self.schedule.used(self._part, trainer.done, self.seconds)

    @property
    def _saves(self) -> bool:
        return self.run is not None and self.run.due(self.trainer.done, self.seconds, self.ended)

    @property
    def _validates(self) -> bool:
        return self.schedule.validates(self.trainer.done, self.ended)

    @property
    def _keeps(self) -> bool:
        return self.trainer.is_last and self.trainer.done in self.keep_after

    def _advance(self) -> None:
        self.reader.wait_until_idle()
        with self.ranks.together():
            self.trainer.advance(batch([pair], self.device)[1] for pair in islice(self.pairs, _CALIBRATION_PAIRS))

    def _report(self, rate: float) -> Callable[..., StepReport]:
        """Return a function of the loss and the gradient norm that makes the report of the last step."""
        trainer = self.trainer
        share = self.schedule.share(trainer.done, self.seconds)
        return partial(
            StepReport,
            step=trainer.done,
            # 1 means the end of the last stage, even if the first step of a stage was slow.
            share=share if trainer.is_last else min(share, self._part.end),
            learning_rate=rate,
            seconds=self.seconds,
            resumed=self._resumed,
            stage=trainer.method.stages[trainer.stage] if len(trainer.method.stages) > 1 else None,
            peak_allocated=peak_allocated(self.device, self.ranks),
        )

    def _validation_loss(self, ranks: Ranks) -> float:
        self.reader.wait_until_idle()
        method, stage = self.trainer.method, self.trainer.method.stages[self.trainer.stage]
        return validation_loss(
            method, self.trainer.average, self.validation, self.schedule.seed, self.device, stage, ranks
        )

    def _compared(self, report: StepReport, ranks: Ranks) -> StepReport:
        """Return the last report with the loss of the result, and the loss that needs no training."""
        self.reader.wait_until_idle()
        reached, untrained = compared_with_untrained(
            self.trainer.method,
            self.trainer.average,
            list(islice(self.pairs, _COMPARED_ON)),
            self.schedule.seed,
            self.device,
            ranks,
        )
        return replace(report, average_loss=reached, untrained_loss=untrained)

    def _diverged(self, report: StepReport, what: str) -> TrainingError:
        method, run = self.trainer.method, self.run
        precision = method.network.precision
        wider = {"fp32": "", "bf16": "fp32", "fp16": "bf16 or fp32"}[precision]
        remedy = f"precision {wider} instead of {precision}, or " if wider else ""
        kept = "" if run is None else f"Nothing was written after that; {run.last_checkpoint()}. "
        return TrainingError(
            f"Training stopped at step {report.step}: {what}, at a learning rate of {report.learning_rate:g}. {kept}"
            f"Try {remedy}a learning rate below {method.learning_rate:g}."
        )


def peak_allocated(device: str | torch.device, ranks: Ranks) -> tuple[int, ...] | None:
    """Return the peak allocated bytes of each rank's GPU so far; None for a single rank or without CUDA."""
    if ranks.world == 1 or torch.device(device).type != "cuda":
        return None
    return tuple(ranks.gather(torch.cuda.max_memory_allocated()))

"""Training of a run in its folder, with progress and advice."""

import math
import os
import signal
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ppdm import Method
from ppdm.simulation.generation import available_cores
from ppdm.training.distributed import Ranks, joined
from ppdm.training.log import StepReport, best_validation, untrained_note
from ppdm.training.loop import Interrupted
from ppdm.training.loss_curve import save_loss_curve
from ppdm.training.on_manifest import finished_steps, train_sets, training_sets, with_sources_of
from ppdm.training.run import BEST, Run
from ppdm.training.schedule import Schedule
from ppdm.training.tensorboard import TensorBoard
from ppdm_bench.commands.pair_sources import ProgressCallback, Subjects
from ppdm_bench.commands.terminal import ensure_writable, notify, progress
from ppdm_bench.devices import training_device
from ppdm_bench.units import plural

CURVE = "loss.png"


def train_with_progress(
    method: Method,
    subjects: Subjects,
    schedule: Schedule,
    run: Run,
    device: str,
    threads: int | None,
    board: Path | None,
    init_from: Path | None,
) -> str:
    """Train with a progress bar and advice; return a summary, which is empty in all processes except the first.

    Args:
        method, subjects, schedule, run, init_from: as for :func:`train_run`.
        device: auto, cuda or cpu.
        threads: CPU threads; None keeps PyTorch's default.
        board: folder for TensorBoard; None writes nothing.

    Raises:
        Interrupted: a signal was received.
    """
    with joined() as ranks, progress() as bar, ExitStack() as opened:
        where = training_device(device, ranks)
        for advice in filter(None, (use_threads(threads, where), advice_on_validation(schedule))):
            notify(advice)
        followers: list[Callable[[StepReport], None]] = [ProgressLines(notify)] if bar.disable else []
        if board is not None and ranks.is_first:
            followers.insert(0, opened.enter_context(TensorBoard(board)))
        shown = bar.add_task("reading the scans", total=None)

        def preparing(done: int, total: int) -> None:
            bar.update(shown, completed=done, total=total, description="making subjects")

        def show(report: StepReport) -> None:
            by_time = schedule.steps is None
            done, total = (report.seconds, 60 * (schedule.minutes or 0)) if by_time else (report.step, schedule.steps)
            text = f"loss {report.loss:.4f}  {report.steps_per_second:.2f} steps/s  {memory_in_use(where)}"
            bar.update(shown, completed=done, total=total, description=text)
            for follow in followers:
                follow(report)

        result = train_run(
            method, subjects, schedule, run, where, preparing, show, init_from=init_from, standalone=True
        )
    return result if ranks.is_first else ""


def train_run(
    method: Method,
    subjects: Subjects,
    schedule: Schedule,
    run: Run,
    device: str,
    preparing: ProgressCallback,
    show: Callable[[StepReport], None],
    *,
    init_from: Path | None = None,
    standalone: bool = False,
    keep_after: Collection[int] = (),
) -> str:
    """Train on the pairs of the training split, save the run, and return a summary of the result.

    With several ranks, the first one locks the folder, saves the run and returns the summary.

    Args:
        method: the point in the design space.
        subjects: source of the pairs.
        schedule: duration, batches and seed.
        run: the folder, created after the pairs are checked: ``model.safetensors``, ``model.json``, ``log.jsonl``,
            ``options.json``, ``best`` (the model with the lowest validation loss, if there is a validation), and
            checkpoints.
        device: device on which the network is trained.
        preparing: called with the number of phantoms that exist and the number required.
        show: called after every step.
        init_from: a run, or the .safetensors file in it, whose weights replace the random initial weights.
        standalone: whether this is a run of ``train`` and not one of many trials. It then keeps its last checkpoint, so
            that it can continue with more steps, and its losses are plotted in ``loss.png``.
        keep_after: numbers of steps after which the model is kept, see :func:`ppdm.training.on_manifest.kept_model`.

    Raises:
        RunError: the folder contains a run that must not be resumed, or that was started with other options.
        Interrupted: Ctrl-C or SIGTERM was received; there is a checkpoint to resume from.
        OSError: the folder cannot be written.
        ValueError: a manifest, a volume or the training is invalid; the message gives the cause.
    """
    ranks = Ranks.here()
    with ranks.together():
        method = with_sources_of(method, subjects.sources())
    if steps := ranks.by_first(lambda: finished_steps(run, method, schedule, keep_last=standalone)):
        return f"{run.folder} is complete: {plural(steps, 'step')} done, nothing is left to do"
    with ranks.together():
        pairs, held = training_sets(subjects.pairs(preparing), schedule, str(subjects), resample=subjects.resample)
    options: dict[str, Any] = {"device": device, "init_from": init_from, "keep_last": standalone, "progress": show}
    options["keep_after"] = keep_after
    with ExitStack() as opened:
        ranks.by_first(lambda: _lock(run, opened))
        try:
            with _stop_requested() as stop:
                done = train_sets(method, pairs, held, schedule, run, **options, stop=stop)
        except Interrupted:
            if standalone and ranks.is_first:
                _draw_losses(run)
            raise
    if done is None:
        return ""
    if standalone:
        _draw_losses(run)
    path, end = done
    return _summary(end, len(pairs), path, run)


class ProgressLines:
    """Progress as lines of text, for the logs of batch jobs: by default one line per half minute of training.

    Args:
        write: called with each line.
        interval: seconds between lines.
    """

    def __init__(self, write: Callable[[str], None], interval: float = 30.0) -> None:
        self._write, self._interval, self._due = write, interval, interval

    def __call__(self, report: StepReport) -> None:
        """Write a line if the interval has passed since the last one."""
        if report.seconds < self._due:
            return
        self._due = report.seconds + self._interval
        left = timedelta(seconds=round(report.remaining))
        validated = "" if report.validation_loss is None else f", validation loss {report.validation_loss:.4f}"
        self._write(
            f"step {report.step} ({min(report.share, 1):.0%}), loss {report.loss:.4f}{validated}, "
            f"{report.steps_per_second:.2f} steps/s, {left} left"
        )


def use_threads(threads: int | None, device: str) -> str:
    """Set the number of CPU threads, if one is given; return advice if more threads than idle cores are used."""
    if threads is not None:
        torch.set_num_threads(threads)
    return advice_on_threads(torch.get_num_threads(), os.getloadavg()[0], available_cores()) if device == "cpu" else ""


def advice_on_threads(threads: int, load: float, cores: int) -> str:
    """Return a sentence if training would use more threads than there are idle cores; else an empty string.

    Args:
        threads: threads of the training.
        load: mean number of running and waiting processes in the last minute.
        cores: processor cores.
    """
    idle = max(1, math.floor(cores - load))
    if threads <= idle:
        return ""
    return (
        f"this machine is loaded (load {load:.1f} on {cores} cores), and training uses {threads} threads: threads "
        f"without a core of their own wait for one another and can be many times slower; try --threads {idle}"
    )


def advice_on_validation(schedule: Schedule) -> str:
    """Return a sentence if the training ends before the first requested validation; else an empty string."""
    every, steps = schedule.validate_every, schedule.steps
    if every is None or steps is None or every <= steps:
        return ""
    return (
        f"{steps} steps are fewer than the {every} of --validate-every, so the only validation is that after the last "
        f"step; give a smaller number, such as {max(1, steps // 10)}, to keep the best of several models"
    )


def memory_in_use(device: str) -> str:
    """Return the memory of this process in words: allocated on the GPU, or resident on the CPU."""
    if device == "cuda":
        return f"{torch.cuda.memory_allocated() / 2**30:.2f} GiB allocated"
    counted = Path("/proc/self/statm")
    if not counted.exists():
        return ""
    pages = int(counted.read_text().split()[1])
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.2f} GiB resident"


def _draw_losses(run: Run) -> None:
    """Plot the losses; if the file cannot be written, warn and continue."""
    try:
        save_loss_curve(run.log, run.folder / CURVE)
    except OSError as error:
        warnings.warn(f"{run.folder / CURVE} cannot be written ({error.strerror or error})", stacklevel=2)


def _lock(run: Run, opened: ExitStack) -> None:
    ensure_writable(run.folder)
    opened.enter_context(run)


def _summary(end: StepReport, pairs: int, path: Path, run: Run) -> str:
    validated = "" if end.validation_loss is None else f", validation loss {end.validation_loss:.4f}"
    done = f"{plural(end.step, 'step')} in {end.seconds:.1f} s on {plural(pairs, 'pair')}"
    lines = [f"{done}, last loss {end.loss:.4f}{validated}"]
    if end.skipped:
        lines.append(f"{end.skipped} of these steps changed no weights, because gradients overflowed in fp16")
    if note := untrained_note(run.log):
        lines.append(f"{note} (--learning-rate)")
    if best := best_validation(run.log):
        lines.append(f"lowest validation loss {best[1]:.4f} after step {best[0]}: {run.folder / BEST}")
    return "\n".join([*lines, f"written: {path}, {path.with_suffix('.json')}, {run.log}"])


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """Yield a function that reports whether Ctrl-C or SIGTERM arrived; a second signal ends the process at once."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)
        restore()

    usual = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    try:
        yield lambda: bool(came)
    finally:
        restore()

"""``ppdm-bench train``: a method, pairs, a run's folder."""

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from ppdm import Method
from ppdm.checkpoint import NAME, CheckpointError, Trained, load, save
from ppdm.data.manifest import Pair
from ppdm.data.pairs import PairsError, TrainingSet
from ppdm.training.distributed import Ranks
from ppdm.training.log import StepReport
from ppdm.training.loop import describe, train
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule
from ppdm_bench.commands.pair_sources import Progress, Subjects
from ppdm_bench.commands.terminal import writable


def train_run(
    method: Method,
    subjects: Subjects,
    schedule: Schedule,
    run: Run,
    device: str,
    preparing: Progress = lambda done, total: None,
    show: Callable[[StepReport], None] = lambda report: None,
) -> str:
    """Train on the pairs of the training split, save the run, and report the result.

    Of several ranks, the first takes the folder, saves the run and has something to say.

    Args:
        method: the point in the design space.
        subjects: where the pairs come from.
        schedule: how long and in what portions.
        run: the folder, made once the pairs are known to be sound: ``model.safetensors``, ``model.json``,
            ``log.jsonl``, ``options.json``, and checkpoints while it is trained.
        device: where the network is trained.
        preparing: called with the phantoms that are there and those that are wanted.
        show: called after every step.

    Raises:
        RunError: the folder holds a run that is not to be continued, or was started with other options.
        Interrupted: Ctrl-C or SIGTERM came; there is a checkpoint to go on from.
        OSError: the folder cannot be written.
        ValueError: a manifest, a volume or a training that cannot be, in words.
    """
    ranks = Ranks.here()
    if steps := ranks.by_first(lambda: _steps_of_finished(run, describe(method, schedule))):
        return f"{run.folder} is complete: {steps} steps were done; nothing is left to do"
    with ranks.together():
        pairs, held = _training_sets(subjects, schedule, preparing)
    last: list[StepReport] = []

    def progress(report: StepReport) -> None:
        last[:] = [report]
        show(report)

    with ExitStack() as taken:
        ranks.by_first(lambda: _take(run, taken))
        with _stoppable() as stop:
            network = train(
                method, pairs, schedule, device=device, validation=held, run=run, stop=stop, progress=progress
            )
        if not ranks.is_first:
            return ""
        end = last[0]
        path = save(run.folder, Trained(method, network, pairs.scaling, pairs.spacing, end.step, schedule.seed))
        run.clear()
    return _summary(end, len(pairs), path, run.log)


def memory_in_use(device: str) -> str:
    """The memory of this process: allocated on the GPU, or resident on the CPU."""
    if device == "cuda":
        return f"{torch.cuda.memory_allocated() / 2**30:.2f} GiB allocated"
    counted = Path("/proc/self/statm")
    if not counted.exists():
        return ""
    pages = int(counted.read_text().split()[1])
    return f"{pages * os.sysconf('SC_PAGE_SIZE') / 2**30:.2f} GiB resident"


def _steps_of_finished(run: Run, asked: Mapping[str, Any]) -> int | None:
    """The steps of a finished run with the same options; leftovers of a later kill are removed."""
    run.check(asked)  # a method that cannot be saved is refused before the first step
    if not run.resume or not (run.folder / NAME).exists():
        return None
    try:
        trained = load(run.folder)
    except CheckpointError:  # it was killed between the two files of the model: the last checkpoint is there still
        return None
    with run:
        run.clear()
    return trained.steps


def _take(run: Run, taken: ExitStack) -> None:
    writable(run.folder)
    taken.enter_context(run)


def _training_sets(
    subjects: Subjects, schedule: Schedule, preparing: Progress
) -> tuple[TrainingSet, TrainingSet | tuple[()]]:
    pairs = subjects.pairs(preparing)
    chosen = _of_split(pairs, "train", subjects, "mark some rows with it")
    if schedule.validate_every is None:
        return TrainingSet(chosen, resample=subjects.resample), ()
    held = _of_split(pairs, "val", subjects, "validation needs some: add subjects, or leave --validate-every out")
    training_set = TrainingSet(chosen, resample=subjects.resample)
    return training_set, TrainingSet(held, resample=subjects.resample, scaling=training_set.scaling)


def _of_split(pairs: list[Pair], split: str, subjects: Subjects, mend: str) -> list[Pair]:
    chosen = [pair for pair in pairs if pair.split == split]
    if not chosen:
        raise PairsError(f"{subjects} has no pairs in the split {split!r}; {mend}.")
    return chosen


def _summary(end: StepReport, pairs: int, path: Path, log: Path) -> str:
    validated = "" if end.validation_loss is None else f", validation loss {end.validation_loss:.4f}"
    return (
        f"{end.step} steps in {end.seconds:.1f} s on {pairs} pairs, last loss {end.loss:.4f}{validated}\n"
        f"written: {path}, {path.with_suffix('.json')}, {log}"
    )


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM arrived. The first one ends the current step, the second one the process."""
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

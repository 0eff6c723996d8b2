"""Run folder: checkpoints and log of a training run that can be interrupted at any moment and resumed bit for bit.

``RUN/options.json`` holds the options of the run. ``RUN/state-000200.safetensors`` holds the weights, their average and
the optimiser's state after 200 steps. ``RUN/state-000200.json`` holds the progress and the SHA-256 of both files.
Random numbers need no saved state: they depend only on the seed and the step (:mod:`ppdm.training.schedule`).

A killed process can leave behind:

- incomplete files whose names start with a dot; a resume removes them;
- tensors without their JSON file, which is moved into place last; they do not count as a checkpoint;
- one extra complete checkpoint, because the older one is removed, JSON first, after the newer one is on the disk.

The newest JSON file therefore always belongs to a complete checkpoint. If the disk has lost or changed part of it, the
SHA-256 check fails, and the checkpoint before it is used; the last two are kept. Nothing in these files is executed.

A finished run whose last checkpoint was kept can be given more steps. Its options are rewritten before the first of
them, so that from then on it is an interrupted run of the new number of steps.
"""

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout

from ppdm.atomic_io import leftovers, write_together
from ppdm.checkpoint import NAME, CheckpointError
from ppdm.training.state import State, read_state, write_state

SCHEMA = 1
LOG, OPTIONS = "log.jsonl", "options.json"
BEST, AFTER = "best", "after"  # folders of models that training keeps: the best one, and those after some steps

_KEPT = 2
_DIFFERENCES_SHOWN = 3


class RunError(ValueError):
    """A folder cannot be used for a run, or not for this one; the message gives the cause and a remedy."""


class Run:
    """Folder of one training run; as a context manager, it locks the folder against other processes.

    Args:
        folder: path of the folder; it is created on entering the context.
        resume: resume the run in the folder, if there is one; without it, a folder that holds a run is rejected.
        save_steps: number of steps between checkpoints.
        save_minutes: number of minutes between checkpoints. There is always a checkpoint after the last step.
        asked: additional options that must be equal on resume, besides the method, the schedule and the pairs, as JSON
            values; for example the name of a task.
        notes: information about the run that may change on resume, such as the path of a manifest.

    Raises:
        RunError: on entering the context, another process trains in the folder, or it cannot be written.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        resume: bool = False,
        save_steps: int | None = None,
        save_minutes: float | None = 5.0,
        asked: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.resume = Path(folder), resume
        self.save_steps, self.save_minutes = save_steps, save_minutes
        self.asked, self.notes = dict(asked or {}), dict(notes or {})
        self.log = self.folder / LOG
        self.extended_from: int | None = None  # steps of the finished run that this one continues with more steps
        self._lock = FileLock(self.folder / ".lock")
        self._sound: list[Path] = []  # checkpoints that this process has read or written
        self._saved_at = 0.0

    def __enter__(self) -> Self:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"Another process is training in {self.folder}; wait for it, or give another folder."
            ) from None
        except OSError as error:
            raise self._unwritable(error) from None
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def check(self, asked: Mapping[str, Any]) -> None:
        """Check that the folder holds no run, or one with the same options that may be resumed.

        A finished run whose last checkpoint was kept may also be given more steps.

        Args:
            asked: options as JSON values; options that are not available yet may be left out.

        Raises:
            RunError: the folder holds a run, and resume was not requested or the options differ.
        """
        there = [name for name in (NAME, "model.json", LOG, OPTIONS) if (self.folder / name).exists()]
        there += [path.name for path in self._states()]
        if there and not self.resume:
            raise RunError(
                f"{self.folder} holds a run already ({', '.join(there)}); resume it, give another folder, or delete "
                "these files first."
            )
        if there:
            self._compare(json.loads(json.dumps({**self.asked, **asked})))  # as read back: tuples become lists

    def begin(self, asked: Mapping[str, Any], environment: Mapping[str, Any]) -> None:
        """Start a run in the folder, or resume the run in it, after :meth:`check`.

        Args:
            asked: all options, as JSON values.
            environment: software and hardware that may also affect the exact result; a change causes a warning.

        Raises:
            RunError: as for :meth:`check`, or the folder cannot be written.
        """
        self.check(asked)
        try:
            for folder in (self.folder, self.folder / BEST, *(self.folder / AFTER).glob("*")):
                for path in leftovers(folder):
                    path.unlink(missing_ok=True)
            if (self.folder / OPTIONS).exists():
                content = self._options()
                _warn_of_changes(content["environment"], environment)
                if self._is_extended(content["options"], asked):
                    self.extended_from = content["options"]["steps"]
                    self._write_options({**content, "options": {**content["options"], "steps": asked["steps"]}})
            else:
                options = {**self.asked, **asked}
                self._write_options(
                    {"schema": SCHEMA, "options": options, "notes": self.notes, "environment": environment}
                )
        except OSError as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(f"The folder {self.folder} cannot be written ({error.strerror}); give another.")

    def latest(self) -> State | None:
        """Load the newest valid checkpoint; return None if there is no checkpoint.

        A damaged checkpoint that is skipped causes a warning.

        Raises:
            CheckpointError: checkpoints exist, but all are damaged.
        """
        faults = []
        for path in reversed(self._states()):
            try:
                state = read_state(path)
            except CheckpointError as error:
                faults.append(str(error))
                continue
            for fault in faults:
                warnings.warn(f"{fault}; resuming from {path.stem}, the checkpoint before it", stacklevel=2)
            self._sound, self._saved_at = [path], state.report.seconds
            return state
        if faults:
            raise CheckpointError(
                f"{'; '.join(faults)}; there is no other checkpoint, so start again in another folder."
            )
        return None

    def due(self, step: int, seconds: float, ended: bool) -> bool:
        """Whether a checkpoint is due after this step, at this training time; there is always one at the end."""
        by_steps = self.save_steps is not None and step % self.save_steps == 0
        by_time = self.save_minutes is not None and seconds - self._saved_at >= 60 * self.save_minutes
        return ended or by_steps or by_time

    def save(self, state: State) -> Path:
        """Write a checkpoint, and remove all but the last two.

        Returns:
            The path of its tensors.

        Raises:
            CheckpointError: the checkpoint cannot be written; the previous one is unchanged.
        """
        place = self.folder / _checkpoint_name(state.report.step)
        try:
            write_state(place, state)
        except OSError as error:
            raise CheckpointError(
                f"{place} cannot be written ({error.strerror or error}); {self.last_checkpoint()}. "
                "Free disk space, and resume the run."
            ) from None
        self._sound, self._saved_at = [*self._sound, place][-_KEPT:], state.report.seconds
        self._remove(keep=self._sound)
        return place

    def last_checkpoint(self) -> str:
        """Return a phrase for messages that names the checkpoint to resume from."""
        if not self._sound:
            return "there is no checkpoint before it"
        return f"the last good checkpoint is {self._sound[-1]}"

    def clear(self, *, keep_last: bool = False) -> None:
        """Remove the checkpoints after the final model has been saved; with the last one, steps can be added later."""
        self._sound = self._states()[-1:] if keep_last else []
        self._remove(keep=self._sound)

    def _states(self) -> list[Path]:
        """Return the paths of the tensors of every checkpoint, sorted by step."""
        found = (path.with_suffix(".safetensors") for path in self.folder.glob("state-*.json"))
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def _remove(self, keep: list[Path]) -> None:
        for place in {*self._states(), *self.folder.glob("state-*.safetensors")} - {*keep}:
            place.with_suffix(".json").unlink(missing_ok=True)  # first: without it, there is no checkpoint
            place.unlink(missing_ok=True)

    def _write_options(self, content: Mapping[str, Any]) -> None:
        write_together({self.folder / OPTIONS: (json.dumps(content, indent=1) + "\n").encode()})

    def _is_extended(self, started: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
        """Whether the run is finished, still has its last checkpoint, and is given more steps."""
        last = [path.name for path in self._states()[-1:]]
        return _adds_steps(started, asked) and last == [_checkpoint_name(started["steps"])]

    def _options(self) -> Mapping[str, Any]:
        path = self.folder / OPTIONS
        try:
            content = json.loads(path.read_bytes())
            if content["schema"] == SCHEMA and all(isinstance(content[k], dict) for k in ("options", "environment")):
                return dict(content)
            fault = f"its schema is {content['schema']!r}, and this version reads {SCHEMA}"
        except OSError as error:
            fault = (error.strerror or str(error)).lower()
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            fault = f"it is damaged: {type(error).__name__}"
        raise RunError(
            f"{path} cannot be read ({fault}), so the run cannot be continued; start again in another folder."
        )

    def _compare(self, asked: Mapping[str, Any]) -> None:
        started = self._options()["options"]
        if self._is_extended(started, asked):
            started = {**started, "steps": asked["steps"]}
        found = [line for name in asked for line in _differences(name, started.get(name), asked[name])]
        if found:
            hint = (
                " Only a finished run with its last checkpoint takes more steps." if _adds_steps(started, asked) else ""
            )
            more = f" and {len(found) - _DIFFERENCES_SHOWN} more" if len(found) > _DIFFERENCES_SHOWN else ""
            raise RunError(
                f"{self.folder} was started with other options: {'; '.join(found[:_DIFFERENCES_SHOWN])}{more}. "
                f"Resume it with the same options, since they determine its weights, or give another folder.{hint}"
            )


def _adds_steps(started: Mapping[str, Any], asked: Mapping[str, Any]) -> bool:
    before, now = started.get("steps"), asked.get("steps")
    return type(before) is int and type(now) is int and now > before


def _checkpoint_name(step: int) -> str:
    return f"state-{step:06d}.safetensors"


def _differences(name: str, started: Any, asked: Any) -> Iterator[str]:
    """Yield a phrase for every value that differs between two descriptions."""
    if isinstance(started, dict) and isinstance(asked, dict):
        for key in {**started, **asked}:
            yield from _differences(f"{name}.{key}", started.get(key), asked.get(key))
    elif started != asked or type(started) is not type(asked):
        yield f"{name} was {json.dumps(started)}, and is {json.dumps(asked)} now"


def _warn_of_changes(started: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    names = {**started, **now}  # a name in only one of them, such as the number of ranks, is a change too
    changed = [line for name in names for line in _differences(name, started.get(name), now.get(name))]
    if changed:
        warnings.warn(
            f"{'; '.join(changed)}: the final weights will not be bit-identical to those of an uninterrupted run",
            stacklevel=4,
        )

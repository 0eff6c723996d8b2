"""Training state on disk: tensors as safetensors, and progress as JSON beside them.

The JSON file is moved into place last and holds the SHA-256 of both, so that an incomplete or damaged checkpoint is
detected. Neither file can hold code.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from ppdm.atomic_io import write_together
from ppdm.checkpoint import CheckpointError, versions
from ppdm.serialization import restore
from ppdm.training.log import StepReport

SCHEMA = 1

_MOST_STEPS = 10**8  # a resume skips the pairs of completed steps one by one


@dataclass(frozen=True, eq=False)
class State:
    """Everything needed to resume a run; random numbers depend only on the seed and the step.

    Attributes:
        report: report of the last completed step.
        log_bytes: size of the log in bytes after that step.
        tensors: result of :meth:`ppdm.training.trainer.Training.tensors`.
    """

    report: StepReport
    log_bytes: int
    tensors: Mapping[str, Tensor]


def write_state(place: Path, state: State) -> None:
    """Write a state to ``place``, a .safetensors file, and to the .json file beside it.

    Raises:
        OSError: the state cannot be written; an existing state is unchanged.
    """
    weights = safetensors.torch.save({name: t.detach().cpu().contiguous() for name, t in state.tensors.items()})
    content = {
        "schema": SCHEMA,
        "report": asdict(state.report),
        "log_bytes": state.log_bytes,
        "versions": versions(),
    }
    text = json.dumps(content | {"sha256": _digest(weights, content)}, indent=1, allow_nan=False) + "\n"
    write_together({place: weights, place.with_suffix(".json"): text.encode()})


def read_state(place: Path) -> State:
    """Read a state, given its .safetensors file.

    Raises:
        CheckpointError: a file is missing or damaged; the message names the file and has no full stop at the end.
    """
    description = place.with_suffix(".json")
    try:
        content, weights = json.loads(description.read_bytes()), place.read_bytes()
        if content.pop("sha256") != _digest(weights, content):
            raise CheckpointError(f"{place} and {description.name} are damaged (their SHA-256 is not as written)")
        report, log_bytes = restore(StepReport, content["report"], {}), content["log_bytes"]
        if not 1 <= report.step <= _MOST_STEPS or type(log_bytes) is not int or log_bytes < 0:
            raise CheckpointError(f"{description} is damaged (step {report.step} after {log_bytes!r} bytes of log)")
        return State(report, log_bytes, safetensors.torch.load(weights))
    except OSError as error:
        raise CheckpointError(f"{error.filename} cannot be read ({error.strerror})") from None
    except CheckpointError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, SafetensorError) as error:
        raise CheckpointError(f"{description} is damaged ({type(error).__name__}: {error})") from None


def _digest(weights: bytes, content: Mapping[str, Any]) -> str:
    """Return the SHA-256 over the contents of both files; a change in either is detected."""
    digest = hashlib.sha256(weights)
    digest.update(json.dumps(content, sort_keys=True).encode())
    return digest.hexdigest()

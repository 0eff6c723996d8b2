"""A trained method on disk: its weights as safetensors, and what they mean as JSON beside them.

``RUN/model.safetensors`` holds the averaged weights, which sampling uses. ``RUN/model.json`` holds the method, how
intensities become network values, how it was trained, and the SHA-256 of the weights, so that two files that do not
belong together are found out. Nothing in either file is ever executed: methods are made from explicit tables
(:meth:`ppdm.method.Method.from_dict`), and neither format can hold code.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import float_info
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ppdm._version import __version__
from ppdm.atomic_io import write_together
from ppdm.data.scaling import Scaling, scaling_from_dict
from ppdm.method import Method
from ppdm.network.options import MOST_CHANNELS

SCHEMA = 1
NAME = "model.safetensors"

_FAULTS_SHOWN = 3


class CheckpointError(ValueError):
    """A checkpoint cannot be written or read; the message names the file, what is wrong and how to mend it."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A method that has been trained, ready to sample.

    Attributes:
        method: the point in the design space.
        network: what ``method.build(channels)`` made, with the averaged weights, in evaluation mode.
        scaling: how intensities become network values and back.
        spacing: voxel size of the training data in mm along D, H, W (the median over the subjects).
        steps: training steps.
        seed: of the training.
        channels: channels of source and target.
    """

    method: Method
    network: nn.Module
    scaling: Scaling
    spacing: tuple[float, float, float]
    steps: int
    seed: int
    channels: int = 1

    def __post_init__(self) -> None:
        if len(self.spacing) != 3 or not all(
            type(mm) in (int, float) and 0 < mm <= float_info.max for mm in self.spacing
        ):
            raise ValueError(f"spacing must be three positive numbers of mm, got {self.spacing!r}")
        for name, least in (("steps", 1), ("seed", 0), ("channels", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}")


def save(path: str | os.PathLike[str], trained: Trained) -> Path:
    """Write a trained method into a folder, which is made if it is missing.

    Both files are written beside their places and then moved, the JSON last: a checkpoint that was there before
    stays whole until then, and an interruption between the two moves is found out when it is loaded.

    Returns:
        The path of the weights.

    Raises:
        CheckpointError: the folder cannot be written, or the method has values that are not of this package.
    """
    folder = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in trained.network.state_dict().items()}
    weights = safetensors.torch.save(tensors)
    try:
        text = json.dumps(_describe(trained, weights), indent=2, allow_nan=False) + "\n"
    except ValueError as error:
        raise CheckpointError(f"{folder}: the method cannot be saved: {error}.") from None
    place = folder / NAME
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_together({place: weights, place.with_suffix(".json"): text.encode()})
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written ({error.strerror or error}); give another folder.") from None
    return place


def load(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Trained:
    """Read a trained method: the folder of a run, or the .safetensors file in it.

    Args:
        path: the folder, or the file of the weights; the JSON of the same name lies beside it.
        device: where the network is put.

    Raises:
        CheckpointError: a file is missing, damaged, of a later version, or the two do not belong together.
    """
    weights = _locate(Path(path))
    description = weights.with_suffix(".json")
    content = _read_description(description)
    tensors, digest = _read_weights(weights)
    if content["sha256"] != digest:
        raise CheckpointError(
            f"{weights} is not the file that {description.name} was written for (their SHA-256 differ): a training was "
            "interrupted while saving, or files of two runs were mixed; copy both from one run, or train again."
        )
    try:
        method, channels = Method.from_dict(content["method"]), content["channels"]
        network = assemble(method, channels, tensors).to(device)
        scaling, spacing = scaling_from_dict(content["scaling"]), tuple(content["spacing"])
        return Trained(method, network, scaling, spacing, content["steps"], content["seed"], channels)
    except (ValueError, TypeError) as error:
        raise CheckpointError(
            f"{description} does not describe {weights.name}: {error}; one of them was altered, copy both again."
        ) from None


def assemble(method: Method, channels: int, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The network of a method around given weights, which are shared and not copied, in evaluation mode.

    The network is made without memory first, so that no description can claim more than the weights that are there.

    Raises:
        ValueError: channels that there cannot be; a tensor is missing, unexpected, or of another shape or dtype.
    """
    if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"channels must be an integer from 1 to {MOST_CHANNELS}, got {channels!r}")
    with torch.device("meta"):
        network = method.build(channels)
    wanted = network.state_dict()
    faults = [f"{name} is missing" for name in wanted.keys() - tensors.keys()]
    faults += [f"{name} is unexpected" for name in tensors.keys() - wanted.keys()]
    for name in wanted.keys() & tensors.keys():
        expected, got = (f"{tuple(t.shape)} {str(t.dtype)[6:]}" for t in (wanted[name], tensors[name]))
        faults += [f"{name} is {got}, expected {expected}"] if expected != got else []
    if faults:
        more = f" and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
        raise ValueError(
            f"the weights are not those of {method.name}: {', '.join(sorted(faults)[:_FAULTS_SHOWN])}{more}"
        )
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def versions() -> dict[str, str]:
    """Of what computed the weights, as it is written beside them."""
    return {"ppdm": __version__, "torch": str(torch.__version__)}


def _describe(trained: Trained, weights: bytes) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "method": trained.method.to_dict(),
        "channels": trained.channels,
        "scaling": trained.scaling.to_dict(),
        "spacing": list(trained.spacing),
        "steps": trained.steps,
        "seed": trained.seed,
        "versions": versions(),
        "sha256": hashlib.sha256(weights).hexdigest(),
    }


_KEYS = {"schema", "method", "channels", "scaling", "spacing", "steps", "seed", "versions", "sha256"}


def _locate(path: Path) -> Path:
    """The file of the weights, given it or the folder that holds it."""
    weights = path / NAME if path.is_dir() else path
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; name the folder of a training, or the .safetensors file in it.")
    if not weights.exists():
        raise CheckpointError(f"{path} holds no checkpoint: {NAME} is not in it; name the folder of a training.")
    if weights.suffix != ".safetensors" or not weights.is_file():
        raise CheckpointError(f"{weights} is not a .safetensors file; name the folder of a training, or that file.")
    return weights


def _read_description(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing, and the weights mean nothing without it; copy it too.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON ({error}); copy it again.") from None
    schema = content.get("schema") if isinstance(content, dict) else None
    if schema != SCHEMA:
        raise CheckpointError(
            f"{path} has schema {schema!r}, and this version ({__version__}) reads {SCHEMA}; load it with the version "
            "that wrote it."
        )
    if content.keys() != _KEYS:
        raise CheckpointError(f"{path} has the fields {sorted(content)}, expected {sorted(_KEYS)}; copy it again.")
    return dict(content)


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a safetensors file and the SHA-256 of its bytes."""
    try:
        data = path.read_bytes()
        return safetensors.torch.load(data), hashlib.sha256(data).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}); check the file.") from None
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path} is truncated or is not a safetensors file ({error}); copy it again. Other formats are never read, "
            "since they can hold code."
        ) from None

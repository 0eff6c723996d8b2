"""Trained methods on disk: weights as safetensors, and their description as JSON beside them.

``RUN/model.safetensors`` holds the averaged weights, which sampling uses. ``RUN/model.json`` holds the method, the
intensity scaling, the training details, and the SHA-256 of the weights, so that two files that do not belong together
are detected. Nothing in either file is executed: methods are restored from explicit tables
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
    """A checkpoint cannot be written or read; the message gives the file, the cause and a remedy."""


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained method, ready for sampling.

    Attributes:
        method: the point in the design space.
        network: the result of ``method.build(channels)``, with the averaged weights, in evaluation mode.
        scaling: conversion between intensities and network values.
        spacing: voxel size of the training data in mm along D, H, W (the median over the subjects).
        steps: number of training steps.
        seed: seed of the training run.
        channels: number of channels of source and target.

    Raises:
        ValueError: spacing is not three positive numbers, or steps, seed or channels is out of range.
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
    """Write a trained method to a folder, which is created if it is missing.

    Both files are written to temporary files and then moved into place, the JSON last. An existing checkpoint stays
    complete until then, and :func:`load` detects an interruption between the two moves.

    Returns:
        The path of the weights.

    Raises:
        CheckpointError: the folder cannot be written, or the method has values that are not from this package.
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
    """Read a trained method from the folder of a run, or from the .safetensors file in it.

    Args:
        path: the folder, or the file of the weights; the JSON of the same name must be beside it.
        device: device of the network.

    Raises:
        CheckpointError: a file is missing or damaged, has a later version, or the two files do not belong together.
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
    """Build the network of a method from given weights, which are shared and not copied, in evaluation mode.

    The network is first built on the meta device, so that a description cannot allocate more memory than the weights.

    Raises:
        ValueError: the number of channels is invalid, or a tensor is missing, unexpected, or of another shape or dtype.
    """
    if type(channels) is not int or not 1 <= channels <= MOST_CHANNELS:
        raise ValueError(f"channels must be an integer from 1 to {MOST_CHANNELS}, got {channels!r}")
    with torch.device("meta"):
        network = method.build(channels)
    if faults := weight_faults(network.state_dict(), tensors):
        raise ValueError(f"the weights are not those of {method.name}: {faults}")
    network.load_state_dict(tensors, assign=True)
    return network.eval().requires_grad_(False)


def weight_faults(wanted: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str:
    """Return a phrase on how tensors differ from those of a network in name, shape or dtype; empty if they fit."""
    faults = [f"{name} is missing" for name in wanted.keys() - tensors.keys()]
    faults += [f"{name} is unexpected" for name in tensors.keys() - wanted.keys()]
    for name in wanted.keys() & tensors.keys():
        expected, got = (f"{tuple(t.shape)} {str(t.dtype)[6:]}" for t in (wanted[name], tensors[name]))
        faults += [f"{name} is {got}, expected {expected}"] if expected != got else []
    more = f" and {len(faults) - _FAULTS_SHOWN} more" if len(faults) > _FAULTS_SHOWN else ""
    return ", ".join(sorted(faults)[:_FAULTS_SHOWN]) + more


def versions() -> dict[str, str]:
    """Return the versions of the software that computed the weights, to be stored beside them."""
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
    """Return the path of the weights, given that path or the folder that contains it."""
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
        raise CheckpointError(f"{path} is missing, and the weights cannot be used without it; copy it too.") from None
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
    return content


def _read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a safetensors file and the SHA-256 of its bytes."""
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

"""Selection of the device for a command: from the requested device and the available hardware."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from ppdm.training.distributed import SINGLE_RANK, Ranks, own_gpu
from ppdm_bench.predictor.cards import Sheet, find_card, find_sheet
from ppdm_bench.predictor.target import GIB, Target


def card_of(gpu: str | None, capacity: int | None) -> Target:
    """Return the target card: a named card, or the card of this machine, with all or a part of its memory.

    Args:
        gpu: name of a card (:func:`ppdm_bench.predictor.cards.find_card`); None means the card of this machine.
        capacity: memory budget in bytes; None means all memory of the card.

    Raises:
        ValueError: the name is unknown or ambiguous, or the card has less memory than the budget.
    """
    if gpu is None:
        card = Target.of_this_machine()
        return card if capacity is None else replace(card, capacity=capacity)
    named = find_card(gpu)
    if capacity is not None and capacity > named.capacity:
        raise ValueError(
            f"the budget of {capacity / GIB:.4g} GiB is more than the {named.gib:.4g} GiB of {named.name}; leave "
            "--budget out to use the whole card"
        )
    return named.target(capacity=capacity or named.capacity)


def measuring_device(device: str, capacity: int | None, gpu: str | None = None) -> tuple[str, Target | None]:
    """Return the device of memory measurements and the target of predictions.

    The device is ``cuda``, ``cpu``, or ``predict``, which measures nothing.

    Args:
        device: auto, cuda, cpu or predict.
        capacity, gpu: the card, see :func:`card_of`. With a named card, memory is predicted and not measured.

    Raises:
        RuntimeError: ``cuda`` was requested, and there is no GPU.
        ValueError: the card is unknown, or a named card is to be measured.
    """
    _check_card_and_device(device, gpu)
    if device == "cpu":
        return "cpu", None
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise RuntimeError("there is no CUDA device to measure on; --device predict needs none")
    return ("cuda" if available and device != "predict" and gpu is None else "predict"), card_of(gpu, capacity)


def predicted_sheet(device: str, gpu: str | None, precisions: Sequence[str]) -> Sheet | None:
    """Return the data sheet of the card for which times are predicted; None if times are measured.

    Args:
        device: auto, cuda, cpu or predict.
        gpu: name of the card; None with ``predict`` means the card of this machine.
        precisions: precisions of the requested configurations.

    Raises:
        ValueError: no card is named and this machine has none, the card is unknown or does not compute in bf16, or a
            named card is to be measured.
    """
    _check_card_and_device(device, gpu)
    if gpu is None and device != "predict":
        return None
    if gpu is None and not torch.cuda.is_available():
        raise ValueError('a predicted time needs a card, and this machine has none; name one, such as --gpu "RTX 4090"')
    sheet = find_sheet(gpu or torch.cuda.get_device_name())
    if slow := emulation_warning(sheet.name, sheet.compute_capability, precisions):
        raise ValueError(slow)
    return sheet


def emulation_warning(gpu: str, compute_capability: tuple[int, int], precisions: Sequence[str]) -> str:
    """Return a warning if the card cannot compute in bf16 and bf16 is requested; else an empty string."""
    if "bf16" not in precisions or compute_capability >= (8, 0):
        return ""
    instead = "fp16, which its tensor cores compute" if compute_capability >= (7, 0) else "fp32"
    return f"{gpu} does not compute in bf16, and PyTorch would emulate it slowly; take --precision {instead}"


def _check_card_and_device(device: str, gpu: str | None) -> None:
    if gpu is not None and device in ("cuda", "cpu"):
        raise ValueError(
            f"--gpu names a card to predict for, and --device {device} measures on this machine; leave one out"
        )


def training_device(device: str, ranks: Ranks = SINGLE_RANK) -> str:
    """Return the device for training and translation, ``cuda`` or ``cpu``; each of several ranks uses its own GPU.

    Raises:
        RuntimeError: ``cuda`` was requested, and there is no GPU.
        ValueError: a machine has more ranks than GPUs, or another rank has no device.
    """
    with ranks.together():
        available = torch.cuda.is_available()
        if device == "cuda" and not available:
            raise RuntimeError("there is no CUDA device; use --device cpu")
        chosen = "cuda" if device != "cpu" and available else "cpu"
        if chosen == "cuda" and ranks.world > 1:
            torch.cuda.set_device(own_gpu())
    return chosen

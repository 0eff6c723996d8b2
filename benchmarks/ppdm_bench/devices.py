"""Selection of the device of a command, from the request and the available hardware."""

from dataclasses import replace

import torch

from ppdm.training.distributed import ALONE, Ranks, own_gpu
from ppdm_bench.predictor.target import Target


def choose(asked: str, capacity: int | None) -> tuple[str, Target | None]:
    """Return the device of memory measurements and the target of predictions.

    The device is ``cuda``, ``cpu``, or ``predict``, which measures nothing.

    Args:
        asked: auto, cuda, cpu or predict.
        capacity: memory budget in bytes; None uses the capacity of the local card, if there is one.

    Raises:
        RuntimeError: ``cuda`` without a device.
    """
    if asked == "cpu":
        return "cpu", None
    there = torch.cuda.is_available()
    if asked == "cuda" and not there:
        raise RuntimeError("there is no CUDA device to measure on; --device predict needs none")
    at_hand = Target.of_this_machine()
    target = at_hand if capacity is None else replace(at_hand, capacity=capacity)
    return ("cuda" if there and asked != "predict" else "predict"), target


def training_device(asked: str, ranks: Ranks = ALONE) -> str:
    """Return the device of training and translation, ``cuda`` or ``cpu``; with several ranks, each uses its own GPU.

    Raises:
        RuntimeError: ``cuda`` without a device.
        ValueError: a machine has more ranks than GPUs, or another rank has no device.
    """
    with ranks.together():
        there = torch.cuda.is_available()
        if asked == "cuda" and not there:
            raise RuntimeError("there is no CUDA device; use --device cpu")
        device = "cuda" if asked != "cpu" and there else "cpu"
        if device == "cuda" and ranks.world > 1:
            torch.cuda.set_device(own_gpu())
    return device

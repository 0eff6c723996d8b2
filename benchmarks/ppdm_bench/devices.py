"""Where commands run, from what was asked and what is there."""

from dataclasses import replace

import torch

from ppdm.training.distributed import ALONE, Ranks, own_gpu
from ppdm_bench.predictor.target import Target


def choose(asked: str, capacity: int | None) -> tuple[str, Target | None]:
    """Where memory is measured (``cuda``, ``cpu``, or ``predict`` for nowhere), and what it is predicted for.

    Args:
        asked: auto, cuda, cpu or predict.
        capacity: bytes of the card that must suffice, if that was asked; else the card at hand, if any.

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
    """The device of training and translation: ``cuda`` or ``cpu``; of several ranks, each takes a GPU of its own.

    Raises:
        RuntimeError: ``cuda`` without a device.
        ValueError: more ranks on a machine than GPUs, or another rank has no device.
    """
    with ranks.together():
        there = torch.cuda.is_available()
        if asked == "cuda" and not there:
            raise RuntimeError("there is no CUDA device; use --device cpu")
        device = "cuda" if asked != "cpu" and there else "cpu"
        if device == "cuda" and ranks.world > 1:
            torch.cuda.set_device(own_gpu())
    return device

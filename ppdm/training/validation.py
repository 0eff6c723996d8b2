"""How good a training is on pairs that it does not learn from.

Axes: a volume of a pair (D, H, W) or (C, D, H, W).
"""

from collections.abc import Sequence

import torch
from torch import nn

from ppdm.method import DIFFUSION, STAGE_LOSSES, Method
from ppdm.training.batches import ArrayPair, batch
from ppdm.training.distributed import ALONE, Ranks
from ppdm.training.schedule import validation_generator

DRAWS = 4  # times and noises that each pair is scored with


@torch.no_grad()
def validation_loss(
    method: Method,
    network: nn.Module,
    pairs: Sequence[ArrayPair],
    seed: int = 0,
    device: str | torch.device = "cpu",
    stage: str = DIFFUSION,
    ranks: Ranks = ALONE,
) -> float:
    """Mean training loss of a network over pairs, each with a few times and noises that are the same at every call.

    Losses of one training can be compared, as they differ by the weights alone; those of methods that are scored
    otherwise cannot. Nothing that training draws is touched.

    Args:
        method: the point in the design space.
        network: what ``method.build`` made, on the device.
        pairs: (source, target) of network values.
        seed: of the training.
        device: where the network is.
        stage: which of the method's stages the loss is of.
        ranks: processes with the same network and pairs, each of which takes some of the pairs.
    """
    total = 0.0
    with ranks.together():
        for index in range(ranks.rank, len(pairs), ranks.world):
            source, target = batch([pairs[index]], device)
            generator = validation_generator(seed, index, device)
            for _ in range(DRAWS):
                total += float(STAGE_LOSSES[stage](method, network, source, target, generator).mean())
    return sum(ranks.gather(total)) / (len(pairs) * DRAWS)

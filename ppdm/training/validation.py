"""Validation loss on pairs that are not used for training, and the loss that needs no training.

Shapes: a volume of a pair is (D, H, W) or (C, D, H, W).
"""

from collections.abc import Sequence

import torch
from torch import nn

from ppdm.method import DIFFUSION, STAGE_LOSSES, Guess, Method, guess_source, guess_zero
from ppdm.training.batches import ArrayPair, batch
from ppdm.training.distributed import SINGLE_RANK, Ranks
from ppdm.training.schedule import validation_generator

DRAWS = 4  # number of random times and noises for each pair


@torch.no_grad()
def validation_loss(
    method: Method,
    network: nn.Module,
    pairs: Sequence[ArrayPair],
    seed: int = 0,
    device: str | torch.device = "cpu",
    stage: str = DIFFUSION,
    ranks: Ranks = SINGLE_RANK,
    guess: Guess | None = None,
) -> float:
    """Compute the mean training loss over pairs, with times and noises that are the same at every call.

    Losses of one run are comparable, because only the weights differ. Losses of methods with different loss functions
    are not comparable. The random streams of training are not affected.

    Args:
        method: the point in the design space.
        network: the result of ``method.build``, on the device.
        pairs: (source, target) of network values.
        seed: seed of the training run.
        device: device of the network.
        stage: training stage whose loss is computed.
        ranks: processes with the same network and pairs; each processes some of the pairs.
        guess: computes the outputs instead of the network; only in the diffusion stage.
    """
    instead = {} if guess is None else {"guess": guess}
    total = 0.0
    with ranks.together():
        for index in range(ranks.rank, len(pairs), ranks.world):
            source, target = batch([pairs[index]], device)
            generator = validation_generator(seed, index, device)
            for _ in range(DRAWS):
                total += float(STAGE_LOSSES[stage](method, network, source, target, generator, **instead).mean())
    return sum(ranks.gather(total)) / (len(pairs) * DRAWS)


def compared_with_untrained(
    method: Method,
    network: nn.Module,
    pairs: Sequence[ArrayPair],
    seed: int = 0,
    device: str | torch.device = "cpu",
    ranks: Ranks = SINGLE_RANK,
) -> tuple[float, float]:
    """Compute the loss of a network, and a loss that needs no training; arguments as for :func:`validation_loss`.

    The second loss is that of returning the source or that of an output of zeros, whichever is lower.
    """
    guesses = (None, guess_source, guess_zero)
    reached, *untrained = (
        validation_loss(method, network, pairs, seed, device, ranks=ranks, guess=guess) for guess in guesses
    )
    return reached, min(untrained)

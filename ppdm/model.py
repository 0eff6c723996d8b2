"""PPDM itself: one value in the design space, and where each choice comes from.

Of the paper (arXiv 2606.15323) only the abstract is public. It fixes the puzzle, a bridge that starts from the
condition, a residual, and a puzzle-gradient loss; every number below is our interpretation.
"""

from ppdm.kernel import Brownian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.representation import Puzzle
from ppdm.unet import UNetOptions
from ppdm.window import Whole

PPDM = Method(
    name="ppdm",
    # Abstract: a reversible puzzle-unpuzzle operator; r = 2 keeps the most of the network's own resolution.
    representation=Puzzle(2),
    window=Whole(concatenate=True),
    # Abstract: starts from the conditional input. The noise is ours: without it, and with the source concatenated, the
    # network learns the division x0 = (x_t − t·y)/(1 − t) instead of the translation.
    kernel=Brownian(gamma=0.5),
    target="residual",  # abstract: focuses on task-relevant residuals; an untrained network returns its input
    loss=Loss(p=2, gradient=1.0, mode="all"),  # abstract: puzzle-gradient loss; its weight is ours
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),
    sampling=Sampling(steps=4),
    # The better of 2e-4 and 1e-3 (results/sweep: width 16, 400 steps).
    optimisation=Optimisation(learning_rate=1e-3),
)

"""Regression control: PPDM's network, loss and representation without diffusion, from source to target in one step.

The difference in score between a diffusion model and this control is the contribution of the diffusion.
"""

from ppdm.kernel import Linear
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Puzzle
from ppdm.window import Whole

SOURCE = "none: the control"

MATCHED = Method(
    name="regression",
    representation=Puzzle(2),
    # At t = 1, the state of the noise-free linear kernel is the source itself, so it need not be concatenated.
    window=Whole(concatenate=False),
    kernel=Linear(),
    target="residual",
    loss=Loss(p=2, gradient=1.0, mode="all"),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),
    sampling=Sampling(steps=1),  # one step from t = 1 gives the prediction
    optimisation=Optimisation(at_start=1.0),  # only t = 1 is trained
)

"""The control: PPDM's network, loss and representation without the diffusion, from source to target in one step.

What a diffusion model scores beyond this is what the diffusion adds.
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
    # At t = 1 the state of a noise-free line is the source itself, so nothing has to stand beside it, ...
    window=Whole(concatenate=False),
    kernel=Linear(),
    target="residual",
    loss=Loss(p=2, gradient=1.0, mode="all"),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),
    sampling=Sampling(steps=1),  # ... one step from there is the prediction, ...
    optimisation=Optimisation(learning_rate=2e-4, at_start=1.0),  # ... and no other time is trained.
)

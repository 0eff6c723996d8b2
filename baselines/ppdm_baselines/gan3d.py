"""An adversarial network in 3-D: the regression control whose predictions a discriminator judges in training.

Pix2Pix (Isola et al., CVPR 2017, arXiv 1611.07004; repository junyanz/pytorch-CycleGAN-and-pix2pix) with 3-D networks,
as in recent comparisons with diffusion (arXiv 2605.13686; in 2-D, arXiv 2507.14575). There are no authors' presets:
their network for 256×256 images halves the grid eight times and has no counterpart here.
"""

from ppdm.kernel import Linear
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Puzzle
from ppdm.window import Whole

SOURCE = "Pix2Pix in 3-D, arXiv 1611.07004"

MATCHED = Method(
    name="gan3d",
    # As in the regression control, so that only the loss differs; for a network on voxels, use Identity().
    representation=Puzzle(2),
    window=Whole(concatenate=False),
    kernel=Linear(),
    target="residual",
    # lambda_L1=100 and gan_mode="vanilla" in models/pix2pix_model.py; ndf=64 in options/base_options.py
    loss=Loss(p=1, adversarial=0.01, discriminator_width=64),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),
    sampling=Sampling(steps=1),  # the result is the network's output; no noise, which the paper found to be ignored
    optimisation=Optimisation(at_start=1.0),  # only t = 1 is trained
)

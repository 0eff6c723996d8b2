"""A Brownian bridge in the latent space of an autoencoder, from the latent of the source to that of the target.

BBDM (Li et al., CVPR 2023, arXiv 2205.07680; repository xuekt98/BBDM), whose latent variant is compared with other
translations in 3-D by Romoli et al. (arXiv 2605.13686). Comments quote configs/Template-LBBDM-f4.yaml, which is for
two-dimensional images and the latent of a VQ-GAN.
"""

from dataclasses import replace

from ppdm.kernel import Brownian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.options import UNetOptions
from ppdm.window import Whole

SOURCE = "latent BBDM, arXiv 2205.07680; in 3-D, arXiv 2605.13686"

MATCHED = Method(
    name="latent_bridge",
    # The autoencoder of latent diffusion, so that only the kernels differ. It is as coarse as the authors' VQ-GAN (f4).
    representation=Autoencoder(),
    window=Whole(concatenate=False),  # condition_key="nocond": the source is only the start
    kernel=Brownian(gamma=2**0.5),  # max_var=1: variance 2·t·(1 − t)
    target="score",  # objective="grad", x_t − x0, here divided by its scale
    loss=Loss(p=1),  # loss_type="l1"
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    sampling=Sampling(steps=2),  # our choice: as many as PPDM, whose kernel is a bridge too
)

AUTHORS = replace(
    MATCHED,
    network=UNetOptions(
        width=64,  # our choice: half of model_channels=128, since a kernel of 3³ has three times the weights of 3²
        multipliers=(1, 4, 8),  # channel_mult
        residual_blocks=2,  # num_res_blocks=2
        # attention_resolutions 32, 16 and 8 are factors of the grid. No level has these factors, so only the middle
        # has attention.
        attention=(False, False, False, True),
        head_channels=64,  # num_head_channels=64
        adaptive=True,  # use_scale_shift_norm=True
        resampling="residual",  # resblock_updown=True
    ),
    sampling=Sampling(steps=200, stochastic=True),  # sample_step=200, eta=1.0; clip_denoised=False
    # Adam without weight decay and without warm-up; ema_decay=0.995.
    optimisation=Optimisation(learning_rate=1e-4, warmup=0, ema=0.995),
)

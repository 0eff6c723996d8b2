"""Latent diffusion: train an autoencoder first, then a diffusion model in its latent space, which is 4 times coarser.

Rombach et al. (arXiv 2112.10752) in 3-D, as in MONAI's tutorial (repository Project-MONAI/GenerativeModels,
tutorials/generative/3d_ldm/3d_ldm_tutorial.py), and as in medicaldiffusion (Khader et al., arXiv 2211.03364; repository
FirasGit/medicaldiffusion), whose autoencoder is a VQ-GAN. Comments quote the tutorial's settings. Both models are
unconditional; here the latent of the source is concatenated.
"""

from dataclasses import replace

from ppdm.kernel import Gaussian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.options import UNetOptions
from ppdm.window import Whole

SOURCE = "LDM, arXiv 2112.10752; MONAI's 3-D tutorial"

MATCHED = Method(
    name="latent",
    representation=Autoencoder(
        width=32,  # num_channels=(32, 64, 64)
        multipliers=(1, 2, 2),
        residual_blocks=1,  # num_res_blocks=1
        attention=(False, False, True),  # attention_levels
        norm_groups=16,  # norm_num_groups=16
        latent_channels=3,  # latent_channels=3
        kl=1e-6,  # kl_weight = 1e-6
        share=0.5,  # our choice; the tutorial has 100 and 150 epochs
    ),
    window=Whole(),
    kernel=Gaussian("scaled"),  # schedule="scaled_linear_beta", beta_start=0.0015, beta_end=0.0195
    target="noise",  # F.mse_loss(noise_pred.float(), noise.float())
    loss=Loss(p=2),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    # Same number of steps as full 3-D. No clamp, because latents have no fixed range. The tutorial's DDPMScheduler
    # clips them to [-1, 1], which would clip a third of our latents, whose standard deviation is 1.
    sampling=Sampling(steps=250, stochastic=True),
)

AUTHORS = replace(
    MATCHED,
    network=UNetOptions(
        width=32,  # num_channels=(32, 64, 64)
        multipliers=(1, 2, 2),
        residual_blocks=1,  # num_res_blocks=1
        attention=(False, True, True),  # attention_levels
        head_channels=64,  # num_head_channels=(0, 64, 64)
    ),
    sampling=Sampling(steps=1000, stochastic=True),  # num_train_timesteps=1000, set_timesteps(num_inference_steps=1000)
    optimisation=Optimisation(learning_rate=1e-4, warmup=0, ema=0.0),  # Adam, no warm-up, no EMA
)

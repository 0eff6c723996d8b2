"""Rectified flow in the latent space of an autoencoder, which is trained first: latent diffusion in few steps.

MAISI-v2 (arXiv 2508.05772; repository NVIDIA-Medtech/NV-Generate-CTMR). The original generates volumes from spacings,
body regions and, by a ControlNet, labels; here the latent of the source is concatenated.
"""

from dataclasses import replace

from ppdm.kernel import Gaussian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.options import UNetOptions
from ppdm.window import Whole

SOURCE = "MAISI-v2, arXiv 2508.05772"

MATCHED = Method(
    name="latent_flow",
    representation=Autoencoder(),  # that of latent diffusion, so that only the kernels differ
    window=Whole(),
    kernel=Gaussian("flow"),  # RFlowScheduler in configs/config_network_rflow.json
    target="score",  # the velocity ε − x0, up to its sign: scripts/diff_model_train.py
    loss=Loss(p=1),  # torch.nn.L1Loss
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    sampling=Sampling(steps=30),  # num_inference_steps=30 in configs/config_maisi_diff_model_rflow-ct.json
)

AUTHORS = replace(
    MATCHED,
    representation=Autoencoder(
        width=64,  # num_channels=[64, 128, 256] in config_network_rflow.json
        multipliers=(1, 2, 4),
        residual_blocks=2,  # num_res_blocks=[2, 2, 2]
        attention=(),  # attention_levels, with_encoder_nonlocal_attn and with_decoder_nonlocal_attn are false
        norm_groups=32,  # norm_num_groups=32
        latent_channels=4,  # latent_channels=4
        kl=1e-7,  # kl_weight in config_maisi_vae_train.json
        share=0.5,  # our choice; they publish one autoencoder for all data
    ),
    network=UNetOptions(
        width=64,  # num_channels=[64, 128, 256, 512]
        multipliers=(1, 2, 4, 8),
        residual_blocks=2,  # num_res_blocks=2
        attention=(False, False, True, True),  # attention_levels
        head_channels=32,  # num_head_channels=[0, 0, 32, 32]
        resampling="residual",  # resblock_updown=true
    ),
    # lr=1e-5 in config_maisi_diff_model_rflow-ct.json; Adam without warm-up and without EMA.
    optimisation=Optimisation(learning_rate=1e-5, warmup=0, ema=0.0),
)

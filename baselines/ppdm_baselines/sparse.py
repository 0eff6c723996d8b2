"""Sparse diffusion in voxel space: full-3-D diffusion that is trained only at the few times at which it samples.

Structure-Adaptive Sparse Diffusion (Jiang et al., MICCAI 2026, arXiv 2604.17773; repository
mirthAI/sparse-3d-diffusion). Comments quote configs/ps128_mri.yml. The original enhances patches of a volume and
modulates the time embedding by the source; here it is the sparse schedule and the loss, on whole volumes.
"""

from dataclasses import replace

from ppdm.kernel import Gaussian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Identity
from ppdm.window import Whole

SOURCE = "sparse 3-D diffusion, arXiv 2604.17773"

MATCHED = Method(
    name="sparse",
    representation=Identity(),  # dwt: False
    window=Whole(),  # in_channels: 2, the state and the source
    kernel=Gaussian("linear"),  # noise_schedule: "linear"
    target="x0",  # models/unet.py predicts x0; predict_xstart: 'V' is its loss
    loss=Loss(p=2, weight="scale"),  # mean((v - v_output)²), v = α·ε − σ·x0: diffusion/gaussian_diffusion.py
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    sampling=Sampling(steps=5, clamp=1.0),  # f_steps: 5; DDIM with clip_denoised=True
    optimisation=Optimisation(at_steps=True),  # type: 'fast'
)

AUTHORS = replace(
    MATCHED,
    network=UNetOptions(
        width=64,  # model_channels: 64
        multipliers=(1, 1, 2, 2, 4),  # channel_mult: [1, 1, 2, 2, 4]
        residual_blocks=2,  # num_res_blocks: 2
        # attention_resolutions: [8]; the attention of the middle is commented out in models/unet.py
        attention=(False, False, False, True, False, False),
        head_channels=32,  # num_heads: 4 with 128 channels
    ),
    # weight_decay: 0.0001, ema_rate: "0.99"; AdamW without warm-up
    optimisation=Optimisation(learning_rate=1e-4, weight_decay=1e-4, warmup=0, ema=0.99, at_steps=True),
)

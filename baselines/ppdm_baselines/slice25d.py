"""2.5-D diffusion: three 2-D networks process slices of three views; their results are averaged at every step.

MADM (Chen et al., arXiv 2406.08374; repository tianqic/MADM---Multi-View-Averaging-Diffusion-Model).
"""

from dataclasses import replace

from ppdm.kernel import Gaussian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Identity
from ppdm.slices import Slices

SOURCE = "MADM, arXiv 2406.08374"

MATCHED = Method(
    name="slice25d",
    representation=Identity(),
    # load_adj=8 in train.py means 17 slices of the source. batch_size is 24 in train.py, here 8 for each of the three
    # views; it is 64 in sample_3D.py.
    window=Slices(views="dhw", context=8, drawn=8, batch=64),
    kernel=Gaussian("cosine"),  # noise_schedule in guided_diffusion/script_util.py, like target and loss
    target="noise",
    loss=Loss(p=2),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # as in PPDM, in 2-D
    sampling=Sampling(steps=250, stochastic=True, clamp=1.0),  # steps as in full 3-D; clip_denoised=True
)

# Slices of one view, as in most 2-D and 2.5-D methods.
AXIAL = replace(MATCHED, window=Slices(views="w", context=8, drawn=24, batch=64))

AUTHORS = replace(
    MATCHED,
    network=UNetOptions(
        width=136,  # num_channels in guided_diffusion/script_util.py
        multipliers=(1, 1, 2, 2, 3, 4),  # script_util.py, for an image_size of 192
        residual_blocks=2,  # num_res_blocks
        # attention_resolutions "16,8" of 192 are factors of 12 and 24. No level has these factors, so only the middle
        # has attention.
        attention=(False, False, False, False, False, False, True),
        head_channels=136,  # num_heads=4 with 544 channels
        adaptive=True,  # use_scale_shift_norm=True
    ),
    sampling=Sampling(steps=1000, stochastic=True, clamp=1.0),  # diffusion_steps=1000
    # lr=1e-4 and ema_rate=0.9999 in train.py; AdamW without weight decay and without warm-up.
    optimisation=Optimisation(learning_rate=1e-4, warmup=0, ema=0.9999),
)

# prior_start_t=200 of 1000 in sample_3D.py. Their prior is the output of another network; here it is the source.
PRIOR_START = replace(AUTHORS, sampling=Sampling(steps=200, stochastic=True, clamp=1.0, start=0.2))

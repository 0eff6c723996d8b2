"""Patch diffusion: trained on patches with position channels, sampled on the whole volume.

PatchDDM (Bieder et al., MIDL 2023, arXiv 2303.15288; repository FlorentinBieder/PatchDDM-3D). The original generates a
segmentation from the images; ours generates a target from the source.
"""

from dataclasses import replace

from ppdm.kernel import Gaussian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Identity
from ppdm.window import Patch

SOURCE = "PatchDDM, arXiv 2303.15288"

MATCHED = Method(
    name="patch",
    representation=Identity(),
    window=Patch(),  # half of each side, centre-weighted, 3 coordinate channels: guided_diffusion/bratsloader.py
    kernel=Gaussian("linear"),  # --noise_schedule=linear in run.sh, like all options below
    target="noise",  # predict_xstart is False in guided_diffusion/script_util.py
    loss=Loss(p=2),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    sampling=Sampling(steps=250, stochastic=False, clamp=1.0),  # steps as in full 3-D; DDIM and clamp as below
)

# Also samples in overlapping patches, for volumes that do not fit into memory. The authors do not do this.
STITCHED = replace(MATCHED, window=Patch(overlap=0.5))

AUTHORS = replace(
    MATCHED,
    network=UNetOptions(
        width=29,  # CHANNELS=29
        multipliers=(1, 3, 4, 4, 4, 4, 4),  # --channel_mult
        residual_blocks=2,  # --num_res_blocks=2
        skips="add",  # --additive_skips=True: half the sum (guided_diffusion/unet.py)
        norm_groups=29,  # --num_groups=${CHANNELS}; no attention: --attention_resolutions= --bottleneck_attention=False
    ),
    # --diffusion_steps=1000 and --use_ddim=True; clip_denoised=True in scripts/segmentation_sample.py
    sampling=Sampling(steps=1000, stochastic=False, clamp=1.0),
    # --lr=1e-5 without warm-up, AdamW; guided_diffusion/train_util.py saves the weights themselves, no EMA.
    optimisation=Optimisation(learning_rate=1e-5, warmup=0, ema=0.0),
)

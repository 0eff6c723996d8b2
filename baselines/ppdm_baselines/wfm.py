"""Wavelet flow matching: a bridge between the Haar bands of the source and of the target, in one or two steps.

WFM (Tur et al., MIDL 2026, arXiv 2604.21146; repository yalcintur/WFM). The original starts at the mean of three source
contrasts, and one network translates to all four contrasts of BraTS; here a network translates to one target.
"""

from dataclasses import replace

from ppdm.kernel import Brownian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Haar
from ppdm.window import Whole

SOURCE = "WFM, arXiv 2604.21146"

MATCHED = Method(
    name="wfm",
    representation=Haar(),  # with LLL divided by 3: apply_dwt in guided_diffusion/wfm.py, as are the next four
    window=Whole(),  # the bands of every source are concatenated to those of the state
    kernel=Brownian(gamma=0.5),  # σ(t) = sigma_max·√(t(1−t)) with sigma_max=0.5
    target="residual",  # velocity = target_dwt - source_dwt
    loss=Loss(p=2),  # on the coefficients, all bands alike
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    # --sampling_steps 1 in README.md; the volume is clamped (_clip_wavelets).
    sampling=Sampling(steps=1, clamp=1.0),
)

AUTHORS = replace(
    MATCHED,
    network=UNetOptions(
        width=64,  # num_channels=64 in scripts/train_wfm.py, like all options below: the network of cWDM
        multipliers=(1, 2, 2, 4, 4),  # channel_mult
        residual_blocks=2,  # num_res_blocks
        skips="concat",  # additive_skips=False; no attention: attention_resolutions="", bottleneck_attention=False
        resampling="residual",  # resblock_updown=True
    ),
    # lr=1e-5, weight_decay=0 and clipping to norm 1; no warm-up, no EMA.
    optimisation=Optimisation(learning_rate=1e-5, warmup=0, ema=0.0),
)

"""Conditional wavelet diffusion: the state is eight Haar bands of half the resolution instead of voxels.

cWDM (Friedrich et al., arXiv 2411.17203; repository pfriedri/cwdm, read in its forks tsereda/fast-cwdm and
chaeniverse/cwdm). It makes WDM (arXiv 2402.19043; repository pfriedri/wdm-3d) conditional by concatenating the bands of
the source to the noisy bands.
"""

from dataclasses import replace

from ppdm.kernel import Gaussian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Haar
from ppdm.window import Whole

SOURCE = "cWDM, arXiv 2411.17203"

MATCHED = Method(
    name="wavelet",
    representation=Haar(),  # with LLL divided by 3: wdm-3d, guided_diffusion/gaussian_diffusion.py
    window=Whole(),
    kernel=Gaussian("linear"),  # --noise_schedule=linear in cWDM's run.sh, like all options below
    target="x0",  # --predict_xstart=True: the coefficients
    loss=Loss(p=2),  # on the coefficients, all bands alike: guided_diffusion/train_util.py
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    # Steps as in full 3-D. At each step, the prediction is transformed to a volume, clamped and transformed back.
    sampling=Sampling(steps=250, stochastic=True, clamp=1.0),
)

AUTHORS = replace(
    MATCHED,
    network=UNetOptions(
        width=64,  # CHANNELS=64
        multipliers=(1, 2, 2, 4, 4),  # CHANNEL_MULT
        residual_blocks=2,  # --num_res_blocks=2
        skips="concat",  # ADDITIVE_SKIP=False; no attention: --attention_resolutions= --bottleneck_attention=False
        resampling="residual",  # resblock_updown=True in guided_diffusion/script_util.py, unchanged by run.sh
    ),
    sampling=Sampling(steps=1000, stochastic=True, clamp=1.0),  # --diffusion_steps=1000, --use_ddim=False
    # --lr=1e-5 without warm-up; guided_diffusion/train_util.py saves the weights themselves, no EMA.
    optimisation=Optimisation(learning_rate=1e-5, warmup=0, ema=0.0),
)

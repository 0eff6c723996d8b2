"""Full-3-D conditional diffusion: the network processes the whole volume at every step; the reference of all ratios.

Ho et al. 2020 (arXiv 2006.11239), made conditional by concatenation as in med-ddpm (Dorjsembe et al., arXiv 2305.18453;
repository mobaidoctor/med-ddpm).
"""

from dataclasses import replace

from ppdm.kernel import Gaussian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Identity
from ppdm.window import Whole

SOURCE = "DDPM, arXiv 2006.11239; med-ddpm, arXiv 2305.18453"

MATCHED = Method(
    name="ddpm3d",
    representation=Identity(),
    window=Whole(),
    kernel=Gaussian("cosine"),
    target="noise",
    loss=Loss(p=1),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),  # PPDM's network, for a fair comparison
    sampling=Sampling(steps=250, stochastic=True, clamp=1.0),
)

# med-ddpm: width 64, multipliers 1,1,2,3,4, attention at the 8 times coarser grid, 250 cosine steps, L1 loss on ε,
# weight average (EMA) 0.995, Adam at 1e-5 without warm-up.
AUTHORS = replace(
    MATCHED,
    network=UNetOptions(width=64, multipliers=(1, 1, 2, 3, 4), attention=(False, False, False, True, False)),
    optimisation=Optimisation(learning_rate=1e-5, warmup=0, ema=0.995),
)

"""Full-3-D diffusion as it is strongest with few updates and evaluations: x0, a higher learning rate, no added noise.

The registered `ddpm3d` predicts the noise and takes 250 evaluations, as its authors do.
"""

from dataclasses import replace

from ppdm_baselines import METHODS

DDPM3D = METHODS["ddpm3d"]
X0 = replace(
    DDPM3D,
    name="ddpm3d-x0",
    target="x0",
    sampling=replace(DDPM3D.sampling, steps=10, stochastic=False),
    optimisation=replace(DDPM3D.optimisation, learning_rate=1e-3),
)

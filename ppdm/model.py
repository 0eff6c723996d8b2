"""PPDM: one point in the design space, and the source of each choice.

Only the abstract of the paper (arXiv 2606.15323) is public. It specifies the puzzle, a bridge that starts from the
condition, a residual, and a puzzle-gradient loss; every number below is our interpretation. "Best" refers to a sweep
over one choice at a time on phantoms of the three tasks (results/sweep: 36×48×44 or 48×36×40 voxels, width 16, 400
steps, 3 validation subjects, one seed). It is an indication, not a proof for wider networks or longer training.
"""

from ppdm.kernel import Brownian
from ppdm.loss import Loss
from ppdm.method import Method, Optimisation, Sampling
from ppdm.network.options import UNetOptions
from ppdm.representation import Puzzle
from ppdm.window import Whole

PPDM = Method(
    name="ppdm",
    # Abstract: a reversible puzzle-unpuzzle operator; r = 2 preserves the most resolution for the network.
    representation=Puzzle(2),
    window=Whole(concatenate=True),
    # Abstract: starts from the conditional input. The noise is our choice: without it, and with the source
    # concatenated, the network learns the division x0 = (x_t − t·y)/(1 − t) instead of the translation.
    # Among γ = 0.25, 0.5 and 1, the smallest is best on both PET tasks and worst on MRI; the largest is the reverse.
    kernel=Brownian(gamma=0.5),
    target="residual",  # abstract: focuses on task-relevant residuals; an untrained network returns its input
    # Abstract: puzzle-gradient loss. Its weight is our choice: among 0, 1 and 3, the value 3 is best over the three
    # tasks, and better than 1 on each of them.
    loss=Loss(p=2, gradient=3.0, mode="all"),
    network=UNetOptions(width=64, multipliers=(1, 2, 2, 4), residual_blocks=1),
    # Two evaluations: on three phantom tasks and on patients, PSNR is within 0.2 dB of the best among 1, 2 and 4, and
    # SSIM within 0.001. Four are 0.7 dB worse than one on patients; one is less sharp. Neither noise in the steps nor a
    # path that keeps its marginals is better (docs/quality.md).
    sampling=Sampling(steps=2),
    # The learning rate is 0.016 / width. At width 16, 1e-3 is 2.2 and 0.5 dB better than 2e-4 on T1 to T2 and joint
    # PET, and 0.3 dB worse on PET denoising. At width 64, 1e-3 can collapse to returning the source.
    optimisation=Optimisation(),
)

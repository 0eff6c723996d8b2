"""What the switches are for, by prediction: a whole training step, U-Net width 64, one volume, CUDA."""

import pytest

from ppdm_baselines import METHODS
from ppdm_bench.memory.predict import predict_peak
from ppdm_bench.memory.target import GIB, Target
from ppdm_bench.memory.workload import workload


@pytest.mark.parametrize(
    ("name", "factor", "edge", "limit"),
    [("ppdm", 4, 256, 1.5), ("ppdm", 2, 256, 6.5), ("ppdm", 4, 512, 8.0), ("ddpm3d", None, 256, 48.0)],
)
def test_a_training_step_with_every_switch_fits(name: str, factor: int | None, edge: int, limit: float) -> None:
    method = METHODS[name].with_network(precision="bf16", checkpointing="conv")
    method = method if factor is None else method.with_factor(factor)
    assert method.network.width == 64
    work = workload(method, "train", (edge, edge, edge), 1, "cuda")
    assert predict_peak(work.build, work.step, work.iterations, Target()).peak_allocated < limit * GIB


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_each_kind_of_recomputation_saves_more(precision: str) -> None:
    peaks = []
    for checkpointing in ("none", "norm", "block", "conv"):
        method = METHODS["ppdm"].with_factor(2).with_network(precision=precision, checkpointing=checkpointing)
        work = workload(method, "train", (128, 128, 128), 1, "cuda")
        peaks.append(predict_peak(work.build, work.step, work.iterations, Target()).peak_allocated)
    none, norm, block, conv = peaks
    assert conv < min(norm, block)
    assert max(norm, block) < 0.65 * none

"""Peak memory with each network option: precision, checkpointing, compilation and memory layout."""

import pytest

from ppdm_baselines import METHODS
from ppdm_bench.memory.workload import uncompiled, workload
from ppdm_bench.predictor.peak import measure_peak, predict_peak
from ppdm_bench.predictor.target import GIB, Target

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("name", "factor", "edge", "limit"),
    [("ppdm", 2, 256, 6.5), ("ppdm", 4, 512, 8.0), ("ddpm3d", None, 256, 48.0)],
)
def test_training_with_bf16_and_checkpointing_stays_below_the_limit(
    name: str, factor: int | None, edge: int, limit: float
) -> None:
    method = METHODS[name].with_network(precision="bf16", checkpointing="conv")
    method = method if factor is None else method.with_factor(factor)
    assert method.network.width == 64
    work = workload(method, "train", (edge, edge, edge), 1, "cuda")
    assert predict_peak(work.build, work.step, work.iterations, Target()).peak_allocated < limit * GIB


@pytest.mark.parametrize(
    ("name", "factor", "precision", "limit"),
    [
        ("ppdm", 4, "bf16", 0.7),
        ("ppdm", 2, "bf16", 2.6),
        ("ddpm3d", None, "bf16", 17.0),
        ("ddpm3d", None, "fp32", 34.0),
    ],
)
def test_sampling_stays_within_the_limit(name: str, factor: int | None, precision: str, limit: float) -> None:
    method = METHODS[name].with_network(precision=precision)
    method = method if factor is None else method.with_factor(factor)
    work = workload(method, "sample", (256, 256, 256), 1, "cuda")
    assert predict_peak(work.build, work.step, work.iterations, Target()).peak_allocated <= limit * GIB


def test_norm_and_block_checkpointing_save_a_third_and_conv_saves_more() -> None:
    peaks = []
    for checkpointing in ("none", "norm", "block", "conv"):
        network = {"precision": "bf16", "checkpointing": checkpointing, "multipliers": (1, 2), "residual_blocks": 1}
        work = workload(METHODS["ppdm"].with_factor(2).with_network(**network), "train", (128, 128, 128), 1, "cuda")
        peaks.append(predict_peak(work.build, work.step, work.iterations, Target()).peak_allocated)
    none, norm, block, conv = peaks
    assert conv < min(norm, block)
    assert max(norm, block) < 0.65 * none


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from PyTorch's compiler, about its own code
def test_a_compiled_network_is_predicted_as_uncompiled_with_a_note() -> None:
    """The prediction does not see the compiled code, so a note says so."""
    peaks, notes = [], []
    for compiled in (False, True):
        method = METHODS["ppdm"].with_network(width=8, compile=compiled)
        work = workload(method, "train", (16, 16, 16), 1, "cuda")
        peaks.append(predict_peak(work.build, work.step, work.iterations, Target()).peak_allocated)
        notes.append(uncompiled(method))
    assert peaks[0] == peaks[1]
    assert notes[0] == ""
    assert "compiler can change its memory" in notes[1]


def test_channels_last_needs_more_memory_as_group_norm_returns_contiguous_tensors() -> None:
    peaks = []
    for layout in (False, True):
        method = METHODS["ppdm"].with_factor(2).with_network(width=8, multipliers=(1, 2), channels_last=layout)
        work = workload(method, "train", (32, 32, 32), 1, "cpu")
        peaks.append(measure_peak(work.build, work.step, work.iterations).peak_allocated)
        assert predict_peak(work.build, work.step, work.iterations, "cpu").peak_allocated == peaks[-1]
    assert peaks[1] > 1.05 * peaks[0]

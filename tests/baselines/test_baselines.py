"""Tests that every registered method must pass, with tiny networks."""

from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from tiny_methods import generator, network, tiny, volumes
from torch import Tensor

from ppdm import Method, fit, load, sample, training_loss, translate
from ppdm.checkpoint import Trained, save
from ppdm.data.normalise import Range
from ppdm.data.scaling import PercentileScaling
from ppdm.kernel import Linear
from ppdm.method import DIFFUSION, STAGE_LOSSES
from ppdm_baselines import METHODS, PRESETS, patch, slice25d
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import measure_peak, predict_peak

ODD = (5, 7, 6)  # anisotropic, without a common divisor


TINY = {name: tiny(method) for name, method in METHODS.items()}
EVERY = pytest.mark.parametrize("method", TINY.values(), ids=TINY)
ALL = {f"{name} {preset}": tiny(method) for preset, methods in PRESETS.items() for name, method in methods.items()}
EVERY_PRESET = pytest.mark.parametrize("method", ALL.values(), ids=ALL)
EVERY_STAGE = pytest.mark.parametrize(
    ("method", "stage"),
    [(method, stage) for method in ALL.values() for stage in method.stages],
    ids=[f"{name} {stage}" for name, method in ALL.items() for stage in method.stages],
)
# Phases that only train or apply an autoencoder are tested once per representation, because they depend on nothing
# else. All other phases are tested once per method, with the authors' network if there is one. It differs from the
# matched network in attention, resampling, skips or conditioning. `ppdm`, `gan3d` and `regression` have the matched
# network.
PHASES = {
    (phase, method.representation if phase in ("autoencoder_train", "decode") else method.name): (name, phase)
    for name, method in ALL.items()
    for phase in method.phases
}
EVERY_PHASE = pytest.mark.parametrize(
    ("method", "phase"),
    [(ALL[name], phase) for name, phase in PHASES.values()],
    ids=[f"{name} {phase}" for name, phase in PHASES.values()],
)


# Every method --------------------------------------------------------------------------------------------------------


@EVERY_PRESET
def test_a_sample_has_the_sources_shape_and_is_finite(method: Method) -> None:
    out = sample(method, network(method), volumes(2, 1, *ODD), generator())
    assert out.shape == (2, 1, *ODD)
    assert out.isfinite().all()


@EVERY_STAGE
def test_the_loss_is_one_finite_number_per_subject_and_reaches_every_parameter(method: Method, stage: str) -> None:
    net = network(method)
    loss = STAGE_LOSSES[stage](method, net, volumes(3, 1, *ODD), volumes(3, 1, *ODD, seed=1), generator())
    assert loss.shape == (3,)
    assert loss.isfinite().all()
    loss.mean().backward()
    trained = method.part(net, stage)
    assert [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.any()] == []


@EVERY
def test_the_seed_determines_the_loss_and_the_sample(method: Method) -> None:
    net, source, target = network(method), volumes(1, 1, *ODD), volumes(1, 1, *ODD, seed=1)
    first, again, other = (training_loss(method, net, source, target, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    # A loss without noise, at a fixed time and on the whole volume is not random.
    certain = method.optimisation.at_start == 1 and isinstance(method.kernel, Linear)
    assert torch.equal(first, other) == certain
    first, again = (sample(method, net, source, generator(3)) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.slow
@EVERY
def test_a_subject_is_predicted_in_a_batch_as_if_it_were_alone(method: Method) -> None:
    net, channels = method.part(network(method), DIFFUSION), method.representation.channels(1)
    x, y, t = volumes(3, channels, 8, 8, 8), volumes(3, channels, 8, 8, 8, seed=1), torch.tensor([0.1, 0.5, 1.0])
    with torch.no_grad():
        together = method.window.apply(net, x, t, y)
        alone = torch.cat([method.window.apply(net, x[[k]], t[[k]], y[[k]]) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@EVERY
def test_a_sample_does_not_depend_on_the_other_subjects_of_the_batch(method: Method) -> None:
    """Noise is sampled only once here, so the first subject gets the same noise alone and in a batch."""
    method = replace(method, sampling=replace(method.sampling, stochastic=False))
    net, source = network(method), volumes(2, 1, 8, 8, 8)
    together, alone = (sample(method, net, y, generator()) for y in (source, source[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-4)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """Return a source and a target of different contrast, (8, 8, 8) in [-1, 1]: an ellipsoid with an insert."""
    d, h, w = np.meshgrid(*[np.linspace(-1, 1, 8)] * 3, indexing="ij")
    target = np.where(d**2 + h**2 / 0.8 + w**2 / 0.6 < 0.8, 0.0, -1.0)
    target[(d - 0.2) ** 2 + h**2 + (w + 0.1) ** 2 < 0.15] = 0.8
    return (-target / 2 + 0.3 * np.sin(3 * h)).astype(np.float32), target.astype(np.float32)


def psnr(result: Tensor, target: np.ndarray) -> float:
    """Return the PSNR in dB, for a data range of 2."""
    return float(10 * np.log10(4 / np.mean((result.numpy() - target) ** 2)))


# Training steps and learning rate. Methods that predict noise need more steps, and most of all from patches of 4³ of a
# volume of 8³.
LEARNING = {
    "ddpm3d": (120, 6e-3),
    "patch": (600, 6e-3),
    "slice25d": (50, 4e-3),
    "latent": (200, 1e-2),
    "latent_flow": (125, 1e-2),
    "latent_bridge": (125, 1e-2),
    "gan3d": (75, 3e-3),
}


@pytest.mark.slow
@EVERY
def test_one_volume_is_learned_to_15_db(method: Method) -> None:
    """For comparison: the mean value of the target has 10 dB, and the source has 3 dB."""
    source, target = phantom()
    steps, rate = LEARNING.get(method.name, (30, 6e-3))
    method = replace(
        method.with_network(width=16),
        sampling=replace(method.sampling, steps=min(METHODS[method.name].sampling.steps, 20)),
        optimisation=replace(method.optimisation, learning_rate=rate, warmup=10, ema=0.9),
    )
    net = fit(method, [(source, target)] * 4, steps=steps, batch_size=4)
    result = sample(method, net, torch.from_numpy(source)[None, None], generator())[0, 0]
    assert psnr(result, target) > 15


# Prediction, files, geometry -----------------------------------------------------------------------------------------


def assert_predicted(method: Method, phase: str) -> None:
    """Check that the predicted peak equals the measured one, for two volumes of sizes that need padding."""
    work = workload(method, phase, (9, 17, 12), 2, "cpu")
    measured = measure_peak(work.build, work.step, work.iterations)
    predicted = predict_peak(work.build, work.step, work.iterations, target="cpu")
    assert (predicted.iterations, predicted.breakdown) == (measured.iterations, measured.breakdown)
    assert predicted.peak_allocated == measured.peak_allocated > 0


@pytest.mark.slow
@EVERY_PHASE
def test_every_phase_is_predicted_to_the_byte(method: Method, phase: str) -> None:
    assert_predicted(method, phase)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method", [patch.STITCHED, slice25d.AXIAL, slice25d.PRIOR_START], ids=["stitched", "axial", "prior start"]
)
def test_variants_are_predicted_to_the_byte(method: Method) -> None:
    assert_predicted(tiny(method), "sample")


def trained(method: Method, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Trained:
    return Trained(method, network(method).eval(), PercentileScaling(Range(0.0, 10.0)), spacing, 1, 0)


@EVERY_PRESET
def test_a_checkpoint_restores_the_method_and_its_samples(method: Method, tmp_path: Path) -> None:
    assert Method.from_dict(method.to_dict()) == method
    before = trained(method)
    after = load(save(tmp_path, before))
    assert after.method == method
    samples = [sample(t.method, t.network, volumes(1, 1, *ODD), generator()) for t in (before, after)]
    assert torch.equal(*samples)


@EVERY
def test_a_translation_has_the_geometry_of_its_input(method: Method, tmp_path: Path) -> None:
    affine = np.array([[0, -0.9, 0.1, 5], [1.1, 0, 0, -7], [0, 0.1, 1, 30], [0, 0, 0, 1]])  # not in RAS order
    data = np.random.default_rng(0).random((6, 5, 7)).astype(np.float32)
    nib.save(nib.Nifti1Image(data, affine), tmp_path / "in.nii.gz")
    translate(trained(method, (0.9, 1.1, 1.0)), tmp_path / "in.nii.gz", tmp_path / "out.nii.gz")
    source, result = (nib.load(tmp_path / name) for name in ("in.nii.gz", "out.nii.gz"))
    assert result.shape == source.shape
    assert np.array_equal(result.affine, source.affine)
    assert np.isfinite(result.get_fdata()).all()

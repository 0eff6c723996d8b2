"""Every registered method, made tiny, through everything that is asked of one; and each baseline's own numbers."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ppdm import Method, UNet, fit, load, sample, training_loss, translate
from ppdm.checkpoint import Trained, save
from ppdm.data.normalise import Range
from ppdm.data.scaling import PercentileScaling
from ppdm.kernel import Gaussian, target_of
from ppdm.method import Optimisation, Sampling
from ppdm.slices import Slices
from ppdm.train import Training
from ppdm.window import Whole
from ppdm_baselines import AUTHORS, METHODS, PRESETS, ddpm3d, patch, slice25d, wavelet
from ppdm_bench.catalogue import parameter_count
from ppdm_bench.memory.predict import measure_peak, predict_peak

ODD = (5, 7, 6)  # divisible by nothing, anisotropic


def tiny(method: Method, steps: int = 2) -> Method:
    """The method with the smallest network that has two levels, and few steps."""
    attention = method.network.attention and (False, any(method.network.attention))
    method = method.with_network(
        width=8, multipliers=(1, 2), residual_blocks=1, norm_groups=4, attention=attention, head_channels=4
    )
    if isinstance(method.window, Slices):
        method = replace(method, window=replace(method.window, context=1, drawn=2, batch=4))
    return replace(method, sampling=replace(method.sampling, steps=min(steps, method.sampling.steps)))


TINY = {name: tiny(method) for name, method in METHODS.items()}
EVERY = pytest.mark.parametrize("method", TINY.values(), ids=TINY)
EVERY_PRESET = pytest.mark.parametrize(
    "method",
    [tiny(method) for methods in PRESETS.values() for method in methods.values()],
    ids=[f"{name} {preset}" for preset, methods in PRESETS.items() for name in methods],
)


def volumes(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def network(method: Method) -> nn.Module:
    """A network that does not return zeros."""
    torch.manual_seed(0)
    net = method.build()
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return net


# What is asked of every method ---------------------------------------------------------------------------------------


@EVERY_PRESET
def test_a_sample_has_the_sources_shape_and_is_finite(method: Method) -> None:
    out = sample(method, network(method), volumes(2, 1, *ODD), generator())
    assert out.shape == (2, 1, *ODD)
    assert out.isfinite().all()


@EVERY_PRESET
def test_the_loss_is_one_finite_number_a_subject_and_reaches_every_parameter(method: Method) -> None:
    net = network(method)
    loss = training_loss(method, net, volumes(3, 1, *ODD), volumes(3, 1, *ODD, seed=1), generator())
    assert loss.shape == (3,)
    assert loss.isfinite().all()
    loss.mean().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@EVERY
def test_the_seed_fixes_the_loss_and_the_sample(method: Method) -> None:
    net, source, target = network(method), volumes(1, 1, *ODD), volumes(1, 1, *ODD, seed=1)
    first, again, other = (training_loss(method, net, source, target, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    # Without noise, at one time and of the whole volume nothing is left to chance.
    assert torch.equal(first, other) == (method.name == "regression")
    first, again = (sample(method, net, source, generator(3)) for _ in range(2))
    assert torch.equal(first, again)


@EVERY
def test_a_subject_is_predicted_as_if_it_were_alone(method: Method) -> None:
    net, channels = network(method), method.representation.channels(1)
    x, y, t = volumes(3, channels, 8, 8, 8), volumes(3, channels, 8, 8, 8, seed=1), torch.tensor([0.1, 0.5, 1.0])
    with torch.no_grad():
        together = method.window.apply(net, x, t, y)
        alone = torch.cat([method.window.apply(net, x[[k]], t[[k]], y[[k]]) for k in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@EVERY
def test_a_sample_does_not_depend_on_the_other_subjects(method: Method) -> None:
    """Where noise is drawn once, the first of a batch has the noise that it has alone: a generator fills in order."""
    method = replace(method, sampling=replace(method.sampling, stochastic=False))
    net, source = network(method), volumes(2, 1, 8, 8, 8)
    together, alone = (sample(method, net, y, generator()) for y in (source, source[:1]))
    torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-4)


def phantom() -> tuple[np.ndarray, np.ndarray]:
    """A source of another contrast and a target, (8, 8, 8) in [-1, 1]: an ellipsoid with an insert."""
    d, h, w = np.meshgrid(*[np.linspace(-1, 1, 8)] * 3, indexing="ij")
    target = np.where(d**2 + h**2 / 0.8 + w**2 / 0.6 < 0.8, 0.0, -1.0)
    target[(d - 0.2) ** 2 + h**2 + (w + 0.1) ** 2 < 0.15] = 0.8
    return (-target / 2 + 0.3 * np.sin(3 * h)).astype(np.float32), target.astype(np.float32)


def psnr(result: Tensor, target: np.ndarray) -> float:
    """In dB, of a range of 2."""
    return float(10 * np.log10(4 / np.mean((result.numpy() - target) ** 2)))


# Predicting noise takes longer to learn, and longer still from patches of 4³ for a volume of 8³.
LEARNING_STEPS = {"ddpm3d": 300, "patch": 800}


@EVERY
def test_one_volume_is_learned_to_15_db(method: Method) -> None:
    """Its mean value would have 10 dB, the source has 3."""
    source, target = phantom()
    method = replace(
        method.with_network(width=16),
        sampling=replace(method.sampling, steps=min(METHODS[method.name].sampling.steps, 20)),
        optimisation=replace(method.optimisation, learning_rate=3e-3, warmup=10, ema=0.9),
    )
    net = fit(method, [(source, target)] * 8, steps=LEARNING_STEPS.get(method.name, 150), batch_size=8)
    result = sample(method, net, torch.from_numpy(source)[None, None], generator())[0, 0]
    assert psnr(result, target) > 15


# Prediction, files, geometry -----------------------------------------------------------------------------------------


def assert_predicted(build: Callable[[], Any], step: Callable[[Any], Any], iterations: int) -> None:
    measured = measure_peak(build, step, iterations)
    predicted = predict_peak(build, step, iterations, target="cpu")
    assert (predicted.iterations, predicted.breakdown) == (measured.iterations, measured.breakdown)
    assert predicted.peak_allocated == measured.peak_allocated > 0


UNEVEN = (9, 17, 12)


@EVERY_PRESET
def test_training_is_predicted_to_the_byte(method: Method) -> None:
    def step(training: Training) -> None:
        training.step(torch.randn(2, 1, *UNEVEN), torch.randn(2, 1, *UNEVEN), 1e-4)

    assert_predicted(lambda: Training.start(method), step, iterations=2)


@EVERY_PRESET
def test_sampling_is_predicted_to_the_byte(method: Method) -> None:
    def step(net: nn.Module) -> None:
        sample(method, net, torch.randn(2, 1, *UNEVEN))

    assert_predicted(lambda: method.build().eval().requires_grad_(False), step, iterations=1)


@pytest.mark.parametrize(
    "method", [patch.STITCHED, slice25d.AXIAL, slice25d.PRIOR_START], ids=["stitched", "axial", "prior start"]
)
def test_variants_are_predicted_to_the_byte(method: Method) -> None:
    method = tiny(method)

    def step(net: nn.Module) -> None:
        sample(method, net, torch.randn(1, 1, *UNEVEN))

    assert_predicted(lambda: method.build().eval().requires_grad_(False), step, iterations=1)


def trained(method: Method, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> Trained:
    return Trained(method, network(method).eval(), PercentileScaling(Range(0.0, 10.0)), spacing, 1, 0)


@EVERY_PRESET
def test_a_checkpoint_gives_back_method_and_samples(method: Method, tmp_path: Path) -> None:
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


# Each baseline's own numbers -----------------------------------------------------------------------------------------


def test_matched_means_one_network() -> None:
    """All 3-D methods differ in parameters by their first and last convolutions alone."""
    networks = {method.network for method in METHODS.values()}
    assert networks == {METHODS["ppdm"].network}
    counts = [parameter_count(m.build) for m in METHODS.values() if not isinstance(m.window, Slices)]
    assert max(counts) - min(counts) < 27 * 64 * 24


def test_cwdm_has_as_many_parameters_as_published() -> None:
    """Four networks of 326 M in all (arXiv 2604.21146), each for three sources: 8 + 24 channels in, 8 out."""
    count = parameter_count(lambda: UNet(32, 8, 3, wavelet.AUTHORS.network))
    assert count == 81_511_048
    assert round(4 * count / 1e6) == 326


def test_patchddm_and_madm_have_the_parameters_that_their_repositories_build() -> None:
    """Counted from guided_diffusion/unet.py of each, for their channels.

    PatchDDM: 24,260,299; its 29 sinusoids are a padded pair more than our 28, times 116 weights. MADM: 110,271,385 a
    view, of which 371,008 belong to an embedding that its forward pass does not use.
    """
    assert parameter_count(lambda: UNet(8, 1, 3, patch.AUTHORS.network)) == 24_260_299 - 116
    assert parameter_count(lambda: UNet(18, 1, 2, slice25d.AUTHORS.network)) == 110_271_385 - 371_008
    assert parameter_count(slice25d.AUTHORS.build) == 3 * (110_271_385 - 371_008)


class Oracle(nn.Module):
    """Answers from the target itself, whatever is asked."""

    def __init__(self, method: Method, x0: Tensor, y: Tensor) -> None:
        super().__init__()
        self.method, self.x0, self.y = method, x0, y

    def forward(self, seen: Tensor, times: Tensor) -> Tensor:
        x_t, t, kernel = seen[:, :1], times.reshape(-1, 1, 1, 1, 1), self.method.kernel
        a, b, sigma = kernel.coefficients(t)
        noise = (x_t - a * self.x0 - b * self.y) / sigma
        return target_of(self.method.target, kernel, self.x0, x_t, self.y, t, noise)


@pytest.mark.parametrize("stochastic", [True, False], ids=["DDPM", "DDIM"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("target", ["noise", "x0"])
def test_full_3d_has_both_targets_schedules_and_samplers(target: str, schedule: str, stochastic: bool) -> None:
    method = replace(
        ddpm3d.MATCHED, kernel=Gaussian(schedule), target=target, sampling=Sampling(25, stochastic, clamp=1.0)
    )
    x0, y = volumes(2, 1, 8, 8, 8).clamp(-1, 1), volumes(2, 1, 8, 8, 8, seed=1)
    torch.testing.assert_close(sample(method, Oracle(method, x0, y), y, generator()), x0, rtol=0, atol=2e-3)


def test_the_regression_is_one_evaluation_of_the_source_at_the_start() -> None:
    method = METHODS["regression"]
    seen: list[tuple[Tensor, Tensor]] = []

    class Recorder(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append((x, t))
            return torch.ones_like(x)

    source, target = volumes(2, 1, 16, 16, 16), volumes(2, 1, 16, 16, 16, seed=1)
    torch.testing.assert_close(sample(method, Recorder(), source), source + 1)
    training_loss(method, Recorder(), source, target, generator())
    assert len(seen) == 2
    for x, t in seen:
        assert torch.equal(x, method.representation.encode(source))
        assert t.tolist() == [1.0, 1.0]


def test_a_prior_start_is_the_noised_source_at_a_fifth_of_the_path() -> None:
    method = replace(slice25d.MATCHED, sampling=slice25d.PRIOR_START.sampling, window=Whole())
    x0, y = volumes(1, 1, 8, 8, 8).clamp(-1, 1), volumes(1, 1, 8, 8, 8, seed=1)
    inputs: list[tuple[Tensor, Tensor]] = []

    class Recorder(Oracle):
        def forward(self, seen: Tensor, times: Tensor) -> Tensor:
            inputs.append((seen[:, :1], times))
            return super().forward(seen, times)

    out = sample(method, Recorder(method, x0, y), y, generator())
    a, _, sigma = method.kernel.coefficients(torch.tensor(0.2))
    torch.testing.assert_close(inputs[0][0], a * y + sigma * torch.randn(y.shape, generator=generator()))
    torch.testing.assert_close(torch.cat([t for _, t in inputs]), torch.linspace(0.2, 0.001, 200))
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-2)


def test_the_authors_presets_differ_in_network_budget_and_optimiser_alone() -> None:
    for name, method in AUTHORS.items():
        same = replace(
            method,
            network=METHODS[name].network,
            sampling=METHODS[name].sampling,
            optimisation=METHODS[name].optimisation,
        )
        assert same == METHODS[name]
        assert method.optimisation != Optimisation()

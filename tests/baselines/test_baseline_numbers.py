"""Numbers of each baseline: parameters as in the authors' code, and behaviour as its documentation states."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny_methods import generator, volumes
from torch import Tensor, nn

from ppdm import Method, UNet, sample, training_loss
from ppdm.kernel import Gaussian, target_of
from ppdm.method import DIFFUSION, REPRESENTATION, Optimisation, Sampling
from ppdm.slices import Slices
from ppdm.window import Whole
from ppdm_baselines import AUTHORS, METHODS, ddpm3d, latent, latent_flow, patch, slice25d, wavelet, wfm
from ppdm_bench.commands.methods import parameter_count


def diffusion(method: Method) -> nn.Module:
    """Return only the diffusion network."""
    return method.part(method.build(), DIFFUSION)


def test_matched_methods_share_one_network() -> None:
    """The parameter counts of all 3-D methods differ only in the first and last convolutions."""
    networks = {method.network for method in METHODS.values()}
    assert networks == {METHODS["ppdm"].network}
    counts = [parameter_count(lambda m=m: diffusion(m)) for m in METHODS.values() if not isinstance(m.window, Slices)]
    assert max(counts) - min(counts) < 27 * 64 * 24


def test_cwdm_has_as_many_parameters_as_published() -> None:
    """The paper has four networks of 326 M in all (arXiv 2604.21146), each for 3 sources: 8 + 24 channels in, 8 out."""
    count = parameter_count(lambda: UNet(32, 8, 3, wavelet.AUTHORS.network))
    assert count == 81_511_048
    assert round(4 * count / 1e6) == 326


def test_wfm_has_as_many_parameters_as_published() -> None:
    """The paper has one network of 82 M for all 4 contrasts (abstract of arXiv 2604.21146).

    Its 4 class embeddings of 256 identify the contrast.
    """
    count = parameter_count(lambda: UNet(32, 8, 3, wfm.AUTHORS.network)) + 4 * 4 * wfm.AUTHORS.network.width
    assert round(count / 1e6) == 82


def test_patchddm_and_madm_have_the_parameters_that_their_repositories_build() -> None:
    """The expected numbers are counted from guided_diffusion/unet.py of each repository, for its channels.

    PatchDDM: 24,260,299; it pads its time embedding to 29 values, ours has 28, and each value has 116 weights. MADM:
    110,271,385 per view, of which 371,008 belong to an embedding that its forward pass does not use.
    """
    assert parameter_count(lambda: UNet(8, 1, 3, patch.AUTHORS.network)) == 24_260_299 - 116
    assert parameter_count(lambda: UNet(18, 1, 2, slice25d.AUTHORS.network)) == 110_271_385 - 371_008
    assert parameter_count(slice25d.AUTHORS.build) == 3 * (110_271_385 - 371_008)


@pytest.mark.slow
def test_latent_diffusion_has_the_networks_that_monais_tutorial_builds() -> None:
    """Source: Project-MONAI/GenerativeModels, tutorials/generative/3d_ldm/3d_ldm_tutorial.py, without a condition."""
    nets = pytest.importorskip("monai.networks.nets")

    def theirs() -> nn.Module:
        return nets.DiffusionModelUNet(
            spatial_dims=3,
            in_channels=3,
            out_channels=3,
            num_res_blocks=1,
            channels=(32, 64, 64),
            attention_levels=(False, True, True),
            num_head_channels=(0, 64, 64),
        )

    assert parameter_count(lambda: UNet(3, 3, 3, latent.AUTHORS.network)) == parameter_count(theirs)


@pytest.mark.slow
def test_latent_flow_has_the_networks_of_maisis_configuration() -> None:
    """Source: configs/config_network_rflow.json, without spacings and classes; our autoencoder has 4 more blocks."""
    nets = pytest.importorskip("monai.networks.nets")
    ours = latent_flow.AUTHORS

    def diffusion_network() -> nn.Module:
        return nets.DiffusionModelUNet(
            spatial_dims=3,
            in_channels=4,
            out_channels=4,
            channels=(64, 128, 256, 512),
            attention_levels=(False, False, True, True),
            num_head_channels=(0, 0, 32, 32),
            num_res_blocks=2,
            resblock_updown=True,
        )

    def autoencoder() -> nn.Module:
        return nets.AutoencoderKL(
            spatial_dims=3,
            channels=(64, 128, 256),
            attention_levels=(False, False, False),
            num_res_blocks=(2, 2, 2),
            latent_channels=4,
            norm_num_groups=32,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

    assert parameter_count(lambda: UNet(4, 4, 3, ours.network)) == parameter_count(diffusion_network)
    middle = 2 * (27 * 256**2 + 256) + 2 * 2 * 256  # one block: two convolutions and two normalisations
    found = parameter_count(lambda: ours.part(ours.build(), REPRESENTATION))
    assert found == parameter_count(autoencoder) + 4 * middle


class Oracle(nn.Module):
    """A perfect network: it knows the target, and returns the exact prediction."""

    def __init__(self, method: Method, x0: Tensor, y: Tensor) -> None:
        super().__init__()
        self.method, self.x0, self.y = method, x0, y

    def forward(self, parts: Sequence[Tensor], times: Tensor) -> Tensor:
        seen = torch.cat(list(parts), dim=1)
        x_t, t, kernel = seen[:, :1], times.reshape(-1, 1, 1, 1, 1), self.method.kernel
        a, b, sigma = kernel.coefficients(t)
        noise = (x_t - a * self.x0 - b * self.y) / sigma
        return target_of(self.method.target, kernel, self.x0, x_t, self.y, t, noise)


@pytest.mark.slow
@pytest.mark.parametrize("stochastic", [True, False], ids=["DDPM", "DDIM"])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("target", ["noise", "x0"])
def test_full_3d_works_with_both_targets_schedules_and_samplers(target: str, schedule: str, stochastic: bool) -> None:
    method = replace(
        ddpm3d.MATCHED, kernel=Gaussian(schedule), target=target, sampling=Sampling(25, stochastic, clamp=1.0)
    )
    x0, y = volumes(2, 1, 8, 8, 8).clamp(-1, 1), volumes(2, 1, 8, 8, 8, seed=1)
    torch.testing.assert_close(sample(method, Oracle(method, x0, y), y, generator()), x0, rtol=0, atol=2e-3)


def test_the_regression_evaluates_the_source_once_at_time_one() -> None:
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


def test_a_prior_start_begins_with_the_noised_source_at_a_fifth_of_the_path() -> None:
    method = replace(slice25d.MATCHED, sampling=slice25d.PRIOR_START.sampling, window=Whole())
    x0, y = volumes(1, 1, 8, 8, 8).clamp(-1, 1), volumes(1, 1, 8, 8, 8, seed=1)
    inputs: list[tuple[Tensor, Tensor]] = []

    class Recorder(Oracle):
        def forward(self, parts: Sequence[Tensor], times: Tensor) -> Tensor:
            seen = torch.cat(list(parts), dim=1)
            inputs.append((seen[:, :1], times))
            return super().forward(parts, times)

    out = sample(method, Recorder(method, x0, y), y, generator())
    a, _, sigma = method.kernel.coefficients(torch.tensor(0.2))
    torch.testing.assert_close(inputs[0][0], a * y + sigma * torch.randn(y.shape, generator=generator()))
    torch.testing.assert_close(torch.cat([t for _, t in inputs]), torch.linspace(0.2, 0.001, 200))
    torch.testing.assert_close(out, x0, rtol=0, atol=1e-2)


def test_authors_presets_differ_only_in_networks_sampling_and_optimisation() -> None:
    for name, method in AUTHORS.items():
        matched = METHODS[name]
        same = replace(method, network=matched.network, sampling=matched.sampling, optimisation=matched.optimisation)
        if method.representation.is_learned:  # a learned representation is a network too
            same = replace(same, representation=matched.representation)
        assert same == matched
        assert method.optimisation != Optimisation()

"""The autoencoder, its training stage, and the consequences of a learned representation."""

from dataclasses import replace
from itertools import islice

import pytest
import torch
from tiny_methods import generator, tiny, volumes
from tiny_training import pair, same

from ppdm import Method, UNetOptions, fit, training_loss
from ppdm.checkpoint import Trained
from ppdm.data.normalise import Range
from ppdm.data.scaling import PercentileScaling, Scaling, SUVScaling
from ppdm.data.volume import Volume
from ppdm.evaluation.evaluate import convention, reconstruct_target, reconstruction_scores
from ppdm.evaluation.subjects import EvaluationCase
from ppdm.kernel import Brownian
from ppdm.loss import Loss
from ppdm.method import DIFFUSION, REPRESENTATION, reconstruct, representation_loss
from ppdm.network.autoencoder import Autoencoder
from ppdm.pixel_puzzle import crop, pad_to_multiple
from ppdm.training.loop import train
from ppdm.training.schedule import Part, Schedule, TrainingError, parts
from ppdm.training.trainer import Training
from ppdm_baselines import METHODS, latent

TINY = Autoencoder(width=4, multipliers=(1, 2), attention=(False, True), norm_groups=2, latent_channels=3)
METHOD = tiny(latent.MATCHED)
PAIRS = [pair(seed) for seed in range(2)]


def made(how: Autoencoder = TINY, channels: int = 1, network: UNetOptions = METHOD.network):
    torch.manual_seed(0)
    return how.build(channels, network)


# The autoencoder ------------------------------------------------------------------------------------------------------


def test_latents_and_decoded_volumes_have_the_documented_shapes_and_subjects_are_independent() -> None:
    net, x = made(channels=2), volumes(3, 2, 4, 8, 6)
    z = net.encode(x)
    decoded = net.decode(z)
    assert z.shape == (3, TINY.channels(2), 2, 4, 3)
    assert decoded.shape == (3, 2, 4, 8, 6)
    torch.testing.assert_close(net.encode(x[1:]), z[1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(net.decode(z[1:]), decoded[1:], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_after_training_the_latents_decode_to_the_volumes() -> None:
    net = made(channels=2)
    x = torch.nn.functional.interpolate(volumes(2, 2, 2, 2, 2), size=(4, 8, 6), mode="trilinear")
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-2)
    for step in range(40):
        optimiser.zero_grad()
        net.loss(x, generator(step)).mean().backward()
        optimiser.step()
    with torch.no_grad():
        assert (net.decode(net.encode(x)) - x).abs().mean() < 0.3 * x.abs().mean()


def test_the_loss_is_the_l1_error_plus_the_weighted_kl_divergence() -> None:
    """The reference sums KL(N(m, s²) ‖ N(0, 1)) by torch.distributions over the latent and decodes a sampled latent."""
    how = replace(TINY, kl=0.3)
    net, x = made(how), volumes(2, 1, 4, 4, 4)
    mean, log_variance = net.moments(net.encoder(x)).chunk(2, dim=1)
    deviation = (log_variance / 2).exp()
    z = mean + deviation * torch.randn(mean.shape, generator=generator())
    normal = torch.distributions.Normal
    divergence = torch.distributions.kl_divergence(normal(mean, deviation), normal(0.0, 1.0)).flatten(1).sum(1)
    error = (net.decode(z) - x).abs().flatten(1).mean(1)
    torch.testing.assert_close(net.loss(x, generator()), error + 0.3 * divergence)


def test_calibration_scales_latents_to_a_standard_deviation_of_1() -> None:
    net, x = made(), volumes(4, 1, 8, 8, 8)
    before, decoded = net.encode(x), net.decode(net.encode(x))
    net.calibrate(iter([x[:2], x[2:]]))
    assert net.encode(x).std().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(net.encode(x) * before.std(), before)
    torch.testing.assert_close(net.decode(net.encode(x)), decoded)  # the scale of the latent does not change the volume


def test_clamp_limits_the_decoded_volume() -> None:
    net = made()
    z = net.encode(volumes(1, 1, 4, 4, 4))
    torch.testing.assert_close(net.clamp(z, 0.01), net.encode(net.decode(z).clamp(-0.01, 0.01)))


def test_calibration_refuses_constant_latents() -> None:
    net = made()
    for parameter in net.moments.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="standard deviation of 0"):
        net.calibrate([volumes(1, 1, 4, 4, 4)])


@pytest.mark.parametrize("checkpointing", ["norm", "block"])
def test_checkpointing_does_not_change_the_gradients(checkpointing: str) -> None:
    gradients = []
    for how in ("none", checkpointing):
        net = made(network=replace(METHOD.network, checkpointing=how))
        net.loss(volumes(1, 1, 4, 4, 4), generator()).sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_the_autoencoder_uses_the_precision_of_the_network_options() -> None:
    net = made(network=replace(METHOD.network, precision="bf16"))
    x = volumes(1, 1, 8, 8, 8)
    assert net.encode(x).dtype == torch.float32
    torch.testing.assert_close(net.encode(x), made().encode(x), rtol=0.1, atol=0.1)
    assert not torch.equal(net.encode(x), made().encode(x))


@pytest.mark.slow
def test_the_parameter_count_equals_that_of_monais_autoencoder() -> None:
    """The options are from Project-MONAI/GenerativeModels, tutorials/generative/3d_ldm/3d_ldm_tutorial.py."""
    nets = pytest.importorskip("monai.networks.nets")
    with torch.device("meta"):
        theirs = nets.AutoencoderKL(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=(32, 64, 64),
            latent_channels=3,
            num_res_blocks=1,
            norm_num_groups=16,
            attention_levels=(False, False, True),
        )
        ours = latent.MATCHED.representation.build(1, UNetOptions())
    count = [sum(p.numel() for p in net.parameters()) for net in (theirs, ours)]
    assert count[0] == count[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width must be a positive integer"),
        ({"attention": (True, False, False, False)}, "attention has 4 levels and multipliers 3"),
        ({"latent_channels": 0}, "latent_channels must be a positive integer up to 65536, got 0"),
        ({"kl": -1.0}, "must not be negative"),
        ({"share": 1.0}, r"share must be a fraction of the training in \(0, 1\), got 1.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Autoencoder(**options)


def test_sizes_that_are_not_multiples_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5, 4\) must be multiples of \(2, 2, 2\)"):
        made().encode(volumes(1, 1, 4, 5, 4))


# Training stage -------------------------------------------------------------------------------------------------------


def test_the_loss_of_each_stage_has_gradients_only_for_its_own_parameters() -> None:
    for stage, loss in ((REPRESENTATION, representation_loss), (DIFFUSION, training_loss)):
        torch.manual_seed(0)
        net = METHOD.build()
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
        values = loss(METHOD, net, volumes(3, 1, 5, 7, 6), volumes(3, 1, 5, 7, 6, seed=1), generator())
        assert values.shape == (3,)
        values.mean().backward()
        reached = {name for name, p in net.named_parameters() if p.grad is not None and p.grad.any()}
        assert reached == {name for name, _ in net.named_parameters() if name.startswith(stage)}


def test_the_representation_loss_chooses_source_or_target_at_random() -> None:
    net = METHOD.build()
    black, white = torch.zeros(16, 1, 8, 8, 8), torch.ones(16, 1, 8, 8, 8)
    seen = []
    net[REPRESENTATION].loss = lambda x, _: seen.append(x) or x.flatten(1).mean(1)
    loss = representation_loss(METHOD, net, black, white, generator())
    assert set(loss.tolist()) == {0.0, 1.0}


def test_the_steps_are_divided_between_the_stages() -> None:
    method = replace(METHOD, representation=replace(METHOD.representation, share=0.3))
    assert parts(method) == [Part(0.0, 0.3), Part(0.3, 1.0)]
    reports = []
    fit(method, PAIRS, steps=10, progress=reports.append)
    assert [report.stage for report in reports] == [REPRESENTATION] * 3 + [DIFFUSION] * 7
    assert [report.share for report in reports] == pytest.approx(
        [k / 10 for k in range(1, 4)] + [k / 10 for k in range(4, 11)]
    )
    rates = [report.learning_rate for report in reports]
    assert rates[3] == max(rates)  # the learning rate rises and falls in each stage
    assert rates[2] < rates[0]


def test_the_diffusion_stage_uses_the_averaged_autoencoder_and_does_not_train_it() -> None:
    training = Training.start(METHOD)
    for seed in range(2):
        training.step(volumes(1, 1, 8, 8, 8), volumes(1, 1, 8, 8, 8, seed=1), 1e-2, generator(seed))
    source, target = volumes(2, 1, 8, 8, 8)[:, None][:, 0].split(1)
    training.advance([source, target])
    assert training.is_last
    assert same(training.network[REPRESENTATION], training.average[REPRESENTATION])
    assert training.network[REPRESENTATION].deviation == training.average[REPRESENTATION].deviation != 1
    before = [p.clone() for p in training.network[REPRESENTATION].parameters()]
    training.step(source, target, 1e-2, generator())
    assert all(torch.equal(a, b) for a, b in zip(before, training.network[REPRESENTATION].parameters(), strict=True))
    assert not same(training.network[DIFFUSION], METHOD.build()[DIFFUSION])


def test_a_training_limited_in_minutes_takes_a_step_in_each_stage() -> None:
    reports = []
    train(METHOD, PAIRS, Schedule(minutes=1e-6), progress=reports.append)
    assert [report.stage for report in reports] == [REPRESENTATION, DIFFUSION]
    assert reports[0].share < 1 <= reports[1].share


def test_fewer_steps_than_stages_are_refused() -> None:
    with pytest.raises(TrainingError, match=r"trains in 2 stages .* got 1 in total"):
        fit(METHOD, PAIRS, steps=1)


def test_a_share_that_leaves_no_step_to_the_second_stage_is_refused() -> None:
    method = replace(METHOD, representation=replace(METHOD.representation, share=0.9))
    with pytest.raises(TrainingError, match=r"trains in 2 stages .* got 5 in total, divided into 5 and 0"):
        fit(method, PAIRS, steps=5)


def test_reports_contain_a_validation_loss_and_the_stage_if_there_are_several() -> None:
    reports = []
    fit(METHOD, PAIRS, steps=2, validation=PAIRS[:1], validate_every=1, progress=reports.append)
    assert all(report.validation_loss is not None for report in reports)
    assert reports[0].row()["stage"] == REPRESENTATION
    assert "stage" not in next(islice(_reports(METHODS["ppdm"]), 1)).row()


def _reports(method: Method):
    reports = []
    fit(tiny(method), PAIRS, steps=1, progress=reports.append)
    return iter(reports)


# Consequences ---------------------------------------------------------------------------------------------------------


def test_a_learned_representation_refuses_a_gradient_loss() -> None:
    with pytest.raises(ValueError, match="a learned representation cannot decode an error"):
        replace(METHODS["ppdm"], representation=TINY)
    bridge = replace(METHODS["ppdm"], representation=TINY, loss=Loss(), kernel=Brownian())
    assert bridge.phases == ("train", "sample", "autoencoder_train", "decode")
    assert Method.from_dict(bridge.to_dict()) == bridge


@pytest.mark.parametrize("scaling", [PercentileScaling(Range(200.0, 1000.0)), SUVScaling()], ids=["MRI", "PET"])
def test_the_ceiling_is_the_score_of_the_targets_decoded_latent(scaling: Scaling) -> None:
    """A perfect sampler returns the target's latent, so the ceiling is the PSNR of that decoded latent."""
    net = METHOD.build().eval()
    trained = Trained(METHOD, net, scaling, (1.0, 1.0, 1.0), 1, 0)
    target, source = (100 * volumes(12, 13, 14, seed=seed).abs() for seed in range(2))
    factor = 1.0 if isinstance(scaling, SUVScaling) else None
    case = EvaluationCase("s", target, source, None, Volume.from_array(target.numpy()), factor)

    _, scale = scaling.scales(source.numpy(), factor)
    padded = pad_to_multiple(scale.forward(target)[None, None], METHOD.multiple)
    codec = net[REPRESENTATION]
    with torch.no_grad():
        decoded = codec.decode(codec.encode(padded))
    expected = scale.inverse(crop(decoded, target.shape)[0, 0])
    (score,) = reconstruction_scores(convention(100.0), reconstruct_target(trained, case), case)
    assert score.metric == "reconstruction_psnr"
    assert score.value == pytest.approx(
        float(10 * torch.log10(100.0**2 / (expected - target).square().mean())), abs=1e-3
    )


def test_a_fixed_representation_reconstructs_its_input() -> None:
    x = volumes(1, 1, 5, 7, 6)
    for name in ("ppdm", "wavelet"):
        method = tiny(METHODS[name])
        torch.testing.assert_close(reconstruct(method, method.build(), x), x)

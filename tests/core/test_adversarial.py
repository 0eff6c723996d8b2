"""The adversarial loss, its discriminator, and the training of network and discriminator in one loop."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from tiny_methods import generator, tiny, volumes
from tiny_training import pair, same
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ppdm import Method, fit, training_loss
from ppdm.loss import Loss
from ppdm.network.autoencoder import Autoencoder
from ppdm.network.discriminator import PatchDiscriminator
from ppdm.network.layers import Convolution
from ppdm.network.options import UNetOptions
from ppdm.slices import Slices
from ppdm.training.run import Run
from ppdm.training.trainer import Training
from ppdm.training.validation import validation_loss
from ppdm_baselines import METHODS
from ppdm_bench.timing.arithmetic import step_flops

GAN = tiny(METHODS["gan3d"])
PLAIN = replace(GAN, loss=Loss(p=1))
OPTIONS = {"steps": 4, "batch_size": 2, "seed": 3}
PAIRS = [pair(number) for number in range(3)]


def cross_entropy(logits: Tensor, real: bool) -> Tensor:
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def gradients(module: nn.Module) -> list[Tensor]:
    return [one.grad.clone() for one in module.parameters() if one.grad is not None]


def assert_all_close(got: list[Tensor], wanted: list[Tensor]) -> None:
    assert len(got) == len(wanted) > 0
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


# --- the loss


def test_the_loss_equals_pix2pix_and_each_part_trains_only_its_own_network() -> None:
    """The reference is two backward passes with PyTorch's cross-entropy, each for the weights of one network."""
    network, discriminator = GAN.build(), GAN.build_discriminator()
    assert discriminator is not None
    source, target = volumes(2, 1, 8, 8, 8), volumes(2, 1, 8, 8, 8, seed=1)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    loss = training_loss(GAN, network, source, target, generator(), discriminator=discriminator)
    assert loss.shape == (2,)
    loss.mean().backward()
    got = gradients(network), gradients(discriminator)

    network.zero_grad(), discriminator.zero_grad()
    z = GAN.representation.encode(source)  # type: ignore[attr-defined]
    predicted = source + GAN.representation.decode(network(z, torch.ones(2)))  # type: ignore[attr-defined]
    own = (predicted - target).abs().mean() + 0.01 * cross_entropy(discriminator(predicted, source), True)
    own.backward()
    wanted = gradients(network)
    discriminator.zero_grad()
    real, unreal = discriminator(target, source), discriminator(predicted.detach(), source)
    others = (cross_entropy(real, True) + cross_entropy(unreal, False)) / 2
    others.backward()

    assert float(loss.mean().detach()) == pytest.approx(float((own + others).detach()), rel=1e-5)
    assert_all_close(got[0], wanted)
    assert_all_close(got[1], gradients(discriminator))


def test_without_a_discriminator_the_loss_is_the_reconstruction_loss() -> None:
    """Validation has no discriminator, so its loss is the same as without the adversarial term."""
    network, source, target = GAN.build(), volumes(2, 1, 8, 8, 8), volumes(2, 1, 8, 8, 8, seed=1)
    torch.testing.assert_close(
        training_loss(GAN, network, source, target), training_loss(PLAIN, network, source, target), rtol=0, atol=0
    )
    assert validation_loss(GAN, network, PAIRS) == validation_loss(PLAIN, network, PAIRS)


@pytest.mark.parametrize(
    "method",
    [
        replace(GAN, sources=("a", "b")),
        replace(GAN, window=Slices(views="dw", context=1, drawn=2)),
        replace(tiny(METHODS["sparse"]), loss=Loss(weight="scale", adversarial=1.0, discriminator_width=4)),
        replace(tiny(METHODS["wavelet"]), loss=Loss(adversarial=1.0, discriminator_width=4)),
    ],
    ids=["sources", "slices", "sparse", "wavelet"],
)
def test_the_adversarial_loss_works_with_other_methods(method: Method) -> None:
    network, discriminator = method.build(), method.build_discriminator()
    assert discriminator is not None
    source, target = volumes(2, len(method.sources), 5, 7, 6), volumes(2, 1, 5, 7, 6, seed=1)
    loss = training_loss(method, network, source, target, generator(), discriminator=discriminator)
    loss.mean().backward()
    assert loss.isfinite().all()
    for module in (network, discriminator):
        assert any(bool(gradient.any()) for gradient in gradients(module))
    alone = training_loss(method, network, source, target, generator())
    assert (loss > alone).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adversarial": -1.0}, "the weight of the adversarial term must not be negative, got -1"),
        ({"adversarial": float("inf")}, "must not be negative, got inf"),
        ({"adversarial": float("nan")}, "must not be negative, got nan"),
        ({"discriminator_width": 0}, "discriminator_width must be a positive integer up to 8192, got 0"),
        ({"discriminator_width": 8193}, "up to 8192, got 8193"),
        ({"discriminator_width": 2.0}, "got 2.0"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Loss(**options)


def test_a_learned_representation_is_refused() -> None:
    with pytest.raises(ValueError, match="the adversarial loss judges volumes, and a learned representation would"):
        replace(GAN, representation=Autoencoder())


def test_adversarial_options_are_stored_only_if_they_are_used() -> None:
    assert "adversarial" not in PLAIN.to_dict()["loss"]
    assert GAN.to_dict()["loss"] == {"p": 1, "gradient": 0.0, "mode": "off", "adversarial": 0.01} | {
        "discriminator_width": GAN.loss.discriminator_width
    }
    assert Method.from_dict(GAN.to_dict()) == GAN


def test_descriptions_of_versions_without_adversarial_options_are_read() -> None:
    """The loss had three fields at first; the weight, the adversarial term and its discriminator were added later."""
    first = {"p": 1, "gradient": 0.0, "mode": "off"}
    assert Method.from_dict(PLAIN.to_dict() | {"loss": first}) == PLAIN
    wide = replace(GAN, loss=Loss(p=1, adversarial=0.01, discriminator_width=64))
    assert Method.from_dict(GAN.to_dict() | {"loss": first | {"adversarial": 0.01}}) == wide


# --- the discriminator


def test_a_logit_has_a_receptive_field_of_63_voxels() -> None:
    """The test removes normalisation, because its statistics come from the whole volume."""
    network = PatchDiscriminator(2, UNetOptions(width=1, multipliers=(1, 1, 1, 1)))
    for index, layer in enumerate(network.discriminator):
        if isinstance(layer, nn.GroupNorm):
            network.discriminator[index] = nn.Identity()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    volume, source = torch.ones(1, 1, 96, 16, 16, requires_grad=True), torch.ones(1, 1, 96, 16, 16)
    logits = network(volume, source)
    assert logits.shape == (1, 1, 6, 1, 1)
    logits[0, 0, 3, 0, 0].backward()
    assert volume.grad is not None
    seen = volume.grad.abs().sum((0, 1, 3, 4)).nonzero().flatten().tolist()
    assert seen == list(range(48 - 31, 48 + 32))


@pytest.mark.parametrize("width", [2, 4])
def test_all_layers_but_the_first_and_the_last_are_normalised(width: int) -> None:
    network = PatchDiscriminator(2, UNetOptions(width=width, multipliers=(1, 2, 4, 8)))
    kinds = [isinstance(layer, nn.GroupNorm) for layer in network.discriminator]
    assert kinds == [False, False, *[False, True, False] * 3, False]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_discriminator_takes_any_size_and_uses_the_networks_precision(precision: str) -> None:
    discriminator = GAN.with_network(precision=precision).build_discriminator(channels=2)
    assert discriminator is not None
    logits = discriminator(volumes(2, 2, 1, 5, 17), volumes(2, 2, 1, 5, 17))
    assert (logits.shape, logits.dtype) == ((2, 1, 1, 1, 2), torch.float32)
    assert discriminator.discriminator[0](volumes(1, 4, 4, 4, 4)).dtype == getattr(
        torch, {"fp32": "float32", "bf16": "bfloat16"}[precision]
    )


# --- training


def test_both_networks_are_trained_and_only_the_generator_is_returned() -> None:
    training = Training.start(GAN)
    plain = Training.start(PLAIN)
    assert training.discriminator is not None
    assert same(training.network, plain.network)  # the initial weights do not depend on the loss
    before = [one.clone() for one in training.discriminator.parameters()]
    training.step(volumes(2, 1, 8, 8, 8), volumes(2, 1, 8, 8, 8, seed=1), 1e-3)
    after = list(training.discriminator.parameters())
    assert not any(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    network = fit(GAN, PAIRS, **OPTIONS)
    assert network.state_dict().keys() == GAN.build().state_dict().keys()
    assert not same(network, fit(PLAIN, PAIRS, **OPTIONS))


def test_the_gradients_of_each_network_are_clipped_separately() -> None:
    """Large gradients of the discriminator do not shrink the step of the other network."""
    training = Training.start(replace(GAN, optimisation=replace(GAN.optimisation, clip=0.5)))
    for module, value in zip(training.trained_modules, (1e-3, 10.0), strict=True):
        for parameter in module.parameters():
            parameter.grad = torch.full_like(parameter, value)
    numbers = [sum(one.numel() for one in module.parameters()) for module in training.trained_modules]
    kept: list[float] = []
    take = training.optimizer.step

    def watched(rate: float, scaler: torch.amp.GradScaler) -> None:
        kept.extend(float(torch.cat([g.flatten() for g in gradients(m)]).norm()) for m in training.trained_modules)
        take(rate, scaler)

    training.optimizer.step = watched  # type: ignore[method-assign]
    norm = training.update(1e-3)
    norms = [value * number**0.5 for value, number in zip((1e-3, 10.0), numbers, strict=True)]
    assert kept == pytest.approx([min(norms[0], 0.5), 0.5], rel=1e-3)
    assert float(norm) == pytest.approx((norms[0] ** 2 + norms[1] ** 2) ** 0.5, rel=1e-3)


def test_a_resumed_training_gives_the_same_weights_and_state(tmp_path) -> None:
    class Died(Exception):
        pass

    def die(report) -> None:
        if report.step == 3:
            raise Died

    def run(name: str, **options) -> nn.Module:
        return fit(
            GAN, PAIRS, run=Run(tmp_path / name, resume=True, save_steps=2, save_minutes=None), **OPTIONS, **options
        )

    whole = run("whole")
    with pytest.raises(Died):
        run("died", progress=die)
    assert same(run("died"), whole)
    got, wanted = (load_file(tmp_path / name / "state-000004.safetensors") for name in ("died", "whole"))
    kinds = {name.split(".")[0] for name in wanted}
    assert kinds == {"network", "average", "discriminator", "optimiser"}
    assert "optimiser.exp_avg.discriminator.0.weight" in wanted
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


def test_a_state_with_a_missing_or_unexpected_discriminator_is_refused() -> None:
    training, plain = Training.start(GAN), Training.start(PLAIN)
    with pytest.raises(ValueError, match=r"discriminator\.0\.weight of shape .* is not in it"):
        training.restore(plain.tensors(), 1)
    with pytest.raises(ValueError, match=r"discriminator\..* is unexpected"):
        plain.restore(training.tensors(), 1)


def test_a_discriminator_weight_that_is_not_finite_is_detected() -> None:
    training = Training.start(GAN)
    assert training.discriminator is not None
    assert training.is_finite()
    next(training.discriminator.parameters()).data.fill_(float("nan"))
    assert not training.is_finite()


@pytest.mark.slow
def test_the_flops_of_a_training_step_include_the_discriminator() -> None:
    """The discriminator adds three forward passes and three backward passes.

    One backward pass computes the gradients of all layers' inputs. The other two compute those of all weights and of
    all layers' inputs but the first one's.
    """
    discriminator = GAN.build_discriminator()
    assert discriminator is not None
    weights = [layer.weight for layer in discriminator.discriminator if isinstance(layer, Convolution)]
    voxels = [8**3, 4**3, 2**3, 1, 1]  # in each layer's output
    once = [2 * weight.numel() * number for weight, number in zip(weights, voxels, strict=True)]
    counts = (step_flops(method, (16, 16, 16), 1) for method in (GAN, PLAIN))
    assert next(counts) - next(counts) == 8 * sum(once) - 2 * once[0]

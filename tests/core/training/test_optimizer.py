"""AdamW with moments in fp32 or in 8 bits, as an option of a method."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny_training import TINY, pair, same, tuned

from ppdm.method import Method, Optimisation
from ppdm.training import optimizer
from ppdm.training.loop import Interrupted, fit, train
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule, TrainingError, step_generator
from ppdm.training.trainer import Training
from ppdm_bench.memory.workload import workload
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.variation import vary

EIGHT = tuned(TINY.with_network(width=16), optimiser="adamw8bit")  # wide enough that some weights have whole blocks
PAIRS = [pair(i) for i in range(3)]


def trained(method, steps=2):
    training = Training.start(method)
    source, target = (torch.from_numpy(volume)[None, None] for volume in PAIRS[0])
    for k in range(steps):
        training.step(source, target, 1e-3, step_generator(0, k))
    return training


# --- without torchao


def test_the_default_optimiser_is_not_written_and_an_unknown_one_is_refused():
    assert "optimiser" not in TINY.to_dict()["optimisation"]
    content = EIGHT.to_dict()
    assert content["optimisation"]["optimiser"] == "adamw8bit"
    assert Method.from_dict(content) == EIGHT
    with pytest.raises(ValueError, match="must be adamw or adamw8bit, got 'sgd'"):
        Optimisation(optimiser="sgd")


def test_the_optimiser_can_be_varied_like_any_other_option():
    points = vary(TINY, "optimisation.optimiser=adamw,adamw8bit")
    assert [point.method.optimisation.optimiser for point in points] == ["adamw", "adamw8bit"]


def test_without_torchao_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchao.optim", None)
    with pytest.raises(TrainingError, match=r"adamw8bit needs torchao .*pip install .*ppdm\[eightbit\].*or use adamw"):
        Training.start(EIGHT)


# --- with torchao


@pytest.fixture
def torchao():
    with optimizer._quiet():
        return pytest.importorskip("torchao.optim")


@pytest.mark.slow
def test_eight_bit_moments_take_two_bytes_per_weight(torchao):
    training = trained(EIGHT)
    of = {name: p for name, p in training.network.named_parameters() if p.numel() >= 4096 and p.numel() % 256 == 0}
    assert of
    for name, parameter in of.items():
        parts = {key: value for key, value in training.tensors().items() if key.endswith(f".{name}")}
        sizes = {key.split(".")[1]: value.nbytes for key, value in parts.items() if key.startswith("optimiser.")}
        n = parameter.numel()
        assert sizes.pop("step") == 4
        assert sizes == {
            f"{m}:{part}": size
            for m in ("exp_avg", "exp_avg_sq")
            for part, size in (("codes", n), ("scale", 4 * n // 256), ("qmap", 1024))
        }
    assert all(type(tensor) in (torch.Tensor, torch.nn.Parameter) for tensor in training.tensors().values())


@pytest.mark.slow
def test_eight_bit_adamw_learns_almost_like_adamw(torchao):
    eight, whole = (trained(method, 10) for method in (EIGHT, tuned(EIGHT, optimiser="adamw")))
    assert not same(eight.network, whole.network)
    for p, q in zip(eight.network.parameters(), whole.network.parameters(), strict=True):
        assert float((p - q).detach().abs().mean()) < 1e-3  # after ten steps of 1e-3
    assert eight.optimizer.inner.param_groups[0]["lr"] == torch.tensor(1e-3)


@pytest.mark.slow
def test_a_run_with_eight_bit_adamw_resumes_bit_for_bit(torchao, tmp_path):
    options = {"steps": 5, "batch_size": 2, "seed": 3}
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        train(EIGHT, PAIRS, Schedule(**options), run=Run(tmp_path / "run"), stop=lambda: next(asked))
    assert json.loads((tmp_path / "run" / "options.json").read_text())["environment"]["torchao"]  # affects the bits
    assert same(fit(EIGHT, PAIRS, run=Run(tmp_path / "run", resume=True), **options), fit(EIGHT, PAIRS, **options))


@pytest.mark.parametrize("names", [("adamw", "adamw8bit"), ("adamw8bit", "adamw")])
def test_a_state_of_the_other_optimiser_is_refused(torchao, names):
    one, other = (trained(tuned(EIGHT, optimiser=name)) for name in names)
    before = {name: tensor.clone() for name, tensor in one.tensors().items()}
    with pytest.raises(ValueError, match=r"optimiser\.exp_avg.* is unexpected"):
        one.restore(other.tensors(), 2)
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.tensors().items())
    tensors = one.tensors()
    lost = next(name for name in tensors if name.startswith("optimiser.exp_avg_sq"))
    with pytest.raises(ValueError, match=f"{lost} is not in it"):
        one.restore({name: tensor for name, tensor in tensors.items() if name != lost}, 2)


@pytest.mark.slow
def test_the_memory_of_the_eight_bit_state_is_predicted(torchao):
    held = {}
    for name in ("adamw", "adamw8bit"):
        work = workload(tuned(EIGHT, optimiser=name), "train", (16, 16, 16), 1, "cuda")
        held[name] = predict_peak(work.build, work.step, work.iterations).breakdown["optimizer"]
    training = trained(EIGHT)
    state = [t for name, t in training.tensors().items() if name.startswith("optimiser.") and ".step." not in name]
    assert held["adamw8bit"] >= sum(-(-tensor.nbytes // 512) * 512 for tensor in state)
    assert held["adamw8bit"] < 0.6 * held["adamw"]


@pytest.mark.slow
def test_eight_bit_adamw_prints_nothing(torchao):
    code = "import torch; from ppdm import PPDM, fit; "
    code += "from ppdm.training.optimizer import AdamW8bit; "
    code += "AdamW8bit([torch.nn.Parameter(torch.ones(2))], 0.0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_the_default_optimiser_is_adamw():
    assert replace(EIGHT.optimisation, optimiser="adamw") == TINY.optimisation

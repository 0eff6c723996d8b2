"""A user-defined network in place of the U-Net, and user-defined types in files."""

import json
import sys
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

import pytest
import torch
from commands import refused, run
from tiny_training import TINY, manifest, pair

import ppdm
from ppdm import serialization
from ppdm.method import Method, training_loss
from ppdm.network.backbone import BackboneNetwork
from ppdm.representation import Puzzle
from ppdm_baselines import METHODS
from ppdm_bench.planning.search import CasePrediction

MODULE = """
from dataclasses import dataclass, replace
import torch
import ppdm

class Net(torch.nn.Module):
    def __init__(self, c_in, c_out, dims):
        super().__init__()
        convolution = torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d
        self.first = convolution(c_in + 1, 8, 3, padding=1)
        self.last = convolution(8, c_out, 3, padding=1)

    def forward(self, x, t):
        times = t.view(-1, *[1] * (x.dim() - 1)).expand(-1, 1, *x.shape[2:])
        return self.last(torch.relu(self.first(torch.cat([x, times], 1))))

@dataclass(frozen=True)
class Small(ppdm.Backbone):
    channels: int = 8

    def build(self, c_in, c_out, dims):
        return Net(c_in, c_out, dims)

REGISTER
SMALL = replace(ppdm.PPDM, name="small", network=Small())
"""


@dataclass(frozen=True)
class Linear(ppdm.Backbone):
    scale: float = 1.0

    def build(self, c_in, c_out, dims):
        assert dims == 3
        return Pointwise(c_in, c_out)


class Pointwise(torch.nn.Conv3d):
    def __init__(self, c_in, c_out):
        super().__init__(c_in, c_out, 1)

    def forward(self, x, t):
        assert x.dtype is torch.float32
        assert t.shape == x.shape[:1]
        return super().forward(x)


OWN = replace(TINY, name="linear", network=Linear())


@pytest.fixture
def folder(tmp_path, monkeypatch, unrendered, quick_anatomies):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(serialization, "_registered", {})
    manifest(tmp_path, splits=("train", "train", "test"))
    return tmp_path


def written(folder, name, register=True):
    line = f'ppdm.register("network", "{name.replace("_", "-")}", Small)' if register else ""
    (folder / f"{name}.py").write_text(MODULE.replace("REGISTER", line))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*voxels")
def test_a_user_defined_network_runs_through_memory_train_translate_and_quality(folder):
    written(folder, "own_net")
    words = ("--method", "own_net:SMALL")
    code, out, err = run("memory", "--res", 16, *words, "--device", "predict", "--json", "--out", "memory")
    assert code == 0, err
    assert {row["method"] for row in json.loads(out)} == {"small"}
    assert run("train", "--manifest", "pairs.csv", *words, "--steps", 1, "--out", "run", "--device", "cpu")[0] == 0
    code, out, err = run("translate", "run", "1a.nii.gz", "made.nii.gz", "--device", "cpu")
    assert code == 0, err
    assert json.loads((folder / "run/model.json").read_text())["method"]["network"]["type"] == "own-net"
    quick = ("--task", "mri-t1t2", "--subjects", 3, "--size", 12, "--steps", 1, "--evaluations", 1, "--device", "cpu")
    code, out, err = run("quality", *words, *quick, "--out", "quality")
    assert code == 0, err
    assert "small" in out


@pytest.mark.slow
def test_methods_plan_speed_and_ablate_take_a_user_defined_network(folder, monkeypatch):
    """The network has no width and no levels, and the quick profile of an ablation sets neither."""
    written(folder, "fourth_net")
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", lambda *_: CasePrediction(True, 1))
    own, card = ("--method", "fourth_net:SMALL", "--json"), ("--gpu", "RTX 4090", "--phase", "sample")
    quick = ("--task", "mri-t1t2", "--subjects", 3, "--size", 12, "--steps", 1, "--evaluations", 1, "--device", "cpu")
    for words in (
        ("methods", *own),
        ("plan", *own, *card, "--res", 16),
        ("speed", *own, *card, "--res", 8, "--factor", 2, "--evaluations", 1, "--device", "predict", "--out", "speed"),
        ("ablate", *own, *quick, "--quick", "--configurations", "none", "--out", "ablation"),
    ):
        code, out, err = run(*words)
        assert code == 0, err
        assert {row["method"] for row in json.loads(out)} == {"small"}


@pytest.mark.filterwarnings("ignore:.*voxels")
def test_a_run_with_a_user_defined_type_is_read_after_its_module_is_imported(folder):
    written(folder, "other_net")
    train = ("train", "--manifest", "pairs.csv", "--method", "other_net:SMALL", "--steps", 1, "--device", "cpu")
    assert run(*train, "--out", "run")[0] == 0
    serialization._registered.clear()
    words = ("translate", "run", "0a.nii.gz", "made.nii.gz", "--device", "cpu")
    assert "its module is imported (ppdm-bench --import MODULE)" in refused(1, *words)
    sys.modules.pop("other_net")
    assert run("--import", "other_net", *words)[0] == 0
    assert "nothing_here cannot be loaded" in refused(2, "--import", "nothing_here", *words)


def test_a_type_that_is_not_registered_is_refused_before_training(folder):
    written(folder, "unknown_net", register=False)
    words = ("train", "--manifest", "pairs.csv", "--method", "unknown_net:SMALL", "--steps", 1, "--device", "cpu")
    assert "ppdm.register('network', 'a-name', Small)" in refused(1, *words, "--out", "run")
    assert not (folder / "run").exists()


def test_types_from_entry_points_of_installed_packages_are_found(folder, monkeypatch):
    point = EntryPoint("network.linear", f"{__name__}:Linear", "ppdm.axes")
    asked = []

    def entry_points(*, group, name=None):
        asked.append(name)
        return [point] if group == "ppdm.axes" and name in (None, point.name) else []

    monkeypatch.setattr(serialization, "entry_points", entry_points)
    content = OWN.to_dict()
    assert content["network"]["type"] == "linear"
    assert Method.from_dict(content) == OWN
    with pytest.raises(ValueError, match="network must name a type out of unet"):
        Method.from_dict(content | {"network": {"type": "os:system"}})


def test_a_description_without_a_network_type_means_the_unet():
    content = TINY.to_dict()
    assert "type" not in content["network"]
    assert Method.from_dict(content) == TINY
    assert Method.from_dict(content | {"network": content["network"] | {"type": "unet"}}) == TINY


def test_network_options_apply_to_a_user_defined_network():
    for options in ({"precision": "bf16"}, {"checkpointing": "block"}):
        method = OWN.with_network(**options)
        network = method.build()
        assert isinstance(network, BackboneNetwork)
        source, target = (torch.as_tensor(volume)[None, None] for volume in pair())
        training_loss(method, network, source, target).mean().backward()
        assert all(parameter.grad is not None for parameter in network.parameters())
    with pytest.raises(ValueError, match=r"has no width"):
        OWN.with_network(width=8)
    with pytest.raises(ValueError, match="checkpointing of Linear must be one of"):
        OWN.with_network(checkpointing="some")
    with pytest.raises(ValueError, match="a learned representation has the levels and the width"):
        replace(METHODS["latent"], network=Linear())


def test_a_network_output_of_a_wrong_shape_is_refused_with_the_expected_shape():
    @dataclass(frozen=True)
    class Wrong(Linear):
        def build(self, c_in, c_out, dims):
            return Pointwise(c_in, c_out + 1)

    method = replace(OWN, network=Wrong())
    source, target = (torch.as_tensor(volume)[None, None] for volume in pair())
    with pytest.raises(ValueError, match=r"Pointwise must return \(1, 8, 4, 4, 4\) .*got \(1, 9, 4, 4, 4\)"):
        training_loss(method, method.build(), source, target)


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("Upper", Linear, "lower-case letters"),
        ("fine", int, "must be a frozen dataclass"),
        ("puzzle-2", Puzzle, ""),
    ],
)
def test_register_checks_names_types_and_duplicates(monkeypatch, name, kind, words):
    monkeypatch.setattr(serialization, "_registered", {})
    if words:
        with pytest.raises(ValueError, match=words):
            ppdm.register("network", name, kind)
        return
    ppdm.register("representation", name, kind)
    ppdm.register("representation", name, kind)
    with pytest.raises(ValueError, match="choose another name"):
        ppdm.register("representation", name, Linear)

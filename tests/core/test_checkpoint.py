import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from ppdm import PPDM
from ppdm.checkpoint import CheckpointError, Trained, load, save
from ppdm.data.normalise import IntensityError, LogSUV, Range
from ppdm.data.scaling import PercentileScaling, SUVScaling

TINY = PPDM.with_network(width=8, multipliers=(1, 2))


def trained(seed=0, method=TINY, scaling=None, **fields):
    torch.manual_seed(seed)
    network = method.build()
    with torch.no_grad():
        for parameter in network.parameters():  # including the head, which starts at zero
            parameter.normal_()
    scaling = scaling or PercentileScaling(Range(-3.5, 812.25))
    return Trained(method, network, scaling, **({"spacing": (1.0, 0.5, 2.0), "steps": 7, "seed": 3} | fields))


@pytest.fixture
def run(tmp_path):
    save(tmp_path / "run", trained())
    return tmp_path / "run"


def edit(run: Path, **changes):
    path = run / "model.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | changes))
    return content


@pytest.mark.parametrize("scaling", [PercentileScaling(Range(0.1, 7.3)), SUVScaling(), SUVScaling(False, 15.0)])
@pytest.mark.parametrize("method", [TINY, TINY.with_factor((1, 2, 2)).with_network(precision="bf16")])
def test_a_saved_checkpoint_is_loaded_bit_for_bit(tmp_path, method, scaling):
    before = trained(method=method, scaling=scaling)
    place = save(tmp_path / "deep" / "run", before)
    for path in (place.parent, place):
        after = load(path)
        assert (after.method, after.scaling) == (method, scaling)
        assert (after.spacing, after.steps, after.seed, after.channels) == ((1.0, 0.5, 2.0), 7, 3, 1)
        assert not after.network.training
        wanted, got = before.network.state_dict(), after.network.state_dict()
        assert list(wanted) == list(got)
        assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    assert sorted(os.listdir(place.parent)) == ["model.json", "model.safetensors"]


def test_a_loaded_network_computes_what_the_saved_one_did(run):
    x, t = torch.randn(1, 16, 4, 4, 4), torch.tensor([0.3])
    with torch.no_grad():
        assert torch.equal(load(run).network(x, t), trained().network(x, t))


def test_loading_does_not_change_the_global_generator(run):
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    load(run)
    assert torch.equal(torch.rand(3), wanted)


def test_the_description_is_json_with_schema_versions_method_and_scaling(run):
    content = json.loads((run / "model.json").read_text())
    assert content["schema"] == 1
    assert content["versions"]["torch"] == torch.__version__
    assert content["method"] == TINY.to_dict()
    assert content["scaling"]["target"] == {"kind": "range", "low": -3.5, "high": 812.25}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("absent", "does not exist"),
        ("", "holds no checkpoint"),
        ("run/model.json", "is not a .safetensors file"),
    ],
)
def test_refuses_a_path_without_a_checkpoint(run, path, sentence):
    with pytest.raises(CheckpointError, match=sentence):
        load(run.parent / path)


def test_refuses_weights_without_description(run):
    (run / "model.json").unlink()
    with pytest.raises(CheckpointError, match=r"model\.json is missing"):
        load(run)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, 5000, -1])
def test_refuses_truncated_weights(run, keep):
    path = run / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        load(run)


def test_a_flipped_bit_in_the_weights_is_detected(run):
    """The test flips one bit in each of the first 12 bytes, where the header begins, and in 40 random bytes."""
    path = run / "model.safetensors"
    sound = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*range(12), *rng.integers(len(sound), size=40).tolist()]:
        damaged = bytearray(sound)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"model\.safetensors"):
            load(run)


class Bomb:
    def __init__(self, victim):
        self.victim = victim

    def __reduce__(self):
        return os.mkdir, (str(self.victim),)


@pytest.mark.parametrize("dump", [lambda o: pickle.dumps(o), lambda o: pickle.dumps({"weight": o}, protocol=0)])
def test_a_pickle_is_refused_and_not_executed(run, dump):
    victim = run / "exploded"
    (run / "model.safetensors").write_bytes(dump(Bomb(victim)))
    with pytest.raises(CheckpointError, match="never read, since they can hold code"):
        load(run)
    assert not victim.exists()


def test_a_torch_file_is_refused(run):
    torch.save({"weight": torch.zeros(3)}, run / "model.safetensors")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load(run)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1'])
def test_refuses_damaged_json(run, text):
    (run / "model.json").write_bytes(text)
    with pytest.raises(CheckpointError, match=r"model\.json is damaged: it is not JSON"):
        load(run)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"schema": 2}', '{"schema": "1"}'])
def test_refuses_an_unknown_schema(run, text):
    (run / "model.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"model\.json has schema .* reads 1"):
        load(run)


def test_refuses_unknown_fields(run):
    edit(run, note="mine")
    with pytest.raises(CheckpointError, match=r"model\.json has the fields .*'note'"):
        load(run)


def test_refuses_weights_of_another_run(run):
    save(run.parent / "other", trained(seed=1))
    (run / "model.safetensors").write_bytes((run.parent / "other/model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="SHA-256 differ"):
        load(run)


def test_an_interruption_between_the_two_files_is_detected(run, monkeypatch):
    real, moved = os.replace, []

    def fails_at_second(source, target):
        if moved:
            raise KeyboardInterrupt
        moved.append(target)
        real(source, target)

    monkeypatch.setattr(os, "replace", fails_at_second)
    with pytest.raises(KeyboardInterrupt):
        save(run, trained(seed=1))
    assert moved == [run / "model.safetensors"]
    assert sorted(os.listdir(run)) == ["model.json", "model.safetensors"]  # no temporary file is left
    with pytest.raises(CheckpointError, match="interrupted while saving"):
        load(run)


def test_a_full_disk_leaves_the_old_checkpoint(run, monkeypatch):
    before = {f.name: f.read_bytes() for f in run.iterdir()}

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"run cannot be written \(No space left"):
        save(run, trained(seed=1))
    assert {f.name: f.read_bytes() for f in run.iterdir()} == before


def test_refuses_to_save_over_a_file(tmp_path):
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CheckpointError, match="run cannot be written"):
        save(tmp_path / "run", trained())
    assert (tmp_path / "run").read_text() == "mine"


def _without_first(tensors):
    tensors.pop("stem.weight")


def _with_another(tensors):
    tensors["surprise"] = torch.zeros(2)


def _misshapen(tensors):
    tensors["stem.bias"] = torch.zeros(9)


def _in_half(tensors):
    tensors["stem.bias"] = tensors["stem.bias"].half()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (_without_first, r"stem\.weight is missing"),
        (_with_another, "surprise is unexpected"),
        (_misshapen, r"stem\.bias is \(9,\) float32, expected \(8,\) float32"),
        (_in_half, r"stem\.bias is \(8,\) float16, expected \(8,\) float32"),
    ],
)
def test_refuses_weights_of_another_network(run, change, sentence):
    altered = trained()
    tensors = dict(altered.network.state_dict())
    change(tensors)
    network = torch.nn.Module()
    network.state_dict = lambda: tensors  # type: ignore[method-assign,assignment]
    save(run, replace(altered, network=network))
    with pytest.raises(CheckpointError, match=rf"model\.json does not describe model\.safetensors: .*{sentence}"):
        load(run)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"method": TINY.with_network(width=16).to_dict()}, r"expected .* and \d+ more"),
        ({"method": TINY.with_network(width=2**15).to_dict()}, "weights are not those"),  # terabytes, never allocated
        ({"method": {"name": "ppdm"}}, "Method has the fields"),
        ({"method": None}, "Method has the fields"),
        ({"channels": "1"}, "."),
        ({"channels": 2}, "weights are not those"),
        ({"scaling": {"kind": "os.system"}}, "expected a scaling"),
        ({"scaling": 3}, "expected a scaling"),
        ({"scaling": {"kind": "suv", "stored": 1, "ceiling": 20}}, "true or false"),
        ({"scaling": {"kind": "suv", "stored": True, "ceiling": "high"}}, "finite number"),
        (
            {"scaling": {"kind": "percentiles", "low": 9, "high": 1, "target": {"kind": "range", "low": 0, "high": 1}}},
            "percentiles 0",
        ),
        (
            {"scaling": {"kind": "percentiles", "low": 0, "high": 1, "target": {"kind": "range", "low": 2, "high": 1}}},
            "low < high",
        ),
        ({"scaling": {"kind": "percentiles", "low": 0, "high": 1, "target": 5}}, "."),
        ({"spacing": [1, 1]}, "three positive numbers"),
        ({"spacing": 1}, "."),
        ({"spacing": [1, 1, float("nan")]}, "three positive numbers"),
        ({"steps": 0}, "steps must be an integer"),
        ({"seed": None}, "seed must be an integer"),
    ],
)
def test_refuses_a_description_with_impossible_values(run, changes, sentence):
    edit(run, **changes)
    with pytest.raises(CheckpointError, match=rf"model\.json does not describe model\.safetensors: (?s:.)*{sentence}"):
        load(run)


def test_refuses_to_save_a_method_that_could_not_be_loaded_again(tmp_path):
    class Mine(type(TINY.window)):
        pass

    with pytest.raises(CheckpointError, match="cannot be saved: window"):
        save(tmp_path / "run", replace(trained(), method=replace(TINY, window=Mine())))
    assert not (tmp_path / "run").exists()


def test_percentile_scaling_uses_the_sources_percentiles_and_the_stored_target_range():
    scan = np.linspace(-50, 950, 1001, dtype=np.float32)
    source, target = PercentileScaling(Range(0, 10), low=10, high=90).scales(scan)
    assert (source, target) == (Range(50.0, 850.0), Range(0, 10))
    with pytest.raises(IntensityError, match="leave the factor out"):
        PercentileScaling(Range(0, 10)).scales(scan, suv_factor=1.0)


def test_suv_scaling_needs_a_factor_only_if_files_do_not_contain_suv():
    scan = np.zeros((2, 2, 2), np.float32)
    assert SUVScaling().scales(scan) == (LogSUV(1.0), LogSUV(1.0))
    assert SUVScaling(False, 10.0).scales(scan, 0.5) == (LogSUV(0.5, 10.0), LogSUV(0.5, 10.0))
    with pytest.raises(IntensityError, match="give suv_factor"):
        SUVScaling(stored=False).scales(scan)
    with pytest.raises(IntensityError, match="positive factor"):
        SUVScaling().scales(scan, 0.0)


def test_the_weights_file_holds_exactly_the_weights_of_the_network(run):
    got, wanted = safetensors.torch.load_file(run / "model.safetensors"), trained().network.state_dict()
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)

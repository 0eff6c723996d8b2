"""Models that are kept during a training run, for learning curves."""

import pytest
import torch
from tiny_methods import tiny
from tiny_training import TINY, manifest, pair, weights

from ppdm.checkpoint import load
from ppdm.data.manifest import read_manifest
from ppdm.training.loop import train
from ppdm.training.on_manifest import kept_model, train_sets, training_sets
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule
from ppdm.training.state import read_state
from ppdm_baselines import latent

pytestmark = pytest.mark.slow

PAIRS = [pair(i) for i in range(3)]


def kept(method=TINY, steps=6, **options):
    """Return the final weights, and the kept weights by step."""
    found = {}
    options |= {"on_keep": lambda report, network: found.setdefault(report.step, []).append(weights(network))}
    network = train(method, PAIRS, Schedule(steps=steps), **options)
    return weights(network), found


def equal(one, other):
    return all(torch.equal(p, q) for p, q in zip(one, other, strict=True))


def test_keeping_models_does_not_change_the_final_weights():
    end, nothing = kept()
    again, found = kept(keep_after={2, 4})
    assert not nothing
    assert equal(end, again)
    assert {step: len(networks) for step, networks in found.items()} == {2: 1, 4: 1}
    assert not equal(found[2][0], found[4][0])
    assert not equal(found[4][0], end)


def test_the_averaged_weights_are_kept(tmp_path):
    _, found = kept(keep_after={4}, run=Run(tmp_path, save_steps=4))
    saved = read_state(tmp_path / "state-000004.safetensors").tensors
    names = [name for name, _ in TINY.build().named_parameters()]
    assert equal(found[4][0], [saved[f"average.{name}"] for name in names])
    assert not equal(found[4][0], [saved[f"network.{name}"] for name in names])


def test_a_resumed_run_keeps_the_same_models(tmp_path):
    class Died(Exception):
        pass

    def die(report):
        if report.step == 5:
            raise Died

    _, whole = kept(keep_after={2, 4})
    with pytest.raises(Died):
        kept(keep_after={2, 4}, run=Run(tmp_path, save_steps=3), progress=die)
    _, found = kept(keep_after={2, 4}, run=Run(tmp_path, resume=True, save_steps=3))
    assert found.keys() == {4}  # the only one after the checkpoint of step 3
    assert equal(found[4][0], whole[4][0])


def test_models_are_kept_only_in_the_last_stage():
    assert kept(tiny(latent.MATCHED), keep_after={1, 3, 4})[1].keys() == {4}


def test_a_run_keeps_complete_models_in_separate_folders(tmp_path):
    pairs, held = training_sets(read_manifest(manifest(tmp_path)), Schedule(steps=3), "pairs")
    run = Run(tmp_path / "run")
    with run:
        train_sets(TINY, pairs, held, Schedule(steps=3), run, device="cpu", keep_last=False, keep_after={2})
    early, end = load(kept_model(run.folder, 2)), load(run.folder)
    assert (early.steps, end.steps) == (2, 3)
    assert early.scaling == end.scaling
    assert not equal(weights(early.network), weights(end.network))

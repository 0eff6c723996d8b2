"""Training sets: pairs from a manifest, scaled for the network."""

import numpy as np
import pytest
import torch
from tiny_training import TINY, manifest, pair, weights

from ppdm import fit
from ppdm.data.manifest import Pair
from ppdm.data.normalise import LogSUV, Range, percentile_range
from ppdm.data.pairs import PairsError, TrainingSet
from ppdm.data.scaling import PercentileScaling, SUVScaling
from ppdm.data.volume import Volume, VolumeError, write_volume


@pytest.mark.parametrize("keep", [0, 2 * 4 * 8 * 6 * 4, 1 << 20])
def test_mri_pairs_are_scaled_by_percentiles_and_a_pooled_range(tmp_path, keep):
    training_set = TrainingSet(TrainingSet.from_manifest(manifest(tmp_path)).pairs, keep=keep)
    assert [p.subject for p in training_set.pairs] == ["s0", "s1"]
    assert training_set.spacing == pytest.approx((1.0, 1.5, 2.5))
    raw = [tuple((i + 1) * 100 * (v + 1) for v in pair(i, (8, 6, 4))) for i in range(2)]
    ranges = [percentile_range(target) for _, target in raw]
    pooled = Range(*(float(np.median([getattr(r, end) for r in ranges])) for end in ("low", "high")))
    assert training_set.scaling == PercentileScaling(pooled)
    for (source, target), (raw_source, raw_target) in zip(training_set, raw, strict=True):
        assert source.dtype == target.dtype == np.float32
        np.testing.assert_allclose(source, percentile_range(raw_source).forward(raw_source), atol=1e-5)
        np.testing.assert_allclose(target, pooled.forward(raw_target), atol=1e-5)


def test_volumes_beyond_the_memory_limit_are_read_again(tmp_path):
    training_set = TrainingSet(TrainingSet.from_manifest(manifest(tmp_path)).pairs, keep=2 * 4 * 8 * 6 * 4)
    for file in tmp_path.glob("*.nii.gz"):
        file.unlink()
    assert training_set[0][0].shape == (8, 6, 4)
    with pytest.raises(VolumeError, match="does not exist"):
        training_set[1]


def test_a_training_set_is_a_sequence(tmp_path):
    training_set = TrainingSet.from_manifest(manifest(tmp_path))
    assert len(training_set) == 2
    np.testing.assert_array_equal(training_set[-1][0], training_set[1][0])
    assert [len(p) for p in training_set[:1]] == [2]
    with pytest.raises(IndexError):
        training_set[2]


@pytest.mark.parametrize(("factors", "stored"), [((1, 1, 1), True), ((0.01, 0.02, 1), False)])
def test_pet_pairs_are_scaled_by_suv(tmp_path, factors, stored):
    training_set = TrainingSet.from_manifest(manifest(tmp_path, factors))
    assert training_set.scaling == SUVScaling(stored)
    for i, (source, target) in enumerate(training_set):
        for got, raw in zip((source, target), pair(i, (8, 6, 4)), strict=True):
            np.testing.assert_allclose(got, LogSUV(factors[i]).forward((i + 1) * 100 * (raw + 1)), atol=1e-5)


def test_fit_trains_on_a_training_set(tmp_path):
    pairs = TrainingSet.from_manifest(manifest(tmp_path))
    one, two = (weights(fit(TINY, pairs, steps=steps, batch_size=2)) for steps in (1, 2))
    assert any(not torch.equal(p, q) for p, q in zip(one, two, strict=True))


def test_suv_factors_for_only_some_pairs_are_refused(tmp_path):
    with pytest.raises(PairsError, match=r"of 2 pairs, 1 without suv_factor \(such as subject s1\)"):
        TrainingSet.from_manifest(manifest(tmp_path, (2.0, None, None)))


def test_a_split_without_pairs_is_refused(tmp_path):
    with pytest.raises(PairsError, match=r"pairs\.csv has no pairs in the split 'test'"):
        TrainingSet.from_manifest(manifest(tmp_path), split="test")
    with pytest.raises(PairsError, match="no pairs to train on"):
        TrainingSet([])


def test_a_volume_without_contrast_is_refused_by_name(tmp_path):
    flat = Volume.from_array(np.ones((4, 4, 4)))
    ramp = Volume.from_array(np.arange(64.0).reshape(4, 4, 4))
    write_volume(tmp_path / "flat.nii", flat.data, flat)
    write_volume(tmp_path / "ramp.nii", ramp.data, ramp)
    with pytest.raises(PairsError, match=r"flat\.nii: The image has no contrast"):
        TrainingSet([Pair("s", "train", tmp_path / "ramp.nii", tmp_path / "flat.nii")])


def test_targets_on_other_grids_are_resampled_only_on_request(tmp_path):
    source, target = (Volume.from_array(pair(0, shape)[0], (2.0, 2.0, 2.0)) for shape in ((8, 8, 8), (9, 8, 8)))
    write_volume(tmp_path / "a.nii", source.data, source)
    write_volume(tmp_path / "b.nii", target.data, target)
    (tmp_path / "pairs.csv").write_text("subject,split,source,target\ns,train,a.nii,b.nii\n")
    with pytest.raises(VolumeError, match="grid"):
        TrainingSet.from_manifest(tmp_path / "pairs.csv")
    resampled = TrainingSet.from_manifest(tmp_path / "pairs.csv", resample=True)
    unkept = TrainingSet(resampled.pairs, keep=0, resample=True)
    for made in (resampled[0], unkept[0]):
        assert made[0].shape == made[1].shape == (8, 8, 8)
        np.testing.assert_array_equal(made[1], resampled[0][1])


def test_a_training_set_can_use_the_scaling_of_another(tmp_path):
    path = manifest(tmp_path)
    training_set = TrainingSet.from_manifest(path)
    alone = TrainingSet.from_manifest(path, "val")
    held = TrainingSet(alone.pairs, scaling=training_set.scaling)
    assert held.scaling == training_set.scaling != alone.scaling
    np.testing.assert_array_equal(held[0][0], alone[0][0])  # sources always use their own percentiles
    raw = 300 * (pair(2, (8, 6, 4))[1] + 1)
    np.testing.assert_allclose(held[0][1], training_set.scaling.target.forward(raw), atol=1e-5)
    with pytest.raises(PairsError, match="scaling is for PET, but these pairs are MRI or CT"):
        TrainingSet(alone.pairs, scaling=SUVScaling())

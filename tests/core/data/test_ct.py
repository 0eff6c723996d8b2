"""CT windows in HU: in manifests, training sets and checkpoints."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from ct_pairs import ct, manifest, mr
from tiny_training import TINY
from tiny_training import manifest as mri_manifest

import ppdm
from ppdm.checkpoint import Trained, load, save
from ppdm.data.checking import check_pairs
from ppdm.data.manifest import ManifestError, Pair, read_manifest, with_intensities, write_manifest
from ppdm.data.normalise import HounsfieldWindow, IntensityError, Range, intensity_from_dict, percentile_range
from ppdm.data.pairs import PairsError, TrainingSet
from ppdm.data.scaling import PercentileScaling, scaling_from_dict
from ppdm.translation import translate_volume

WINDOW = HounsfieldWindow(-1000.0, 2000.0)


def test_the_window_is_linear_inside_and_clips_outside_both_ways():
    hu = np.array([-3000.0, -1000.0, 500.0, 2000.0, 9000.0], dtype=np.float32)
    np.testing.assert_allclose(WINDOW.forward(hu), [-1, -1, 0, 1, 1], atol=1e-6)
    seen = torch.tensor([-1.5, -1.0, 0.0, 1.0, 2.0])
    torch.testing.assert_close(WINDOW.inverse(seen), torch.tensor([-1000.0, -1000.0, 500.0, 2000.0, 2000.0]))
    inside = np.linspace(-1000, 2000, 7, dtype=np.float32)
    np.testing.assert_allclose(WINDOW.inverse(WINDOW.forward(inside)), inside, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("ct", HounsfieldWindow(-1024.0, 3000.0)),
        ("CT", HounsfieldWindow()),
        ("ct:-1000,2000", WINDOW),
        (" ct: -1000 , 2000.0 ", WINDOW),
        ("ct:-1000.125,1234567", HounsfieldWindow(-1000.125, 1234567.0)),
    ],
)
def test_a_window_is_read_from_text_and_written_as_text(text, window):
    assert HounsfieldWindow.parse(text) == window
    assert HounsfieldWindow.parse(str(window)) == window


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("mri", "An intensity is ct, or ct:LOW,HIGH in HU such as ct:-1000,2000; got 'mri'"),
        ("ct:", "got 'ct:'"),
        ("ct:-1000", "got 'ct:-1000'"),
        ("ct:a,b", "got 'ct:a,b'"),
        ("ct:40,40", "A CT window needs low < high; got low 40.0 and high 40.0"),
        ("ct:2000,-1000", "A CT window needs low < high; got low 2000.0 and high -1000.0"),
    ],
)
def test_invalid_texts_of_a_window_are_refused(text, complaint):
    with pytest.raises(IntensityError, match=complaint):
        HounsfieldWindow.parse(text)


def test_a_manifest_gives_the_ct_window_of_its_targets(tmp_path):
    pairs = read_manifest(manifest(tmp_path, "ct:-1000,2000"))
    assert {pair.target_intensity for pair in pairs} == {WINDOW}
    assert {pair.source_intensity for pair in pairs} == {None}
    write_manifest(tmp_path / "again.csv", pairs)
    assert read_manifest(tmp_path / "again.csv") == pairs
    assert '"ct:-1000,2000"' in (tmp_path / "again.csv").read_text()


def test_an_option_replaces_the_intensity_of_the_manifest(tmp_path):
    pairs = read_manifest(manifest(tmp_path, "ct"))
    assert with_intensities(pairs) == pairs
    changed = with_intensities(pairs, source=WINDOW, target=WINDOW)
    assert {(pair.source_intensity, pair.target_intensity) for pair in changed} == {(WINDOW, WINDOW)}


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        (
            ("ct", "", "ct"),
            "line 3: target_intensity is empty here and ct:-1024,3000 on line 2; give all rows the same",
        ),
        (("ct", "ct:-1000,2000", "ct"), "line 3: target_intensity is ct:-1000,2000 here and ct:-1024,3000 on line 2"),
        ("ct:5,5", "line 2: a CT window needs low < high; got low 5.0 and high 5.0"),
        ("mr", "line 2: an intensity is ct, or ct:LOW,HIGH in HU"),
    ],
)
def test_faults_of_intensities_are_reported_with_their_lines(tmp_path, cells, complaint):
    with pytest.raises(ManifestError, match=complaint):
        read_manifest(manifest(tmp_path, cells))


def test_a_misspelt_column_gives_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="'target_intensty' has no effect; is 'target_intensity' meant"):
        read_manifest(manifest(tmp_path, column="target_intensty"))


def test_an_suv_factor_and_a_ct_intensity_together_are_refused(tmp_path):
    path = manifest(tmp_path)
    header, *rows = path.read_text().splitlines()
    path.write_text("\n".join([header + ",suv_factor", *(row + ",1" for row in rows)]))
    with pytest.raises(ManifestError, match="line 2: subject 's0' has an suv_factor, which makes it PET, and an inten"):
        read_manifest(path)
    with pytest.raises(ManifestError, match="an intensity of CT"):
        with_intensities([Pair("s", "train", path, path, suv_factor=1.0)], target=WINDOW)


def test_targets_are_scaled_by_the_window_and_sources_by_their_percentiles(tmp_path):
    training_set = TrainingSet.from_manifest(manifest(tmp_path, "ct:-1000,2000"))
    assert training_set.scaling == PercentileScaling(WINDOW)
    assert training_set.scaling.unit == "HU"
    for i, (source, target) in enumerate(training_set):
        np.testing.assert_allclose(source, percentile_range(mr(i)).forward(mr(i)), atol=1e-5)
        np.testing.assert_allclose(target, np.clip(ct(i), -1000, 2000) / 1500 - 1 / 3, atol=1e-5)
        assert target.min() == -1


def test_a_ct_source_is_scaled_by_its_window_too(tmp_path):
    pairs = with_intensities(read_manifest(manifest(tmp_path, source=ct)), source=HounsfieldWindow())
    training_set = TrainingSet(pairs)
    assert training_set.scaling == PercentileScaling(HounsfieldWindow(), source=HounsfieldWindow())
    np.testing.assert_allclose(training_set[0][0], (ct(0).clip(-1024) + 1024) / 2012 - 1, atol=1e-5)


def test_a_given_scaling_decides_the_window_of_the_sources_as_in_translation(tmp_path):
    pairs = with_intensities(read_manifest(manifest(tmp_path, source=ct)), source=WINDOW)
    unmarked = [replace(pair, source_intensity=None) for pair in pairs]
    trained = TrainingSet(pairs)
    np.testing.assert_array_equal(TrainingSet(unmarked, scaling=trained.scaling)[0][0], trained[0][0])
    by_percentiles = TrainingSet(unmarked)
    np.testing.assert_array_equal(TrainingSet(pairs, scaling=by_percentiles.scaling)[0][0], by_percentiles[0][0])


def test_an_mri_target_keeps_its_pooled_range_with_a_ct_source(tmp_path):
    pairs = with_intensities(read_manifest(manifest(tmp_path, "", source=ct, target=mr)), source=WINDOW)
    scaling = TrainingSet(pairs).scaling
    assert scaling.source == WINDOW
    assert type(scaling.target) is Range
    assert scaling.unit == ""


def test_pairs_with_different_intensities_are_refused(tmp_path):
    first, second, _ = read_manifest(manifest(tmp_path))
    with pytest.raises(PairsError, match="target_intensity of subject s0 is ct:-1024,3000, and that of s1 None"):
        TrainingSet([first, replace(second, target_intensity=None)])


def test_values_that_are_not_in_hu_give_one_warning(tmp_path):
    path = manifest(tmp_path, target=lambda seed: ct(seed) + 1024)
    with pytest.warns(UserWarning, match="2 volumes, such as .*0target.nii.gz, have no value below -500") as seen:
        TrainingSet.from_manifest(path)
    assert len(seen) == 1
    remarks = check_pairs(read_manifest(path)).reports[0].remarks
    assert any("no value below -500 and so no air of CT" in remark for remark in remarks)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        TrainingSet.from_manifest(manifest(tmp_path))
    assert not any("HU" in remark for remark in check_pairs(read_manifest(path)).reports[0].remarks)


@pytest.mark.parametrize("source", [None, HounsfieldWindow()])
def test_a_checkpoint_keeps_the_windows_and_translates_into_hu(tmp_path, source):
    scaling = PercentileScaling(WINDOW, source=source)
    torch.manual_seed(0)
    save(tmp_path, Trained(TINY, TINY.build(1).eval(), scaling, (1.0, 1.0, 1.0), 1, 0))
    trained = load(tmp_path)
    assert trained.scaling == scaling
    loud = torch.from_numpy(10 * ct(0))  # beyond both ends of the window
    made = translate_volume(trained, loud)
    assert -1000 <= made.min() < 0
    assert made.max() <= 2000
    with pytest.raises(IntensityError, match="this method was trained on CT; leave the factor out"):
        translate_volume(trained, loud, suv_factor=2.0)


def test_the_dictionary_form_of_the_mri_scaling_is_unchanged():
    old = {"kind": "percentiles", "target": {"kind": "range", "low": 0.0, "high": 9.0}, "low": 0.1, "high": 99.9}
    assert PercentileScaling(Range(0.0, 9.0)).to_dict() == old
    assert scaling_from_dict(old) == PercentileScaling(Range(0.0, 9.0))
    assert intensity_from_dict(WINDOW.to_dict()) == WINDOW
    with pytest.raises(IntensityError, match="Expected a window in HU for the source"):
        scaling_from_dict({**old, "source": old["target"]})


def test_ppdm_train_accepts_a_valid_target_intensity(tmp_path):
    path = manifest(tmp_path, "")
    trained = ppdm.train(path, tmp_path / "run", method=TINY, steps=1, target_intensity="ct:-1000,2000")
    assert trained.scaling == PercentileScaling(WINDOW)
    with pytest.raises(ValueError, match='target_intensity was "ct:-1000,2000", and is "ct:-1024,3000" now'):
        ppdm.train(path, tmp_path / "run", method=TINY, steps=1, target_intensity="ct", resume=True)
    with pytest.raises(IntensityError, match="CT window needs low < high"):
        ppdm.train(path, tmp_path / "other", method=TINY, steps=1, target_intensity="ct:1,1")
    pet = mri_manifest(tmp_path, (1, 1, 1))
    with pytest.raises(ManifestError, match="intensity of CT"):
        ppdm.train(pet, tmp_path / "other", method=TINY, steps=1, target_intensity="ct")
    assert not (tmp_path / "other").exists()

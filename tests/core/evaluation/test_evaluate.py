"""Reading of evaluation cases, the input baseline, predictions, and their scores."""

import math

import nibabel as nib
import numpy as np
import pytest
import torch

from ppdm import PPDM
from ppdm.checkpoint import Trained
from ppdm.data.manifest import Pair
from ppdm.data.normalise import Range, percentile_range
from ppdm.data.scaling import PercentileScaling, SUVScaling
from ppdm.data.volume import Volume, VolumeError, write_volume
from ppdm.evaluation.evaluate import (
    block_grids,
    check_kind,
    convention,
    data_range,
    predict,
    scores,
    unit_of,
    untranslated,
)
from ppdm.evaluation.subjects import CaseError, CaseFiles, EvaluationCase, files_of, read_case, read_prediction
from ppdm.metrics import PRESETS
from ppdm_baselines import METHODS

TARGET = Range(200.0, 1000.0)
MRI, PET = PercentileScaling(TARGET), SUVScaling()
TINY = PPDM.with_network(width=8, multipliers=(1, 2))
SHAPE = (14, 13, 12)


def trained(scaling=MRI, spacing=(1.0, 1.0, 1.0)):
    """Return an untrained PPDM. Its network returns zeros, so a translation only rescales the intensities."""
    torch.manual_seed(0)
    return Trained(TINY, TINY.build(1).eval(), scaling, spacing, 1, 0)


def scan(seed=0, shape=SHAPE):
    return (np.random.default_rng(seed).random(shape) ** 2 * 100).astype(np.float32)


def write(path, array, spacing=(1.0, 1.0, 1.0)):
    volume = Volume.from_array(array, spacing)
    write_volume(path, volume.data, volume)
    return path


def case(target=None, source=None, mask=None, suv_factor=None):
    target = scan(1) if target is None else target
    tensors = [None if x is None else torch.from_numpy(x) for x in (target, source, mask)]
    return EvaluationCase("s", tensors[0], tensors[1], tensors[2], Volume.from_array(target), suv_factor)


def values(preset, prediction, held_against):
    return {score.metric: score.value for score in scores(preset, torch.from_numpy(prediction), held_against)}


# --- cases


@pytest.fixture
def files(tmp_path):
    mask = (scan(2) > 50).astype(np.float32)
    paths = {
        name: write(tmp_path / f"{name}.nii.gz", array)
        for name, array in (("target", scan(1)), ("source", scan(0)), ("mask", mask))
    }
    return CaseFiles("s", **paths)


def test_a_case_is_read_in_physical_units(files):
    found = read_case(files)
    np.testing.assert_array_equal(found.target, scan(1))
    np.testing.assert_array_equal(found.source, scan(0))
    np.testing.assert_array_equal(found.mask, scan(2) > 50)
    assert not found.in_suv


def test_pet_is_read_in_suv_and_its_mask_is_not_scaled(files):
    found = read_case(CaseFiles("s", files.target, files.source, files.mask, suv_factor=0.25))
    np.testing.assert_array_equal(found.target, scan(1) * 0.25)
    np.testing.assert_array_equal(found.source, scan(0) * 0.25)
    assert set(found.mask.unique().tolist()) == {0.0, 1.0}
    assert found.in_suv


def test_a_case_needs_neither_source_nor_mask(files):
    found = read_case(CaseFiles("s", files.target))
    assert found.source is None
    assert found.mask is None


@pytest.mark.parametrize("role", ["target", "mask"])
def test_a_target_or_mask_on_another_grid_is_refused_unless_resampled(files, role, tmp_path):
    path = write(tmp_path / "wide.nii.gz", np.ones((7, 13, 12), np.float32), (2.0, 1.0, 1.0))
    other = CaseFiles("s", **{**{n: getattr(files, n) for n in ("target", "source", "mask")}, role: path})
    with pytest.raises(VolumeError, match=r"source\.nii\.gz and .*wide\.nii\.gz must share one grid"):
        read_case(other)
    found = read_case(other, resample=True)
    assert getattr(found, role).shape == found.source.shape == SHAPE


def test_a_prediction_must_be_on_the_grid_of_the_target_and_finite(files, tmp_path):
    found = read_case(CaseFiles("s", files.target, suv_factor=0.5))
    np.testing.assert_array_equal(read_prediction(write(tmp_path / "p.nii", scan(3)), found), scan(3) * 0.5)
    with pytest.raises(VolumeError, match=r"The target of s and .*q\.nii must share one grid"):
        read_prediction(write(tmp_path / "q.nii", scan(3), (1.0, 1.0, 2.0)), found)
    broken = scan(3)
    broken[0, 0, :3] = np.nan
    nib.save(nib.Nifti1Image(broken, found.grid.affine), tmp_path / "nan.nii")
    with pytest.raises(CaseError, match=r"nan\.nii has 3 NaN or infinite voxels"):
        read_prediction(tmp_path / "nan.nii", found)


def test_the_digest_depends_on_contents_and_roles_and_not_on_paths(files, tmp_path):
    (tmp_path / "moved.nii.gz").write_bytes(files.target.read_bytes())
    first = files.digest()
    assert CaseFiles("other", tmp_path / "moved.nii.gz", files.source, files.mask).digest() == first
    assert CaseFiles("s", files.source, files.target, files.mask).digest() != first
    assert CaseFiles("s", files.target, files.source).digest() != first
    assert CaseFiles("s", files.target, files.source, files.mask, 2.0).digest() != first
    assert files.digest(files.mask) != first


def test_several_scans_of_one_subject_get_distinct_names(tmp_path):
    def pair(subject, source):
        return Pair(subject, "test", tmp_path / source, tmp_path / "t.nii")

    pairs = [
        pair("a", "x.nii"),
        pair("b", "d4.nii.gz"),
        pair("b", "d20.nii.gz"),
        pair("c", "1/x.nii"),
        pair("c", "2/x.nii"),
    ]
    assert [files.name for files in files_of(pairs)] == ["a", "b/d4", "b/d20", "c/1", "c/2"]


# --- predictions


def test_the_input_baseline_equals_the_prediction_of_an_untrained_bridge():
    """The network returns zeros, so the bridge returns its start: both are the source in the range of the target."""
    one = case(source=scan(0))
    wanted = TARGET.inverse(percentile_range(scan(0)).forward(scan(0)))
    np.testing.assert_allclose(untranslated(MRI, one), wanted, rtol=1e-5)
    np.testing.assert_allclose(predict(trained(), one), wanted, rtol=1e-4, atol=0.05)


@pytest.mark.parametrize("stored", [True, False])
def test_the_input_baseline_of_pet_is_the_unchanged_source(stored):
    one = case(source=scan(0), suv_factor=0.1)
    assert untranslated(SUVScaling(stored=stored), one) is one.source
    np.testing.assert_allclose(predict(trained(SUVScaling(stored=stored)), one), scan(0), rtol=1e-4, atol=1e-3)


def test_a_prediction_without_a_source_is_refused():
    for make in (lambda: predict(trained(), case()), lambda: untranslated(MRI, case())):
        with pytest.raises(CaseError, match="s has no source"):
            make()


def test_a_voxel_size_that_differs_from_training_gives_a_warning():
    with pytest.warns(UserWarning, match="1 × 1 × 1 mm, and .* was trained on 2 × 2 × 2 mm"):
        predict(trained(spacing=(2.0, 2.0, 2.0)), case(source=scan(0)))


@pytest.mark.parametrize(
    ("scaling", "factor", "words"),
    [
        (MRI, None, ""),
        (PET, 1.0, ""),
        (SUVScaling(stored=False), 0.3, ""),
        (MRI, 1.0, "RUN was trained on MRI, but s has an suv_factor"),
        (PET, None, "RUN was trained on PET, but s has no suv_factor"),
    ],
)
def test_a_method_trained_on_mri_or_pet_refuses_cases_of_the_other(scaling, factor, words, tmp_path):
    files = [CaseFiles("s", tmp_path / "t.nii", suv_factor=factor)]
    if not words:
        check_kind(trained(scaling), files, "RUN")
        return
    with pytest.raises(CaseError, match=words):
        check_kind(trained(scaling), files, "RUN")


# --- scores


def test_the_data_range_comes_from_the_scaling():
    assert data_range(MRI) == 800.0
    assert data_range(PET) == 20.0
    assert data_range(SUVScaling(ceiling=8.0)) == 8.0


def test_psnr_uses_the_mask_and_the_data_range():
    mask = (scan(2) > 50).astype(np.float32)
    prediction = scan(3)
    error = ((prediction - scan(1)) ** 2)[mask > 0].mean(dtype=np.float64)
    found = values(convention(800.0), prediction, case(mask=mask))
    assert found["psnr"] == pytest.approx(10 * math.log10(800.0**2 / error))
    assert found["psnr"] != pytest.approx(values(convention(800.0), prediction, case())["psnr"])
    # Doubling the range adds 6.02 dB; a metric that does not use the range stays the same.
    wider = values(convention(1600.0), prediction, case(mask=mask))
    assert wider["psnr"] - found["psnr"] == pytest.approx(20 * math.log10(2))
    assert wider["nmae"] == found["nmae"]


def test_block_grids_returns_the_block_grid_of_each_method_once():
    by_name = [METHODS[name] for name in METHODS]
    assert block_grids([PPDM, PPDM.with_factor(4), PPDM]) == [2, 4]
    assert block_grids([PPDM.with_factor((1, 2, 2))]) == [(1, 2, 2)]
    assert block_grids([]) == [2]
    assert block_grids(m for m in by_name if max(m.representation.cell) == 1) == [2]


def test_every_prediction_is_scored_on_every_block_grid():
    """An artefact of period 4 along D raises the scores on block grid 4; noise does not."""
    noise = np.random.default_rng(5).normal(size=(32, 32, 32)).astype(np.float32)
    target = scan(1, (32, 32, 32))
    grid = np.zeros(32, np.float32)
    grid[::4] = 4.0
    preset = convention(100.0, [2, 4, (1, 1, 4)])
    plain, gridded = (values(preset, target + error, case(target)) for error in (noise, noise + grid[:, None, None]))
    assert {"seam_index_r2", "seam_index_r4", "seam_index_r1x1x4"} <= set(plain)
    assert plain["seam_index_r4"] < 1 < 5 < gridded["seam_index_r4"]
    assert gridded["seam_index_r1x1x4"] < 1  # the artefact lies along D, this block grid along W
    assert gridded["border_ratio_r4"] > plain["border_ratio_r4"]
    assert gridded["border_ratio_r1x1x4"] == pytest.approx(plain["border_ratio_r1x1x4"], abs=1e-3)


def test_a_metric_that_fails_does_not_stop_the_other_metrics():
    small = scan(1, (8, 8, 8))
    found = {score.metric: score for score in scores(convention(100.0), torch.from_numpy(small + 1), case(small))}
    assert found["ssim"].value is None
    assert "window of 11×11×11 voxels does not fit" in found["ssim"].reason
    assert found["psnr"].value == pytest.approx(40.0)  # 10·log10(100² / 1²)


def test_a_perfect_prediction_has_no_finite_psnr():
    found = {score.metric: score for score in scores(convention(100.0), torch.from_numpy(scan(1)), case())}
    assert found["psnr"].value is None
    assert "equals its target" in found["psnr"].reason
    assert found["ssim"].value == pytest.approx(1.0)
    assert found["nmae"].value == 0.0


def test_scores_in_an_empty_mask_give_a_reason():
    found = scores(convention(100.0), torch.from_numpy(scan(3)), case(mask=np.zeros(SHAPE, np.float32)))
    assert all("no voxel above 0" in score.reason for score in found if not score.metric.startswith("seam"))


def test_a_mask_adds_the_tumour_score_of_brasyn():
    mask = np.zeros(SHAPE, np.float32)
    mask[3:11, 3:11, 3:11] = 1
    without, with_mask = (values(PRESETS["brasyn"], scan(3), case(mask=m)) for m in (None, mask))
    assert set(with_mask) - set(without) == {"ssim_tumour"}


@pytest.mark.parametrize(
    ("metric", "unit"),
    [
        ("psnr", "dB"),
        ("seam_index_r4", "dB"),
        ("border_ratio_r4", "dB"),
        ("ssim", "1"),
        ("nrmse", "1"),
        ("suv_max_error", "%"),
        ("mae", ""),
    ],
)
def test_each_metric_has_the_expected_unit(metric, unit):
    assert unit_of(metric) == unit

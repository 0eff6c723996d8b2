"""The check of pairs finds every fault in one pass, names its file, and accepts sound pairs."""

import tracemalloc
import warnings
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from broken_pairs import AFFINE, BROKEN, SHAPE, SOUND, image, make_broken_pairs, save
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm.data import contents
from ppdm.data.checking import check_pair, check_pairs
from ppdm.data.manifest import Pair, load_pair, read_manifest
from ppdm.data.pairs import TrainingSet


@pytest.fixture
def pair(tmp_path):
    """A sound pair with a mask."""
    save(tmp_path / "source.nii.gz", image(0))
    save(tmp_path / "target.nii.gz", image(1))
    save(tmp_path / "mask.nii.gz", (image(0) > 30).astype(np.uint8))
    return Pair("s1", "train", tmp_path / "source.nii.gz", tmp_path / "target.nii.gz", mask=tmp_path / "mask.nii.gz")


def several(folder, count=4, split="train", factor=None):
    pairs = []
    for number in range(count):
        paths = [folder / f"{split}{number}-{role}.nii" for role in ("source", "target")]
        for seed, path in enumerate(paths):
            save(path, image(2 * number + seed))
        pairs.append(Pair(f"{split}{number}", split, *paths, suv_factor=factor))
    return pairs


def the_one(texts):
    assert len(texts) == 1, texts
    return texts[0]


# Twelve broken pairs


def test_each_of_twelve_faults_is_found_in_one_pass_with_its_file(tmp_path):
    pairs = read_manifest(make_broken_pairs(tmp_path))
    findings = check_pairs(pairs)
    reports = {report.subject: report for report in findings.reports}
    assert [*reports] == [pair.subject for pair in pairs] == [*SOUND, *BROKEN]
    assert len(BROKEN) == 12
    for subject, (role, words) in BROKEN.items():
        fault = the_one(reports[subject].faults)
        assert f"{subject}-{role}.nii.gz" in fault
        assert words in fault
        assert not reports[subject].sound
        assert reports[subject].remarks == ()
    assert not findings.sound
    assert findings.faults == ()


def test_sound_pairs_among_broken_ones_pass_and_are_described(tmp_path):
    pairs = read_manifest(make_broken_pairs(tmp_path))
    for number, report in enumerate(check_pairs(pairs).reports[: len(SOUND)]):
        assert report.sound
        assert report.remarks == ()
        assert (report.split, report.shape, report.spacing) == ("train", SHAPE, (2, 2, 2))
        source, target = image(2 * number), image(2 * number + 1)
        assert report.source_range == (source.min(), source.max())
        assert report.target_range == (target.min(), target.max())
        assert check_pair(pairs[number]).source_range == report.source_range


def test_training_refuses_the_broken_pairs_except_three(tmp_path):
    """The three can be read but are worthless: an empty mask, source and target equal, an image of another split."""
    trained = []
    for pair in read_manifest(make_broken_pairs(tmp_path)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                TrainingSet([pair])
        except ValueError:
            continue
        trained.append(pair.subject)
    assert trained == [*SOUND, "empty-mask", "same-image", "leaked"]


def test_all_faults_of_one_pair_are_reported_and_not_only_the_first(pair):
    save(pair.source, np.zeros(SHAPE, np.float32))
    save(pair.target, np.full((12, 14, 9), np.nan, np.float32))
    save(pair.mask, np.zeros((12, 13, 10), np.uint8))
    said = check_pair(pair).faults
    assert len(said) == 5
    for name, words in (
        ("source", "every voxel is 0"),
        ("target", "none of its 1512 voxels is finite"),
        ("target", "(12, 14, 10) and (12, 14, 9)"),
        ("mask", "no voxel of the mask"),
        ("mask", "(12, 14, 10) and (12, 13, 10)"),
    ):
        assert any(f"{name}.nii.gz" in fault and words in fault for fault in said)


def test_the_grid_is_compared_even_where_voxels_cannot_be_read(pair):
    save(pair.target, image(3, (12, 14, 9)))
    pair.target.write_bytes(pair.target.read_bytes()[:-200])
    truncated, grids = check_pair(pair).faults
    assert "truncated" in truncated
    assert "their shapes are (12, 14, 10) and (12, 14, 9)" in grids
    pair.mask.write_bytes(pair.mask.read_bytes()[:-9])
    assert "mask.nii.gz is truncated" in check_pair(pair).faults[2]


def test_missing_files_are_reported_as_faults_without_an_exception(tmp_path):
    gone = Pair("s1", "val", tmp_path / "a.nii", tmp_path / "b.nii.gz", mask=tmp_path / "c.nii")
    report = check_pair(gone)
    assert [fault.split(" does not")[0] for fault in report.faults] == [
        str(path) for path in (gone.source, gone.target, gone.mask)
    ]
    assert (report.shape, report.spacing, report.source_range, report.target_range) == (None,) * 4


def test_grids_that_differ_may_be_resampled(pair):
    save(pair.target, image(1, (20, 20, 20)), np.diag([1.2, 1.2, 1.2, 1]))
    report = check_pair(pair, resample=True)
    assert report.sound
    assert "target.nii.gz is not on the grid of" in the_one(report.remarks)
    assert "--resample" in the_one(check_pair(pair).faults)
    assert check_pairs([pair], resample=True).sound


def test_grids_that_do_not_overlap_cannot_be_resampled(pair):
    save(pair.target, image(1), AFFINE + 1000 * np.eye(4, k=3))
    assert "do not overlap" in the_one(check_pair(pair, resample=True).faults)


def test_a_mask_on_another_grid_is_a_fault_even_with_resampling(pair):
    save(pair.mask, np.ones(SHAPE, np.uint8), AFFINE + np.eye(4, k=3))
    fault = the_one(check_pair(pair, resample=True).faults)
    assert "source.nii.gz" in fault
    assert "mask.nii.gz" in fault
    assert "1 mm apart" in fault


# Values


@pytest.mark.parametrize("holes", [0, 5])
def test_a_constant_image_with_holes_is_still_constant(pair, holes):
    array = np.full(SHAPE, 7, np.float32)
    array.flat[:holes] = np.nan
    save(pair.source, array)
    report = check_pair(pair)
    assert "every voxel is 7" in the_one(report.faults)
    assert len(report.remarks) == bool(holes)


def test_an_image_with_two_values_and_a_nan_voxel_is_sound(pair):
    array = np.where(image(0) > 30, 7, 0).astype(np.float32)
    array[0, 0, 0] = np.nan
    save(pair.source, array)
    assert check_pair(pair).sound


def test_an_mri_without_contrast_is_a_fault_but_an_equally_sparse_pet_is_not(pair):
    array = np.zeros(SHAPE, np.float32)
    array[5, 5, 5] = 3
    save(pair.target, array)
    assert "target.nii.gz: The image has no contrast" in the_one(check_pair(pair).faults)
    report = check_pair(replace(pair, suv_factor=1.0))
    assert report.sound
    assert report.target_range == (0, 3)


def test_voxels_that_are_not_finite_give_a_remark_and_no_warning(pair):
    array = image(0)
    array[:2, 0, 0] = np.nan, np.inf
    save(pair.source, array)
    report = check_pair(pair)  # pytest turns warnings into errors
    assert report.sound
    assert "source.nii.gz: 2 NaN or infinite voxels (0.12%)" in the_one(report.remarks)


def test_negative_or_implausible_uptake_gives_a_remark(pair):
    save(pair.source, image(0) - 10)  # half of the noise is then below 0
    save(pair.target, image(1) * 1000)
    source, target = check_pair(replace(pair, suv_factor=1.0)).remarks
    assert "of its voxels are negative and become SUV 0" in source
    assert "check the suv_factor 1" in target
    assert check_pair(replace(pair, suv_factor=1e-3)).remarks[-1].startswith(str(pair.source))
    assert check_pair(pair).remarks == ()


def test_a_pet_scan_without_uptake_is_a_fault(pair):
    save(pair.target, -image(1))
    assert "no voxel lies above 0" in the_one(check_pair(replace(pair, suv_factor=1.0)).faults)


# Headers


def test_integers_with_a_slope_give_a_remark(pair):
    picture = nib.Nifti1Image(image(0).astype(np.int16), AFFINE)
    picture.header.set_slope_inter(0.35, -3)
    nib.save(picture, pair.source)
    remark = the_one(check_pair(pair).remarks)
    assert "source.nii.gz: stored as int16 with slope 0.35" in remark


@pytest.mark.parametrize("unit", ["mm", "micron"])
def test_a_qform_that_disagrees_with_the_sform_gives_a_remark(pair, unit):
    scale = {"mm": 1, "micron": 1000}[unit]
    for offset, said in ((0.05, 0), (2.5, 1)):
        for path, seed in ((pair.source, 0), (pair.target, 1), (pair.mask, 0)):
            picture = nib.Nifti1Image(image(seed), None)
            picture.header.set_xyzt_units(unit)
            sform = np.diag([2.0 * scale] * 3 + [1])
            picture.header.set_sform(sform, code=1)
            picture.header.set_qform(sform + np.eye(4, k=3) * offset * scale * (path is pair.target), code=1)
            nib.save(picture, path)
        report = check_pair(pair)
        assert report.sound
        assert len(report.remarks) == said
    assert "qform lie up to 2.5 mm apart" in report.remarks[0]
    assert str(pair.target) in report.remarks[0]


@pytest.mark.parametrize("code", [0, 1])
def test_a_damaged_qform_gives_a_remark_if_its_code_is_set(pair, code):
    picture = nib.Nifti1Image(image(0), AFFINE)
    picture.header.set_qform(AFFINE, code=code)
    content = bytearray(picture.to_bytes())
    # quatern_b and quatern_c; the sum of their squares must not exceed 1.
    content[256:264] = np.array([0.9, 0.9], np.float32).tobytes()
    path = pair.source.with_name("bad.nii")
    path.write_bytes(content)
    remarks = check_pair(replace(pair, source=path)).remarks
    assert ["inf mm apart" in remark for remark in remarks] == [True] * code


def test_voxels_far_from_cubes_give_a_remark(pair):
    for path, seed in ((pair.source, 0), (pair.target, 1)):
        save(path, image(seed), np.diag([1, 1, 5, 1]))
    remarks = check_pair(replace(pair, mask=None)).remarks
    assert [remark.split("its")[1] for remark in remarks] == [" voxels of 1 × 1 × 5 mm are far from cubes."] * 2


def test_a_header_with_a_false_size_allocates_no_memory_for_it(tmp_path):
    make_broken_pairs(tmp_path)
    path = tmp_path / "lying-header-source.nii.gz"
    tracemalloc.start()
    try:
        fault = the_one(check_pair(Pair("s", "train", path, tmp_path / "sound-a-target.nii.gz")).faults)
        assert "claims (100000, 100000, 100000) voxels (4000000000000000 bytes)" in fault
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


# All pairs


def test_one_image_in_two_splits_is_a_fault_however_it_is_stored(tmp_path):
    pairs = several(tmp_path, 2) + several(tmp_path, 4, "test")[2:]
    save(pairs[3].target, image(0).astype(np.float64))  # the source of the first pair
    findings = check_pairs(pairs)
    assert [report.sound for report in findings.reports] == [True, True, True, False]
    fault = the_one(findings.reports[3].faults)
    assert str(pairs[3].target) in fault
    assert str(pairs[0].source) in fault


def test_an_image_of_two_subjects_gives_a_remark_but_one_shared_by_sessions_does_not(tmp_path):
    pairs = several(tmp_path, 3)
    save(pairs[2].source, image(1))  # the target of the first pair
    findings = check_pairs(pairs)
    assert findings.sound
    assert "of subject train0, so it counts twice" in the_one(findings.reports[2].remarks)
    assert check_pairs([pairs[0], replace(pairs[0], source=pairs[1].source)]).reports[1].remarks == ()


def test_equal_values_on_another_grid_count_as_another_image(tmp_path):
    pairs = several(tmp_path, 2)
    save(pairs[1].source, image(0).reshape(14, 12, 10))  # the same numbers in the same order
    assert check_pairs(pairs, resample=True).reports[1].remarks[1:] == ()


def test_empty_images_are_not_taken_for_leaks(tmp_path):
    pairs = several(tmp_path, 1) + several(tmp_path, 2, "test")[1:]
    for pair in pairs:
        save(pair.source, np.zeros(SHAPE, np.float32))
    assert ["every voxel is 0" in the_one(report.faults) for report in check_pairs(pairs).reports] == [True, True]


def test_suv_factors_for_only_some_pairs_are_a_fault_of_the_whole_set(tmp_path):
    pairs = several(tmp_path, 3, factor=1.0)
    assert check_pairs(pairs).sound
    findings = check_pairs([pairs[0], replace(pairs[1], suv_factor=None), pairs[2]], ["line 3: it is odd"])
    assert findings.faults[0] == "line 3: it is odd"
    assert "of 3 pairs, 1 without suv_factor (such as subject train1)" in findings.faults[1]
    assert not findings.sound
    assert all(report.sound for report in findings.reports)


@pytest.mark.parametrize(
    ("array", "spacing", "words"),
    [
        (image(9), 3.0, "its voxel size in mm is 3 × 3 × 3, the median of all pairs 2 × 2 × 2"),
        (image(9, (12, 28, 10)), 2.0, "its size in voxels is 12 × 28 × 10, the median of all pairs 12 × 14 × 10"),
        (image(9) * 40, 2.0, "its contrast (percentiles 0.1 to 99.9) is"),
    ],
)
def test_a_scan_unlike_the_others_gives_a_remark(tmp_path, array, spacing, words):
    pairs = several(tmp_path, 4)
    save(pairs[1].source, array, np.diag([spacing] * 3 + [1]))
    findings = check_pairs(pairs, resample=True)
    assert [any(words in remark for remark in report.remarks) for report in findings.reports] == [
        False,
        True,
        False,
        False,
    ]
    assert not any(words in remark for report in check_pairs(pairs[:2]).reports for remark in report.remarks)


def test_contrast_is_compared_in_suv(tmp_path):
    pairs = [replace(pair, suv_factor=0.1) for pair in several(tmp_path, 4)]
    save(pairs[2].source, image(4) * 100)
    pairs[2] = replace(pairs[2], suv_factor=0.001)
    save(pairs[2].target, image(5) * 100)
    assert [report.remarks for report in check_pairs(pairs).reports] == [()] * 4


def test_progress_is_reported_after_every_pair(tmp_path):
    told = []
    check_pairs(several(tmp_path, 3), progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert check_pairs([]).sound


def test_only_one_volume_is_in_memory_at_a_time(tmp_path, monkeypatch):
    held = []

    def read(path, announce):
        volume = original(path, announce=announce)
        held.append(tracemalloc.get_traced_memory()[0])
        return volume

    original = contents.read_volume
    monkeypatch.setattr(contents, "read_volume", read)
    for role, seed in (("source", 0), ("target", 1), ("mask", 2)):
        save(tmp_path / f"{role}.nii", image(seed, (64, 64, 64)))
    tracemalloc.start()
    try:
        check_pair(Pair("s", "train", *(tmp_path / f"{role}.nii" for role in ("source", "target", "mask"))))
    finally:
        tracemalloc.stop()
    assert len(held) == 3
    assert max(held) < 1.6 * 4 * 64**3


def test_load_pair_reads_a_pair_that_passes_the_check(pair):
    assert check_pair(pair).sound
    source, _ = load_pair(pair)
    assert source.data.shape == check_pair(pair).shape


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
def test_a_corrupted_file_gives_a_report_and_never_an_exception(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("fuzz")
    pairs = several(folder, 3)
    picture = nib.Nifti1Image((image(0) * 10).astype(np.int16), AFFINE)
    picture.header.set_qform(AFFINE, code=1)
    content = bytearray(picture.to_bytes())
    for place, value in changes:
        content[place] = value
    pairs[1].target.write_bytes(content)
    reports = check_pairs(pairs).reports
    assert [reports[i].sound for i in (0, 2)] == [True, True]
    report = reports[1]
    assert report.target or report.faults
    assert all(str(pairs[1].target) in text for text in report.faults)

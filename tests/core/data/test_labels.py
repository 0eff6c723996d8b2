"""Labels are read as exact integers from every format; labels that pass the check of pairs work in the evaluation."""

import nibabel as nib
import numpy as np
import pytest
import torch

from ppdm.data.checking import check_pair
from ppdm.data.manifest import Pair
from ppdm.data.regions import RegionError, read_labels, read_names, whole_numbers
from ppdm.evaluation.evaluate import convention, scores
from ppdm.evaluation.subjects import CaseFiles, files_of, read_case
from ppdm.metrics import suv_bias

SHAPE = (14, 13, 12)
AFFINE = np.diag([-2.0, 1.5, 3.0, 1.0])  # the first axis runs to the left


def regions(*numbers, dtype=np.int64):
    """Return labels with one slab along the first axis for each number, and 0 elsewhere."""
    labels = np.zeros(SHAPE, dtype)
    for k, number in enumerate(numbers):
        labels[1 + 3 * k : 4 + 3 * k] = number
    return labels


def save_nifti(path, array, *, stored=None, slope=None, intercept=0.0, kind=nib.Nifti1Image):
    """Save values, which nibabel may scale into the stored type; with a slope, the array holds the stored values."""
    image = kind(array, AFFINE, dtype=array.dtype)
    image.header.set_data_dtype(stored or array.dtype)
    if slope is None:
        nib.save(image, path)
    else:
        header = image.header.copy()
        header["vox_offset"] = header.single_vox_offset
        header["scl_slope"], header["scl_inter"] = slope, intercept
        path.write_bytes(header.binaryblock + b"\0\0\0\0" + array.tobytes(order="F"))
    return path


def numbers_in(path):
    return [int(number) for number in np.unique(read_labels(path).numbers)]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64])
def test_integers_are_exact_up_to_the_largest_of_their_type(tmp_path, dtype):
    largest = min(np.iinfo(dtype).max, 2**63 - 1)
    labels = regions(1, largest - 1, largest, dtype=dtype)
    read = read_labels(save_nifti(tmp_path / "l.nii", labels))
    assert read.numbers.dtype == np.int64
    assert np.array_equal(read.numbers, labels[::-1])
    assert read.numbers.flags.c_contiguous


def test_numbers_that_float32_would_merge_are_separate_regions(tmp_path):
    first, second = 2**24 + 1, 2**24 + 2
    target = save_nifti(tmp_path / "t.nii", np.ones(SHAPE, np.float32))
    labels = save_nifti(tmp_path / "l.nii", regions(first, second, dtype=np.int32))
    case = read_case(CaseFiles("s", target, suv_factor=1.0, labels=labels))
    prediction = case.target.clone()
    prediction[case.labels == first] = 2.0
    found = {score.metric: score.value for score in scores(convention(20.0), prediction, case)}
    assert found[f"suv_mean_bias_{first}"] == pytest.approx(100)
    assert found[f"suv_mean_bias_{second}"] == 0


@pytest.mark.parametrize("number", [2**63, 2**64 - 1])
def test_a_number_above_the_int64_range_is_refused(tmp_path, number):
    path = save_nifti(tmp_path / "l.nii", regions(1, number, dtype=np.uint64))
    with pytest.raises(RegionError, match=f"values 0 to {number}, .* below 2\\*\\*63"):
        read_labels(path)


@pytest.mark.parametrize(
    ("slope", "intercept", "stored", "wanted"),
    [
        (2.0, 0.0, (3, 2**23 + 1), (6, 2**24 + 2)),
        (1.0, 7.0, (0, 2**31 - 1), (7, 2**31 + 6)),
        (-1.0, 0.0, (-5, -(2**31) + 1), (5, 2**31 - 1)),
        (0.5, 0.0, (2, 4), (1, 2)),
        (0.25, 3.0, (-12, 4), (0, 4)),
    ],
)
@pytest.mark.parametrize("kind", [nib.Nifti1Image, nib.Nifti2Image])
def test_slope_and_intercept_that_give_whole_numbers_are_applied(tmp_path, kind, slope, intercept, stored, wanted):
    array = np.full(SHAPE, round(-intercept / slope), np.int32)
    array[1:4], array[4:7] = stored
    path = save_nifti(tmp_path / "l.nii", array, slope=slope, intercept=intercept, kind=kind)
    assert numbers_in(path) == sorted({0, *wanted})


def test_scaled_integers_of_64_bits_stay_exact(tmp_path):
    path = save_nifti(tmp_path / "l.nii", regions(2**53 + 1, 2**53 + 2), slope=3.0)
    assert numbers_in(path) == [0, 3 * (2**53 + 1), 3 * (2**53 + 2)]
    shifted = regions(2**63 + 2**62, 2**63 + 2**62 + 1, dtype=np.uint64)
    shifted[shifted == 0] = 2**63
    path = save_nifti(tmp_path / "m.nii", shifted, slope=1.0, intercept=-(2.0**63))
    assert numbers_in(path) == [0, 2**62, 2**62 + 1]


@pytest.mark.parametrize(("largest", "stored"), [(4, np.int16), (4, np.int8), (300, np.int16), (14175, np.int16)])
def test_labels_that_nibabel_scaled_into_integers_are_read_exactly(tmp_path, largest, stored):
    labels = regions(1, largest // 2, largest - 1, largest, dtype=np.float64)
    path = save_nifti(tmp_path / "l.nii", labels, stored=stored)
    assert not np.array_equal(nib.load(path).get_fdata(), labels)
    assert np.array_equal(read_labels(path).numbers, labels[::-1])


def test_fractions_that_were_scaled_into_integers_are_refused(tmp_path):
    image = np.random.default_rng(0).random(SHAPE) * 1000
    with pytest.raises(RegionError, match="not whole numbers"):
        read_labels(save_nifti(tmp_path / "l.nii", image, stored=np.int16))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_are_read_only_if_they_hold_integers_in_range(tmp_path, dtype):
    largest = 2**24 if dtype is np.float32 else 2**53
    assert numbers_in(save_nifti(tmp_path / "l.nii", regions(1.0000001, largest, dtype=dtype))) == [0, 1, largest]
    with pytest.raises(RegionError, match="not whole numbers"):
        read_labels(save_nifti(tmp_path / "m.nii", regions(1.01, dtype=dtype)))
    with pytest.raises(RegionError, match="below"):
        read_labels(save_nifti(tmp_path / "n.nii", regions(1e19, dtype=dtype)))


def test_voxels_that_are_not_finite_count_as_background_and_are_reported(tmp_path):
    labels = regions(1, 2, dtype=np.float32)
    labels[0, 0, :3] = np.nan, np.inf, -np.inf
    rng = np.random.default_rng(0)
    source, target = (
        save_nifti(tmp_path / name, rng.random(SHAPE).astype(np.float32) + 1) for name in ("s.nii", "t.nii")
    )
    path = save_nifti(tmp_path / "l.nii", labels)
    report = check_pair(Pair("s", "test", source, target, None, 1.0, path))
    assert report.sound
    assert [remark for remark in report.remarks if "l.nii: 3 NaN or infinite voxels count as 0" in remark]
    with pytest.warns(UserWarning, match=r"l\.nii: 3 NaN or infinite voxels are in no region"):
        case = read_case(CaseFiles("s", target, source, suv_factor=1.0, labels=path))
    assert case.labels.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64, np.float64])
def test_labels_in_metaimage_and_nrrd_are_read_exactly(tmp_path, suffix, dtype):
    sitk = pytest.importorskip("SimpleITK")
    largest = {"f": 2**53, "i": 2**31 - 1, "u": 255 if dtype is np.uint8 else 2**63 - 1}[np.dtype(dtype).kind]
    labels = regions(1, largest - 1, largest, dtype=dtype)
    image = sitk.GetImageFromArray(labels.T)
    image.SetDirection((1, 0, 0, 0, -1, 0, 0, 0, 1))  # the axes run to the left, anterior and superior
    path = tmp_path / f"l{suffix}"
    sitk.WriteImage(image, str(path))
    assert np.array_equal(read_labels(path).numbers, labels[::-1])


def test_label_numbers_stay_exact_after_resampling(tmp_path):
    numbers = (2**53 + 1, 2**53 + 2)
    target = tmp_path / "t.nii"
    nib.save(nib.Nifti1Image(np.ones((7, 13, 12), np.float32), np.diag([-4.0, 1.5, 3.0, 1.0])), target)
    labels = save_nifti(tmp_path / "l.nii", regions(*numbers))
    case = read_case(CaseFiles("s", target, suv_factor=1.0, labels=labels), resample=True)
    assert case.labels_fault == ""
    assert case.labels.shape == (7, 13, 12)
    assert case.labels.unique().tolist() == [0, *numbers]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.float32, torch.float64, torch.uint16, torch.uint64])
def test_suv_bias_accepts_labels_of_any_dtype(dtype):
    labels = torch.from_numpy(regions(3, 7)).to(dtype)
    assert list(suv_bias(torch.ones(SHAPE), torch.ones(SHAPE), labels)) == [3, 7]


# Tables


@pytest.mark.parametrize(
    ("written", "names"),
    [
        ("\ufeffindex\tname\r\n1\tLeft kidney\r\n", {1: "left_kidney"}),
        ('"index"\t"name"\n"1"\t"Kidney, left"\n2\tKidney, right\n', {1: "kidney_left", 2: "kidney_right"}),
        ('index\tname\n1\tthe "big" one\n2\t"small" one\n3\t"open\n', {1: "the_big_one", 2: "small_one", 3: "open"}),
        ("index\tname\tcolor\n0\tbackground\t#000000\n\n1\t左肾，皮质\t#ff0000\t\n", {0: "background", 1: "左肾_皮质"}),
        ("index\tname\n1\tO'Brien; a\\b/c\n", {1: "o_brien_a_b_c"}),
        ("name\tindex\nliver\t 5 \n", {5: "liver"}),
        (f"index\tname\n{2**53 + 1}\tliver\n", {2**53 + 1: "liver"}),
    ],
)
def test_region_tables_in_the_styles_of_various_programs_are_read(tmp_path, written, names):
    (tmp_path / "labels.tsv").write_text(written, encoding="utf-8", newline="")
    assert read_names(tmp_path / "labels.nii.gz") == names


def test_file_names_and_region_names_may_be_non_ascii(tmp_path):
    folder = tmp_path / "患者 №1"
    folder.mkdir()
    save_nifti(folder / "étiquettes.nii.gz", regions(1))
    (folder / "étiquettes.tsv").write_text("index\tname\n1\tPrüfregion\n", encoding="utf-8")
    target = save_nifti(folder / "目标.nii.gz", np.ones(SHAPE, np.float32))
    case = read_case(CaseFiles("s", target, suv_factor=1.0, labels=folder / "étiquettes.nii.gz"))
    assert case.regions == {1: "prüfregion"}
    assert "suv_mean_bias_prüfregion" in {score.metric for score in scores(convention(20.0), case.target, case)}


def test_the_digest_of_a_case_changes_with_the_region_table(tmp_path):
    target = save_nifti(tmp_path / "t.nii", np.ones(SHAPE, np.float32))
    files = CaseFiles("s", target, labels=save_nifti(tmp_path / "l.nii", regions(1)))
    without = files.digest()
    (tmp_path / "l.tsv").write_text("index\tname\n1\tliver\n")
    with_table = files.digest()
    (tmp_path / "l.tsv").write_text("index\tname\n1\tspleen\n")
    assert len({without, with_table, files.digest()}) == 3


# The check and the evaluation agree


def spoil_labels(folder, how):
    labels = regions(1, 2, dtype=np.float32)
    affine = AFFINE.copy()
    if how == "fractions":
        labels *= 0.4
    elif how == "negative":
        labels[labels == 2] = -2
    elif how == "empty":
        labels[:] = 0
    elif how == "too large":
        labels[labels == 2] = 1e30
    elif how == "another grid":
        affine[0, 3] = 5
    elif how == "another shape":
        labels = labels[:-1]
    nib.save(nib.Nifti1Image(labels, affine), folder / "labels.nii")
    if how == "no file":
        (folder / "labels.nii").write_bytes(b"nothing")
    table = {
        "table without names": "index\tname\n1\t\n",
        "table of others": "index\tname\n8\tliver\n9\tspleen\n",
        "table twice": "index\tname\n1\tliver\n1\tspleen\n",
        "table latin-1": "index\tname\n1\tNiere Ä\n",
        "table a folder": "",
    }.get(how)
    if table:
        (folder / "labels.tsv").write_bytes(table.encode("latin-1"))
    elif table == "":
        (folder / "labels.tsv").mkdir()
    return folder / "labels.nii"


FAULTS = {
    "fractions": "not whole numbers",
    "negative": "holds the values -2 to 1",
    "empty": "no voxel of the labels lies above 0",
    "too large": "below 2**63",
    "another grid": "must share one grid",
    "another shape": "must share one grid",
    "no file": "is not a NIfTI file",
    "table without names": "not at all",
    "table of others": "labels.tsv lists none of them",
    "table twice": "twice",
    "table latin-1": "not UTF-8",
    "table a folder": "is not a file",
}


@pytest.mark.parametrize("how", FAULTS)
def test_a_fault_in_labels_is_found_by_the_check_and_removes_only_their_metrics(tmp_path, how):
    rng = np.random.default_rng(0)
    source, target = (
        save_nifti(tmp_path / name, rng.random(SHAPE).astype(np.float32) + 1) for name in ("s.nii", "t.nii")
    )
    pair = Pair("s", "test", source, target, None, 1.0, spoil_labels(tmp_path, how))
    (fault,) = check_pair(pair).faults
    assert FAULTS[how] in fault
    (files,) = files_of([pair])
    case = read_case(files)
    assert FAULTS[how] in case.labels_fault
    found = {score.metric: score for score in scores(convention(20.0), case.target * 0.9, case)}
    assert found["psnr"].value > 0
    assert found["ssim"].value > 0
    lost = [name for name, score in found.items() if score.value is None]
    assert lost == ["suv_mean_bias_labels", "suv_max_bias_labels"]
    assert all(found[name].reason == case.labels_fault for name in lost)


@pytest.fixture
def sound(tmp_path):
    """A PET pair with a mask and with labels for a liver and two lesions."""
    rng = np.random.default_rng(0)
    source, target = (
        save_nifti(tmp_path / name, rng.random(SHAPE).astype(np.float32) + 1) for name in ("s.nii", "t.nii")
    )
    labels = regions(1, dtype=np.uint8)
    labels[6:8, 2:4, 2:4] = labels[10:12, 8:10, 8:10] = 2
    mask = save_nifti(tmp_path / "m.nii", np.ones(SHAPE, np.uint8))
    (tmp_path / "l.tsv").write_text("index\tname\n1\tliver\n2\tlesion\n")
    return Pair("s", "test", source, target, mask, 1.0, save_nifti(tmp_path / "l.nii", labels))


def failing(pair):
    (files,) = files_of([pair])
    case = read_case(files)
    return {score.metric: score.reason for score in scores(convention(20.0), case.target * 0.9, case) if score.reason}


def test_a_sound_pair_has_no_fault_and_no_failed_metric(sound):
    assert check_pair(sound).faults == ()
    assert failing(sound) == {}


@pytest.mark.parametrize(("place", "name"), [(np.s_[1:4], "liver"), (np.s_[10:12, 8:10, 8:10], "lesion")])
def test_a_region_without_uptake_is_found_by_the_check(sound, place, name):
    target = np.asarray(nib.load(sound.target).dataobj).copy()
    target[place] = 0
    save_nifti(sound.target, target)
    assert any("no positive uptake" in reason for reason in failing(sound).values())
    (fault,) = check_pair(sound).faults
    assert f"region {name} of" in fault
    assert "no positive uptake" in fault


def test_a_constant_target_in_the_mask_is_found_by_the_check(sound):
    target = np.asarray(nib.load(sound.target).dataobj).copy()
    target[:7] = 3
    save_nifti(sound.target, target)
    mask = np.zeros(SHAPE, np.uint8)
    mask[:7] = 1
    save_nifti(sound.mask, mask)
    assert "sharpness" in failing(sound)
    (fault,) = check_pair(sound).faults
    assert "every voxel in the mask" in fault


@pytest.mark.parametrize("factor", [1e38, 1e-46])
def test_an_suv_factor_out_of_range_is_found_by_the_check(sound, factor):
    values = np.asarray(nib.load(sound.target).dataobj) * 100
    save_nifti(sound.target, values)
    pair = Pair("s", "test", sound.source, sound.target, suv_factor=factor)
    assert any("is not an SUV; check the factor" in fault for fault in check_pair(pair).faults)


def test_whole_numbers_returns_contiguous_int64_of_the_same_shape():
    numbers = whole_numbers(np.asfortranarray(np.ones((2, 3, 4), ">f4")), "labels.nii")
    assert (numbers.shape, numbers.dtype) == ((2, 3, 4), np.int64)
    assert numbers.flags.c_contiguous

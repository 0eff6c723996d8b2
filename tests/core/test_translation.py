import os
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from dicom_series import dicom

from ppdm import PPDM
from ppdm.checkpoint import Trained, load, save
from ppdm.data.normalise import IntensityError, Range, percentile_range
from ppdm.data.pairs import TrainingSet
from ppdm.data.scaling import PercentileScaling, SUVScaling
from ppdm.data.volume import Volume, VolumeError, read_volume, write_volume
from ppdm.method import Sampling
from ppdm.training.loop import fit
from ppdm.translation import TranslationError, adapt, seed_of, translate, translate_samples, translate_volume
from ppdm_baselines import METHODS

TINY = PPDM.with_network(width=8, multipliers=(1, 2))
TARGET = Range(200.0, 1000.0)
SHAPE = (9, 7, 6)


def trained(method=TINY, scaling=None, noisy=False, spacing=(1.0, 1.0, 1.0), channels=1):
    """Return an untrained PPDM: its network returns zeros, or, if ``noisy``, has random weights in all layers."""
    torch.manual_seed(0)
    network = method.build(channels).eval()
    if noisy:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(std=0.05)
    return Trained(method, network, scaling or PercentileScaling(TARGET), spacing, 1, 0, channels)


def scan(seed=0, shape=SHAPE):
    return (np.random.default_rng(seed).random(shape) ** 2 * 100).astype(np.float32)


def write(path: Path, seed=0, shape=SHAPE, spacing=(1.0, 1.0, 1.0)):
    volume = Volume.from_array(scan(seed, shape), spacing)
    write_volume(path, volume.data, volume)
    return path


def contents(folder: Path):
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file()}


def test_an_untrained_ppdm_maps_its_input_to_the_range_of_the_target(tmp_path):
    (result,) = translate(trained(), write(tmp_path / "in.nii"), tmp_path / "out.nii")
    assert (result.source, result.output, result.fault) == (tmp_path / "in.nii", tmp_path / "out.nii", "")
    wanted = TARGET.inverse(percentile_range(scan()).forward(scan()))
    np.testing.assert_allclose(read_volume(tmp_path / "out.nii").data, wanted, rtol=1e-4, atol=0.05)


def test_geometry_of_an_oblique_int16_volume_is_kept(tmp_path):
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * (1.05, 0.95, 1.02), (-31.7, 12.0, 4.5)
    stored = rng.integers(-300, 900, size=(11, 6, 13)).astype(np.int16)
    image = nib.Nifti1Image(stored, affine)
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=4)
    image.header.set_slope_inter(0.35, 3.0)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "in.nii.gz")

    translate(trained(noisy=True), tmp_path / "in.nii.gz", tmp_path / "out.nii.gz")
    before, after = nib.load(tmp_path / "in.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    assert after.shape == (11, 6, 13)
    for name in ("sform_code", "qform_code", "xyzt_units", "pixdim", "srow_x", "srow_y", "srow_z", "quatern_b"):
        np.testing.assert_array_equal(after.header[name], before.header[name], err_msg=name)
    np.testing.assert_array_equal(after.affine, before.affine)
    assert after.get_data_dtype() == np.float32
    assert after.header.get_slope_inter() in ((1.0, 0.0), (None, None))

    translate(trained(), tmp_path / "in.nii.gz", tmp_path / "identity.nii.gz")  # every voxel keeps its place
    native = np.asarray(nib.load(tmp_path / "identity.nii.gz").dataobj)
    assert np.corrcoef(native.ravel(), stored.ravel())[0, 1] > 0.9999
    assert 150 < native.min() < native.max() < 1050  # in units of the target


def test_pet_keeps_the_stored_units(tmp_path):
    pet = trained(scaling=SUVScaling(stored=False))
    translate(pet, write(tmp_path / "in.nii"), tmp_path / "out.nii", suv_factor=0.1)
    np.testing.assert_allclose(read_volume(tmp_path / "out.nii").data, scan(), rtol=1e-4, atol=1e-3)
    with pytest.raises(TranslationError, match=r"in\.nii: .*give suv_factor"):
        translate(pet, tmp_path / "in.nii", tmp_path / "other.nii")
    assert not (tmp_path / "other.nii").exists()
    translate(trained(scaling=SUVScaling()), tmp_path / "in.nii", tmp_path / "suv.nii")
    np.testing.assert_allclose(read_volume(tmp_path / "suv.nii").data, scan(), rtol=1e-4, atol=1e-3)


@pytest.mark.slow
def test_a_trained_method_is_closer_to_the_target_than_an_untrained_one(tmp_path):
    source = scan(0, (8, 8, 8))
    for name, data in (("a", source), ("b", 900 - 8 * source)):
        volume = Volume.from_array(data)
        write_volume(tmp_path / f"{name}.nii", volume.data, volume)
    (tmp_path / "pairs.csv").write_text("subject,split,source,target\ns,train,a.nii,b.nii\n")
    pairs = TrainingSet.from_manifest(tmp_path / "pairs.csv")
    method = replace(TINY, optimisation=replace(TINY.optimisation, learning_rate=1e-2, ema=0.5))
    network = fit(method, pairs, steps=60)
    save(tmp_path / "run", Trained(method, network, pairs.scaling, pairs.spacing, 60, 0))
    translate(load(tmp_path / "run"), tmp_path / "a.nii", tmp_path / "out.nii")
    translate(trained(scaling=pairs.scaling), tmp_path / "a.nii", tmp_path / "untrained.nii")

    def error(name):
        return np.abs(read_volume(tmp_path / name).data - (900 - 8 * source)).mean()

    assert error("out.nii") < 0.5 * error("untrained.nii")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "in").mkdir()
    for k, name in enumerate(("b.nii.gz", "a.nii", "c.nii")):
        write(tmp_path / "in" / name, seed=k)
    return tmp_path / "in"


STOCHASTIC = METHODS["ddpm3d"].with_network(width=8, multipliers=(1, 2))
STOCHASTIC = replace(STOCHASTIC, sampling=replace(STOCHASTIC.sampling, steps=3))


def test_each_scan_of_a_folder_is_translated_to_the_same_name(folder, tmp_path):
    (folder / "notes.txt").write_text("not a volume")
    (folder / ".hidden.nii").write_text("not a volume either")
    results = translate(trained(STOCHASTIC, noisy=True), folder, tmp_path / "out")
    assert [r.source.name for r in results] == ["a.nii", "b.nii.gz", "c.nii"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.nii", "b.nii.gz", "c.nii"]
    assert all(r.output == tmp_path / "out" / r.source.name and not r.fault and r.seconds > 0 for r in results)


def test_the_seed_fixes_a_translation_regardless_of_other_scans(folder, tmp_path):
    method = trained(STOCHASTIC, noisy=True)
    translate(method, folder, tmp_path / "all", seed=4)
    torch.manual_seed(99)  # the global generator does not matter
    for name in ("c.nii", "a.nii"):
        translate(method, folder / name, tmp_path / name, seed=4)
        assert (tmp_path / name).read_bytes() == (tmp_path / "all" / name).read_bytes()
    translate(method, folder / "c.nii", tmp_path / "c.nii", seed=5, overwrite=True)
    assert (tmp_path / "c.nii").read_bytes() != (tmp_path / "all" / "c.nii").read_bytes()


def test_a_fault_in_one_file_does_not_stop_the_others(folder, tmp_path):
    (folder / "b.nii.gz").write_bytes((folder / "b.nii.gz").read_bytes()[:100])
    flat = Volume.from_array(np.ones(SHAPE))
    write_volume(folder / "d.nii", flat.data, flat)
    seen = []
    results = translate(
        trained(), folder, tmp_path / "out", steps=2, progress=lambda done, total: seen.append((done, total))
    )
    faults = {r.source.name: r.fault for r in results if r.fault}
    assert sorted(faults) == ["b.nii.gz", "d.nii"]
    assert "b.nii.gz is truncated" in faults["b.nii.gz"]
    assert "d.nii: The image has no contrast" in faults["d.nii"]
    assert sorted(os.listdir(tmp_path / "out")) == ["a.nii", "c.nii"]
    assert seen == [(1, 8), (2, 8), (4, 8), (5, 8), (6, 8), (8, 8)]


def test_a_fault_of_a_single_file_is_raised_and_changes_no_file(tmp_path):
    path = write(tmp_path / "in.nii")
    path.write_bytes(path.read_bytes()[:-9])
    (tmp_path / "out.nii").write_text("of an earlier run")
    before = contents(tmp_path)
    with pytest.raises(VolumeError, match=r"in\.nii is truncated"):
        translate(trained(), path, tmp_path / "out.nii", overwrite=True)
    assert contents(tmp_path) == before


def test_a_failure_while_writing_leaves_no_file(tmp_path, monkeypatch):
    path = write(tmp_path / "in.nii")
    before = contents(tmp_path)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(VolumeError, match="No space left"):
        translate(trained(), path, tmp_path / "out.nii")
    assert contents(tmp_path) == before


def test_running_out_of_memory_names_the_file_and_a_remedy(tmp_path):
    def full(done, total):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    sentence = r"in\.nii: .* \(9, 7, 6\) voxels \(CUDA out of memory\); try "
    with pytest.raises(TranslationError, match=sentence + "--block 4, bf16, or the CPU"):
        translate(trained(), write(tmp_path / "in.nii"), tmp_path / "out.nii", progress=full)
    with pytest.raises(TranslationError, match=sentence + "a smaller --block"):
        translate(trained(), tmp_path / "in.nii", tmp_path / "out.nii", block=4, progress=full)
    slices = METHODS["slice25d"].with_network(width=8, multipliers=(1, 2))  # they are not sampled in blocks
    slices = trained(replace(slices, sampling=Sampling(1)))
    with pytest.raises(TranslationError, match=sentence + "bf16, or the CPU"):
        translate(slices, tmp_path / "in.nii", tmp_path / "out.nii", progress=full)


def test_blocks_keep_the_geometry_and_a_covering_block_gives_the_same_file(tmp_path):
    method, path = trained(STOCHASTIC, noisy=True), write(tmp_path / "in.nii", shape=(24, 9, 10), spacing=(1, 1.05, 1))
    seen = []
    for name, options in {
        "whole": {},
        "covered": {"block": 24},
        "blocks": {"block": (8, 8, 64), "overlap": 0.5},
    }.items():
        translate(method, path, tmp_path / f"{name}.nii", progress=lambda *now: seen.append(now), **options)
    whole, covered, blocks = (nib.load(tmp_path / f"{name}.nii") for name in ("whole", "covered", "blocks"))
    assert seen[2::3][:2] == [(3, 3), (3, 3)]
    assert seen[-1] == (3 * 5 * 2, 3 * 5 * 2)  # steps · blocks along D and H
    assert (tmp_path / "covered.nii").read_bytes() == (tmp_path / "whole.nii").read_bytes()
    assert blocks.shape == whole.shape == covered.shape
    np.testing.assert_array_equal(blocks.affine, nib.load(path).affine)
    assert not np.array_equal(blocks.get_fdata(), whole.get_fdata())


def test_progress_counts_the_blocks_of_all_files(folder, tmp_path):
    write(folder / "large.nii", shape=(24, 9, 10))
    (folder / "bad.nii").write_text("no volume")
    seen = []
    translate(trained(), folder, tmp_path / "out", steps=2, block=16, progress=lambda *now: seen.append(now))
    assert seen[0][1] == 2 * (4 + 2)  # steps · (three files of one block and bad.nii, and one file of two blocks)
    assert [done for done, _ in seen] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12]  # bad.nii counts at once
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize(
    ("source", "output", "sentence"),
    [
        ("absent.nii", "out.nii", r"absent\.nii does not exist"),
        ("absent", "out", "absent does not exist"),
        ("in/a.nii", "in/a.nii", "is the input itself and would be overwritten"),
        ("in/a.nii", "in/../in/a.nii", "is the input itself"),
        ("in/a.nii", "link.nii", "is the input itself"),
        ("in", "in", "is the input itself"),
        ("in", "linked", "is the input itself"),
        ("in", "twin", r"a\.nii is the input .* empty the folder"),
        ("in/a.nii", "absent/out.nii", "absent is not a folder; make it first"),
        ("in/a.nii", "in", "is a folder and .* a file"),
        ("in/a.nii", "out.png", r"must end in \.nii, \.nii\.gz, \.mha, \.mhd, \.nrrd, \.nhdr; rename"),
        ("in/a.nii", "old.nii", r"old\.nii exists; name another output, or replace with --overwrite"),
        ("in/a.nii", "dead.nii", r"dead\.nii exists"),
        ("in", "full", r"2 outputs exist, such as .*full/a\.nii"),
        ("in", "link.nii", "is a file and .* a folder"),
        ("in", "new.nii.gz", "is a file and .* a folder of scans; name a folder"),
        ("in", "old.nii/out", r"out cannot be created \(Not a directory"),
        ("empty", "out", r"holds no scan \(NIfTI, MetaImage, NRRD or DICOM\)"),
    ],
)
def test_unsuitable_inputs_and_outputs_are_refused_before_the_computation(folder, tmp_path, source, output, sentence):
    (tmp_path / "empty").mkdir()
    (tmp_path / "twin").mkdir()
    (tmp_path / "full").mkdir()
    for name in ("old.nii", "full/a.nii", "full/c.nii"):
        (tmp_path / name).write_text("of an earlier run")
    (tmp_path / "dead.nii").symlink_to(tmp_path / "gone.nii")
    (tmp_path / "link.nii").symlink_to(folder / "a.nii")
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "twin/a.nii").hardlink_to(folder / "a.nii")
    before = contents(folder)
    with pytest.raises(TranslationError, match=sentence):
        translate(trained(), tmp_path / source, tmp_path / output, progress=lambda *_: pytest.fail("it began"))
    assert contents(folder) == before


def test_subfolders_are_mirrored_and_an_output_folder_is_made(folder, tmp_path):
    (folder / "p1" / "day 1").mkdir(parents=True)
    (folder / ".cache").mkdir()
    for name in ("p1/t1.nii", "p1/day 1/t1.nii.gz", ".cache/x.nii"):
        write(folder / name)
    results = translate(trained(), folder, tmp_path / "new" / "out")
    made = ["a.nii", "b.nii.gz", "c.nii", "p1/day 1/t1.nii.gz", "p1/t1.nii"]
    assert [str(r.output.relative_to(tmp_path / "new" / "out")) for r in results] == made
    assert sorted(str(p.relative_to(tmp_path / "new/out")) for p in (tmp_path / "new/out").rglob("*.nii*")) == made


def test_an_output_folder_inside_the_input_is_not_translated(folder):
    for _ in range(2):
        results = translate(trained(), folder, folder / "out", overwrite=True)
        assert [r.source.name for r in results] == ["a.nii", "b.nii.gz", "c.nii"]


def test_the_output_folder_may_be_above_the_input(folder, tmp_path):
    results = translate(trained(), folder, tmp_path)
    assert [r.output for r in results] == [tmp_path / name for name in ("a.nii", "b.nii.gz", "c.nii")]


def test_existing_outputs_are_replaced_only_on_request(folder, tmp_path):
    translate(trained(), folder, tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(TranslationError, match=r"3 outputs exist, such as .*a\.nii"):
        translate(trained(noisy=True), folder, tmp_path / "out")
    assert contents(tmp_path / "out") == before
    translate(trained(noisy=True), folder, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out").keys() == before.keys()
    assert contents(tmp_path / "out") != before


def test_a_folder_that_cannot_be_listed_is_reported(folder, tmp_path, monkeypatch):
    (folder / "closed").mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    results = translate(trained(), folder, tmp_path / "out")
    assert [r.fault for r in results if r.fault] == [f"{folder / 'closed'} cannot be listed; check its permissions."]
    assert len(contents(tmp_path / "out")) == 3


@pytest.mark.parametrize("output", ["locked/out.nii", "locked"])
def test_a_folder_that_cannot_be_written_is_refused_before_the_computation(folder, tmp_path, monkeypatch, output):
    (tmp_path / "locked").mkdir(mode=0o500)
    access = os.access  # replaced because root may write anywhere
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "locked") and access(path, mode))
    source = folder / "a.nii" if output.endswith(".nii") else folder
    with pytest.raises(TranslationError, match="locked cannot be written to; change its permissions"):
        translate(trained(), source, tmp_path / output, progress=lambda *_: pytest.fail("it began"))


DICOM_SPACING = (0.7, 1.1, 2.3)


def sitk_image(path):
    image = sitk.GetImageFromArray(scan().T)
    image.SetOrigin((-10.5, 3.25, 7.125))
    image.SetDirection((0, -1, 0, 1, 0, 0, 0, 0, 1))
    sitk.WriteImage(image, path)
    return image


@pytest.mark.parametrize("suffix", [".mha", ".mhd", ".nrrd", ".nhdr"])
def test_the_output_has_the_format_of_the_input_or_the_requested_one(tmp_path, suffix):
    (tmp_path / "in").mkdir()
    image = sitk_image(tmp_path / "in" / f"a{suffix}")
    write(tmp_path / "in" / "b.nii.gz")
    made = translate(trained(), tmp_path / "in", tmp_path / "out")
    assert [r.output.name for r in made] == [f"a{suffix}", "b.nii.gz"]
    out = sitk.ReadImage(tmp_path / "out" / f"a{suffix}")
    for ask in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
        assert getattr(out, ask)() == getattr(image, ask)()
    made = translate(trained(), tmp_path / "in", tmp_path / "other", suffix="nii")
    assert [r.output.name for r in made] == ["a.nii", "b.nii"]
    np.testing.assert_array_equal(nib.load(tmp_path / "other" / "a.nii").get_fdata(), sitk.GetArrayFromImage(out).T)
    (single,) = translate(trained(), tmp_path / "in" / f"a{suffix}", tmp_path / "single.nii.gz")
    assert single.output == tmp_path / "single.nii.gz"
    assert nib.load(single.output).shape == SHAPE


@pytest.mark.parametrize(
    ("names", "suffix", "sentence"),
    [
        (["a.nii", "a.nii.gz"], "nii", r"Two scans would be written to .*a\.nii;"),
        (["a.mhd", "a.nhdr"], None, r"Two scans would be written to .*a\.raw;"),
        (["a.nii"], "dicom", r"one of nii, nii\.gz, .* \(DICOM can only be read\), got 'dicom'"),
        (["a.nii"], "png", "one of nii, .*, got 'png'"),
    ],
)
def test_colliding_outputs_and_unknown_formats_are_refused_before_the_computation(tmp_path, names, suffix, sentence):
    (tmp_path / "in").mkdir()
    for name in names:
        (tmp_path / "in" / name).touch()
    options = {"suffix": suffix, "progress": lambda *_: pytest.fail("it began")}
    with pytest.raises(TranslationError, match=sentence):
        translate(trained(), tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_an_existing_data_file_is_not_replaced(tmp_path):
    sitk_image(tmp_path / "in.mha")
    (tmp_path / "out.raw").write_text("of another scan")
    with pytest.raises(TranslationError, match=r"out\.raw exists"):
        translate(trained(), tmp_path / "in.mha", tmp_path / "out.mhd")
    with pytest.raises(TranslationError, match=r"out\.mhd does not end in \.mha"):
        translate(trained(), tmp_path / "in.mha", tmp_path / "out.mhd", suffix="mha")


@pytest.mark.parametrize("output", ["a.nhdr", "a.mhd", "out/a.nii"])
def test_no_file_of_an_input_is_ever_replaced(tmp_path, output):
    (tmp_path / "out").mkdir()
    sitk_image(tmp_path / "a.mhd")
    write(tmp_path / "b.nii")
    (tmp_path / "out" / "a.nii").hardlink_to(tmp_path / "b.nii")  # of another input of the folder
    before = contents(tmp_path)
    source = tmp_path if output.startswith("out") else tmp_path / "a.mhd"
    place = tmp_path / output if source != tmp_path else tmp_path / "out"
    with pytest.raises(TranslationError, match=r"is the input .*would be overwritten"):
        translate(trained(), source, place, overwrite=True, suffix=None if source != tmp_path else "nii")
    assert contents(tmp_path) == before


def test_missing_simpleitk_is_reported_before_the_computation(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(VolumeError, match=r"install it with: pip install 'ppdm\[formats\]'"):
        translate(trained(), write(tmp_path / "a.nii"), tmp_path / "b.mha", progress=lambda *_: pytest.fail("it began"))


@pytest.mark.parametrize("output", ["out.nii.gz", "out.nrrd", "out"])
def test_a_dicom_series_becomes_one_file(tmp_path, output):
    dicom(tmp_path / "T1 axial")
    (made,) = translate(trained(spacing=DICOM_SPACING), tmp_path / "T1 axial", tmp_path / output)
    assert made.output == (tmp_path / output if "." in output else tmp_path / "out" / "T1 axial.nii.gz")
    before, after = read_volume(tmp_path / "T1 axial"), read_volume(made.output)
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    assert after.data.shape == before.data.shape


def test_dicom_series_in_a_folder_are_translated_beside_other_scans(tmp_path):
    dicom(tmp_path / "in" / "p1" / "t1")
    dicom(tmp_path / "in" / "p2" / "t1", skip=[2])
    write(tmp_path / "in" / "p1" / "b.nii", spacing=DICOM_SPACING)
    made = translate(trained(spacing=DICOM_SPACING), tmp_path / "in", tmp_path / "out")
    assert [str(r.output.relative_to(tmp_path / "out")) for r in made] == ["p1/b.nii", "p1/t1.nii.gz", "p2/t1.nii.gz"]
    assert [bool(r.fault) for r in made] == [False, False, True]
    assert "1 slice is missing there" in made[-1].fault


@pytest.mark.parametrize("axes", [(1,), (1, 1)])
def test_a_trailing_axis_of_length_one_is_kept(tmp_path, axes):
    image = nib.Nifti1Image(scan().reshape(*SHAPE, *axes), np.diag([-1, 1.05, 1, 1]))
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "in.nii.gz")
    translate(trained(), tmp_path / "in.nii.gz", tmp_path / "out.nii.gz")
    before, after = nib.load(tmp_path / "in.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    assert after.shape == (*SHAPE, *axes)
    for name in ("dim", "pixdim", "xyzt_units", "sform_code", "qform_code"):
        np.testing.assert_array_equal(after.header[name], before.header[name], err_msg=name)
    assert np.corrcoef(after.get_fdata().ravel(), before.get_fdata().ravel())[0, 1] > 0.9999


def test_several_volumes_in_a_file_are_refused_with_a_remedy(tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((*SHAPE, 3), np.float32), np.eye(4)), tmp_path / "in.nii")
    with pytest.raises(VolumeError, match="which are 3 volumes, expected one; split it into one file per volume"):
        translate(trained(), tmp_path / "in.nii", tmp_path / "out.nii")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"steps": 0}, "positive number of steps"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"seed": -1}, "seed must be an integer"),
        ({"seed": 0.5}, "seed must be an integer"),
        ({"suv_factor": 2.0}, "leave the factor out"),
        ({"block": 0}, "a block is a positive integer"),
        ({"block": 8, "overlap": 1.0}, r"overlap by a share in \[0, 1\)"),
        ({"overlap": 0.5}, "applies only to blocks; give their size as well"),
    ],
)
def test_invalid_options_are_refused(tmp_path, options, sentence):
    with pytest.raises(TranslationError, match=sentence):
        translate(trained(), write(tmp_path / "in.nii"), tmp_path / "out.nii", **options)
    assert os.listdir(tmp_path) == ["in.nii"]


# Several samples

RANDOM = replace(TINY, sampling=replace(TINY.sampling, stochastic=True))


def test_the_mean_and_the_deviation_of_the_samples_are_written(tmp_path):
    noisy, path = trained(RANDOM, noisy=True), write(tmp_path / "in.nii")
    (made,) = translate(noisy, path, tmp_path / "out.nii.gz", seed=3, samples=4)
    assert (made.output, made.deviation) == (tmp_path / "out.nii.gz", tmp_path / "out_std.nii.gz")
    draws = [translate_volume(noisy, torch.from_numpy(scan()), seed=seed_of(3, k)).double() for k in range(4)]
    mean, deviation = (read_volume(file).data for file in (made.output, made.deviation))
    np.testing.assert_allclose(mean, torch.stack(draws).mean(0), rtol=1e-6)
    np.testing.assert_allclose(deviation, torch.stack(draws).std(0), rtol=1e-5)
    assert deviation.mean() > 0
    single = translate_volume(noisy, torch.from_numpy(scan()), seed=3)
    torch.testing.assert_close(draws[0].float(), single, rtol=0, atol=0)


def test_mean_and_deviation_keep_their_precision_far_from_zero(tmp_path):
    # A deviation of about 1 at values of 1e6: sums of squares in float32 would lose it.
    far = trained(RANDOM, PercentileScaling(Range(1e6, 1e6 + 8)), noisy=True)
    draws = [translate_volume(far, torch.from_numpy(scan()), seed=seed_of(0, k)).double() for k in range(8)]
    mean, deviation = translate_samples(far, torch.from_numpy(scan()), 8)
    torch.testing.assert_close(mean.double(), torch.stack(draws).mean(0), rtol=1e-7, atol=0)
    torch.testing.assert_close(deviation.double(), torch.stack(draws).std(0), rtol=1e-5, atol=0)


def test_the_seeds_of_samples_differ_and_are_fixed():
    seeds = {seed_of(seed, draw) for seed in (0, 1, 2**63 - 1) for draw in range(50)}
    assert len(seeds) == 150
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert (seed_of(7, 0), seed_of(0, 1), seed_of(0, 2)) == (7, 2918264622725855778, 8597659618385908031)


def test_samples_of_a_folder_write_a_deviation_for_each_scan(folder, tmp_path):
    seen = []
    noisy = trained(RANDOM, noisy=True)
    made = translate(noisy, folder, tmp_path / "out", samples=2, progress=lambda *state: seen.append(state))
    assert all(one.deviation.exists() for one in made)
    total = 2 * RANDOM.sampling.steps * len(made)
    assert seen == [(k, total) for k in range(1, total + 1)]
    kept = contents(tmp_path / "out")
    with pytest.raises(TranslationError, match=f"{2 * len(made)} outputs exist"):
        translate(noisy, folder, tmp_path / "out", samples=2)
    assert contents(tmp_path / "out") == kept


def test_a_deviation_replaces_no_file(tmp_path):
    noisy, path = trained(RANDOM, noisy=True), write(tmp_path / "out_std.nii")
    with pytest.raises(TranslationError, match=r"is the input .*out_std\.nii itself"):
        translate(noisy, path, tmp_path / "out.nii", samples=2, overwrite=True)
    write(tmp_path / "in.nii")
    before = contents(tmp_path)
    with pytest.raises(TranslationError, match=r"out_std\.nii exists"):
        translate(noisy, tmp_path / "in.nii", tmp_path / "out.nii", samples=2)
    assert contents(tmp_path) == before


def test_a_scan_named_like_a_deviation_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.nii", "a_std.nii"):
        write(tmp_path / "in" / name)
    with pytest.raises(TranslationError, match=r"Two scans would be written to .*a_std\.nii"):
        translate(trained(RANDOM), tmp_path / "in", tmp_path / "out", samples=2)
    assert not (tmp_path / "out").exists()


def test_a_translation_that_cannot_be_written_leaves_no_deviation(tmp_path, monkeypatch):
    def failing(path, array, like):
        if "_std" not in path.name:
            raise VolumeError("the disk is full")
        write_volume(path, array, like)

    monkeypatch.setattr("ppdm.translation.write_volume", failing)
    with pytest.raises(VolumeError, match="the disk is full"):
        translate(trained(RANDOM, noisy=True), write(tmp_path / "in.nii"), tmp_path / "out.nii", samples=2)
    assert os.listdir(tmp_path) == ["in.nii"]


@pytest.mark.parametrize("samples", [0, 1, -3, 2.0, True])
def test_a_deviation_needs_two_samples(tmp_path, samples):
    with pytest.raises(TranslationError, match=r"need 2 samples or more, got"):
        translate(trained(RANDOM), write(tmp_path / "in.nii"), tmp_path / "out.nii", samples=samples)
    assert os.listdir(tmp_path) == ["in.nii"]


@pytest.mark.parametrize("method", [TINY, replace(RANDOM, sampling=replace(RANDOM.sampling, steps=1))])
def test_several_samples_are_refused_for_a_method_without_noise(tmp_path, method):
    with pytest.raises(TranslationError, match=r"is not random: its sampling in . steps? uses no noise"):
        translate(trained(method), write(tmp_path / "in.nii"), tmp_path / "out.nii", samples=2)
    assert os.listdir(tmp_path) == ["in.nii"]


def test_refuses_a_result_that_is_not_finite(tmp_path):
    broken = trained()
    with torch.no_grad():
        broken.network.head.convolution.bias.fill_(float("inf"))
    with pytest.raises(TranslationError, match=r"in\.nii: .* not finite in fp32"):
        translate(broken, write(tmp_path / "in.nii"), tmp_path / "out.nii")
    assert not (tmp_path / "out.nii").exists()


def test_a_spacing_that_differs_from_training_gives_a_warning(tmp_path):
    path = write(tmp_path / "in.nii", spacing=(1.0, 1.0, 2.0))
    with pytest.warns(UserWarning, match=r"in\.nii has voxels of 1 × 1 × 2 mm, .* trained on 1 × 1 × 1 mm"):
        translate(trained(), path, tmp_path / "out.nii")
    write(path, spacing=(1.0, 1.0, 1.05))
    translate(trained(), path, tmp_path / "out.nii", overwrite=True)  # an unexpected warning is an error in the tests


def test_progress_counts_the_evaluations_of_the_network(tmp_path):
    seen = []
    translate(
        trained(), write(tmp_path / "in.nii"), tmp_path / "out.nii", steps=3, progress=lambda *now: seen.append(now)
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_adapting_shares_the_weights_and_changes_nothing_else():
    before = trained(noisy=True)
    after = adapt(before, steps=9, precision="bf16", device="cpu")
    assert after.method == replace(before.method.with_network(precision="bf16"), sampling=after.method.sampling)
    assert after.method.sampling.steps == 9
    assert before.method == TINY
    for p, q in zip(before.network.parameters(), after.network.parameters(), strict=True):
        assert p.data_ptr() == q.data_ptr()


def test_bf16_changes_the_result_only_slightly():
    source = torch.from_numpy(scan())
    full, half = (translate_volume(adapt(trained(noisy=True), precision=p), source) for p in ("fp32", "bf16"))
    assert full.dtype == half.dtype == torch.float32
    assert 0 < (full - half).abs().mean() < 0.05 * full.std()


def test_translate_volume_refuses_unsuitable_volumes():
    with pytest.raises(TranslationError, match=r"Expected a volume \(D, H, W\), got the shape \(1, 4, 4, 4\)"):
        translate_volume(trained(), torch.zeros(1, 4, 4, 4))
    with pytest.raises(TranslationError, match="trained on 2 channels"):
        translate_volume(trained(channels=2), torch.zeros(4, 4, 4))
    with pytest.raises(IntensityError, match="no contrast"):
        translate_volume(trained(), torch.zeros(4, 4, 4))


def test_translate_writes_the_result_of_translate_volume(tmp_path):
    method = trained(STOCHASTIC, noisy=True)
    translate(method, write(tmp_path / "in.nii"), tmp_path / "out.nii", seed=2)
    result = translate_volume(method, torch.from_numpy(scan()), seed=2)
    np.testing.assert_array_equal(read_volume(tmp_path / "out.nii").data, result.numpy())


STROKE = Path(__file__).parents[3] / "shared/data/stroke"


@pytest.mark.skipif(not (STROKE / "T1.nii.gz").exists(), reason="the stroke data are not here")
def test_a_real_scan_keeps_its_geometry(tmp_path):
    pooled = percentile_range(read_volume(STROKE / "T2.nii.gz").data)
    method = trained(TINY.with_factor(4), PercentileScaling(pooled))
    translate(method, STROKE / "T1.nii.gz", tmp_path / "out.nii.gz", steps=1)
    before, after = nib.load(STROKE / "T1.nii.gz"), nib.load(tmp_path / "out.nii.gz")
    assert after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)

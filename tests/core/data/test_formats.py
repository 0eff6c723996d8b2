"""MetaImage, NRRD and DICOM: values and geometry match SimpleITK and nibabel; bad files are refused with a reason."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from dicom_series import SHAPE, dicom, image, save_slice, tilt, values

from ppdm.data import nifti_stream
from ppdm.data.checking import check_pair
from ppdm.data.manifest import load_pair, read_manifest, write_manifest
from ppdm.data.volume import (
    Volume,
    VolumeError,
    check_same_grid,
    files_of_scan,
    read_geometry,
    read_volume,
    write_volume,
)

SUFFIXES = (".mha", ".mhd", ".nrrd", ".nhdr")


def refusal(path, call=read_volume):
    with pytest.raises(VolumeError) as caught:
        call(path)
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 700
    return message


# MetaImage and NRRD


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_volume_is_the_same_in_every_format(tmp_path, suffix, compressed):
    sitk.WriteImage(image(), tmp_path / "a.nii.gz")
    sitk.WriteImage(image(), tmp_path / f"b{suffix}", useCompression=compressed)
    nifti, other = read_volume(tmp_path / "a.nii.gz"), read_volume(tmp_path / f"b{suffix}")
    np.testing.assert_array_equal(other.data, nifti.data)
    check_same_grid(nifti, other, ("a", "b"))
    np.testing.assert_allclose(other.native_affine, nib.load(tmp_path / "a.nii.gz").affine, rtol=1e-6, atol=1e-5)
    exact = image()
    lps = np.reshape(exact.GetDirection(), (3, 3)) * exact.GetSpacing()
    np.testing.assert_allclose(other.native_affine[:3, :3], np.diag([-1, -1, 1]) @ lps, rtol=1e-14)
    assert other.native_affine[:3, 3].tolist() == [111.3, -42.7, 100.123456789]
    geometry = read_geometry(tmp_path / f"b{suffix}")
    assert geometry.shape == other.data.shape
    np.testing.assert_array_equal(geometry.affine, other.affine)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "SAL", "ILP"])
def test_orientations_become_canonical_and_return(tmp_path, codes):
    source = sitk.DICOMOrient(image(direction=np.eye(3)), codes)
    sitk.WriteImage(source, tmp_path / "a.nrrd")
    sitk.WriteImage(source, tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nrrd")
    np.testing.assert_array_equal(volume.data, nib.as_closest_canonical(nib.load(tmp_path / "a.nii")).get_fdata())
    write_volume(tmp_path / "b.nrrd", volume.data, volume)
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / "b.nrrd")), sitk.GetArrayFromImage(source)
    )


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_volume_written_in_its_own_format_keeps_its_geometry(tmp_path, suffix):
    sitk.WriteImage(image(), tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    write_volume(tmp_path / f"b{suffix}", volume.data / 7, volume)
    before, after = (sitk.ReadImage(tmp_path / f"{name}{suffix}") for name in "ab")
    np.testing.assert_array_equal(
        sitk.GetArrayFromImage(after), sitk.GetArrayFromImage(before).astype(np.float32) / np.float32(7)
    )
    for ask in ("GetOrigin", "GetSpacing", "GetDirection"):
        exact = suffix in (".mha", ".mhd")  # NRRD stores products of spacing and direction
        np.testing.assert_allclose(getattr(after, ask)(), getattr(before, ask)(), rtol=0 if exact else 1e-14, atol=0)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("suffix", [".nii.gz", *SUFFIXES])
def test_nifti_and_metaimage_convert_to_every_format_on_the_same_grid(tmp_path, suffix):
    sitk.WriteImage(image(), tmp_path / "in.nii.gz")
    sitk.WriteImage(image(), tmp_path / "in.mha")
    for name in ("in.nii.gz", "in.mha"):
        volume = read_volume(tmp_path / name)
        write_volume(tmp_path / f"out{suffix}", volume.data, volume)
        out = read_volume(tmp_path / f"out{suffix}")
        np.testing.assert_array_equal(out.data, volume.data)
        np.testing.assert_allclose(out.affine, volume.affine, rtol=1e-6, atol=2e-5)
        code = sitk.ReadImage(tmp_path / f"out{suffix}")  # ITK agrees
        np.testing.assert_allclose(code.GetOrigin(), image().GetOrigin(), rtol=1e-6)


@pytest.mark.parametrize("suffix", [".mha", ".nrrd"])
@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_every_numeric_type_is_read(tmp_path, suffix, dtype):
    array = np.abs(values(dtype=np.int64)) % 120
    sitk.WriteImage(image(array.astype(dtype), np.eye(3)), tmp_path / f"a{suffix}")
    read = read_volume(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(read.to_native(read.data), array)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_trailing_axis_of_length_one_is_kept(tmp_path, suffix):
    sitk.WriteImage(sitk.JoinSeries([image()]), tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    assert volume.data.ndim == 3
    write_volume(tmp_path / f"b{suffix}", volume.data, volume)
    assert sitk.ReadImage(tmp_path / f"b{suffix}").GetSize() == (*SHAPE, 1)
    write_volume(tmp_path / "b.nii", volume.data, volume)
    assert nib.load(tmp_path / "b.nii").shape == (*SHAPE, 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_only_the_trailing_axes_that_simpleitk_can_write_are_kept(tmp_path, suffix):
    nib.save(nib.Nifti1Image(np.ones((2, 3, 4, 1, 1, 1), np.float32), np.eye(4)), tmp_path / "a.nii")
    volume = read_volume(tmp_path / "a.nii")
    write_volume(tmp_path / f"b{suffix}", volume.data, volume)
    assert sitk.ReadImage(tmp_path / f"b{suffix}").GetSize() == (2, 3, 4, 1, 1)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_images_that_are_not_one_scalar_volume_are_refused(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.JoinSeries([image(), image()]), path)
    assert "2 volumes, expected one; split it" in refusal(path)
    sitk.WriteImage(image()[:, :, 0], path)
    assert "2 axes of lengths (7, 6), expected three" in refusal(path)
    sitk.WriteImage(sitk.Compose([image()] * 3), path)
    assert "3 components" in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("compressed", [False, True])
def test_truncated_files_are_refused(tmp_path, suffix, compressed):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image(), path, useCompression=compressed)
    data = files_of_scan(path)[-1]
    data.write_bytes(data.read_bytes()[:-60])
    assert "cannot be read" in refusal(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\n\n", b"NRRD", b"NRRD0004\n\n", b"ObjectType = Image\n", bytes(500)])
def test_files_with_other_content_are_refused(tmp_path, suffix, content):
    (tmp_path / f"a{suffix}").write_bytes(content)
    for call in (read_volume, read_geometry):
        refusal(tmp_path / f"a{suffix}", call)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_header_that_claims_too_much_is_refused_before_the_voxels_are_read(tmp_path, suffix, monkeypatch):
    """The header claims more than the file holds, or more than fits into the memory."""
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image(), path)
    monkeypatch.setattr(sitk.ImageFileReader, "Execute", lambda _: pytest.fail("the voxels were read"))
    content = path.read_bytes()
    path.write_bytes(content.replace(b"7 6 5", b"70000 60000 50000"))
    assert "is truncated: its header claims 420000000000000 bytes" in refusal(path)
    path.write_bytes(content)
    monkeypatch.setattr(nifti_stream, "_physical_memory", lambda: 1000)
    assert "of memory" in refusal(path)
    assert read_geometry(path).shape  # the geometry can be read even if the voxels exceed the memory


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("NDims = 3", "NDims = 99999999999"),  # this value makes ITK crash with a segmentation fault
        ("NDims = 3", "NDims = 12"),
        ("NDims = 3", "NDims : 3"),
        ("DimSize = 7 6 5", "DimSize = 7 6 5 4"),
        ("DimSize = 7 6 5", "DimSize = 7 6 -5"),
        ("DimSize = 7 6 5", "NDims = 30\nDimSize = 7 6 5"),
        ("ElementType = MET_SHORT", "ElementType = MET_OTHER"),
        ("Offset = ", "Comment = " + "x" * 400 + "\nOffset = "),
        ("Offset = ", "Offset = " + "1 " * 400),
        ("ElementSpacing = 0.7", "ElementSpacing = wide"),
    ],
)
def test_an_invalid_metaimage_header_never_reaches_itk(tmp_path, before, after, monkeypatch):
    sitk.WriteImage(image(direction=np.eye(3)), tmp_path / "a.mha")
    content = (tmp_path / "a.mha").read_bytes().replace(b"0.69999999999999996", b"0.7")
    assert content.count(before.encode()) == 1
    (tmp_path / "a.mha").write_bytes(content.replace(before.encode(), after.encode()))
    monkeypatch.setattr(sitk, "ImageFileReader", None)
    assert "is not a MetaImage file" in refusal(tmp_path / "a.mha")


def test_additional_keys_of_a_metaimage_header_are_ignored(tmp_path):
    sitk.WriteImage(image(), tmp_path / "a.mha")
    content = (tmp_path / "a.mha").read_bytes()
    path = tmp_path / "b.mha"
    path.write_bytes(
        content.replace(b"ElementType", b"Comment = made by a scanner: X\r\nModality = MET_MOD_MR\nElementType")
    )
    np.testing.assert_array_equal(read_volume(path).data, read_volume(tmp_path / "a.mha").data)


@pytest.mark.parametrize("suffix", [".mhd", ".nhdr"])
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("/etc/passwd", "outside its folder"),
        ("../other.raw", "outside its folder"),
        ("sub/../../other.raw", "outside its folder"),
        ("gone.raw", "which is not in its folder"),
        ("LIST", "several files"),
        ("slice%03d.raw 1 5 1", "several files"),
    ],
)
def test_a_header_may_name_only_one_file_of_its_folder(tmp_path, suffix, name, said):
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(image(), path)
    path.write_bytes(path.read_bytes().replace(b"a.raw", name.encode()))
    assert said in refusal(path)


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        ("a.mha", "b.nii", "it is MetaImage: rename it to .mha"),
        ("a.nrrd", "b.mha", "it is NRRD: rename it to .nrrd"),
        ("a.nii.gz", "b.nrrd", "it is gzip data, probably NIfTI: rename it to .nii.gz"),
        ("a.nii.gz", "b.mha", "it is gzip data, probably NIfTI"),
        ("series/IM0000.dcm", "b.nii.gz", "it is DICOM: let its name end in .dcm"),
        ("series/IM0000.dcm", "b.nrrd", "it is DICOM"),
    ],
)
def test_a_file_with_a_wrong_suffix_is_refused_with_its_real_format(tmp_path, content, name, said):
    dicom(tmp_path / "series")
    for other in ("a.mha", "a.nrrd", "a.nii.gz"):
        sitk.WriteImage(image(), tmp_path / other)
    (tmp_path / name).write_bytes((tmp_path / content).read_bytes())
    assert said in refusal(tmp_path / name)


@pytest.mark.parametrize("suffix", [".NII", ".Nii.gz", ".MHA", ".MHD", ".NRRD", ".NHDR"])
def test_suffixes_in_capitals_are_read_and_written(tmp_path, suffix):
    volume = Volume.from_array(values())
    write_volume(tmp_path / f"a{suffix}", volume.data, volume)
    np.testing.assert_array_equal(read_volume(tmp_path / f"a{suffix}").data, volume.data)


def test_names_with_spaces_and_accents_are_read_and_written(tmp_path):
    folder = tmp_path / "my scans é"
    folder.mkdir()
    for suffix in SUFFIXES:
        sitk.WriteImage(image(), folder / f"a scan ü{suffix}")
        volume = read_volume(folder / f"a scan ü{suffix}")
        write_volume(folder / f"b scan ü{suffix}", volume.data, volume)
        np.testing.assert_array_equal(read_volume(folder / f"b scan ü{suffix}").data, volume.data)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_failed_write_leaves_the_old_file(tmp_path, suffix, monkeypatch):
    sitk.WriteImage(image(), tmp_path / f"a{suffix}")
    volume = read_volume(tmp_path / f"a{suffix}")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*args, **kwargs):
        raise RuntimeError("ITK ERROR: something\nNo space left on device")

    monkeypatch.setattr(sitk, "WriteImage", full)
    with pytest.raises(VolumeError, match=r"cannot be written \(No space left on device\)"):
        write_volume(tmp_path / f"a{suffix}", volume.data, volume)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["a.mha", "a.nrrd", "dicom"])
def test_without_simpleitk_the_error_says_what_to_install(tmp_path, name, monkeypatch):
    sitk.WriteImage(image(), tmp_path / "a.mha")
    sitk.WriteImage(image(), tmp_path / "a.nrrd")
    dicom(tmp_path / "dicom")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    message = refusal(tmp_path / name)
    assert "needs SimpleITK; install it with: pip install 'ppdm[formats]'" in message
    volume = Volume.from_array(values())
    with pytest.raises(VolumeError, match=r"pip install 'ppdm\[formats\]'"):
        write_volume(tmp_path / "b.mha", volume.data, volume)
    assert not (tmp_path / "b.mha").exists()


def test_nifti_files_need_no_simpleitk(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    volume = Volume.from_array(values(), (1.0, 2.0, 3.0))
    for name in ("a.nii", "a.nii.gz"):
        write_volume(tmp_path / name, volume.data, volume)
        np.testing.assert_array_equal(read_volume(tmp_path / name).data, values())
        assert read_geometry(tmp_path / name).spacing == (1.0, 2.0, 3.0)


@pytest.mark.slow
def test_importing_translation_and_checking_does_not_import_simpleitk(tmp_path):
    code = "import sys, ppdm.translation, ppdm.data.checking; sys.exit('SimpleITK' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# DICOM


def test_a_dicom_series_is_read_as_the_volume_that_was_written(tmp_path):
    source = image(direction=tilt())
    sitk.WriteImage(source, tmp_path / "a.nii")
    folder = dicom(tmp_path / "series", source)
    nifti, volume = read_volume(tmp_path / "a.nii"), read_volume(folder)
    np.testing.assert_array_equal(volume.data, nifti.data)
    check_same_grid(nifti, volume, ("a", "b"))
    np.testing.assert_allclose(volume.native_affine, nib.load(tmp_path / "a.nii").affine, rtol=1e-5, atol=1e-4)
    assert read_geometry(folder).shape == volume.data.shape
    one = next(folder.iterdir())
    np.testing.assert_array_equal(read_volume(one).data, volume.data)
    assert len(files_of_scan(folder)) == SHAPE[2]


def test_a_dicom_series_is_read_like_itk_reads_it(tmp_path):
    folder = dicom(tmp_path / "series")
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    sitk.WriteImage(reader.Execute(), tmp_path / "itk.nii")
    itk, volume = read_volume(tmp_path / "itk.nii"), read_volume(folder)
    np.testing.assert_array_equal(itk.data, volume.data)
    check_same_grid(itk, volume, ("itk", "ours"))


def test_the_rescale_slope_of_each_slice_is_applied(tmp_path):
    folder = dicom(tmp_path / "series", pet=True)
    for name, slope in (("IM0007.dcm", b".5"), ("IM0003.dcm", b".2")):  # slices 1 and 2
        content, tag = (folder / name).read_bytes(), b"\x28\x00\x53\x10\x02\x00\x00\x00"  # rescale slope, 2 bytes
        assert content.count(tag + b"1 ") == 1
        (folder / name).write_bytes(content.replace(tag + b"1 ", tag + slope))
    volume = read_volume(folder)
    expected = values() * np.array([1, 0.5, 0.2, 1, 1])
    np.testing.assert_allclose(volume.to_native(volume.data), expected, rtol=1e-6)


def test_a_series_may_have_names_without_suffix_text_files_and_a_dicomdir(tmp_path):
    folder = dicom(tmp_path / "series")
    expected = read_volume(folder).data
    for n, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"1.2.840.{n}")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM" + bytes(100))
    (folder / "notes.txt").write_text("exported on Monday")
    np.testing.assert_array_equal(read_volume(folder).data, expected)


def test_non_image_dicom_files_are_ignored_but_a_slice_without_pixels_is_refused(tmp_path):
    folder = dicom(tmp_path / "series")
    expected = read_volume(folder).data
    content = (folder / "IM0000.dcm").read_bytes()
    content = content[: content.index(b"\xe0\x7f\x10\x00")]  # without pixels
    (folder / "SR").write_bytes(content.replace(b"1.2.840.10008.5.1.4.1.1.4\0", b"1.2.840.10008.5.1.4.1.1.66"))
    np.testing.assert_array_equal(read_volume(folder).data, expected)
    (folder / "IM9").write_bytes(content)  # a slice without its pixels
    assert "1 of its DICOM files cannot be read, such as IM9" in refusal(folder)


def test_two_series_in_a_folder_are_listed_and_one_file_selects_its_series(tmp_path):
    folder = dicom(tmp_path / "study")
    other = image(values() + 5, tilt())
    dicom(folder, other, "1.2.3.2", "T2 axial", prefix="T2_")
    message = refusal(folder)
    assert "holds 2 DICOM series, expected one; name one file of the series wanted instead" in message
    assert "IM0000.dcm: T1 axial, slices: 5, UID 1.2.3.1" in message
    assert "T2_0000.dcm: T2 axial, slices: 5, UID 1.2.3.2" in message
    first, second = read_volume(folder / "IM0000.dcm").data, read_volume(folder / "T2_0007.dcm").data
    np.testing.assert_array_equal(first + 5, second)


@pytest.mark.parametrize(("gone", "said"), [([2], "1 slice is missing there"), ([1, 2], "2 slices are missing")])
def test_missing_slices_are_refused(tmp_path, gone, said):
    source = sitk.GetImageFromArray(values((7, 6, 9)).T)
    assert said in refusal(dicom(tmp_path / "series", source, skip=gone))


def test_uneven_spacing_is_refused(tmp_path):
    source = sitk.GetImageFromArray(values((7, 6, 9)).T)
    folder = dicom(tmp_path / "series", source)
    shifted = sitk.GetImageFromArray(values((7, 6, 9)).T)
    shifted.SetOrigin((0, 0, 0.3))
    dicom(folder, shifted, skip=[0, 1, 2, 3, 5, 6, 7, 8])
    message = refusal(folder)
    assert "1.3 mm, between the others 1 mm: the spacing is uneven" in message


def test_several_volumes_in_one_series_are_refused(tmp_path):
    folder = dicom(tmp_path / "series")
    dicom(folder, prefix="echo2_")
    assert "at one position, so the series holds several volumes" in refusal(folder)


def test_slices_of_different_sizes_are_refused(tmp_path):
    folder = dicom(tmp_path / "series", skip=[4])
    dicom(folder, image(values((8, 6, 5)), tilt()), skip=[0, 1, 2, 3])
    assert "differ in size, pixel spacing or orientation" in refusal(folder)


def test_a_series_of_one_slice_is_refused(tmp_path):
    assert "one slice, expected a volume" in refusal(dicom(tmp_path / "series", skip=[1, 2, 3, 4]))


@pytest.mark.parametrize("keep", [140, 300, -20])
def test_a_damaged_slice_is_refused_by_name(tmp_path, keep):
    folder = dicom(tmp_path / "series")
    last = folder / "IM0006.dcm"  # the last slice: without it the spacing would still be even
    last.write_bytes(last.read_bytes()[:keep])
    with pytest.raises(VolumeError) as caught:
        read_volume(folder)
    assert str(folder) in str(caught.value)
    assert last.name in str(caught.value)


def test_a_tilted_gantry_keeps_the_positions_of_its_slices(tmp_path):
    source = image(direction=np.eye(3))
    folder = dicom(tmp_path / "series", source)
    for k, path in enumerate(sorted(folder.iterdir(), key=lambda path: (int(path.stem[2:]) * 8) % 11)):
        one = sitk.ReadImage(path)
        x, y, z = map(float, one.GetMetaData("0020|0032").split("\\"))
        one.SetMetaData("0020|0032", f"{x}\\{y + 0.4 * k}\\{z}")
        save_slice(one, path)
    step = read_volume(folder).native_affine[:3, 2]
    np.testing.assert_allclose(step, [0, -0.4, 2.3], atol=1e-5)


# Manifests and checks


@pytest.mark.parametrize("name", ["series", "a.nii", "a.nii.gz", *(f"a{suffix}" for suffix in SUFFIXES)])
def test_manifests_and_checks_accept_every_format(tmp_path, name):
    source = image(direction=tilt())
    if name == "series":
        dicom(tmp_path / name, source)
    else:
        sitk.WriteImage(source, tmp_path / name)
    sitk.WriteImage(source + 7, tmp_path / "b.nrrd")
    (tmp_path / "pairs.csv").write_text(f"subject,split,source,target\ns,train,{name},b.nrrd\n")
    (pair,) = read_manifest(tmp_path / "pairs.csv")
    before, after = load_pair(pair)
    np.testing.assert_array_equal(before.data + 7, after.data)
    report = check_pair(pair)
    assert report.sound, report.faults
    write_manifest(tmp_path / "again.csv", [pair])
    assert read_manifest(tmp_path / "again.csv") == [pair]
    assert pair.source == tmp_path / name


def test_a_folder_or_file_without_dicom_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "is not a file" in refusal(tmp_path / "empty")
    (tmp_path / "report.dcm").write_text("no DICOM")
    assert "expected .nii" in refusal(tmp_path / "report.dcm")

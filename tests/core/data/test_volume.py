"""NIfTI volumes: geometry is written back bit for bit, values are physical, and bad files are refused by name."""

import gzip
import io
import math
import subprocess
import sys
import tracemalloc
from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt, inv_ornt_aff

from ppdm.data import nifti_stream
from ppdm.data import volume as volume_module
from ppdm.data.geometry import orientation
from ppdm.data.volume import (
    Volume,
    VolumeError,
    check_same_grid,
    read_geometry,
    read_shape,
    read_volume,
    write_volume,
)

SHAPE = (4, 5, 6)
AFFINE = np.array([[1.5, 0, 0, -20], [0, 2, 0, 7], [0, 0, 3, 11], [0, 0, 0, 1.0]])
AXCODES = ["".join(axes) for pairs in permutations(("LR", "PA", "IS")) for axes in product(*pairs)]
GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)


def ramp(shape=SHAPE, dtype=np.float32):
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


def save(path, array, affine=AFFINE, sform=1, qform=1, image_class=nib.Nifti1Image, edit=None, order="<"):
    """Write a file with only nibabel; `edit` sets header fields to values that nibabel would not write."""
    header = image_class.header_class(endianness=order)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_sform(affine, code=sform)
    header.set_qform(affine, code=qform)
    header.set_slope_inter(1, 0)
    header.set_data_offset(header.single_vox_offset)
    header["pixdim"][4:] = 1
    for field, value in (edit or {}).items():
        header[field] = value
    content = header.binaryblock + b"\0" * 4 + array.astype(array.dtype.newbyteorder(order)).tobytes(order="F")
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


def assert_same_geometry(a, b):
    for field in GEOMETRY:
        assert np.array_equal(a.header[field], b.header[field]), field
    assert np.array_equal(a.affine, b.affine)


def refusal(path, call=read_volume):
    with pytest.raises(VolumeError) as caught:
        call(path)
    assert Path(path).name in str(caught.value)
    return str(caught.value)


# Reading and writing


@pytest.mark.parametrize("codes", AXCODES)
def test_every_orientation_is_canonical_in_memory_and_native_in_files(tmp_path, codes):
    canonical = ramp()
    orientation = axcodes2ornt(codes)
    native = nib.Nifti1Image(canonical, AFFINE).as_reoriented(
        nib.orientations.ornt_transform(axcodes2ornt("RAS"), orientation)
    )
    path = save(tmp_path / "in.nii", np.asarray(native.dataobj), native.affine)
    volume = read_volume(path)
    assert "".join(nib.aff2axcodes(volume.affine)) == "RAS"
    assert np.array_equal(volume.data, canonical)
    assert volume.data.flags.c_contiguous
    np.testing.assert_allclose(volume.affine, AFFINE)
    assert volume.spacing == (1.5, 2, 3)
    assert read_shape(path) == (SHAPE, (1.5, 2, 3))

    write_volume(tmp_path / "out.nii", volume.data + 1, volume)
    written = nib.load(tmp_path / "out.nii")
    assert "".join(nib.aff2axcodes(written.affine)) == codes
    assert np.array_equal(written.get_fdata(), native.get_fdata() + 1)
    assert_same_geometry(written, nib.load(path))


@settings(max_examples=30, deadline=None)
@given(
    axes=st.lists(st.floats(-1, 1, width=32), min_size=9, max_size=9),
    offset=st.lists(st.floats(-300, 300, width=32), min_size=3, max_size=3),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    unit=st.integers(0, 3),
)
def test_oblique_and_left_handed_geometry_is_written_back_bit_for_bit(tmp_path_factory, axes, offset, codes, unit):
    rotation = np.linalg.qr(np.reshape(axes, (3, 3)) + 3 * np.eye(3)[[1, 2, 0]])[0]
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = rotation * [0.7, 1.0, 4.0], offset
    folder = tmp_path_factory.mktemp("oblique")
    path = save(folder / "in.nii", ramp(), affine, *codes, edit={"xyzt_units": unit + 8})
    volume = read_volume(path)
    write_volume(folder / "out.nii", volume.data, volume)
    before, after = nib.load(path), nib.load(folder / "out.nii")
    assert_same_geometry(after, before)
    assert np.array_equal(after.get_fdata(), before.get_fdata())


@pytest.mark.parametrize(("sform", "qform"), [(1, 0), (0, 1), (2, 3), (0, 0)])
def test_the_sform_and_qform_codes_select_the_affine(tmp_path, sform, qform):
    path = save(tmp_path / "in.nii", ramp(), AFFINE, sform, qform, edit={} if sform else {"srow_x": np.nan})
    expected = nib.as_closest_canonical(nib.load(path))
    volume = read_volume(path)
    np.testing.assert_allclose(volume.affine, expected.affine)
    assert np.array_equal(volume.data, expected.get_fdata())


@pytest.mark.parametrize("image_class", [nib.Nifti1Image, nib.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "i4", "i8", "f4", "f8"])
def test_nifti_versions_byte_orders_and_types_are_read_and_written(tmp_path, image_class, order, dtype):
    path = save(tmp_path / "in.nii.gz", ramp(dtype=dtype), order=order, image_class=image_class)
    volume = read_volume(path)
    assert np.array_equal(volume.data, ramp())
    write_volume(tmp_path / "out.nii.gz", volume.data / 7, volume)
    written = nib.load(tmp_path / "out.nii.gz")
    assert type(written) is image_class
    assert np.array_equal(written.get_fdata(dtype=np.float32), ramp() / 7)
    assert_same_geometry(written, nib.load(path))


def test_scaled_integers_are_physical_and_the_output_is_not_quantised_again(tmp_path):
    stored = np.arange(-60, 60).reshape(SHAPE).astype(np.int16)
    path = save(
        tmp_path / "in.nii", stored, edit={"scl_slope": 0.35, "scl_inter": -12, "cal_max": 900, "intent_code": 1002}
    )
    volume = read_volume(path)
    assert np.array_equal(volume.data, nib.load(path).get_fdata().astype(np.float32))
    fine = volume.data + np.float32(0.1)
    write_volume(tmp_path / "out.nii", fine, volume)
    assert np.array_equal(read_volume(tmp_path / "out.nii").data, fine)
    raw = nib.Nifti1Header((tmp_path / "out.nii").read_bytes()[:348])
    assert (raw.get_data_dtype(), raw.get_slope_inter()) == (np.float32, (1.0, 0.0))
    assert (raw["cal_max"], raw["intent_code"]) == (0, 0)


def test_header_extensions_are_skipped_and_not_written(tmp_path):
    image = nib.Nifti1Image(ramp(), AFFINE)
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"name of a patient" * 50))
    nib.save(image, tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    assert np.array_equal(volume.data, ramp())
    write_volume(tmp_path / "out.nii", volume.data, volume)
    assert (tmp_path / "out.nii").stat().st_size == 352 + 4 * ramp().size


@pytest.mark.parametrize("axes", [(1,), (1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("codes", ["RAS", "PIL"])
def test_trailing_axes_of_length_one_are_kept_in_files_only(tmp_path, axes, codes):
    affine = inv_ornt_aff(axcodes2ornt(codes), SHAPE)
    path = save(tmp_path / "in.nii", ramp((*SHAPE, *axes)), affine, edit={"xyzt_units": 10})
    volume = read_volume(path)
    assert volume.data.shape == read_shape(path)[0]
    assert np.array_equal(volume.data, nib.as_closest_canonical(nib.Nifti1Image(ramp(), affine)).get_fdata())
    write_volume(tmp_path / "out.nii", volume.data, volume)
    written = nib.load(tmp_path / "out.nii")
    assert written.shape == (*SHAPE, *axes)
    assert_same_geometry(written, nib.load(path))
    assert np.array_equal(written.get_fdata(), ramp((*SHAPE, *axes)))


@pytest.mark.parametrize(("offset", "gap"), [(0, 0), (352, 0), (4096, 3744)])
def test_voxels_are_read_from_the_offset_in_the_header(tmp_path, offset, gap):
    path = save(tmp_path / "in.nii", ramp(), edit={"vox_offset": offset})
    content = path.read_bytes()
    path.write_bytes(content[:352] + b"\xff" * gap + content[352:])
    volume = read_volume(path)
    assert np.array_equal(volume.data, ramp())
    write_volume(tmp_path / "out.nii", volume.data, volume)
    assert (tmp_path / "out.nii").stat().st_size == len(content)


@pytest.mark.parametrize(("unit", "factor"), [(0, 1), (1, 1e3), (2, 1), (3, 1e-3)])
def test_affine_and_spacing_are_in_mm_whatever_the_unit_of_the_file(tmp_path, unit, factor):
    path = save(tmp_path / "in.nii", ramp(), edit={"xyzt_units": unit})
    np.testing.assert_allclose(read_volume(path).affine[:3], AFFINE[:3] * factor)
    np.testing.assert_allclose(read_shape(path)[1], np.array([1.5, 2, 3]) * factor)


def test_voxels_that_are_not_finite_are_replaced_counted_and_announced(tmp_path):
    array = ramp(dtype=np.float64)
    array[0, 0, :4] = np.nan, np.inf, -np.inf, 1e300
    path = save(tmp_path / "holes.nii", array)
    with pytest.warns(UserWarning, match=r"holes\.nii: 4 NaN or infinite voxels"):
        volume = read_volume(path)
    assert volume.replaced == 4
    assert volume.data[0, 0].tolist() == [0, 0, 0, 0, 4, 5]
    assert read_volume(path, announce=False).replaced == 4  # gives no warning, which pytest would turn into an error


def test_files_larger_than_one_chunk_are_read_chunk_by_chunk(tmp_path, monkeypatch):
    asked = []

    class Recorded(io.BytesIO):
        def read(self, size=-1):
            asked.append(size)
            return super().read(size)

    monkeypatch.setattr(nifti_stream, "_CHUNK", 7)
    path = save(tmp_path / "in.nii", ramp())
    for each in (path, save(tmp_path / "in.nii.gz", ramp())):
        assert np.array_equal(read_volume(each).data, ramp())
    with Recorded(path.read_bytes()) as stream:
        header = nifti_stream.read_header(path, stream)
        asked.clear()
        assert np.array_equal(nifti_stream.read_voxels(path, stream, header), ramp())
    assert set(asked) <= set(range(8))


# Refusals


def test_missing_files_folders_and_other_formats_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "gone.nii")
    assert "does not exist" in refusal(tmp_path / ("x" * 300 + ".nii"))
    (tmp_path / "folder.nii").mkdir()
    assert "is not a file" in refusal(tmp_path / "folder.nii")
    (tmp_path / "scan.mgz").touch()
    assert "expected .nii, .nii.gz, .mha, .mhd, .nrrd, .nhdr or a DICOM header" in refusal(tmp_path / "scan.mgz")
    for content in (b"", b"short", b"\x5c\x01\0\0" + b"\0" * 1000):
        (tmp_path / "other.nii").write_bytes(content)
        assert "is not a NIfTI file" in refusal(tmp_path / "other.nii")


def test_a_suffix_that_is_wrong_about_compression_does_not_matter(tmp_path):
    path = save(tmp_path / "in.nii", ramp())
    (tmp_path / "plain.nii.gz").write_bytes(path.read_bytes())
    (tmp_path / "zipped.nii").write_bytes(gzip.compress(path.read_bytes()))
    for name in ("plain.nii.gz", "zipped.nii"):
        assert np.array_equal(read_volume(tmp_path / name).data, ramp())
        assert read_shape(tmp_path / name)[0] == SHAPE


def test_paths_may_contain_blanks_links_and_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "my scans").mkdir()
    path = save(tmp_path / "my scans" / "a b.NII.GZ", ramp())
    (tmp_path / "link.nii.gz").symlink_to(path)
    for name in (path, tmp_path / "link.nii.gz", "~/my scans/a b.NII.GZ"):
        assert np.array_equal(read_volume(name).data, ramp())
    write_volume("~/out.nii", ramp(), read_volume(path))
    assert np.array_equal(read_volume(tmp_path / "out.nii").data, ramp())


@pytest.mark.parametrize("call", [read_volume, read_shape])
def test_several_volumes_in_a_file_are_refused_with_the_remedy(tmp_path, call):
    message = refusal(save(tmp_path / "in.nii", ramp((4, 5, 6, 2, 3))), call)
    assert "which are 6 volumes, expected one; split it into one file per volume" in message


@pytest.mark.parametrize("call", [read_volume, read_shape])
@pytest.mark.parametrize("shape", [(20,), (4, 5), (4, 5, 6, 2), (4, 5, 1, 2), (4, 5, 6, 1, 3)])
def test_files_without_exactly_three_axes_are_refused(tmp_path, call, shape):
    assert f"{len(shape)} axes of lengths {shape}" in refusal(save(tmp_path / "in.nii", ramp(shape)), call)


@pytest.mark.parametrize("call", [read_volume, read_shape])
@pytest.mark.parametrize(("length", "said"), [(0, "none of them empty"), (-3, "none of them empty")])
def test_empty_and_negative_axes_are_refused(tmp_path, call, length, said):
    path = save(tmp_path / "in.nii", ramp(), edit={"dim": [3, 4, length, 6, 1, 1, 1, 1]})
    assert said in refusal(path, call)


@pytest.mark.parametrize("call", [read_volume, read_shape])
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"srow_x": [np.nan, 0, 0, 0]}, "not finite"),
        ({"srow_y": [0, 1, 0, np.inf]}, "not finite"),
        ({"srow_x": [0, 0, 0, 0]}, "singular"),
        ({"srow_x": [1, 1, 0, 0], "srow_y": [1, 1, 0, 0]}, "singular"),
        ({"sform_code": 0, "quatern_b": 0.9, "quatern_c": 0.9}, "damaged NIfTI header"),
        ({"sform_code": 0, "pixdim": [1, np.nan, 1, 1, 1, 1, 1, 1]}, "not finite"),
        ({"sform_code": 0, "pixdim": [1, 2, 2, 0, 1, 1, 1, 1]}, "voxels of [2.0, 2.0, 0.0] mm and no sform"),
        ({"scl_inter": np.inf}, "damaged NIfTI header"),
        ({"vox_offset": np.inf}, "damaged NIfTI header"),
        ({"datatype": 9999}, "damaged NIfTI header"),
        ({"datatype": 32, "bitpix": 64}, "holds complex64 voxels"),
        ({"datatype": 128, "bitpix": 24}, "holds RGB voxels"),
    ],
)
def test_unusable_headers_are_refused(tmp_path, call, fields, said):
    with np.errstate(all="ignore"):
        assert said in refusal(save(tmp_path / "in.nii", ramp(), edit=fields), call)


@pytest.mark.parametrize("cut", [1, 8, 60, 300])
def test_truncated_gzip_is_refused(tmp_path, cut):
    noise = np.random.default_rng(0).integers(0, 255, SHAPE).astype(np.uint8)
    path = save(tmp_path / "cut.nii.gz", noise)
    path.write_bytes(path.read_bytes()[:-cut])
    assert "truncated" in refusal(path)


def test_damaged_gzip_is_refused(tmp_path):
    path = save(tmp_path / "bad.nii.gz", ramp())
    content = bytearray(path.read_bytes())
    content[-6] ^= 1  # in the checksum
    path.write_bytes(content)
    assert "not sound gzip data" in refusal(path)


@pytest.mark.parametrize("name", ["cut.nii", "cut.nii.gz"])
def test_a_header_that_claims_more_than_the_file_holds_is_refused(tmp_path, name):
    path = save(tmp_path / name, ramp(), edit={"dim": [3, 4, 5, 7, 1, 1, 1, 1]})
    assert "claims (4, 5, 7) voxels (560 bytes), the file holds at most 480 bytes" in refusal(path)


@pytest.mark.parametrize("call", [read_volume, read_shape])
@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
@pytest.mark.parametrize("field", [{"dim": [3, 32767, 32767, 32767, 1, 1, 1, 1]}, {"vox_offset": 1e30}])
def test_voxels_that_a_file_is_too_small_for_are_refused_from_the_header(tmp_path, monkeypatch, call, name, field):
    monkeypatch.setattr(volume_module, "read_voxels", None)
    assert "truncated" in refusal(save(tmp_path / name, ramp(), edit=field), call)


@pytest.mark.parametrize("call", [read_volume, read_shape])
@pytest.mark.parametrize("name", ["huge.nii", "huge.nii.gz"])
@pytest.mark.parametrize("length", [10**5, 2**62])
def test_a_header_that_claims_huge_axes_is_refused_before_anything_is_allocated(tmp_path, call, name, length):
    """Only NIfTI-2 can store such lengths. They must stay Python integers, whose product cannot overflow."""
    fields = {"dim": [3, length, length, length, 1, 1, 1, 1]}
    path = save(tmp_path / name, ramp(), edit=fields, image_class=nib.Nifti2Image)
    tracemalloc.start()
    try:
        assert f"its header claims ({length}, {length}, {length}) voxels" in refusal(path, call)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def test_data_beyond_the_size_in_the_header_is_not_read(tmp_path):
    """The file is a gzip bomb: 200 MB of zeros follow a small volume."""
    path = save(tmp_path / "bomb.nii.gz", ramp())
    path.write_bytes(path.read_bytes() + gzip.compress(bytes(200_000_000), 1))
    tracemalloc.start()
    try:
        assert np.array_equal(read_volume(path).data, ramp())
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_a_header_with_a_false_size_allocates_no_more_than_the_stream_delivers(tmp_path):
    path = save(
        tmp_path / "zeros.nii.gz", np.zeros((10, 100, 1000), np.uint8), edit={"dim": [3, 500, 500, 400, *[1] * 4]}
    )
    path.write_bytes(path.read_bytes() + gzip.compress(b"", 0) * 5000)  # enough bytes for the claimed size
    tracemalloc.start()
    try:
        assert "truncated" in refusal(path)
        assert tracemalloc.get_traced_memory()[1] < 40e6
    finally:
        tracemalloc.stop()


def test_a_volume_larger_than_the_memory_is_refused_but_its_shape_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti_stream, "_physical_memory", lambda: 1000)
    path = save(tmp_path / "in.nii.gz", ramp())
    assert "machine has" in refusal(path)
    assert read_shape(path)[0] == SHAPE


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 351), st.integers(0, 255)), min_size=1, max_size=6))
@pytest.mark.filterwarnings("ignore:.*voxels were replaced:UserWarning")
def test_a_corrupted_header_is_read_or_raises_only_volume_errors(tmp_path_factory, changes):
    folder = tmp_path_factory.mktemp("fuzz")
    content = bytearray(save(folder / "in.nii", ramp(dtype=np.int16)).read_bytes())
    for place, value in changes:
        content[place] = value
    (folder / "in.nii").write_bytes(content)
    try:
        volume = read_volume(folder / "in.nii")
    except VolumeError:
        return
    write_volume(folder / "out.nii", volume.data, volume)
    again = read_volume(folder / "out.nii")
    assert np.array_equal(again.affine, volume.affine)
    assert np.array_equal(again.data, volume.data)


# Writing


def test_equal_volumes_make_equal_files(tmp_path):
    volume = Volume.from_array(ramp())
    write_volume(tmp_path / "a.nii.gz", volume.data, volume)
    write_volume(tmp_path / "b.nii.gz", volume.data, volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


def test_a_written_file_has_the_default_permissions(tmp_path):
    volume = Volume.from_array(ramp())
    write_volume(tmp_path / "a.nii", volume.data, volume)
    (tmp_path / "b").touch()
    assert (tmp_path / "a.nii").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("array", [np.zeros((6, 5, 4)), np.zeros((1, *SHAPE)), np.zeros(SHAPE, complex)])
def test_arrays_that_do_not_fit_the_grid_are_refused(tmp_path, array):
    volume = Volume.from_array(ramp())
    assert "of shape (4, 5, 6)" in refusal(tmp_path / "out.nii", lambda path: write_volume(path, array, volume))
    assert not list(tmp_path.iterdir())


def test_places_that_cannot_be_written_are_refused(tmp_path):
    volume = Volume.from_array(ramp())

    def write(path):
        write_volume(path, volume.data, volume)

    assert "expected .nii, .nii.gz" in refusal(tmp_path / "out.mgz", write)
    assert "is not a folder; make it first" in refusal(tmp_path / "gone" / "out.nii", write)
    assert "cannot be written" in refusal(tmp_path / ("x" * 300 + ".nii"), write)
    (tmp_path / "folder.nii").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.nii", write)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.nii"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_partial_file(tmp_path, monkeypatch, failure):
    volume = Volume.from_array(ramp())
    write_volume(tmp_path / "out.nii", volume.data, volume)

    def fail(image, path):
        Path(path).write_bytes(b"half")
        raise failure

    monkeypatch.setattr(nib, "save", fail)
    with pytest.raises(VolumeError if isinstance(failure, OSError) else KeyboardInterrupt, match=r"No space|^$"):
        write_volume(tmp_path / "out.nii", volume.data + 1, volume)
    assert [path.name for path in tmp_path.iterdir()] == ["out.nii"]
    assert np.array_equal(read_volume(tmp_path / "out.nii").data, ramp())


# Volumes and grids


def test_a_volume_from_an_array_is_canonical_centred_and_reads_back_equal(tmp_path):
    volume = Volume.from_array(ramp(), spacing=(0.7, 1.1, 3.0))
    np.testing.assert_allclose(volume.spacing, (0.7, 1.1, 3.0), rtol=1e-6)
    np.testing.assert_allclose(volume.affine @ [1.5, 2, 2.5, 1], [0, 0, 0, 1], atol=1e-6)
    write_volume(tmp_path / "out.nii.gz", volume.data, volume)
    again = read_volume(tmp_path / "out.nii.gz")
    assert np.array_equal(again.data, ramp())
    assert np.array_equal(again.affine, volume.affine)


@pytest.mark.parametrize("array", [np.zeros((4, 5)), np.zeros((0, 4, 5)), np.zeros((2, 3, 4, 5))])
def test_arrays_that_are_not_volumes_are_refused(array):
    with pytest.raises(VolumeError, match="three axes"):
        Volume.from_array(array)


def test_an_array_longer_than_an_axis_of_nifti_1_is_written_as_nifti_2(tmp_path):
    volume = Volume.from_array(np.zeros((1 << 15, 2, 1)))
    write_volume(tmp_path / "out.nii", volume.data, volume)
    assert type(nib.load(tmp_path / "out.nii")) is nib.Nifti2Image
    assert read_shape(tmp_path / "out.nii") == ((1 << 15, 2, 1), (1, 1, 1))


@pytest.mark.parametrize("spacing", [(1, 1, 0), (1, -1, 1), (1, 1, np.nan), (1, 1), (1, 1, 1, 1)])
def test_impossible_spacing_is_refused(spacing):
    with pytest.raises(VolumeError, match="three positive numbers"):
        Volume.from_array(ramp(), spacing)


def test_data_that_do_not_match_the_header_are_refused():
    header = Volume.from_array(ramp()).header
    for data in (ramp().T, ramp(dtype=np.float64)):
        with pytest.raises(VolumeError, match=r"Expected float32 data of shape \(4, 5, 6\)"):
            Volume(data, header)


def shifted(mm=0.0, degrees=0.0):
    angle = np.radians(degrees)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    affine[2, 3] = mm
    header = nib.Nifti1Header()
    header.set_data_shape((100, 5, 6))
    header.set_sform(affine, code=1)
    return Volume(np.zeros((100, 5, 6), np.float32), header)


def test_grids_may_differ_by_less_than_a_micrometre():
    check_same_grid(shifted(), shifted(mm=9e-4), ("a", "b"))
    with pytest.raises(VolumeError, match=r"up to 0\.0011 mm apart \(allowed: 0\.001 mm\)"):
        check_same_grid(shifted(), shifted(mm=1.1e-3), ("a", "b"))


def test_one_grid_stored_in_two_orientations_counts_as_the_same_grid(tmp_path):
    for name, codes in (("a.nii", "RAS"), ("b.nii", "LPS")):
        flip = axcodes2ornt(codes)
        save(tmp_path / name, ramp(), AFFINE @ inv_ornt_aff(flip, SHAPE))
    a, b = read_volume(tmp_path / "a.nii"), read_volume(tmp_path / "b.nii")
    check_same_grid(a, b, ("a", "b"))
    assert ["".join(nib.aff2axcodes(volume.native_affine)) for volume in (a, b)] == ["RAS", "LPS"]
    mirrored = read_volume(save(tmp_path / "c.nii", ramp(), AFFINE @ np.diag([-1, -1, 1, 1])))
    with pytest.raises(VolumeError, match=r"a and c must share one grid, but their voxels lie up to"):
        check_same_grid(a, mirrored, ("a", "c"))


@pytest.mark.parametrize(("other", "distance"), [(shifted(mm=2e-3), "0.002"), (shifted(degrees=0.001), "0.001729")])
def test_grids_that_differ_are_refused_with_their_distance(other, distance):
    with pytest.raises(VolumeError, match=rf"^t1\.nii and t2\.nii must share one grid.*up to {distance}"):
        check_same_grid(shifted(), other, ("t1.nii", "t2.nii"))


def test_read_geometry_reads_only_the_header_and_gives_the_grid_of_the_volume(tmp_path):
    path = save(tmp_path / "in.nii.gz", ramp(), edit={"xyzt_units": 1})
    volume, grid = read_volume(path), read_geometry(path)
    assert (grid.shape, grid.spacing) == (volume.geometry.shape, volume.spacing) == (SHAPE, (1500, 2000, 3000))
    assert np.array_equal(grid.affine, volume.affine)
    path.write_bytes(path.read_bytes()[:-8])
    assert read_geometry(path).shape == SHAPE
    check_same_grid(grid, volume, ("a", "b"))
    assert grid.distance(grid.affine + np.eye(4, k=3) * 2) == 2
    with pytest.raises(VolumeError, match="must share one grid"):
        check_same_grid(grid, shifted(), ("a", "b"))


def test_grids_of_different_shapes_are_refused():
    with pytest.raises(VolumeError, match=r"a and b .*\(100, 5, 6\) and \(4, 5, 6\); resample"):
        check_same_grid(shifted(), Volume.from_array(ramp()), ("a", "b"))


def test_importing_the_data_modules_does_not_import_torch():
    """Import the modules under an empty `ppdm` package, so that only their own imports count."""
    code = (
        "import sys, types; package = sys.modules['ppdm'] = types.ModuleType('ppdm'); package.__path__ = ['ppdm']\n"
        "import ppdm.data.checking, ppdm.data.normalise; sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


STROKE = Path(__file__).parents[4] / "shared" / "data" / "stroke"


@pytest.mark.skipif(not STROKE.is_dir(), reason="the real pair is not beside the project")
def test_a_real_pair_shares_one_grid():
    t1, t2 = read_volume(STROKE / "T1.nii.gz"), read_volume(STROKE / "T2.nii.gz")
    check_same_grid(t1, t2, ("T1", "T2"))
    assert t1.data.shape == (124, 160, 140)


@pytest.mark.parametrize("axes", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, 1)])
def test_two_files_on_one_grid_at_45_degrees_have_one_orientation(tmp_path, axes, flips):
    u = np.float32(np.sqrt(0.5))
    v = np.nextafter(u, np.float32(1))
    volumes = []
    for name, (c, s) in {"a": (u, v), "b": (v, u), "c": (u, u)}.items():
        turn = np.eye(3)
        turn[np.ix_(axes, axes)] = [[c, -s], [s, c]]
        affine = np.eye(4)
        affine[:3, :3], affine[:3, 3] = turn * flips, (3, -4, -10)
        volumes.append(read_volume(save(tmp_path / f"{name}.nii", ramp(), affine)))
    for other in volumes[1:]:
        check_same_grid(volumes[0], other, ("a", "b"))
        assert np.array_equal(volumes[0].data, other.data)


ANGLES = st.sampled_from([0, 30, 45, -45, math.degrees(math.atan(math.sqrt(0.5))), 60, 90, 135])
ULPS = st.lists(st.integers(-2, 2), min_size=9, max_size=9)


@settings(max_examples=300, deadline=None)
@given(
    st.tuples(ANGLES, ANGLES, ANGLES),
    st.sampled_from([(1, 1, 1), (0.9, 1.1, 3.3), (4, 0.5, 0.5)]),
    st.tuples(*[st.sampled_from([1, -1])] * 3),
    ULPS,
)
def test_rounding_does_not_change_the_orientation_at_regular_angles(degrees, spacing, flips, ulps):
    turn = np.eye(3)
    for axes, angle in zip([(0, 1), (0, 2), (1, 2)], np.radians(degrees), strict=True):
        plane = np.eye(3)
        plane[np.ix_(axes, axes)] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        turn = plane @ turn
    affine, rounded = np.eye(4), np.eye(4)
    affine[:3, :3] = turn * spacing * flips
    rounded[:3, :3] = (affine[:3, :3] + np.reshape(ulps, (3, 3)) * 6e-8 * np.array(spacing)).astype(np.float32)
    assert np.array_equal(orientation(affine), orientation(rounded))
    assert sorted(orientation(affine)[:, 0]) == [0, 1, 2]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1, 1), min_size=9, max_size=9))
def test_the_orientation_agrees_with_nibabel_away_from_ties(axes):
    affine = np.eye(4)
    affine[:3, :3] = np.linalg.qr(np.reshape(axes, (3, 3)) + 2 * np.eye(3))[0] * (0.7, 1, 4)
    cosines = np.sort(np.abs(affine[:3, :3] / (0.7, 1, 4)).ravel())
    assume(np.diff(cosines).min() > 5e-3)
    assert np.array_equal(orientation(affine), nib.io_orientation(affine))


@pytest.mark.parametrize("shape", [(1, 1, 9), (1, 5, 1), (9, 1, 1), (1, 1, 1), (1, 4, 5)])
@pytest.mark.parametrize("codes", ["RAS", "LPI", "ILP"])
def test_data_of_flipped_axes_of_length_one_can_become_a_tensor(tmp_path, shape, codes):
    path = save(tmp_path / "line.nii", ramp(shape), inv_ornt_aff(axcodes2ornt(codes), shape))
    data = read_volume(path).data
    assert min(data.strides) > 0
    assert data.flags.c_contiguous
    assert tuple(torch.from_numpy(data).shape) == data.shape

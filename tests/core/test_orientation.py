"""Orientation: reading and writing keep every voxel's position and value, and the geometry bit for bit.

The files differ in axes, obliqueness, codes, units, type and byte order. The reference is nibabel, which does not use
canonical order: it reads the input and the output.
"""

import gzip
from dataclasses import dataclass
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine

from ppdm.data.volume import Volume, read_shape, read_volume, write_volume

SHAPE = (3, 4, 5)
ORIENTATIONS = ["".join(axes) for letters in permutations(("LR", "PA", "IS")) for axes in product(*letters)]
GEOMETRY = (
    *("dim", "pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d"),
    *("qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z", "dim_info"),
)
MM_PER_UNIT = {0: 1.0, 1: 1e3, 2: 1.0, 3: 1e-3}  # unknown, metre, millimetre, micrometre
TYPES = ("uint8", "int16", "uint16", "float32", "float64")


@dataclass(frozen=True)
class Scan:
    """Description of a file to write: its axes, its codes, and the storage of its values."""

    axes: str = "RAS"
    turned: tuple[float, float, float] = (0.0, 0.0, 0.0)  # degrees about x, y, z
    sheared: float = 0.0  # of the first axis along the second, only in the sform: a qform cannot represent it
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)
    codes: tuple[int, int] = (1, 1)  # sform, qform
    unit: int = 2
    dtype: str = "float32"
    order: str = "<"
    scaling: tuple[float, float] = (1.0, 0.0)
    version: int = 1
    suffix: str = ".nii"

    @property
    def affine(self):
        affine = np.eye(4)
        along = nib.orientations.axcodes2ornt(self.axes)
        permuted = np.zeros((3, 3))
        permuted[along[:, 0].astype(int), range(3)] = along[:, 1]
        shear = np.eye(3)
        shear[0, 1] = self.sheared
        affine[:3, :3] = rotation(self.turned) @ permuted @ shear * self.spacing
        affine[:3, 3] = self.offset
        return affine


def rotation(degrees):
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn, (i, j) = np.eye(3), ((axis + 1) % 3, (axis + 2) % 3)
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def save(folder, scan):
    """Write the file byte by byte, so that no library sets a field that the scan does not specify."""
    kind = nib.Nifti1Header if scan.version == 1 else nib.Nifti2Header
    header = kind(endianness=scan.order)
    header.set_data_dtype(np.dtype(scan.dtype))
    header.set_data_shape(SHAPE)
    header.set_qform(rigid(scan), code=scan.codes[1])
    header.set_sform(scan.affine, code=scan.codes[0])
    header["xyzt_units"] = scan.unit + 8
    header["pixdim"][4:] = 2.5, 0, 7, 1  # of axes that a volume does not have, such as the repetition time
    header["dim_info"] = 0b100111
    header["scl_slope"], header["scl_inter"] = scan.scaling
    header.set_data_offset(header.single_vox_offset)
    # All values are distinct, so that no voxel can be confused with another.
    values = np.random.default_rng(0).permutation(np.prod(SHAPE)).reshape(SHAPE).astype(scan.dtype)
    content = header.binaryblock + bytes(4) + values.astype(values.dtype.newbyteorder(scan.order)).tobytes(order="F")
    path = folder / f"in{scan.suffix}"
    path.write_bytes(gzip.compress(content, 1) if scan.suffix.endswith(".gz") else content)
    return path


def rigid(scan):
    """Return the affine without the shear."""
    return Scan(**{**vars(scan), "sheared": 0.0}).affine


def world(affine, values, mm=1.0):
    """Return each voxel's position in mm and its value, sorted by value: (n, 4)."""
    places = apply_affine(affine, np.stack(np.indices(values.shape), axis=-1)).reshape(-1, 3) * mm
    table = np.column_stack([places, values.ravel()])
    return table[np.argsort(table[:, 3])]


def check_round_trip(folder, scan):
    path = save(folder, scan)
    before = nib.load(path)
    volume = read_volume(path)
    write_volume(folder / f"out{scan.suffix}", volume.data, volume)
    after = nib.load(folder / f"out{scan.suffix}")
    assert type(after) is type(before)
    for field in GEOMETRY:
        assert np.array_equal(after.header[field], before.header[field]), field
    assert np.array_equal(after.affine, before.affine)
    assert np.array_equal(after.get_fdata(dtype=np.float32), before.get_fdata(dtype=np.float32))
    assert np.array_equal(read_volume(folder / f"out{scan.suffix}").data, volume.data)
    check_canonical(path, volume, before, MM_PER_UNIT[scan.unit])


def check_canonical(path, volume, image, mm):
    """Check that axes in memory are closest to right, anterior, superior, and that values keep their positions."""
    inside, outside = (
        world(volume.affine, volume.data),
        world(image.affine, image.get_fdata(dtype=np.float32), mm),
    )
    assert np.array_equal(inside[:, 3], outside[:, 3])
    np.testing.assert_allclose(inside[:, :3], outside[:, :3], rtol=1e-9, atol=1e-6 * max(mm, 1))
    assert nib.io_orientation(volume.affine).tolist() == [[0, 1], [1, 1], [2, 1]]
    assert volume.data.flags.c_contiguous
    assert read_shape(path) == (volume.data.shape, volume.spacing)


angles = st.floats(-180, 180, allow_subnormal=False)
scans = st.builds(
    Scan,
    axes=st.sampled_from(ORIENTATIONS),
    turned=st.tuples(angles, angles, angles),
    sheared=st.sampled_from([0.0, 0.0, 0.15]),
    spacing=st.tuples(*[st.sampled_from([0.4375, 0.7, 1.0, 3.3])] * 3),
    offset=st.tuples(*[st.floats(-400, 400, width=32, allow_subnormal=False)] * 3),
    codes=st.tuples(st.integers(0, 4), st.integers(0, 4)),
    unit=st.sampled_from(sorted(MM_PER_UNIT)),
    dtype=st.sampled_from(TYPES),
    order=st.sampled_from("<>"),
    scaling=st.sampled_from([(1.0, 0.0), (0.35, -12.0), (-2.0, 7.5), (0.0, 0.0)]),
    version=st.sampled_from([1, 2]),
    suffix=st.sampled_from([".nii", ".nii.gz"]),
)


@pytest.mark.slow
@settings(max_examples=120, deadline=None)
@given(scan=scans)
@example(scan=Scan(axes="LPS", turned=(45.0, 0.0, 0.0)))
@example(scan=Scan(axes="ASL", sheared=0.3, codes=(4, 0)))
@example(scan=Scan(codes=(0, 0), unit=0, spacing=(0.7, 0.7, 3.3)))
def test_random_scans_keep_voxel_positions_and_the_exact_geometry(tmp_path_factory, scan):
    check_round_trip(tmp_path_factory.mktemp("scan"), scan)


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_all_48_orientations_survive_a_round_trip(tmp_path, axes):
    check_round_trip(tmp_path, Scan(axes, turned=(7.0, -11.0, 4.0), spacing=(0.9, 1.0, 2.5), offset=(-80, 20, 5)))


@pytest.mark.parametrize("codes", [*product(range(5), range(5))], ids=lambda codes: f"s{codes[0]}q{codes[1]}")
def test_all_codes_of_sform_and_qform_survive_a_round_trip(tmp_path, codes):
    check_round_trip(tmp_path, Scan("LAS", turned=(3.0, 2.0, 1.0), sheared=0.1, spacing=(1, 1, 3), codes=codes))


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", TYPES)
def test_all_types_and_byte_orders_survive_a_round_trip(tmp_path, dtype, order, version):
    check_round_trip(tmp_path, Scan("PIR", dtype=dtype, order=order, version=version, scaling=(0.35, -12.0)))


@pytest.mark.parametrize("axes", ORIENTATIONS)
def test_axes_run_to_right_anterior_and_superior(tmp_path, axes):
    """A marker at the patient's right, front and top is at the last index of D, H and W, however the file is stored."""
    right_front_top = tuple(-1 if letter in "RAS" else 0 for letter in axes)
    values = np.zeros(SHAPE, np.float32)
    values[right_front_top] = 1
    nib.save(nib.Nifti1Image(values, Scan(axes, turned=(5.0, 5.0, 5.0)).affine), tmp_path / "in.nii")
    volume = read_volume(tmp_path / "in.nii")
    assert np.argwhere(volume.data).tolist() == [[size - 1 for size in volume.data.shape]]
    assert (np.diag(volume.affine)[:3] > 0).all()


def test_a_sheared_sform_is_kept(tmp_path):
    scan = Scan(sheared=0.2, codes=(1, 0))
    volume = read_volume(save(tmp_path, scan))
    np.testing.assert_allclose(volume.affine, scan.affine, atol=1e-7)
    assert volume.spacing[1] == pytest.approx(np.hypot(1, 0.2))  # the length of a voxel's edge, not of its projection


@settings(max_examples=30, deadline=None)
@given(scan=scans, step=st.sampled_from([-1, 1]), axis=st.integers(0, 2))
def test_a_voxel_changed_in_memory_is_at_the_same_position_in_the_file(tmp_path_factory, scan, step, axis):
    """One voxel is 1 in memory; in the file, only the voxel at the same position in mm is not 0."""
    folder = tmp_path_factory.mktemp("scan")
    volume = read_volume(save(folder, scan))
    raised = np.zeros_like(volume.data)
    index = [size // 2 for size in raised.shape]
    index[axis] = 0 if step < 0 else raised.shape[axis] - 1
    raised[tuple(index)] = 1
    write_volume(folder / "out.nii", raised, volume)
    image = nib.load(folder / "out.nii")
    (native,) = np.argwhere(image.get_fdata())
    place = apply_affine(image.affine, native) * MM_PER_UNIT[scan.unit]
    np.testing.assert_allclose(place, apply_affine(volume.affine, index), rtol=1e-9, atol=1e-6)


def test_a_volume_made_from_an_array_keeps_its_order(tmp_path):
    data = np.arange(60, dtype=np.float32).reshape(SHAPE)
    volume = Volume.from_array(data, (1.0, 2.0, 3.0))
    write_volume(tmp_path / "out.nii", data, volume)
    assert np.array_equal(np.asarray(nib.load(tmp_path / "out.nii").dataobj), data)
    check_canonical(tmp_path / "out.nii", volume, nib.load(tmp_path / "out.nii"), 1.0)

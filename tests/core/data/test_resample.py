"""Resampling: interpolation of a linear function is exact between any two grids; equal grids change nothing."""

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from nibabel.affines import apply_affine
from nibabel.processing import resample_from_to

from ppdm.data.resample import resample_to, share_outside
from ppdm.data.volume import Volume, VolumeError, read_volume, write_volume

GRADIENT, OFFSET = np.array([0.7, -1.3, 2.1]), 40.0
SMALL, LARGE = (7, 8, 9), (24, 26, 28)


def rotation(*degrees):
    """Return the matrix of rotations about D, then H, then W, in degrees."""
    matrix = np.eye(3)
    for axis, angle in enumerate(np.radians(degrees)):
        turn = np.eye(3)
        i, j = (axis + 1) % 3, (axis + 2) % 3
        turn[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
        matrix = turn @ matrix
    return matrix


def affine_of(shape, spacing=(1, 1, 1), turned=(0, 0, 0), shifted=(0, 0, 0)):
    """Return the affine of a grid whose centre lies at `shifted`, in mm."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(*turned) * spacing
    affine[:3, 3] = shifted - affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


def volume_on(affine, shape, values=None, units="mm"):
    """Return a volume with that affine; its default values are the linear function of the world coordinates."""
    header = nib.Nifti1Header()
    header.set_data_shape(shape)
    header.set_sform(affine, code=1)
    header.set_xyzt_units(units)
    volume = Volume(np.zeros(read_order(affine, shape), np.float32), header)
    return Volume(ramp(volume) if values is None else values, header)


def read_order(affine, shape):
    order = nib.io_orientation(affine)[:, 0]
    return tuple(shape[int(np.flatnonzero(order == axis)[0])] for axis in range(3))


def ramp(volume):
    return (positions(volume) @ GRADIENT + OFFSET).astype(np.float32)


def positions(volume):
    return apply_affine(volume.affine, np.stack(np.indices(volume.data.shape), axis=-1))


def large(**options):
    return volume_on(affine_of(LARGE, **options), LARGE)


@pytest.mark.parametrize(
    "grid",
    [
        {"shifted": (0.3, -1.7, 2.25)},
        {"spacing": (0.5, 1.5, 2.0)},
        {"turned": (10, -20, 35)},
        {"turned": (3, 4, -5), "spacing": (0.8, 1.1, 1.9), "shifted": (1, 2, -1)},
    ],
    ids=["shifted", "spaced", "turned", "all"],
)
@pytest.mark.parametrize("order", [1, 3])
def test_a_linear_function_is_resampled_exactly(grid, order):
    like = volume_on(affine_of(SMALL, **grid), SMALL, np.zeros(SMALL, np.float32))
    result = resample_to(large(), like, order)
    # Splines of order 3 extend the border values and are exact only in the middle: within 1e-2, for a range of 60.
    np.testing.assert_allclose(result.data, ramp(like), atol=2e-5 * 40 if order == 1 else 1e-2)
    assert np.array_equal(result.affine, like.affine)
    assert share_outside(large(), like) == 0


@settings(max_examples=25, deadline=None)
@given(
    turned=st.tuples(*[st.floats(-180, 180)] * 3),
    shifted=st.tuples(*[st.floats(-2, 2)] * 3),
    spacing=st.tuples(*[st.floats(0.3, 1.0)] * 3),
    flips=st.tuples(*[st.sampled_from([-1.0, 1.0])] * 6),
)
def test_a_linear_function_is_resampled_exactly_between_any_grids(turned, shifted, spacing, flips):
    volume = volume_on(affine_of(LARGE, flips[:3], (5, -6, 7)), LARGE)
    like = volume_on(affine_of(SMALL, np.multiply(spacing, flips[3:]), turned, shifted), SMALL)
    # Voxels lie at most 6.1 + 3.5 mm from the centre of a box whose nearest face is 11.5 mm away.
    np.testing.assert_allclose(resample_to(volume, like).data, ramp(like), atol=1e-3)


@settings(max_examples=15, deadline=None)
@given(turned=st.tuples(*[st.floats(-30, 30)] * 3), order=st.sampled_from([0, 1]), seed=st.integers(0, 99))
def test_resampling_agrees_with_nibabel(turned, order, seed):
    values = np.random.default_rng(seed).normal(size=LARGE).astype(np.float32)
    volume = volume_on(affine_of(LARGE), LARGE, values)
    like = volume_on(affine_of(SMALL, (1.1, 0.9, 1.3), turned, (0.2, 0.1, -0.4)), SMALL)
    place = apply_affine(np.linalg.inv(volume.affine), positions(like))
    assume(np.abs(place % 1 - 0.5).min() > 1e-6)  # exclude ties, which have no unique nearest voxel
    expected = resample_from_to(nib.Nifti1Image(values, volume.affine), (like.data.shape, like.affine), order=order)
    np.testing.assert_allclose(resample_to(volume, like, order).data, expected.get_fdata(), atol=1e-5)


def test_resampling_to_the_same_grid_changes_no_bit():
    values = np.random.default_rng(0).normal(size=LARGE).astype(np.float32)
    volume = volume_on(affine_of(LARGE, turned=(5, 6, 7), spacing=(0.9, 1, 1.1)), LARGE, values)
    nearly = volume_on(volume.affine + 1e-6, LARGE)
    for like in (volume, nearly):
        result = resample_to(volume, like, 3)
        assert np.array_equal(result.data, values)
        assert np.array_equal(result.affine, like.affine)
        assert share_outside(volume, like) == 0


def test_a_shift_by_whole_voxels_moves_values_and_fills_with_zero():
    values = np.arange(1, 61, dtype=np.float32).reshape(3, 4, 5)
    volume = volume_on(np.eye(4), (3, 4, 5), values)
    shifted = np.eye(4)
    shifted[2, 3] = 2  # voxel w of the shifted grid is voxel w + 2 of the volume
    like = volume_on(shifted, (3, 4, 5))
    with pytest.warns(UserWarning, match=r"t2\.nii: 40\.0% of the voxels .* outside of its field of view and are 0"):
        result = resample_to(volume, like, name="t2.nii")
    assert np.array_equal(result.data[..., :3], values[..., 2:])
    assert (result.data[..., 3:] == 0).all()
    assert share_outside(volume, like) == 0.4


def test_border_values_extend_by_half_a_voxel():
    volume = volume_on(np.eye(4), (2, 2, 2), np.full((2, 2, 2), 5, np.float32))
    fine = np.diag([0.25, 1, 1, 1.0])
    fine[0, 3] = -0.625  # centres at -0.625, -0.375 ... 1.375, 1.625 voxels; the volume ends at -0.5 and 1.5
    with pytest.warns(UserWarning, match=r"20\.0%"):
        result = resample_to(volume, volume_on(fine, (10, 2, 2)))
    assert result.data[:, 0, 0].tolist() == [0, 5, 5, 5, 5, 5, 5, 5, 5, 0]


def test_a_single_slice_fills_its_own_thickness():
    volume = volume_on(np.diag([1, 1, 4, 1.0]), (3, 3, 1), np.full((3, 3, 1), 2, np.float32))
    affine = np.eye(4)
    affine[2, 3] = -1
    assert (resample_to(volume, volume_on(affine, (3, 3, 3))).data == 2).all()


def test_nearest_neighbour_resampling_makes_no_new_labels():
    labels = np.random.default_rng(1).integers(0, 5, LARGE).astype(np.float32)
    like = volume_on(affine_of(SMALL, (1.3, 0.7, 1.1), (9, 8, 7)), SMALL)
    assert set(np.unique(resample_to(volume_on(affine_of(LARGE), LARGE, labels), like, 0).data)) <= set(range(5))


def test_grids_in_different_units_are_compared_in_mm():
    # One grid has 24 voxels of 1 mm; the other describes the same box in metres, with 12 voxels of 0.002 m.
    metres = affine_of((12, 13, 14), (2, 2, 2)) * np.array([[1e-3]] * 3 + [[1]])
    like = volume_on(metres, (12, 13, 14), units="meter")
    np.testing.assert_allclose(resample_to(large(), like).data, ramp(like), atol=1e-3)


def test_a_small_share_outside_the_field_of_view_gives_no_warning():
    volume = volume_on(affine_of(LARGE, shifted=(0, 0, 0.8)), LARGE)
    like = large()
    assert 0 < share_outside(volume, like) < 0.05
    assert (resample_to(volume, like).data[..., 0] == 0).all()


def test_volumes_that_do_not_overlap_are_refused():
    with pytest.raises(VolumeError, match=r"far\.nii .* do not overlap; check the affines"):
        resample_to(large(shifted=(500, 0, 0)), large(), name="far.nii")
    assert share_outside(large(shifted=(500, 0, 0)), large()) == 1


@pytest.mark.parametrize("order", [-1, 6, 1.5, "linear"])
def test_invalid_interpolation_orders_are_refused(order):
    with pytest.raises(VolumeError, match="is one of 0 to 5"):
        resample_to(large(), large(), order)


def test_the_result_is_written_on_the_native_grid_of_the_reference(tmp_path):
    # A sagittal grid: the stored axes run to anterior, superior and left.
    native = np.eye(4)
    native[:3, :3] = np.array([[0, 0, -1], [1, 0, 0], [0, 1, 0]])
    native[:3, 3] = (3, -4, -4)
    like = volume_on(native, (9, 8, 7))
    result = resample_to(large(), like)
    write_volume(tmp_path / "out.nii.gz", result.data, result)
    image = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(image.affine, native)
    world = apply_affine(native, np.stack(np.indices((9, 8, 7)), axis=-1))
    np.testing.assert_allclose(image.get_fdata(), world @ GRADIENT + OFFSET, atol=1e-3)
    assert np.array_equal(read_volume(tmp_path / "out.nii.gz").data, result.data)


def test_resampling_keeps_the_count_of_replaced_voxels():
    volume = large()
    assert resample_to(Volume(volume.data, volume.header, 3), volume_on(affine_of(SMALL), SMALL)).replaced == 3

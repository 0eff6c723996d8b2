"""The pixel puzzle: a lossless rearrangement of voxels into channels (PPDM, arXiv 2606.15323, abstract).

Shapes: (N, C, D, H, W) in 3-D, (N, C, H, W) in 2-D. r = (rd, rh, rw) is the puzzle factor, one integer per axis.
"""

from collections.abc import Sequence
from math import prod

from torch import Tensor, arange

from ppdm.arrays import check_tensor

Factor = int | Sequence[int]


def puzzle(x: Tensor, factor: Factor) -> Tensor:
    """Move voxels to channels: every r-sized cell of the grid becomes one voxel with ``prod(r)`` times the channels.

    Channel ``c·prod(r) + (id·rh + ih)·rw + iw`` of the result holds voxel ``(d·rd + id, h·rh + ih, w·rw + iw)`` of
    channel ``c``; in 2-D this is the order of ``torch.nn.functional.pixel_unshuffle``. There is no arithmetic, so the
    rearrangement is bit-exact in every dtype, and gradients pass through.

    Args:
        x: (N, C, D, H, W) or (N, C, H, W), any dtype.
        factor: one integer for all spatial axes, or one per axis (anisotropic voxels).

    Returns:
        (N, C·prod(r), D/rd, H/rh, W/rw), or its 2-D counterpart; a view of x if no voxel has to move.

    Raises:
        ValueError: x does not have 2 or 3 spatial axes, the factor is not a positive integer or one per axis, or a size
            is not a multiple of it (pad with :func:`pad_to_multiple`).

    >>> import torch
    >>> puzzle(torch.zeros(1, 1, 8, 8, 8), 2).shape
    torch.Size([1, 8, 4, 4, 4])
    """
    r = factor_of(factor, x)
    n, c, *size = x.shape
    if any(s % k for s, k in zip(size, r, strict=True)):
        raise ValueError(
            f"puzzle: sizes {tuple(size)} of shape {tuple(x.shape)} are not multiples of factor {r}; "
            f"pad with pad_to_multiple(x, {r}) first"
        )
    cells = [v for s, k in zip(size, r, strict=True) for v in (s // k, k)]
    dims = len(r)
    outer, inner = range(2, 2 + 2 * dims, 2), range(3, 3 + 2 * dims, 2)  # positions of the cells, of the voxels inside
    return x.reshape(n, c, *cells).permute(0, 1, *inner, *outer).reshape(n, c * prod(r), *cells[::2])


def unpuzzle(z: Tensor, factor: Factor) -> Tensor:
    """Invert :func:`puzzle` exactly.

    Args:
        z: (N, C·prod(r), D, H, W) or (N, C·prod(r), H, W), any dtype.
        factor: the factor that :func:`puzzle` used.

    Returns:
        (N, C, D·rd, H·rh, W·rw), or its 2-D counterpart.

    Raises:
        ValueError: z does not have 2 or 3 spatial axes, the factor is not a positive integer or one per axis, or the
            number of channels is not a multiple of its product.
    """
    r = factor_of(factor, z)
    n, c, *size = z.shape
    if c % prod(r):
        raise ValueError(
            f"unpuzzle: {c} channels of shape {tuple(z.shape)} are not a multiple of {prod(r)}, "
            f"which factor {r} needs; give the factor that puzzled it"
        )
    dims = len(r)
    interleaved = [axis for k in range(dims) for axis in (2 + dims + k, 2 + k)]  # cell, then voxel inside, axis by axis
    whole = [s * k for s, k in zip(size, r, strict=True)]
    return z.reshape(n, c // prod(r), *r, *size).permute(0, 1, *interleaved).reshape(n, c // prod(r), *whole)


def pad_to_multiple(x: Tensor, multiple: Factor) -> Tensor:
    """Pad every spatial axis at its end to the next multiple, by reflection; :func:`crop` removes the padding exactly.

    The reflection repeats as often as needed, so that a size of 1 or padding larger than the size also works. It only
    copies voxels, so integers and booleans are supported.

    Raises:
        ValueError: x does not have 2 or 3 spatial axes, one of them is empty, or the multiple is not a positive integer
            or one per axis.
    """
    r = factor_of(multiple, x)
    if 0 in x.shape[2:]:
        raise ValueError(f"shape {tuple(x.shape)} cannot be padded to multiples of {r}: an empty axis has no voxels")
    for axis, m in enumerate(r, start=2):
        size = x.shape[axis]
        if size % m:
            x = x.index_select(axis, _reflected(size, -(-size // m) * m).to(x.device))
    return x


def crop(x: Tensor, size: Sequence[int]) -> Tensor:
    """Keep the first ``size`` voxels of every spatial axis: the inverse of :func:`pad_to_multiple`."""
    return x[(slice(None), slice(None), *map(slice, size))]


def factor_of(factor: Factor, x: Tensor) -> tuple[int, ...]:
    """Return one positive integer for each spatial axis of x; raise an error with factor and shape otherwise.

    Raises:
        ValueError: x does not have 2 or 3 spatial axes, or the factor is not a positive integer or one per axis.
        TypeError: x is not a tensor.
    """
    check_tensor("a volume to puzzle", x)
    dims = x.ndim - 2
    if dims not in (2, 3):
        raise ValueError(f"expected (N, C, H, W) or (N, C, D, H, W) for factor {factor}, got shape {tuple(x.shape)}")
    r = tuple(factor) if isinstance(factor, Sequence) else (factor,) * dims
    if len(r) != dims or not all(type(k) is int and k > 0 for k in r):
        raise ValueError(
            f"factor must be a positive integer, or {dims} of them for shape {tuple(x.shape)}; got {factor!r}"
        )
    return r


def _reflected(size: int, length: int) -> Tensor:
    """Indices 0 … size-1, size-2 … 0, 1 …: a triangle wave of the given length (the border is not repeated)."""
    period = max(2 * (size - 1), 1)
    k = arange(length) % period
    return k.minimum(period - k) if size > 1 else k * 0

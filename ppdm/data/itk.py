"""Reading and writing of MetaImage and NRRD files through SimpleITK, which is an optional dependency.

The header is checked before SimpleITK reads it (:mod:`ppdm.data.itk_headers`), and the size that it claims is compared
with the files and with the memory of the machine before the voxels are read.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ppdm.data.formats import DETACHED, METAIMAGE, suffix_of
from ppdm.data.geometry import ItkGeometry
from ppdm.data.itk_headers import data_file
from ppdm.data.nifti_stream import DEFLATE_RATIO, VolumeError, check_affine, check_axes, check_memory


def simple_itk(path: Path, kind: str) -> Any:
    """Import SimpleITK and switch off its warnings on the terminal.

    Raises:
        VolumeError: it is not installed; the message states the command that installs it.
    """
    try:
        import SimpleITK
    except ImportError:
        raise VolumeError(
            f"{path} is {kind}, which needs SimpleITK; install it with: pip install 'ppdm[formats]'."
        ) from None
    SimpleITK.ProcessObject.SetGlobalWarningDisplay(False)
    return SimpleITK


@contextmanager
def explained_errors(path: Path, kind: str) -> Iterator[None]:
    """Convert errors of ITK, which span several lines, to a VolumeError with the line that states the cause."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        cause = next((line for line in reversed(lines) if not line.startswith("Reason:")), lines[-1])
        raise VolumeError(f"{path} cannot be read as {kind} ({cause}); copy or export it again.") from None


def read_itk_header(path: Path) -> tuple[tuple[int, ...], ItkGeometry, Any]:
    """Read and check the header of a MetaImage or NRRD file.

    Returns:
        The shape in the order of the file, with trailing axes of length 1; the geometry; a reader of SimpleITK.

    Raises:
        VolumeError: the file is damaged, not of its format, or not a real-valued volume, or SimpleITK is absent.
    """
    kind, io = ("MetaImage", "MetaImageIO") if suffix_of(path.name) in METAIMAGE else ("NRRD", "NrrdImageIO")
    sitk = simple_itk(path, kind)
    data = data_file(path)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(io)
    reader.SetFileName(str(path))
    with explained_errors(path, kind):
        reader.ReadImageInformation()
    shape = tuple(reader.GetSize())
    voxel = _voxel_bytes(path, sitk, reader)
    check_axes(path, shape)
    direction = np.reshape(reader.GetDirection(), (len(shape), len(shape)))[:3, :3]
    itk_geometry = ItkGeometry(np.array(reader.GetOrigin()[:3]), np.array(reader.GetSpacing()[:3]), direction)
    with np.errstate(all="ignore"):
        check_affine(path, itk_geometry.affine)
    _check_size(path, data, math.prod(shape) * voxel)
    return shape, itk_geometry, reader


def read_itk_voxels(path: Path, reader: Any) -> np.ndarray:
    """Return the voxels as stored, in the axis order of the file, from the reader of :func:`read_itk_header`."""
    sitk = simple_itk(path, "an image")
    shape, voxel = tuple(reader.GetSize()), _voxel_bytes(path, sitk, reader)
    check_memory(path, shape, voxel)
    with explained_errors(path, "an image"):
        return np.asarray(sitk.GetArrayFromImage(reader.Execute())).T


def write_itk(path: Path, native: np.ndarray, itk_geometry: ItkGeometry) -> None:
    """Write float32 voxels in the axis order of the file; of the trailing axes of length 1, two at most are kept.

    Raises:
        VolumeError: SimpleITK is absent.
        OSError: the files cannot be written.
    """
    sitk = simple_itk(path, "MetaImage or NRRD")
    image = sitk.GetImageFromArray(native.reshape(native.shape[:3]).T)
    image.SetOrigin(itk_geometry.origin.tolist())
    image.SetSpacing(itk_geometry.spacing.tolist())
    image.SetDirection(itk_geometry.direction.ravel().tolist())
    for _ in native.shape[3:5]:  # SimpleITK joins up to five axes
        image = sitk.JoinSeries([image])
    try:
        sitk.WriteImage(image, str(path), useCompression=suffix_of(path.name) not in DETACHED)
    except RuntimeError as error:
        raise OSError(str(error).strip().splitlines()[-1]) from None


def _voxel_bytes(path: Path, sitk: Any, reader: Any) -> int:
    kind, components = reader.GetPixelID(), reader.GetNumberOfComponents()
    sizes = {
        getattr(sitk, f"sitk{name}{bits}"): bits // 8
        for name, widths in (("UInt", (8, 16, 32, 64)), ("Int", (8, 16, 32, 64)), ("Float", (32, 64)))
        for bits in widths
    }
    if components != 1 or kind not in sizes:
        name = sitk.GetPixelIDValueAsString(kind)
        raise VolumeError(
            f"{path} holds voxels of {components} components ({name}), expected integers or floats; write one scalar "
            "volume per file."
        )
    return sizes[kind]


def _check_size(path: Path, data: Path, needed: int) -> None:
    """Refuse a header that claims more voxels than its data file can hold at the highest compression."""
    held = data.stat().st_size
    if held * DEFLATE_RATIO < needed:
        raise VolumeError(
            f"{path} is truncated: its header claims {needed} bytes of voxels, and {data.name} has {held} bytes; copy "
            "or download it again."
        )

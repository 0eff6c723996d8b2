"""Translation of scans with a trained method; outputs have the input's geometry and the target's units.

Shapes: a volume is (D, H, W) in canonical orientation, with physical values; inside the network (1, 1, D, H, W).
Several sources of a method are (S, D, H, W), in the order of its names; inside the network (1, S, D, H, W).
"""

import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppdm.arrays import Array, volume_of
from ppdm.checkpoint import Trained, assemble
from ppdm.data.manifest import load_on_one_grid
from ppdm.data.normalise import IntensityError
from ppdm.data.translation_files import (
    TranslationError,
    check_inputs_remain,
    check_outputs,
    check_writable,
    checked_sources,
    checked_suffix,
    deviation_file,
    make_folder,
    plan_files,
)
from ppdm.data.volume import Volume, VolumeError, read_geometry, user_path, write_volume, written_files
from ppdm.method import Method, reconstruct, sample
from ppdm.sources import described_sources
from ppdm.tiling import OnEvaluation, Shape, Size, no_callback

SPACING_TOLERANCE = 0.1  # warn above this relative difference from the voxel size of the training data

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Translation:
    """Result for one file.

    Attributes:
        source: the input: a file, or the folder of a DICOM series; of several sources, the first.
        output: the file that contains the translation, if there is no fault.
        seconds: time from the start of reading to the end of writing.
        fault: message that explains why there is no output; empty on success.
        deviation: the file that contains the standard deviation over several samples; None for a single sample.
    """

    source: Path
    output: Path
    seconds: float
    fault: str = ""
    deviation: Path | None = None


def translate(
    trained: Trained,
    input_path: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]],
    output_path: str | os.PathLike[str],
    *,
    resample: bool = False,
    steps: int | None = None,
    seed: int = 0,
    samples: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    block: Size | None = None,
    overlap: float | None = None,
    suv_factor: float | None = None,
    suffix: str | None = None,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> list[Translation]:
    """Translate a scan, or translate each scan of a folder and its subfolders to the same place in another folder.

    The result depends only on the input and the seed, not on other files of the folder. In a folder, an error in one
    scan does not stop the others; its :class:`Translation` contains the message. Every output has the shape of its
    input, with trailing axes of length 1.

    Args:
        trained: the method, from :func:`ppdm.checkpoint.load`.
        input_path: a NIfTI, MetaImage or NRRD file, a DICOM series (its folder or one of its files), or a folder of
            scans. For a method with several sources: the scan of each source by its name, or a pattern of paths for
            each, such as ``scans/*_T1.nii.gz``; scans belong together if their stars match the same text
            (:mod:`ppdm.data.matching`). The output has the geometry of the first source.
        output_path: a file in an existing folder; for a folder of scans, a folder, which is created if it is missing.
            For the folder of a DICOM series, both are allowed.
        resample: whether to interpolate sources on other grids onto the grid of the first; otherwise they are refused.
        steps: number of sampling steps; the method's own if absent.
        seed: seed of the noise, for methods that use noise in sampling.
        samples: number of samples, 2 or more, for methods that use noise in sampling: the output is their mean, and a
            file beside it, ``NAME_std`` with the same suffix, their standard deviation (:func:`translate_samples`).
        device: device for the computation; the network's current device if absent.
        precision: ``fp32``, ``bf16`` or ``fp16``; the training precision if absent.
        block, overlap: as for :func:`adapt`: sample in blocks if a volume does not fit in the device's memory.
        suv_factor: PET only: SUV = stored value · suv_factor, for every file; see
            :class:`ppdm.data.scaling.SUVScaling`.
        suffix: format of the outputs, such as ``nii.gz`` or ``mha``. By default, that of the output file; in a folder
            that of each input, and ``nii.gz`` for DICOM, which is not written.
        overwrite: whether to replace outputs that exist; otherwise they are refused before the computation.
        progress: called with the number of completed network evaluations and the total over all files; each block of a
            step counts as one.

    Returns:
        One :class:`Translation` for each scan, sorted by path, and one with a fault for each subfolder that cannot be
        listed.

    Raises:
        TranslationError: input or output is missing or unsuitable, the sources are not those of the method, several
            samples would be equal, an output exists or would replace the input, or options are out of range; for a
            single scan, also every error in the scan itself.
        VolumeError: a single scan cannot be read or written, or the output needs SimpleITK.
    """
    output, ending = user_path(output_path), checked_suffix(suffix)
    folder, work, unlistable = plan_files(checked_sources(trained.method.sources, input_path), output, ending)
    trained = adapt(trained, steps=steps, device=device, precision=precision, block=block, overlap=overlap)
    check_samples(trained.method, samples)
    written = [(place, *([deviation_file(place)] if samples else [])) for _, place in work]
    check_inputs_remain(work, written)
    check_outputs([place for places in written for place in places], overwrite)
    if folder:
        make_folder(output)
    check_writable(output if folder else output.parent)
    evaluations = [_evaluations(trained.method, scans[0]) * (samples or 1) for scans, _ in work]
    done, total = 0, sum(evaluations)
    results = []
    for (scans, _), places, wanted in zip(work, written, evaluations, strict=True):
        started, fault = time.perf_counter(), ""
        counter = _Counter(progress, done, total)
        done += wanted
        try:
            _translate_file(trained, scans, places, seed, samples, suv_factor, counter, resample)
        except (VolumeError, TranslationError) as error:
            if not folder:
                raise
            fault = str(error)
            progress(done, total)
        seconds, deviation = time.perf_counter() - started, next(iter(places[1:]), None)
        results.append(Translation(scans[0], places[0], seconds, fault, deviation))
    return results + [
        Translation(each, output, 0.0, f"{each} cannot be listed; check its permissions.") for each in unlistable
    ]


def translate_volume(
    trained: Trained,
    source: Array,
    *,
    seed: int = 0,
    suv_factor: float | None = None,
    progress: OnEvaluation = no_callback,
) -> Tensor:
    """Translate one volume in memory.

    With sampling in blocks, the volume stays on the CPU, and the device holds one block at a time.

    Args:
        trained: the method; :func:`adapt` changes its steps, device, precision and blocks.
        source: (D, H, W), or (S, D, H, W) for several sources, finite physical values, a tensor or an array of any real
            type and strides.
        seed: seed of the noise, for methods that use noise in sampling.
        suv_factor: as for :func:`translate`.
        progress: called after every network evaluation; each block of a step counts as one.

    Returns:
        (D, H, W) float32 on the CPU, in the target's physical units.

    Raises:
        TranslationError: the shape or the seed is invalid, the method has several channels, or the result is not
            finite.
        IntensityError: the source has no contrast, or its SUV factor is missing or unexpected.
    """
    source = volume_of(source).cpu()
    _check_volume(trained, source, seed)
    volumes = source if source.ndim == 4 else source[None]
    scales = [trained.scaling.scales(volume.numpy(), suv_factor) for volume in volumes]
    device = torch.device("cpu") if trained.method.samples_from_host(volumes.shape[1:]) else _device(trained)
    scaled = torch.empty(volumes.shape)
    for one, (scale, _), volume in zip(scaled, scales, volumes, strict=True):
        _map_planes(scale.forward, volume, one)
    y = scaled.to(device)[None]
    del scaled
    generator = torch.Generator(device).manual_seed(seed)  # one per volume: other volumes have no effect
    result = sample(trained.method, trained.network, y, generator, progress)[0, 0].cpu().contiguous()
    del y
    _map_planes(scales[0][1].inverse, result, result)
    if not torch.stack(result.aminmax()).isfinite().all():  # without a temporary volume of booleans
        bad, precision = int((~result.isfinite()).sum()), trained.method.network.precision
        raise TranslationError(f"The translation has {bad} voxels that are not finite in {precision}; try fp32.")
    return result


def translate_samples(
    trained: Trained,
    source: Array,
    samples: int,
    *,
    seed: int = 0,
    suv_factor: float | None = None,
    progress: OnEvaluation = no_callback,
) -> tuple[Tensor, Tensor]:
    """Translate one volume several times; return the mean and the standard deviation of the samples, voxel by voxel.

    Sample 0 is that of :func:`translate_volume` with the same seed; each further sample has a seed that follows from
    the seed and its number. The moments are updated sample by sample in float64 (Welford, Technometrics 4(3), 1962), so
    at most four such volumes are in memory, whatever the number of samples.

    Args:
        trained, source, seed, suv_factor: as for :func:`translate_volume`.
        samples: number of samples, 2 or more.
        progress: called after every network evaluation of every sample.

    Returns:
        Mean and standard deviation (with n − 1), each (D, H, W) float32 on the CPU, in the target's physical units.

    Raises:
        TranslationError, IntensityError: as for :func:`translate_volume`; also if the method uses no noise in sampling,
            or there are fewer than two samples.
    """
    check_samples(trained.method, samples)
    mean = torch.zeros(source.shape[-3:], dtype=torch.float64)
    squares = torch.zeros_like(mean)
    for k in range(samples):
        one = translate_volume(trained, source, seed=seed_of(seed, k), suv_factor=suv_factor, progress=progress)
        change = one - mean
        mean.add_(change, alpha=1 / (k + 1))
        squares.addcmul_(change, one - mean)
    return mean.float(), squares.div_(samples - 1).sqrt_().float()


def seed_of(seed: int, sample: int) -> int:
    """Return the seed of a sample: for sample 0 the seed itself, for others a number below 2**63 derived from both."""
    return seed if sample == 0 else int(np.random.SeedSequence([seed, sample]).generate_state(1, np.uint64)[0]) >> 1


def check_samples(method: Method, samples: int | None) -> None:
    """Check that a method can be sampled several times; None means once, which is always possible.

    Raises:
        TranslationError: there are fewer than two samples, or all are equal, because sampling uses no noise.
    """
    if samples is None:
        return
    if type(samples) is not int or samples < 2:
        raise TranslationError(
            f"A mean and a standard deviation need 2 samples or more, got {samples!r} (samples, --samples); leave it "
            "out for a single translation."
        )
    if not method.is_random:
        count = f"{method.sampling.steps} step{'s' if method.sampling.steps > 1 else ''}"
        raise TranslationError(
            f"{method.name} is not random: its sampling in {count} uses no noise, so every sample is the same "
            "(samples, --samples); choose a method whose sampling uses noise, such as one with "
            "sampling.stochastic=true."
        )


def reconstruct_volume(trained: Trained, source: Array, target: Array, suv_factor: float | None = None) -> Tensor:
    """Encode and decode a target with the method's representation: roughly the best result its diffusion can reach.

    Args:
        trained: the method.
        source, target: (S, D, H, W) or (D, H, W), and (D, H, W); types as for :func:`translate_volume`.
        suv_factor: as for :func:`translate`.

    Returns:
        (D, H, W) float32 on the CPU, in the target's physical units.

    Raises:
        TranslationError, IntensityError: as for :func:`translate_volume`.
    """
    source = volume_of(source).cpu()
    _check_volume(trained, source, seed=0)
    _, target_scale = trained.scaling.scales(source.numpy() if source.ndim == 3 else source[0].numpy(), suv_factor)
    x0 = target_scale.forward(volume_of(target)).to(_device(trained))[None, None]
    return target_scale.inverse(reconstruct(trained.method, trained.network, x0)[0, 0].cpu())


def adapt(
    trained: Trained,
    *,
    steps: int | None = None,
    device: str | torch.device | None = None,
    precision: str | None = None,
    block: Size | None = None,
    overlap: float | None = None,
) -> Trained:
    """Return the same weights with other sampling steps, device, precision or blocks; None keeps a value unchanged.

    Args:
        trained: the method.
        steps: number of sampling steps.
        device: device for the computation.
        precision: ``fp32``, ``bf16`` or ``fp16``.
        block: block size in voxels of the volume, as for :meth:`ppdm.method.Method.in_blocks`.
        overlap: fraction in [0, 1) of the block size that neighbouring blocks share; a quarter if absent.

    Raises:
        TranslationError: steps is not positive, the precision is unknown, the method does not support the blocks, or
            overlap is given without block.
    """
    method = trained.method
    if block is None and overlap is not None:
        raise TranslationError(
            f"An overlap of {overlap} applies only to blocks; give their size as well (block, --block)."
        )
    try:
        if block is not None:
            method = method.in_blocks(block) if overlap is None else method.in_blocks(block, overlap)
        if steps is not None:
            method = replace(method, sampling=replace(method.sampling, steps=steps))
        if precision is not None:
            method = method.with_network(precision=precision)
    except ValueError as error:
        raise TranslationError(f"The method does not support these options: {error}.") from None
    weights = trained.network.state_dict()
    if device is not None:
        weights = {name: tensor.to(device) for name, tensor in weights.items()}
    network = assemble(method, trained.channels, weights)
    return replace(trained, method=method, network=network)


@dataclass
class _Counter:
    """Counts network evaluations over all files."""

    progress: Progress
    done: int
    total: int

    def __call__(self) -> None:
        self.done += 1
        self.progress(self.done, self.total)


def _evaluations(method: Method, source: Path) -> int:
    """Return the number of network evaluations for a file; a file with an unreadable header is rejected later."""
    try:
        return method.evaluations(read_geometry(source).shape)
    except VolumeError:
        return method.sampling.steps


def _map_planes(change: Callable[[Tensor], Tensor], volume: Tensor, out: Tensor) -> None:
    """Apply an elementwise function to a volume (D, H, W) plane by plane, without temporary volumes; write to `out`."""
    for plane, place in zip(volume, out, strict=True):
        place.copy_(change(plane))


def _smaller_blocks(method: Method, shape: Shape) -> str:
    """Return an option and a comma, for a message, with which the network processes less at once, if there is one."""
    try:
        method.in_blocks(1)
    except ValueError:  # the method does not support blocks
        return ""
    return f"--block {max(shape) // 2}, " if method.blocks(shape) == 1 else "a smaller --block, "


def _device(trained: Trained) -> torch.device:
    return next(trained.network.parameters()).device


def _translate_file(
    trained: Trained,
    sources: Sequence[Path],
    outputs: Sequence[Path],
    seed: int,
    samples: int | None,
    suv_factor: float | None,
    progress: Callable[[], None],
    resample: bool,
) -> None:
    volumes, source = load_on_one_grid(sources, resample=resample), " and ".join(map(str, sources))
    volume = volumes[0]
    if sizes := other_spacing(trained, volume.spacing):
        warnings.warn(
            f"{sources[0]} has voxels of {sizes[0]} mm, and the method was trained on {sizes[1]} mm; resample it if "
            "the result is poor.",
            stacklevel=2,
        )
    try:
        data = torch.from_numpy(np.stack([one.data for one in volumes]) if len(volumes) > 1 else volume.data)
        options: dict[str, Any] = {"seed": seed, "suv_factor": suv_factor, "progress": progress}
        if samples is None:
            results: tuple[Tensor, ...] = (translate_volume(trained, data, **options),)
        else:
            results = translate_samples(trained, data, samples, **options)
    except (TranslationError, IntensityError) as error:
        raise TranslationError(f"{source}: {error}") from None
    except torch.OutOfMemoryError as error:
        raise TranslationError(
            f"{source}: the accelerator's memory does not suffice for {volume.data.shape} voxels "
            f"({str(error).split('. ')[0]}); try {_smaller_blocks(trained.method, volume.data.shape)}bf16, or the CPU."
        ) from None
    make_folder(outputs[0].parent)
    _write_together(dict(zip(outputs, results, strict=True)), volume)


def _write_together(results: Mapping[Path, Tensor], like: Volume) -> None:
    """Write a translation, which is the first result, and the files that belong to it: all files or none."""
    written: list[Path] = []
    try:
        for output, result in reversed(list(results.items())):  # the translation last
            write_volume(output, result.numpy(), like)
            written.append(output)
    except VolumeError:
        for file in (file for output in written for file in written_files(output)):
            file.unlink()
        raise


def other_spacing(trained: Trained, spacing: tuple[float, float, float]) -> tuple[str, str] | None:
    """Return a voxel size and that of training as text in mm if they differ by more than a tenth; otherwise None."""
    if np.allclose(spacing, trained.spacing, rtol=SPACING_TOLERANCE, atol=0):
        return None
    got, known = (" × ".join(f"{mm:.3g}" for mm in s) for s in (spacing, trained.spacing))
    return got, known


def _check_volume(trained: Trained, source: Tensor, seed: int) -> None:
    if trained.channels != 1:
        raise TranslationError(f"{trained.method.name} was trained on {trained.channels} channels; a volume has one.")
    names = trained.method.sources
    if source.ndim != 3 + (len(names) > 1) or (len(names) > 1 and len(source) != len(names)):
        wanted = "a volume (D, H, W)" if len(names) == 1 else f"the volumes (S, D, H, W) of {described_sources(names)}"
        raise TranslationError(f"Expected {wanted}, got the shape {tuple(source.shape)}.")
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise TranslationError(f"seed must be an integer from 0 to 2**63 - 1, got {seed!r}.")

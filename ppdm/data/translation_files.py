"""The files of a translation: which scans are read, which files are written, and what must not be replaced."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ppdm.data.folders import scan_files
from ppdm.data.formats import NIFTI, SCANS, SUFFIXES, is_dicom_scan, stem, suffix_of
from ppdm.data.itk import simple_itk
from ppdm.data.matching import MatchError, fixed_folder, is_pattern, matched
from ppdm.data.volume import VolumeError, files_of_scan, user_path, written_files
from ppdm.sources import described_sources

Work = tuple[tuple[Path, ...], Path]  # the sources of a translation, and its output


class TranslationError(ValueError):
    """A translation failed; the message gives the file, the cause and a remedy."""


def checked_suffix(text: str | None) -> str | None:
    """Return a suffix with its dot, such as ``.nii.gz``; None stays None.

    Raises:
        TranslationError: the format cannot be written.
    """
    if text is None:
        return None
    suffix = "." + text.lower().removeprefix(".")
    if suffix not in SUFFIXES:
        names = ", ".join(each.removeprefix(".") for each in SUFFIXES)
        hint = " (DICOM can only be read)" if "dcm" in suffix or "dicom" in suffix else ""
        raise TranslationError(f"The format of a translation is one of {names}{hint}, got {text!r}.")
    return suffix


def checked_sources(
    names: Sequence[str], given: str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]
) -> dict[str, Path]:
    """Return the path or pattern of each source by name, in the order of the method's `names`.

    Raises:
        TranslationError: a source is missing or unknown.
    """
    if not isinstance(given, Mapping):
        if len(names) == 1:
            return {names[0]: user_path(given)}
        raise TranslationError(
            f"The method was trained on {described_sources(names)}, and got one input, {given}; give each by its name "
            f"({_wanted(names)})."
        )
    missing = [f"{name} is missing" for name in names if name not in given]
    unknown = [f"{name} is unknown" for name in given if name not in names]
    if missing or unknown:
        raise TranslationError(
            f"The method was trained on {described_sources(names)}, but {', '.join(unknown + missing)}; give "
            f"{_wanted(names)}."
        )
    return {name: user_path(given[name]) for name in names}


def plan_files(named: Mapping[str, Path], output: Path, suffix: str | None) -> tuple[bool, list[Work], list[Path]]:
    """Return whether the output is a folder, the inputs and the output of each translation, and unreadable folders.

    Args:
        named: path or pattern of each source.
        output: file or folder.
        suffix: format of the outputs; None keeps that of the inputs.

    Raises:
        TranslationError: input or output is missing or unsuitable.
    """
    sources = tuple(named.values())
    if len(sources) > 1 and any(map(is_pattern, sources)):
        return True, _plan_patterns(named, output, suffix), []
    for source in sources:
        if not source.exists():
            raise TranslationError(f"{source} does not exist; name a scan ({SCANS}), or a folder of scans.")
        if output.exists() and output.samefile(source):
            raise TranslationError(f"{output} is the input itself and would be overwritten; name another output.")
        if len(sources) > 1 and source.is_dir() and not is_dicom_scan(source):
            raise TranslationError(f"{source} is a folder; for several sources, give a file or a pattern for each.")
    source = sources[0]
    if source.is_dir() and not (suffix_of(output.name) and not output.is_dir() and is_dicom_scan(source)):
        return True, *_plan_folder(source, output, suffix)
    return False, [(sources, _checked_file(source, output, suffix))], []


def deviation_file(output: Path) -> Path:
    """Return the file of the standard deviation beside a translation."""
    return output.with_name(f"{stem(output.name)}_std{suffix_of(output.name)}")


def check_outputs(places: list[Path], overwrite: bool) -> None:
    """Refuse outputs that exist, that share a file, or whose format needs SimpleITK if that is absent.

    Raises:
        TranslationError: an output exists, or two outputs share a file.
        VolumeError: SimpleITK is needed and absent.
    """
    files = [file for place in places for file in written_files(place)]
    if twice := [str(file) for file, count in Counter(files).items() if count > 1]:
        raise TranslationError(f"Two scans would be written to {twice[0]}; rename one, or choose another format.")
    there = [str(file) for file in files if os.path.lexists(file)]
    if there and not overwrite:
        found = f"{there[0]} exists" if len(there) == 1 else f"{len(there)} outputs exist, such as {there[0]}"
        raise TranslationError(f"{found}; name another output, or replace with --overwrite (overwrite=True).")
    for place in places:
        if suffix_of(place.name) not in NIFTI:
            simple_itk(place, "MetaImage or NRRD")


def check_inputs_remain(work: list[Work], written: Sequence[Sequence[Path]]) -> None:
    """Refuse an output that would replace a file of any input: by its own name, by a link, or as a data file.

    Raises:
        TranslationError: an output would replace a file of an input.
    """
    owners = {_identity(file): scan for scans, _ in work for scan in scans for file in _files(scan) if file.exists()}
    for file in (file for places in written for place in places for file in written_files(place) if file.exists()):
        if scan := owners.get(_identity(file)):
            raise TranslationError(f"{file} is the input {scan} itself and would be overwritten; empty the folder.")


def make_folder(folder: Path) -> None:
    """Make a folder for outputs; it may exist.

    Raises:
        TranslationError: the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TranslationError(f"{folder} cannot be created ({error.strerror}); name another folder.") from None


def check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be written to.

    Raises:
        TranslationError: the folder cannot be written to.
    """
    if not os.access(folder, os.W_OK | os.X_OK):
        raise TranslationError(f"{folder} cannot be written to; change its permissions, or name another folder.")


def _wanted(names: Sequence[str]) -> str:
    return " ".join(f"--source {name}=FILE" for name in names)


def _checked_file(source: Path, output: Path, suffix: str | None) -> Path:
    if output.is_dir():
        raise TranslationError(f"{output} is a folder and {source} a file; name the output file in it.")
    if not suffix_of(output.name):
        raise TranslationError(f"{output} must end in {', '.join(SUFFIXES)}; rename the output.")
    if suffix and suffix_of(output.name) != suffix:
        raise TranslationError(f"{output} does not end in {suffix}, the requested format; rename it or omit that.")
    if not output.parent.is_dir():
        raise TranslationError(f"{output} cannot be written: {output.parent} is not a folder; make it first.")
    return output


def _plan_patterns(named: Mapping[str, Path], output: Path, suffix: str | None) -> list[Work]:
    """Return the inputs and outputs of scans found by patterns; an output is named after its first source."""
    try:
        found = matched(named)
    except MatchError as error:
        raise TranslationError(f"The sources do not fit together: {error}") from None
    if output.exists() and not output.is_dir():
        raise TranslationError(f"{output} is a file and the sources are patterns; name a folder for the outputs.")
    folder = fixed_folder(next(iter(named.values())))
    scans = [tuple(each.values()) for each in found]
    return [(each, output / _output_name(folder, str(each[0].relative_to(folder)), suffix)) for each in scans]


def _plan_folder(source: Path, output: Path, suffix: str | None) -> tuple[list[Work], list[Path]]:
    """Return the inputs and outputs of a folder, and the subfolders that cannot be listed."""
    names, _, unlistable = scan_files(source)
    inside = Path(os.path.abspath(output))
    if inside.is_relative_to(os.path.abspath(source)):  # translations of an earlier run are no inputs
        names = [name for name in names if not Path(os.path.abspath(source / name)).is_relative_to(inside)]
    if not names:
        raise TranslationError(f"{source} holds no scan ({SCANS}); name the folder that does.")
    if not output.is_dir() and (output.exists() or suffix_of(output.name)):
        raise TranslationError(f"{output} is a file and {source} a folder of scans; name a folder for the outputs.")
    work: list[Work] = [((source / name,), output / _output_name(source, name, suffix)) for name in names]
    return work, [Path(name) for name in unlistable]


def _output_name(folder: Path, name: str, suffix: str | None) -> Path:
    """Return the place of an output in the output folder; the folder itself, named ``.``, may be a DICOM series."""
    place = Path(folder.resolve().name if name == "." else name)
    return place.with_name(stem(place.name) + (suffix or suffix_of(place.name) or ".nii.gz"))


def _files(scan: Path) -> tuple[Path, ...]:
    """Return the files of a scan that an output could replace; no output has the suffix of a DICOM file."""
    try:
        return files_of_scan(scan) if suffix_of(scan.name) else ()
    except VolumeError:
        return (scan,)


def _identity(file: Path) -> tuple[int, int]:
    status = file.stat()
    return status.st_dev, status.st_ino

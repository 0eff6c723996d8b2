"""Presets: file names of well-known data sets, one table entry for each data set.

A layout consists of regular expressions for the path of a file, relative to the folder of the data set. Their named
groups are `subject` (the patient, who must not be in two splits), `kind`, and optionally `session` (all visits of a
patient are rows of one subject) and `split`.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType

from ppdm.data.formats import SUFFIXES

PATTERN_LENGTH = 1000  # maximum length of a layout's regular expression; hand-written ones are much shorter


class LayoutError(ValueError):
    """A layout is invalid or a folder does not match it; the message gives what was found and what was expected."""


def _compiled(pattern: str) -> re.Pattern[str]:
    if len(pattern) > PATTERN_LENGTH:
        raise LayoutError(f"A pattern of {len(pattern)} characters is refused; {PATTERN_LENGTH} are enough.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python warns of syntax that may change in the future
            expression = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise LayoutError(f"The pattern {pattern!r} is not a Python regular expression: {error}.") from None
    if missing := [name for name in ("subject", "kind") if name not in expression.groupindex]:
        raise LayoutError(
            f"The pattern {pattern!r} has no group named {' and '.join(missing)}; write it as "
            r"(?:.*/)?(?P<subject>[^/]+)/(?P<kind>[^/]+)\.nii\.gz, if need be with (?P<session>...) and (?P<split>...)."
        )
    return expression


@dataclass(frozen=True)
class Layout:
    """File naming scheme of a data set.

    Attributes:
        name: name of the layout.
        patterns: regular expressions for whole paths, relative to the folder and with forward slashes; the first match
            is used.
        source: default kind of the source, or kinds of several sources; the kind of the target is left out.
        target: default kind of the target.
        origin: where the file names come from, and which of them are uncertain.
        mask: kind of the mask in which quality is measured, or None.
        entities: whether a kind consists of BIDS entities, and source, target and mask name only some of them. `T1w`
            then also matches `acq-mprage_T1w`; a file whose kind is exactly `T1w` has priority.
        aliases: map from other spellings of a kind to its standard spelling.
        activity: whether the files hold Bq/mL; conversion to SUV needs a table of doses.
        ct: kinds that are CT in HU.
        remark: important information for users of this data set.

    Raises:
        LayoutError: a pattern is too long, is not a regular expression, or lacks the groups subject and kind; source
            and target are missing or equal, or a source is given twice.
    """

    name: str
    patterns: tuple[str, ...]
    source: str | tuple[str, ...]
    target: str
    origin: str
    mask: str | None = None
    entities: bool = False
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    activity: bool = False
    ct: tuple[str, ...] = ()
    remark: str = ""

    def __post_init__(self) -> None:
        kinds = self.sources
        if not self.patterns or not kinds or not all(kinds) or not self.target or len(set(kinds)) < len(kinds):
            raise LayoutError(
                f"Layout {self.name} translates {self.source!r} to {self.target!r}; name two different kinds."
            )
        for pattern in self.patterns:
            _compiled(pattern)

    @property
    def sources(self) -> tuple[str, ...]:
        """Kinds of the sources, without that of the target."""
        kinds = (self.source,) if isinstance(self.source, str) else self.source
        return tuple(kind for kind in kinds if kind != self.target)

    @cached_property
    def expressions(self) -> tuple[re.Pattern[str], ...]:
        """The compiled patterns."""
        return tuple(_compiled(pattern) for pattern in self.patterns)


_SCAN = rf"(?:{'|'.join(map(re.escape, SUFFIXES))})?"  # no suffix: a folder with a DICOM series
_ANYWHERE = r"(?:.*/)?"
_BIDS = (
    r"(?P<subject>sub-[^_/]+)/(?:(?P<session>ses-[^_/]+)/)?(?:anat|pet)/(?P=subject)_(?(session)(?P=session)_)"
    rf"(?P<kind>(?:[a-z]+-[^-_/.]+_)*[A-Za-z0-9]+){_SCAN}"
)

_BRATS = (
    rf"{_ANYWHERE}(?P<subject>BraTS-GLI-\d{{5}})-(?P<session>\d{{3}})/"
    rf"(?P=subject)-(?P=session)-(?P<kind>t1n|t1c|t2w|t2f){_SCAN}"
)

LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        layout.name: layout
        for layout in (
            Layout(
                "bids",
                (_BIDS,),
                "T1w",
                "T2w",
                entities=True,
                origin="BIDS specification, MRI and PET: verified there. The subjects lie in the folder itself; "
                "for derivatives, name the folder of one pipeline.",
            ),
            Layout(
                "bids-pet",
                (_BIDS,),
                "rec-nacstat",
                "rec-acstat",
                entities=True,
                activity=True,
                origin="BIDS specification, PET: acstat and nacstat are its labels for static reconstructions with and "
                "without attenuation correction, to which a number may be appended: verified there.",
                remark="BIDS recommends Bq/mL; the field Units in the JSON file of a scan states its unit.",
            ),
            Layout(
                "brats-gli-2023",
                (_BRATS,),
                "t1n",
                "t2w",
                origin="Five digits name the patient and three the time point; t1n is native T1, t1c is T1 with "
                "contrast, t2w is T2, t2f is FLAIR: verified in descriptions of the challenge and public code.",
            ),
            Layout(
                "brasyn",
                (_BRATS,),
                ("t1n", "t1c", "t2w", "t2f"),
                "t2f",
                origin="BraSyn synthesises one of the four images of BraTS from the other three; the names are those "
                "of brats-gli-2023: verified there.",
            ),
            Layout(
                "bic-mac",
                (
                    rf"{_ANYWHERE}(?P<subject>sub-\d+)/(?:features|ct-label)/(?P<kind>nacpet|topogram|"
                    rf"mri_(?:chunk_\d|combined)_(?:in|out)_phase|mri_face_mask|ct|prediction_mask){_SCAN}",
                ),
                ("nacpet", "mri_combined_in_phase", "mri_combined_out_phase"),
                "ct",
                mask="prediction_mask",
                ct=("ct",),
                origin="README and docs/data-background.md of bic-mac-challenge/challenge-codebase, read there: all "
                "images lie on the grid of the CT, the topogram has one voxel in depth, and val/ has no CT.",
                remark="The topogram of BIC-MAC is a projection, one voxel deep, so it is no source by default: repeat "
                "it over the depth of the CT, under the same name, and add topogram to --source.",
            ),
            Layout(
                "ixi",
                (rf"{_ANYWHERE}(?P<subject>IXI\d{{3}})-(?P<session>[A-Za-z]+-\d+)-(?P<kind>T1|T2|PD|MRA){_SCAN}",),
                "T1",
                "T2",
                origin="The file names are verified from public code; that T1 and T2 have different grids and that "
                "the archives unpack to IXI-T1/ and IXI-T2/ is from memory, so any folder is accepted.",
                remark="T1 and T2 of IXI lie on different grids and are not registered: resample the target "
                "(--resample), and look at the pairs.",
            ),
            Layout(
                "udpet",
                (
                    rf"{_ANYWHERE}(?P<subject>[^/]+)_(?P<kind>DRF-(?:4|10|20|50|100)|NORMAL){_SCAN}",
                    rf"{_ANYWHERE}(?P<subject>[^/]+)/(?P<kind>4|10|20|50|100|ref)/[^/]+{_SCAN}",
                ),
                "20",
                "ref",
                aliases=MappingProxyType({"NORMAL": "ref", **{f"DRF-{d}": str(d) for d in (4, 10, 20, 50, 100)}}),
                activity=True,
                origin="The test set of 2025 has names such as Anonymous-01_DRF-10.nii.gz, and a participant "
                "(KUL-recon-lab/2025_ud_pet_kul) keeps the training set as CASE/{4,...,ref}/; both read there. The "
                "full dose is NORMAL in the challenge's DICOM folders; that single files use this name is a guess.",
                remark="UDPET's own files hold Bq/mL, decay-corrected to the start of each acquisition (those of "
                "one subject start seconds apart: 0.3 % of SUV). Files that already hold log(1 + SUV) take no factor.",
            ),
            Layout(
                "synthrad2023",
                (rf"{_ANYWHERE}(?P<subject>[12][BP][A-C]\d{{3}})/(?P<kind>mr|cbct|ct|mask){_SCAN}",),
                "mr",
                "ct",
                mask="mask",
                ct=("ct",),
                origin="Task1/brain/1BA001/{mr,ct,mask}.nii.gz is verified from public code; task 2 (cbct for mr) and "
                "the meaning of the letters (Brain or Pelvis, centre A to C) are from memory.",
            ),
            Layout(
                "madm",
                (rf"{_ANYWHERE}(?P<split>train|val|test)/(?P<kind>\d+N?AC)/(?P<subject>[^/]+)_\d+_N?AC{_SCAN}",),
                "5NAC",
                "100AC",
                origin="README of tianqic/MADM---Multi-View-Averaging-Diffusion-Model, read there; its test folder "
                "has no 100AC.",
            ),
        )
    }
)
"""The presets by name."""

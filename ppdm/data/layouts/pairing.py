"""Find the pairs in a folder by the names of its files and DICOM folders; no voxels are read, nothing is copied."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppdm.data.folders import scan_files
from ppdm.data.formats import SCANS
from ppdm.data.layouts.presets import LAYOUTS, Layout, LayoutError
from ppdm.data.layouts.splits import Fractions, SplitError, TooFewPatientsError, splits_of
from ppdm.data.layouts.suv import SUVError, read_suv_table
from ppdm.data.manifest import ManifestError, Pair, with_intensities
from ppdm.data.normalise import HounsfieldWindow
from ppdm.data.volume import user_path

_EXAMPLES = 3
_NAMES_SHOWN = 5


def pairs_from_folder(
    folder: str | os.PathLike[str],
    layout: Layout | str,
    *,
    source: str | Sequence[str] | None = None,
    target: str | None = None,
    pattern: str | None = None,
    seed: int = 0,
    fractions: Fractions = (0.8, 0.1, 0.1),
    suv_table: str | os.PathLike[str] | None = None,
) -> tuple[list[Pair], list[str]]:
    """Find the pairs in a folder; return them ordered by subject and session, and remarks on omitted files.

    A visit without all of the kinds, or with several files of one kind, gives a remark instead of a pair. No file is
    chosen silently. Splits are those of the layout if it has any. Otherwise they are sampled by
    :func:`ppdm.data.layouts.splits.splits_of`; fewer subjects than splits are all in train, and a remark says so.

    Args:
        folder: the folder of the data set.
        layout: the name of a layout in LAYOUTS, or a custom layout.
        source, target: kinds that replace those of the layout; several sources are named by their kinds.
        pattern: regular expression for whole paths that replaces the patterns of the layout.
        seed, fractions: seed and fractions of the sampled splits.
        suv_table: CSV file of doses (:func:`ppdm.data.layouts.suv.read_suv_table`); every pair then has an suv_factor.

    Raises:
        LayoutError: the folder has no pair of these kinds (the message gives examples of its files), the layout or an
            option is invalid, a subject is in two splits or cannot be a file name, or the table lacks a subject.
    """
    folder = user_path(folder)
    layout = _adapted(layout, source, target, pattern)
    names, remarks = _listed(folder)
    scans = [scan for name in names if (scan := _read(name, layout))]
    if not scans:
        raise _no_match(folder, layout, names)
    visits, left_out = _visits(_present(folder, scans, remarks), layout)
    remarks += left_out
    if not visits:
        raise _no_pair(folder, layout, scans, remarks)
    try:
        splits, remarks_on_splits = _splits(visits, seed, fractions)
        pairs = _pairs(folder, visits, layout.sources, splits, _factors(visits, suv_table))
        kinds = (layout.sources, (layout.target,))
        windows = [HounsfieldWindow() if all(kind in layout.ct for kind in each) else None for each in kinds]
        pairs = with_intensities(pairs, source=windows[0], target=windows[1])
        remarks += remarks_on_splits
    except (ManifestError, SplitError, SUVError) as error:
        raise LayoutError(str(error)) from None
    if layout.activity and suv_table is None:
        remarks.append("No table of doses was given: the pairs have no suv_factor, and activities are not converted.")
    return pairs, remarks + ([layout.remark] if layout.remark else [])


def _adapted(
    layout: Layout | str, source: str | Sequence[str] | None, target: str | None, pattern: str | None
) -> Layout:
    if isinstance(layout, str):
        if layout not in LAYOUTS:
            raise LayoutError(f"There is no layout {layout!r}; choose one of {', '.join(LAYOUTS)}.")
        layout = LAYOUTS[layout]
    given = (source,) if isinstance(source, str) else source or ()
    kinds = tuple(layout.aliases.get(kind, kind) for kind in given)
    target = layout.aliases.get(target, target) if target else layout.target
    if target in kinds and len(kinds) > 1:
        raise LayoutError(f"The target {target} is also one of the sources {', '.join(kinds)}; remove it there.")
    patterns = (pattern,) if pattern else layout.patterns
    return replace(layout, source=kinds or layout.source, target=target, patterns=patterns)


# Files


@dataclass(frozen=True)
class _Scan:
    """A file that matches a pattern, with its name relative to the folder and the groups; a missing group is empty."""

    name: str
    subject: str
    session: str
    split: str
    kind: str


def _listed(folder: Path) -> tuple[list[str], list[str]]:
    """Return the scans of the folder, and remarks on subfolders that could not be listed."""
    if not folder.is_dir():
        raise LayoutError(f"{folder} is not a folder; name the one that holds the data set.")
    images, others, unlistable = scan_files(folder)
    if not images:
        seen = f"{len(others)} other files, such as {_examples(others)}" if others else "no file at all"
        raise LayoutError(f"{folder} holds no scan ({SCANS}) but {seen}; name another folder, or convert them.")
    return images, [f"{name} could not be listed and was skipped; check its permissions." for name in unlistable]


def _read(name: str, layout: Layout) -> _Scan | None:
    for expression in layout.expressions:
        if match := expression.fullmatch(name):
            groups = {group: text or "" for group, text in match.groupdict().items()}
            kind = layout.aliases.get(groups["kind"], groups["kind"])
            return _Scan(name, groups["subject"], groups.get("session", ""), groups.get("split", ""), kind)
    return None


def _present(folder: Path, scans: list[_Scan], remarks: list[str]) -> list[_Scan]:
    """Return the scans whose files exist; a link may point to a file that was never downloaded."""
    lost = {scan.name for scan in scans if not os.path.exists(folder / scan.name)}
    if lost:
        remarks.append(f"Links to nothing: {len(lost)}, such as {_examples(sorted(lost))}; fetch them.")
    return [scan for scan in scans if scan.name not in lost]


def _no_match(folder: Path, layout: Layout, names: list[str]) -> LayoutError:
    patterns = " or ".join(layout.patterns)
    return LayoutError(
        f"{folder}: of {len(names)} scans, such as {_examples(names)}, none is named like those of layout "
        f"{layout.name}: {patterns}. Name the folder above or below, another layout, or a pattern of your own."
    )


def _no_pair(folder: Path, layout: Layout, scans: list[_Scan], remarks: list[str]) -> LayoutError:
    kinds = [f"{kind} ({count})" for kind, count in Counter(scan.kind for scan in scans).most_common()]
    wanted = " and one of ".join((*layout.sources, layout.target))
    text = f"{folder}: no visit has one file of {wanted}; found {_some(kinds)}."
    return LayoutError("\n  ".join([text, *remarks[:_NAMES_SHOWN]]))


# Visits


@dataclass(frozen=True)
class _Visit:
    """Sources and their target; the split is empty if the layout defines none."""

    subject: str
    session: str
    split: str
    sources: tuple[str, ...]
    target: str
    mask: str | None


def _visits(scans: list[_Scan], layout: Layout) -> tuple[list[_Visit], list[str]]:
    """Return the visits that form pairs, and remarks on the other visits."""
    found: dict[tuple[str, str, str], list[_Scan]] = defaultdict(list)
    for scan in scans:
        found[scan.subject, scan.session, scan.split].append(scan)
    visits: list[_Visit] = []
    notes: dict[str, list[str]] = defaultdict(list)
    kinds = (*layout.sources, layout.target)
    for key, files in sorted(found.items()):
        if not any(_fitting(kind, files, layout) for kind in kinds):
            continue  # the visit has only files of other kinds
        scans_found = [name for kind in kinds if (name := _one(kind, key, files, layout, notes))]
        mask = _one(layout.mask, key, files, layout, notes) if layout.mask else None
        if len(scans_found) == len(kinds):
            *sources, target = scans_found
            visits.append(_Visit(*key, tuple(sources), target, mask))
    return visits, [
        f"{len(who)} {'visit' if len(who) == 1 else 'visits'} {note}: {_some(who)}" for note, who in notes.items()
    ]


def _one(kind: str, key: Sequence[str], scans: list[_Scan], layout: Layout, notes: dict[str, list[str]]) -> str | None:
    """Return the single file of a kind; otherwise add a note with the reason and return None."""
    who = " ".join(part for part in key if part)
    fits = _fitting(kind, scans, layout)
    exact = [scan for scan in fits if scan.kind == kind] or fits
    effect = "without a mask" if kind == layout.mask else "left out"
    if not exact:
        notes[f"{effect}, having no file of {kind}"].append(who)
    elif len(exact) > 1:
        names = _examples([scan.name for scan in exact])
        notes[f"{effect}, having several files of {kind} (name it in full, or remove some)"].append(f"{who} ({names})")
    elif len(fits) > 1:
        notes[f"with several files of {kind}; the file with exactly this name was used"].append(who)
    return exact[0].name if len(exact) == 1 else None


def _fitting(kind: str, scans: list[_Scan], layout: Layout) -> list[_Scan]:
    if not layout.entities:
        return [scan for scan in scans if scan.kind == kind]
    return [scan for scan in scans if set(kind.split("_")) <= set(scan.kind.split("_"))]


# Pairs


def _pairs(
    folder: Path, visits: list[_Visit], kinds: Sequence[str], splits: dict[str, str], factors: list[float | None]
) -> list[Pair]:
    return [
        Pair(
            subject=visit.subject,
            split=splits[visit.subject],
            source=folder / visit.sources[0],
            target=folder / visit.target,
            mask=folder / visit.mask if visit.mask else None,
            suv_factor=factor,
            named={kind: folder / name for kind, name in zip(kinds, visit.sources, strict=True)} if kinds[1:] else {},
        )
        for visit, factor in zip(visits, factors, strict=True)
    ]


def _splits(visits: list[_Visit], seed: int, fractions: Fractions) -> tuple[dict[str, str], list[str]]:
    """Return the split of each subject, from the layout or sampled, and remarks on the sampled splits."""
    named: dict[str, set[str]] = defaultdict(set)
    for visit in visits:
        named[visit.subject].add(visit.split)
    if torn := [subject for subject, splits in named.items() if len(splits) > 1]:
        raise LayoutError(f"Subjects in two splits: {len(torn)} ({_some(torn)}); keep each patient in one.")
    given = {subject: split for subject, (split,) in named.items()}
    unnamed = [subject for subject, split in given.items() if not split]
    try:
        sampled, remarks = splits_of(unnamed, seed, fractions) if unnamed else {}, []
    except TooFewPatientsError as error:  # a single pair is enough to try a training
        sampled, remarks = dict.fromkeys(unnamed, "train"), [f"{error} All of them are in train."]
    return given | sampled, remarks


def _factors(visits: list[_Visit], suv_table: str | os.PathLike[str] | None) -> list[float | None]:
    if suv_table is None:
        return [None] * len(visits)
    table, sessions = read_suv_table(suv_table), Counter(visit.subject for visit in visits)
    factors = [table.factor(visit.subject, visit.session, sessions[visit.subject]) for visit in visits]
    if lacking := [visit for visit, factor in zip(visits, factors, strict=True) if factor is None]:
        names = [f"{visit.subject} {visit.session}".strip() for visit in lacking]
        raise LayoutError(f"{suv_table} has no row for {_some(names)}; add it, or leave the table out.")
    return factors


def _examples(names: Sequence[str]) -> str:
    return ", ".join(names[:_EXAMPLES])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return ", ".join(names[:_NAMES_SHOWN]) + more

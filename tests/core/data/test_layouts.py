"""Layouts of data folders: every preset pairs the files of a small tree; omissions and errors are reported."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ppdm.data.folders import scan_files
from ppdm.data.layouts import LAYOUTS, Layout, LayoutError, pairs_from_folder
from ppdm.data.layouts.splits import split_of
from ppdm.data.layouts.suv import suv_factor
from ppdm.data.manifest import Pair, load_pair, read_manifest, write_manifest
from ppdm.data.normalise import HounsfieldWindow
from ppdm.data.volume import Volume, VolumeError, write_volume

ALL_TRAIN = (1.0, 0.0, 0.0)
KINDS = ("t1n", "t1c", "t2w", "t2f")
OWN = Layout("own", (r"(?P<subject>\w+)/(?P<kind>[ab])\.nii",), "a", "b", origin="made up")


def tree(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def found(folder, layout, **options):
    """Return (subject, source, target) of each pair, with paths relative to the folder, and the remarks."""
    pairs, remarks = pairs_from_folder(folder, layout, **{"fractions": ALL_TRAIN, **options})
    rows = [(p.subject, *(path.relative_to(folder).as_posix() for path in (p.source, p.target))) for p in pairs]
    return rows, remarks


def complaint(folder, layout="bids", **options):
    with pytest.raises(LayoutError) as caught:
        pairs_from_folder(folder, layout, **options)
    return str(caught.value)


# Presets


def test_bids_pairs_the_contrasts_of_each_session(tmp_path):
    tree(
        tmp_path,
        "sub-01/anat/sub-01_T1w.nii.gz",
        "sub-01/anat/sub-01_T2w.nii.gz",
        "sub-01/anat/sub-01_T1w.json",
        "sub-02/ses-a/anat/sub-02_ses-a_acq-mprage_T1w.nii",
        "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii",
        "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz",
        "sub-02/ses-b/anat/sub-02_ses-b_run-1_T2w.nii.gz",
        "sub-02/ses-b/func/sub-02_ses-b_task-rest_bold.nii.gz",
        "derivatives/pipeline/sub-01/anat/sub-01_space-MNI_T1w.nii.gz",
        "sub-03/anat/sub-04_T1w.nii.gz",
    )
    rows, remarks = found(tmp_path, "bids")
    assert rows == [
        ("sub-01", "sub-01/anat/sub-01_T1w.nii.gz", "sub-01/anat/sub-01_T2w.nii.gz"),
        ("sub-02", "sub-02/ses-a/anat/sub-02_ses-a_acq-mprage_T1w.nii", "sub-02/ses-a/anat/sub-02_ses-a_T2w.nii"),
        ("sub-02", "sub-02/ses-b/anat/sub-02_ses-b_T1w.nii.gz", "sub-02/ses-b/anat/sub-02_ses-b_run-1_T2w.nii.gz"),
    ]
    assert remarks == []


def test_bids_accepts_any_kinds_and_prefers_the_file_with_exactly_that_name(tmp_path):
    names = ("T1w", "FLAIR", "run-1_T2w", "run-2_T2w", "acq-fast_T1w")
    tree(tmp_path, *(f"sub-1/anat/sub-1_{name}.nii" for name in names))
    rows, remarks = found(tmp_path, "bids", source="FLAIR", target="run-2_T2w")
    assert rows == [("sub-1", "sub-1/anat/sub-1_FLAIR.nii", "sub-1/anat/sub-1_run-2_T2w.nii")]
    rows, remarks = found(tmp_path, "bids", target="FLAIR")
    assert rows == [("sub-1", "sub-1/anat/sub-1_T1w.nii", "sub-1/anat/sub-1_FLAIR.nii")]
    assert remarks == ["1 visit with several files of T1w; the file with exactly this name was used: sub-1"]


def test_bids_pet_pairs_reconstructions_and_remarks_on_missing_suv_factors(tmp_path):
    stem = "sub-1/ses-a/pet/sub-1_ses-a_trc-18FFDG_rec-"
    tree(tmp_path, stem + "nacstat_pet.nii.gz", stem + "acstat_pet.nii.gz", stem + "acdyn_pet.nii.gz")
    rows, remarks = found(tmp_path, "bids-pet")
    assert rows == [("sub-1", stem + "nacstat_pet.nii.gz", stem + "acstat_pet.nii.gz")]
    assert any("no suv_factor" in remark for remark in remarks)
    assert any("Bq/mL" in remark for remark in remarks)


def test_brats_time_points_of_a_patient_share_a_split(tmp_path):
    names = [f"BraTS-GLI-{patient:05}-{time:03}" for patient in range(20) for time in range(2)]
    kinds = ("t1n", "t1c", "t2w", "t2f", "seg")
    tree(tmp_path, *(f"TrainingData/{name}/{name}-{kind}.nii.gz" for name in names for kind in kinds))
    pairs, remarks = pairs_from_folder(tmp_path, "brats-gli-2023", target="t1c", seed=2)
    assert remarks == []
    assert len(pairs) == 40
    assert {pair.split for pair in pairs} == {"train", "val", "test"}
    assert len({(pair.subject, pair.split) for pair in pairs}) == 20
    assert (pairs[1].subject, pairs[1].source.name) == ("BraTS-GLI-00000", "BraTS-GLI-00000-001-t1n.nii.gz")
    assert pairs[1].target.name == "BraTS-GLI-00000-001-t1c.nii.gz"


def test_ixi_pairs_two_folders_and_remarks_that_the_grids_differ(tmp_path):
    tree(
        tmp_path,
        *("IXI-T1/IXI002-Guys-0828-T1.nii.gz", "IXI-T2/IXI002-Guys-0828-T2.nii.gz"),
        *("IXI-T1/IXI012-HH-1211-T1.nii.gz", "IXI-DTI/IXI002-Guys-0828-DTI-00.nii.gz"),
    )
    rows, remarks = found(tmp_path, "ixi")
    assert rows == [("IXI002", "IXI-T1/IXI002-Guys-0828-T1.nii.gz", "IXI-T2/IXI002-Guys-0828-T2.nii.gz")]
    assert remarks[0] == "1 visit left out, having no file of T2: IXI012 HH-1211"
    assert "different grids" in remarks[1]
    assert "resample" in remarks[1]


def test_ixi_pairs_are_usable_when_resampled(tmp_path):
    for kind, shape, spacing in (("T1", (8, 10, 9), (1.2, 0.9, 0.9)), ("T2", (12, 12, 6), (0.9, 0.9, 1.3))):
        volume = Volume.from_array(np.full(shape, 7.0), spacing)
        (tmp_path / f"IXI-{kind}").mkdir()
        write_volume(tmp_path / f"IXI-{kind}/IXI002-Guys-0828-{kind}.nii.gz", volume.data, volume)
    (pair,), _ = pairs_from_folder(tmp_path, "ixi")
    with pytest.raises(VolumeError, match="must share one grid"):
        load_pair(pair)
    source, target = load_pair(pair, resample=True)
    assert target.data.shape == source.data.shape == (8, 10, 9)
    np.testing.assert_allclose(target.data, 7, rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "full"),
    [
        ("Anonymous-01_DRF-20.nii.gz", "Anonymous-01_NORMAL.nii.gz"),
        ("Anonymous-01/20/resampled.nii.gz", "Anonymous-01/ref/resampled.nii.gz"),
    ],
)
def test_udpet_pairs_of_both_naming_schemes_get_suv_factors_from_a_table(tmp_path, low, full):
    data = tree(tmp_path / "data", low, full, low.replace("20", "100"), "Anonymous-01/sampling_map.nii.gz")
    table = tmp_path / "doses.csv"
    table.write_text("subject,weight_kg,dose_bq,minutes\nAnonymous-01,55,203500000,56.65\n")
    rows, remarks = found(data, "udpet")
    assert rows == [("Anonymous-01", low, full)]
    assert any("no suv_factor" in remark for remark in remarks)
    for source in ("100", "DRF-100"):
        (pair,), remarks = pairs_from_folder(data, "udpet", suv_table=table, source=source)
        assert pair.source == data / low.replace("20", "100")
        assert pair.suv_factor == suv_factor(55, 203_500_000, 3399)
    assert not any("suv_factor" in remark for remark in remarks)


def test_synthrad_pairs_have_their_masks_and_missing_masks_are_reported(tmp_path):
    tree(
        tmp_path,
        *(f"Task1/brain/1BA001/{kind}.nii.gz" for kind in ("mr", "ct", "mask")),
        *(f"Task1/pelvis/1PC092/{kind}.nii.gz" for kind in ("mr", "ct")),
        *(f"Task2/brain/2BA001/{kind}.nii.gz" for kind in ("cbct", "ct", "mask")),
        "Task1/brain/overview/1BA001.nii.gz",
    )
    pairs, remarks = pairs_from_folder(tmp_path, "synthrad2023", fractions=ALL_TRAIN)
    brain = tmp_path / "Task1/brain/1BA001"
    wanted = Pair("1BA001", "train", brain / "mr.nii.gz", brain / "ct.nii.gz", brain / "mask.nii.gz")
    assert pairs[0] == replace(wanted, target_intensity=HounsfieldWindow())
    assert (pairs[1].subject, pairs[1].mask) == ("1PC092", None)
    assert remarks == [
        "1 visit without a mask, having no file of mask: 1PC092",
        "1 visit left out, having no file of mr: 2BA001",
    ]
    assert found(tmp_path, "synthrad2023", source="cbct")[0][0][0] == "2BA001"


def test_madm_pairs_keep_the_splits_of_their_folders(tmp_path):
    tree(
        tmp_path,
        *(
            f"{split}/{kind}/p{split}_{kind[: -3 if 'N' in kind else -2]}_{kind[-3 if 'N' in kind else -2 :]}.nii"
            for split in ("train", "val", "test")
            for kind in ("5NAC", "100AC")
        ),
        "test/5NAC/q_5_NAC.nii",
    )
    pairs, remarks = pairs_from_folder(tmp_path, "madm", fractions=ALL_TRAIN)
    assert {(pair.subject, pair.split) for pair in pairs} == {("ptrain", "train"), ("pval", "val"), ("ptest", "test")}
    assert pairs[0].source == tmp_path / "test/5NAC/ptest_5_NAC.nii"
    assert remarks == ["1 visit left out, having no file of 100AC: q test"]


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_preset_states_the_origin_of_its_file_names(name):
    assert LAYOUTS[name].name == name
    assert "verified" in LAYOUTS[name].origin or "read there" in LAYOUTS[name].origin


# Several sources


def sources_of(pair, folder):
    return {name: path.relative_to(folder).as_posix() for name, path in pair.sources.items()}


BRATS = [f"BraTS-GLI-{who}/BraTS-GLI-{who}-{k}.nii.gz" for who in ("00001-000", "00002-001") for k in KINDS]


@pytest.mark.parametrize("target", KINDS)
def test_brasyn_takes_the_three_other_images_as_sources(tmp_path, target):
    tree(tmp_path, *BRATS)
    pairs, _ = pairs_from_folder(tmp_path, "brasyn", target=target, fractions=ALL_TRAIN)
    assert [pair.subject for pair in pairs] == ["BraTS-GLI-00001", "BraTS-GLI-00002"]
    assert [*pairs[0].sources] == [kind for kind in KINDS if kind != target]
    assert pairs[1].target.name == f"BraTS-GLI-00002-001-{target}.nii.gz"
    write_manifest(tmp_path / "pairs.csv", pairs)
    assert read_manifest(tmp_path / "pairs.csv") == pairs


def test_several_sources_of_any_layout_are_named_by_their_kinds(tmp_path):
    tree(tmp_path, *(f"sub-1/anat/sub-1_{kind}.nii" for kind in ("acq-mprage_T1w", "T2w", "FLAIR")))
    (pair,), _ = pairs_from_folder(tmp_path, "bids", source=["T1w", "T2w"], target="FLAIR", fractions=ALL_TRAIN)
    wanted = {"T1w": "sub-1/anat/sub-1_acq-mprage_T1w.nii", "T2w": "sub-1/anat/sub-1_T2w.nii"}
    assert sources_of(pair, tmp_path) == wanted
    (pair,), _ = pairs_from_folder(tmp_path, "bids", source=["T2w"], target="FLAIR", fractions=ALL_TRAIN)
    assert not pair.named  # one source needs no name


def test_bic_mac_pairs_pet_and_dixon_sources_with_a_ct_target_in_hu(tmp_path):
    names = ["nacpet", "topogram", "mri_chunk_0_in_phase", "mri_combined_in_phase", "mri_combined_out_phase"]
    for who in ("train/sub-000", "val/sub-075"):
        tree(tmp_path, *(f"{who}/features/{name}.nii.gz" for name in (*names, "mri_face_mask")))
    tree(tmp_path, *(f"train/sub-000/ct-label/{name}.nii.gz" for name in ("ct", "organ_seg", "prediction_mask")))
    (pair,), remarks = pairs_from_folder(tmp_path, "bic-mac", fractions=ALL_TRAIN)
    assert (pair.subject, pair.target.name, pair.mask.name) == ("sub-000", "ct.nii.gz", "prediction_mask.nii.gz")
    assert [*pair.sources] == ["nacpet", "mri_combined_in_phase", "mri_combined_out_phase"]
    assert (pair.source_intensity, pair.target_intensity) == (None, HounsfieldWindow())
    assert any("1 visit left out, having no file of ct: sub-075" in remark for remark in remarks)
    assert any("topogram" in remark for remark in remarks)
    (pair,), _ = pairs_from_folder(tmp_path, "bic-mac", source=["nacpet", "topogram"], fractions=ALL_TRAIN)
    assert [*pair.sources] == ["nacpet", "topogram"]


def test_a_visit_without_one_of_the_sources_is_left_out(tmp_path):
    tree(tmp_path, *(name for name in BRATS if "00002-001-t1c" not in name))
    pairs, remarks = pairs_from_folder(tmp_path, "brasyn", fractions=ALL_TRAIN)
    assert [pair.subject for pair in pairs] == ["BraTS-GLI-00001"]
    assert any("1 visit left out, having no file of t1c: BraTS-GLI-00002 001" in remark for remark in remarks)


def test_invalid_kinds_of_sources_are_refused(tmp_path):
    tree(tmp_path, *BRATS)
    assert "The target t2f is also one of the sources t1n, t2f" in complaint(tmp_path, "brasyn", source=["t1n", "t2f"])
    assert "name two different kinds" in complaint(tmp_path, "brasyn", source=["t1n", "t1n"])
    assert "no visit has one file of t1 and one of t2w and one of t2f" in complaint(
        tmp_path, "brasyn", source=["t1", "t2w"]
    )


# Remarks on what is left out


def test_visits_with_several_files_of_a_kind_are_left_out_and_listed(tmp_path):
    tree(
        tmp_path,
        "s1/a.nii",
        "s1/b.nii",
        *(f"sub-1/anat/sub-1_{kind}.nii" for kind in ("run-1_T1w", "run-2_T1w", "T2w")),
    )
    message = complaint(tmp_path)
    assert "no visit has one file of T1w and one of T2w; found T2w (1), run-1_T1w (1), run-2_T1w (1)" in message
    assert (
        "left out, having several files of T1w (name it in full, or remove some): sub-1 (sub-1/anat/sub-1_run-1"
        in message
    )


def test_visits_with_compressed_and_uncompressed_copies_are_left_out(tmp_path):
    tree(tmp_path, "s1/a.nii", "s1/b.nii", "s2/a.nii", "s2/a.nii.gz", "s2/b.nii")
    layout = replace(OWN, patterns=(r"(?P<subject>\w+)/(?P<kind>[ab])\.nii(\.gz)?",))
    rows, remarks = found(tmp_path, layout)
    assert rows == [("s1", "s1/a.nii", "s1/b.nii")]
    assert "s2 (s2/a.nii, s2/a.nii.gz)" in remarks[0]


def test_long_lists_of_visits_are_shortened_in_remarks(tmp_path):
    tree(tmp_path, "s0/a.nii", "s0/b.nii", *(f"s{i}/a.nii" for i in range(1, 9)))
    assert found(tmp_path, OWN)[1] == ["8 visits left out, having no file of b: s1, s2, s3, s4, s5 and 3 more"]


def test_outside_bids_a_kind_must_match_the_whole_name(tmp_path):
    tree(tmp_path, "s1/a.nii", "s1/b.nii", "s1/x_b.nii", "s2/a.nii", "s2/x_b.nii")
    rows, remarks = found(tmp_path, OWN, pattern=r"(?P<subject>\w+)/(?P<kind>\w+)\.nii")
    assert rows == [("s1", "s1/a.nii", "s1/b.nii")]
    assert remarks == ["1 visit left out, having no file of b: s2"]


def test_hidden_files_and_folders_are_ignored(tmp_path):
    tree(tmp_path, "s1/a.nii", "s1/b.nii", "s1/._a.nii", ".git/s2/a.nii", ".git/s2/b.nii")
    assert scan_files(tmp_path) == (["s1/a.nii", "s1/b.nii"], [], [])


def test_cyclic_links_end_and_no_file_is_found_twice(tmp_path):
    data, far = tree(tmp_path / "data", "s1/a.nii"), tree(tmp_path / "far", "b.nii", "deep/c.nii")
    links = {"s1/up": data, "s1/self": data / "s1", "latest": data / "s1", "s2": far, "s3": far, "s4": far / "deep"}
    for name, goal in links.items():
        (data / name).symlink_to(goal)
    (far / "back").symlink_to(data)
    (far / "deep" / "circle").symlink_to(far)
    assert scan_files(data)[0] == ["s1/a.nii", "s2/b.nii", "s2/deep/c.nii"]


def test_a_link_to_a_folder_above_a_visited_one_does_not_visit_it_again(tmp_path):
    data, far = tree(tmp_path / "up/data", "s1/a.nii"), tree(tmp_path / "far", "b.nii", "deep/c.nii")
    for name, goal in {"s2": far / "deep", "s3": far, "s4": tmp_path / "up"}.items():
        (data / name).symlink_to(goal)
    assert scan_files(data)[0] == ["s1/a.nii", "s2/c.nii", "s3/b.nii"]


def test_links_are_followed_and_broken_links_are_reported(tmp_path):
    store = tree(tmp_path / "store", "x.nii", "y.nii")
    data = tree(tmp_path / "data", "s1/b.nii", "s2/b.nii")
    (data / "s1/a.nii").symlink_to(store / "x.nii")
    (data / "s2/a.nii").symlink_to(store / "gone.nii")
    (data / "s3").symlink_to(tree(tmp_path / "elsewhere", "a.nii", "b.nii"))
    rows, remarks = found(data, OWN)
    assert rows == [("s1", "s1/a.nii", "s1/b.nii"), ("s3", "s3/a.nii", "s3/b.nii")]
    assert remarks[0] == "Links to nothing: 1, such as s2/a.nii; fetch them."
    assert "no file of a: s2" in remarks[1]


def test_folders_that_cannot_be_listed_are_reported(tmp_path, monkeypatch):
    tree(tmp_path, "s1/a.nii", "s1/b.nii", "s2/a.nii")
    scandir = os.scandir

    def closed(place):
        if Path(place).name == "s2":
            raise PermissionError(13, "Permission denied", str(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", closed)
    assert found(tmp_path, OWN)[1] == [f"{tmp_path / 's2'} could not be listed and was skipped; check its permissions."]


# Custom patterns


def test_a_custom_pattern_may_have_sessions_and_splits(tmp_path):
    tree(
        tmp_path,
        *(
            f"{split}/{who}/{day}/{kind}.nii"
            for split, who in (("val", "x"), ("test", "y"))
            for day in ("d1", "d2")
            for kind in ("a", "b")
        ),
    )
    pattern = r"(?P<split>\w+)/(?P<subject>\w+)/(?P<session>\w+)/(?P<kind>\w+)\.nii"
    pairs, _ = pairs_from_folder(tmp_path, "ixi", pattern=pattern, source="a", target="b")
    assert [(pair.subject, pair.split, pair.source.parent.name) for pair in pairs] == [
        ("x", "val", "d1"),
        ("x", "val", "d2"),
        ("y", "test", "d1"),
        ("y", "test", "d2"),
    ]


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (r"(?P<kind>.*)\.nii", "has no group named subject; write it as"),
        (r"x\.nii", "has no group named subject and kind"),
        (r"(?P<subject>(?P<kind>x)", "is not a Python regular expression"),
        (r"(?P<subject>a)(?P<kind>b){999999999999999999999}", "is not a Python regular expression"),
        ("(?P<subject>a)(?P<kind>b)" + "x" * 1000, "A pattern of 1025 characters is refused"),
        (r"(?P<subject>a)(?P<kind>[[b])", "none is named like those of layout bids"),
    ],
)
def test_patterns_that_cannot_be_used_are_refused(tmp_path, pattern, said):
    assert said in complaint(tree(tmp_path, "s1/a.nii"), pattern=pattern)


# Splits


def test_new_subjects_do_not_change_the_splits_of_others(tmp_path):
    names = [f"s{i}/{kind}.nii" for i in range(60) for kind in "ab"]
    before = {pair.subject: pair.split for pair in pairs_from_folder(tree(tmp_path, *names), OWN, seed=5)[0]}
    tree(tmp_path, "a0/a.nii", "a0/b.nii", "zz/a.nii", "zz/b.nii")
    after = {pair.subject: pair.split for pair in pairs_from_folder(tmp_path, OWN, seed=5)[0]}
    assert len(after) == 62
    assert before.items() <= after.items()
    assert before != {pair.subject: pair.split for pair in pairs_from_folder(tmp_path, OWN, seed=6)[0]}


def test_no_split_is_empty(tmp_path):
    tree(tmp_path, *(f"s{i}/{kind}.nii" for i in range(6) for kind in "ab"))
    seed = next(s for s in range(100) if {split_of(f"s{i}", s) for i in range(6)} == {"train"})
    pairs, remarks = pairs_from_folder(tmp_path, OWN, seed=seed)
    assert sorted(pair.split for pair in pairs) == ["test", *["train"] * 4, "val"]
    assert remarks == []


def test_too_few_subjects_for_three_splits_all_go_to_train(tmp_path):
    pairs, remarks = pairs_from_folder(tree(tmp_path, *(f"s{i}/{kind}.nii" for i in range(2) for kind in "ab")), OWN)
    assert [pair.split for pair in pairs] == ["train", "train"]
    assert remarks[0] == "The splits train, val, test need at least 3 subjects, got 2. All of them are in train."


def test_a_patient_in_two_folders_of_splits_is_refused(tmp_path):
    tree(
        tmp_path,
        *(f"{split}/{k}/p_{k[:-3] or 5}_{k[-3:]}.nii" for split in ("train", "val") for k in ("5NAC",)),
        *(f"{split}/100AC/p_100_AC.nii" for split in ("train", "val")),
    )
    assert "Subjects in two splits: 1 (p)" in complaint(tmp_path, "madm")


# Refusals


def test_folders_without_matching_scans_are_refused_with_examples(tmp_path):
    assert "is not a folder" in complaint(tmp_path / "gone")
    assert "holds no scan (NIfTI, MetaImage, NRRD or DICOM) but no file at all" in complaint(tmp_path)
    tree(tmp_path, "a.txt", "b/c.dcm")
    assert "but 2 other files, such as a.txt, b/c.dcm" in complaint(tmp_path)
    tree(tmp_path, *(f"{name}.nii" for name in "defgh"))
    message = complaint(tmp_path)
    assert "of 5 scans, such as d.nii, e.nii, f.nii, none is named like those of layout bids: (?P<subject>" in message


def test_invalid_options_are_refused(tmp_path):
    tree(tmp_path, "s1/a.nii", "s1/b.nii")
    assert "There is no layout 'BIDS'; choose one of bids, bids-pet" in complaint(tmp_path, "BIDS")
    assert "translates 'a' to 'a'; name two different kinds" in complaint(tmp_path, OWN, target="a")
    assert "found a (1), b (1)" in complaint(tmp_path, OWN, target="c")
    assert "add up to 1; got (0.5, 0.1, 0.1)" in complaint(tmp_path, OWN, fractions=(0.5, 0.1, 0.1))


def test_invalid_subject_and_split_names_are_refused(tmp_path):
    tree(tmp_path, "x/y/a.nii", "x/y/b.nii")
    assert "subject 'x/y' cannot name a file" in complaint(tmp_path, OWN, pattern=r"(?P<subject>.*)/(?P<kind>.)\.nii")
    pattern = r"(?P<split>\w+)/(?P<subject>.*)/(?P<kind>.)\.nii"
    assert "split 'x' is not one of train, val, test" in complaint(tmp_path, OWN, pattern=pattern)


def test_the_dose_table_must_have_a_row_for_every_visit(tmp_path):
    data = tree(
        tmp_path / "data", *(f"s{i}/{day}/{kind}.nii" for i in (1, 2) for day in ("d1", "d2")[:i] for kind in "ab")
    )
    table = tmp_path / "doses.csv"
    table.write_text("subject,weight_kg,dose_bq,minutes\ns1,70,2e8,60\ns2,70,2e8,60\n")
    layout = replace(OWN, patterns=(r"(?P<subject>\w+)/(?P<session>\w+)/(?P<kind>[ab])\.nii",))
    # One row cannot describe two injections.
    assert "doses.csv has no row for s2 d1, s2 d2" in complaint(data, layout, suv_table=table)
    table.write_text("subject,session,weight_kg,dose_bq,minutes\ns1,,70,2e8,60\ns2,d1,70,2e8,60\ns2,d2,70,1e8,60\n")
    factors = [pair.suv_factor for pair in pairs_from_folder(data, layout, suv_table=table)[0]]
    assert factors == [suv_factor(70, 2e8, 3600), suv_factor(70, 2e8, 3600), suv_factor(70, 1e8, 3600)]
    table.write_text("subject,weight_kg\n")
    assert "column 'dose_bq' is missing" in complaint(data, layout, suv_table=table)


def test_pairs_are_equal_after_writing_and_reading_a_manifest(tmp_path):
    data = tree(tmp_path / "data", *(f"s{i}/{kind}.nii" for i in range(5) for kind in "ab"))
    pairs, _ = pairs_from_folder(data, OWN)
    write_manifest(tmp_path / "pairs.csv", pairs)
    assert read_manifest(tmp_path / "pairs.csv") == pairs
    with open(tmp_path / "pairs.csv", newline="") as stream:
        assert next(csv.DictReader(stream))["source"] == "data/s0/a.nii"


def test_a_folder_with_many_files_is_walked_only_once(tmp_path, monkeypatch):
    tree(tmp_path, *(f"s{i}/{kind}.nii" for i in range(200) for kind in "ab"))
    passes = []
    walk = os.walk
    monkeypatch.setattr(os, "walk", lambda *args, **options: passes.append(args) or walk(*args, **options))
    assert len(pairs_from_folder(tmp_path, OWN)[0]) == 200
    assert passes == [(Path(tmp_path),)]


def test_importing_the_layouts_does_not_import_torch():
    """Import the module under an empty `ppdm` package, so that only its own imports count."""
    code = (
        "import sys, types; package = sys.modules['ppdm'] = types.ModuleType('ppdm'); package.__path__ = ['ppdm']\n"
        "import ppdm.data.layouts; sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_scans_of_other_formats_and_dicom_folders_are_found(tmp_path):
    for name in ("p1/t1.mha", "p1/t2.nrrd", "p1/t2.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for kind in ("t1", "t2"):
        (tmp_path / "p2" / kind).mkdir(parents=True)
        for k in range(3):
            (tmp_path / "p2" / kind / f"IM{k}").write_bytes(bytes(128) + b"DICM")
    (tmp_path / "p2" / "notes.txt").touch()
    assert scan_files(tmp_path) == (["p1/t1.mha", "p1/t2.nrrd", "p2/t1", "p2/t2"], ["p1/t2.raw", "p2/notes.txt"], [])
    assert scan_files(tmp_path / "p2" / "t1") == (["."], [], [])
    pattern = r"(?P<subject>p\d)/(?P<kind>t1|t2)(?:\.mha|\.nrrd)?"
    pairs, _ = pairs_from_folder(tmp_path, "bids", pattern=pattern, source="t1", target="t2")
    assert [(pair.source, pair.target) for pair in pairs] == [
        (tmp_path / "p1/t1.mha", tmp_path / "p1/t2.nrrd"),
        (tmp_path / "p2/t1", tmp_path / "p2/t2"),
    ]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".mha", ".nrrd", ""])
def test_a_preset_finds_scans_of_every_format(tmp_path, suffix):
    for kind in ("mr", "ct", "mask"):
        place = tmp_path / "Task1" / "brain" / "1BA001" / f"{kind}{suffix}"
        if not suffix:
            place.mkdir(parents=True)
            place /= "IM1"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(bytes(128) + b"DICM")
    (pair,), _ = pairs_from_folder(tmp_path, "synthrad2023")
    assert (pair.source.name, pair.target.name, pair.mask.name) == (f"mr{suffix}", f"ct{suffix}", f"mask{suffix}")

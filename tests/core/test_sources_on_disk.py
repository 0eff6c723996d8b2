"""Several sources in files: manifests, checks, training, checkpoints, evaluation and translation."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from three_sources import NAMES, scan, sources, three_sources
from tiny_training import TINY, manifest

import ppdm
from ppdm import Method
from ppdm.checkpoint import CheckpointError, Trained
from ppdm.data.checking import check_pair, check_pairs
from ppdm.data.manifest import ManifestError, Pair, load_pair, manifest_faults, read_manifest, write_manifest
from ppdm.data.matching import MatchError, fixed_folder, matched
from ppdm.data.normalise import percentile_range
from ppdm.data.pairs import PairsError, TrainingSet
from ppdm.data.volume import VolumeError, read_volume
from ppdm.evaluation.evaluate import check_kind, predict, untranslated
from ppdm.evaluation.subjects import CaseError, files_of, read_case
from ppdm.training.run import RunError
from ppdm.translation import TranslationError, translate, translate_volume


def rewritten(path: Path, *changes: tuple[str, str]) -> Path:
    text = path.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    return path


# Manifests


def test_a_manifest_has_a_column_for_each_source_in_their_order(tmp_path: Path) -> None:
    pairs = read_manifest(three_sources(tmp_path))
    assert [*pairs[1].sources] == [*NAMES]
    assert pairs[1].source == pairs[1].sources["t1n"] == tmp_path / "s1_t1n.nii.gz"
    assert pairs[1].scans == tuple(tmp_path / f"s1_{name}.nii.gz" for name in (*NAMES, "flair"))
    assert not pairs[1].extra
    write_manifest(tmp_path / "again.csv", pairs)
    assert read_manifest(tmp_path / "again.csv") == pairs
    head = (tmp_path / "again.csv").read_text().splitlines()[0]
    assert head == "subject,split,source.t1n,source.t1c,source.t2w,target"


def test_a_single_source_may_have_a_name(tmp_path: Path) -> None:
    pairs = read_manifest(three_sources(tmp_path, ("t2w",)))
    assert pairs[0].sources == {"t2w": tmp_path / "s0_t2w.nii.gz"}
    assert Pair("s", "train", Path("a"), Path("b")).sources == {"source": Path("a")}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ([("s1_t1c.nii.gz", "")], "line 3: source.t1c is empty"),
        ([("s1_t1c.nii.gz,", "")], "line 3: 5 cells, expected 6"),
        ([("source.t1c", "source.t1n")], "line 1: column 'source.t1n' appears twice"),
        ([("source.t1c", "source")], "column 'source' stands beside 'source.t1n'; give one column source"),
        ([("source.t1c", "source.mean")], "line 1: a source is named by letters.* and not 'mean'; got 'mean'"),
        ([("source.t1c", "source.")], "a source is named by letters.* got ''"),
        ([("s2_t1c", "s2_t2w")], "line 4: source.t1c and source.t2w are the same file, s2_t2w.nii.gz"),
        ([("s2_flair", "s2_t2w")], "line 4: source.t2w and target are the same file"),
        ([("s2_t1c", "gone")], "line 4: source.t1c gone.nii.gz is not a file"),
        ([("s4_t1c", "s0_t1c")], "line 6: file .*s0_t1c.nii.gz' is in test here and in train on line 2"),
    ],
)
def test_a_faulty_manifest_is_refused(tmp_path: Path, changes: list[tuple[str, str]], sentence: str) -> None:
    path = rewritten(three_sources(tmp_path), *changes)
    with pytest.raises(ManifestError, match=sentence.replace("nii.gz'", "nii.gz")):
        read_manifest(path)
    assert manifest_faults(path)[1]


def test_pairs_with_different_sources_are_refused_for_writing_and_training(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    pairs = [*read_manifest(three_sources(tmp_path)), *read_manifest(three_sources(tmp_path / "one", ("t1n",)))]
    with pytest.raises(ManifestError, match=r"s0 has the sources t1n, t1c, t2w, and subject s0 t1n; give all pairs"):
        write_manifest(tmp_path / "both.csv", pairs)
    assert not (tmp_path / "both.csv").exists()
    with pytest.raises(PairsError, match="give all pairs the same sources in the same order"):
        TrainingSet(pairs)


def test_sources_on_other_grids_are_resampled_only_if_asked(tmp_path: Path) -> None:
    path = three_sources(tmp_path)
    scan(tmp_path / "s0_t2w.nii.gz", sources(0, (6, 6, 6))["t2w"], (4.0, 4.0, 4.0))
    pair = read_manifest(path)[0]
    with pytest.raises(VolumeError, match=r"s0_t1n\.nii\.gz.*s0_t2w\.nii\.gz"):
        load_pair(pair)
    with pytest.raises(VolumeError):
        TrainingSet.from_manifest(path)
    loaded = load_pair(pair, resample=True)
    assert [volume.data.shape for volume in loaded] == [(12, 12, 12)] * 4
    assert TrainingSet.from_manifest(path, resample=True)[0][0].shape == (3, 12, 12, 12)


def test_every_source_is_checked(tmp_path: Path) -> None:
    pairs = read_manifest(three_sources(tmp_path))
    found = check_pairs(pairs)
    assert found.sound
    assert [*found.reports[0].scans] == [*NAMES, "target"]
    assert found.reports[0].source is found.reports[0].sources["t1n"]
    scan(tmp_path / "s0_t1c.nii.gz", np.zeros((12, 12, 12), np.float32))
    scan(tmp_path / "s0_t2w.nii.gz", sources(0, (6, 6, 6))["t2w"], (4.0, 4.0, 4.0))
    empty, grid = check_pair(pairs[0]).faults
    assert "s0_t1c.nii.gz" in empty
    assert "s0_t2w.nii.gz" in grid
    report = check_pair(pairs[0], resample=True)
    assert [remark for remark in report.remarks if "resampled" in remark and "s0_t2w" in remark]
    scan(tmp_path / "s1_t2w.nii.gz", sources(1)["t1c"])
    (same,) = check_pair(pairs[1]).faults
    assert "s1_t1c.nii.gz and" in same
    assert "s1_t2w.nii.gz hold the same voxels" in same


def test_each_source_is_scaled_by_its_own_percentiles(tmp_path: Path) -> None:
    training_set = TrainingSet.from_manifest(three_sources(tmp_path))
    source, target = training_set[1]
    assert (source.shape, target.shape) == ((3, 12, 12, 12), (12, 12, 12))
    for scaled, raw in zip(source, sources(1).values(), strict=True):
        np.testing.assert_allclose(scaled, percentile_range(raw).forward(raw), atol=1e-4)
    assert training_set.sources == NAMES


# Training and checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    folder = tmp_path_factory.mktemp("trained")
    path = three_sources(folder)
    return path, ppdm.train(path, folder / "run", method=TINY, steps=3, validate_every=2, bridge_from="t2w")


def test_a_checkpoint_stores_the_source_names_their_order_and_the_bridge_start(trained: tuple[Path, Trained]) -> None:
    folder = trained[0].parent
    again = ppdm.load(folder / "run")
    assert again.method == replace(TINY, sources=NAMES, bridge_from="t2w")
    content = json.loads((folder / "run" / "model.json").read_text())
    assert content["method"]["sources"] == [*NAMES]
    assert (folder / "run" / "best" / "model.json").exists()
    options = {"method": TINY, "steps": 3, "validate_every": 2, "resume": True}
    assert ppdm.train(trained[0], folder / "run", bridge_from="t2w", **options).steps == 3  # no steps are left
    with pytest.raises(RunError):
        ppdm.train(trained[0], folder / "run", **options)  # it would start from the mean


def test_a_training_with_unknown_sources_is_refused_and_leaves_no_files(tmp_path: Path) -> None:
    path, out = three_sources(tmp_path), tmp_path / "run"
    with pytest.raises(ValueError, match="from the mean or from one of t1n, t1c, t2w, got 't1'"):
        ppdm.train(path, out, method=TINY, steps=1, bridge_from="t1")
    with pytest.raises(ValueError, match=r"2 sources \(a, b\), and the pairs have 3 sources \(t1n, t1c, t2w\)"):
        ppdm.train(path, out, method=TINY.with_sources(["a", "b"]), steps=1)
    assert not out.exists()


def test_initial_weights_of_other_sources_are_refused(trained: tuple[Path, Trained], tmp_path: Path) -> None:
    run = trained[0].parent / "run"
    path = three_sources(tmp_path, ("t1c", "t1n", "t2w"))
    with pytest.raises(
        CheckpointError, match=r"3 sources \(t1n, t1c, t2w\), and this training has 3 sources \(t1c, t1n"
    ):
        ppdm.train(path, tmp_path / "run", method=TINY, steps=1, init_from=run)
    ppdm.train(trained[0], tmp_path / "next", method=TINY, steps=1, init_from=run)


# Evaluation


def test_sources_are_matched_by_name_in_evaluation(trained: tuple[Path, Trained], tmp_path: Path) -> None:
    path, one = trained
    wanted = ppdm.evaluate(one, path)
    assert wanted["s4"]["psnr"] == pytest.approx(ppdm.evaluate(one, three_sources(tmp_path, NAMES[::-1]))["s4"]["psnr"])
    pair = read_manifest(path)[-1]
    case = read_case(files_of([pair])[0])
    assert [*case.inputs] == [*NAMES]
    files = {name: str(file) for name, file in pair.sources.items()}
    translate(one, files, tmp_path / "made.nii.gz")
    np.testing.assert_array_equal(predict(one, case).numpy(), read_volume(tmp_path / "made.nii.gz").data)


def test_the_input_baseline_is_the_mean_of_the_scaled_sources(trained: tuple[Path, Trained]) -> None:
    path, one = trained
    case = read_case(files_of(read_manifest(path)[:1])[0])
    scaled = np.mean([percentile_range(raw).forward(raw) for raw in sources(0).values()], axis=0)
    wanted = one.scaling.target.inverse(scaled)  # type: ignore[union-attr]
    np.testing.assert_allclose(untranslated(one.scaling, case).numpy(), wanted, rtol=1e-4)


def test_evaluation_on_pairs_with_other_sources_is_refused(trained: tuple[Path, Trained], tmp_path: Path) -> None:
    three = files_of(read_manifest(trained[0]))
    one = files_of(read_manifest(manifest(tmp_path)))
    single = ppdm.train(tmp_path / "pairs.csv", tmp_path / "run", method=TINY, steps=1)
    with pytest.raises(CaseError, match=r"runs/a was trained on 3 sources \(t1n, t1c, t2w\), but s0 has one source"):
        check_kind(trained[1], one, "runs/a")
    with pytest.raises(CaseError, match=r"trained on one source, but s0 has 3 sources \(t1n, t1c, t2w\)"):
        check_kind(single, three, "runs/b")


# Translation


def test_translation_takes_the_sources_by_name(trained: tuple[Path, Trained], tmp_path: Path) -> None:
    path, one = trained
    files = {name: path.parent / f"s4_{name}.nii.gz" for name in NAMES}
    (made,) = translate(one, dict(reversed(files.items())), tmp_path / "out.nii.gz")
    assert (made.source, made.fault) == (files["t1n"], "")
    stacked = torch.from_numpy(np.stack([read_volume(file).data for file in files.values()]))
    np.testing.assert_array_equal(read_volume(made.output).data, translate_volume(one, stacked).numpy())
    np.testing.assert_array_equal(read_volume(made.output).geometry.affine, read_volume(files["t1n"]).geometry.affine)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ("t1n", "t2w"),
            r"3 sources \(t1n, t1c, t2w\), but t1c is missing; give --source t1n=FILE --sou",
        ),
        (("t1n", "t1c", "t2w", "flair"), "but flair is unknown"),
        (("t1n", "t1c", "flair"), "flair is unknown, t2w is missing"),
    ],
)
def test_translation_with_missing_or_unknown_sources_is_refused(
    trained: tuple[Path, Trained], tmp_path: Path, given: tuple[str, ...], sentence: str
) -> None:
    path, one = trained
    with pytest.raises(TranslationError, match=sentence):
        translate(one, {name: path.parent / f"s4_{name}.nii.gz" for name in given}, tmp_path / "out.nii.gz")
    assert not [*tmp_path.iterdir()]


def test_a_single_input_or_volume_is_refused_by_a_method_with_three_sources(
    trained: tuple[Path, Trained], tmp_path: Path
) -> None:
    path, one = trained
    with pytest.raises(TranslationError, match=r"trained on 3 sources .* got one input, .*s0_t1n.nii.gz; give each"):
        translate(one, path.parent / "s0_t1n.nii.gz", tmp_path / "out.nii.gz")
    for shape in ((12, 12, 12), (2, 12, 12, 12)):
        with pytest.raises(TranslationError, match=r"the volumes \(S, D, H, W\) of 3 sources \(t1n, t1c, t2w\), got"):
            translate_volume(one, torch.rand(shape))


def test_translation_resamples_only_if_asked(trained: tuple[Path, Trained], tmp_path: Path) -> None:
    path, one = trained
    other = scan(tmp_path / "coarse.nii.gz", sources(4, (6, 6, 6))["t2w"], (4.0, 4.0, 4.0))
    files = {"t1n": path.parent / "s4_t1n.nii.gz", "t1c": path.parent / "s4_t1c.nii.gz", "t2w": other}
    with pytest.raises(VolumeError, match=r"s4_t1n\.nii\.gz.*coarse\.nii\.gz"):
        translate(one, files, tmp_path / "out.nii.gz")
    assert not (tmp_path / "out.nii.gz").exists()
    translate(one, files, tmp_path / "out.nii.gz", resample=True)
    assert read_volume(tmp_path / "out.nii.gz").data.shape == (12, 12, 12)


def test_folders_are_translated_by_a_pattern_for_each_source(trained: tuple[Path, Trained], tmp_path: Path) -> None:
    path, one = trained
    scans = tmp_path / "in [1]"  # a name with characters that glob would read as a set
    for subject in ("s0", "s3"):
        (scans / subject).mkdir(parents=True)
        for name in NAMES:
            scan(scans / subject / f"{name}.nii.gz", read_volume(path.parent / f"{subject}_{name}.nii.gz").data)
    patterns = {name: scans / "*" / f"{name}.nii.gz" for name in NAMES}
    made = translate(one, patterns, tmp_path / "out")
    assert [one.output for one in made] == [tmp_path / "out" / s / "t1n.nii.gz" for s in ("s0", "s3")]
    for each, subject in zip(made, ("s0", "s3"), strict=True):
        translate(
            one,
            {name: scans / subject / f"{name}.nii.gz" for name in NAMES},
            tmp_path / "single.nii.gz",
            overwrite=True,
        )
        np.testing.assert_array_equal(read_volume(each.output).data, read_volume(tmp_path / "single.nii.gz").data)
    (scans / "s3" / "t1c.nii.gz").unlink()
    with pytest.raises(TranslationError, match="s3 has no t1c; every scan needs all of t1n, t1c, t2w"):
        translate(one, patterns, tmp_path / "other")
    with pytest.raises(TranslationError, match=r"t2w is one path, .* beside patterns"):
        translate(one, patterns | {"t2w": scans / "s0" / "t2w.nii.gz"}, tmp_path / "other")
    with pytest.raises(TranslationError, match=r"no path matches .*, the pattern of t2w"):
        translate(one, patterns | {"t2w": scans / "*" / "t2.nii.gz"}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_scans_match_if_the_stars_of_their_patterns_stand_for_the_same_text(tmp_path: Path) -> None:
    for name in ("a/x-1_T1.nii", "a/x-1_T2.nii", "b/y_T1.nii", "b/y_T2.nii", "b/z_T3.nii"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = matched({kind: tmp_path / "*" / f"*_{kind}.nii" for kind in ("T1", "T2")})
    assert [one["T2"].name for one in found] == ["x-1_T2.nii", "y_T2.nii"]
    assert fixed_folder(tmp_path / "*" / "*_T1.nii") == tmp_path
    with pytest.raises(
        MatchError, match=r"a/x-1 has no T3, b/y has no T3, b/z has no T1; every scan needs all of T1, T3"
    ):
        matched({kind: tmp_path / "*" / f"*_{kind}.nii" for kind in ("T1", "T3")})


def test_a_description_without_sources_means_one_source() -> None:
    assert Method.from_dict(TINY.to_dict()).sources == ("source",)

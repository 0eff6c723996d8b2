"""``ppdm-bench evaluate``: records, tables and figures for runs on pairs and for folders of predictions."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import refused, run
from matplotlib.image import imread

from ppdm import PPDM
from ppdm.checkpoint import Trained, save
from ppdm.data.manifest import read_manifest
from ppdm.data.normalise import Range
from ppdm.data.scaling import PercentileScaling, SUVScaling
from ppdm.data.volume import Volume, write_volume
from ppdm.simulation.phantom import Grid
from ppdm_bench.evaluation import candidates, pictures, scoring
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.figures.orientation import PLANES
from ppdm_bench.report.figures.quality import evaluations_figure, subjects_figure
from ppdm_bench.report.metrics import metric_name
from ppdm_bench.report.scores import by_configuration, names_of
from ppdm_bench.report.snapshot import read_snapshot
from ppdm_bench.report.tables import quality

pytestmark = pytest.mark.slow

SHAPE = (16, 14, 12)
SUBJECTS = ("s1", "s2", "s3")
METRICS = {"psnr", "ssim", "nmae", "nrmse", "sharpness", "seam_index_r2", "border_ratio_r2"}
METHOD = PPDM.with_network(width=8, multipliers=(1,))
# The variant states the differences from the registered method.
VARIANT = "r=2 network.multipliers=[1]"
NAME, FILE = f"ppdm {VARIANT}", "ppdm-r-2-network.multipliers-1"


def scan(seed, shape=SHAPE):
    return (np.random.default_rng(seed).random(shape) * 100).astype(np.float32)


def write(path: Path, array, spacing=(1.0, 1.0, 1.0)):
    path.parent.mkdir(exist_ok=True)
    volume = Volume.from_array(array, spacing)
    write_volume(path, volume.data, volume)


def make_run(folder, method=METHOD, scaling=None, weights=0.02, spacing=1.0):
    """Save an untrained run and return its folder; a network with nonzero weights adds noise to the input."""
    torch.manual_seed(0)
    network = method.build(1).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=weights) if weights else parameter.zero_()
    scaling = scaling or PercentileScaling(Range(0.0, 100.0))
    save(folder, Trained(method, network, scaling, (spacing, spacing, spacing), 7, 0))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a manifest, two runs, and three subjects whose targets differ more and more from their sources."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["subject,split,source,target"]
    for number, name in enumerate(SUBJECTS):
        source, noise = scan(number), scan(number + 10) - 50
        write(folder / f"{name}-a.nii.gz", source)
        write(folder / f"{name}-b.nii.gz", source + 0.1 * (number + 1) * noise)
        rows.append(f"{name},test,{name}-a.nii.gz,{name}-b.nii.gz")
        for kind, array in (("pred", source), ("target", source + 0.1 * (number + 1) * noise)):
            write(folder / kind / f"{name}.nii.gz", array)
    (folder / "pairs.csv").write_text("\n".join(rows))
    make_run(folder / "noisy")
    make_run(folder / "still", weights=0.0)
    return folder


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch, unrendered):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PPDM_CACHE", str(tmp_path / "cache"))


def table(folder):
    with (folder / "quality.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def done(data, tmp_path_factory):
    """One evaluation of a run with two numbers of network evaluations: its output folder and standard output."""
    out = tmp_path_factory.mktemp("done")
    code, text, err = run(
        "evaluate", data / "noisy", "--manifest", data / "pairs.csv", "--evaluations", "1,2", "--out", out
    )
    assert code == 0, err
    return out, text


def value(records, metric="psnr", **wanted):
    (found,) = (r for r in records if r.metric == metric and all(getattr(r, k) == v for k, v in wanted.items()))
    return found.value


# --- output


def test_figures_show_the_own_number_of_evaluations_of_a_method_or_else_the_largest():
    def candidate(variant, steps, own):
        return candidates.Candidate("m", variant, lambda case: case.target, {}, steps=steps, own_steps=own)

    asked = [candidate("a", 1, 2), candidate("a", 2, 2), candidate("a", 4, 2), candidate("b", 1, 250)]
    asked += [candidate("b", 25, 250), replace(candidate("c", None, None), untouched=True)]
    assert [(one.variant, one.steps) for one in candidates.candidates_to_draw(asked)] == [("a", 2), ("b", 25)]


def test_there_is_a_record_for_every_configuration_subject_and_metric(done):
    records = RecordFile(done[0] / "records.jsonl").read()
    assert len(records) == 3 * 3 * len(METRICS)  # configurations (input, two numbers of evaluations), subjects
    assert {r.metric for r in records} == METRICS
    assert {r.subject for r in records} == set(SUBJECTS)
    assert {(r.method, r.variant, r.steps) for r in records} == {
        ("input", "", None),
        ("ppdm", VARIANT, 1),
        ("ppdm", VARIANT, 2),
    }
    assert len({r.config_id for r in records}) == 3
    for record in records:
        assert (record.command, record.kind, record.status, record.device) == ("evaluate", "measured", "ok", "cpu")
        assert record.shape == SHAPE
        assert record.spacing == pytest.approx((1.0, 1.0, 1.0))
        assert record.options["convention"]["data_range"] == 100.0
        assert record.env["torch"] == torch.__version__


def test_the_psnr_of_the_input_equals_a_computation_in_numpy(data, done):
    records = RecordFile(done[0] / "records.jsonl").read()
    source, target = scan(2), scan(2) + np.float32(0.1 * 3) * (scan(12) - 50)
    low, high = np.percentile(source, (0.1, 99.9))
    error = (source - low) / (high - low) * 100 - target
    wanted = 10 * np.log10(100**2 / (error.astype(np.float64) ** 2).mean())
    assert value(records, subject="s3", method="input") == pytest.approx(wanted, abs=1e-3)


def test_no_path_of_this_machine_is_recorded(data, done):
    text = (done[0] / "records.jsonl").read_text() + (done[0] / "quality.csv").read_text()
    assert str(data.parent) not in text


def test_the_table_states_means_and_differences_with_notes(done):
    out, text = done
    for words in (
        "Quality on",
        "test, 3 subjects, 16×14×12, preset ppdm, data range 100.",
        "PSNR dB ↑",
        "seam index r=2 dB ↓",
        "border ratio r=2 dB →0",
        "network.multipliers=[1], 1",
        "network.multipliers=[1], 2",
        "Difference from input",
        "With 3 subjects, p cannot fall below 0.25",
        f"written: {out / 'records.jsonl'}",
    ):
        assert words in text, words
    records = RecordFile(out / "records.jsonl").read()
    psnr = [value(records, subject=s, steps=2) for s in SUBJECTS]
    assert f"{np.mean(psnr):.2f} ± {np.std(psnr, ddof=1):.2f}" in text
    rows = {(row["name"], row["metric"]): row for row in table(out)}
    row = rows[f"{NAME}, 2 evaluations", "psnr"]
    gains = [value(records, subject=s, steps=2) - value(records, subject=s, method="input") for s in SUBJECTS]
    assert float(row["difference"]) == pytest.approx(np.mean(gains), rel=1e-4)
    assert float(row["low"]) <= np.mean(gains) <= float(row["high"])
    assert (row["best"], row["worst"]) == (SUBJECTS[int(np.argmax(psnr))], SUBJECTS[int(np.argmin(psnr))])
    assert f"| {NAME}, 2 evaluations | 2 |" in (out / "quality.md").read_text()


def test_the_snapshot_contains_sections_and_spectra_of_the_predictions(done):
    kept = read_snapshot(done[0] / "snapshot.npz")
    predictions = kept.of("prediction")
    assert predictions
    target, records = kept.of("target")[0], (done[0] / "records.jsonl").read_text()
    for view in predictions:
        assert [spectrum.size for spectrum in view.spectra] == [(n - n % 4) // 2 + 1 for n in kept.shape]
        assert view.sections["axial"].shape == target.sections["axial"].shape
        assert f'"config_id": "{view.config_id}"' in records


def test_the_snapshot_shows_the_first_subject_of_the_manifest(data, tmp_path):
    """Not the best one, which is s1, and not the worst one, which is s3."""
    first, s1, s2, s3 = (data / "pairs.csv").read_text().splitlines()
    rows = [row.replace(",test,", f",test,{data}/").replace(".gz,", f".gz,{data}/") for row in (s2, s1, s3)]
    (tmp_path / "pairs.csv").write_text("\n".join([first, *rows]))
    assert run("evaluate", data / "still", "--manifest", tmp_path / "pairs.csv", "--out", tmp_path / "out")[0] == 0
    kept = read_snapshot(tmp_path / "out" / "snapshot.npz")
    assert kept.subject == "s2"
    source, target = scan(1), scan(1) + 0.2 * (scan(11) - 50)
    for role, volume in (("input", source), ("target", target), ("prediction", source)):  # the run changes nothing
        (view,) = kept.of(role)
        for name, plane in PLANES.items():
            pictures_of = (plane.picture(volume, index) for index in range(volume.shape[plane.through]))
            nearest = min(np.abs(view.sections[name] - picture).max() for picture in pictures_of)
            assert nearest < 0.5, f"{role}, {name}"  # of values up to 100


def test_figures_are_written_and_not_blank(done):
    names = {path.name for path in done[0].iterdir()} - {".lock"}
    stems = ("subjects", "evaluations", f"{FILE}-best", f"{FILE}-worst")
    assert names == {f"{stem}.{end}" for stem in stems for end in ("png", "pdf")} | {
        "records.jsonl",
        "quality.csv",
        "quality.tex",
        "quality.md",
        "snapshot.npz",
    }
    assert all(imread(done[0] / f"{stem}.png").std() > 0.05 for stem in stems)


def test_the_montage_shows_the_error_of_the_best_and_the_worst_subject(data, tmp_path, monkeypatch):
    drawn = {}

    def keep(rows, spacing, *, title, at):
        drawn[title] = rows
        return original(rows, spacing, title=title, at=at)

    original = pictures.draw_montage
    monkeypatch.setattr(pictures, "draw_montage", keep)
    assert run("evaluate", data / "still", "--manifest", data / "pairs.csv", "--out", tmp_path / "out")[0] == 0
    (best, rows), (worst, others) = drawn.items()
    assert "s1, best of 3 by PSNR" in best  # its target is closest to its source, which is also the prediction
    assert "s3, worst of 3 by PSNR" in worst
    assert [row.name for row in rows] == ["input", NAME, "target", "error"]
    np.testing.assert_array_equal(rows[3].array, rows[1].array - rows[2].array)
    np.testing.assert_array_equal(rows[0].array, scan(0))
    assert rows[3].window == others[3].window
    assert rows[3].window[0] == -rows[3].window[1] < 0
    assert rows[1].window == rows[2].limits


def test_a_network_of_zero_weights_scores_like_its_input(data, tmp_path):
    out = tmp_path / "out"
    assert run("evaluate", data / "still", "--manifest", data / "pairs.csv", "--out", out)[0] == 0
    records = RecordFile(out / "records.jsonl").read()
    for subject in SUBJECTS:
        same = value(records, subject=subject, method="input")
        assert value(records, subject=subject, method="ppdm") == pytest.approx(same, abs=1e-3)


def test_json_contains_only_the_records(data, tmp_path):
    words = ("--predictions", data / "pred", "--targets", data / "target", "--out", tmp_path / "out", "--json")
    code, out, err = run("evaluate", *words)
    assert code == 0
    assert len(json.loads(out)) == 3 * len(METRICS)
    assert "written: " in err


# --- several runs


def test_runs_have_distinct_names_and_are_compared_with_a_chosen_one(data, tmp_path):
    words = (data / "noisy", data / "still", "--manifest", data / "pairs.csv", "--reference", data / "still")
    code, text, err = run("evaluate", *words, "--out", tmp_path / "out")
    assert code == 0, err
    assert f"Difference from {NAME} still" in text
    compared = {(row["name"], row["reference"]) for row in table(tmp_path / "out")}
    still = f"{NAME} still"
    assert compared == {("input", still), (f"{NAME} noisy", still), (still, "")}
    assert {path.name for path in (tmp_path / "out").glob("*-best.png")} == {
        f"{FILE}-noisy-best.png",
        f"{FILE}-still-best.png",
    }


def test_rows_of_earlier_commands_stay_in_the_table(data, tmp_path):
    """Runs with the same name get distinct names across commands, and an earlier row can be the reference."""
    out = tmp_path / "out"
    make_run(tmp_path / "four", METHOD.with_factor((1, 1, 3)))
    same = ("--manifest", data / "pairs.csv", "--out", out)
    assert run("evaluate", data / "noisy", *same)[0] == 0
    code, text, err = run("evaluate", data / "still", *same, "--reference", NAME)
    assert code == 0, err
    assert "also show 1 row of earlier commands" in err
    assert f"Difference from {NAME}, subject by subject" in text
    assert {row["name"] for row in table(out)} == {"input", NAME, f"{NAME} still"}

    # Add a method with another block grid and predictions of another tool; a run that is scored again stays one row.
    four = "ppdm r=1x1x3 network.multipliers=[1]"
    code, _, err = run("evaluate", tmp_path / "four", data / "still", "--predictions", data / "pred", *same)
    assert code == 0, err
    rows = table(out)
    assert [row["name"] for row in rows if row["metric"] == "psnr"] == ["input", NAME, f"{NAME} still", four, "pred"]
    assert {row["name"] for row in rows if row["metric"] == "seam_index_r1x1x3"} == {
        "input",
        f"{NAME} still",
        four,
        "pred",
    }
    shown = [view.label for view in read_snapshot(out / "snapshot.npz").of("prediction")]
    assert shown == [NAME, f"{NAME} still", four, "pred"]


def test_rows_of_other_data_are_left_out_with_a_message(data, tmp_path):
    for name in ("pairs.csv", *(f"{subject}-{role}.nii.gz" for subject in SUBJECTS for role in "ab")):
        shutil.copy(data / name, tmp_path / name)
    words = ("--manifest", tmp_path / "pairs.csv", "--out", tmp_path / "out")
    assert run("evaluate", data / "noisy", *words)[0] == 0
    write(tmp_path / f"{SUBJECTS[0]}-b.nii.gz", scan(5))
    code, _, err = run("evaluate", data / "still", *words)
    assert code == 0, err
    assert "do not show 2 rows of earlier commands in this folder, which have other data" in err
    assert {row["name"] for row in table(tmp_path / "out")} == {"input", f"{NAME} still"}
    assert {view.label for view in read_snapshot(tmp_path / "out" / "snapshot.npz").of("prediction")} == {
        f"{NAME} still"
    }


def test_every_method_is_scored_on_the_block_grids_of_all_methods(data, tmp_path):
    make_run(tmp_path / "four", METHOD.with_factor((1, 1, 3)))
    words = (data / "noisy", tmp_path / "four", "--manifest", data / "pairs.csv", "--out", tmp_path / "out")
    assert run("evaluate", *words)[0] == 0
    records = RecordFile(tmp_path / "out" / "records.jsonl").read()
    for method in ("input", "ppdm"):
        assert {"seam_index_r2", "seam_index_r1x1x3"} <= {r.metric for r in records if r.method == method}


def test_runs_with_different_data_ranges_need_the_option_data_range(data, tmp_path):
    other = make_run(tmp_path / "other", scaling=PercentileScaling(Range(0.0, 50.0)))
    words = ("evaluate", data / "noisy", other, "--manifest", data / "pairs.csv", "--out", tmp_path / "out")
    assert "different ranges" in (said := refused(1, *words))
    assert "--data-range" in said
    code, text, _ = run(*words, "--data-range", "80")
    assert code == 0
    assert "data range 80." in text


# --- folders of predictions


def test_files_of_folders_are_matched_by_name(data, tmp_path):
    words = ("--predictions", data / "pred", "--targets", data / "target", "--sources", data / "pred")
    mask = np.zeros(SHAPE, np.float32)
    mask[6:10, 6:8, 6] = 1
    for name in SUBJECTS:
        write(tmp_path / "masks" / f"{name}.nii", mask)
    code, text, err = run("evaluate", *words, "--masks", tmp_path / "masks", "--data-range", "100", "--out", "out")
    assert code == 0, err
    assert "Difference from input" in text
    records = RecordFile("out/records.jsonl").read()
    error = (np.float32(0.2) * (scan(11) - 50))[mask > 0]
    wanted = 10 * np.log10(100**2 / (error.astype(np.float64) ** 2).mean())
    assert value(records, subject="s2", method="pred") == pytest.approx(wanted, abs=1e-3)


def test_pet_in_folders_is_scored_in_suv(data):
    words = ("--predictions", data / "pred", "--targets", data / "target", "--suv-factor", "0.01")
    assert run("evaluate", *words, "--out", "out")[0] == 0
    records = RecordFile("out/records.jsonl").read()
    assert records[0].options["convention"]["data_range"] == 20.0
    error = 0.01 * 0.1 * (scan(10) - 50)
    wanted = 10 * np.log10(20**2 / (error.astype(np.float64) ** 2).mean())
    assert value(records, subject="s1") == pytest.approx(wanted, abs=1e-2)


def test_folders_with_the_same_name_get_distinct_names(data, tmp_path):
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "pred").symlink_to(data / "pred")
    words = ("--predictions", tmp_path / "one" / "pred", "--predictions", tmp_path / "two" / "pred")
    code, text, _ = run("evaluate", *words, "--targets", data / "target", "--out", "out")
    assert code == 0
    assert "Difference from pred one" in text
    assert "pred two" in text


def test_files_without_a_counterpart_are_refused_by_name(data, tmp_path):
    words = ("--targets", data / "target", "--out", tmp_path / "out")
    for name in ("s1", "s2", "s9"):
        write(tmp_path / "pred" / f"{name}.nii", scan(0))
    said = refused(1, "evaluate", "--predictions", tmp_path / "pred", *words)
    assert "1 of the files in" in said
    assert "(s3)" in said
    write(tmp_path / "pred" / "s3.nii", scan(0))
    assert "(s9)" in refused(1, "evaluate", "--predictions", tmp_path / "pred", *words)
    write(tmp_path / "pred" / "s3.nii.gz", scan(0))
    assert "s3.nii and s3.nii.gz; remove one" in refused(1, "evaluate", "--predictions", tmp_path / "pred", *words)
    (tmp_path / "none").mkdir()
    assert "holds no scan" in refused(1, "evaluate", "--predictions", tmp_path / "none", *words)
    assert "is not a folder" in refused(1, "evaluate", "--predictions", tmp_path / "nowhere", *words)
    assert not (tmp_path / "out").exists()


# --- an error in one subject does not affect the others


def test_a_prediction_on_another_grid_is_a_row_with_a_reason(data, tmp_path):
    for name in SUBJECTS:
        write(tmp_path / "pred" / f"{name}.nii.gz", scan(0), (1.0, 1.0, 2.0 if name == "s2" else 1.0))
    code, text, err = run(
        "evaluate", "--predictions", tmp_path / "pred", "--targets", data / "target", "--out", tmp_path / "out"
    )
    assert code == 1
    assert "s2; pred; psnr, ssim, nmae and 4 more: The target of s2 and" in err
    assert "must share one grid" in err
    assert "(n=2)" in text
    assert "7 values could not be computed" in text
    records = RecordFile(tmp_path / "out" / "records.jsonl").read()
    assert {r.status for r in records if r.subject == "s2"} == {"error"}
    assert {r.status for r in records if r.subject != "s2"} == {"ok"}


def test_volumes_smaller_than_the_ssim_window_lack_only_ssim(data, tmp_path):
    for folder, seed in (("pred", 0), ("target", 1)):
        write(tmp_path / folder / "s.nii.gz", scan(seed, (8, 12, 12)))
    code, text, err = run(
        "evaluate", "--predictions", tmp_path / "pred", "--targets", tmp_path / "target", "--out", tmp_path / "out"
    )
    assert code == 1
    assert "s; pred; ssim: SSIM's window of 11×11×11 voxels does not fit into (8, 12, 12)" in err
    assert "failed" in text
    assert (tmp_path / "out" / "pred-best.png").exists()
    assert not (tmp_path / "out" / "pred-worst.png").exists()  # the only subject is both the best and the worst


def test_a_table_is_written_even_if_nothing_can_be_scored(data, tmp_path):
    write(tmp_path / "pred" / "s.nii.gz", scan(0), (2.0, 1.0, 1.0))
    write(tmp_path / "target" / "s.nii.gz", scan(1))
    code, text, _ = run(
        "evaluate", "--predictions", tmp_path / "pred", "--targets", tmp_path / "target", "--out", "out"
    )
    assert code == 1
    assert text.count("failed") == len(METRICS)
    assert {path.name for path in Path("out").iterdir()} - {".lock"} == {
        *("records.jsonl", "quality.csv", "quality.md", "quality.tex")
    }


# --- repeated commands


def test_earlier_scores_are_not_computed_again(data, tmp_path, monkeypatch):
    env = {"dirty": False, "commit": "c"}
    monkeypatch.setattr("ppdm_bench.environment.environment", lambda: dict(env))
    for kind in ("pred", "target"):
        for name in SUBJECTS:
            (tmp_path / kind).mkdir(exist_ok=True)
            (tmp_path / kind / f"{name}.nii.gz").write_bytes((data / kind / f"{name}.nii.gz").read_bytes())
    scored = []
    original = scoring.scores
    monkeypatch.setattr(scoring, "scores", lambda *given: scored.append(given[2].name) or original(*given))
    words = (
        "evaluate",
        "--predictions",
        "pred",
        "--targets",
        "target",
        "--out",
        "out",
        "--json",
        "--data-range",
        "100",
    )
    first = run(*words)[1]
    assert scored == list(SUBJECTS)
    lines = Path("out/records.jsonl").read_text()
    assert run(*words)[1] == first
    assert scored == list(SUBJECTS)
    assert Path("out/records.jsonl").read_text() == lines
    write(tmp_path / "pred" / "s2.nii.gz", scan(5))  # another prediction with the same name
    run(*words)
    assert scored == [*SUBJECTS, "s2"]
    env["dirty"] = True
    run(*words)
    assert scored == [*SUBJECTS, "s2", *SUBJECTS]


@pytest.mark.parametrize(("room", "again"), [(1 << 20, 0), (0, 3)], ids=["kept", "no room"])
def test_figures_reuse_the_scored_predictions_that_fit_into_the_cache(room, again, data, tmp_path, monkeypatch):
    """The figures need three predictions, with two network evaluations: the best, the worst and the first subject."""
    monkeypatch.setattr(scoring, "CACHE_BYTES", room)
    made = []
    original = candidates.predict
    monkeypatch.setattr(
        candidates, "predict", lambda *given, **how: made.append(given[1].name) or original(*given, **how)
    )
    folder, manifest = make_run(tmp_path / "run"), str(data / "pairs.csv")
    code, *_ = run(
        "evaluate", str(folder), "--manifest", manifest, "--split", "test", "--evaluations", "1,2", "--out", "out"
    )
    assert code == 0
    assert len(made) == 2 * len(SUBJECTS) + again
    assert len(list(Path("out").glob("ppdm-*.png"))) == 2


# --- runs and predictions together


@pytest.mark.parametrize("with_run", [True, False])
def test_predictions_of_another_tool_are_scored_on_the_pairs_of_a_manifest(data, tmp_path, with_run):
    runs = [data / "noisy"] if with_run else []
    words = (*runs, "--manifest", data / "pairs.csv", "--predictions", data / "pred", "--reference", data / "pred")
    code, text, err = run("evaluate", *words, "--data-range", 100, "--out", tmp_path / "out")
    assert code == 0, err
    assert "Difference from pred" in text
    assert "preset ppdm" not in text
    assert "3 subjects" in text
    records = RecordFile(tmp_path / "out" / "records.jsonl").read()
    assert {r.method for r in records} == {"input", "pred"} | ({"ppdm"} if with_run else set())
    for number, subject in enumerate(SUBJECTS):
        error = 0.1 * (number + 1) * (scan(number + 10).astype(np.float64) - 50)
        wanted = 10 * np.log10(100**2 / (error**2).mean())
        assert value(records, subject=subject, method="pred") == pytest.approx(wanted, abs=1e-3)


def test_a_folder_of_predictions_may_have_extra_but_no_missing_files(data, tmp_path):
    for name in (*SUBJECTS[:2], "other"):
        write(tmp_path / "ppdm" / f"{name}.nii", scan(1))
    words = (
        "evaluate",
        "--manifest",
        data / "pairs.csv",
        "--predictions",
        tmp_path / "ppdm",
        "--out",
        tmp_path / "out",
    )
    said = refused(1, *words)
    assert "1 of 3 cases have no prediction in" in said
    assert "(s3); name each file after its case, such as" in said
    write(tmp_path / "ppdm" / "s3.nii", scan(1))
    assert run(*words)[0] == 0
    assert "is not a folder" in refused(1, *words[:4], tmp_path / "absent", *words[5:])


# --- invalid input


def test_a_split_without_subjects_is_refused(data, tmp_path):
    words = (data / "noisy", "--manifest", data / "pairs.csv", "--split", "val", "--out", tmp_path / "out")
    said = refused(1, "evaluate", *words)
    assert "no pair in the split 'val', but 0 in train, 0 in val, 3 in test" in said
    assert not (tmp_path / "out").exists()


def test_a_pet_method_is_refused_for_pairs_without_an_suv_factor(data, tmp_path):
    pet = make_run(tmp_path / "pet", scaling=SUVScaling(stored=False))
    said = refused(1, "evaluate", pet, "--manifest", data / "pairs.csv", "--out", tmp_path / "out")
    assert "trained on PET, but s1 has no suv_factor" in said


def test_a_missing_run_is_refused(data, tmp_path):
    assert "does not exist" in refused(1, "evaluate", tmp_path / "none", "--manifest", data / "pairs.csv")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "there is nothing to evaluate: give runs, folders of --predictions, or both"),
        (("RUN", "--predictions", "p", "--targets", "t"), "--targets is for --predictions only; with runs"),
        (("--predictions", "p", "--targets", "t", "--task", "pet-joint"), "only; with --manifest and --task, it comes"),
        (("RUN",), "--manifest pairs.csv, or --task with a name"),
        (("RUN", "--manifest", "a.csv", "--task", "pet-joint"), "--manifest pairs.csv, or --task with a name"),
        (("RUN", "--manifest", "a.csv", "--size", "32"), "--size is for synthetic subjects"),
        (
            ("RUN", "--manifest", "a.csv", "--targets", "t"),
            "--targets is for --predictions only; with runs, it comes from the pairs",
        ),
        (("RUN", "--task", "pet-joint", "--resample"), "give --resample with --manifest"),
        (("RUN", "--task", "ct"), "'ct' is not one of"),
        (("--predictions", "p"), "the predictions have no targets: give --targets, --manifest or --task"),
        (
            ("--predictions", "p", "--targets", "t", "--evaluations", "4"),
            "--evaluations is for runs, and only --predictions were given",
        ),
        (("RUN", "--manifest", "a.csv", "--evaluations", "0"), "at least 1"),
        (("RUN", "--manifest", "a.csv", "--split", "all"), "is not one of 'train', 'val', 'test'"),
        (("RUN", "--manifest", "a.csv", "--convention", "mine"), "'mine' is not one of 'synthrad2023'"),
        (("RUN", "--manifest", "a.csv", "--convention", "udpet", "--data-range", "2"), "fixes data range"),
        (("RUN", "--manifest", "a.csv", "--data-range", "-1"), "a positive number"),
    ],
)
def test_invalid_options_are_refused(words, sentence):
    assert sentence in refused(2, "evaluate", *words)


def test_an_unknown_reference_is_refused(data):
    words = ("--manifest", data / "pairs.csv", "--reference", "ddpm")
    assert f"there are input, {NAME}" in refused(2, "evaluate", data / "noisy", *words)


def test_the_convention_of_a_challenge_sets_the_metrics(data):
    words = ("--predictions", data / "pred", "--targets", data / "target", "--convention", "brasyn", "--out", "out")
    code, text, err = run("evaluate", *words)
    assert code == 0, err
    assert "preset brasyn" in text
    assert {r.metric for r in RecordFile("out/records.jsonl").read()} == {"ssim_non_tumour"}
    assert Path("out/pred-worst.png").exists()


def test_a_run_is_evaluated_on_the_synthetic_subjects_of_a_task(data, monkeypatch):
    made = []

    def make(recipe, subjects, **_):
        made.append((recipe.task, recipe.grid, recipe.seed, subjects))
        return read_manifest(data / "pairs.csv")

    monkeypatch.setattr("ppdm_bench.commands.pair_sources.cached_set", make)
    words = (
        "--task",
        "mri-t1t2",
        "--subjects",
        "5",
        "--size",
        "16",
        "--grid",
        "thick",
        "--data-seed",
        "3",
        "--out",
        "out",
    )
    code, text, err = run("evaluate", data / "noisy", *words)
    assert code == 0, err
    assert made == [("mri-t1t2", Grid.covering("head", 16, "thick"), 3, 5)]
    assert "Quality on mri-t1t2, test, 3 subjects" in text
    options = RecordFile("out/records.jsonl").read()[0].options
    assert options["data"]["task"].items() >= {"task": "mri-t1t2", "subjects": 5, "size": 16, "data_seed": 3}.items()


# --- tables and figures from records


def records_of(values, metric="psnr", unit="dB", **others):
    return [
        Record(metric=metric, value=v, unit=unit, kind="measured", subject=s, task="t", **others)
        for s, v in values.items()
    ]


def test_several_scans_of_a_subject_count_as_one_subject():
    records = records_of({"a/1": 10.0, "a/2": 20.0, "b": 3.0}, method="m")
    frame = quality.quality_table(records)
    assert (frame["n"][0], frame["mean"][0]) == (2, 9.0)  # mean of 15 and 3
    assert (frame["best"][0], frame["worst"][0]) == ("a/2", "b")
    assert "2 subjects" in quality.headline(records)


def test_training_costs_do_not_count_as_a_subject():
    cost = Record(metric="train_seconds", value=9.0, unit="s", kind="measured", task="t", shape=(4, 4, 4))
    records = [cost, *records_of({"a": 10.0, "b": 3.0}, method="m", shape=(8, 8, 8))]
    assert quality.headline(records) == "Quality on t, 2 subjects, 8×8×8."


def test_differences_use_the_subjects_that_both_rows_have():
    records = records_of({"a": 1.0, "b": 2.0, "c": 9.0}, method="base")
    records += records_of({"b": 5.0, "a": 2.0, "d": 0.0}, method="m", steps=4)
    frame = quality.quality_table(records, reference="base").set_index("name")
    assert frame.loc["m", "pairs"] == 2
    assert frame.loc["m", "difference"] == 2.0
    assert frame.loc["base", "reference"] == ""


def test_rows_are_compared_at_the_same_number_of_evaluations():
    records = [r for k in (1, 4) for r in records_of({"a": k, "b": k}, method="base", steps=k)]
    records += [r for k in (1, 4, 8) for r in records_of({"a": 3.0 * k, "b": 3.0 * k}, method="m", steps=k)]
    frame = quality.quality_table(records, reference="base").set_index(["method", "steps"])
    assert [frame.loc[("m", k), "difference"] for k in (1, 4, 8)] == [2.0, 8.0, 23.0]  # 8 is compared with the first


def test_the_later_of_two_records_of_a_value_counts():
    records = records_of({"a": 1.0}, method="m") + records_of({"a": 2.0}, method="m")
    assert quality.quality_table(records)["mean"][0] == 2.0
    failed = replace(records[0], value=None, status="error", reason="lost")
    frame = quality.quality_table([*records, failed])
    assert (frame["n"][0], frame["failed"][0]) == (0, 1)
    assert "failed" in quality.quality_page(frame, "t").to_text()


def test_records_of_different_data_are_refused():
    (record,) = records_of({"a": 1.0}, method="m")
    records = [record, replace(record, task="other")]
    with pytest.raises(ValueError, match="2 data sets or conventions"):
        quality.quality_table(records)


def test_series_are_named_by_their_differences():
    records = [
        *records_of({"a": 1.0}, method="x", steps=4, precision="fp32"),
        *records_of({"a": 1.0}, method="x", steps=4, precision="bf16"),
        *records_of({"a": 1.0}, method="y", steps=1),
        *records_of({"a": 1.0}, method="y", steps=2),
        *records_of({"a": 1.0}, method="z", steps=9),
    ]
    assert names_of(by_configuration(records)) == ["x, fp32", "x, bf16", "y, 1 evaluation", "y, 2 evaluations", "z"]


def test_networks_of_different_widths_are_different_rows():
    """A label of several widths has the width; otherwise the later width would replace the earlier one."""
    records = [
        replace(record, options={**record.options, "resolved": {"network": {"width": width}}})
        for width, value in ((16, 1.0), (32, 2.0))
        for record in records_of({"a": value}, method="x", variant="r=2", steps=4)
    ]
    scores = by_configuration([*records, *records_of({"a": 9.0}, method="y")])
    assert [(one.label, one.subject_means("psnr")["a"]) for one in scores] == [
        ("x r=2 width 16", 1.0),
        ("x r=2 width 32", 2.0),
        ("y", 9.0),
    ]
    assert [one.label for one in by_configuration(records[:1])] == ["x r=2"]


def test_trainings_of_different_length_are_different_rows():
    """Two trainings of one label in a folder must not replace each other in tables."""
    records = [
        replace(record, options={**record.options, "training": {"steps": steps, "seed": 0}})
        for steps, value in ((100, 1.0), (1000, 2.0))
        for record in records_of({"a": value}, method="x", variant="r=2", steps=4)
    ]
    untrained = records_of({"a": 3.0}, method="x", variant="r=2", steps=4)
    assert [(one.label, one.subject_means("psnr")["a"]) for one in by_configuration([*records, *untrained])] == [
        ("x r=2 100 training steps", 1.0),
        ("x r=2 1000 training steps", 2.0),
        ("x r=2", 3.0),
    ]


@pytest.mark.parametrize(
    ("metric", "unit", "name"),
    [
        ("psnr", "dB", "PSNR dB ↑"),
        ("ssim", "1", "SSIM ↑"),
        ("nmae", "1", "NMAE ↓"),
        ("sharpness", "1", "sharpness →1"),
        ("seam_index_r1x2x2", "dB", "seam index r=1×2×2 dB ↓"),
        ("border_ratio_r4", "dB", "border ratio r=4 dB →0"),
        ("suv_max_error", "%", "suv max error % ↓"),
    ],
)
def test_metric_names_show_unit_and_direction(metric, unit, name):
    assert metric_name(metric, unit) == name


def test_the_best_subject_follows_the_direction_of_the_metric():
    frame = quality.quality_table(records_of({"a": 0.1, "b": 0.3}, metric="nmae", unit="1", method="m"))
    assert (frame["best"][0], frame["worst"][0]) == ("a", "b")
    frame = quality.quality_table(records_of({"a": 0.1, "b": 0.3}, metric="sharpness", unit="1", method="m"))
    assert (frame["best"][0], frame["worst"][0]) == ("", "")


@pytest.mark.parametrize(("subjects", "smallest"), [(5, "0.062"), (6, "0.031")])
def test_only_with_too_few_subjects_there_is_a_note_on_the_smallest_p(subjects, smallest):
    values = {f"s{k}": float(k) for k in range(subjects)}
    records = records_of(values, method="base") + records_of({s: v + 1 for s, v in values.items()}, method="m")
    text = quality.quality_page(quality.quality_table(records, reference="base"), "t").to_text()
    assert smallest in text
    assert (f"With 5 subjects, p cannot fall below {smallest}" in text) == (subjects == 5)
    assert ("cannot fall" in text) == (subjects == 5)


def test_chosen_metrics_are_in_the_printed_table_and_all_are_in_the_data():
    records = [r for metric in ("psnr", "ssim") for r in records_of({"a": 1.0, "b": 2.0}, method="m", metric=metric)]
    page = quality.quality_page(quality.quality_table(records), "t", metrics=["ssim", "none"])
    assert "SSIM" in page.to_text()
    assert "PSNR" not in page.to_text()
    assert "There are no values of none; there are: psnr, ssim." in page.to_text()
    assert set(page.data["metric"]) == {"psnr", "ssim"}


def test_figures_draw_every_subject():
    records = records_of({"a": 1.0, "b": 2.0}, method="base")
    records += [r for k in (1, 4) for r in records_of({"a": 3.0, "b": k + 3.0}, method="m", steps=k)]
    (axes,) = subjects_figure(records, "t").axes
    dots = [sorted(dots.get_offsets()[:, 0].tolist()) for dots in axes.collections if len(dots.get_offsets())]
    assert dots == [[1.0, 2.0], [3.0, 7.0]]  # the base, and m with most evaluations
    (axes,) = evaluations_figure(records, "t").axes
    lines = [list(line.get_ydata()) for line in axes.lines]
    assert [1.5, 1.5] in lines  # mean of the base
    assert [4.0, 7.0] in lines  # subject b of m
    assert [3.5, 5.0] in lines  # mean of m
    with pytest.raises(ValueError, match="nothing to draw"):
        subjects_figure([], "t")

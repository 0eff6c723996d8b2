"""Labelled regions: their names are in a table beside the labels, and each has its bias of uptake."""

import unicodedata
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch

from ppdm.data.checking import check_pair
from ppdm.data.manifest import Pair, read_manifest, write_manifest
from ppdm.data.regions import RegionError, names_file, names_table, read_names, whole_numbers
from ppdm.data.volume import Volume
from ppdm.evaluation.evaluate import convention, scores, unit_of
from ppdm.evaluation.subjects import CaseFiles, EvaluationCase, read_case
from ppdm.metrics import PRESETS
from ppdm.simulation.generation import make_set
from ppdm.simulation.phantom import Grid
from ppdm.simulation.tasks import LABELS, REGIONS, find_task
from ppdm_bench.records import Record
from ppdm_bench.report.figures.quality import with_values
from ppdm_bench.report.metrics import metric_name
from ppdm_bench.report.tables.quality import quality_page, quality_table

SHAPE = (14, 13, 12)


def save(path, array):
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def labelled():
    """Return labels with a liver (4) and two lesions (7) that do not touch."""
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:4, 1:4, 1:4] = 4
    labels[6:8, 6:8, 6:8] = 7
    labels[10:12, 10:12, 8:10] = 7
    return labels


def pet(labels, regions, factor=1.0):
    target = torch.ones(SHAPE)
    numbers = None if labels is None else torch.from_numpy(labels.astype(np.float32))
    return EvaluationCase("s", target, None, None, Volume.from_array(target.numpy()), factor, numbers, regions)


def found(prediction, case, preset=None):
    given = scores(preset or convention(20.0), prediction, case)
    return {score.metric: score for score in given if score.metric.startswith("suv_")}


def test_names_are_read_from_the_table_beside_the_labels(tmp_path):
    path = tmp_path / "labels.nii.gz"
    assert read_names(path) is None
    names_file(path).write_bytes(names_table({4: "liver", 7: "lesion"}))
    assert read_names(path) == {4: "liver", 7: "lesion"}


def test_a_bids_table_is_read_and_its_names_are_simplified(tmp_path):
    (tmp_path / "sub-1_dseg.tsv").write_text("\ufeffindex\tname\tabbreviation\n3\tLeft kidney\tLK\n")
    assert read_names(tmp_path / "sub-1_dseg.nii") == {3: "left_kidney"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("index\tlabel\n1\tliver\n", "column 'name' is missing; found 'index', 'label'"),
        ("index,name\n1,liver\n", "column 'index' is missing; found 'index,name'"),
        ("index\tname\none\tliver\n", "line 2: .*'one'"),
        ("index\tname\n1.5\tliver\n", "line 2: .*'1.5'"),
        ("index\tname\n1\n", "line 2: 1 cells, expected 2"),
        ("index\tindex\tname\n1\t1\tliver\n", "'index' appears twice"),
        ("index\tname\n1\tliver\n1\tspleen\n", "twice"),
        ("index\tname\n1\tliver\n2\tLiver\n", "twice"),
        ("index\tname\n1\t \n", "not at all"),
        ("", "column 'index' is missing; found none"),
        (b"\xff\xfe\x00", "is not UTF-8 text; save the table of regions"),
        ("index\tname\n1\tNiere für Ä\n".encode("latin-1"), "is not UTF-8 text; save the table of regions"),
        ("index\tname\n1\tliver\n".encode("utf-16"), "is not UTF-8 text; save the table of regions"),
    ],
)
def test_malformed_region_tables_are_refused_with_a_reason(tmp_path, text, message):
    (tmp_path / "labels.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RegionError, match=message):
        read_names(tmp_path / "labels.nii.gz")


def test_each_region_has_a_bias_and_each_lesion_has_its_own():
    prediction = torch.ones(SHAPE)
    prediction[1:4, 1:4, 1:4] = 1.1
    prediction[6:8, 6:8, 6:8] = 0.5
    prediction[10, 10, 8] = 3.0  # one of the eight voxels of the second lesion
    biases = found(prediction, pet(labelled(), {4: "liver", 7: "lesion"}))
    assert biases["suv_mean_bias_liver"].value == pytest.approx(10.0, abs=1e-4)
    assert biases["suv_mean_bias_liver"].samples == ()
    assert biases["suv_mean_bias_lesion"].samples == pytest.approx((-50.0, 25.0))
    assert biases["suv_mean_bias_lesion"].value == pytest.approx(-12.5)
    assert biases["suv_max_bias_lesion"].samples == pytest.approx((-50.0, 200.0))
    assert {unit_of(metric) for metric in biases} == {"%"}


def test_regions_without_a_table_are_named_by_number_and_absent_regions_are_skipped():
    assert set(found(torch.ones(SHAPE), pet(labelled(), None))) == {
        f"suv_{which}_bias_{number}" for which in ("mean", "max") for number in (4, 7)
    }
    assert set(found(torch.ones(SHAPE), pet(labelled(), {5: "spleen", 4: "liver"}))) == {
        "suv_mean_bias_liver",
        "suv_max_bias_liver",
    }


def test_a_region_without_uptake_does_not_affect_other_regions():
    case = pet(labelled(), {4: "liver", 7: "lesion"})
    case.target[1:4, 1:4, 1:4] = 0
    biases = found(torch.ones(SHAPE), case)
    assert biases["suv_mean_bias_liver"].value is None
    assert "no positive uptake" in biases["suv_mean_bias_liver"].reason
    assert biases["suv_mean_bias_lesion"].value == 0.0


def test_only_pet_scored_by_the_projects_own_convention_has_regional_bias():
    assert not found(torch.ones(SHAPE), pet(labelled(), None, factor=None))
    assert not found(torch.ones(SHAPE), pet(None, None))
    case = replace(pet(labelled(), None), target=torch.rand(SHAPE) + 1)
    assert not found(torch.rand(SHAPE), case, PRESETS["udpet"])


def test_labels_are_read_as_whole_numbers_and_change_the_digest(tmp_path):
    target = save(tmp_path / "target.nii.gz", np.ones(SHAPE, np.float32))
    path = save(tmp_path / "labels.nii.gz", labelled())
    files = CaseFiles("s", target, suv_factor=1.0, labels=path)
    case = read_case(files)
    assert set(case.labels.unique().tolist()) == {0.0, 4.0, 7.0}
    assert case.regions is None
    assert files.digest() != CaseFiles("s", target, suv_factor=1.0).digest()


@pytest.mark.parametrize(("shift", "first"), [(0.4, 0), (0.6, 1)])
def test_labels_on_another_grid_are_read_by_nearest_neighbours(tmp_path, shift, first):
    """The voxels of the target lie by a part of a voxel after those of the labels, along every axis."""
    affine = np.eye(4)
    affine[:3, 3] = shift
    target = tmp_path / "target.nii.gz"
    nib.save(nib.Nifti1Image(np.ones([size - first for size in SHAPE], np.float32), affine), target)
    labels = save(tmp_path / "labels.nii.gz", labelled())
    case = read_case(CaseFiles("s", target, suv_factor=1.0, labels=labels), resample=True)
    assert np.array_equal(case.labels.numpy(), labelled()[first:, first:, first:])


def test_whole_labels_that_were_scaled_into_integers_are_rounded(tmp_path):
    target = save(tmp_path / "target.nii.gz", np.ones(SHAPE, np.float32))
    image = nib.Nifti1Image(labelled().astype(float), np.eye(4))
    image.header.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "labels.nii.gz")
    assert set(np.unique(nib.load(tmp_path / "labels.nii.gz").get_fdata())) != {0, 4, 7}
    case = read_case(CaseFiles("s", target, suv_factor=1.0, labels=tmp_path / "labels.nii.gz"))
    assert set(case.labels.unique().tolist()) == {0.0, 4.0, 7.0}


def test_negative_labels_are_refused(tmp_path):
    with pytest.raises(RegionError, match="whole numbers from 0 on"):
        whole_numbers(np.array([-1.0, 0.0, 2.0]), tmp_path)


@pytest.mark.parametrize(
    ("fraction", "table", "size", "said"),
    [
        (0.5, None, SHAPE, "holds values that are not whole numbers"),
        (1, "index,name\n4,liver\n", SHAPE, "labels.tsv is not a table of regions"),
        (1, None, (3, 3, 3), "must share one grid"),
    ],
)
def test_unusable_labels_are_found_by_the_check_and_other_metrics_remain(tmp_path, fraction, table, size, said):
    rng = np.random.default_rng(0)
    source, target = (save(tmp_path / name, rng.random(SHAPE).astype(np.float32)) for name in ("s.nii", "t.nii"))
    labels = save(tmp_path / "labels.nii", (labelled()[: size[0], : size[1], : size[2]] * fraction).astype("f4"))
    if table:
        (tmp_path / "labels.tsv").write_text(table)
    assert any(said in fault for fault in check_pair(Pair("s", "test", source, target, None, 1.0, labels)).faults)
    case = read_case(CaseFiles("s", target, source, suv_factor=1.0, labels=labels))
    assert case.labels is None
    found = {score.metric: score for score in scores(convention(20.0), case.target * 0.9, case)}
    assert found["psnr"].value > 0
    assert said in found["suv_mean_bias_labels"].reason


@pytest.mark.parametrize(
    ("names", "plain"),
    [
        (("肝臓", "心臓"), ["肝臓", "心臓"]),
        (("печень", "Левая почка"), ["печень", "левая_почка"]),
        (("Ä", "Ö"), ["ä", "ö"]),
        (("e\u0301", "रीढ़ की हड्डी"), ["é", "रीढ़_की_हड्डी"]),
        (("--", "?"), ["1", "2"]),
        (("Liver / left (II)", "n°1"), ["liver_left_ii", "n_1"]),
    ],
)
def test_region_names_in_any_script_are_simplified(tmp_path, names, plain):
    rows = "".join(f"{index}\t{name}\n" for index, name in enumerate(names, 1))
    (tmp_path / "labels.tsv").write_text("index\tname\n" + rows, encoding="utf-8")
    made = list(read_names(tmp_path / "labels.nii").values())
    assert made == [unicodedata.normalize("NFKC", name) for name in plain]


def test_a_manifest_has_a_labels_column_whose_files_are_checked(tmp_path):
    names = ("source", "target", "labels")
    rng = np.random.default_rng(0)
    for name in names:
        save(tmp_path / f"{name}.nii.gz", labelled() if name == "labels" else rng.random(SHAPE).astype(np.float32))
    pair = Pair("s", "test", *(tmp_path / f"{name}.nii.gz" for name in names[:2]), labels=tmp_path / "labels.nii.gz")
    write_manifest(tmp_path / "pairs.csv", [pair])
    assert "labels" in (tmp_path / "pairs.csv").read_text().splitlines()[0]
    assert read_manifest(tmp_path / "pairs.csv") == [pair]
    assert check_pair(pair).sound
    save(pair.labels, np.zeros(SHAPE, np.uint8))
    (fault,) = check_pair(pair).faults
    assert "labels.nii.gz: no voxel of the labels lies above 0" in fault


@pytest.mark.slow
def test_pet_phantoms_have_a_table_of_organ_names(tmp_path):
    recipe = find_task("pet-joint").recipe(Grid((12, 10, 10), (36.0, 36.0, 36.0)))
    (pair,) = make_set(recipe, 1, tmp_path / "set", jobs=1)
    assert pair.labels == tmp_path / "set" / "train-000" / f"{LABELS}.nii.gz"
    assert read_names(pair.labels) == REGIONS
    assert {"liver", "lesion", "grey_matter"} <= set(REGIONS.values())
    case = read_case(CaseFiles("s", pair.target, pair.source, pair.mask, pair.suv_factor, pair.labels))
    assert found(case.target * 1.1, case)["suv_mean_bias_liver"].value == pytest.approx(10.0, abs=1e-3)


def test_the_quality_table_lists_regions_separately_and_figures_omit_them():
    records = [
        Record(metric=metric, unit=unit, value=value, kind="measured", method="ppdm", subject="s1", task="t")
        for metric, unit, value in (("psnr", "dB", 30.0), ("suv_max_bias_grey_matter", "%", -4.25))
    ]
    text = quality_page(quality_table(records), "Quality.").to_markdown()
    means, regional = text.split("Bias of uptake in regions")
    assert "SUVmax" not in means
    assert "| SUVmax grey matter % →0 |" in regional
    assert "| −4.2 |" in regional
    assert with_values(records)[1] == ["psnr"]
    assert metric_name("suv_mean_bias_liver", "%") == "SUVmean liver % →0"

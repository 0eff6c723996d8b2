"""``ppdm-bench compare``: every verdict, on two sets of hand-made records."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from commands import refused, run

from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.tables.changes import Subjects, changes, changes_page, environments, to_records

GIB = 2**30


def record(value=GIB, **other):
    content = {"metric": "peak_allocated", "kind": "predicted", "method": "ppdm", "variant": "r=2", "phase": "train"}
    return Record(**content | {"value": value, "device": "cuda", "options": {"width": 8, "resolved": {"p": 1}}} | other)


def seconds(*samples, **other):
    values = {"metric": "step_seconds", "unit": "s", "kind": "measured", "samples": samples}
    return record(sorted(samples)[len(samples) // 2], **values | other)


def scores(metric, values):
    return [
        record(value, metric=metric, unit="", kind="measured", phase="", subject=f"s{k}")
        for k, value in enumerate(values)
    ]


def verdicts(old, new, **options):
    return [change.verdict for change in changes(old, new, **options)]


@pytest.mark.slow
@pytest.mark.parametrize(("now", "verdict"), [(GIB, "unchanged"), (GIB + 512, "worse"), (GIB - 512, "better")])
@pytest.mark.parametrize("how", [{"kind": "predicted"}, {"kind": "measured", "device": "cpu"}])
def test_predictions_and_cpu_memory_are_compared_exactly(now, verdict, how):
    assert verdicts([record(**how)], [record(now, **how)]) == [verdict]


@pytest.mark.parametrize(("now", "verdict"), [(1.005, "unchanged"), (1.02, "worse"), (0.98, "better")])
def test_measured_gpu_memory_is_compared_with_a_tolerance(now, verdict):
    assert verdicts([record(kind="measured")], [record(int(now * GIB), kind="measured")]) == [verdict]


TIMES = [1 + 0.01 * k for k in range(10)]


@pytest.mark.parametrize(
    ("factor", "verdict"), [(1.02, "unchanged"), (1.3, "worse"), (0.7, "better")], ids=["noise", "slower", "faster"]
)
def test_times_are_compared_as_distributions(factor, verdict):
    assert verdicts([seconds(*TIMES)], [seconds(*(factor * t for t in TIMES))]) == [verdict]


def test_medians_that_differ_within_the_noise_are_unclear():
    assert verdicts([seconds(1.0, 1.2, 3.0, 0.5)], [seconds(1.1, 2.5, 1.3, 0.6)]) == ["unclear"]


def test_a_higher_throughput_is_better():
    rate = {"metric": "matmul_flops_per_second", "unit": "FLOP/s"}
    assert verdicts([seconds(*TIMES, **rate)], [seconds(*(2 * t for t in TIMES), **rate)]) == ["better"]


@pytest.mark.parametrize(
    ("metric", "factor", "verdict"),
    [
        ("psnr", 0.8, "worse"),
        ("psnr", 1.2, "better"),
        ("psnr", 1.01, "unchanged"),
        ("nmae", 1.2, "worse"),
        ("sharpness", 1.2, "worse"),  # 1 is best, and the old values are about 1
    ],
)
def test_quality_is_compared_by_subject_in_the_direction_of_its_metric(metric, factor, verdict):
    old = [1 + 0.001 * k for k in range(8)]
    assert verdicts(scores(metric, old), scores(metric, [factor * v for v in old])) == [verdict]


def test_a_change_on_which_subjects_disagree_is_unclear():
    assert verdicts(scores("psnr", [1, 1, 1, 1]), scores("psnr", [0.2, 1.4, 0.3, 1.3])) == ["unclear"]


def test_only_subjects_in_both_sets_are_compared():
    (change,) = changes(scores("psnr", [20, 30, 99]), scores("psnr", [20, 30]))
    assert (change.verdict, change.old, change.new) == ("unchanged", 25, 25)


def evaluated(values, **other):
    """Make the records of an evaluation; each subject has its own files and shape."""
    about = {"data": {"manifest": "a/pairs.csv"}, "convention": {"preset": "ours", "data_range": 1.0}}
    common = {"metric": "psnr", "unit": "dB", "kind": "measured", "phase": "sample", "command": "evaluate", "steps": 4}
    return [
        record(value, subject=name, shape=(8, 8, 8 + n), options={**about, "files": name}, **common | other)
        for n, (name, value) in enumerate(values.items())
    ]


SCORES = {f"s{n}": 20.0 + n for n in range(6)}
LOWER = {name: value / 2 for name, value in SCORES.items()}


@pytest.mark.parametrize(
    "other",
    [
        {},
        {"command": "quality"},
        {"task": "other/pairs.csv", "options": {"data": {}, "convention": {"preset": "ours", "data_range": 1.0}}},
        {"variant": "r=4"},
        {"steps": 2},
    ],
    ids=["same", "command", "manifest", "variant", "steps"],
)
def test_evaluations_are_matched_by_method_and_subject(other):
    later = [replace(one, **other) for one in evaluated(LOWER | {"t": 3.0})]
    (change,) = changes(evaluated(SCORES | {"u": 3.0}), later)
    assert (change.verdict, change.old, change.new) == ("worse", 22.5, 11.25)
    assert change.subjects == Subjects(tuple(SCORES), ("u",), ("t",))
    text = changes_page([change], []).to_text()
    assert "Subjects compared: s0, s1, s2, s3, s4, s5\nSubjects only old: u\nSubjects only new: t\n" in text
    assert ("old: ppdm r=2" in change.how) == (other.keys() <= {"variant", "steps", "task", "options"} and other != {})
    assert to_records([change])[0].options["compare"]["subjects"]["only_new"] == ("t",)


def test_ambiguous_or_differently_measured_evaluations_are_not_matched():
    several = [*evaluated(SCORES, variant="r=4"), *evaluated(SCORES, variant="r=8")]
    assert sorted(verdicts(evaluated(SCORES), several)) == ["only new", "only new", "only old"]
    other = [replace(r, options=r.options | {"convention": {"preset": "brasyn"}}) for r in evaluated(SCORES)]
    assert verdicts(evaluated(SCORES), other) == ["only old", "only new"]
    assert verdicts(evaluated({"s0": 1.0}), evaluated({"s1": 1.0})) == ["only old", "only new"]
    assert verdicts(evaluated(SCORES), evaluated(SCORES, method="patch")) == ["only old", "only new"]


def test_rows_in_only_one_set_are_reported():
    other = record(variant="r=4")
    assert verdicts([record(), other], [record(), record(variant="r=8")]) == ["unchanged", "only old", "only new"]


def test_records_of_different_commits_with_the_same_options_are_matched():
    later = record(config_id="b", options={"width": 8, "resolved": {"p": 1, "new": 2}}, env={"commit": "b"})
    assert verdicts([record(config_id="a", env={"commit": "a"})], [later]) == ["unchanged"]
    assert verdicts([record()], [record(options={"width": 16})]) == ["only old", "only new"]


def test_every_change_becomes_a_record():
    old, new = [record(), record(variant="r=4")], [record(2 * GIB), record(variant="r=8")]
    rows = to_records(changes(old, new))
    assert [(r.status, r.value, r.options["compare"]["verdict"]) for r in rows] == [
        ("ok", 1.0, "worse"),
        ("skipped", None, "only old"),
        ("skipped", None, "only new"),
    ]


def test_a_bias_is_best_at_zero():
    assert verdicts(scores("suv_mean_bias_liver", [-0.4] * 8), scores("suv_mean_bias_liver", [-0.1] * 8)) == ["better"]


def test_predicted_and_measured_records_are_not_compared():
    assert verdicts([record()], [record(kind="measured")]) == ["only old", "only new"]


def test_of_duplicate_rows_the_later_one_counts():
    assert verdicts([record(5 * GIB), record()], [record()]) == ["unchanged"]


def test_a_row_that_fails_now_is_worse_and_one_that_works_again_is_better():
    failed = record(None, kind="measured", status="oom", reason="no memory")
    worked = record(kind="measured")
    assert verdicts([worked], [failed]) == ["worse"]
    assert verdicts([failed], [worked]) == ["better"]
    assert verdicts([failed], [failed]) == ["unchanged"]


def test_differences_between_environments_are_listed():
    lines = environments([record(env={"torch": "2.11", "gpu": "A"})], [record(env={"torch": "2.12", "gpu": "A"})])
    assert lines == ["torch: 2.11 → 2.12"]


@pytest.fixture
def sets(tmp_path):
    def write(old, new):
        RecordFile(tmp_path / "old" / "a" / "records.jsonl").append(old)
        RecordFile(tmp_path / "new.jsonl").append(new)
        return tmp_path / "old", tmp_path / "new.jsonl"

    return write


def test_the_exit_code_is_1_for_a_regression_over_the_threshold(sets):
    old, new = sets([record()], [record(int(1.03 * GIB))])
    code, out, _ = run("compare", old, new)
    assert code == 0
    assert "worse" in out
    assert "+3.00%" in out
    assert run("compare", old, new, "--threshold", "2%")[0] == 1
    code, out, _ = run("compare", old, new, "--threshold", "0.02", "--json")
    (row,) = json.loads(out)
    assert (code, row["command"], row["kind"], row["metric"]) == (1, "compare", "predicted", "peak_allocated_change")
    assert row["value"] == pytest.approx(0.03)
    assert row["options"]["compare"] == {
        "verdict": "worse",
        "old": GIB,
        "new": int(1.03 * GIB),
        "unit": "B",
        "by": "exact",
    }
    assert run("compare", new, old, "--threshold", "0")[0] == 0


def test_the_exit_code_is_3_if_no_record_has_a_counterpart(sets):
    old, new = sets([record()], [record(variant="r=4")])
    for words in ((), ("--json",)):
        code, out, err = run("compare", old, new, *words)
        assert code == 3
        assert "only new" in out
        assert f"no record of {new} has a counterpart in {old}" in err


def test_missing_records_and_an_invalid_threshold_are_refused(sets, tmp_path):
    old, new = sets([record()], [record()])
    assert "contains no records" in refused(1, "compare", old, tmp_path / "none")
    assert "a share such as 5%" in refused(2, "compare", old, new, "--threshold", "much")


def test_it_works_without_pytorch(sets):
    code = "import sys; sys.modules['torch'] = None; from ppdm_bench import cli; cli.main()"  # importing torch fails
    words = [sys.executable, "-c", code, "compare", *sets([record()], [record(int(1.03 * GIB))])]
    done = subprocess.run(words, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert (done.returncode, done.stderr) == (0, "")
    assert "+3.00%" in done.stdout

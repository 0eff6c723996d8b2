"""Every claim gets the verdict of its rule, for synthetic records that support or refute it."""

import json
from dataclasses import replace

import pytest
from commands import run
from evidence import FULL_3D, PPDM, TASKS, WAVELET, kept, of_scans, peak, scores, timing

from ppdm import Method
from ppdm_bench.commands.claims import _record_reversibility
from ppdm_bench.records import Record, RecordFile
from ppdm_bench.report.claims.claim import Evidence
from ppdm_bench.report.claims.rules import CLAIMS
from ppdm_bench.report.library import Library

RULES = {claim.key: claim for claim in CLAIMS}
OFF = Method.from_dict(PPDM.to_dict() | {"loss": {"p": 2, "gradient": 0.0, "mode": "off"}})
NOISE = Method.from_dict(PPDM.to_dict() | {"kernel": {"type": "gaussian", "schedule": "cosine"}, "target": "x0"})
SUBJECTS = [20.0, 21.0, 22.5, 23.0]


def decided(key, records):
    """Return the finding of a claim from these records."""
    records = tuple(records)
    library = Library(records, (), {id(record): "set/records.jsonl" for record in records})
    return RULES[key].decide(Evidence(library, PPDM.to_dict(), TASKS))


def shifted(by):
    return [value + by + 0.01 * n for n, value in enumerate(SUBJECTS)]


def reversibility(changed):
    return Record(command="claims", metric="voxels_changed", value=changed, unit="1", n=100, kind="measured")


def saving(ratio, factor=4, kind="predicted"):
    """Make peaks at two sizes, with and without checkpointing; the saving is `ratio` only at the large size."""
    own = PPDM.with_factor(factor)
    for recomputed in ("none", "block"):
        for size, times in ((64, 2), (256, ratio)):
            yield peak(FULL_3D, size, 1000 * times, checkpointing=recomputed, kind=kind)
            yield peak(own, size, 1000, checkpointing=recomputed, kind=kind)


def quality(own, other, difference, **options):
    """Make scores of two methods on every task; the first method is better by about `difference`."""
    for task in TASKS:
        yield from scores(own, task, shifted(difference), **options)
        yield from scores(other, task, SUBJECTS, **options)


def over_seeds(method, spread, difference=0.0):
    for task in TASKS:
        for seed in range(6):
            yield from scores(method, task, shifted(difference + spread * (-1) ** seed * (1 + seed / 9)), seed=seed)


def activations(ratio):
    yield peak(FULL_3D, 64, 1000, metric="activations")
    yield peak(PPDM, 64, round(1000 * ratio), metric="activations")


def times(factor):
    yield timing(FULL_3D, 4, [factor * (1 + 0.01 * n) for n in range(10)])
    yield timing(PPDM, PPDM.sampling.steps, [1 + 0.01 * n for n in range(10)])


def foretold(factor, gpu="A100 80GB"):
    """Make predicted times for a card: full 3-D takes `factor` times as long."""
    for method, steps, seconds in ((FULL_3D, 4, factor), (PPDM, PPDM.sampling.steps, 1.0)):
        record = timing(method, steps, [seconds])
        told = {"interval": [0.8 * seconds, 1.45 * seconds], "ratio": 1.25}
        fields = {"kind": "predicted", "value": seconds, "samples": (), "env": {"target_gpu": gpu}, "device": "cuda"}
        yield replace(record, **fields, options=record.options | {"predicted_time": told})


def test_predicted_times_are_shown_with_the_claim_but_do_not_decide_it():
    cards = [*foretold(8.0), *foretold(4.0, "RTX 4090")]
    alone = decided("faster", cards)
    assert alone.verdict == "not measured"
    assert [(e.kind, e.value, e.low, e.high, e.passed) for e in alone.effects] == [
        ("predicted", 8.0, 6.4, 10.0, None),
        ("predicted", 4.0, 3.2, 5.0, None),
    ]
    assert alone.basis == ""
    assert "the other way 0.125 (0.1 to 0.156)" in alone.effects[0].n
    for measured, verdict in ((times(2.0), "supported"), (times(0.5), "not supported")):
        found = decided("faster", [*measured, *cards])
        assert (found.verdict, found.basis) == (verdict, "measured")
        assert [e.kind for e in found.effects] == ["measured", "predicted", "predicted"]


def grids(before, after, metric="border_ratio_r2", tasks=TASKS):
    for task in tasks:
        yield from scores(OFF, task, [before + 0.1 * n for n in range(4)], metric=metric)
        yield from scores(PPDM, task, [after + 0.1 * n for n in range(4)], metric=metric)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "supporting", "refuting"),
    [
        ("reversible", [reversibility(0)], [reversibility(0), reversibility(1)]),
        ("activations", activations(0.2), activations(0.6)),
        (
            "order-of-magnitude",
            [*saving(12), *quality(PPDM.with_factor(4), FULL_3D, -0.1)],
            [*saving(12), *quality(PPDM.with_factor(4), FULL_3D, -0.5)],
        ),
        (
            "order-of-magnitude",
            [*saving(12), *quality(PPDM.with_factor(4), FULL_3D, 0.5)],
            [*saving(9), *quality(PPDM.with_factor(4), FULL_3D, 0.5)],
        ),
        ("faster", times(2.0), times(1.0)),
        ("frequency", quality(PPDM, WAVELET, 0.5), quality(PPDM, WAVELET, -0.5)),
        ("grid", grids(1.4, 0.4), grids(1.4, 1.5)),
        ("grid", grids(5, 2), grids(1.3, 0.1)),
        ("grid", grids(5, 2, "seam_index_r2"), grids(5, 5.5, "seam_index_r2")),
        (
            "bridge",
            [*over_seeds(PPDM, 0.01, 1.0), *over_seeds(NOISE, 0.5)],
            [*over_seeds(PPDM, 0.5, 1.0), *over_seeds(NOISE, 0.5)],
        ),
        (
            "bridge",
            [*over_seeds(PPDM, 0.01, 1.0), *over_seeds(NOISE, 0.5)],
            [*over_seeds(PPDM, 0.01, -1.0), *over_seeds(NOISE, 0.5)],
        ),
    ],
)
def test_supporting_refuting_and_no_records_give_the_three_verdicts(key, supporting, refuting):
    for records, verdict in ((supporting, "supported"), (refuting, "not supported"), ([], "not measured")):
        found = decided(key, records)
        assert found.verdict == verdict, found.why
        if records:
            assert all(source.startswith("set/records.jsonl#") for effect in found.effects for source in effect.sources)


def test_a_case_that_was_checked_twice_counts_once():
    (effect,) = decided("reversible", [reversibility(0), replace(reversibility(0), env={"commit": "other"})]).effects
    assert effect.what.endswith("of 100 in 1 cases")


def test_latent_compression_is_recognised_by_its_representation():
    def latent(values):
        for record in (r for task in TASKS for r in scores(WAVELET, task, values)):
            resolved = record.options["resolved"] | {"representation": {"type": "autoencoder", "cell": 4}}
            yield replace(record, method="another", options=record.options | {"resolved": resolved})

    own = [record for task in TASKS for record in scores(PPDM, task, SUBJECTS)]
    assert decided("compression", [*own, *latent(shifted(-1))]).verdict == "supported"
    assert decided("compression", [*own, *latent(shifted(1))]).verdict == "not supported"
    assert decided("compression", own).verdict == "not measured"


def test_own_scans_count_in_addition_to_the_tasks_and_cannot_replace_one():
    phantoms = list(quality(PPDM, WAVELET, 0.5))
    scans = of_scans([*scores(PPDM, "", shifted(0.5)), *scores(WAVELET, "", SUBJECTS)])
    found = decided("frequency", [*phantoms, *scans])
    assert found.verdict == "supported"
    assert len(found.effects) == 4
    phantom_scope, own_scope = found.scope.split("; own data: ")
    assert phantom_scope.startswith("phantoms, not patients: ")
    assert own_scope == "mine, 4 subjects of test, 32×32×32, 100 training steps, width 64"
    assert decided("frequency", scans).verdict == "not measured"
    worse = of_scans([*scores(PPDM, "", SUBJECTS), *scores(WAVELET, "", shifted(0.5))])
    assert decided("frequency", [*phantoms, *worse]).verdict == "not supported"


def test_seams_in_own_scans_can_refute_the_grid_claim():
    scans = [
        *scores(OFF, "", [5, 5.1, 5.2, 5.3], metric="border_ratio_r2"),
        *scores(PPDM, "", [5.5, 5.6, 5.7, 5.8], metric="border_ratio_r2"),
    ]
    assert decided("grid", grids(5, 2)).verdict == "supported"
    assert decided("grid", [*grids(5, 2), *of_scans(scans)]).verdict == "not supported"


def test_the_border_ratio_is_used_if_recorded_and_the_seam_index_otherwise():
    by_index, by_borders = [*grids(0, 0, "seam_index_r2")], [*grids(2, 1)]
    assert decided("grid", by_index).verdict == "not measured"
    found = decided("grid", [*by_index, *by_borders])
    assert found.verdict == "supported"
    assert all(effect.what.startswith("border ratio r2 on") for effect in found.effects)
    of_one_task = [*grids(0, 0, "seam_index_r2", TASKS[:1]), *grids(2, 1, tasks=TASKS[1:])]
    assert [effect.passed for effect in decided("grid", of_one_task).effects].count(None) == 1


def test_the_grid_claim_needs_every_task_to_be_supported_but_not_to_be_refuted():
    found = decided("grid", grids(5, 2, tasks=TASKS[1:]))
    assert (found.verdict, found.why) == (
        "not measured",
        f"missing: the method with the loss and without it on {TASKS[0]}",
    )
    assert decided("grid", grids(5, 5.5, tasks=TASKS[1:])).verdict == "not supported"


def test_without_seams_on_any_task_the_grid_claim_is_refuted_and_psnr_is_shown():
    clean, gain = [*grids(0.2, 0.1)], [*quality(PPDM, OFF, 0.5)]
    found = decided("grid", [*clean, *gain])
    assert found.verdict == "not supported"
    assert found.why == "there are no seams to suppress: without the loss, the border ratio is at most 0.35 dB"
    assert found.basis == "measured"
    gains = [effect for effect in found.effects if effect.what.startswith("PSNR")]
    assert [effect.value for effect in gains] == pytest.approx([0.515] * 3)
    assert {effect.passed for effect in gains} == {None}
    assert decided("grid", [r for r in clean if r.task != TASKS[0]]).verdict == "not measured"


def test_two_of_three_tasks_can_refute_a_claim_but_not_support_it():
    records = [r for r in quality(PPDM, WAVELET, 0.5) if r.task != TASKS[0]]
    found = decided("frequency", records)
    assert found.verdict == "not measured"
    assert TASKS[0] in found.why
    # One refuted task is enough for "not supported", even if other tasks are missing.
    assert decided("frequency", scores(PPDM, TASKS[1], SUBJECTS) + scores(WAVELET, TASKS[1], shifted(1))).verdict == (
        "not supported"
    )


def test_a_rival_with_another_budget_or_a_single_subject_decides_nothing():
    other_budget = [*(r for t in TASKS for r in scores(PPDM, t, SUBJECTS)), *(
        r for t in TASKS for r in scores(WAVELET, t, shifted(-1), train_steps=200)
    )]  # fmt: skip
    assert decided("frequency", other_budget).verdict == "not measured"
    single = [r for r in quality(PPDM, WAVELET, 1.0) if r.subject == "test-000"]
    assert decided("frequency", single).verdict == "not measured"


@pytest.mark.parametrize(("theirs", "verdict"), [(180.0, "supported"), (90.0, "not measured")])
def test_a_rival_with_equal_training_time_counts_with_any_number_of_steps(theirs, verdict):
    def timed(records, seconds):
        return [replace(r, options=r.options | {"budgets": {"time": seconds}}) for r in records]

    own = [record for task in TASKS for record in timed(scores(PPDM, task, SUBJECTS), 180.0)]
    rival = [r for task in TASKS for r in timed(scores(WAVELET, task, shifted(-1), train_steps=70), theirs)]
    found = decided("frequency", [*own, *rival])
    assert found.verdict == verdict
    assert ("100 training steps (180 s at its step time)" in found.scope) == (verdict == "supported")


def test_without_scores_at_its_own_evaluations_the_next_larger_number_is_used():
    own = [
        record
        for task in TASKS
        for steps, gain in ((1, 3), (PPDM.sampling.steps + 1, 2), (10, 1))
        for record in scores(PPDM, task, shifted(gain), steps=steps)
    ]
    found = decided("frequency", [*own, *(r for task in TASKS for r in scores(WAVELET, task, SUBJECTS))])
    assert [round(effect.value, 1) for effect in found.effects] == [2.0] * len(TASKS)


def test_only_seeds_that_both_methods_have_are_compared():
    own = [r for task in TASKS for seed in (0, 1) for r in scores(PPDM, task, shifted(1 + 9 * seed), seed=seed)]
    found = decided("frequency", [*own, *(r for task in TASKS for r in scores(WAVELET, task, SUBJECTS))])
    assert [(round(effect.value, 1), effect.n.split(";")[0]) for effect in found.effects] == [
        (1.0, "4 subjects, 1 seed")
    ] * len(TASKS)
    another = [r for task in TASKS for r in scores(OFF, task, [9.0] * 4, metric="border_ratio_r2", seed=1)]
    found = decided("grid", [*grids(5, 2), *another])
    assert "(without: 5.15 dB)" in found.effects[0].what


def test_a_rival_counts_at_its_best_number_of_evaluations():
    own = [record for task in TASKS for record in scores(PPDM, task, SUBJECTS)]
    rival = [r for task in TASKS for r in scores(WAVELET, task, shifted(-1), steps=4)]
    better = [r for task in TASKS for r in scores(WAVELET, task, shifted(1), steps=250)]
    assert decided("frequency", [*own, *rival]).verdict == "supported"
    assert decided("frequency", [*own, *rival, *better]).verdict == "not supported"


def test_a_variation_of_the_method_does_not_count_as_the_method():
    varied = Method.from_dict(PPDM.to_dict() | {"kernel": {"type": "brownian", "gamma": 1.0}})
    assert decided("frequency", quality(varied, WAVELET, 1.0)).verdict == "not measured"


def test_a_network_with_other_levels_counts_only_without_the_registered_one():
    other = PPDM.with_network(multipliers=(1, 2, 4))
    worse = [r for task in TASKS for r in scores(other, task, shifted(-3), steps=PPDM.sampling.steps)]
    better = [*quality(PPDM, WAVELET, 2.0)]
    assert decided("frequency", [*better, *worse]).verdict == "supported"
    rivals = [record for record in better if record.method == WAVELET.name]
    assert decided("frequency", [*rivals, *worse]).verdict == "not supported"


def test_times_and_memory_are_compared_at_the_same_size_of_the_network():
    wide = FULL_3D.with_network(width=128)
    slow = timing(wide, 4, [9 + 0.01 * n for n in range(10)])
    assert decided("faster", [slow, *(r for r in times(2.0) if r.method == PPDM.name)]).verdict == "not measured"
    assert decided("faster", [slow, *times(2.0)]).effects[0].value == pytest.approx(2, rel=0.01)
    deep = FULL_3D.with_network(multipliers=(1, 2))
    mine = peak(PPDM.with_factor(4), 64, 1 << 28, metric="activations")
    assert decided("activations", [mine, peak(deep, 64, 1 << 34, metric="activations")]).verdict == "not measured"


def test_a_seam_index_that_shows_no_seams_decides_nothing():
    found = decided("grid", grids(0.5, 0.1, "seam_index_r2"))
    assert found.verdict == "not measured"
    assert all(effect.passed is None for effect in found.effects)


def test_predicted_and_measured_memory_are_separate_effects():
    found = decided("order-of-magnitude", [*saving(12), *saving(11, kind="measured")])
    assert [(effect.kind, effect.value) for effect in found.effects] == [("measured", 11), ("predicted", 12)]


def test_the_command_writes_its_verdicts_and_the_same_bytes_when_repeated(tmp_path):
    decides_nothing = replace(peak(PPDM, 32, 1, metric="loss"), source="elsewhere")
    kept(tmp_path / "set", [*saving(12), *quality(PPDM.with_factor(4), FULL_3D, 0.5), decides_nothing])
    code, out, err = run("claims", tmp_path / "set", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "order-of-magnitude  supported (measured and predicted)" in out
    assert "reversible          supported (measured)" in out
    names = ("CLAIMS.md", "claims/claims.csv", "claims/reversibility.jsonl")
    first = [(tmp_path / "out" / name).read_bytes() for name in names]
    assert b"| PSNR on mri-t1t2, ppdm r=4" in first[0]
    assert b"these are phantoms and small budgets" in first[0]
    assert b"Those that decide: command" in first[0]
    assert b"elsewhere" not in first[0]
    code, out, _ = run("claims", tmp_path / "set", "--out", tmp_path / "out", "--json")
    assert {row["verdict"] for row in json.loads(out) if row["claim"] == "compression"} == {"not measured"}
    assert [(tmp_path / "out" / name).read_bytes() for name in names] == first


def test_the_page_mentions_own_data_if_there_is_any(tmp_path):
    kept(tmp_path / "set", of_scans([*scores(PPDM, "", shifted(0.5)), *scores(WAVELET, "", SUBJECTS)]))
    assert run("claims", tmp_path / "set", "--out", tmp_path / "out")[0] == 0
    assert "these are phantoms or own data and small budgets" in (tmp_path / "out" / "CLAIMS.md").read_text()


@pytest.mark.parametrize(("change", "kept_as_is"), [({"env": {"commit": "other"}}, True), ({"value": 1}, False)])
def test_records_of_reversibility_are_replaced_only_if_their_values_change(tmp_path, change, kept_as_is):
    file = RecordFile(tmp_path / "claims" / "reversibility.jsonl")
    _record_reversibility(file)
    altered = [replace(record, **change) for record in file.read()]
    file.path.unlink()
    file.append(altered)
    before = file.path.read_bytes()
    _record_reversibility(file)
    assert (file.path.read_bytes() == before) == kept_as_is

"""``ppdm-bench plan``: searches compared with brute force, on made-up predictors and on predictions of tiny volumes."""

import json
import multiprocessing
from concurrent.futures import Future
from dataclasses import replace
from functools import cache

import pytest
import torch
from commands import refused, run

from ppdm_bench.configuration import Configuration
from ppdm_bench.memory.host import host_peak
from ppdm_bench.memory.workload import workload
from ppdm_bench.planning.outlook import NoOutlook, OutlookCase, ask_all, predict, predictor
from ppdm_bench.planning.planning_output import CapacityPlan, collect, failures, present
from ppdm_bench.planning.questions import Alternatives, Bounds, question
from ppdm_bench.planning.search import CasePrediction, largest
from ppdm_bench.predictor.cards import find_card
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import GIB, MARGIN, MIB, Target
from ppdm_bench.records import RecordFile
from ppdm_bench.report.tables.budget import gather_plan

pytestmark = pytest.mark.slow


def searched(verdict, limit=40, capacity=None, needs=lambda k: k, known=()):
    """Run a search on a made-up predictor; return the result and the cases that it requested, in order."""

    def look(k):
        return CasePrediction(verdict(k), needs(k))

    search, seen = largest(limit, capacity, float, {k: look(k) for k in known}), []
    try:
        case = next(search)
        while True:
            seen.append(case)
            case = search.send(look(case))
    except StopIteration as end:
        return end.value, seen


@pytest.mark.parametrize("most", [0, 1, 7, 39, 40])
@pytest.mark.parametrize("known", [(), (1,), (20,), (40,)])
@pytest.mark.parametrize("capacity", [None, 7, 1000], ids=["halving", "estimates", "wrong estimates"])
def test_a_search_finds_the_largest_case_that_fits_and_predicts_the_next_one(most, known, capacity):
    found, _ = searched(lambda k: k <= most, known=known, capacity=capacity)
    assert found.value == most
    assert found.exception is None
    assert most == 0 or found.predictions[most].fits
    assert most == 40 or not found.predictions[most + 1].fits
    assert found.bounded == (most < 40)


def test_with_a_good_estimate_two_predictions_suffice():
    found, seen = searched(lambda k: k <= 17, capacity=17, known=(30,))
    assert (found.value, seen) == (17, [17, 18])


def test_a_search_reports_a_case_that_fits_although_a_smaller_one_does_not():
    found, _ = searched(lambda k: k <= 5 or 18 <= k <= 22, known=(20, 10))
    assert (found.value, found.exception) == (5, 20)


TINY = Configuration("ppdm", (32, 32, 32), factor=2, width=8)
SMALL = replace(TINY, method="tiny_training:TINY")  # the network has two levels
BOUNDS = Bounds(step=16, edge=64, batch=4, factors=(1, 2, 4))


def target_of(size, **fields):
    """Return a card with this many MiB for the allocator."""
    return Target(torch="2.11.0", capacity=size * MIB + MARGIN, context=0, **fields)


@pytest.fixture(scope="module")
def answer():
    """Return a real answer, and a function that predicts which configurations fit on the same card.

    The card has slightly more memory than the requested configuration needs. Predictions are cached, so that brute
    force does not repeat those of the search.
    """
    target, remembered = target_of(107), cache(predict)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppdm_bench.planning.outlook.predict", remembered)
        with predictor(target, workers=1) as submit:
            (found,) = ask_all([question(SMALL, "train", target, BOUNDS)], submit)

    def brute(cases):
        return [remembered(OutlookCase(case, "train"), target).fits for case in cases]

    return found, brute


def test_the_largest_cube_equals_that_of_brute_force(answer):
    found, brute = answer
    cubes = brute([replace(SMALL, shape=(n, n, n)) for n in (16, 32, 48, 64)])
    assert found.cube.value == sum(cubes)
    assert 0 < sum(cubes) < 4
    assert cubes == sorted(cubes, reverse=True)


def test_the_largest_batch_and_the_smallest_factor_equal_those_of_brute_force(answer):
    found, brute = answer
    batches = brute([replace(SMALL, batch_size=n) for n in (1, 2, 3, 4)])
    assert found.batch.value == sum(batches)
    assert 0 < sum(batches) < 4
    factors = brute([replace(SMALL, factor=r) for r in (4, 2, 1)])
    assert found.factor.value == sum(factors)


def test_alternatives_are_single_options_then_combinations_with_the_mildest_first():
    def made(asked, phase, **fields):
        others = Alternatives.of(asked, phase, target_of(1, **fields))
        return [[(c.precision, c.checkpointing) for c in group] for group in (*others.single, others.combined)]

    leaner = ("norm", "block", "conv")
    recomputed = [("fp32", kind) for kind in leaner]
    assert made(TINY, "train") == [[("bf16", "none")], recomputed, [("bf16", kind) for kind in leaner]]
    assert made(TINY, "sample") == [[("bf16", "none")], []]
    assert made(replace(TINY, precision="bf16", checkpointing="block"), "train") == [[("bf16", "conv")], []]
    turing = made(TINY, "train", compute_capability=(7, 5))
    assert turing == [[("fp16", "none")], recomputed, [("fp16", kind) for kind in leaner]]
    assert (
        Alternatives.of(replace(TINY, precision="bf16", checkpointing="conv"), "train", target_of(1)).least_memory
        is None
    )


def made_up(case, target):
    """Predict 100 MiB per 16 voxels of the edge and per volume, divided by the factor (or 2) and halved with bf16."""
    configuration = case.configuration
    need = configuration.shape[0] // 16 * 100 * MIB * configuration.batch_size
    need //= (1 + (configuration.precision == "bf16")) * (configuration.factor or 2)
    return CasePrediction(need + target.beside <= target.capacity, need + target.beside)


@pytest.fixture
def lines(monkeypatch, tmp_path):
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", made_up)
    plan = CapacityPlan(
        [Configuration("ppdm", (64,) * 3), Configuration("ddpm3d", (160,) * 3)], ["train"], target_of(250)
    )
    records = collect(plan, workers=1)
    return records, gather_plan(records), tmp_path


def test_the_record_of_a_largest_value_contains_the_predictions_that_verify_it(lines):
    records, _, _ = lines
    (cube,) = [r for r in records if r.metric == "largest_resolution" and r.method == "ppdm"]
    assert (cube.value, cube.kind, cube.command) == (80, "predicted", "plan")
    assert [(e["case"], e["fits"]) for e in cube.options["verified"]] == [(80, True), (96, False)]
    assert failures(records) == []


def test_the_table_is_ranked_and_the_text_states_the_answer(lines):
    records, (first, second), folder = lines
    assert (first.method, second.method) == ("ppdm r=2", "ddpm3d")
    assert (first.fits, second.fits, second.options) == (True, False, ["bf16"])
    text, written = present(records, folder)
    assert "you can train: ppdm r=2; with bf16: ddpm3d." in text
    assert {path.name for path in written} == {
        "records.jsonl",
        *(f"plan.{end}" for end in ("csv", "md", "tex", "png", "pdf")),
    }
    kept = RecordFile(folder / "records.jsonl").read()
    assert [(r.config_id, r.metric, r.value) for r in kept] == [(r.config_id, r.metric, r.value) for r in records]
    assert present(records, None)[1] == []


def test_a_method_that_cannot_be_predicted_is_reported_and_the_others_continue(monkeypatch):
    def fails(case, target):
        if case.configuration.method == "ddpm3d":
            raise NoOutlook("ddpm3d sample: KeyError")
        return made_up(case, target)

    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", fails)
    records = collect(
        CapacityPlan([TINY, replace(TINY, method="ddpm3d", factor=None)], ["sample"], target_of(250)), workers=1
    )
    assert failures(records) == ["ddpm3d sample: KeyError"]
    assert "fits" in {r.metric for r in records if r.method == "ppdm"}


def test_parts_of_a_question_run_concurrently_and_share_predictions():
    """Each part requests its first case before any part continues. A case that fails ends only its own question."""
    wanted = []

    def submit(case):
        wanted.append(case)
        future = Future()
        if case == "broken":
            future.set_exception(NoOutlook("cannot be seen"))
        else:
            future.set_result(case.upper())
        return future

    def part(*cases):
        seen = []
        for case in cases:
            seen.append((yield case))
        return seen

    def whole(*parts):
        start = yield "start"
        return start, (yield list(parts))

    parts = part("left", "shared"), part("right", "shared")
    assert ask_all([whole(*parts)], submit) == [("START", [["LEFT", "SHARED"], ["RIGHT", "SHARED"]])]
    assert wanted == ["start", "left", "right", "shared"]
    found, failed = ask_all([part("left"), whole(part("right"), part("broken"))], submit)
    assert found == ["LEFT"]
    assert str(failed) == "cannot be seen"


def test_the_command_prints_records_or_a_table_and_writes_no_files(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", made_up)
    words = ("plan", "--budget", "8GB", "--res", 64, "--method", "ppdm", "--phase", "sample")
    code, out, err = run(*words, "--json")
    assert (code, err) == (0, "")
    assert {row["phase"] for row in json.loads(out)} == {"sample"}
    assert list(tmp_path.iterdir()) == []
    text = run(*words)[1]
    assert "What fits in 8 GiB at 64³" in text
    assert "largest cube" in text
    few = run(*words, "--columns", "needs,fits")[1]
    assert "needs GiB" in few
    assert "largest cube" not in few


def test_plan_and_memory_predict_the_same_peak():
    configuration, target = replace(TINY, shape=(16,) * 3), Target(torch="2.11.0", capacity=80 * MIB, context=0)
    peak = predicted(configuration, "sample", target)
    look = predict(OutlookCase(configuration, "sample"), target)
    assert look.fits == peak.fits
    assert look.need == peak.needs
    assert peak.peak_allocated <= look.need - target.beside <= peak.peak_reserved
    assert predict(OutlookCase(configuration, "sample"), replace(target, capacity=look.need)).fits
    assert not predict(OutlookCase(configuration, "sample"), replace(target, capacity=peak.peak_allocated - 1)).fits


def test_host_memory_is_predicted_and_printed_for_sampling_one_volume(monkeypatch):
    monkeypatch.setattr("ppdm_bench.memory.host.process_base", lambda device: GIB)
    configuration, target = replace(TINY, shape=(16,) * 3), Target(torch="2.11.0", capacity=80 * MIB, context=0)
    look = predict(OutlookCase(configuration, "sample"), target)
    assert look.host == host_peak(predicted(configuration, "sample", target), configuration.shape, "cuda")
    for case in (OutlookCase(configuration, "train"), OutlookCase(replace(configuration, batch_size=2), "sample")):
        assert predict(case, target).host is None

    def known(case, target):
        return replace(made_up(case, target), host=GIB if case.phase == "sample" else None)

    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", known)
    words = ("plan", "--budget", "8GB", "--res", 64, "--method", "ppdm", "--phase")
    assert (
        "Host RAM, besides the card: 2.00 GiB to translate one volume of 64×64×64 (ppdm r=2" in run(*words, "sample")[1]
    )
    (record,) = [row for row in json.loads(run(*words, "sample", "--json")[1]) if row["metric"] == "peak_host"]
    assert (record["value"], record["unit"], record["phase"]) == (GIB, "B", "sample")
    assert "Host RAM" not in run(*words, "train")[1]


def predicted(configuration, phase, target):
    """Return the peak as ``memory`` predicts it."""
    work = workload(configuration.resolve(), phase, configuration.shape, configuration.batch_size, "cuda")
    return predict_peak(work.build, work.step, work.iterations, target)


def test_plan_accepts_user_methods_presets_and_factors(monkeypatch):
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", made_up)
    words = ("plan", "--budget", "8GB", "--res", 64, "--phase", "sample", "--json")
    own = json.loads(run(*words, "--method", "ppdm.model:PPDM")[1])
    assert {row["method"] for row in own} == {"ppdm.model:PPDM"}
    presets = json.loads(run(*words, "--method", "ddpm3d", "--preset", "authors")[1])
    assert {row["options"]["preset"] for row in presets} == {"authors"}
    factors = json.loads(run(*words, "--method", "ppdm", "--factor", "2,4")[1])
    assert {row["variant"] for row in factors if row["metric"] == "fits"} == {"r=2", "r=4"}


@pytest.mark.parametrize("apart", [1, 2])
def test_an_interrupted_predictor_leaves_no_processes(apart):
    case = OutlookCase(replace(TINY, shape=(16,) * 3), "sample")
    futures = []

    def interrupted():
        with predictor(target_of(80), apart) as submit:
            futures.append(submit(case))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert futures[0].done()
    assert multiprocessing.active_children() == []


def test_invalid_options_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "this machine has no GPU" in refused(2, "plan", "--res", 64)
    assert "give one size" in refused(2, "plan", "--budget", "8GB")
    assert "CUDA context" in refused(2, "plan", "--budget", "256MB", "--res", 64)
    assert "expected train or sample" in refused(2, "plan", "--budget", "8GB", "--res", 64, "--phase", "fun")


def test_each_single_option_that_suffices_is_found(monkeypatch):
    """bf16 suffices, and so does block checkpointing, but not norm checkpointing; no combination is needed."""

    def enough(case, target):
        one = case.configuration
        fits = one.precision == "bf16" or one.checkpointing in ("block", "conv")
        return CasePrediction(fits, target.capacity - 1 if fits else target.capacity + 1)

    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", enough)
    records = collect(CapacityPlan([Configuration("ppdm", (64,) * 3)], ["train"], target_of(250)), workers=1)
    fitting = {(r.precision, r.checkpointing) for r in records if r.metric == "fits" and r.value}
    assert fitting == {("bf16", "none"), ("fp32", "block")}
    (line,) = gather_plan(records)
    assert line.options == ["bf16", "block checkpointing"]


def test_a_combination_is_tried_only_if_no_single_option_suffices(monkeypatch):
    def enough(case, target):
        one = case.configuration
        fits = one.precision == "bf16" and one.checkpointing != "none"
        return CasePrediction(fits, target.capacity - 1 if fits else target.capacity + 1)

    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", enough)
    records = collect(CapacityPlan([Configuration("ppdm", (64,) * 3)], ["train"], target_of(250)), workers=1)
    fitting = {(r.precision, r.checkpointing) for r in records if r.metric == "fits" and r.value}
    assert fitting == {("bf16", "norm")}
    (line,) = gather_plan(records)
    assert line.options == ["bf16 and norm checkpointing"]


def test_an_interrupted_plan_keeps_the_answers_it_has(monkeypatch, tmp_path):
    """Ctrl-C arrives before the first answer; in a second run, during the search for the largest cube of ddpm3d."""
    cubes = []

    def interrupted(case, target):
        one = case.configuration
        if one.method == "ddpm3d" and one.shape != (64,) * 3:
            cubes.append(one.shape)
        if len(cubes) > patience:
            raise KeyboardInterrupt
        need = (one.shape[0] if one.method == "ddpm3d" else 1) * MIB
        return CasePrediction(True, need)

    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", interrupted)
    words = ["plan", "--budget", "8GB", "--res", 64, "--phase", "sample", "--out", tmp_path]
    words += ["--method", "regression", "--method", "ddpm3d"]
    patience = -1
    code, out, err = run(*words)
    assert (code, "no question was answered" in out, "interrupted" in err) == (130, True, True)
    assert not (tmp_path / "records.jsonl").exists()
    patience = 2
    code, out, err = run(*words)
    assert (code, "you can sample from: regression" in out, "interrupted" in err) == (130, True, True)
    assert {r.method for r in RecordFile(tmp_path / "records.jsonl").read()} == {"regression"}


def test_gpu_selects_a_card_by_its_name(monkeypatch):
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", made_up)
    words = ("plan", "--res", 64, "--method", "ppdm", "--phase", "sample")
    rows = json.loads(run(*words, "--gpu", "2080 Ti", "--json")[1])
    assert {row["env"]["capacity"] for row in rows} == {find_card("RTX 2080 Ti").capacity}
    rows = json.loads(run(*words, "--gpu", "A100 80GB", "--budget", "8GB", "--json")[1])
    assert {row["env"]["capacity"] for row in rows} == {8 * GIB}
    assert "more than the 10.76 GiB of RTX 2080 Ti" in refused(2, *words, "--gpu", "2080 Ti", "--budget", "12GB")
    assert "did you mean RTX 4090" in refused(2, *words, "--gpu", "RTX 4900")


def test_a_phase_includes_that_of_the_autoencoder_and_the_old_option_is_accepted(monkeypatch):
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", made_up)
    words = ("plan", "--budget", "8GB", "--res", 64, "--method", "latent")
    code, out, err = run(*words, "--for", "train", "--json")
    assert (code, {row["phase"] for row in json.loads(out)}) == (0, {"train", "autoencoder_train"})
    assert "--for is now --phase" in err
    assert {row["phase"] for row in json.loads(run(*words, "--phase", "sample", "--json")[1])} == {"sample", "decode"}


def test_a_method_fits_only_if_all_phases_of_a_purpose_fit(monkeypatch):
    """Training the autoencoder needs more memory than training the diffusion, and more than the card has."""

    def by_phase(case, target):
        one = case.configuration
        need = {"train": 100, "autoencoder_train": 300, "sample": 50, "decode": 60}[case.phase] * MIB
        need = need * one.shape[0] // 64 // (1 + (one.precision == "bf16")) + target.beside
        return CasePrediction(need <= target.capacity, need)

    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", by_phase)
    latent = Configuration("latent", (64,) * 3)
    train, sample = gather_plan(collect(CapacityPlan([latent], None, target_of(200)), workers=1))
    assert (train.purpose, train.fits, train.cube, train.largest_phase) == ("train", False, 32, "autoencoder_train")
    assert (train.value("needs"), train.options) == (300 * MIB + MARGIN, ["bf16"])
    assert (sample.purpose, sample.fits, sample.value("needs")) == ("sample", True, 60 * MIB + MARGIN)
    assert "autoencoder train 0.418" in train.notes[-1]


def test_a_second_plan_in_a_folder_is_shown_with_earlier_rows_of_the_same_capacity(monkeypatch, tmp_path):
    monkeypatch.setattr("ppdm_bench.planning.outlook.predict", made_up)

    def planned(method, size, edge=64):
        return collect(CapacityPlan([Configuration(method, (edge,) * 3)], ["train"], target_of(size)), workers=1)

    present(planned("ddpm3d", 250), tmp_path)
    present(planned("ddpm3d", 900), tmp_path)
    text, _ = present(planned("ppdm", 250), tmp_path)
    assert text.count("ddpm3d ") == 1
    assert "ppdm r=2" in text
    assert (tmp_path / "plan.csv").read_text().count("\n") == 3

"""Published timings: their sources, the split into two halves, the rebuilt networks, and their predictions."""

from collections import Counter
from dataclasses import replace
from math import log, prod
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import time_truth
import torch
from torch import nn

from ppdm_bench.predictor.cards import find_sheet
from ppdm_bench.predictor.timing import Constants
from ppdm_bench.records import Record
from ppdm_bench.timing.published import PublishedKernels, can_be_rebuilt, halves, read_timings, source_of
from ppdm_bench.timing.published_networks import RUNS, PlannedUNet

RESULTS = Path(__file__).parents[2] / "results"
RECORDS = read_timings(RESULTS / "published/timings.jsonl")
REBUILT = [record for record in RECORDS if can_be_rebuilt(record)]
FIT, JUDGE = halves(RECORDS)


def test_there_are_enough_values_and_sources_and_each_value_has_its_provenance() -> None:
    assert len(REBUILT) >= 40
    assert len({source_of(record) for record in REBUILT}) >= 5
    assert len({record.config_id for record in RECORDS}) == len(RECORDS)
    for record in RECORDS:
        assert (record.kind, record.unit, record.metric) == ("published", "s", "seconds")
        assert record.value > 0
        assert record.source.startswith("https://")
        assert record.options["read"]
        assert record.options["includes"]


@pytest.mark.parametrize("record", REBUILT, ids=lambda record: record.config_id)
def test_each_value_names_a_card_with_a_data_sheet_and_its_configuration(record: Record) -> None:
    assert find_sheet(record.env["gpu"]).name == record.env["gpu"]
    assert record.options["run"] in RUNS
    assert len(record.shape) == 3
    assert record.batch_size
    assert record.precision in ("fp16", "tf32", "fp32")
    assert all(count >= 1 for count in record.options["work"].values())


def test_each_value_equals_the_published_number_in_seconds() -> None:
    for record in REBUILT:
        number, *unit = record.options["read"].split()
        read = float(number)
        if "volumes" in unit:
            read = record.batch_size / read
        elif "ms" in unit:
            read /= 1000
        assert record.value == pytest.approx(read), record.options["read"]


def test_the_halves_are_disjoint_complete_and_keep_each_configuration_together() -> None:
    assert {id(r) for r in FIT}.isdisjoint({id(r) for r in JUDGE})
    assert len(FIT) + len(JUDGE) == len(REBUILT)
    assert abs(len(FIT) - len(JUDGE)) <= len(REBUILT) / 5
    by_source = Counter(source_of(record) for record in FIT)
    for source, count in Counter(source_of(record) for record in REBUILT).items():
        assert 0 < by_source[source] < count

    def without_software(record: Record) -> tuple[object, ...]:
        r = record
        return source_of(r), r.options["run"], str(r.options["work"]), r.options.get("plan"), r.shape, *_place(r)

    def _place(r: Record) -> tuple[object, ...]:
        return r.batch_size, r.precision, r.env["gpu"], r.options.get("network"), str(r.options.get("window"))

    assert {without_software(r) for r in FIT}.isdisjoint({without_software(r) for r in JUDGE})


def test_the_halves_do_not_depend_on_the_order_of_the_records() -> None:
    fit, judge = halves(RECORDS[::-1])
    assert {r.config_id for r in fit} == {r.config_id for r in FIT}
    assert {r.config_id for r in judge} == {r.config_id for r in JUDGE}


def test_the_plain_u_net_has_the_channels_strides_and_outputs_of_nnu_net() -> None:
    strides, kernels = [[1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]]
    network = PlannedUNet(
        2, 3, strides, kernels, bias=True, heads=True, norm=lambda c: nn.InstanceNorm3d(c, affine=True)
    )
    outputs = network(torch.zeros(1, 2, 4, 8, 8))
    assert [tuple(x.shape) for x in outputs] == [(1, 3, 4, 8, 8), (1, 3, 4, 4, 4)]
    weights = sum(prod(m.weight.shape) for m in network.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d))
    down = 2 * 32 * 9 + 32 * 32 * 9 + (32 + 64) * 64 * 27 + (64 + 128) * 128 * 27
    up = 128 * 64 * 8 + (128 + 64) * 64 * 27 + 64 * 32 * 4 + (64 + 32) * 32 * 27
    assert weights == down + up + 3 * (64 + 32)


def test_published_values_of_two_runs_are_predicted_within_a_tolerance() -> None:
    """One value of each run; the whole table is results/validation/timings.md."""
    published = PublishedKernels()
    for run, most in (("nvidia nnunet", 0.35), ("conv3d", 0.7)):
        record = next(r for r in JUDGE if r.options["run"] == run)
        assert abs(published.predict(record).seconds / record.value - 1) < most


def test_the_committed_table_reaches_the_accuracy_goal_on_the_judging_half() -> None:
    judged = list(time_truth.read_judged(RESULTS / "validation/timings.csv", RECORDS))
    assert {one.record.config_id for one in judged if one.half == "judge"} == {r.config_id for r in JUDGE}
    errors = sorted(one.error for one in judged if one.half == "judge")
    assert errors[len(errors) // 2] <= 0.20
    ratios = sorted(time_truth.ratios([one for one in judged if one.half == "judge"]))
    assert ratios[len(ratios) // 2] <= 0.12
    low, high = time_truth.interval(judged)
    assert (low, high) == pytest.approx(time_truth.INTERVAL, abs=0.01)
    assert time_truth.ratio_interval(judged) == pytest.approx(time_truth.RATIO, abs=0.01)


def test_a_fit_reduces_the_error_on_values_made_with_known_constants(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time_truth, "PRIOR", 0.05)  # the default prior is for ninety values and would outweigh six
    published, records = PublishedKernels(), [r for r in FIT if r.options["run"] == "nvidia nnunet"][:6]
    true = replace(time_truth.FITTED, memory=2.6, launch=4e-5)
    made = [replace(record, value=published.predict(record, true).seconds) for record in records]

    def error(constants: Constants) -> float:
        return mean(abs(log(published.predict(r, constants).seconds / r.value)) for r in made)

    start = time_truth.constants_of(np.array([first for first, _, _ in time_truth.BOUNDS.values()]))
    assert error(time_truth.fitted(published.predict, made)) < 0.3 * error(start)

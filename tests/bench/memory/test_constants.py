"""The fit of context and workspace to made-up records, and its use in predictions."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ppdm_bench.cli import app
from ppdm_bench.memory import constants
from ppdm_bench.memory.constants import ConstantsError, FittedConstants, fit, identify
from ppdm_bench.predictor.peak import predict_peak
from ppdm_bench.predictor.target import MIB, Target
from ppdm_bench.records import Record, RecordFile, config_id


def record(number: int, kind: str, value: int, metric: str = "peak_allocated", **other: Any) -> Record:
    common: dict[str, Any] = {"phase": "train", "device": "cuda", "env": {"gpu": "H100", "torch": "2.10.0"}}
    return Record(metric=metric, value=value, kind=kind, config_id=config_id({"size": number}), **common | other)


def measured_and_predicted() -> list[Record]:
    """Make records of three peaks, 30, 40 and 70 MiB above their predictions, with contexts of 400, 500 and 510 MiB."""
    rows = []
    for number, (residual, context) in enumerate([(30, 400), (70, 500), (40, 510)]):
        rows.append(record(number, "predicted", 1000 * MIB * (number + 1)))
        rows.append(record(number, "measured", (1000 * (number + 1) + residual) * MIB))
        rows.append(record(number, "measured", context * MIB, "context"))
    return rows


def test_the_constants_are_medians_and_name_their_records() -> None:
    rows = measured_and_predicted()
    other = [
        record(9, "measured", 1),
        record(0, "predicted", 5, phase="sample"),
        record(1, "measured", 7, device="cpu"),
    ]
    found = fit([*rows, *other])
    assert (found.gpu, found.torch) == ("H100", "2.10.0")
    assert (found.workspace, found.context) == (40 * MIB, 500 * MIB)
    assert found.residuals == (30 * MIB, 40 * MIB, 70 * MIB)
    assert sorted(found.records) == sorted(map(identify, rows))
    assert constants.describe(found) == (
        "H100, torch 2.10.0: workspace 40 MiB (median of 3 residuals, +30 to +70 MiB), context 500 MiB"
    )


def test_predictions_that_are_too_high_give_a_workspace_of_zero() -> None:
    lowered = [replace(r, value=r.value + 100 * MIB) if r.kind == "predicted" else r for r in measured_and_predicted()]
    found = fit(lowered)
    assert found.workspace == 0
    assert found.residuals == (-70 * MIB, -60 * MIB, -30 * MIB)


def test_without_a_measured_context_the_target_keeps_its_own() -> None:
    found = fit([r for r in measured_and_predicted() if r.metric != "context"])
    assert found.context is None
    assert found.of(Target(context=7)).context == 7


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda rows: rows[:6], "2 measured peaks on CUDA have a prediction"),
        (lambda rows: [*rows[:-2], replace(rows[-2], env={"gpu": "A100", "torch": "2.10.0"})], "several values of gpu"),
        (lambda rows: [replace(rows[0], env={"fitted_workspace": 1}), *rows[1:]], "with fitted constants"),
    ],
)
def test_unsuitable_records_are_refused(spoil: Any, message: str) -> None:
    with pytest.raises(ConstantsError, match=message):
        fit(spoil(measured_and_predicted()))


@pytest.mark.slow
def test_constants_are_stored_and_used_only_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    RecordFile(tmp_path / "records.jsonl").append(measured_and_predicted())
    stored = tmp_path / "constants.json"
    monkeypatch.setattr(sys, "argv", ["constants", str(tmp_path / "records.jsonl"), "--out", str(stored)])
    constants.main()
    assert FittedConstants.read(stored) == fit(measured_and_predicted())

    def values(*options: str) -> dict[str, Any]:
        asked = [
            "memory",
            "--res",
            "16",
            "--method",
            "ppdm",
            "--factor",
            "2",
            "--width",
            "8",
            "--phase",
            "sample",
            "--device",
            "predict",
            "--json",
            "--out",
        ]
        result = CliRunner().invoke(app, [*asked, str(tmp_path / "out"), *options])
        assert result.exit_code == 0, result.stderr
        made = json.loads(result.stdout)
        assert ("fitted_workspace" in made[0]["env"]) == bool(options)
        return {row["metric"]: row["value"] for row in made}

    plain, fitted = values(), values("--constants", str(stored))
    assert fitted["peak_allocated"] == plain["peak_allocated"] + 40 * MIB
    assert fitted["workspace"] == plain["workspace"] + 40 * MIB
    assert fitted["context"] == 500 * MIB
    assert fitted["peak_process"] == fitted["peak_reserved"] + 500 * MIB
    assert plain["context"] == Target().context


def test_a_fitted_workspace_is_a_named_term_of_the_peak() -> None:
    terms = predict_peak(lambda: None, lambda _: None, target=Target(torch="2.10.0", workspace=MIB)).terms
    assert terms == {"fitted": MIB}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"workspace": 1}', "null"])
def test_a_file_without_constants_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "constants.json"
    path.write_text(text)
    with pytest.raises(ConstantsError, match="contains no constants"):
        FittedConstants.read(path)


def test_constants_are_refused_for_the_cpu(tmp_path: Path) -> None:
    fit(measured_and_predicted()).save(tmp_path / "constants.json")
    asked = ["memory", "--res", "16", "--method", "ppdm", "--device", "cpu", "--constants"]
    result = CliRunner().invoke(app, [*asked, str(tmp_path / "constants.json"), "--out", str(tmp_path)])
    assert result.exit_code == 2

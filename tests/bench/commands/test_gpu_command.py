"""``ppdm-bench gpu``: the list of pieces, the order in which they run, and how failed pieces are handled."""

import json
from pathlib import Path

import pytest
import torch
import typer
from commands import refused, run

from ppdm.simulation.tasks import PAPER_TASKS
from ppdm_baselines import METHODS, REFERENCE
from ppdm_bench import cli
from ppdm_bench.environment import environment
from ppdm_bench.gpu_suite import listing as listing_module
from ppdm_bench.gpu_suite import running
from ppdm_bench.gpu_suite.listing import LARGEST, SIZES, SuitePiece, listing
from ppdm_bench.gpu_suite.running import LIMIT, PIECES, Place, in_order, state
from ppdm_bench.records import RecordFile

pytestmark = pytest.mark.slow

FIRST = next(iter(METHODS))
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]


def piece(name: str, *command: str, folder: str = "", seconds: int = 60) -> SuitePiece:
    return SuitePiece(name, f"what {name} is for", command or (name,), 300, (), folder or name, seconds)


def pretend(monkeypatch: pytest.MonkeyPatch, found: dict[str, object]) -> None:
    """Replace the environment of new records, and the one that earlier records are compared with."""
    monkeypatch.setattr("ppdm_bench.environment.environment", lambda: found)
    monkeypatch.setattr(running, "environment", lambda: found)


def options_of(one: SuitePiece, device: str) -> dict[str, object]:
    command, *words = one.words(device, Path("there"))
    return COMMANDS[command].make_context(command, words).params


def test_pieces_have_unique_names_and_estimates_within_the_time_limit():
    pieces = listing()
    assert len({one.name for one in pieces}) == len(pieces)
    assert all(0 < one.seconds <= LIMIT for one in pieces)
    assert all(0 < one.tiny_seconds <= LIMIT for one in pieces)


def test_the_first_pieces_measure_the_memory_of_the_method_and_its_reference():
    options = [options_of(one, "cuda") for one in listing()[: len(SIZES)]]
    assert [one["res"] for one in options] == [str(size) for size in SIZES]
    for one in options:
        assert (one["method"], one["precision"]) == ([FIRST, REFERENCE], "fp32,bf16")


def test_the_list_contains_every_measurement_that_needs_a_gpu():
    options = [options_of(one, "cuda") for one in listing()]
    memory = {
        (name, int(one["res"]), kind)
        for one in options
        if "res" in one and "verify" in one
        for name in one["method"]
        for kind in one["checkpointing"].split(",")
    }
    wanted = {(name, size, kind) for name in METHODS for size in SIZES for kind in ("none", "block")}
    assert wanted | {(FIRST, LARGEST, "none"), (FIRST, LARGEST, "block")} <= memory
    assert {int(one["res"]) for one in options if one.get("verify")} == set(SIZES)
    quality = {(task, name) for one in options if one.get("task") for task in one["task"] for name in one["method"]}
    assert quality == {(task, name) for task in PAPER_TASKS for name in METHODS}
    assert {one["size"] for one in options if one.get("task")} == {96, 128}


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_each_piece_is_a_valid_command_and_small_on_the_cpu(device):
    for one in listing():
        options = options_of(one, device)
        assert (options["device"], options["out"]) == (device, Path("there") / one.folder)
    assert {options_of(one, "cpu")["res"] for one in listing() if one.command[0] in ("memory", "speed")} == {"8"}
    assert {options_of(one, "cpu")["size"] for one in listing() if one.command[0] == "quality"} == {16}


def test_a_piece_repeats_the_options_of_earlier_pieces_in_its_folder():
    """Otherwise its tables would omit results of the earlier pieces."""
    asked: dict[str, tuple[str, ...]] = {}
    for one in listing():
        assert set(asked.get(one.folder, ())) <= set(one.command), one.name
        asked[one.folder] = one.command


@pytest.fixture
def done(monkeypatch):
    """Replace the commands; return their exit codes, which the test sets by name, and the names of those that ran."""
    codes, ran = {}, []

    def _run(words, quiet, limit):
        ran.append(words[0])
        return codes.get(words[0], 0)

    monkeypatch.setattr(running, "_run", _run)
    monkeypatch.setattr(listing_module, "listing", lambda: [piece("a"), piece("b"), piece("c"), piece("d")])
    return codes, ran


def test_a_failed_piece_does_not_stop_the_others_and_runs_last_next_time(done, tmp_path):
    codes, ran = done
    codes |= {"a": 1, "b": None, "c": -9}
    code, out, err = run("gpu", "--device", "cpu", "--out", tmp_path)
    assert (code, ran) == (1, ["a", "b", "c", "d"])
    assert "a: error, 0 s\nb: timeout, 0 s\nc: killed, 0 s\nd: ok, 0 s" in out
    assert "a: it ended with code 1" in err
    assert "b: it had not ended after 600 s; the next run resumes it" in err
    assert "c: the process was ended by signal 9" in err
    code, out, err = run("gpu", "--list", "--device", "cpu", "--out", tmp_path)
    assert [line.split()[3] for line in out.splitlines()[:4]] == ["failed", "begun", "failed", "done"]
    assert "the pieces that are left take 3 min" in out
    ran.clear()
    codes.clear()
    assert run("gpu", "--device", "cpu", "--out", tmp_path)[0] == 0
    assert ran == ["b", "a", "c"]
    code, out, err = run("gpu", "--device", "cpu", "--out", tmp_path)
    assert (code, ran) == (0, ["b", "a", "c"])
    assert "all pieces are done" in err


def test_the_run_stops_before_a_piece_that_exceeds_the_remaining_time(done, monkeypatch, tmp_path):
    _, ran = done
    monkeypatch.setattr(listing_module, "listing", lambda: [piece("a"), piece("b", seconds=599), piece("c")])
    code, _, err = run("gpu", "--device", "cpu", "--out", tmp_path, "--minutes", "9")
    assert (code, ran) == (0, ["a"])
    assert "stopped because the remaining time is too short: b takes about 10.0 min; 2 pieces are left" in err
    ran.clear()
    code, _, err = run("gpu", "--device", "cpu", "--out", tmp_path / "other", "--minutes", "0.9")
    assert (code, ran) == (1, [])
    assert "no piece fits into 0.9 minutes: a takes about 1.0 min; increase --minutes" in err


def test_a_requested_piece_runs_again(done, tmp_path):
    _, ran = done
    for _ in range(2):
        assert run("gpu", "--device", "cpu", "--out", tmp_path, "--piece", "c", "--piece", "b")[0] == 0
    assert ran == ["c", "b", "c", "b"]
    assert "did you mean" not in refused(2, "gpu", "--piece", "zzz")


def test_only_the_same_command_on_the_same_card_counts_as_done(done, tmp_path, monkeypatch):
    place, pieces = Place("cpu", tmp_path), [piece("a"), piece("b")]
    assert len(list(running.carry_out(pieces, place, None, lambda _: None))) == 2
    assert in_order(pieces, state(place, pieces)) == []
    assert in_order([piece("a", "a", "--more")], state(place, [piece("a", "a", "--more")]))
    moved = tmp_path.with_name("moved")
    tmp_path.rename(moved)
    assert in_order(pieces, state(Place("cpu", moved), pieces)) == []
    assert in_order(pieces, state(Place("cuda", moved), pieces)) == pieces
    pretend(monkeypatch, environment() | {"commit": "another"})
    assert in_order(pieces, state(Place("cpu", moved), pieces)) == []
    pretend(monkeypatch, environment() | {"gpu": "another"})
    assert in_order(pieces, state(Place("cpu", moved), pieces)) == pieces
    assert len(list(running.carry_out(pieces[:1], Place("cuda", moved), None, lambda _: None))) == 1
    assert in_order(pieces, state(Place("cuda", moved), pieces)) == pieces[1:]
    pretend(monkeypatch, environment() | {"gpu": "a third"})
    assert in_order(pieces, state(Place("cuda", moved), pieces)) == pieces


def test_a_machine_without_a_gpu_lists_the_results_of_one_with_a_gpu(done, tmp_path, monkeypatch):
    with monkeypatch.context() as elsewhere:
        pretend(elsewhere, environment() | {"gpu": "a card"})
        assert len(list(running.carry_out([piece("a")], Place("cuda", tmp_path), None, lambda _: None))) == 1
    pretend(monkeypatch, {k: v for k, v in environment().items() if k != "gpu"})
    _, out, _ = run("gpu", "--list", "--out", tmp_path)
    assert [line.split()[3] for line in out.splitlines()[:4]] == ["done", "open", "open", "open"]


def test_without_a_gpu_the_error_names_the_alternatives_in_two_sentences(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = refused(1, "gpu")
    assert said.startswith("ppdm-bench: there is no CUDA device here")
    assert said.count(". ") == 1
    assert all(word in said for word in ("--list", "--device cpu", "docs/gpu.md"))


def test_run_returns_the_exit_code_or_none_after_a_timeout():
    assert running._run(("--version",), True, 120) == 0
    assert running._run(("nonsense",), True, 120) == 2
    assert running._run(("methods",), True, 0.05) is None


def test_real_pieces_run_and_an_invalid_one_does_not_stop_the_rest(monkeypatch, tmp_path):
    """One piece measures memory, and the other one is not a command."""
    small = ("--method", FIRST, "--res", "8", "--width", "8", "--factor", "4", "--phase", "sample")
    pieces = [piece("nonsense"), piece("peaks", "memory", *small)]
    monkeypatch.setattr(listing_module, "listing", lambda: pieces)
    code, out, err = run("gpu", "--device", "cpu", "--out", tmp_path, "--json")
    assert code == 1, err
    records = json.loads(out)
    ended = [record for record in records if record["metric"] == "piece_seconds"]
    assert [(r["options"]["piece"], r["status"]) for r in ended] == [("nonsense", "error"), ("peaks", "ok")]
    assert {r["kind"] for r in records if r["metric"] == "peak_allocated"} == {"predicted", "measured"}
    assert RecordFile(tmp_path / PIECES).read()[-1].value > 0
    for name in ("memory.csv", "memory.md", "agreement.md", "agreement.png", "agreement.pdf", "peaks/records.jsonl"):
        assert (tmp_path / name).stat().st_size > 0
    assert (
        f"| {FIRST} | 8×8×8 | 1 | 0.00% | +0.00% | +0.00% | 0 | – | – | – | – |"
        in (tmp_path / "agreement.md").read_text()
    )

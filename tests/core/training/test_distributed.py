"""Distributed training: two real processes, which communicate through gloo, compared with a single process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import manifest

from ppdm.training.distributed import SINGLE_RANK, Ranks, own_gpu
from ppdm_bench.records import RecordFile

pytestmark = pytest.mark.slow

HERE = Path(__file__).parents[2]
PATH = os.pathsep.join([str(HERE), *filter(None, sys.path)])


def python(*words):
    done = subprocess.run(
        [sys.executable, *map(str, words)], env=os.environ | {"PYTHONPATH": PATH}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranked")
    manifest(folder, (None,) * 6, ("train",) * 4 + ("val", "test"), shape=(16, 16, 16))
    return folder


@pytest.fixture(scope="module")
def came(folder):
    return json.loads(python(HERE / "ranked.py", folder).stdout)


def steps(folder, run):
    return [json.loads(line)["step"] for line in (folder / f"run-{run}" / "log.jsonl").read_text().splitlines()]


# --- the result does not depend on the number of ranks


@pytest.mark.parametrize("name", ["puzzle", "patches", "slices", "latent", "adversarial"])
def test_two_ranks_with_half_the_batch_match_one_process_with_the_whole_batch(folder, came, name):
    methods = {"puzzle": "ppdm", "patches": "patches", "slices": "slice25d", "latent": "latent", "adversarial": "gan3d"}
    method = methods[name]
    assert came[name]["codes"] == [0, 0], came[name]["err"]
    alone, *two = (
        torch.load(folder / f"{method}-{which}.pt", weights_only=False) for which in ("0-of-1", "0-of-2", "1-of-2")
    )
    assert sum(float(one.square().sum()) for one in alone["gradients"]) > 1e-4
    for each in two:
        for got, wanted in zip(each["gradients"], alone["gradients"], strict=True):
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-6 * float(wanted.abs().max() + 1))
        for got, wanted in zip(each["weights"], alone["weights"], strict=True):
            # AdamW divides a gradient by its size: if it is almost 0, rounding changes a weight by part of a step.
            torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    for key in alone:
        assert all(torch.equal(a, b) for a, b in zip(*(each[key] for each in two), strict=True))


@pytest.mark.parametrize("name", ["puzzle", "patches", "slices", "latent", "adversarial"])
def test_losses_are_those_of_the_whole_batch_and_only_the_first_rank_reports_them(came, name):
    told, untold = came[name]["results"]
    assert untold == []
    assert came[name]["log"] == len(told) == 4
    for got, wanted in zip(told, came["alone"][name], strict=True):
        assert dict(enumerate(got)) == {k: v if v is None else pytest.approx(v, rel=1e-4) for k, v in enumerate(wanted)}
    assert [validated is not None for *_, validated in told] == [False, True, False, True]


def test_all_ranks_end_by_the_same_clock(came):
    assert came["clock"]["codes"] == [0, 0], came["clock"]["err"]
    done, none = came["clock"]["results"]
    assert done == list(range(1, len(done) + 1))
    assert done
    assert none == []


# --- samples and shares, without communication


def test_the_shares_of_all_ranks_make_up_the_batch():
    shares = [Ranks(rank, 3).share([5, 2, 7, 1, 0, 4]) for rank in range(3)]
    assert shares == [[5, 2], [7, 1], [0, 4]]
    assert SINGLE_RANK.share([5, 2]) == [5, 2]


@pytest.mark.parametrize(
    "draw",
    [
        lambda n, **how: torch.rand(n, **how),
        lambda n, **how: torch.rand(n, 3, **how),
        lambda n, **how: torch.randn((n, 2, 9), **how),
        lambda n, **how: torch.randn(size=(n, 2), **how),
        lambda n, **how: torch.randint(7, (n, 4), **how),
        lambda n, **how: torch.randint(3, 7, (n,), **how),
    ],
)
def test_the_samples_of_all_ranks_make_up_those_of_the_whole_batch(draw):
    whole = torch.Generator().manual_seed(1)
    wanted = [draw(6, generator=whole) for _ in range(2)]
    parts = []
    for rank in range(3):
        generator = torch.Generator().manual_seed(1)
        with Ranks(rank, 3).sharing_samples(generator):
            parts.append([draw(2, generator=generator) for _ in range(2)])
    for k in range(2):
        assert torch.equal(torch.cat([part[k] for part in parts]), wanted[k])


def test_other_generators_are_unaffected_and_unsupported_sampling_is_refused():
    generator, other = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    wanted = torch.rand(2, generator=torch.Generator().manual_seed(2))
    with Ranks(1, 2).sharing_samples(generator):
        assert torch.equal(torch.rand(2, generator=other), wanted)
        with pytest.raises(ValueError, match=r"randperm gives samples that cannot be shared among ranks; use torch\."):
            torch.randperm(3, generator=generator)


def test_each_process_needs_its_own_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_gpu() == 1
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="2 processes were started on a machine with 1 GPUs"):
        own_gpu()


# --- files, output and errors


def test_only_the_first_rank_writes_files_and_output(folder, came):
    plain = came["plain"]
    assert (plain["codes"], plain["err"], plain["out"][1]) == ([0, 0], ["", ""], "")
    assert plain["out"][0].startswith("6 steps in ")
    assert steps(folder, "plain") == [1, 2, 3, 4, 5, 6]
    options = json.loads((folder / "run-plain" / "options.json").read_text())
    assert options["environment"]["ranks"] == 2
    assert "is complete: 6 steps done" in came["again"]["out"][0]
    assert came["again"]["out"][1] == ""


@pytest.mark.parametrize("name", ["lost", "failed", "stopped", "full"])
def test_an_interrupted_distributed_run_resumes_to_the_same_weights(folder, came, name):
    on = came[f"{name} on"]
    assert (on["codes"], on["err"]) == ([0, 0], ["", ""])
    assert steps(folder, name) == [1, 2, 3, 4, 5, 6]
    got, wanted = (load_file(folder / f"run-{run}" / "model.safetensors") for run in (name, "plain"))
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("name", "codes", "sentence"),
    [
        ("lost", [1, -9], "Another rank ended without an error message, or cannot be reached"),
        ("failed", [1, 0], "Rank 1 of 2 failed: the scan cannot be read"),
        ("stopped", [130, 0], "stopped after step 3 as requested; the last good checkpoint is "),
        ("full", [1, 0], "No space left on device"),
        ("odd", [1, 0], "A batch of 3 cannot be shared equally among 2 processes"),
        ("usage", [2, 0], "give one budget: --steps or --minutes"),
    ],
)
def test_an_error_on_one_rank_ends_all_ranks_and_is_reported_once(came, name, codes, sentence):
    assert came[name]["codes"] == codes, came[name]["err"]
    first, second = came[name]["err"]
    assert first.count(sentence) == 1
    assert "Traceback" not in first
    assert (second, came[name]["out"]) == ("", ["", ""])


def test_all_ranks_train_a_method_and_only_the_first_scores_it(folder, came):
    scored = came["quality"]
    assert scored["codes"] == [1, 0], scored["err"]  # one method diverged on both ranks; the other was still scored
    assert (scored["out"][1], scored["err"][1]) == ("", "")
    assert scored["err"][0].count("Training stopped at step") == 1
    records = RecordFile(folder / "quality" / "mri-t1t2" / "records.jsonl").read()
    assert {record.method for record in records if record.metric == "psnr"} == {"input", "tiny"}
    (peak,) = (record for record in records if record.metric == "train_peak_allocated")
    assert (peak.value, peak.unit, peak.stat, peak.samples) == (101, "B", "max", (100, 101))


def test_torchrun_gives_the_same_weights(folder, came):
    words = ["train", "--method", "tiny_training:TINY", "--steps", "6", "--batch-size", "2", "--device", "cpu"]
    run = ["--manifest", folder / "pairs.csv", "--out", folder / "run-torchrun"]
    done = python("-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "ppdm_bench", *words, *run)
    assert done.stdout.count("6 steps in ") == 1
    assert "ppdm-bench" not in done.stderr
    assert steps(folder, "torchrun") == [1, 2, 3, 4, 5, 6]
    got, wanted = (load_file(folder / f"run-{name}" / "model.safetensors") for name in ("torchrun", "plain"))
    assert all(torch.equal(got[key], wanted[key]) for key in wanted)

"""Jobs of submitit on one machine: its executors ``local``, and ``debug``, which runs in this process."""

import os
import sys
from functools import partial

import pytest
from commands import refused, run
from processes import ended, wait_until
from spreading import dies, doubled, hangs
from spreading import refused as refuses

from ppdm_bench.commands.requested import requested_jobs
from ppdm_bench.isolation.slurm import LauncherError, spread
from ppdm_bench.records import RecordFile

# Submitit leaves its log files open and does not wait for the processes that it ends.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

LOCAL = {"cluster": "local"}
MEMORY = ("memory", "--res", 16, "--width", 8, "--method", "ppdm", "--factor", "1,2", "--phase", "sample")
HERE = ("--launcher", "submitit", "--launcher-option", "cluster=debug")


@pytest.fixture(autouse=True)
def importable(monkeypatch, unrendered):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


def test_each_piece_runs_in_its_own_process_and_a_failure_does_not_affect_others(tmp_path):
    came = {one.number: one for one in spread([refuses, dies, partial(doubled, 3)], tmp_path, LOCAL)}
    assert [came[number].found for number in range(3)] == [None, None, 6]
    assert [came[number].fault for number in (0, 2)] == ["the scan cannot be read; give another", ""]
    assert "ended without a result; see " in came[1].fault
    assert len(list((tmp_path / "jobs" / "logs").glob("*_result.pkl"))) == 2


def test_closing_the_iterator_ends_the_remaining_jobs(tmp_path):
    jobs = spread([partial(doubled, 1), partial(hangs, tmp_path / "pid")], tmp_path, LOCAL)
    assert next(jobs).found == 2
    assert wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    jobs.close()
    assert wait_until(lambda: ended(int((tmp_path / "pid").read_text())))


def test_an_error_of_submitit_is_reported_in_one_sentence(tmp_path):
    with pytest.raises(
        LauncherError, match=r"^submitit cannot create the jobs: Unknown argument 'portion' for executor 'slurm'"
    ):
        next(spread([refuses], tmp_path, {**LOCAL, "slurm_portion": "gpu"}))


def test_without_submitit_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    sentence = refused(1, *MEMORY, *HERE, "--device", "predict", "--out", tmp_path)
    assert "pip install 'ppdm[cluster]'" in sentence
    assert not (tmp_path / "records.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--launcher", "slurm"], "'slurm' is not one of 'submitit'"),
        (["--launcher-option", "timeout_min=9"], "give it with --launcher submitit"),
        (["--launcher", "submitit", "--launcher-option", "gpu"], "expected a parameter of submitit and its value"),
        ([*HERE, "--verify"], "leave --launcher out"),
        ([*HERE, "--explain", "ppdm"], "leave --launcher out"),
    ],
)
def test_invalid_launcher_options_are_refused(words, sentence):
    assert sentence in " ".join(refused(2, *MEMORY, *words).split())


def test_jobs_are_refused_under_torchrun(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    monkeypatch.setenv("RANK", "0")
    assert "starts its own jobs; run the command without torchrun" in refused(2, "quality", *HERE)


def test_numeric_launcher_options_become_numbers():
    asked = requested_jobs("submitit", ["timeout_min=60", "mem_gb=7.5", "slurm_partition=gpu", "slurm_comment=a=b"])
    assert asked == {"timeout_min": 60, "mem_gb": 7.5, "slurm_partition": "gpu", "slurm_comment": "a=b"}
    assert type(asked["timeout_min"]) is int
    assert requested_jobs(None, None) is None


def content(folder):
    """Return the contents of the records in a folder, without times and run ids."""
    records = RecordFile(folder / "records.jsonl").read()
    return sorted(record.content() for record in records)


def test_jobs_give_the_records_of_a_sweep_with_a_folder_for_each_configuration(tmp_path):
    words = (*MEMORY, "--device", "predict", "--json", "--out")
    assert run(*words, tmp_path / "sweep")[0] == 0
    code, _, err = run(*words, tmp_path / "spread", *HERE)
    assert (code, err.count("written: ")) == (0, 1), err
    wanted = content(tmp_path / "sweep")
    assert content(tmp_path / "spread") == wanted
    folders = [path.parent for path in (tmp_path / "spread" / "jobs").glob("*/records.jsonl")]
    assert len(folders) == 2
    assert sorted(one for folder in folders for one in content(folder)) == wanted
    assert run(*words, tmp_path / "spread", *HERE)[0] == 0
    assert content(tmp_path / "spread") == wanted


def test_a_lost_job_is_reported_and_does_not_affect_the_others(tmp_path, monkeypatch):
    from ppdm_bench.memory import jobs

    collect = jobs.collect

    def lost(plan, folder):
        if plan.configurations[0].factor == 1:
            raise ValueError("the node is gone")
        return collect(plan, folder)

    monkeypatch.setattr(jobs, "collect", lost)
    code, out, err = run(*MEMORY, "--device", "predict", *HERE, "--out", tmp_path)
    assert code == 1
    assert "ppdm r=1: the node is gone" in err
    assert "ppdm" in out
    assert {record.variant for record in RecordFile(tmp_path / "records.jsonl").read()} == {"r=2"}

"""``benchmarks/harness/campaign.py``: its jobs, repeated calls, and gathered records."""

import json
import lzma
import subprocess
from dataclasses import replace

import campaign
import numpy as np
import pytest
from commands import run

from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.report.snapshot import SUFFIX, Snapshot, View, read_snapshot, sections, write_snapshot

PHANTOMS = campaign.jobs(None)


def test_no_two_jobs_share_a_name_and_no_two_trainings_a_folder():
    assert len({job.name for job in PHANTOMS}) == len(PHANTOMS)
    trained = [job for job in PHANTOMS if job.is_training]
    assert len({job.run for job in trained}) == len(trained)
    assert {job.run for job in PHANTOMS} == {job.run for job in trained}
    tiers = [job.tier for job in PHANTOMS]
    assert tiers == sorted(tiers, key=list(dict.fromkeys(tiers)).index)  # tier after tier


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_method_is_trained_on_every_task_with_every_seed(seed):
    from ppdm.simulation.tasks import PAPER_TASKS
    from ppdm_baselines import METHODS

    there = {(job.method, job.data.subjects.task) for job in PHANTOMS if job.seed == seed and job.is_training}
    assert there == {(method, task) for method in METHODS for task in PAPER_TASKS}


@pytest.mark.slow
def test_the_command_line_parses_the_words_of_a_job(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = []

    def paced(plan, *_):
        asked.extend(plan)
        return [replace(one, schedule=replace(one.schedule, minutes=None, steps=600)) for one in plan]

    monkeypatch.setattr("ppdm_bench.evaluation.steps_for_minutes.with_steps_for_minutes", paced)
    monkeypatch.setattr("ppdm_bench.commands.quality._train", lambda *_: [])
    monkeypatch.setattr("ppdm_bench.commands.quality._evaluate", lambda *_: None)
    job = next(job for job in PHANTOMS if job.settings)
    assert run(*job.words(tmp_path)[3:])[0] == 0
    (trial,) = asked
    assert (trial.method.name, trial.method.width, trial.schedule.minutes) == (job.method, job.width, job.data.minutes)
    assert trial.method.network.precision == "bf16"


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Two jobs that write records instead of training, and a list of the commands that ran; job two fails at first."""
    data = campaign.Data(PhantomSubjects("mri-t1t2", 4, 16), 1.0)
    made = [campaign.Job("a", data, "ppdm"), campaign.Job("a", data, "wavelet")]
    ran = []

    def carried_out(words, **_):
        method = words[words.index("--method") + 1]
        ran.append(method)
        if method == "wavelet" and ran.count(method) == 1:
            return subprocess.CompletedProcess(words, 1)
        file = tmp_path / "runs" / next(job.run for job in made if job.method == method) / "mri-t1t2" / "records.jsonl"
        file.parent.mkdir(parents=True)
        rows = [
            {"metric": metric, "options": options} for metric in ("psnr", "ssim") for options in ({}, {"curve": {}})
        ]
        file.write_text("".join(json.dumps({"method": method, **row}) + "\n" for row in rows))
        return subprocess.CompletedProcess(words, 0)

    monkeypatch.setattr(campaign.subprocess, "run", carried_out)
    return made, ran


def test_finished_jobs_are_skipped_and_failed_jobs_run_again(jobs, tmp_path, capsys):
    made, ran = jobs
    for _ in range(3):
        for job in made:
            campaign.carry_out(job, tmp_path)
    assert ran == ["ppdm", "wavelet", "wavelet"]
    assert capsys.readouterr().out.count("failed with 1") == 1


def test_a_job_that_another_process_has_locked_is_skipped(jobs, tmp_path):
    made, ran = jobs
    campaign.carry_out(made[0], tmp_path)
    with campaign.FileLock(tmp_path / "logs" / f"{made[1].name}.lock"):
        campaign.carry_out(made[1], tmp_path)
    assert ran == ["ppdm"]


def test_of_learning_curves_only_psnr_is_gathered(jobs, tmp_path):
    made, _ = jobs
    campaign.carry_out(made[0], tmp_path)
    (tmp_path / "paces.jsonl").write_text("{}\n")
    compared = [replace(job, tier="claims") for job in made]
    campaign.gather(compared, tmp_path, tmp_path / "results")
    assert not (tmp_path / "results" / "mri-t1t2-16").exists()  # a job of the compared tier is missing
    assert len({job.part for job in [*made, *compared]}) == 3  # other tiers are gathered per method
    campaign.gather(made, tmp_path, tmp_path / "results")
    found = [(row["method"], row["metric"], "curve" in row["options"]) for row in _rows(tmp_path / "results")]
    assert found == [("ppdm", "psnr", False), ("ppdm", "psnr", True), ("ppdm", "ssim", False)]


def test_gathered_jobs_are_neither_run_nor_gathered_again(jobs, tmp_path):
    made, ran = jobs
    campaign.carry_out(made[0], tmp_path)
    (tmp_path / "paces.jsonl").write_text("{}\n")
    campaign.gather(made, tmp_path, tmp_path / "results")
    later = tmp_path / "later"
    campaign.continue_from(tmp_path / "results", later)
    assert (later / "paces.jsonl").read_text() == "{}\n"
    campaign.carry_out(made[0], later)
    assert ran == ["ppdm"]
    (later / "done" / made[1].name).touch()
    (tmp_path / "runs").rename(later / "runs")
    (later / "runs" / made[0].run).rename(later / "runs" / made[1].run)
    campaign.gather(made, later, tmp_path / "results")
    assert (tmp_path / "results" / "jobs.txt").read_text().splitlines() == [job.name for job in made]
    assert len(_rows(tmp_path / "results")) == 3  # equal rows are kept once


def test_later_scores_of_a_gathered_training_are_added(jobs, tmp_path):
    training = jobs[0][0]
    campaign.carry_out(training, tmp_path)
    (tmp_path / "paces.jsonl").write_text("{}\n")
    campaign.gather([training], tmp_path, tmp_path / "results")
    scores = replace(training, evaluations="25")
    file = tmp_path / "runs" / training.run / "mri-t1t2" / "records.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"ssim"', b'"lpips"'))
    (tmp_path / "done" / scores.name).touch()
    campaign.gather([training, scores], tmp_path, tmp_path / "results")
    assert {row["metric"] for row in _rows(tmp_path / "results")} == {"psnr", "ssim", "lpips"}


def test_the_pictures_of_the_gallery_are_merged_into_one_file(jobs, tmp_path):
    made = [replace(job, tier="gallery") for job in jobs[0]]
    (tmp_path / "paces.jsonl").write_text("{}\n")
    target = sections(np.arange(8.0**3).reshape(8, 8, 8), (4, 4, 4))
    for job in made:
        campaign.carry_out(job, tmp_path)
        campaign.carry_out(job, tmp_path)  # the second job fails the first time
        views = [View("target", "target", target), View("prediction", job.method, target)]
        about = ("mri-t1t2", "test-000", (1.0, 1.0, 1.0), (8, 8, 8), "")
        write_snapshot(Snapshot(*about, views), tmp_path / "runs" / job.run / "mri-t1t2" / SUFFIX)
    for done in (made[:1], made):  # first one method, then both
        campaign.gather(done, tmp_path, tmp_path / "results")
    whole = read_snapshot(tmp_path / "results" / "mri-t1t2-16" / SUFFIX)
    assert [view.label for view in whole.of("prediction")] == ["ppdm", "wavelet"]


def _rows(results):
    content = lzma.decompress((results / "mri-t1t2-16" / "records.jsonl.xz").read_bytes())
    return [json.loads(line) for line in content.splitlines()]

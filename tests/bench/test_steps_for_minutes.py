"""Minutes are converted to steps by the step time of each method."""

import pytest

from ppdm.training.schedule import Schedule
from ppdm_bench.ablation.step_time import StepTimes
from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.evaluation.steps_for_minutes import with_steps_for_minutes
from ppdm_bench.evaluation.trials import plan_trials
from ppdm_bench.records import RecordFile

SUBJECTS = PhantomSubjects("mri-t1t2", 4, 16)


@pytest.fixture
def by_width(monkeypatch):
    """Replace the measurement: a step of a network of width w takes w / 10 seconds."""
    monkeypatch.setattr(
        StepTimes,
        "_seconds",
        lambda self, cells, device, tell: {name: [cell.method.width / 10] for name, cell in cells.items()},
    )


def test_each_width_of_a_method_has_its_own_step_time(tmp_path, by_width):
    plan = [
        one for width in (8, 32, 16) for one in plan_trials([SUBJECTS], ["ppdm"], [], Schedule(minutes=1), [0], width)
    ]
    assert len({trial.label for trial in plan}) == 1
    made = with_steps_for_minutes(plan, tmp_path / "paces.jsonl", "cpu", lambda text: None)
    assert [(trial.method.width, trial.schedule.steps) for trial in made] == [(8, 75), (32, 19), (16, 38)]
    assert len(RecordFile(tmp_path / "paces.jsonl").read()) == 3


def test_step_times_in_the_file_are_not_measured_again(tmp_path, by_width, monkeypatch):
    plan = plan_trials([SUBJECTS], ["ppdm"], [], Schedule(minutes=1), [0, 1], 8)
    with_steps_for_minutes(plan, tmp_path / "paces.jsonl", "cpu", lambda text: None)
    monkeypatch.setattr(StepTimes, "_seconds", lambda self, cells, device, tell: {key: [1000.0] for key in cells})
    made = with_steps_for_minutes(plan, tmp_path / "paces.jsonl", "cpu", lambda text: None)
    assert [trial.schedule.steps for trial in made] == [75, 75]

"""The validation loss, and its comparison with predictions that need no training."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_training import DDPM, TINY, pair, tuned

from ppdm import fit
from ppdm.kernel import Brownian, Gaussian, Linear, output_of, x0_of
from ppdm.loss import Loss
from ppdm.method import guess_source, guess_zero
from ppdm.training.log import untrained_note
from ppdm.training.validation import compared_with_untrained, validation_loss

PAIRS = [pair(seed) for seed in range(3)]


def last_report(method, **options):
    reports = []
    fit(method, PAIRS, progress=reports.append, **options)
    assert all(report.untrained_loss is None for report in reports[:-1])
    return reports[-1]


@pytest.mark.parametrize(
    ("kernel", "target"),
    [(kernel, target) for kernel in (Brownian(), Linear(0.5), Gaussian()) for target in kernel.targets],
)
def test_x0_of_undoes_output_of(kernel, target):
    x0, x_t, y = (torch.randn(2, 1, 4, 4, 4, generator=torch.Generator().manual_seed(k)) for k in range(3))
    t = torch.tensor([0.3, 0.8]).reshape(-1, 1, 1, 1, 1)
    back = x0_of(target, kernel, output_of(target, kernel, x0, x_t, y, t), x_t, y, t)
    torch.testing.assert_close(back, x0, rtol=0, atol=1e-5)


def test_the_untrained_loss_is_the_lower_one_of_the_source_and_of_zeros():
    def untrained_loss(method):
        return compared_with_untrained(method, method.build(), PAIRS)[1]

    plain = replace(TINY, loss=Loss(p=2, gradient=0, mode="off"))
    differences = [float(np.mean((target - source) ** 2)) for source, target in PAIRS]
    assert untrained_loss(plain) == pytest.approx(np.mean(differences), rel=1e-6)
    # An untrained network returns zeros, and a residual of zeros gives the source.
    assert untrained_loss(TINY) == validation_loss(TINY, TINY.build(), PAIRS)
    # For noise, the loss of zeros is the variance, 1. That of the source is lower if it is close to the target.
    noise = replace(DDPM, loss=Loss(p=2))
    zeros, source = (validation_loss(noise, noise.build(), PAIRS, guess=guess) for guess in (guess_zero, guess_source))
    assert zeros == pytest.approx(1, rel=0.1)
    assert untrained_loss(noise) == min(zeros, source)
    x0 = replace(plain, target="x0")
    squares = [float(np.mean(target**2)) for _, target in PAIRS]
    wanted = min(np.mean(differences), np.mean(squares))
    assert untrained_loss(x0) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.slow
def test_a_run_that_learns_nothing_gets_a_note_and_one_that_learns_does_not(tmp_path):
    stuck = last_report(tuned(TINY, learning_rate=1e-12), steps=3, log=tmp_path / "log.jsonl")
    assert "no better than an untrained one: its loss is" in untrained_note(tmp_path / "log.jsonl")
    assert stuck.average_loss == pytest.approx(stuck.untrained_loss, rel=1e-3)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [("untrained_loss" in row, "average_loss" in row) for row in rows] == [(False, False)] * 2 + [(True, True)]
    learnt = last_report(tuned(TINY, learning_rate=3e-3), steps=60, log=tmp_path / "learnt.jsonl")
    assert untrained_note(tmp_path / "learnt.jsonl") == ""
    assert learnt.average_loss < 0.8 * learnt.untrained_loss == pytest.approx(0.8 * stuck.untrained_loss)

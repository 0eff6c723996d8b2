"""Scores of a trained method on the pairs of a manifest."""

import os
from collections.abc import Iterable
from dataclasses import replace

import torch

from ppdm.checkpoint import Trained, load
from ppdm.data.manifest import ManifestError, read_manifest
from ppdm.evaluation.evaluate import (
    block_grids,
    check_kind,
    convention,
    data_range,
    deviation_score,
    in_units_of,
    predict,
    predict_samples,
    scores,
)
from ppdm.evaluation.subjects import files_of, read_case
from ppdm.method import Method
from ppdm.translation import check_samples


def evaluate(
    trained: Trained | str | os.PathLike[str],
    manifest: str | os.PathLike[str],
    *,
    split: str = "test",
    evaluations: int | None = None,
    seed: int = 0,
    samples: int | None = None,
    resample: bool = False,
    compared: Iterable[Method] = (),
    device: str | torch.device = "cpu",
) -> dict[str, dict[str, float]]:
    """Translate the sources of a split and score them against their targets, as ``ppdm-bench evaluate`` does.

    Args:
        trained: a trained method, or the folder of its run.
        manifest: CSV file of pairs (:func:`ppdm.data.manifest.read_manifest`).
        split: split of the pairs that are scored.
        evaluations: network evaluations per volume; the method's own if absent.
        seed: random seed of stochastic methods.
        samples: samples per volume, 2 or more, of a method that uses noise in sampling; their mean is scored, and
            ``deviation_rank`` shows whether their standard deviation is large where the error is large.
        resample: whether to interpolate volumes on other grids onto the grids of their (first) sources.
        compared: other methods of a comparison, so that seams are measured on the block grids of all.
        device: device of the network, if ``trained`` is a folder.

    Returns:
        The values by subject and metric, such as ``scores["s01"]["psnr"]``. A metric that cannot be computed for a
        subject is absent. :mod:`ppdm.evaluation.evaluate` states the conventions.

    Raises:
        CheckpointError: there is no trained method in the folder.
        ManifestError: the manifest has faults, or no pairs in the split.
        CaseError, VolumeError, IntensityError, TranslationError: a scan cannot be read or translated, or
            several samples would be equal.
    """
    one = trained if isinstance(trained, Trained) else load(trained, device)
    if evaluations is not None:
        one = replace(one, method=replace(one.method, sampling=replace(one.method.sampling, steps=evaluations)))
    cases = files_of([pair for pair in read_manifest(manifest) if pair.split == split])
    if not cases:
        raise ManifestError(f"{manifest} has no pairs in the split {split!r}; mark some rows with it, or name another.")
    check_kind(one, cases, one.method.name)
    check_samples(one.method, samples)
    cases = in_units_of([one], cases)
    preset = convention(data_range(one.scaling), block_grids([one.method, *compared]), cases[0].unit)
    found: dict[str, dict[str, float]] = {}
    for files in cases:
        case = read_case(files, resample=resample)
        if samples is None:
            values = scores(preset, predict(one, case, seed), case)
        else:
            prediction, deviation = predict_samples(one, case, samples, seed)
            values = [*scores(preset, prediction, case), deviation_score(deviation, prediction, case)]
        found[files.name] = {score.metric: score.value for score in values if score.value is not None}
    return found

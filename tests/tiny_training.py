"""Helpers for the tests of training: tiny methods, smooth pairs, and a manifest of such pairs on disk."""

from dataclasses import replace

import numpy as np
import torch

from ppdm import PPDM
from ppdm.data.volume import Volume, write_volume
from ppdm_baselines import METHODS


def tuned(method, **options):
    return replace(method, optimisation=replace(method.optimisation, **options))


TINY = tuned(PPDM.with_network(width=8, multipliers=(1, 2)), learning_rate=1e-3)
DDPM = tuned(METHODS["ddpm3d"].with_network(width=8, multipliers=(1, 2)), learning_rate=1e-4)


def pair(seed=0, shape=(8, 8, 8)):
    """Return a smooth source in [-1, 1] and its square, scaled to [-1, 1], as the target; float32."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(0, 2 * np.pi, s) for s in shape), indexing="ij")
    source = np.prod([np.sin(g + p) for g, p in zip(grids, rng.uniform(0, 6, 3), strict=True)], axis=0)
    return source.astype(np.float32), (2 * source**2 - 1).astype(np.float32)


def weights(network):
    return [p.clone() for p in network.parameters()]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(weights(a), weights(b), strict=True))


def manifest(folder, factors=(None, None, None), splits=("train", "train", "val"), shape=(8, 6, 4)):
    """Write three subjects whose intensities differ by a factor, and return their manifest."""
    rows = ["subject,split,source,target,suv_factor"]
    for i, (factor, split) in enumerate(zip(factors, splits, strict=True)):
        source, target = ((i + 1) * 100 * (v + 1) for v in pair(i, shape))
        for name, data in (("a", source), ("b", target)):
            volume = Volume.from_array(data, (1.0, 1.5, 2.0 + i))
            write_volume(folder / f"{i}{name}.nii.gz", volume.data, volume)
        rows.append(f"s{i},{split},{i}a.nii.gz,{i}b.nii.gz,{'' if factor is None else factor}")
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder / "pairs.csv"

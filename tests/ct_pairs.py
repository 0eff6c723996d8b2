"""Small pairs of MR and CT: a body of soft tissue with one bone inside, surrounded by air."""

import numpy as np

from ppdm.data.volume import Volume, write_volume

SHAPE = (12, 14, 11)
SPACING = (1.0, 1.5, 2.0)


def body(shape=SHAPE):
    """Return masks of the body, an ellipsoid, and of the bone inside it."""
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    radius = np.sqrt(sum(axis**2 for axis in axes))
    return radius < 0.9, radius < 0.3


def ct(seed=0, shape=SHAPE):
    """Return a CT in HU: air -1000, soft tissue about 40, bone about 900."""
    inside, bone = body(shape)
    noise = np.random.default_rng(seed).normal(0, 10, shape)
    return (np.where(bone, 900.0, np.where(inside, 40.0 + seed, -1000.0)) + noise).astype(np.float32)


def mr(seed=0, shape=SHAPE):
    """Return an MR image in arbitrary units; air and bone have almost no signal."""
    inside, bone = body(shape)
    return (np.where(inside & ~bone, 300.0 + 20 * seed, 10.0) + ct(seed, shape) / 100).astype(np.float32)


def write(path, array):
    volume = Volume.from_array(array, SPACING)
    write_volume(path, volume.data, volume)
    return path


def manifest(folder, cells="ct", *, target=ct, source=mr, splits=("train", "train", "test"), column="target_intensity"):
    """Write subjects and their manifest; `cells` is the content of `column`, one for all rows or one for each row."""
    cells = [cells] * len(splits) if isinstance(cells, str) else cells
    rows = [f"subject,split,source,target,mask,{column}"]
    for i, (split, cell) in enumerate(zip(splits, cells, strict=True)):
        for name, array in (("source", source(i)), ("target", target(i)), ("mask", body()[0].astype(np.float32))):
            write(folder / f"{i}{name}.nii.gz", array)
        quoted = f'"{cell}"' if "," in cell else cell
        rows.append(f"s{i},{split},{i}source.nii.gz,{i}target.nii.gz,{i}mask.nii.gz,{quoted}")
    path = folder / "pairs.csv"
    path.write_text("\n".join(rows))
    return path

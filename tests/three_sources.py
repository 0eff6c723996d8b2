"""Write subjects with three sources, for the tests of methods with several sources."""

from pathlib import Path

import numpy as np

from ppdm.data.volume import Volume, write_volume

NAMES = ("t1n", "t1c", "t2w")
SPLITS = ("train", "train", "train", "val", "test")


def scan(path: Path, data: np.ndarray, spacing: tuple[float, float, float] = (2.0, 2.0, 2.0)) -> Path:
    """Write a volume (D, H, W), and return its path."""
    volume = Volume.from_array(data, spacing)
    write_volume(path, volume.data, volume)
    return path


def sources(seed: int, shape: tuple[int, ...] = (12, 12, 12)) -> dict[str, np.ndarray]:
    """Return three smooth volumes with different intensity scales, by name."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(0, 6, s) for s in shape), indexing="ij")
    waves = [np.prod([np.sin(g + p) for g, p in zip(grids, rng.uniform(0, 6, 3), strict=True)], 0) for _ in NAMES]
    return {
        name: (10.0**k * (wave + 1.5)).astype(np.float32)
        for k, (name, wave) in enumerate(zip(NAMES, waves, strict=True))
    }


def three_sources(folder: Path, names: tuple[str, ...] = NAMES, splits: tuple[str, ...] = SPLITS) -> Path:
    """Write subjects whose target depends on all three sources, and a manifest with the sources in `names`."""
    rows = ["subject,split," + ",".join(f"source.{name}" for name in names) + ",target"]
    for number, split in enumerate(splits):
        made = sources(number)
        target = 3 + made["t1n"] * made["t1c"] / 10 - made["t2w"] / 100
        for name, data in {**made, "flair": target.astype(np.float32)}.items():
            scan(folder / f"s{number}_{name}.nii.gz", data)
        cells = [f"s{number}_{name}.nii.gz" for name in (*names, "flair")]
        rows.append(",".join([f"s{number}", split, *cells]))
    (folder / "pairs.csv").write_text("\n".join(rows))
    return folder / "pairs.csv"

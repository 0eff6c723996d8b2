"""Make records like those of the commands, with values that the test chooses."""

from dataclasses import replace
from pathlib import Path

from ppdm_baselines import METHODS
from ppdm_bench.records import Record, RecordFile, config_id

PPDM, FULL_3D, WAVELET = METHODS["ppdm"], METHODS["ddpm3d"], METHODS["wavelet"]
TASKS = ("pet-denoise", "pet-joint", "mri-t1t2")
ENV = {"commit": "0123456789abcdef", "dirty": False, "torch": "2.13.0", "cpu": "a CPU"}


def scores(method, task, values, *, seed=0, metric="psnr", steps=4, train_steps=100, unit="dB"):
    """Return one record per subject."""
    options = {
        "resolved": method.to_dict(),
        "training": {"steps": train_steps, "seed": seed},
        "data": {"task": {"task": task}, "split": "test"},
        "convention": {"preset": "ppdm", "data_range": 1.0},
    }
    return [
        Record(
            config_id=config_id(options | {"evaluations": steps}), command="quality", method=method.name,
            variant=method.variant, task=task, shape=(32, 32, 32), steps=steps, metric=metric, value=float(value),
            unit=unit, kind="measured", seed=0, subject=f"test-{n:03d}", device="cpu", env=ENV, options=options,
        )
        for n, value in enumerate(values)
    ]  # fmt: skip


def curve(method, task, means, *, seconds=None, steps=4, of=600, seed=0):
    """Make the records of a learning curve on the split val: two per part of the training, with the given mean."""
    for part, mean in enumerate(means, start=1):
        done = {"curve": {"share": part / len(means), "of": of}}
        budget = {} if seconds is None else {"budgets": {"time": seconds}}
        made = scores(method, task, [mean - 1, mean + 1], steps=steps, seed=seed, train_steps=of * part // len(means))
        for record in made:
            data = {**record.options["data"], "split": "val"}
            yield replace(record, options={**record.options, **done, **budget, "data": data})


def of_scans(records, task="mine"):
    """Return the same records as records of scans from a manifest of the user."""
    data = {"task": None, "resample": False, "manifest": task, "digest": "0123456789ab", "split": "test"}
    return [replace(record, task=task, options=record.options | {"data": data}) for record in records]


def peak(method, size, value, *, metric="peak_allocated", kind="predicted", checkpointing="none", phase="train"):
    """Return one record of memory."""
    options = {"resolved": method.to_dict(), "preset": "matched", "shape": [size] * 3, "width": method.width}
    return Record(
        config_id=config_id(options), command="memory", method=method.name, variant=method.variant,
        shape=(size,) * 3, batch_size=1, phase=phase, precision="fp32", checkpointing=checkpointing, metric=metric,
        value=value, stat="max", n=1, kind=kind, device="cuda", env=ENV, options=options,
    )  # fmt: skip


def timing(method, steps, samples):
    """Return one record of the seconds per volume, with the median as its value."""
    options = {"resolved": method.to_dict()}
    return Record(
        config_id=config_id(options), command="speed", method=method.name, variant=method.variant, shape=(64,) * 3,
        batch_size=1, phase="sample", precision="fp32", steps=steps, metric="volume_seconds",
        value=sorted(samples)[len(samples) // 2], unit="s", stat="median", n=len(samples), kind="measured",
        samples=tuple(samples), device="cpu", env=ENV, options=options,
    )  # fmt: skip


def kept(folder: Path, records) -> Path:
    """Write records into a folder, and return the folder."""
    RecordFile(folder / "records.jsonl").append(records)
    return folder

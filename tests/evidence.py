"""Records as the commands write them, with values of a test's choosing."""

from dataclasses import replace
from pathlib import Path

from ppdm_baselines import METHODS
from ppdm_bench.records import Record, RecordFile, config_id

PPDM, FULL_3D, WAVELET = METHODS["ppdm"], METHODS["ddpm3d"], METHODS["wavelet"]
TASKS = ("pet-denoise", "pet-joint", "mri-t1t2")
ENV = {"commit": "0123456789abcdef", "dirty": False, "torch": "2.13.0", "cpu": "a CPU"}


def scores(method, task, values, *, seed=0, metric="psnr", steps=4, train_steps=100, unit="dB"):
    """A record a subject."""
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
    """Two records for each part of a training, on the split val; the mean of the two is given for each part."""
    for part, mean in enumerate(means, start=1):
        done = {"curve": {"share": part / len(means), "of": of}}
        budget = {} if seconds is None else {"budgets": {"time": seconds}}
        made = scores(method, task, [mean - 1, mean + 1], steps=steps, seed=seed, train_steps=of * part // len(means))
        for record in made:
            data = {**record.options["data"], "split": "val"}
            yield replace(record, options={**record.options, **done, **budget, "data": data})


def of_scans(records, task="mine"):
    """The same records, of the pairs of a manifest `mine.csv`."""
    data = {"task": None, "resample": False, "manifest": task, "digest": "0123456789ab", "split": "test"}
    return [replace(record, task=task, options=record.options | {"data": data}) for record in records]


def peak(method, size, value, *, metric="peak_allocated", kind="predicted", checkpointing="none", phase="train"):
    """A record of memory."""
    options = {"resolved": method.to_dict(), "preset": "matched", "shape": [size] * 3, "width": 64}
    return Record(
        config_id=config_id(options), command="memory", method=method.name, variant=method.variant,
        shape=(size,) * 3, batch_size=1, phase=phase, precision="fp32", checkpointing=checkpointing, metric=metric,
        value=value, stat="max", n=1, kind=kind, device="cuda", env=ENV, options=options,
    )  # fmt: skip


def timing(method, steps, samples):
    """A record of seconds a volume."""
    options = {"resolved": method.to_dict()}
    return Record(
        config_id=config_id(options), command="speed", method=method.name, variant=method.variant, shape=(64,) * 3,
        batch_size=1, phase="sample", precision="fp32", steps=steps, metric="volume_seconds",
        value=sorted(samples)[len(samples) // 2], unit="s", stat="median", n=len(samples), kind="measured",
        samples=tuple(samples), device="cpu", env=ENV, options=options,
    )  # fmt: skip


def kept(folder: Path, records) -> Path:
    """A folder with these records."""
    RecordFile(folder / "records.jsonl").append(records)
    return folder

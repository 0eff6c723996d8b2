"""Synthetic records of an ablation, from whose values the expected tables and figures follow."""

from ppdm_bench.records import Record

SUBJECTS = ("s1", "s2", "s3")
LEVELS = {
    "default": ("r=2", "all", "brownian"),
    "r=1": ("r=1", "all", "brownian"),
    "r=4": ("r=4", "all", "brownian"),
    "r=8": ("r=8", "all", "brownian"),
    "r=1x2x2": ("r=1x2x2", "all", "brownian"),
    "haar": ("haar", "all", "brownian"),
    "loss=off": ("r=2", "off", "brownian"),
    "loss=cell": ("r=2", "cell", "brownian"),
    "bridge=linear": ("r=2", "all", "linear"),
    "bridge=i2sb": ("r=2", "all", "i2sb"),
    "bridge=noise": ("r=2", "all", "noise"),
    "r=1 bridge=noise": ("r=1", "all", "noise"),
    "r=4 bridge=noise": ("r=4", "all", "noise"),
    "haar bridge=noise": ("haar", "all", "noise"),
}
STEPS, SECONDS = {"steps": 100}, {"time": 5.0}


def cell(label, base="b"):
    space, loss, bridge = LEVELS[label]
    factor = space.removeprefix("r=") if space.startswith("r=") else ""
    return {
        "label": label,
        "default": label == "default",
        "base": base,
        "levels": {"space": space, "loss": loss, "bridge": bridge},
        "representation": "puzzle" if factor else space,
        "factor": factor,
        "loss": loss,
        "kernel": "gaussian" if bridge == "noise" else bridge,
        "target": "x0" if bridge == "noise" else "residual",
    }


def options(label, budgets, seed, **more):
    return {"cell": cell(label), "budgets": budgets, "training": {"seed": seed}, "data": {"size": 32}, **more}


def one(label, task="mri", seed=0, level=20.0, budgets=STEPS, steps=4, subjects=SUBJECTS):
    """Return the records of one training: quality, with a PSNR of `level` + k for subject k, and training costs."""
    common = {"command": "ablate", "method": "ppdm", "variant": label, "task": task, "kind": "measured"}
    values = {"psnr": (level, "dB"), "ssim": (level / 100, "1"), "sharpness": (0.9, "1"), "seam_index_r2": (0.5, "dB")}
    values |= {f"seam_index_r{r}": (0.3, "dB") for r in ("4", "8", "1x2x2")}
    found = [
        Record(
            **common,
            metric=metric,
            unit=unit,
            value=value + number,
            subject=subject,
            steps=steps,
            shape=(32, 32, 32),
            phase="sample",
            options=options(label, budgets, seed),
        )
        for metric, (value, unit) in values.items()
        for number, subject in enumerate(subjects)
    ]
    costs = {"train_seconds": (50.0, "s"), "train_steps": (100, "1")}
    found += [
        Record(**common, metric=m, unit=u, value=v, phase="train", options=options(label, budgets, seed))
        for m, (v, u) in costs.items()
    ]
    return found


def peak(label, phase, gib, shape=(32, 32, 32)):
    return Record(
        command="ablate",
        method="ppdm",
        variant=label,
        phase=phase,
        shape=shape,
        metric="peak_allocated",
        value=round(gib * 2**30),
        kind="predicted",
        options={"cell": cell(label)},
    )


def everything(tasks=("mri", "pet"), seeds=(0,)):
    found = []
    for number, label in enumerate(LEVELS):
        timed = {**STEPS, **SECONDS} if label == "default" else STEPS
        found += [peak(label, "train", 1 / (1 + number)), peak(label, "sample", 0.5, (256, 256, 256))]
        for task in tasks:
            for seed in seeds:
                found += one(label, task, seed, 20 + number + 0.1 * seed, timed)
                if label in ("r=1", "r=4", "haar") or "r=" in label or "noise" in label:
                    found += one(label, task, seed, 21 + number, SECONDS)
    return found


def skipped(label):
    return Record(
        command="ablate",
        method="ppdm",
        variant=label,
        task="mri",
        metric="psnr",
        unit="dB",
        kind="measured",
        status="skipped",
        reason="a cell of one voxel",
        options={"cell": {"label": label, "default": False, "base": "b", "levels": {}}, "budgets": STEPS},
    )

"""Train every registered method briefly with its default learning rate, at several widths, on every task of the paper.

    python benchmarks/harness/learning.py results/learning FOLDER          about two core-hours; it resumes
    python benchmarks/harness/learning.py results/learning FOLDER --table  only the table

FOLDER is for the synthetic subjects and, temporarily, for the runs. Each loss is divided by the loss without training:
that of returning the source or, for methods that predict noise, of returning zeros. A share near 1 means that the
network learnt nothing. The script writes ``learning.csv``, one row per training, and ``learning.md``.
"""

import argparse
import csv
import io
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import ppdm
from ppdm.atomic_io import write_together
from ppdm.data.manifest import write_manifest
from ppdm.method import Method
from ppdm.simulation.generation import make_set
from ppdm.simulation.phantom.anatomy import Grid
from ppdm.simulation.tasks import find_task
from ppdm.training.run import LOG
from ppdm_baselines import METHODS

# Voxel sizes in mm. Voxels of 8 mm average the noise of PET out; with 5 mm, noise remains for denoising.
SPACINGS = {"mri-t1t2": 8.0, "pet-joint": 8.0, "pet-denoise": 5.0}
TASKS, WIDTHS, FACTORS = tuple(SPACINGS), (16, 32, 64), (2, 4, 8)
SIZE, SUBJECTS = 24, 24  # voxels along each axis; number of subjects, most of them for training
STEPS, BATCH, PRECISION = 150, 1, "bf16"
FORMER = 1e-3  # PPDM's former learning rate at every width, before the rule 0.016 / width
RUNS = "runs"
COLUMNS = ("method", "factor", "width", "task", "learning_rate", "loss", "untrained_loss", "share")


@dataclass(frozen=True)
class Case:
    """One training: method with options, name in the table, and task."""

    method: Method
    name: str
    factor: str
    task: str

    @property
    def labels(self) -> dict[str, str]:
        """The columns that identify the training."""
        rate = f"{self.method.learning_rate:g}"
        width = str(self.method.width)
        return {"method": self.name, "factor": self.factor, "width": width, "task": self.task, "learning_rate": rate}


def cases() -> Iterator[Case]:
    """All trainings, ordered by task and width."""
    for task in TASKS:
        for width in WIDTHS:
            for name, registered in METHODS.items():
                method = registered.with_network(width=width, precision=PRECISION)
                if name != "ppdm":
                    yield Case(method, name, "", task)
                    continue
                former = replace(method, optimisation=replace(method.optimisation, learning_rate=FORMER))
                for factor in FACTORS:
                    yield Case(method.with_factor(factor), name, str(factor), task)
                    if width > WIDTHS[0]:  # at the smallest width, the rule gives the same rate
                        yield Case(former.with_factor(factor), name, str(factor), task)


def measure(case: Case, folder: Path) -> dict[str, str]:
    """Train, and return the row of the table."""
    data, spacing = folder / case.task, SPACINGS[case.task]
    manifest = data / "pairs.csv"
    if not manifest.exists():
        recipe = find_task(case.task).recipe(Grid((SIZE,) * 3, (spacing,) * 3))
        write_manifest(manifest, make_set(recipe, SUBJECTS, data))
    out = folder / RUNS / "-".join(value for value in case.labels.values() if value)
    ppdm.train(manifest, out, method=case.method, steps=STEPS, batch_size=BATCH, resume=out.exists())
    last = json.loads((out / LOG).read_text().splitlines()[-1])
    loss, untrained = last["average_loss"], last["untrained_loss"]
    return case.labels | {
        "loss": f"{loss:.4g}",
        "untrained_loss": f"{untrained:.4g}",
        "share": f"{loss / untrained:.3f}",
    }


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """The shares as a Markdown table: one line per method and rate, one column per task and width."""
    heads = [(task, str(width)) for task in TASKS for width in WIDTHS]
    lines: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:
        former = row["method"] == "ppdm" and float(row["learning_rate"]) == FORMER and row["width"] != str(WIDTHS[0])
        name = row["method"] + (f" r={row['factor']}" if row["factor"] else "")
        shares = lines.setdefault((name, "1e-3" if former else "0.016 / width"), {})
        shares[row["task"], row["width"]] = f"**{row['share']}**" if float(row["share"]) > 0.95 else row["share"]
    text = ["| method | learning rate | " + " | ".join(f"{task}, {width}" for task, width in heads) + " |"]
    text.append("|" + "---|" * (len(heads) + 2))
    for (name, rate), shares in sorted(lines.items()):
        text.append(f"| {name} | {rate} | " + " | ".join(shares.get(head, "–") for head in heads) + " |")
    return "\n".join(text) + "\n"


def main() -> None:
    """Run missing trainings, and write both files after each of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true", help="only write the table of the existing rows")
    arguments = parser.parse_args()
    file = arguments.results / "learning.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    known = [{key: row[key] for key in COLUMNS[:5]} for row in rows]
    for case in [] if arguments.table else cases():
        if case.labels not in known:
            rows.append(measure(case, arguments.folder))
            print(*rows[-1].values(), flush=True)
            _write(arguments.results, rows)
            shutil.rmtree(arguments.folder / RUNS)  # a checkpoint of width 64 takes half a gigabyte
    _write(arguments.results, rows)


def _write(results: Path, rows: Sequence[Mapping[str, str]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    about = (
        f"Loss of the averaged weights after {STEPS} steps of batch {BATCH} in {PRECISION} at {SIZE}³, divided by the "
        "loss without training, by task and width. Lower is better; bold: above 0.95, nothing was learnt.\n\n"
    )
    contents = {results / "learning.csv": text.getvalue(), results / "learning.md": about + table(rows)}
    results.mkdir(parents=True, exist_ok=True)
    write_together({path: content.encode() for path, content in contents.items()})


if __name__ == "__main__":
    main()

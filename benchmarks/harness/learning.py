"""Train every registered method briefly with its default learning rate, at several widths, on every task of the paper.

    python benchmarks/harness/learning.py results/learning FOLDER          about two core-hours; it resumes
    python benchmarks/harness/learning.py results/learning FOLDER --table  only the table

FOLDER is for the synthetic subjects and, temporarily, for the runs. Each loss is compared with two losses that need no
training: that of an output of zeros, which every network has at first, and that of returning the source. A loss equal
to one of them means that the network learnt nothing; the training is then repeated with four times as many steps, which
distinguishes slow learning from none. The script writes ``learning.csv``, one row per training, and ``learning.md``.
"""

import argparse
import csv
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

import ppdm
from ppdm.atomic_io import write_together
from ppdm.data.manifest import read_manifest, write_manifest
from ppdm.data.pairs import TrainingSet
from ppdm.method import Method, guess_source, guess_zero
from ppdm.simulation.generation import make_set
from ppdm.simulation.phantom.anatomy import Grid
from ppdm.simulation.tasks import find_task
from ppdm.training.validation import validation_loss
from ppdm_baselines import METHODS

# Voxel sizes in mm. Voxels of 8 mm average the noise of PET out; with 5 mm, noise remains for denoising.
SPACINGS = {"mri-t1t2": 8.0, "pet-joint": 8.0, "pet-denoise": 5.0}
TASKS, WIDTHS, FACTORS = tuple(SPACINGS), (16, 32, 64), (2, 4, 8)
SIZE, SUBJECTS = 24, 24  # voxels along each axis; number of subjects, most of them for training
STEPS, MORE_STEPS, BATCH, PRECISION = 150, (600, 2400), 1, "bf16"
SCORED = 4  # number of training pairs on which the losses are computed
NEAR = 0.05  # relative difference below which two losses count as equal
FORMER = 1e-3  # PPDM's former learning rate at every width, before the rule 0.016 / width
RUNS = "runs"
CASE = ("method", "factor", "width", "task", "learning_rate", "steps")
COLUMNS = (*CASE, "loss", "zeros_loss", "source_loss")
ABOUT = (
    f"Loss of the averaged weights after {STEPS} steps of batch {BATCH} in {PRECISION} at {SIZE}³, divided by the loss "
    "of an output of zeros, by task and width. Lower is better. Bold: the network learnt nothing; its loss is that of "
    "zeros or of returning the source. †: the loss is still above that of returning the source."
)


@dataclass(frozen=True)
class Case:
    """One training: method with options, name in the table, task, and number of steps."""

    method: Method
    name: str
    factor: str
    task: str
    steps: int = STEPS

    @property
    def follows_rule(self) -> bool:
        """Whether the learning rate follows the rule 0.016 / width."""
        return self.method.optimisation.learning_rate is None

    @property
    def labels(self) -> dict[str, str]:
        """The columns that identify the training."""
        rate = f"{self.method.learning_rate:g}"
        values = (self.name, self.factor, self.method.width, self.task, rate, self.steps)
        return dict(zip(CASE, map(str, values), strict=True))


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
    trained = ppdm.train(manifest, out, method=case.method, steps=case.steps, batch_size=BATCH, resume=out.exists())
    listed = [pair for pair in read_manifest(manifest) if pair.split == "train"]
    pairs = TrainingSet(listed[:SCORED], scaling=trained.scaling)
    guesses = {"loss": None, "zeros_loss": guess_zero, "source_loss": guess_source}
    losses = {
        name: validation_loss(trained.method, trained.network, pairs, guess=guess) for name, guess in guesses.items()
    }
    return case.labels | {name: f"{loss:.4g}" for name, loss in losses.items()}


def has_learnt(row: Mapping[str, str]) -> bool:
    """Whether the loss is below that of zeros, and is not that of returning the source."""
    loss, zeros, source = (float(row[name]) for name in COLUMNS[-3:])
    return loss < (1 - NEAR) * zeros and abs(loss / source - 1) > NEAR


def to_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """The losses as a Markdown table: one line per method and rate, one column per task and width."""
    heads = [(task, str(width)) for task in TASKS for width in WIDTHS]
    lines: dict[tuple[str, str], dict[tuple[str, str], str]] = {}
    for row in rows:  # of the trainings of one case, the last one has the most steps
        former = row["method"] == "ppdm" and float(row["learning_rate"]) == FORMER and row["width"] != str(WIDTHS[0])
        name = row["method"] + (f" r={row['factor']}" if row["factor"] else "")
        cells = lines.setdefault((name, "1e-3" if former else "0.016 / width"), {})
        cells[row["task"], row["width"]] = _cell(row)
    text = ["| method | learning rate | " + " | ".join(f"{task}, {width}" for task, width in heads) + " |"]
    text.append("|" + "---|" * (len(heads) + 2))
    for (name, rate), cells in sorted(lines.items()):
        text.append(f"| {name} | {rate} | " + " | ".join(cells.get(head, "–") for head in heads) + " |")
    return "\n".join([ABOUT, "", *text]) + "\n"


def _cell(row: Mapping[str, str]) -> str:
    loss, zeros, source = (float(row[name]) for name in COLUMNS[-3:])
    text = f"{loss / zeros:.2f}"
    text = text if has_learnt(row) else f"**{text}**"
    above = " †" if loss > (1 + NEAR) * source else ""
    return text + above + (f" ({int(row['steps']):,} steps)" if row["steps"] != str(STEPS) else "")


def main() -> None:
    """Run missing trainings, and write both files after each of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--table", action="store_true", help="only write the table of the existing rows")
    arguments = parser.parse_args()
    file = arguments.results / "learning.csv"
    rows = list(csv.DictReader(file.open())) if file.exists() else []
    for case in [] if arguments.table else cases():
        for steps in (STEPS, *MORE_STEPS) if case.follows_rule else (STEPS, MORE_STEPS[0]):
            longer = replace(case, steps=steps)
            row = next((row for row in rows if longer.labels.items() <= row.items()), None)
            if row is None:
                row = measure(longer, arguments.folder)
                rows.append(row)
                print(*row.values(), flush=True)
                _write(arguments.results, rows)
                shutil.rmtree(arguments.folder / RUNS)  # a checkpoint of width 64 takes half a gigabyte
            if has_learnt(row):
                break
    _write(arguments.results, rows)


def _write(results: Path, rows: Sequence[Mapping[str, str]]) -> None:
    table = str(pd.DataFrame(rows, columns=COLUMNS).to_csv(index=False, lineterminator="\n"))
    contents = {results / "learning.csv": table, results / "learning.md": to_markdown(rows)}
    results.mkdir(parents=True, exist_ok=True)
    write_together({path: content.encode() for path, content in contents.items()})


if __name__ == "__main__":
    main()

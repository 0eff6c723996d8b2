"""Regenerate the tables and figures in results/ from the records there.

    python benchmarks/harness/remake.py                  everything, about a minute on one core
    python benchmarks/harness/remake.py plan figures     outputs with these names, or in folders with these names
    python benchmarks/harness/remake.py --list           list all outputs

The script does not measure, predict or train; the commands do that and write the records. Use it after a change to the
code of tables or figures, or after adding records. `tests/project/test_committed_results.py` compares every committed
file with the output of this script.
"""

import argparse
import csv
import gc
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import blocks
import fuzz
import learning
import soak
import time_truth

from ppdm_baselines import REFERENCE
from ppdm_bench.ablation import ablation_output
from ppdm_bench.commands import claims
from ppdm_bench.evaluation.evaluation_output import draw_curves, tabulate
from ppdm_bench.memory import memory_output, validate
from ppdm_bench.memory.published import published_table
from ppdm_bench.memory.reference import reference_table
from ppdm_bench.planning import planning_output
from ppdm_bench.records import COMPRESSED, Record, RecordFile, read_start
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.figures import style
from ppdm_bench.report.library import Library, read_library
from ppdm_bench.report.paper_figure import MissingRecords, PaperFigure, write_paper_figure
from ppdm_bench.report.paper_registry import PAPER_FIGURES
from ppdm_bench.report.tables.memory import memory_page, memory_table
from ppdm_bench.report.tables.micro import micro_page
from ppdm_bench.report.tables.quality import headline, quality_page, quality_table
from ppdm_bench.timing import timing_output
from ppdm_bench.timing.published import read_timings

RESULTS = Path(__file__).resolve().parents[2] / "results"
IMAGES = ("gallery", "grid-artefact")  # of these, only the wide PNG is part of the repository
COLUMNS: Sequence[style.Column] = ("single", "double")  # the defaults of `ppdm-bench figures`


@dataclass(frozen=True)
class Output:
    """Files that are generated together.

    Attributes:
        name: name on the command line; if a folder has this name, the files are in that folder.
        files: files to copy into results/, relative to it.
        make: function of results/ and an output folder; it writes these files, and possibly others, to the latter.
    """

    name: str
    files: Sequence[str]
    make: Callable[[Path, Path], object]


def main() -> None:
    """Generate the requested outputs, and replace the files that differ."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as plan or figures/gallery; default: everything")
    parser.add_argument("--list", action="store_true", help="list all names and their files, and stop")
    arguments = parser.parse_args()
    chosen = [
        made for made in everything() if not arguments.names or any(has_name(made, name) for name in arguments.names)
    ]
    if not chosen:
        parser.error(f"no output has the name {' or '.join(arguments.names)}; --list lists all names")
    for made in chosen:
        if arguments.list:
            print(made.name, *made.files, sep="\n    ")
            continue
        try:
            changed = list(replaced(made))
        except MissingRecords as missing:
            print(f"{made.name}: not generated, it needs {missing}", flush=True)
            continue
        print(f"{made.name}: {', '.join(changed) or 'nothing has changed'}", flush=True)


def has_name(made: Output, name: str) -> bool:
    """Whether ``name`` is the name of an output or of a folder that contains it."""
    return f"{made.name}/".startswith(f"{name.rstrip('/')}/")


def replaced(made: Output) -> Iterator[str]:
    """Generate files outside results/, copy those that differ into it, and yield their names."""
    with tempfile.TemporaryDirectory() as folder:
        made.make(RESULTS, Path(folder))
        for name in made.files:
            content, place = (Path(folder) / name).read_bytes(), RESULTS / name
            if not place.exists() or place.read_bytes() != content:
                replace_file(place, content)
                yield name


def everything() -> list[Output]:
    """All outputs that are generated from records."""
    return [
        Output(
            "memory",
            [*_files("memory/memory", "csv", "md", "png"), "memory/overview.png", "memory/breakdown.png"],
            partial(_present, partial(memory_output.present, budget=None), "memory"),
        ),
        Output("plan", _files("plan/plan", "csv", "md", "png"), partial(_present, planning_output.present, "plan")),
        Output("methods", ["methods/published.md"], _methods),
        *(
            Output(f"validation/{name}", _files(f"validation/{name}", "md", "png"), partial(_published, name))
            for name in ("published", "cudnn")
        ),
        Output("validation/timings", _files("validation/timings", "md", "png"), _timings),
        Output("validation/reference", ["validation/reference.md"], _reference),
        *(
            Output(name, _files(f"{name}/memory", "csv", "md"), partial(_memory_table, name))
            for name in (f"validation/cpu-{size}" for size in (32, 48, 64))
        ),
        *(
            Output(name, _files(f"{name}/speed", "csv", "md", "png"), partial(_present, timing_output.present, name))
            for name in _folders("speed")
        ),
        *_quality_outputs(),
        Output(
            "ablations",
            [*_files("ablations/ablation", "csv", "md", "png"), "ablations/puzzle_or_bridge.png"],
            partial(_present, ablation_output.present, "ablations"),
        ),
        Output("blocks", _files("blocks/blocks", "md", "png"), _blocks),
        Output("bench", ["bench/bench.md"], _bench),
        Output("learning", ["learning/learning.md"], _learning),
        Output("harness/fuzz", ["harness/fuzz.md"], _fuzz),
        Output("harness/soak", _files("harness/soak", "md", "png"), _soak),
        Output("claims", ["CLAIMS.md", "claims/claims.csv"], _claims),
        *(Output(f"figures/{one.name}", _exhibit_files(one), partial(_exhibit, one)) for one in PAPER_FIGURES),
    ]


def _quality_outputs() -> Iterator[Output]:
    """Outputs of ``quality`` and ``evaluate``; those of ``sweep`` show differences from its default method."""
    tasks = ("mri-t1t2", "pet-denoise", "pet-joint")
    for task in tasks:
        name = f"sweep/{task}"
        files = [*_files(f"{name}/quality", "csv", "md"), f"{name}/subjects.png"]
        yield Output(name, files, partial(_quality, name, "ppdm r=2 default"))
    for task in tasks:
        name = f"sweep/full-3d/{task}"
        yield Output(name, _files(f"{name}/quality", "csv", "md"), partial(_quality_table, name))
    for name in _folders("campaign"):
        # Without CSV, which would be half as large again as the records.
        yield Output(name, [f"{name}/quality.md", f"{name}/subjects.png"], partial(_quality, name, "input"))
        # The text is searched, because parsing all records would take seconds in every test run.
        if b'"curve": ' in read_start(_place(RESULTS / name / "records.jsonl"), 1 << 30):
            yield Output(f"{name}/curves", _files(f"{name}/curves", "md", "png"), partial(_present, draw_curves, name))
    for task in tasks:
        yield Output(f"models/{task}", [f"models/{task}/quality.md"], partial(_quality_table, f"models/{task}"))


def _folders(parent: str) -> list[str]:
    """Folders with records in a folder of results/, relative to results/."""
    files = sorted(RESULTS.glob(f"{parent}/*/records.jsonl*"))
    return [file.parent.relative_to(RESULTS).as_posix() for file in files]


def _files(stem: str, *ends: str) -> list[str]:
    return [f"{stem}.{end}" for end in ends]


def _exhibit_files(exhibit: PaperFigure) -> list[str]:
    stem = f"figures/{exhibit.name}"
    ends, columns = (("png",), COLUMNS[-1:]) if exhibit.name in IMAGES else (("png", "pdf"), COLUMNS)
    pictures = [name for column in exhibit.widths(columns) for name in _files(f"{stem}-{column}", *ends)]
    return [*pictures, *_files(stem, "csv", "md", "tex", "caption.md")]


def _records(path: Path) -> list[Record]:
    """Read the records of a file, which may be compressed.

    Raises:
        FileNotFoundError: the file does not exist, with or without compression.
    """
    return RecordFile(_place(path)).read()


def _place(path: Path) -> Path:
    for suffix in ("", *COMPRESSED):
        if (place := path.with_name(path.name + suffix)).exists():
            return place
    raise FileNotFoundError(f"there is no {path}, also not with the suffix {' or '.join(COMPRESSED)}")


@cache
def _library(results: Path) -> Library:
    """All records and picture data, which `figures` and `claims` read by default."""
    library = read_library([results])
    gc.freeze()  # the garbage collector would scan millions of permanent objects
    return library


def _present(write: Callable[[list[Record], Path], object], name: str, results: Path, to: Path) -> None:
    """Write the files of a command from the records of a folder."""
    write(_records(results / name / "records.jsonl"), to / name)


def _memory_table(name: str, results: Path, to: Path) -> None:
    """Write only the table; the figures of a validation are slow and not part of the repository."""
    frame = memory_table(_records(results / name / "records.jsonl"), reference=REFERENCE)
    memory_page(frame).save(to / name / "memory")


def _methods(results: Path, to: Path) -> None:
    published, ours = results / "published/method_memory.jsonl", results / "methods/predicted.jsonl"
    replace_file(to / "methods/published.md", published_table(_records(published), _records(ours)).encode())


def _published(name: str, results: Path, to: Path) -> None:
    path, look = next((path, look) for stem, path, look in validate.PUBLISHED if stem == name)
    published, ours = results / "published" / path.name, results / "validation" / f"{name}.jsonl"
    validate.present([*_records(published), *_records(ours)], to / "validation" / name, look)


def _timings(results: Path, to: Path) -> None:
    place = to / "validation"
    place.mkdir(parents=True, exist_ok=True)
    time_truth.present(results / "validation/timings.csv", read_timings(results / "published/timings.jsonl"), place)


def _reference(results: Path, to: Path) -> None:
    records = _records(results / "validation/reference.jsonl")
    replace_file(to / "validation/reference.md", reference_table(records).encode())


def _quality(name: str, reference: str, results: Path, to: Path) -> None:
    tabulate(_records(results / name / "records.jsonl"), reference, to / name)


def _quality_table(name: str, results: Path, to: Path) -> None:
    """Write only the table, for outputs whose figures are not part of the repository."""
    records = _records(results / name / "records.jsonl")
    quality_page(quality_table(records, reference="input"), headline(records)).save(to / name / "quality")


def _blocks(results: Path, to: Path) -> None:
    blocks.present(blocks.ordered(blocks.read(results / "blocks/blocks.csv")), to / "blocks")


def _bench(results: Path, to: Path) -> None:
    run = json.loads((results / "bench/bench.json").read_text())
    replace_file(to / "bench/bench.md", micro_page(run).to_markdown().encode())


def _learning(results: Path, to: Path) -> None:
    with (results / "learning/learning.csv").open() as stream:
        replace_file(to / "learning/learning.md", learning.to_markdown(list(csv.DictReader(stream))).encode())


def _fuzz(results: Path, to: Path) -> None:
    record = json.loads((results / "harness/fuzz.json").read_text())
    replace_file(to / "harness/fuzz.md", fuzz.to_markdown(record).encode())


def _soak(results: Path, to: Path) -> None:
    record = json.loads((results / "harness/soak.json").read_text())
    replace_file(to / "harness/soak.md", soak.to_markdown(record).encode())
    replace_file(to / "harness/soak.png", soak.to_png(record))


def _claims(results: Path, to: Path) -> None:
    claims.present(_library(results), to)


def _exhibit(exhibit: PaperFigure, results: Path, to: Path) -> None:
    write_paper_figure(exhibit, exhibit.show(_library(results)), to / "figures", COLUMNS)


if __name__ == "__main__":
    main()

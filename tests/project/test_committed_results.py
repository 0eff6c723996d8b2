"""Every table and figure in results/ equals the one that the current code makes from the records there."""

import csv
import gc
import json
import zlib
from fnmatch import fnmatch
from io import StringIO
from pathlib import Path

import pytest
import remake
from commands import run
from PIL import Image
from regenerating import PICTURES, difference, otherwise_drawn, tracked

from ppdm_bench.records import RecordFile
from ppdm_bench.report.paper_figure import MissingRecords
from ppdm_bench.units import gib

if not remake.RESULTS.exists():
    pytest.skip("there are no results beside these tests", allow_module_level=True)

EVERYTHING = remake.everything()
SLOW = (
    "ablations",
    "claims",
    "figures/",
    "memory",
    "sweep/",
    "validation",
    "campaign",
    "explain",
)  # each takes seconds

# Files from which the others are made.
RECORDS = (
    "*.jsonl",
    "*.jsonl.gz",
    "*.jsonl.xz",
    "*/snapshot.npz",
    "models/*/model.json",
    "models/*/model.safetensors",
    "models/*/options.json",
    "bench/bench.json",
    "blocks/blocks.csv",
    "campaign/jobs.txt",
    "harness/fuzz.json",
    "learning/learning.csv",
    "harness/soak.json",
    "switches/switches.csv",
    "validation/programs.csv",
    "validation/rivals.csv",
    "validation/timings.csv",
)

# Files that are neither records nor made from committed records, and the reason.
APART = {
    "README.md": "written by hand",
    "*/README.md": "written by hand",
    "data/*.png": "contact sheets of phantoms, which the code makes anew and no record holds",
    "explain/explain-*": "live memory and its holders over a step; records hold the parts at the peak alone",
    "methods/presets-*.md": "the records of all presets are not kept, only those beside published figures",
    "switches/switches.md": "its caption says on what machine it was made, which the CSV does not",
    "validation/programs.md": "the harness that runs third-party programs writes it with its records",
    "validation/rivals.md": "its reasons are what the tools said when they were asked",
    "metrics/agreement.md": "the script measures and prints it; there are no records",
    "harness/kills.md": "a transcript",
    "harness/wheel.md": "a transcript",
    "training/kill_and_resume.md": "a transcript",
}


@pytest.fixture
def uncollected():
    """Turn off garbage collection: records are many objects without cycles, so collecting them only costs time."""
    gc.disable()
    yield
    gc.enable()


def marked(made: remake.Output) -> object:
    return pytest.param(made, id=made.name, marks=[pytest.mark.slow] * made.name.startswith(SLOW))


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("made", [marked(one) for one in EVERYTHING])
def test_committed_files_equal_those_made_from_their_records(made, tmp_path):
    kept = [name for name in made.files if (remake.RESULTS / name).exists()]
    try:
        made.make(remake.RESULTS, tmp_path)
    except MissingRecords as missing:
        if kept:
            pytest.fail(f"results/{kept[0]} is kept, but cannot be made: it needs {missing}")
        pytest.skip(f"not kept, and not made: it needs {missing}")
    unlike = otherwise_drawn()
    names = [name for name in made.files if not (unlike and name.endswith(PICTURES))]
    faults = [(name, difference(remake.RESULTS / name, tmp_path / name)) for name in names]
    told = "\n".join(f"results/{name} {fault}" for name, fault in faults if fault)
    mend = f"python benchmarks/harness/remake.py {made.name}"
    assert not told, f"{told}\nmake it anew with `{mend}`, look at it, and commit it with the reason"
    if len(names) < len(made.files):
        pytest.skip(unlike)


def test_every_file_is_a_record_or_made_from_records_or_a_listed_exception():
    made = {name for one in EVERYTHING for name in one.files}
    for name in sorted(tracked("results")):
        kinds = [pattern for pattern in (*RECORDS, *APART) if fnmatch(name, pattern)] + ["made"] * (name in made)
        assert kinds, (
            f"results/{name} is none of these: made by `everything` of benchmarks/harness/remake.py, or among RECORDS "
            "of this test, or in APART with the reason; add it to one"
        )
        assert len(kinds) == 1, f"results/{name} is several things: {', '.join(kinds)}"


def test_listed_patterns_match_files_and_generated_files_are_tracked():
    known = tracked("results")
    for pattern in (*RECORDS, *APART):
        assert any(fnmatch(name, pattern) for name in known), f"nothing under results/ is {pattern}: take it out"
    there = {name for one in EVERYTHING for name in one.files if (remake.RESULTS / name).exists()}
    assert not there - known, f"git does not know results/{min(there - known)}: add it"


def test_no_file_is_made_twice():
    names = [name for one in EVERYTHING for name in one.files]
    assert len(set(names)) == len(names)
    assert len({one.name for one in EVERYTHING}) == len(EVERYTHING)


def test_differences_of_text_files_are_described_in_words(tmp_path):
    kept, made = tmp_path / "kept.md", tmp_path / "made.md"
    kept.write_text("one\ntwo\n")
    assert difference(kept, made) == "is not made any more"
    made.write_text("one\ntwo\n")
    assert difference(kept, made) == ""
    made.write_text("one\ntwx\n")
    assert difference(kept, made) == "differs from line 2 on, column 3: kept 'two', made 'twx'"
    made.write_bytes(b"one\r\ntwo\n")
    assert difference(kept, made) == "differs from line 1 on, column 4: kept 'one', made 'one\\r'"
    kept.unlink()
    assert difference(kept, made) == "is made, but not kept"


def test_one_pixel_is_a_difference_and_png_compression_is_not(tmp_path):
    kept, made = tmp_path / "kept.png", tmp_path / "made.png"
    picture = Image.new("RGB", (5, 4), "white")
    picture.save(kept, compress_level=9)
    picture.save(made, compress_level=0)
    assert difference(kept, made) == ""
    picture.quantize(2).save(made)
    assert difference(kept, made) == ""
    picture.putpixel((3, 1), (255, 255, 254))
    picture.save(made)
    expected = "differs in 1 of 20 pixels, by up to 1 of 255, within columns 3 to 3 and rows 1 to 1 of 5×4"
    assert difference(kept, made) == expected
    picture.resize((6, 4)).save(made)
    assert difference(kept, made) == "has 5×4 pixels, made are 6×4"


def test_pdf_files_are_compared_by_their_pages_and_content(tmp_path):
    def pdf(name: str, *pages: bytes, level: int = 6) -> Path:
        streams = b"".join(b"<< /Type /Page >>\nstream\n%s\nendstream\n" % zlib.compress(p, level) for p in pages)
        (tmp_path / name).write_bytes(b"<< /Type /Pages >>\n" + streams)
        return tmp_path / name

    kept = pdf("kept.pdf", b"words " * 40)
    assert difference(kept, pdf("made.pdf", b"words " * 40, level=1)) == ""
    assert difference(kept, pdf("made.pdf", b"other " * 40)) == "differs in 1 of 1 streams, first in number 0"
    assert difference(kept, pdf("made.pdf", b"words", b"more")) == "has 1 pages, made are 2"


def test_the_readme_has_the_numbers_of_the_main_table():
    """For a method with several phases, the README shows the largest one."""
    rows = csv.DictReader(StringIO((remake.RESULTS / "memory/memory.csv").read_text()))
    expected = {}
    for row in (row for row in rows if row["checkpointing"] == "none"):
        cells = []
        for phases in (("train", "autoencoder_train"), ("sample", "decode")):
            largest = max((phase for phase in phases if row[f"{phase}_needs"]), key=lambda p: int(row[f"{p}_needs"]))
            cells += [gib(int(row[f"{largest}_{metric}"])) for metric in ("peak_allocated", "needs")]
        expected[f"{row['method']} {row['variant']}".strip()] = cells
    table = [line for line in (remake.RESULTS.parent / "README.md").read_text("utf-8").splitlines() if " M |" in line]
    shown = {cells[0]: [cells[2], cells[4], cells[5], cells[7]] for cells in map(_cells, table)}
    assert len(shown) == 8
    assert shown == {name: expected[name] for name in shown}


@pytest.mark.slow
def test_the_code_predicts_the_peaks_of_the_main_table(tmp_path):
    """This checks one method to the byte; at this size, a single tensor that lives too long adds 64 MiB."""
    wanted = {"method": "ppdm", "variant": "r=4", "checkpointing": "none"}
    file = RecordFile(remake.RESULTS / "memory/records.jsonl.gz")
    kept = [record for record in file.read() if all(getattr(record, key) == wanted[key] for key in wanted)]
    expected = {record.phase: record.value for record in kept if record.metric == "peak_allocated"}
    words = ("--res", 256, "--method", "ppdm", "--factor", 4, "--device", "predict", "--out", tmp_path)
    code, out, _ = run("memory", *words, "--json")
    made = {row["phase"]: row["value"] for row in json.loads(out) if row["metric"] == "peak_allocated"}
    assert (code, made) == (0, expected)
    assert expected.keys() == {"train", "sample"}


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]

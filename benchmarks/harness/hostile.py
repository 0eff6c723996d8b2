"""Fuzzing targets (:data:`TARGETS`): all code that reads untrusted input, with tests on corrupted valid input.

A case must end with a result or a refusal (:func:`is_refusal`). Every other outcome is a defect: an error without a
message for users, a :class:`Breach` of an invariant, a hang, or an allocation larger than the input declares.
"""

import contextlib
import gzip
import hashlib
import io
import json
import linecache
import lzma
import os
import re
import signal
import sys
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import typer
from mutation import TEXTS, pickles, spoilt_bytes, spoilt_header, spoilt_json, spoilt_table
from nibabel.nifti2 import Nifti2Header

import ppdm
import ppdm_bench
from ppdm import PPDM
from ppdm.checkpoint import Trained, load, save
from ppdm.data.checking import Report, check_pair
from ppdm.data.layouts.suv import read_suv_table
from ppdm.data.manifest import Pair, manifest_faults, read_manifest
from ppdm.data.normalise import Range
from ppdm.data.regions import read_names
from ppdm.data.scaling import PercentileScaling
from ppdm.data.volume import Volume, read_geometry, read_volume, write_volume
from ppdm.simulation.generation import make_set
from ppdm.simulation.tasks import subject_name
from ppdm.training.log import last_step
from ppdm.training.loop import Interrupted, fit, train
from ppdm.training.run import Run
from ppdm.training.schedule import Schedule
from ppdm.translation import translate, translate_volume
from ppdm_baselines import METHODS
from ppdm_bench import cli
from ppdm_bench.commands import values
from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.configuration import Configuration
from ppdm_bench.isolation.sweep import Ledger, Sweep, SweepCase
from ppdm_bench.memory.constants import FittedConstants
from ppdm_bench.records import COMPRESSED, Record, RecordFile, config_id
from ppdm_bench.report.claims.claim import Evidence
from ppdm_bench.report.claims.rules import CLAIMS
from ppdm_bench.report.library import provenance, read_library, reporting_altered_records
from ppdm_bench.report.paper_figure import MissingRecords
from ppdm_bench.report.paper_registry import PAPER_FIGURES
from ppdm_bench.report.snapshot import Snapshot, View, read_snapshot, sections, write_snapshot
from ppdm_bench.report.tables.changes import changes, changes_page, read_records, to_records
from ppdm_bench.variation import vary

RESULTS = Path(__file__).resolve().parents[2] / "results"
MARK = "unpickled"  # file that a pickle creates when it is loaded
BOMB = 3 << 27  # number of zero bytes in a small gzip file

_HOME = {str(Path(module.__file__ or "").parent) for module in (ppdm, ppdm_bench)}
_RARELY = 0.03


class Breach(AssertionError):
    """An invariant that must hold for every outcome is violated."""


@dataclass(frozen=True)
class Target:
    """Code that reads untrusted input.

    Attributes:
        name: name in the records.
        spoilt: description of the corrupted input.
        cases: number of cases in a recorded run.
        ready: creates valid input in a folder, once per run.
        attack: corrupts the result of ``ready`` in an empty folder and runs the code; returns if there is a result.
    """

    name: str
    spoilt: str
    cases: int
    ready: Callable[[Path], Any]
    attack: Callable[[Random, Path, Any], None]


def is_refusal(error: BaseException) -> bool:
    """Whether an error is intended for users: a ``raise`` with a message in the project's own code."""
    if not isinstance(error, ValueError | OSError | typer.BadParameter) or not str(error):
        return False
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    file, line = (frame.tb_frame.f_code.co_filename, frame.tb_lineno) if frame else ("", 0)
    ours = any(Path(file).is_relative_to(home) for home in _HOME)
    return ours and linecache.getline(file, line).lstrip().startswith("raise ")


def ensure(holds: bool, what: str) -> None:
    """Raise :class:`Breach` if a condition does not hold."""
    if not holds:
        raise Breach(what)


# NIfTI


def _sound_scans(folder: Path) -> dict[str, Any]:
    values = np.arange(4 * 5 * 6, dtype=np.float32).reshape(4, 5, 6)
    volume = Volume.from_array(values, (1.0, 1.5, 2.0))
    write_volume(folder / "sound.nii.gz", values, volume)
    first, second = volume.header.copy(), Nifti2Header.from_header(volume.header, check=False)
    second["sizeof_hdr"] = Nifti2Header.sizeof_hdr
    kinds = [(header, values.tobytes(order="F")) for header in (first, second, first.as_byteswapped())]
    return {"kinds": kinds, "bomb": gzip_bomb(), "sound": folder / "sound.nii.gz"} | _marked(folder)


def gzip_bomb() -> bytes:
    """A small gzip file with many members, which decompresses to :data:`BOMB` zero bytes."""
    return gzip.compress(bytes(BOMB >> 5)) * 32


def xz_bomb() -> bytes:
    """A small xz file, which decompresses to :data:`BOMB` zero bytes."""
    packer, piece = lzma.LZMACompressor(preset=0), bytes(BOMB >> 5)
    return b"".join([*(packer.compress(piece) for _ in range(32)), packer.flush()])


def _marked(folder: Path) -> dict[str, Any]:
    return {"pickles": pickles(folder / MARK)}


def _spoilt_scan(random: Random, path: Path, sound: Mapping[str, Any]) -> Path:
    """A scan, compressed or not according to its name, with a corrupted header, voxels or compression."""
    if random.random() < _RARELY:
        path.write_bytes(random.choice(sound["pickles"]))
        return path
    header, voxels = random.choice(sound["kinds"])
    kind = random.randrange(8)
    header = spoilt_header(random, header) if kind < 5 else header
    block = header.structarr.tobytes() + bytes(4)
    content = block + (spoilt_bytes(random, voxels) if kind in (4, 5) else voxels)
    content = spoilt_bytes(random, block[:400]) + voxels if kind == 6 else content
    if path.suffix == ".gz":
        content = gzip.compress(content, 1)
        if random.random() < _RARELY:
            content += sound["bomb"]
        content = spoilt_bytes(random, content) if kind == 7 else content
    elif kind == 7:
        content = spoilt_bytes(random, content)
    path.write_bytes(content)
    return path


def _scan_name(random: Random) -> str:
    return random.choice(("scan.nii", "scan.nii.gz"))


def _read_scan(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    path = _spoilt_scan(random, folder / _scan_name(random), sound)
    try:
        geometry = read_geometry(path)
        volume = read_volume(path, announce=False)
    except ValueError as error:
        ensure(str(path) in str(error), f"the message does not name the file: {error}")
        raise
    ensure(volume.data.shape == geometry.shape and volume.data.dtype == np.float32, "wrong shape or dtype")
    ensure(bool(np.isfinite(volume.data).all()) and bool(np.isfinite(geometry.affine).all()), "values not finite")
    write_volume(folder / "again.nii", volume.data, volume)
    ensure(
        bool(np.array_equal(read_volume(folder / "again.nii").data, volume.data)),
        "reading after writing gives other values",
    )


def _check_scans(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    paths = {}
    for role in ("source", "target", "mask", "labels"):
        spoil = random.random() < 0.4
        place = folder / _scan_name(random).replace("scan", role)
        paths[role] = _spoilt_scan(random, place, sound) if spoil else sound["sound"]
    pair = Pair(
        "s", "train", paths["source"], paths["target"], paths["mask"], random.choice((None, 1.0)), paths["labels"]
    )
    ensure(isinstance(check_pair(pair, resample=random.random() < 0.5), Report), "no report")


def _ready_translation(folder: Path) -> dict[str, Any]:
    return _sound_scans(folder) | {"trained": _trained(METHODS["regression"])}


def _translate_scan(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    path = _spoilt_scan(random, folder / _scan_name(random), sound)
    if read_geometry(path).shape > (16, 16, 16):  # a valid scan of another shape may take long
        return
    output = folder / f"out{random.choice(('.nii', '.nii.gz'))}"
    try:
        made = translate(sound["trained"], path, output)
    finally:
        left = {entry.name for entry in folder.iterdir()} - {path.name, output.name}
        ensure(not left, f"files remain: {left}")
    if made[0].fault:
        ensure(not output.exists(), "an output exists although there is a fault")
        raise ValueError(made[0].fault)
    read_volume(output)


# Tables


MANIFEST = (
    ("subject", "split", "source", "target", "mask", "labels", "suv_factor"),
    ("s1", "train", "a.nii.gz", "b.nii.gz", "m.nii.gz", "", "1.5"),
    ("s1", "", "sub/a.nii.gz", "sub/b.nii.gz", "", "m.nii.gz", ""),
    ("s2", "test", "c.nii.gz", "d.nii.gz", "", "", "2"),
)


def _read_manifest(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    inside = folder / "set"
    (inside / "sub").mkdir(parents=True)
    for row in MANIFEST[1:]:
        for cell in filter(None, row[2:6]):
            (inside / cell).touch()
    (folder / "x").touch()  # the file to which ../x would refer
    path = inside / "pairs.csv"
    path.write_bytes(_whole(random, spoilt_table(random, MANIFEST, ","), sound))
    pairs, _ = manifest_faults(path)
    for pair in pairs:
        for file in filter(None, (pair.source, pair.target, pair.mask, pair.labels)):
            named = str(file) in path.read_text(encoding="utf-8-sig") and os.path.isabs(str(file))
            ensure(named or Path(os.path.normpath(file)).is_relative_to(inside), f"{file} is outside")
            ensure(file.is_file(), f"{file} is not a file")
    read_manifest(path)


def _whole(random: Random, content: bytes, sound: Mapping[str, Any]) -> bytes:
    """The content or, rarely, a pickle instead."""
    return random.choice(sound["pickles"]) if random.random() < _RARELY else content


REGIONS = (("index", "name"), ("1", "liver"), ("2", "lesion"), ("7", "Left kidney"))
DOSES = (
    ("subject", "session", "weight_kg", "dose_bq", "minutes", "half_life_min"),
    ("s1", "", "70", "2e8", "60", "109"),
)


def _read_tables(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    if random.random() < 0.5:
        (folder / "labels.tsv").write_bytes(_whole(random, spoilt_table(random, REGIONS, "\t"), sound))
        names = read_names(folder / "labels.nii.gz")
        ensure(names is not None and all(names.values()), "a region has no name")
    else:
        (folder / "doses.csv").write_bytes(_whole(random, spoilt_table(random, DOSES, ","), sound))
        table = read_suv_table(folder / "doses.csv")
        ensure(all(0 < factor < np.inf for factor in table.factors.values()), "a factor is not positive and finite")


# Checkpoints and the state of a training


def _tiny(method: Any) -> Any:
    return method.with_network(width=8, multipliers=(1, 2), attention=())


def _trained(method: Any) -> Trained:
    method = _tiny(method)
    network = method.build().eval().requires_grad_(False)
    return Trained(method, network, PercentileScaling(Range(0.0, 100.0)), (1.0, 1.0, 1.0), 5, 0)


def _ready_checkpoints(folder: Path) -> dict[str, Any]:
    runs = []
    for name, method in METHODS.items():
        place = save(folder / name, _trained(method))
        runs.append((place.read_bytes(), json.loads(place.with_suffix(".json").read_text())))
    return {"runs": runs, "scan": torch.rand(8, 8, 8) * 100} | _marked(folder)


def _load_checkpoint(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    weights, about = random.choice(sound["runs"])
    text = json.dumps(about).encode()
    if random.random() < 0.3:
        weights = _whole(random, spoilt_bytes(random, weights[: random.choice((64, 4096, len(weights)))]), sound)
        if random.random() < 0.7:
            text = json.dumps(about | {"sha256": hashlib.sha256(weights).hexdigest()}).encode()
    else:
        text = _whole(random, spoilt_json(random, about), sound)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "model.json").write_bytes(text)
    try:
        trained = load(folder)
    except ValueError as error:
        ensure(str(folder) in str(error), f"the message does not name the file: {error}")
        raise
    if trained.method.sampling.steps <= 8:  # more steps would take too long
        made = translate_volume(trained, sound["scan"])
        ensure(made.shape == sound["scan"].shape and bool(made.isfinite().all()), "no translation")


def _ready_training(folder: Path) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    pairs = [tuple(rng.uniform(-1, 1, (2, 8, 8, 8)).astype(np.float32)) for _ in range(2)]
    method, schedule = _tiny(PPDM), Schedule(steps=5)
    run = Run(folder / "run", save_steps=1)
    done: list[int] = []
    with contextlib.suppress(Interrupted):
        train(method, pairs, schedule, run=run, stop=lambda: len(done) == 3, progress=lambda r: done.append(r.step))
    files = {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()}
    return {"method": method, "pairs": pairs, "files": files} | _marked(folder)


def _resume(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    files = dict(sound["files"])
    states = sorted(name for name in files if name.startswith("state-"))
    for name in {random.choice([*states, "options.json", "log.jsonl"]) for _ in range(random.choice((1, 1, 2)))}:
        json_like = name.endswith(".json")
        spoilt = spoilt_json(random, json.loads(files[name])) if json_like else spoilt_bytes(random, files[name])
        files[name] = _whole(random, spoilt, sound)
    if random.random() < 0.7:
        _sign(files, states)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    fit(sound["method"], sound["pairs"], steps=5, run=Run(folder, resume=True, save_steps=1))
    left = {entry.name for entry in folder.iterdir() if entry.name.startswith(".")} - {".lock"}
    ensure(not left, f"files remain: {left}")


def _read_log(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    rows = [json.dumps({"step": step, "seconds": step / 3, "loss": 1.0}).encode() for step in (1, 2)]
    rows.append(_whole(random, spoilt_json(random, json.loads(rows[-1])), sound))
    (folder / "log.jsonl").write_bytes(b"\n".join(rows))
    steps, seconds, _ = last_step(folder / "log.jsonl")
    ensure(type(steps) is int and type(seconds) is float, "no number of steps or seconds")


def _sign(files: dict[str, bytes], states: Sequence[str]) -> None:
    """Give corrupted states a matching digest, as an attacker would."""
    for name in states:
        with contextlib.suppress(ValueError, AttributeError, TypeError, RecursionError):
            if name.endswith(".json"):
                content = json.loads(files[name])
                content.pop("sha256", None)
                digest = hashlib.sha256(files[name.replace(".json", ".safetensors")])
                digest.update(json.dumps(content, sort_keys=True).encode())
                files[name] = json.dumps(content | {"sha256": digest.hexdigest()}).encode()


# Records and related files


def _ready_records(folder: Path) -> dict[str, Any]:
    options = {"method": "ppdm", "shape": [8, 8, 8], "batch_size": 1, "resolved": {"network": {"width": 8}}}
    env = {"torch": "2.9.0", "cpu": "x", "gpu": "y", "commit": "0" * 40, "dirty": False, "threads": 1}
    shared: dict[str, Any] = {"method": "ppdm", "variant": "r=2", "shape": (8, 8, 8), "batch_size": 1, "phase": "train"}
    shared |= {"precision": "fp32", "device": "cpu", "env": env, "options": options, "config_id": config_id(options)}
    rows = [
        Record(metric="peak_allocated", value=4096, kind=kind, status="ok", **shared)
        for kind in ("predicted", "measured")
    ]
    rows += [
        Record(metric="peak_allocated", kind="measured", status="oom", reason="made-up reason", **shared),
        Record(metric="step_seconds", value=0.5, samples=(0.4, 0.5, 0.6), n=3, kind="measured", **shared),
        Record(
            metric="psnr", value=20.5, unit="dB", subject="s1", task="mri", steps=4, seed=0, kind="measured", **shared
        ),
    ]
    case = SweepCase("peak_allocated", {**shared, "command": ""}, {})
    bombs = {".gz": gzip_bomb(), ".xz": xz_bomb()}
    return {"rows": [json.loads(row.to_json()) for row in rows], "case": case, "bombs": bombs} | _marked(folder)


def _spoilt_records(random: Random, path: Path, sound: Mapping[str, Any]) -> None:
    lines = [json.dumps(row).encode() for row in sound["rows"]]
    for _ in range(random.choice((1, 1, 3))):
        lines[random.randrange(len(lines))] = spoilt_json(random, random.choice(sound["rows"]))
    content = b"\n".join(lines) + b"\n"
    content = _whole(random, spoilt_bytes(random, content) if random.random() < 0.1 else content, sound)
    if path.suffix in COMPRESSED:
        content = gzip.compress(content, 1) if path.suffix == ".gz" else lzma.compress(content, preset=0)
        content = sound["bombs"][path.suffix] if random.random() < 0.01 else content
        content = spoilt_bytes(random, content) if random.random() < 0.2 else content
    path.write_bytes(content)


def _read_records(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    path = folder / random.choice(("records.jsonl", "records.jsonl", "records.jsonl.gz", "records.jsonl.xz"))
    _spoilt_records(random, path, sound)
    read = RecordFile(path).read()
    for record in read:
        ensure(Record.from_json(record.to_json()) == record, "a record changes when it is written and read")
    if path.suffix in COMPRESSED:
        return
    ledger = Ledger(folder)
    ledger.keep(Sweep("none", 60, ledger.earlier).settled(sound["case"]))
    ensure(RecordFile(path).read() == read, "results of an earlier run were written again")


def _report_records(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    for name in ("old", "new"):
        (folder / name).mkdir()
        _spoilt_records(random, folder / name / "records.jsonl", sound)
    library = read_library([folder / "old"])
    provenance(library.records)
    found = changes(read_records(folder / "old"), read_records(folder / "new"), 0.05)
    changes_page(found, []).to_text()
    to_records(found)


def _ready_figures(folder: Path) -> dict[str, Any]:
    """Records for every kind of figure, from one subject."""
    rows = []
    metrics = {"psnr", "seam_index_r2", "peak_allocated", "params", "activations", "step_seconds", "train_seconds"}
    for name in ("ablations", "memory-resolution", "validation/cpu-32"):
        found = RecordFile(RESULTS / name / "records.jsonl.gz").read()
        one = {record.subject for record in found if record.subject and record.task == found[0].task}
        kept = (r for r in found if r.subject in ("", min(one, default="")) and r.task in ("", found[0].task))
        rows += [json.loads(record.to_json()) for record in kept if record.metric in metrics]
    return {"rows": rows}


def _make_figures(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    lines = [json.dumps(row).encode() for row in sound["rows"]]
    for _ in range(random.choice((1, 10, 50))):
        at = random.randrange(len(lines))
        row, options = sound["rows"][at], spoilt_json(random, sound["rows"][at]["options"])
        lines[at] = json.dumps(row | {"options": {}}).encode().replace(b'"options": {}', b'"options": ' + options)
    (folder / "records.jsonl").write_bytes(b"\n".join(lines))
    library = read_library([folder])
    evidence = Evidence(library, PPDM.to_dict(), ["mri-t1t2"])
    with reporting_altered_records("a figure"):
        for exhibit in PAPER_FIGURES:
            with contextlib.suppress(MissingRecords):
                exhibit.show(library)
        for claim in CLAIMS:
            claim.decide(evidence)


def _ready_snapshot(folder: Path) -> dict[str, Any]:
    volume = np.random.default_rng(0).random((8, 9, 10)).astype(np.float32)
    pictures = sections(volume, (4, 4, 5))
    views = [View("target", "target", pictures), View("prediction", "ppdm", pictures, [np.arange(5.0)] * 3, "0", 4)]
    place = write_snapshot(Snapshot("mri", "s1", (1.0, 1.0, 1.0), (8, 9, 10), "", views), folder / "snapshot.npz")
    with zipfile.ZipFile(place) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    about = json.loads(np.load(io.BytesIO(members["about.npy"])).tobytes())
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("about.npy", _array_header((BOMB,)) + bytes(BOMB))
    size, least = ((BOMB + len(_array_header((BOMB,)))).to_bytes(4, "little"), (4096).to_bytes(4, "little"))
    bombs = [bomb.getvalue(), bomb.getvalue().replace(size, least)]  # the second bomb declares a small size
    return {"bytes": place.read_bytes(), "members": members, "about": about, "bombs": bombs} | _marked(folder)


def _array_header(shape: tuple[int, ...]) -> bytes:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _read_snapshot(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    path = folder / "snapshot.npz"
    if random.random() < 0.3:
        content = random.choice(sound["bombs"]) if random.random() < _RARELY else spoilt_bytes(random, sound["bytes"])
        path.write_bytes(_whole(random, content, sound))
    else:
        members = dict(sound["members"])
        name = random.choice(["about.npy", *members])
        if name == "about.npy":
            text = io.BytesIO()
            np.save(text, np.frombuffer(spoilt_json(random, sound["about"]), np.uint8))
            members[name] = text.getvalue()
        else:
            members[name] = spoilt_bytes(random, members[name])
        if random.random() < _RARELY:
            members[name] = _array_header(random.choice(((10**12,), (1 << 33, 2), (BOMB,), (-1,))))
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for member, content in members.items():
                archive.writestr(member, content)
    snapshot = read_snapshot(path)
    for view in snapshot.views:
        ensure(all(picture.ndim == 2 for picture in view.sections.values()), "a picture does not have two axes")


def _ready_constants(folder: Path) -> dict[str, Any]:
    return {"content": asdict(FittedConstants("H100", "2.9.0", 2**20, (1, 2, 3), 2**29, ("a", "b")))} | _marked(folder)


def _read_constants(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    path = folder / "constants.json"
    path.write_bytes(_whole(random, spoilt_json(random, sound["content"]), sound))
    found = FittedConstants.read(path)
    ensure(type(found.workspace) is int and found.workspace >= 0, "the workspace is not a valid number")


def _interrupt(done: int, total: int) -> None:
    raise InterruptedError


def _ready_recipe(folder: Path) -> dict[str, Any]:
    recipe = PhantomSubjects("mri-t1t2", subjects=1, size=8).recipe()
    with contextlib.suppress(InterruptedError):
        make_set(recipe, 1, folder / "set", jobs=1, progress=_interrupt)
    (folder / "set" / subject_name("train", 0)).mkdir()  # simulates a subject that already exists
    text = (folder / "set" / "recipe.json").read_text()
    return {"recipe": recipe, "folder": folder / "set", "content": json.loads(text)} | _marked(folder)


def _claim_set(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    path = sound["folder"] / "recipe.json"
    path.write_bytes(_whole(random, spoilt_json(random, sound["content"]), sound))
    ensure(len(make_set(sound["recipe"], 1, sound["folder"], jobs=1)) == 1, "not one subject")


# Options and whole commands


READERS: Mapping[str, Callable[[str], Any]] = {
    "factor": values.read_factor,
    "shape": values.read_shape,
    "lengths": values.read_spacing,
    "budget": values.read_budget,
    "dose": values.read_dose,
    "pace": values.read_interval,
    "flips": values.read_flip_axes,
    "evaluations": values.read_evaluations,
    "seconds": values.read_seconds,
    "count": values.whole_number(),
    "positive": values.positive_number("a rate"),
    "list": values.comma_separated(values.whole_number(0)),
    "one of": values.one_of("fp32", "bf16"),
}
WORDS = (
    *("2", "2,4", "1x2x2", "24GB", "0.5", "5min", "flip:dhw"),
    *("own", "200", "160x192x160", "1e3", "fp32", "2x", "1e99"),
)


def _spoilt_word(random: Random, words: Sequence[str] = WORDS) -> str:
    kind = random.randrange(4)
    if kind == 0:
        return random.choice(TEXTS)
    word = random.choice(words)
    at = random.randrange(len(word) + 1)
    if kind == 1:
        return word[:at] + random.choice(TEXTS) + word[at:]
    if kind == 2:
        return word[:at] + word[at + 1 :]
    return word[:at] + chr(random.choice((0, 10, 32, 44, 45, 46, 48, 57, 120, 0x0661, 0xFF11, 0x1F600))) + word[at:]


def _read_option(random: Random, folder: Path, sound: Any) -> None:
    name = random.choice(list(READERS))
    text = _spoilt_word(random)
    try:
        value = READERS[name](text)
    except (ValueError, typer.BadParameter) as error:
        message = error.message if isinstance(error, typer.BadParameter) else str(error)
        ensure(
            "expected" in message and "got" in message,
            f"--{name} {text[:40]!r}: the message does not state what is expected: {message[:99]}",
        )
        raise
    numbers = value if isinstance(value, list | tuple) else (value,)
    ensure(not any(isinstance(n, float) and not 0 < n < np.inf for n in numbers), f"{name} {text[:40]!r} is {value}")


VARIATIONS = (
    *("kernel.gamma=0.25,0.5", "kernel=i2sb,gaussian(schedule=flow)", "loss.mode=off+loss.gradient=0,cell"),
    *("representation=haar,puzzle(factor=4)", "network.multipliers=[1,2]", "sampling.steps=1,4"),
    "window=patches(size=8)",
)


def _vary(random: Random, folder: Path, sound: Any) -> None:
    ensure(len(vary(PPDM, _spoilt_word(random, VARIATIONS))) > 0, "no point")


def _ready_configuration(folder: Path) -> dict[str, Any]:
    asked = Configuration("ppdm", (8, 8, 8), point=json.dumps(PPDM.to_dict()))
    return {"point": json.loads(asked.point), "asked": asked}


def _restore_point(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    text = spoilt_json(random, sound["point"]).decode("utf-8", "replace")
    made = replace(sound["asked"], point=text).resolve()
    ensure(type(made).from_dict(made.to_dict()) == made, "a point changes when it is written and read")


COMMANDS = (
    "memory --device predict --res 8 --method ppdm --factor 2 --width 8 --phase sample --timeout 2 --budget 8GB "
    "--out OUT",
    "memory --device predict --shape 8x8x8 --method wavelet --precision fp32 --checkpointing none --width 8 "
    "--batch-size 1 --preset matched --phase train --timeout 2 --out OUT",
    "memory --like SCAN --method ppdm --factor 1x2x2 --width 8 --phase sample --device predict --timeout 2 --out OUT",
    "methods --method ppdm --json",
    "compare RECORDS RECORDS --threshold 5%",
    "train --manifest absent.csv --out OUT --method ppdm --factor 2 --width 8 --steps 2 --batch-size 1 --accumulate 1 "
    "--learning-rate 1e-4 --augment flip --precision fp32 --checkpointing none --seed 0 --save-every 5min --device cpu",
    "translate MODEL absent.nii.gz OUT.nii.gz --evaluations 2 --seed 0 --device cpu --precision fp32 --suv-factor 1",
    "translate MODEL SCAN OUT.nii.gz --evaluations 2 --seed 0 --device cpu",
    "data check MANIFEST",
    "data make mri-t1t2 --subjects 2 --size 8 --grid cubic --seed 0 --out FILE",
    "speed --res 8 --method ppdm --factor 2 --width 8 --phase sample --device cuda --timeout 5 --out OUT",
    "plan --budget 8GB --res 8 --method absent --out OUT",
    "quality --manifest absent.csv --method ppdm --steps 2 --out OUT",
    "ablate --task absent --vary kernel.gamma=0.25,0.5 --steps 2 --out OUT",
    "evaluate absent absent --out OUT",
    "figures RECORDS --only absent --out OUT",
    "gpu --piece absent --minutes 1 --out OUT",
)


def _ready_commands(folder: Path) -> dict[str, Any]:
    scans = _sound_scans(folder)
    save(folder / "model", _trained(METHODS["regression"]))
    RecordFile(folder / "records.jsonl").append(map(Record.from_json, map(json.dumps, _ready_records(folder)["rows"])))
    (folder / "pairs.csv").write_text("subject,split,source,target\ns,train,sound.nii.gz,sound.nii.gz\n")
    (folder / "file").touch()
    places = {"SCAN": "sound.nii.gz", "RECORDS": "records.jsonl", "MANIFEST": "pairs.csv", "FILE": "file"}
    return {"places": {name: folder / place for name, place in (places | {"MODEL": "model"}).items()}} | scans


def _command(random: Random, folder: Path, sound: Mapping[str, Any]) -> None:
    words = random.choice(COMMANDS).split()
    for _ in range(random.choice((1, 1, 2))):
        kind, at = random.randrange(10), random.randrange(1, len(words) - 2)
        if kind == 0:
            del words[at]
        elif kind == 1:
            words.insert(at, random.choice(TEXTS))
        else:
            values = [k for k in range(1, len(words)) if not words[k].startswith("--") and words[k] != "FILE"] or [at]
            at = random.choice(values)
            words[at] = _spoilt_word(random, [words[at]])
    for name, place in sound["places"].items():
        words = [str(place) if word == name else word for word in words]
    words = [word.replace("OUT", str(folder / "out")) if word.startswith("OUT") else word for word in words]
    with contextlib.chdir(folder):
        code, message = run_command(words)
    shown = " ".join(word[:40] for word in words)
    confessed = re.search(r"^ppdm-bench: unexpected |Traceback \(most", message, re.MULTILINE)
    ensure(confessed is None, f"{shown}: {message[-300:]}")
    ensure(code in (0, 1, 2), f"{shown}: exit code {code}")
    ensure(
        code == 0 or bool(message.strip()) or "compare" in words or "check" in words,
        f"{shown}: exit code {code} without a word",
    )
    named = {".lock", *(Path(word).name for word in words)}  # an output may have the name .OUT
    left = [path.name for path in folder.rglob(".*") if path.name not in named]
    ensure(not left, f"{shown}: left behind: {left}")
    if code:
        raise ValueError(message)


def run_command(words: Sequence[str]) -> tuple[int, str]:
    """Run a command in this process; return its exit code and standard error."""
    stderr, arguments = io.StringIO(), sys.argv
    handlers = signal.getsignal(signal.SIGTERM), warnings.showwarning
    sys.argv = ["ppdm-bench", *words]
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
            cli.main()
    except SystemExit as end:
        return int(end.code or 0), stderr.getvalue()
    finally:
        sys.argv, warnings.showwarning = arguments, handlers[1]
        signal.signal(signal.SIGTERM, handlers[0])
    raise Breach("the command did not end")


def _nothing(folder: Path) -> dict[str, Any]:
    return {}


TARGETS = {
    target.name: target
    for target in (
        Target("scan", "NIfTI-1 and -2 headers, voxels, gzip", 4000, _sound_scans, _read_scan),
        Target("pair", "the scans, mask and labels of a pair", 1500, _sound_scans, _check_scans),
        Target("translation", "the scan that is to be translated", 800, _ready_translation, _translate_scan),
        Target("manifest", "CSV of pairs", 2500, _marked, _read_manifest),
        Target("tables", "regions (TSV), doses (CSV)", 2000, _marked, _read_tables),
        Target("checkpoint", "model.json, model.safetensors", 2000, _ready_checkpoints, _load_checkpoint),
        Target(
            "training", "state-*.json, state-*.safetensors, options.json, log.jsonl", 1000, _ready_training, _resume
        ),
        Target("log", "log.jsonl of a training that has ended", 800, _marked, _read_log),
        Target("records", "records.jsonl, .jsonl.gz, .jsonl.xz", 2500, _ready_records, _read_records),
        Target("report", "records that are compared", 1000, _ready_records, _report_records),
        Target("figures", "records that figures and claims are made from", 600, _ready_figures, _make_figures),
        Target("snapshot", "snapshot.npz", 1500, _ready_snapshot, _read_snapshot),
        Target("constants", "constants.json", 800, _ready_constants, _read_constants),
        Target("recipe", "recipe.json of a set of phantoms", 500, _ready_recipe, _claim_set),
        Target("options", "values of options", 4000, _nothing, _read_option),
        Target("variation", "--vary", 1500, _nothing, _vary),
        Target("point", "a method as JSON", 1500, _ready_configuration, _restore_point),
        Target("command", "words of a command line", 1500, _ready_commands, _command),
    )
}

"""Untrusted input: a fixed set of damaged files and arguments, and every defect that such input has revealed.

``benchmarks/harness/fuzz.py`` tests many more inputs; its results are in ``results/harness/fuzz.md``.
"""

import gzip
import hashlib
import io
import json
import lzma
import time
import zipfile
from pathlib import Path

import fuzz
import numpy as np
import pytest
from commands import refused
from evidence import kept, peak, scores
from fuzz import DEFECT, REFUSAL, RESULT, attempt, try_target
from hostile import BOMB, MARK, TARGETS, Target, gzip_bomb, xz_bomb
from mutation import Payload, pickles

from ppdm import PPDM, Method
from ppdm.checkpoint import CheckpointError, Trained, assemble, load
from ppdm.data.manifest import ManifestError, read_manifest
from ppdm.data.scaling import SUVScaling
from ppdm.data.volume import Volume, read_volume, write_volume
from ppdm.simulation.generation import GenerationError, make_set
from ppdm.training.log import last_step
from ppdm.training.schedule import TrainingError
from ppdm.training.state import read_state
from ppdm_baselines import METHODS
from ppdm_bench.commands.pair_sources import PhantomSubjects
from ppdm_bench.commands.values import read_budget, read_factor, read_interval, read_shape, read_spacing
from ppdm_bench.configuration import Configuration, MethodError
from ppdm_bench.isolation.sweep import Sweep
from ppdm_bench.memory.constants import ConstantsError, FittedConstants
from ppdm_bench.records import COMPRESSED, Record, RecordError, RecordFile, RecordWarning
from ppdm_bench.report.snapshot import read_snapshot
from ppdm_bench.variation import VariationError, vary

DEEP = "[" * 100_000
CASES = {"training": 6, "command": 8, "report": 8, "checkpoint": 25, "translation": 20}


# The fixed set


@pytest.mark.slow
@pytest.mark.parametrize("target", [TARGETS[name] for name in TARGETS if name != "figures"], ids=lambda t: t.name)
def test_damaged_input_gives_a_result_or_a_refusal_with_a_message(target):
    numbers = range(CASES.get(target.name, 60))
    found = {number: (outcome, said) for number, outcome, said, _ in try_target(target, 1, numbers)}
    assert {number: said for number, (outcome, said) in found.items() if outcome == DEFECT} == {}
    outcomes = {outcome for outcome, _ in found.values()}
    assert outcomes <= {RESULT, REFUSAL}
    assert outcomes & ({RESULT} if target.name in ("pair", "training", "records") else {REFUSAL})


# The fuzzing harness itself: defects that it must detect


def watched(attack, tmp_path):
    return attempt(Target("canary", "", 1, lambda folder: None, attack), None, tmp_path, None)


def test_an_unhandled_exception_is_a_defect(tmp_path):
    outcome, said = watched(lambda *_: {}["x"], tmp_path)
    assert outcome == DEFECT
    assert said.startswith("KeyError")


def test_an_error_raised_by_a_library_is_a_defect_and_our_own_is_a_refusal(tmp_path):
    assert watched(lambda *_: int("x"), tmp_path)[0] == DEFECT
    assert watched(lambda *_: json.loads("{"), tmp_path)[0] == DEFECT
    assert watched(lambda *_: read_factor("x"), tmp_path) == (REFUSAL, "ValueError")


def test_an_allocation_above_the_limit_is_a_defect(tmp_path):
    outcome, said = watched(lambda *_: bytes(2 * fuzz.ROOM), tmp_path)
    assert (outcome, said[:11]) == (DEFECT, "MemoryError")
    assert watched(lambda *_: bytes(1 << 20), tmp_path)[0] == RESULT


def test_exceeding_the_time_limit_is_a_defect(tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)
    assert watched(lambda *_: time.sleep(5), tmp_path) == (DEFECT, "no end within 0.05 s")


def test_a_pickle_that_is_loaded_is_a_defect():
    def attack(random, folder, sound):
        np.load(io.BytesIO(sound[4]), allow_pickle=True)

    target = Target("canary", "", 1, lambda folder: pickles(folder / MARK), attack)
    assert [case[1:3] for case in try_target(target, 0, range(1))] == [(DEFECT, "a pickle was loaded")]


# Pickles in place of every file that is read


def _snapshot_of(content: bytes) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("about.npy", content)
    return archive.getvalue()


READERS = (
    ("model.safetensors", load),
    ("state-000001.safetensors", read_state),
    ("state-000001.json", lambda path: read_state(path.with_suffix(".safetensors"))),
    ("constants.json", FittedConstants.read),
    ("snapshot.npz", read_snapshot),
    ("pairs.csv", read_manifest),
    ("scan.nii", read_volume),
    ("scan.nii.gz", read_volume),
)
WRAPS = {"as it is": bytes, "gzip": gzip.compress, "zip": _snapshot_of}
# The cases cover all pairs of reader and pickle, of reader and wrap, and of wrap and pickle.
PAIRS = [
    pytest.param(name, read, wrap, number, id=f"{name}, {number} {how}")
    for place, (name, read) in enumerate(READERS)
    for number in range(6)
    for how, wrap in [list(WRAPS.items())[(place + number) % 3]]
]


@pytest.mark.parametrize(("name", "read", "wrap", "number"), PAIRS)
def test_a_pickle_is_refused_and_not_executed(tmp_path, name, read, wrap, number):
    content = wrap(pickles(tmp_path / MARK)[number])
    path = tmp_path / name
    if name.startswith("state"):  # an attacker would write both files, with a matching digest
        about = {"schema": 1, "report": {}, "log_bytes": 0}
        digest = hashlib.sha256(content + json.dumps(about, sort_keys=True).encode()).hexdigest()
        path.with_suffix(".safetensors").write_bytes(content)
        path.with_suffix(".json").write_text(json.dumps(about | {"sha256": digest}))
    if name == "model.safetensors":
        path.with_suffix(".json").write_text("{}")
    path.write_bytes(content)
    with pytest.raises(ValueError, match=path.stem):
        read(path)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("name", ["records.jsonl", "records.jsonl.gz", "records.jsonl.xz"])
def test_a_pickle_among_records_is_skipped_with_a_warning_and_not_executed(tmp_path, name, number):
    record = Record(metric="a", value=1, kind="measured")
    line = record.to_json().encode()
    content = b"\n".join((line, pickles(tmp_path / MARK)[number], line))
    packed = {"gz": gzip.compress, "xz": lzma.compress}.get(name[-2:], bytes)
    (tmp_path / name).write_bytes(packed(content))
    with pytest.warns(RecordWarning, match="unreadable"):
        assert RecordFile(tmp_path / name).read() == [record, record]
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("number", range(6))
@pytest.mark.parametrize("suffix", COMPRESSED)
def test_a_pickle_in_place_of_a_compressed_record_file_is_refused_and_not_executed(tmp_path, suffix, number):
    path = tmp_path / f"records.jsonl{suffix}"
    path.write_bytes(pickles(tmp_path / MARK)[number])
    with pytest.raises(RecordError, match="cannot read records from"):
        RecordFile(path).read()
    assert not (tmp_path / MARK).exists()


def test_the_pickles_leave_a_mark_if_they_are_executed(tmp_path):
    call, arguments = Payload(tmp_path / MARK).__reduce__()
    call(*arguments).close()
    assert (tmp_path / MARK).exists()


# Memory


@pytest.mark.parametrize("suffix", COMPRESSED)
def test_the_expansion_of_a_compressed_record_file_is_limited(tmp_path, suffix):
    path = tmp_path / f"records.jsonl{suffix}"
    path.write_bytes({".gz": gzip_bomb, ".xz": xz_bomb}[suffix]())
    with fuzz.limited_memory(), pytest.raises(RecordError, match="expands to more than 96 MiB"):
        RecordFile(path).read()


def test_an_xz_file_that_demands_a_huge_dictionary_is_refused(tmp_path):
    path = tmp_path / "records.jsonl.xz"
    path.write_bytes(lzma.compress(b"{}", filters=[{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 30}]))
    with pytest.raises(RecordError, match=r"records\.jsonl\.xz: the file is damaged \(Memory usage limit exceeded"):
        RecordFile(path).read()


@pytest.mark.parametrize("shape", [(10**12,), (1 << 33, 2), (10**6, 10**6)])
def test_a_snapshot_with_a_huge_announced_shape_is_refused_without_allocation(tmp_path, shape):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
    (tmp_path / "snapshot.npz").write_bytes(_snapshot_of(header.getvalue() + b"{}"))
    with fuzz.limited_memory(), pytest.raises(RecordError, match="contains no picture data"):
        read_snapshot(tmp_path / "snapshot.npz")


@pytest.mark.slow
@pytest.mark.parametrize("claimed", [BOMB + 128, 4096])
def test_the_expansion_of_a_compressed_snapshot_is_limited(tmp_path, claimed):
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (BOMB,)})
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        file.writestr("about.npy", header.getvalue() + bytes(BOMB))
    size = (BOMB + len(header.getvalue())).to_bytes(4, "little")
    (tmp_path / "snapshot.npz").write_bytes(archive.getvalue().replace(size, claimed.to_bytes(4, "little")))
    del archive
    with fuzz.limited_memory(), pytest.raises(RecordError, match="contains no picture data"):
        read_snapshot(tmp_path / "snapshot.npz")


@pytest.mark.parametrize(
    "content", [b"[]", b"3", DEEP.encode(), b'{"views": [{"spectra": 1000000000000}]}', b"\x80\x04."]
)
def test_a_snapshot_with_invalid_content_is_refused(tmp_path, content):
    array = io.BytesIO()
    np.save(array, np.frombuffer(content, np.uint8))
    for spoilt in (_snapshot_of(array.getvalue()), _snapshot_of(content), _snapshot_of(array.getvalue())[:-30]):
        (tmp_path / "snapshot.npz").write_bytes(spoilt)
        with pytest.raises(RecordError, match="contains no picture data"):
            read_snapshot(tmp_path / "snapshot.npz")


def test_a_compressed_scan_is_expanded_only_to_the_size_in_its_header(tmp_path):
    path, volume = tmp_path / "scan.nii.gz", Volume.from_array(np.ones((4, 5, 6), np.float32))
    write_volume(path, volume.data, volume)
    path.write_bytes(path.read_bytes() + gzip_bomb())
    with fuzz.limited_memory():
        assert (read_volume(path).data == volume.data).all()


# Numbers


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (read_budget, "9" * 400 + "GB"),
        (read_spacing, "9" * 400),
        (read_interval, "9" * 400 + "min"),
        (read_interval, "9" * 5000),
        (read_shape, "9" * 5000 + ",1,1"),
        (read_factor, "9" * 5000),
    ],
)
def test_an_extremely_long_number_is_refused_with_a_message(read, text):
    with pytest.raises(ValueError, match=r"^expected .* got"):
        read(text)


@pytest.mark.parametrize(
    "change",
    [
        {"network": {"width": 10**12}},
        {"network": {"multipliers": [1, 2**41]}},
        {"network": {"multipliers": [1] * 10**4}},
        {"network": {"residual_blocks": 10**9}},
        {"network": {"norm_groups": 10**12}},
        {"representation": {"factor": 10**6}},
        {"window": {"type": "slices", "views": "dhw", "context": 10**9, "drawn": 8, "batch": 64}},
        {"representation": {"latent_channels": 10**12}},
    ],
)
def test_a_network_that_would_take_hours_to_build_is_refused_within_seconds(change):
    learned = "latent_channels" in change.get("representation", {})
    method = Configuration("latent" if learned else "ppdm", (8, 8, 8)).resolve()
    content = method.to_dict()
    for part, values in change.items():
        content[part] = values if "type" in values else content[part] | values
    began = time.process_time()
    with pytest.raises(ValueError):
        assemble(Method.from_dict(content), 1, {})
    assert time.process_time() - began < 5


@pytest.mark.parametrize("channels", [-1, 0, 10**12, 1.0, True])
def test_an_invalid_number_of_channels_is_refused(channels):
    with pytest.raises(ValueError, match="channels must be an integer from 1 to 65536"):
        assemble(PPDM.with_network(width=8), channels, {})


def test_a_voxel_size_that_exceeds_the_float_range_is_refused():
    network = PPDM.with_network(width=8, multipliers=(1,)).build()
    Trained(PPDM, network, SUVScaling(), (1, 1, 10**300), 1, 0)
    with pytest.raises(ValueError, match="three positive numbers of mm"):
        Trained(PPDM, network, SUVScaling(), (1, 1, 10**400), 1, 0)


@pytest.mark.slow
def test_missing_weights_of_the_largest_network_are_refused_within_seconds():
    method = PPDM.with_network(width=8, multipliers=(1,) * 16, residual_blocks=32)
    began = time.process_time()
    with pytest.raises(ValueError, match="is missing"):
        assemble(method, 1, {})
    assert time.process_time() - began < 10


def test_a_record_value_that_exceeds_the_float_range_is_refused():
    line = Record(metric="a", value=1, kind="measured").to_json()
    with pytest.raises(RecordError, match="finite number"):
        Record.from_json(line.replace('"value": 1,', f'"value": 1{"0" * 400},'))


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_record_with_an_option_that_is_not_finite_is_refused(number):
    line = Record(metric="a", value=1, kind="measured").to_json()
    with pytest.raises(RecordError, match="not a finite number"):
        Record.from_json(line.replace('"options": {}', f'"options": {{"a": {number}}}'))


def test_a_device_is_refused_where_a_file_is_expected():
    with pytest.raises(RecordError, match="it is a device; name a file"):
        RecordFile("/dev/zero").read()
    with pytest.raises(ConstantsError, match="it is not a file"):
        FittedConstants.read(Path("/dev/zero"))


@pytest.mark.parametrize("options", [{"training": {"seed": [1]}}, {"training": {"seed": {}}}, {"convention": "x"}])
def test_figures_of_records_with_altered_options_are_refused_with_a_message(tmp_path, options):
    rows = [
        json.loads(record.to_json())
        for record in (*scores(METHODS["ppdm"], "pet-denoise", [30, 31]), peak(METHODS["ppdm"], 32, 1 << 20))
    ]
    rows[0]["options"] |= options
    kept(tmp_path / "set", [Record(**row) for row in rows])
    said = refused(1, "figures", tmp_path / "set", "--out", tmp_path / "out")
    assert "its file was altered, or another version wrote it" in said


def test_a_timeout_record_with_an_invalid_time_limit_is_not_final():
    common = {"config_id": "c", "env": {"dirty": False}, "options": {"timeout": "long"}, "kind": "measured"}
    record = Record(metric="peak_allocated", status="timeout", reason="so it is", **common)
    assert not Sweep("none", 60, [record])._is_final([record])


# JSON


def test_deeply_nested_json_is_refused(tmp_path):
    (tmp_path / "constants.json").write_text(DEEP)
    with pytest.raises(ConstantsError, match="contains no constants"):
        FittedConstants.read(tmp_path / "constants.json")
    with pytest.raises(MethodError):
        Configuration("ppdm", (8, 8, 8), point=DEEP).resolve()
    with pytest.raises(VariationError):
        vary(PPDM, f"kernel.gamma={DEEP}")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "recipe.json").write_text(DEEP)
    with pytest.raises(GenerationError, match="holds another set"):
        make_set(PhantomSubjects("mri-t1t2", size=8).recipe(), 1, tmp_path / "set")


@pytest.mark.parametrize("values", [{"workspace": -3.5}, {"gpu": 1}, {"residuals": "ab"}, {"context": "x"}])
def test_constants_of_a_wrong_type_are_refused(tmp_path, values):
    sound = {"gpu": "H100", "torch": "2.9.0", "workspace": 1, "residuals": [1], "context": 2, "records": ["a"]}
    (tmp_path / "constants.json").write_text(json.dumps(sound))
    assert FittedConstants.read(tmp_path / "constants.json").workspace == 1
    (tmp_path / "constants.json").write_text(json.dumps(sound | values))
    with pytest.raises(ConstantsError, match="contains no constants"):
        FittedConstants.read(tmp_path / "constants.json")


def test_an_empty_variation_is_refused():
    for text in ("+", "+,+", "kernel.gamma=1,+"):
        with pytest.raises(VariationError, match=r"expected name=value|must be"):
            vary(PPDM, text)


@pytest.mark.parametrize(
    ("report", "log_bytes"),
    [({}, "a"), ({}, -5), ({"step": 10**30}, 0), ({"step": "2"}, 0), ({"seconds": None}, 0), ({"share": []}, 0)],
)
def test_a_training_state_with_invalid_values_is_refused_despite_a_valid_digest(tmp_path, report, log_bytes):
    sound = {"step": 2, "share": 0.5, "loss": 1.0, "gradient_norm": 1.0, "learning_rate": 1e-4, "seconds": 1.0}
    sound |= {"validation_loss": None, "resumed": False, "stage": None, "peak_allocated": [5, 6]}
    place = tmp_path / "state-000002.safetensors"

    def written(report, log_bytes):
        content = {"schema": 1, "report": sound | report, "log_bytes": log_bytes, "versions": {}}
        place.write_bytes((2).to_bytes(8, "little") + b"{}")
        digest = hashlib.sha256(place.read_bytes() + json.dumps(content, sort_keys=True).encode()).hexdigest()
        place.with_suffix(".json").write_text(json.dumps(content | {"sha256": digest}))

    written({}, 0)
    assert read_state(place).report.step == 2
    written(report, log_bytes)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_state(place)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"{", b"[]", b'{"step": 1}', b'{"step": [], "seconds": 1}', DEEP.encode()]
)
def test_a_log_without_a_last_step_is_refused(tmp_path, content):
    (tmp_path / "log.jsonl").write_bytes(content)
    with pytest.raises(TrainingError, match="does not end with a step"):
        last_step(tmp_path / "log.jsonl")
    with pytest.raises(TrainingError, match="does not end with a step"):
        last_step(tmp_path / "absent")
    (tmp_path / "log.jsonl").write_bytes(b'{"step": 1, "seconds": 2}\n{"step": 2, "seconds": 3}\n')
    assert last_step(tmp_path / "log.jsonl") == (2, 3.0, ())


def test_messages_of_nibabel_about_repaired_headers_are_suppressed(tmp_path, capfd, caplog):
    path, volume = tmp_path / "scan.nii", Volume.from_array(np.ones((4, 5, 6), np.float32))
    write_volume(path, volume.data, volume)
    content = bytearray(path.read_bytes())
    content[252:254] = (999).to_bytes(2, "little")  # qform_code
    path.write_bytes(content)
    assert (read_volume(path).data == 1).all()
    assert (capfd.readouterr().err, caplog.text) == ("", "")


# Paths


def test_a_relative_path_that_leaves_the_manifest_folder_is_refused(tmp_path):
    (tmp_path / "set").mkdir()
    for name in ("x.nii", "set/a.nii"):
        (tmp_path / name).touch()
    manifest = tmp_path / "set" / "pairs.csv"
    for path in ("../x.nii", "a/../../x.nii", "./../x.nii", ".//..//x.nii", "../set/../x.nii"):
        manifest.write_text(f"subject,split,source,target\ns,train,a.nii,{path}\n")
        with pytest.raises(ManifestError, match="leaves the manifest's folder"):
            read_manifest(manifest)
    manifest.write_text(f"subject,split,source,target\ns,train,a.nii,{tmp_path / 'x.nii'}\n")
    assert read_manifest(manifest)[0].target == tmp_path / "x.nii"


# Commands


@pytest.mark.parametrize(
    "words",
    [
        ["memory", "--res", "8", "--budget", "9" * 400 + "GB"],
        ["memory", "--res", "9" * 5000],
        ["memory", "--res", "8", "--method", "ppdm", "--width", "999999999999"],
        ["memory", "--res", "8", "--method", "ppdm", "--factor", "99999999"],
        ["ablate", "--task", "pet-joint", "--vary", "+"],
        ["ablate", "--task", "pet-joint", "--vary", f"kernel.gamma={DEEP[:3000]}"],
    ],
)
def test_extreme_command_arguments_are_refused_with_a_message(tmp_path, words):
    refused(2, *words, "--out", tmp_path / "out")

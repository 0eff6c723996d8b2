r"""Predict and measure unmodified third-party training programs on the CPU.

    python benchmarks/harness/programs.py results/validation FOLDER ENVIRONMENT/bin/python [NAME ...]

``FOLDER/NAME`` contains the files of a program at the commit stated in ``PROGRAMS``, and its data. ENVIRONMENT has
PyTorch (a CPU build) and the packages of the program. The programs are not part of this repository. Each program runs
twice for up to three optimizer steps: once to predict its memory, once on real tensors to measure it. Records of other
programs stay unchanged. Where the data is "made up, in MNIST's format", it is 2,560 training and 256 test images of
random pixels.

The script writes ``programs.jsonl``, ``programs.csv`` and ``programs.md``.
"""

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ppdm.atomic_io import write_together
from ppdm_bench.predictor.script.prediction import measure_script, predict_script
from ppdm_bench.predictor.target import MIB

STEPS, TIMEOUT = 3, 1800


@dataclass(frozen=True)
class Program:
    """A third-party program.

    Attributes:
        repository, commit, path: source of its files.
        data: origin of its data.
        command: its command line, without the interpreter.
        packages: packages whose versions are recorded.
        variables: environment variables, as words before the interpreter.
    """

    repository: str
    commit: str
    path: str
    data: str
    command: str
    packages: tuple[str, ...] = ()
    variables: str = ""


_MONAI = "Project-MONAI/tutorials", "b3c6c998c931d78b61c4d32b37f962a987400f8a"
_EXAMPLES = "pytorch/examples", "77f55b912142e11fcfdf5b530231fb9c52f181e8"

_MNIST = "made up, in MNIST's format, in "

PROGRAMS = {
    "monai-unet": Program(
        *_MONAI, "3d_segmentation/torch/unet_training_array.py", "its own", "unet_training_array.py",
        ("monai", "torchvision"),
    ),
    "monai-engine": Program(
        *_MONAI, "modules/engines/unet_training_dict.py", "its own", "unet_training_dict.py",
        ("monai", "pytorch-ignite", "torchvision"),
    ),
    "nnunet": Program(
        "MIC-DKFZ/nnUNet", "0e495086eb108ff79afe106291e8c15bd2f2bc3a", "nnunetv2",
        "six made-up volumes of 52×56×48, planned and preprocessed by nnUNetv2_plan_and_preprocess",
        "-m nnunetv2.run.run_training 2 3d_fullres 0 -device cpu",
        ("batchgenerators", "batchgeneratorsv2", "dynamic_network_architectures", "timm", "torchvision"),
        "nnUNet_raw=raw nnUNet_preprocessed=pre nnUNet_results=res",
    ),
    "nanogpt": Program(
        "karpathy/nanoGPT", "3adf61e154c3fe3fca428ad6bc3818b27a3b8291", ".", "data/shakespeare_char/prepare.py",
        "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=2 "
        "--batch_size=12 --max_iters=10",
    ),
    "timm": Program(
        "huggingface/pytorch-image-models", "aa4b5850c1543fa488abf260f18390eda46cf85d", "train.py and timm",
        "a folder of made-up images, imgs",
        "train.py --data-dir imgs --model resnet18 -b 8 --epochs 1 --num-classes 2 --img-size 96 --workers 2 "
        "--no-prefetcher --device cpu", ("torchvision",),
    ),
    "dcgan": Program(
        *_EXAMPLES, "dcgan/main.py", "its own (fake)", "main.py --dataset fake --niter 1 --batchSize 16",
        ("torchvision",),
    ),
    "language-lstm": Program(
        *_EXAMPLES, "word_language_model", "WikiText-2 in the repository; valid.txt is train.txt too",
        "main.py --use-optimizer --lr 0.001 --epochs 1",
    ),
    "vae": Program(*_EXAMPLES, "vae/main.py", _MNIST + "../data", "main.py --epochs 1", ("torchvision",)),
    "siamese": Program(
        *_EXAMPLES, "siamese_network/main.py", _MNIST + "../data", "main.py --epochs 1 --batch-size 16",
        ("torchvision",),
    ),
    "forward-forward": Program(
        *_EXAMPLES, "mnist_forward_forward/main.py", _MNIST + "data",
        "main.py --epochs 2 --train_size 1000 --test_size 100", ("torchvision",),
    ),
}  # fmt: skip


def main(out: Path, folder: Path, interpreter: str, names: Sequence[str]) -> None:
    """Predict and measure programs, and write their records."""
    place = out / "programs.jsonl"
    rows = {row["name"]: row for row in map(json.loads, place.read_text().splitlines())} if place.exists() else {}
    for name in names or PROGRAMS:
        rows[name] = row = record(name, folder / name, interpreter)
        print(f"{name}: {row['predicted'] / MIB:.2f} MiB predicted, {row['measured'] / MIB:.2f} measured", flush=True)
        kept = [rows[each] for each in PROGRAMS if each in rows]
        write_together(
            {
                place: "".join(json.dumps(each, sort_keys=True) + "\n" for each in kept).encode(),
                out / "programs.csv": as_csv(kept).encode(),
                out / "programs.md": f"# Third-party training programs\n\n{table(kept)}".encode(),
            }
        )


def record(name: str, folder: Path, interpreter: str) -> dict[str, Any]:
    """Predict and measure a program; its peaks are in bytes."""
    program, before = PROGRAMS[name], Path.cwd()
    words = [*program.variables.split(), interpreter, *program.command.split()]
    os.chdir(folder)
    try:
        predicted = predict_script(words, STEPS, "cpu", timeout=TIMEOUT)
        measured = measure_script(words, STEPS, timeout=TIMEOUT)
    finally:
        os.chdir(before)
    return {
        "name": name,
        **asdict(program),
        "versions": versions(interpreter, ("torch", *program.packages)),
        "steps": predicted.steps,
        "predicted": predicted.peak.peak_allocated,
        "measured": measured.peak.peak_allocated,
        "may_arrive": predicted.prefetched,
        "arrived": measured.prefetched,
        "seconds_predicted": round(predicted.seconds, 1),
        "seconds_measured": round(measured.seconds, 1),
        "notes": list(predicted.notes),
    }


def versions(interpreter: str, packages: Sequence[str]) -> dict[str, str]:
    """Versions of packages in an environment; see :func:`version`."""
    printed = f"import json; print(json.dumps({{p: version(p) for p in {list(packages)!r}}}))"
    words = [interpreter, "-c", f"{inspect.getsource(version)}\n{printed}"]
    found: dict[str, str] = json.loads(subprocess.run(words, capture_output=True, check=True).stdout)
    return found


def version(package: str) -> str:
    """Version of a package, and its modules that were changed after the installation, by their hashes."""
    from base64 import urlsafe_b64encode
    from hashlib import sha256
    from importlib.metadata import distribution

    found = distribution(package)
    changed = [
        path.name
        for path in found.files or []
        if path.suffix == ".py"
        and path.hash
        and urlsafe_b64encode(sha256(path.read_binary()).digest()).decode().rstrip("=") != path.hash.value
    ]
    return f"{found.version} with another {', '.join(changed)}" if changed else found.version


def difference(row: dict[str, Any], without: int = 0) -> str:
    """The error of a prediction in per cent of the measured peak minus ``without`` bytes."""
    return f"{100 * (row['predicted'] / (row['measured'] - without) - 1):+.2f} %".replace("-", "−")


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The records as CSV, in bytes and seconds."""
    fields = ["name", "repository", "commit", "path", "variables", "command"]
    fields += ["predicted", "measured", "may_arrive", "arrived", "seconds_predicted", "seconds_measured"]
    return str(pd.DataFrame(rows, columns=fields).to_csv(index=False, lineterminator="\n"))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The records as a Markdown table."""
    lines = [
        "| program | command | predicted (MiB) | measured (MiB) | difference | prefetched batches (MiB) "
        "| difference without them | seconds |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        used = ", ".join(f"{package} {version}" for package, version in sorted(row["versions"].items()))
        source = (
            f"[{row['repository']}](https://github.com/{row['repository']}) {row['path']}, {row['commit'][:8]} ({used})"
        )
        command = f"{row['variables']} python {row['command']}".strip()
        prefetched = f"{row['arrived'] / MIB:.1f} of {row['may_arrive'] / MIB:.1f}" if row["may_arrive"] else "none"
        lines.append(
            f"| {source} | `{command}` | {row['predicted'] / MIB:.2f} | {row['measured'] / MIB:.2f} "
            f"| {difference(row)} | {prefetched} | {difference(row, row['arrived'])} "
            f"| {row['seconds_predicted']:.0f}, {row['seconds_measured']:.0f} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]).resolve(), sys.argv[3], sys.argv[4:])

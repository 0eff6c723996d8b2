"""Licences of everything that is installed to run the toolkit or to work on it, as each package itself states them.

Usage: python benchmarks/harness/licences.py > docs/licences.md
with a build of PyTorch for the CPU; one for CUDA adds NVIDIA's libraries, which the script does not pass.
"""

import re
import sys
import tomllib
from collections.abc import Sequence
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PROJECT = Path(__file__).resolve().parents[2] / "pyproject.toml"
# What Apache-2.0 code may depend on: permissive licences, and MPL-2.0, whose copyleft ends at the files that bear it.
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-CMU",
    "Zlib",
}
COMPATIBLE = PERMISSIVE | {"LLVM-exception", "PSF-2.0", "MPL-2.0"}
# How packages without a licence expression say it, in SPDX's names. "BSD" alone does not say which; 3 asks for more.
SPDX = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD License": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC",
    "MIT License": "MIT",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}
# Stated by the package elsewhere than in its metadata, or with reservations: see the remarks.
STATED = {"docutils": "BSD-2-Clause", "torchao": "BSD-3-Clause"}
REMARKS = """\
PyTorch's builds for CUDA also bring NVIDIA's libraries (`nvidia-*`), under NVIDIA's own terms. pip installs them from
the package index; the wheel of this project holds no code but its own.

docutils is in the public domain, but for some files under the BSD licence, the PSF's, and one, for the editor Emacs,
under the GPL. It makes this site and is part of nothing that is given away.

torchao states its licence in its file LICENSE alone.
"""


def main() -> None:
    """Print a table for running and one for development; fail if a licence is not known to be compatible."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    asked = project["dependencies"], project["optional-dependencies"]["dev"]
    named = {canonicalize_name(Requirement(one).name) for requirements in asked for one in requirements}
    running, development = map(needed, asked)
    print(f"# Licences\n\nOurs is {project['license']}. This is what the installed packages state of themselves;")
    print("`benchmarks/harness/licences.py` lists it. **Bold**: named in `pyproject.toml`; the others come with those.")
    for title, packages in (("To run it", running), ("To work on it", development - running)):
        print(f"\n## {title}\n\n| package | licence |\n|---|---|")
        for name in sorted(packages):
            print(f"| {f'**{name}**' if name in named else name} | {licence(name)} |")
    print(f"\n## Remarks\n\n{REMARKS}", end="")
    if foreign := [name for name in sorted(running | development) if not compatible(licence(name))]:
        sys.exit(f"not known to be compatible with {project['license']}: {', '.join(foreign)}")


def needed(requirements: Sequence[str]) -> set[str]:
    """Every package that these need on this Python, by its canonical name."""
    found: set[tuple[str, str]] = set()  # with the extra that was asked for, or with none
    waiting = [(Requirement(one), "") for one in requirements]  # with the extra that it is of
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            name = canonicalize_name(wanted.name)
            new = {(name, asked) for asked in ("", *wanted.extras)} - found
            found |= new
            waiting += [(Requirement(one), asked) for _, asked in new for one in distribution(name).requires or ()]
    return {name for name, _ in found}


def licence(name: str) -> str:
    """What an installed package states: its licence expression, or else classifiers or a short text in SPDX's names.

    Raises:
        PackageNotFoundError: it is not installed.
    """
    if name in STATED:
        return STATED[name]
    metadata = distribution(name).metadata
    expression, classifiers, words = (
        metadata.get_all(key) or [] for key in ("License-Expression", "Classifier", "License")
    )
    if expression:
        return str(expression[0])
    said = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::")]
    said = said or [one.splitlines()[0] for one in words] or ["not stated"]
    return " AND ".join(SPDX.get(one, one) for one in said)


def compatible(expression: str) -> bool:
    """Whether all that the expression names may be depended on, whichever of them one would choose."""
    return set(re.split(r"[\s()]+", expression)) - {"AND", "OR", "WITH", ""} <= COMPATIBLE


if __name__ == "__main__":
    main()

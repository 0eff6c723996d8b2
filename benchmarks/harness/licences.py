"""List the licences of all packages that the toolkit needs at run time or for development, as the packages state them.

    python benchmarks/harness/licences.py > docs/licences.md   write the list
    python benchmarks/harness/licences.py --check              compare it with the installed packages (`make lint`)

To write the list, use a CPU build of PyTorch; a CUDA build adds NVIDIA's libraries, which the script does not accept.
The check covers only packages that pyproject.toml and constraints.txt name, so that it passes with any build.
"""

import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT, PINNED, LIST = ROOT / "pyproject.toml", ROOT / "constraints.txt", ROOT / "docs/licences.md"
# Apache-2.0 code may depend on permissive licences, and on MPL-2.0, whose copyleft is limited to its own files.
PERMISSIVE = {
    "0BSD",
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CNRI-Python",
    "ISC",
    "MIT",
    "MIT-CMU",
    "Zlib",
}
COMPATIBLE = PERMISSIVE | {"LLVM-exception", "PSF-2.0", "MPL-2.0"}
# SPDX identifiers for packages without a licence expression. "BSD" without a number is ambiguous and is treated as
# BSD-3-Clause, which has more conditions.
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
# Licences that a package states outside its metadata, or with exceptions: see the remarks.
STATED = {"docutils": "BSD-2-Clause", "torchao": "BSD-3-Clause"}
REMARKS = """\
PyTorch's CUDA builds also require NVIDIA's libraries (`nvidia-*`), under NVIDIA's own terms. pip installs them from the
package index; the wheel of this project contains only its own code.

docutils is in the public domain, except for some files under the BSD and PSF licences, and one file for the editor
Emacs under the GPL. It is used to build this site and is not distributed with the project.

torchao states its licence only in its file LICENSE.
"""


def main() -> None:
    """Print one table for run time and one for development; fail if a licence is not known to be compatible."""
    if sys.argv[1:] == ["--check"]:
        sys.exit("\n".join(faults(listed(LIST.read_text()))) or 0)
    ours = tomllib.loads(PROJECT.read_text())["project"]["license"]
    running, development = map(needed, asked_for())
    named = direct()
    print(f"# Licences\n\nThis project is licensed under {ours}. The tables list the licences that the")
    print("installed packages state; `benchmarks/harness/licences.py` writes them. Packages in **bold** are named in")
    print("`pyproject.toml`; these require the others.")
    for title, packages in (("Needed at run time", running), ("Needed for development", development - running)):
        print(f"\n## {title}\n\n| package | licence |\n|---|---|")
        for name in sorted(packages):
            print(f"| {f'**{name}**' if name in named else name} | {licence(name)} |")
    print(f"\n## Remarks\n\n{REMARKS}", end="")
    if foreign := [name for name in sorted(running | development) if not compatible(licence(name))]:
        sys.exit(f"not known to be compatible with {ours}: {', '.join(foreign)}")


def asked_for() -> tuple[list[str], list[str]]:
    """The requirements in pyproject.toml at run time and for development."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    return project["dependencies"], project["optional-dependencies"]["dev"]


def direct() -> set[str]:
    """The canonical names of the packages in pyproject.toml."""
    return {canonicalize_name(Requirement(one).name) for requirements in asked_for() for one in requirements}


def listed(text: str) -> dict[str, str]:
    """The licence of every package in a list written by this script; names of direct dependencies stay **bold**."""
    return dict(re.findall(r"^\| (\S+) \| (.+) \|$", text, re.MULTILINE))


def faults(table: Mapping[str, str]) -> Iterator[str]:
    """Differences of a list from pyproject.toml, constraints.txt and the installed packages, as sentences."""
    named = direct()
    pinned = {canonicalize_name(name) for name in re.findall(r"^(.+?)==", PINNED.read_text(), re.MULTILINE)} - named
    bold = {name.strip("*") for name in table if name.startswith("**")}
    for name in sorted(named | pinned):
        documented = table.get(f"**{name}**" if name in named else name)
        try:
            stated = licence(name)
        except PackageNotFoundError:  # required by another Python version, or by an extra that is not installed
            stated = documented
        if documented is None:
            yield f"docs/licences.md does not list {name}"
        elif documented != stated:
            yield f"docs/licences.md has {documented} for {name}, which states {stated}"
        elif not compatible(documented):
            yield f"{name} is under {documented}, which is not known to be compatible with ours"
    for name in sorted(bold - named):
        yield f"docs/licences.md has {name} in bold, which pyproject.toml does not name"


def needed(requirements: Sequence[str]) -> set[str]:
    """The canonical names of all packages that the requirements need on this Python version."""
    found: set[tuple[str, str]] = set()  # name and requested extra; empty for none
    waiting = [(Requirement(one), "") for one in requirements]  # requirement and the extra to which it belongs
    while waiting:
        wanted, extra = waiting.pop()
        if wanted.marker is None or wanted.marker.evaluate({"extra": extra}):
            name = canonicalize_name(wanted.name)
            new = {(name, asked) for asked in ("", *wanted.extras)} - found
            found |= new
            waiting += [(Requirement(one), asked) for _, asked in new for one in distribution(name).requires or ()]
    return {name for name, _ in found}


def licence(name: str) -> str:
    """Licence of an installed package: its licence expression, or its classifiers or short text as SPDX identifiers.

    Raises:
        PackageNotFoundError: the package is not installed.
    """
    if name in STATED:
        return STATED[name]
    metadata = distribution(name).metadata
    expression, classifiers, words = (
        metadata.get_all(key) or [] for key in ("License-Expression", "Classifier", "License")
    )
    if expression:
        return str(expression[0])
    stated = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::")]
    stated = stated or [one.splitlines()[0] for one in words] or ["not stated"]
    return " AND ".join(SPDX.get(one, one) for one in stated)


def compatible(expression: str) -> bool:
    """Whether all licences in an SPDX expression are compatible, including all alternatives of a choice."""
    return set(re.split(r"[\s()]+", expression)) - {"AND", "OR", "WITH", ""} <= COMPATIBLE


if __name__ == "__main__":
    main()

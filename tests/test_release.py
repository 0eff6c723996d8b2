"""What a release needs: one version, a changelog and a citation that agree with it, and licences that go together."""

import re
from importlib import import_module
from pathlib import Path

import yaml

from ppdm import __version__

ROOT = Path(__file__).resolve().parents[1]


def text(name: str) -> str:
    return (ROOT / name).read_text()


def test_the_version_is_written_in_one_place():
    places = [
        path
        for folder in ("ppdm", "baselines", "benchmarks", "docs", "tests")
        for path in (ROOT / folder).rglob("*.*")
        if path.suffix in (".py", ".md", ".toml", ".cff") and f'"{__version__}"' in path.read_text()
    ]
    assert places == [ROOT / "ppdm/_version.py"]
    for name in ("pyproject.toml", "CITATION.cff", "README.md"):
        assert not re.search(rf"\b{re.escape(__version__)}\b", text(name)), name


def test_the_changelog_tells_of_this_version():
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = headings[1:]
    assert released[0] == __version__ if released else __version__ in text("CHANGELOG.md").split("## [Unreleased]")[1]
    kinds = re.findall(r"^### (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_has_what_its_format_asks_for():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert set(citation) >= {"cff-version", "message", "title", "authors"}
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "Apache-2.0")
    assert "version" not in citation  # it is in one place
    assert citation["identifiers"][0]["value"] == "arXiv:2606.15323"


# --- licences: `make lint` holds the list against what is installed


def test_the_check_of_licences_finds_what_is_wrong(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/harness"))
    licences = import_module("licences")
    right = licences.listed(text("docs/licences.md"))
    wrong = right | {"**numpy**": "GPL-3.0-only", "**unasked**": "MIT", "idna": "not stated"}
    del wrong["**scipy**"]
    found = list(licences.faults(wrong))
    assert [word for word in ("numpy", "unasked", "idna", "scipy") if not any(word in line for line in found)] == []
    assert len(found) == 4 + len(list(licences.faults(right)))
    allowed = ("MIT", "(BSD-3-Clause OR Apache-2.0 WITH LLVM-exception) AND 0BSD")
    assert all(licences.compatible(one) for one in allowed)
    refused = ("MIT AND GPL-3.0-only", "not stated", "LicenseRef-NVIDIA-Proprietary")
    assert not any(licences.compatible(one) for one in refused)

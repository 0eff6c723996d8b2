"""What a release needs: one version, and a changelog and a citation that agree with it."""

import re
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

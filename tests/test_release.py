"""What a release needs: one version, a changelog and a citation that agree with it, and licences that go together."""

import re
import tomllib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

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


# --- licences

LICENCES = dict(re.findall(r"^\| (\S+) \| (.+) \|$", text("docs/licences.md"), re.MULTILINE))
PROJECT = tomllib.loads(text("pyproject.toml"))["project"]
DIRECT = [
    canonicalize_name(Requirement(one).name)
    for one in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["dev"])
]


@pytest.fixture(scope="module")
def licences():
    specification = spec_from_file_location("licences", ROOT / "benchmarks/harness/licences.py")
    module = module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", DIRECT)
def test_the_licence_of_a_direct_dependency_is_listed_and_compatible(name, licences):
    assert LICENCES[f"**{name}**"] == licences.licence(name)
    assert licences.compatible(LICENCES[f"**{name}**"])


def test_the_list_of_licences_has_all_that_the_tests_ran_with_and_no_other_direct_dependency():
    pinned = {
        canonicalize_name(line.partition("==")[0]) for line in text("constraints.txt").splitlines() if "==" in line
    }
    assert pinned <= {name.strip("*") for name in LICENCES}
    assert {name.strip("*") for name in LICENCES if name.startswith("**")} == set(DIRECT)


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("MIT", True),
        ("(BSD-3-Clause OR Apache-2.0 WITH LLVM-exception) AND 0BSD", True),
        ("MIT AND GPL-3.0-only", False),
        ("not stated", False),
        ("LicenseRef-NVIDIA-Proprietary", False),
    ],
)
def test_what_may_be_depended_on(expression, expected, licences):
    assert licences.compatible(expression) is expected

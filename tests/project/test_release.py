"""Requirements of a release: one version, changelog, citation, package metadata, workflows and compatible licences."""

import os
import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path

import yaml
from trove_classifiers import classifiers

from ppdm import __version__

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_changelog_has_an_entry_for_this_version():
    headings = re.findall(r"^## \[(.+?)\](?: - \d{4}-\d\d-\d\d)?$", text("CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    released = headings[1:]
    assert released[0] == __version__ if released else __version__ in text("CHANGELOG.md").split("## [Unreleased]")[1]
    kinds = re.findall(r"^### (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_the_citation_file_has_the_required_fields():
    citation = yaml.safe_load(text("CITATION.cff"))
    assert set(citation) >= {"cff-version", "message", "title", "authors"}
    assert (citation["cff-version"], citation["license"]) == ("1.2.0", "Apache-2.0")
    assert "version" not in citation  # it is written only in ppdm/_version.py
    assert citation["identifiers"][0]["value"] == "arXiv:2606.15323"


# --- publishing

WORKFLOWS = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/workflows").glob("*.yml")}
STEPS = [
    (name, job, step) for name, made in WORKFLOWS.items() for job, one in made["jobs"].items() for step in one["steps"]
]


def test_the_package_metadata_agrees_with_citation_and_tested_versions():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    assert set(project["classifiers"]) <= classifiers
    assert not any(one.startswith("License ::") for one in project["classifiers"])  # the licence is an SPDX expression
    assert "Operating System :: POSIX" in project["classifiers"]
    citation = yaml.safe_load(text("CITATION.cff"))
    assert [one["name"] for one in project["authors"]] == [one["name"] for one in citation["authors"]]
    assert project["urls"] == {"Paper": "https://arxiv.org/abs/2606.15323"}
    tested = WORKFLOWS["ci"]["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert {f"Programming Language :: Python :: {version}" for version in tested} <= set(project["classifiers"])
    assert project["requires-python"] == f">={tested[0]}"


def test_workflows_have_minimal_permissions_and_call_existing_make_targets():
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    called = {word for _, _, step in STEPS for word in re.findall(r"\bmake ([a-z-]+)", step.get("run", ""))}
    assert called >= {"test", "lint", "docs"}
    assert called <= targets
    assert all(made["permissions"] == {"contents": "read"} for made in WORKFLOWS.values())
    more = {
        (name, job, *one["permissions"].items())
        for name, made in WORKFLOWS.items()
        for job, one in made["jobs"].items()
        if "permissions" in one
    }
    assert more == {("release", "publish", ("id-token", "write")), ("release", "release", ("contents", "write"))}
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+@[\w./-]+", step["uses"]) for _, _, step in STEPS if "uses" in step)


def test_a_release_needs_the_tag_of_the_version_and_a_date_in_the_changelog(tmp_path):
    """The step of the workflow passes with the right tag and a date, and fails with another tag or without a date."""
    (script,) = [step["run"] for _, job, step in STEPS if job == "build" and "notes.md" in step.get("run", "")]
    (tmp_path / "ppdm").mkdir()
    (tmp_path / "ppdm/_version.py").write_text(text("ppdm/_version.py"))
    dated = (
        f"## [Unreleased]\n\n- later\n\n## [{__version__}] - 2026-12-01\n\n- this\n\n## [0.0.1] - 2026-01-01\n\n- old\n"
    )

    def ends(tag: str, changelog: str) -> int:
        (tmp_path / "CHANGELOG.md").write_text(changelog)
        environment = os.environ | {"GITHUB_REF_NAME": tag}
        return subprocess.run(
            ["bash", "-e", "-c", script], cwd=tmp_path, env=environment, capture_output=True
        ).returncode

    assert ends(f"v{__version__}", dated) == 0
    assert (tmp_path / "notes.md").read_text().split() == ["-", "this"]
    assert ends("v9.9.9", dated) != 0
    assert ends(f"v{__version__}", dated.replace(" - 2026-12-01", "")) != 0


def test_pre_commit_runs_ruff_in_the_pinned_version():
    hooks = yaml.safe_load(text(".pre-commit-config.yaml"))["repos"]
    (ruff,) = [one for one in hooks if "ruff" in one["repo"]]
    assert f"ruff=={ruff['rev'].removeprefix('v')}" in text("constraints.txt").splitlines()
    assert [hook["id"] for hook in ruff["hooks"]] == ["ruff-check", "ruff-format"]


def test_issue_templates_are_valid_forms():
    """GitHub does not show a form that breaks its schema."""
    forms = {path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml")}
    assert set(forms.pop("config")) <= {"blank_issues_enabled", "contact_links"}
    assert set(forms) >= {"bug", "feature", "wrong_prediction"}
    for name, form in forms.items():
        assert {"name", "description", "body"} <= set(form) <= {"name", "description", "body", "labels", "title"}, name
        assert all(isinstance(form[key], str) for key in ("name", "description")), name
        fields = [one for one in form["body"] if one["type"] != "markdown"]
        assert {one["type"] for one in fields} <= {"textarea", "input", "dropdown", "checkboxes"}, name
        assert len({one["id"] for one in fields}) == len(fields) > 0, name
        assert all(re.fullmatch(r"[\w-]+", one["id"]) and one["attributes"]["label"] for one in fields), name
        assert all(one["attributes"]["value"] for one in form["body"] if one not in fields), name


# --- licences: `make lint` compares the list with the installed packages


def test_the_licence_check_finds_wrong_and_missing_entries(monkeypatch):
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

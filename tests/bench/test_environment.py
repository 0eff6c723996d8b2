"""The recorded environment: the commit, and whether the code had uncommitted changes."""

import subprocess
from pathlib import Path

import pytest

from ppdm_bench import environment


def git(folder: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit of the module and of a file of records."""
    for name in ("code/environment.py", "results/records.jsonl"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("as committed\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "code/environment.py"))
    return tmp_path


def test_the_commit_of_a_clean_checkout_is_found(checkout: Path) -> None:
    assert environment._git() == (git(checkout, "rev-parse", "HEAD"), False)


def test_changed_code_is_dirty(checkout: Path) -> None:
    (checkout / "code/environment.py").write_text("another\n")
    assert environment._git()[1] is True


def test_added_records_do_not_make_the_code_dirty(checkout: Path) -> None:
    (checkout / "results/records.jsonl").write_text("one more\n")
    assert environment._git()[1] is False


def test_a_copy_within_another_repository_has_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "installed").mkdir()
    (checkout / "installed/environment.py").write_text("")
    monkeypatch.setattr(environment, "__file__", str(checkout / "installed/environment.py"))
    assert environment._git() == ("", False)

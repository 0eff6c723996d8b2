import os
from pathlib import Path
from typing import Any

import pytest

from ppdm_bench.predictor.script.overlay import Overlay


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder of the user with a file and a subfolder."""
    (tmp_path / "home" / "data").mkdir(parents=True)
    (tmp_path / "home" / "old.txt").write_text("old")
    (tmp_path / "home" / "data" / "one.txt").write_text("one")
    return tmp_path / "home"


@pytest.fixture
def overlay(tmp_path: Path) -> Overlay:
    (tmp_path / "child" / "files").mkdir(parents=True)
    return Overlay(tmp_path / "child" / "files")


def content(folder: Path) -> dict[str, str]:
    return {str(f.relative_to(folder)): f.read_text() for f in sorted(folder.rglob("*")) if f.is_file()}


def write(overlay: Overlay, path: Any, text: str, mode: str = "w") -> None:
    with overlay.open(path, mode) as stream:
        stream.write(text)


def read(overlay: Overlay, path: Any) -> str:
    with overlay.open(path) as stream:
        return str(stream.read())


def test_written_files_can_be_read_and_the_real_folder_is_unchanged(overlay: Overlay, home: Path) -> None:
    before = content(home)
    overlay.mkdir(home / "runs")
    write(overlay, home / "runs" / "log.txt", "new")
    write(overlay, home / "old.txt", "changed")
    write(overlay, home / "data" / "one.txt", " and two", "a")
    assert read(overlay, home / "runs" / "log.txt") == "new"
    assert read(overlay, home / "old.txt") == "changed"
    assert read(overlay, home / "data" / "one.txt") == "one and two"
    assert sorted(overlay.listdir(home)) == ["data", "old.txt", "runs"]
    assert sorted(e.name for e in overlay.scandir(home / "runs")) == ["log.txt"]
    assert content(home) == before


def test_a_removed_or_renamed_file_is_gone_only_for_the_process(overlay: Overlay, home: Path) -> None:
    before = content(home)
    overlay.remove(home / "old.txt")
    overlay.rename(home / "data" / "one.txt", home / "data" / "two.txt")
    assert overlay.listdir(home) == ["data"]
    assert overlay.listdir(home / "data") == ["two.txt"]
    assert read(overlay, home / "data" / "two.txt") == "one"
    for gone in (home / "old.txt", home / "data" / "one.txt"):
        with pytest.raises(FileNotFoundError):
            read(overlay, gone)
    write(overlay, home / "old.txt", "again")
    assert read(overlay, home / "old.txt") == "again"
    assert content(home) == before


def test_paths_can_be_given_by_the_names_of_the_real_arguments(overlay: Overlay, home: Path) -> None:
    before = content(home)
    overlay.rename(src=home / "old.txt", dst=home / "new.txt")
    overlay.link(src=home / "new.txt", dst=home / "link.txt")
    assert read(overlay, home / "link.txt") == "old"
    redirected = overlay._redirecting(os.stat, 0, "path", overlay.read_path)
    assert redirected(path=home / "new.txt").st_size == redirected(home / "new.txt").st_size == 3
    assert content(home) == before


def test_a_file_that_is_moved_to_a_temporary_folder_is_gone_for_the_process(overlay: Overlay, home: Path) -> None:
    temporary = Path(overlay.root).with_name("tmp")
    temporary.mkdir()
    overlay.rename(home / "old.txt", temporary / "old.txt")
    assert (temporary / "old.txt").read_text() == "old"
    assert overlay.listdir(home) == ["data"]
    assert (home / "old.txt").exists()


def test_errors_are_those_of_the_real_functions(overlay: Overlay, home: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(overlay, home / "nowhere" / "log.txt", "x")
    with pytest.raises(FileExistsError):
        overlay.mkdir(home / "data")
    with pytest.raises(FileExistsError):
        write(overlay, home / "old.txt", "x", "x")
    with pytest.raises(FileNotFoundError):
        overlay.remove(home / "nothing")
    with pytest.raises(FileNotFoundError):
        write(overlay, home / "nothing", "x", "r+")
    with pytest.raises(FileNotFoundError):
        overlay.scandir(home / "nothing")


def test_devices_and_file_descriptors_can_be_opened(overlay: Overlay, home: Path) -> None:
    write(overlay, os.devnull, "x")
    number = overlay.open_descriptor(home / "new.bin", os.O_WRONLY | os.O_CREAT)
    with overlay.open(number, "wb") as stream:
        stream.write(b"x")
    assert read(overlay, home / "new.bin") == "x"
    assert not (home / "new.bin").exists()


def test_a_path_inside_the_overlay_refers_to_the_file_that_it_replaces(overlay: Overlay, home: Path) -> None:
    overlay.mkdir(home / "runs")
    entry = next(e for e in overlay.scandir(home) if e.name == "runs")
    write(overlay, Path(entry.path) / "log.txt", "x")
    assert read(overlay, home / "runs" / "log.txt") == "x"

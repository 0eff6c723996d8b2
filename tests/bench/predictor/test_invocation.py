import sys
from pathlib import Path

import pytest

from ppdm_bench.predictor.script.invocation import Invocation, read_command


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a script and a subfolder of commands."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    (tmp_path / "train.py").write_text("")
    for name, text in {"python": "", "trainer": f"#!{sys.executable}\n", "torchrun": f"#!{sys.executable}\n"}.items():
        command(tmp_path / "bin" / name, text)
    return tmp_path


def command(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def read(*words: str) -> Invocation:
    return read_command(words)


def test_a_script_its_arguments_and_the_options_of_python_are_read(folder: Path) -> None:
    python = str(folder / "bin" / "python")
    assert read("python", "train.py", "--lr", "0.1") == Invocation(python, "script", "train.py", ("--lr", "0.1"))
    made = read("python", "-u", "-W", "ignore", "train.py", "-m", "x")
    assert made == Invocation(python, "script", "train.py", ("-m", "x"), ("-u", "-W", "ignore"))
    assert read("train.py", "a") == Invocation(sys.executable, "script", "train.py", ("a",))


def test_modules_code_and_console_scripts_are_read(folder: Path) -> None:
    python = str(folder / "bin" / "python")
    assert read("python", "-m", "package.train", "x") == Invocation(python, "module", "package.train", ("x",))
    assert read("python", "-c", "print()", "x") == Invocation(python, "code", "print()", ("x",))
    script = str(folder / "bin" / "trainer")
    assert read("trainer", "--fast") == Invocation(sys.executable, "script", script, ("--fast",))


@pytest.mark.parametrize("words", [["torchrun"], ["python", "-m", "torch.distributed.run"]])
def test_the_options_of_torchrun_are_passed_on_to_it(words: list[str]) -> None:
    made = read(*words, "--nproc-per-node", "1", "train.py")
    assert (made.kind, made.arguments) == ("torchrun", ("--nproc-per-node", "1", "train.py"))


def test_variables_before_the_command_are_set() -> None:
    made = read("SEED=1", "NAME=a=b", "train.py", "x=1")
    assert (made.variables, made.arguments) == ({"SEED": "1", "NAME": "a=b"}, ("x=1",))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "nothing to run"),
        (["A=1"], "nothing to run"),
        (["python"], "give a script"),
        (["python", "-"], "give a script"),
        (["python", "-m"], "needs a module"),
        (["python", "nope.py"], r"nope\.py is missing"),
        (["nope.py"], r"nope\.py is missing"),
        (["python", "bin"], "a folder without __main__"),
        (["nope"], "neither a command of this machine"),
        (["shell"], "not a Python program"),
    ],
)
def test_a_command_that_cannot_be_started_is_refused(folder: Path, words: list[str], said: str) -> None:
    command(folder / "bin" / "shell", "#!/bin/sh\n")
    with pytest.raises(ValueError, match=said):
        read(*words)

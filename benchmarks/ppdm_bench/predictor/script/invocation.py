"""Parse a command line: Python interpreter, its options, and a script or module with its arguments."""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

_PYTHON = re.compile(r"python(\d(\.\d+)?)?(\.exe)?")
_OPTIONS_WITH_VALUE = ("-W", "-X")  # of the interpreter
_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class Invocation:
    """A Python program that a command line starts.

    Attributes:
        interpreter: path of the interpreter.
        flags: options of the interpreter.
        kind: ``script``, ``module``, ``code`` or ``torchrun``; the arguments of torchrun contain the program.
        program: path of the script, name of the module, or the code; empty for ``torchrun``.
        arguments: arguments of the program.
        variables: environment variables set at the start of the command line.
    """

    interpreter: str
    kind: str
    program: str
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def read_command(words: Sequence[str]) -> Invocation:
    """Parse a command line such as ``python train.py --epochs 3``.

    Other accepted forms are a script (``train.py``), ``python -m module``, ``torchrun`` and a package's console script.

    Raises:
        ValueError: the command line is empty, starts no Python program, or names a missing file.
    """
    variables = {}
    while words and (match := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0], re.DOTALL)):
        variables[match[1]], words = match[2], words[1:]
    if not words:
        raise ValueError("there is nothing to run; give the training command after --, such as: -- python train.py")
    name, *rest = words
    if _PYTHON.fullmatch(Path(name).name):
        invocation = _parse_interpreter(_resolve(name), rest)
    elif name.endswith(".py"):
        invocation = Invocation(sys.executable, "script", _existing_script(name), tuple(rest))
    else:
        invocation = _parse_console_script(name, rest)
    return replace(invocation, variables=variables)


def _parse_interpreter(interpreter: str, words: Sequence[str]) -> Invocation:
    flags: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "-m", "-c"):
        flags += [rest.pop(0)]
        if flags[-1] in _OPTIONS_WITH_VALUE and rest:
            flags += [rest.pop(0)]
    if not rest or rest[0] == "-":
        raise ValueError(
            "python without a script reads its program from standard input; give a script, such as: -- python train.py"
        )
    if rest[0] not in ("-m", "-c"):
        return Invocation(interpreter, "script", _existing_script(rest[0]), tuple(rest[1:]), tuple(flags))
    if len(rest) < 2:
        raise ValueError(f"python {rest[0]} needs a {'module' if rest[0] == '-m' else 'program'} after it")
    if rest[1] in _LAUNCHERS:
        return Invocation(interpreter, "torchrun", "", tuple(rest[2:]), tuple(flags))
    kind = "module" if rest[0] == "-m" else "code"
    return Invocation(interpreter, kind, rest[1], tuple(rest[2:]), tuple(flags))


def _parse_console_script(name: str, words: Sequence[str]) -> Invocation:
    path = _resolve(name)
    with open(path, "rb") as stream:
        first = stream.readline(1000).decode(errors="replace")
    interpreter = re.match(r"#!\s*(?:\S*/env\s+)?(\S*python[\d.]*)", first)
    if not interpreter:
        raise ValueError(
            f"{name} is not a Python program; give the Python command that it starts, such as python train.py"
        )
    kind = "torchrun" if Path(name).name == "torchrun" else "script"
    return Invocation(_resolve(interpreter[1]), kind, "" if kind == "torchrun" else path, tuple(words))


def _resolve(name: str) -> str:
    if name == "python" and shutil.which(name) is None:
        return sys.executable
    path = shutil.which(name)
    if path is None:
        sibling = Path(sys.executable).with_name(name)  # console script of an environment that is not activated
        if os.access(sibling, os.X_OK):
            return str(sibling)
        raise ValueError(f"{name} is neither a command of this machine nor a Python script (a name that ends in .py)")
    return path


def _existing_script(name: str) -> str:
    if Path(name).is_dir() and (Path(name) / "__main__.py").is_file():
        return name
    if not Path(name).is_file():
        what = "a folder without __main__.py" if Path(name).is_dir() else "missing"
        raise ValueError(f"the script {name} is {what}; expected a Python file (the current folder is {Path.cwd()})")
    return name

"""What a command line starts: an interpreter, its own options, and a script or module with arguments."""

import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

_PYTHON = re.compile(r"python(\d(\.\d+)?)?(\.exe)?")
_VALUED = ("-W", "-X")  # options of the interpreter with a value
_LAUNCHERS = ("torch.distributed.run", "torch.distributed.launch")


@dataclass(frozen=True)
class Invocation:
    """A Python program as a command line starts it.

    Attributes:
        interpreter: path of the interpreter.
        flags: options of the interpreter.
        kind: ``script``, ``module``, ``code`` or ``torchrun``, whose program is found among its own arguments.
        program: path of the script, name of the module, or the code; empty for ``torchrun``.
        arguments: arguments of the program.
        variables: environment variables that stand before the command.
    """

    interpreter: str
    kind: str
    program: str
    arguments: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    variables: Mapping[str, str] = field(default_factory=dict)


def read_command(words: Sequence[str]) -> Invocation:
    """Read a command line such as ``python train.py --epochs 3``.

    A script alone (``train.py``), ``python -m module``, ``torchrun`` and a console script of a package are read too.

    Raises:
        ValueError: there is no command, it is no Python program, or a file is missing.
    """
    variables = {}
    while words and (match := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0], re.DOTALL)):
        variables[match[1]], words = match[2], words[1:]
    if not words:
        raise ValueError("there is nothing to run; give the training command after --, such as: -- python train.py")
    name, *rest = words
    if _PYTHON.fullmatch(Path(name).name):
        made = _of_interpreter(_found(name), rest)
    elif name.endswith(".py"):
        made = Invocation(sys.executable, "script", _existing(name), tuple(rest))
    else:
        made = _of_console_script(name, rest)
    return replace(made, variables=variables)


def _of_interpreter(interpreter: str, words: Sequence[str]) -> Invocation:
    flags: list[str] = []
    rest = list(words)
    while rest and rest[0].startswith("-") and rest[0] not in ("-", "-m", "-c"):
        flags += [rest.pop(0)]
        if flags[-1] in _VALUED and rest:
            flags += [rest.pop(0)]
    if not rest or rest[0] == "-":
        raise ValueError("python alone reads a program from its input; give a script, such as: -- python train.py")
    if rest[0] not in ("-m", "-c"):
        return Invocation(interpreter, "script", _existing(rest[0]), tuple(rest[1:]), tuple(flags))
    if len(rest) < 2:
        raise ValueError(f"python {rest[0]} needs a {'module' if rest[0] == '-m' else 'program'} after it")
    if rest[1] in _LAUNCHERS:
        return Invocation(interpreter, "torchrun", "", tuple(rest[2:]), tuple(flags))
    kind = "module" if rest[0] == "-m" else "code"
    return Invocation(interpreter, kind, rest[1], tuple(rest[2:]), tuple(flags))


def _of_console_script(name: str, words: Sequence[str]) -> Invocation:
    path = _found(name)
    with open(path, "rb") as stream:
        first = stream.readline(1000).decode(errors="replace")
    interpreter = re.match(r"#!\s*(?:\S*/env\s+)?(\S*python[\d.]*)", first)
    if not interpreter:
        raise ValueError(
            f"{name} is no Python program; give the Python command that it starts, such as python train.py"
        )
    kind = "torchrun" if Path(name).name == "torchrun" else "script"
    return Invocation(_found(interpreter[1]), kind, "" if kind == "torchrun" else path, tuple(words))


def _found(name: str) -> str:
    if name == "python" and shutil.which(name) is None:
        return sys.executable
    path = shutil.which(name)
    if path is None:
        beside = Path(sys.executable).with_name(name)  # a console script of an environment that is not activated
        if os.access(beside, os.X_OK):
            return str(beside)
        raise ValueError(f"{name} is not a command of this machine, and no Python script (a name that ends in .py)")
    return path


def _existing(name: str) -> str:
    if Path(name).is_dir() and (Path(name) / "__main__.py").is_file():
        return name
    if not Path(name).is_file():
        what = "a folder without __main__.py" if Path(name).is_dir() else "missing"
        raise ValueError(f"the script {name} is {what}; expected a Python file, seen from {Path.cwd()}")
    return name

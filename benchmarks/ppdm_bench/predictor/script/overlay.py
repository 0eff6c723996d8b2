"""Files that a script writes go into a folder of their own; what it reads falls through to the real files.

Python's functions that open, make, rename and remove files are replaced. On Linux the kernel (Landlock) refuses all
other writes, such as those of a C library, so that no file of the user is ever overwritten.
"""

import builtins
import ctypes
import io
import os
import shutil
import struct
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import wraps
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch

_PLACES = ("/dev/", "/proc/", "/sys/")  # are no files
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Functions that write to one path, and functions that read one.
_CHANGES = ("truncate", "chmod", "chown", "utime", "setxattr", "removexattr")
_LOOKS = ("stat", "lstat", "access", "listdir", "readlink", "chdir", "getxattr", "listxattr", "statvfs")

_real = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
_real_path = {name: getattr(os.path, name) for name in ("abspath", "join", "dirname")}
_open = builtins.open


class Overlay:
    """A folder that holds the files that the process writes.

    Args:
        root: the folder; it exists and is empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._removed = set[str]()  # real files that the process removed

    # --- paths

    def place(self, path: Any, folder: int | None = None) -> str | None:
        """The path that the process means, as an absolute one; None for what is no file."""
        if isinstance(path, int) or path is None:
            return None
        text = os.fsdecode(os.fspath(path))
        if folder is not None and not text.startswith("/"):
            text = _real["readlink"](f"/proc/self/fd/{folder}") + "/" + text
        text = os.path.abspath(text)
        if text.startswith(self.root + "/"):  # the process was told of a file in the folder
            text = text[len(self.root) :]
        inside = text.startswith((*_PLACES, os.path.dirname(self.root) + "/"))
        return None if inside else text

    def above(self, place: str) -> str:
        """The path of a file in the folder."""
        return self.root + place

    def seen(self, place: str) -> str:
        """The path at which the process finds a file: in the folder, or the real one."""
        above = self.above(place)
        if _exists(above):
            return above
        hidden = place in self._removed or any(str(each) in self._removed for each in Path(place).parents)
        return above if hidden else place

    def written(self, place: str, *, copied: bool) -> str:
        """The path to write a file to; ``copied`` first copies what is there.

        Raises:
            FileNotFoundError: the folder that shall hold the file does not exist.
        """
        above, folder = self.above(place), os.path.dirname(place)
        if not _is_folder(self.seen(folder)):
            raise FileNotFoundError(2, "No such file or directory", place)
        self._make(folder)
        below = self.seen(place)
        if copied and below != above and _exists(below):
            self._copy(below, above)
        return above

    def _make(self, folder: str) -> None:
        """Make a folder and those above it in the overlay."""
        missing = []
        while folder != "/" and not _exists(self.above(folder)):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for each in reversed(missing):
            _real["mkdir"](self.above(each))

    def _copy(self, source: str, target: str) -> None:
        if _is_folder(source):
            _real["mkdir"](target)
            for name in _real["listdir"](source):
                self._copy(f"{source}/{name}", f"{target}/{name}")
            return
        with _open(source, "rb") as read, _open(target, "wb") as write:
            while block := read.read(1 << 20):
                write.write(block)

    # --- functions

    def open(self, file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        """``builtins.open``."""
        place = self.place(file)
        if place is None or kwargs.get("opener") or len(args) > 5:
            return _open(file, mode, *args, **kwargs)
        if not set(mode) & set("wax+"):
            return _open(self.seen(place), mode, *args, **kwargs)
        if "x" in mode and _exists(self.seen(place)):
            raise FileExistsError(17, "File exists", str(file))
        if "r" in mode and not _exists(self.seen(place)):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return _open(self.written(place, copied="a" in mode or "r" in mode), mode, *args, **kwargs)

    def open_descriptor(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """``os.open``."""
        place = self.place(path, dir_fd)
        opened: Callable[..., int] = _real["open"]
        if place is None:
            return opened(path, flags, mode, dir_fd=dir_fd)
        if not flags & _WRITES:
            return opened(self.seen(place), flags, mode)
        there = _exists(self.seen(place))
        if there and flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(17, "File exists", str(path))
        if not there and not flags & os.O_CREAT:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return opened(self.written(place, copied=not flags & os.O_TRUNC), flags & ~os.O_EXCL, mode)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """``os.mkdir``."""
        place = self.place(path, dir_fd)
        if place is None:
            _real["mkdir"](path, mode, dir_fd=dir_fd)
        elif _exists(self.seen(place)):
            raise FileExistsError(17, "File exists", str(path))
        else:
            _real["mkdir"](self.written(place, copied=False), mode)

    def remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        """``os.remove``, ``os.unlink`` and ``os.rmdir``."""
        place = self.place(path, dir_fd)
        if place is None:
            _real["rmdir" if _is_folder(os.fspath(path)) else "remove"](path, dir_fd=dir_fd)
            return
        seen, above = self.seen(place), self.above(place)
        if not _exists(seen):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        if _exists(above):
            _real["rmdir" if _is_folder(above) else "remove"](above)
        self._removed.add(place)

    def rename(self, source: Any, target: Any, **folders: Any) -> None:
        """``os.rename`` and ``os.replace``."""
        came, goes = self.place(source, folders.get("src_dir_fd")), self.place(target, folders.get("dst_dir_fd"))
        if came is None or goes is None:
            _real["replace"](
                source if came is None else self.written(came, copied=True),
                target if goes is None else (self.written(goes, copied=False)),
                **folders if came is None and goes is None else {},
            )
            return
        if not _exists(self.seen(came)):
            raise FileNotFoundError(2, "No such file or directory", str(source))
        moved, to = self.written(came, copied=True), self.written(goes, copied=False)
        _real["replace"](moved, to)
        self._removed.add(came)

    def link(self, source: Any, target: Any, *args: Any, **kwargs: Any) -> None:
        """``os.symlink`` and ``os.link``: a symbolic link in the folder to what the process sees."""
        came, goes = self.place(source), self.place(target)
        if goes is None:
            _real["symlink"](source, target)
        else:
            _real["symlink"](source if came is None else self.seen(came), self.written(goes, copied=False))

    def scandir(self, path: Any = ".") -> Any:
        """``os.scandir``."""
        return _Entries(self._entries(path, _real["scandir"]))

    def listdir(self, path: Any = ".") -> list[Any]:
        """``os.listdir``."""
        if self.place(path) is None:
            return list(_real["listdir"](path))
        return [os.fsencode(e.name) if isinstance(path, bytes) else e.name for e in self.scandir(os.fsdecode(path))]

    def _entries(self, path: Any, scan: Callable[..., Any]) -> Iterator[os.DirEntry[Any]]:
        place = self.place(path)
        if place is None:
            yield from scan(path)
            return
        above, names = self.above(place), set[str]()
        if self.seen(place) == place or not _is_folder(above):  # nothing was written there
            for entry in scan(path if self.seen(place) == place else above):
                if f"{place.rstrip('/')}/{entry.name}" not in self._removed:
                    yield entry
            return
        below = [place] if _is_folder(place) and place not in self._removed else []
        for entry in chain.from_iterable(map(scan, [above, *below])):
            gone = f"{place.rstrip('/')}/{entry.name}" in self._removed and not entry.path.startswith(above)
            if entry.name not in names and not gone:
                names.add(entry.name)
                yield entry

    def getcwd(self) -> str:
        """``os.getcwd``."""
        return str(_real["getcwd"]()).removeprefix(self.root)

    # --- replacement

    def enter(self) -> None:
        """Replace Python's functions until the process ends."""
        builtins.open = io.open = tarfile.bltn_open = self.open  # type: ignore[attr-defined]
        made: dict[str, Callable[..., Any]] = {
            "open": self.open_descriptor,
            "mkdir": self.mkdir,
            **dict.fromkeys(("remove", "unlink", "rmdir"), self.remove),
            **dict.fromkeys(("rename", "replace"), self.rename),
            **dict.fromkeys(("symlink", "link"), self.link),
            **{name: self._changing(name) for name in _CHANGES if name in _real},
            **{name: self._looking(name) for name in _LOOKS if name in _real},
            "listdir": self.listdir,
            "scandir": self.scandir,
            "getcwd": self.getcwd,
        }
        for name, function in made.items():
            for kept in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                if _real[name] in kept:
                    kept.add(function)
            setattr(os, name, function)
        shutil._use_fd_functions = False  # type: ignore[attr-defined]
        torch.save = self._of_path(torch.save, 1, self._saving)
        torch.load = self._of_path(torch.load, 0, self._reading)
        torch.jit.save = self._of_path(torch.jit.save, 1, self._saving)
        with suppress(ImportError):
            files: Any = import_module("safetensors.torch")
            files.serialize_file = self._of_path(files.serialize_file, 1, self._saving)
        if sys.platform == "linux":
            _allow_writes_below(os.path.dirname(self.root), "/dev", "/proc")

    def _changing(self, name: str) -> Callable[..., Any]:
        return self._of_path(_real[name], 0, lambda place: self.written(place, copied=True))

    def _looking(self, name: str) -> Callable[..., Any]:
        return self._of_path(_real[name], 0, self.seen)

    def _saving(self, place: str) -> str:
        return self.written(place, copied=False)

    def _reading(self, place: str) -> str:
        return self.seen(place)

    def _of_path(self, function: Callable[..., Any], position: int, turn: Callable[[str], str]) -> Callable[..., Any]:
        """A function whose argument at a position is a path, or something else, that it then leaves as it is."""

        @wraps(function)
        def turned(*args: Any, **kwargs: Any) -> Any:
            path = args[position] if position < len(args) else None
            is_path = isinstance(path, str | bytes | os.PathLike)
            place = self.place(path, kwargs.get("dir_fd")) if is_path else None
            if place is not None:
                args = (*args[:position], turn(place), *args[position + 1 :])
                kwargs.pop("dir_fd", None)
            return function(*args, **kwargs)

        return turned


class _Entries:
    """The iterator that ``os.scandir`` returns."""

    def __init__(self, entries: Iterator[os.DirEntry[Any]]) -> None:
        self._first = list(entries)  # so that a missing folder raises at once
        self._rest = iter(self._first)

    def __iter__(self) -> Iterator[os.DirEntry[Any]]:
        return self._rest

    def __next__(self) -> os.DirEntry[Any]:
        return next(self._rest)

    def __enter__(self) -> "_Entries":
        return self

    def __exit__(self, *_: object) -> None: ...

    def close(self) -> None:
        """Do nothing: all entries were read."""


def _exists(path: str) -> bool:
    try:
        _real["lstat"](path)
    except OSError:
        return False
    return True


def _is_folder(path: Any) -> bool:
    try:
        return bool(_real["stat"](path).st_mode & 0o170000 == 0o040000)
    except OSError:
        return False


def _allow_writes_below(*folders: str) -> None:
    """Let the kernel refuse every write elsewhere, for this process and its children (Landlock, Linux 5.13 and later).

    Constants: include/uapi/linux/landlock.h. Without Landlock nothing happens.
    """
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(444, None, 0, 1)
    if version < 1:
        return
    last = {1: 12, 2: 13}.get(version, 14)  # bits of the rights; reading and executing are bits 0, 2 and 3
    writes = sum(1 << bit for bit in (1, *range(4, last + 1)))
    about = struct.pack("=Q", writes)
    rules = call(444, about, len(about), 0)
    if rules < 0:
        return
    for folder in folders:
        with suppress(OSError):
            opened = _real["open"](folder, os.O_PATH)
            call(445, rules, 1, struct.pack("=Qi", writes, opened), 0)
            _real["close"](opened)
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # no new privileges, which the kernel requires
    call(446, rules, 0)
    _real["close"](rules)

"""Overlay file system: a script writes to a temporary folder, and reads from there or from the real files.

Python's functions that open, create, rename and remove files are replaced. On Linux, the kernel also refuses all other
writes (Landlock), such as those of C libraries, so that the script cannot overwrite a file of the user.
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
from functools import partial, wraps
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any

import torch

_SPECIAL = ("/dev/", "/proc/", "/sys/")  # folders without ordinary files
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

# Functions with one path that write to it, and functions with one path that read it.
_CHANGES = ("truncate", "chmod", "chown", "utime", "setxattr", "removexattr")
_READS = ("stat", "lstat", "access", "listdir", "readlink", "chdir", "getxattr", "listxattr", "statvfs")

_real = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
_open = builtins.open


class Overlay:
    """A folder to which the writes of this process are redirected.

    A *place* is the absolute path that the program uses; *above* is the corresponding path in the folder.

    Args:
        root: the folder, which exists and is empty.
    """

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._removed = set[str]()  # real files that the process removed

    # --- paths

    def place(self, path: Any, folder: int | None = None) -> str | None:
        """Return the absolute path that the program means; None if it is not redirected, such as ``/dev/null``."""
        if isinstance(path, int) or path is None:
            return None
        text = os.fsdecode(os.fspath(path))
        if folder is not None and not text.startswith("/"):
            text = _real["readlink"](f"/proc/self/fd/{folder}") + "/" + text
        text = os.path.abspath(text)
        if text.startswith(self.root + "/"):  # a path in the overlay that the program got from a function
            text = text[len(self.root) :]
        inside = text.startswith((*_SPECIAL, os.path.dirname(self.root) + "/"))
        return None if inside else text

    def above(self, place: str) -> str:
        """Return the path in the overlay that corresponds to a place."""
        return self.root + place

    def read_path(self, place: str) -> str:
        """Return the path to read a file from: in the overlay if it was written or removed; otherwise the real one."""
        above = self.above(place)
        if _exists(above):
            return above
        hidden = place in self._removed or any(str(each) in self._removed for each in Path(place).parents)
        return above if hidden else place

    def write_path(self, place: str, *, copied: bool) -> str:
        """Return the path in the overlay to write a file to; ``copied``: first copy the existing content.

        Raises:
            FileNotFoundError: the folder of the file does not exist.
        """
        above, folder = self.above(place), os.path.dirname(place)
        if not _is_folder(self.read_path(folder)):
            raise FileNotFoundError(2, "No such file or directory", place)
        self._make(folder)
        below = self.read_path(place)
        if copied and below != above and _exists(below):
            self._copy(below, above)
        return above

    def _make(self, folder: str) -> None:
        """Create a folder and its parents in the overlay."""
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
            return _open(self.read_path(place), mode, *args, **kwargs)
        if "x" in mode and _exists(self.read_path(place)):
            raise FileExistsError(17, "File exists", str(file))
        if "r" in mode and not _exists(self.read_path(place)):
            raise FileNotFoundError(2, "No such file or directory", str(file))
        return _open(self.write_path(place, copied="a" in mode or "r" in mode), mode, *args, **kwargs)

    def open_descriptor(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        """``os.open``."""
        place = self.place(path, dir_fd)
        opened: Callable[..., int] = _real["open"]
        if place is None:
            return opened(path, flags, mode, dir_fd=dir_fd)
        if not flags & _WRITES:
            return opened(self.read_path(place), flags, mode)
        exists = _exists(self.read_path(place))
        if exists and flags & os.O_CREAT and flags & os.O_EXCL:
            raise FileExistsError(17, "File exists", str(path))
        if not exists and not flags & os.O_CREAT:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return opened(self.write_path(place, copied=not flags & os.O_TRUNC), flags & ~os.O_EXCL, mode)

    def mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        """``os.mkdir``."""
        place = self.place(path, dir_fd)
        if place is None:
            _real["mkdir"](path, mode, dir_fd=dir_fd)
        elif _exists(self.read_path(place)):
            raise FileExistsError(17, "File exists", str(path))
        else:
            _real["mkdir"](self.write_path(place, copied=False), mode)

    def remove(self, path: Any, *, dir_fd: int | None = None) -> None:
        """``os.remove``, ``os.unlink`` and ``os.rmdir``."""
        place = self.place(path, dir_fd)
        if place is None:
            _real["rmdir" if _is_folder(os.fspath(path)) else "remove"](path, dir_fd=dir_fd)
            return
        read_path, above = self.read_path(place), self.above(place)
        if not _exists(read_path):
            raise FileNotFoundError(2, "No such file or directory", str(path))
        if _exists(above):
            _real["rmdir" if _is_folder(above) else "remove"](above)
        self._removed.add(place)

    def rename(self, src: Any, dst: Any, **folders: Any) -> None:
        """``os.rename`` and ``os.replace``."""
        source, target = self.place(src, folders.get("src_dir_fd")), self.place(dst, folders.get("dst_dir_fd"))
        if source is None and target is None:
            _real["replace"](src, dst, **folders)
            return
        if source is not None and not _exists(self.read_path(source)):
            raise FileNotFoundError(2, "No such file or directory", str(src))
        moved = src if source is None else self.write_path(source, copied=True)
        _real["replace"](moved, dst if target is None else self.write_path(target, copied=False))
        if source is not None:
            self._removed.add(source)

    def link(self, src: Any, dst: Any, *args: Any, **kwargs: Any) -> None:
        """``os.symlink`` and ``os.link``: create a symbolic link in the overlay to the file that the program sees."""
        source, target = self.place(src), self.place(dst)
        if target is None:
            _real["symlink"](src, dst)
        else:
            _real["symlink"](src if source is None else self.read_path(source), self.write_path(target, copied=False))

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
        if self.read_path(place) == place or not _is_folder(above):  # the overlay has no such folder
            for entry in scan(path if self.read_path(place) == place else above):
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
        changed, replaced = (partial(self.write_path, copied=copied) for copied in (True, False))
        builtins.open = io.open = tarfile.bltn_open = self.open  # type: ignore[attr-defined]
        replacements: dict[str, Callable[..., Any]] = {
            "open": self.open_descriptor,
            "mkdir": self.mkdir,
            **dict.fromkeys(("remove", "unlink", "rmdir"), self.remove),
            **dict.fromkeys(("rename", "replace"), self.rename),
            **dict.fromkeys(("symlink", "link"), self.link),
            **{name: self._redirecting(_real[name], 0, "path", changed) for name in _CHANGES if name in _real},
            **{name: self._redirecting(_real[name], 0, "path", self.read_path) for name in _READS if name in _real},
            "listdir": self.listdir,
            "scandir": self.scandir,
            "getcwd": self.getcwd,
        }
        for name, function in replacements.items():
            for supported in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
                if _real[name] in supported:
                    supported.add(function)
            setattr(os, name, function)
        shutil._use_fd_functions = False  # type: ignore[attr-defined]
        torch.save = self._redirecting(torch.save, 1, "f", replaced)
        torch.load = self._redirecting(torch.load, 0, "f", self.read_path)
        torch.jit.save = self._redirecting(torch.jit.save, 1, "f", replaced)
        with suppress(ImportError):
            files: Any = import_module("safetensors.torch")
            files.serialize_file = self._redirecting(files.serialize_file, 1, "filename", replaced)
        if sys.platform == "linux":
            _allow_writes_below(os.path.dirname(self.root), "/dev", "/proc")

    def _redirecting(
        self, function: Callable[..., Any], position: int, name: str, redirect: Callable[[str], str]
    ) -> Callable[..., Any]:
        """Wrap a function: redirect the argument with this position and name if it is a path; keep other values."""

        @wraps(function)
        def redirected(*args: Any, **kwargs: Any) -> Any:
            path = args[position] if position < len(args) else kwargs.get(name)
            is_path = isinstance(path, str | bytes | os.PathLike)
            place = self.place(path, kwargs.get("dir_fd")) if is_path else None
            if place is None:
                return function(*args, **kwargs)
            kwargs.pop("dir_fd", None)
            if name in kwargs:
                return function(*args, **kwargs | {name: redirect(place)})
            return function(*args[:position], redirect(place), *args[position + 1 :], **kwargs)

        return redirected


class _Entries:
    """The iterator that ``os.scandir`` returns."""

    def __init__(self, entries: Iterator[os.DirEntry[Any]]) -> None:
        self._first = list(entries)  # read now, so that a missing folder raises here
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
    """Make the kernel refuse all writes outside these folders by this process and its children (Landlock, Linux 5.13).

    The numbers are from include/uapi/linux/landlock.h. Without Landlock, nothing changes.
    """
    call = ctypes.CDLL(None, use_errno=True).syscall
    version = call(444, None, 0, 1)
    if version < 1:
        return
    last = {1: 12, 2: 13}.get(version, 14)  # last bit of the rights; bits 0, 2 and 3 are for execution and reading
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
    ctypes.CDLL(None).prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS, which Landlock requires
    call(446, rules, 0)
    _real["close"](rules)

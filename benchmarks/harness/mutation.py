"""Corruption of valid input: bytes, JSON, tables and NIfTI headers; a seeded generator selects each change."""

import copy
import json
import pickle
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from nibabel.nifti1 import Nifti1Header

JSON_VALUES: Sequence[Any] = (
    *(None, True, False, 0, -1, 1, 2, 3.5, -0.0, 1e-320, 1e308, float("nan"), float("inf"), -float("inf")),
    *(2**31, 2**63, -(2**63) - 1, 10**12, 10**400, "", "x", "\0", "é" * 1000, "../../etc/passwd", "1"),
    *([], {}, [[]], [None], [1, 2, 3], [10**12] * 3, {"type": "puzzle"}, {"a": {"b": [1]}}, ["x"] * 200),
)
TEXTS = (
    *("", " ", "-1", "0", "-0", "00", "nan", "inf", "-inf", "1e309", "1e-400", "1_000", "0x10", "1.5", "1,", ",", ",,"),
    *("9" * 20, "9" * 400, "9" * 5000, "１２", "٣", "=", "+", "(", ")", "[" * 3000),
    *("{}", "[]", "null", "NaN", '"', "'"),
    *("é" * 300, "a" * 5000, "\udcff", "\t", "\n", "\r\n", "-", "--", "--help=1", "%s%n", "$(id)", "/dev/zero"),
    *("../x", "../../../../etc/passwd", "/etc/passwd", "//etc/passwd", "/dev/null", "/proc/self/mem"),
    *(".", "..", "~", "a/../../b", "./a"),
)
LENGTHS = (0, -1, 1, 2, 3, 127, 255, 256, 32767, -32768)
REALS = (0.0, -0.0, 1.0, -1.0, 352.0, 351.5, 1e-45, 1e-30, 1e9, 1e30, 3.4e38, float("nan"), float("inf"), -float("inf"))


class Payload:
    """Object that creates a marker file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return open, (str(self.mark), "w")


def pickles(mark: Path) -> list[bytes]:
    """Files that run code when they are unpickled: plain pickle, PyTorch file, NumPy files."""
    tensors, array, arrays = BytesIO(), BytesIO(), BytesIO()
    torch.save({"weight": Payload(mark)}, tensors)
    np.save(array, np.array([Payload(mark)], dtype=object), allow_pickle=True)
    np.savez(arrays, about=np.array([Payload(mark)], dtype=object))
    plain = [pickle.dumps(Payload(mark), protocol) for protocol in (0, 2, 4)]
    return [*plain, tensors.getvalue(), array.getvalue(), arrays.getvalue()]


def spoilt_bytes(random: Random, content: bytes) -> bytes:
    """Apply a few random changes: flip bits, overwrite, cut, insert or repeat parts, write very large numbers."""
    data = bytearray(content)
    for _ in range(random.choice((1, 1, 1, 2, 4, 16))):
        at = random.randrange(len(data) + 1)
        kind = random.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << random.randrange(8)
        elif kind == 1:
            data[at : at + random.choice((1, 2, 4, 8))] = bytes([random.choice((0, 1, 127, 128, 255))]) * 4
        elif kind == 2:
            del data[at : at + random.choice((1, 4, len(data)))]
        elif kind == 3:
            data[at:at] = random.randbytes(random.choice((1, 7, 300)))
        elif kind == 4:
            data[at:at] = data[at // 2 : at]
        else:
            data[at : at + 8] = random.choice((2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
    return bytes(data)


def spoilt_json(random: Random, content: Any) -> bytes:
    """Replace values and remove, add or deeply nest keys of JSON; sometimes also corrupt its bytes."""
    content = copy.deepcopy(content)
    for _ in range(random.choice((1, 1, 2, 4))):
        content = _spoilt_value(random, content)
    text = json.dumps(content)
    if random.random() < 0.05:
        depth = random.choice((50, 990, 100_000))
        text = text.replace("{", '{"deep": ' + "[" * depth + "]" * depth + ", ", 1)
    return spoilt_bytes(random, text.encode()) if random.random() < 0.1 else text.encode()


def _spoilt_value(random: Random, content: Any) -> Any:
    places = [*_places(content)]
    if not places or random.random() < 0.02:
        return copy.deepcopy(random.choice(JSON_VALUES))
    owner, key = random.choice(places)
    kind = random.randrange(8)
    if kind == 0:
        del owner[key]
    elif kind == 1 and isinstance(owner, dict):
        owner[random.choice(("x", "__class__", "type", ""))] = copy.deepcopy(random.choice(JSON_VALUES))
    elif kind == 2 and type(owner[key]) in (int, float):
        owner[key] = random.choice((-owner[key], owner[key] + 1, owner[key] * 2**40, owner[key] % 7, str(owner[key])))
    elif kind == 3 and isinstance(owner[key], list):
        owner[key] = owner[key] * random.choice((0, 2, 1000))
    else:
        owner[key] = copy.deepcopy(random.choice(JSON_VALUES))
    return content


def _places(content: Any) -> Any:
    """Every (container, key) in nested JSON values."""
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield content, key
        yield from _places(value)


def spoilt_table(random: Random, rows: Sequence[Sequence[str]], separator: str) -> bytes:
    """Replace cells and remove, repeat or resize rows of a table; sometimes also corrupt its bytes."""
    table = [list(row) for row in rows]
    for _ in range(random.choice((1, 1, 2, 4))):
        row = random.choice(table)
        kind = random.randrange(7)
        if kind == 0:
            table.append(list(row))
        elif kind == 1 and len(table) > 1:
            table.remove(row)
        elif kind == 2:
            row.append(random.choice(TEXTS))
        elif kind == 3 and row:
            row.pop()
        elif row:
            row[random.randrange(len(row))] = random.choice((*TEXTS, random.choice(random.choice(table) or [""])))
    ends = random.choice(("\n", "\n", "\r\n", "\r"))
    content = ends.join(separator.join(row) for row in table).encode("utf-8", "surrogatepass")
    return spoilt_bytes(random, content) if random.random() < 0.3 else content


def spoilt_header(random: Random, header: Nifti1Header) -> Nifti1Header:
    """Set some fields of a header to invalid or rare values."""
    header = header.copy()
    block: Any = header.structarr
    for _ in range(random.choice((1, 1, 2, 3))):
        name = random.choice((*block.dtype.names, *("dim", "datatype", "pixdim", "vox_offset", "scl_slope") * 4))
        if name in ("magic", "sizeof_hdr", "eol_check") and random.random() < 0.9:
            continue
        field = block[name]
        at = () if not field.ndim else tuple(random.randrange(size) for size in field.shape)
        with np.errstate(all="ignore"):
            if field.dtype.kind == "f":
                field[at] = random.choice(REALS)
            elif field.dtype.kind in "iu":
                limits = np.iinfo(field.dtype)
                value = random.choice((*LENGTHS, *(2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 1280, 1536, 2304)))
                field[at] = random.choice((limits.max, limits.min, np.clip(value, limits.min, limits.max)))
            else:
                block[name] = random.randbytes(4)
    return header

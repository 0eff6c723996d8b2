"""A number that depends on data stays marked through all arithmetic, and is refused as a size."""

import builtins
import marshal
import math
import statistics
import sysconfig
import textwrap
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ppdm_bench import ScriptError, predict_script
from ppdm_bench.predictor import PredictionError, predict_peak
from ppdm_bench.predictor.script.kept_floats import keep_floats
from ppdm_bench.predictor.trace import Trace

SIZES: dict[str, Callable[[Tensor], Any]] = {
    "itself": lambda n: n.item(),
    "a part": lambda n: int(0.1 * n.item()),
    "a part, rounded": lambda n: round(n.item() * 0.3),
    "rounded": lambda n: round((n * 1.0).item()),
    "half": lambda n: n.item() // 2,
    "up": lambda n: math.ceil(n.item() / 2),
    "down": lambda n: math.floor((n * 1.0).item()),
    "truncated": lambda n: math.trunc((n * 1.0).item()),
    "a root": lambda n: int(math.sqrt(n.item())),
    "a whole root": lambda n: math.isqrt(n.item()),
    "a power of two": lambda n: 2 ** math.ceil(math.log2(n.item())),
    "by bits": lambda n: 1 << (n.item() - 1).bit_length(),
    "a multiple of eight": lambda n: (n.item() + 7) & ~7,
    "divmod": lambda n: divmod(n.item(), 2)[0],
    "a maximum": lambda n: max(n.item(), 1),
    "a sum": lambda n: sum(n.reshape(1).tolist()),
    "a product": lambda n: math.prod([n.item(), 2]),
    "NumPy, up": lambda n: int(np.ceil(n.item() / 2)),
    "NumPy, root": lambda n: int(np.sqrt(n.item())),
    "NumPy, of a tensor": lambda n: int(n.numpy().max() * 0.5),
    "NumPy, rounded": lambda n: int(np.round(n.item() * 0.5)),
    "NumPy, an array": lambda n: np.array([3, n.item()])[1],
    "NumPy, the size in an array": lambda n: list(np.asarray((n.item(), 3))),
    "NumPy, zeros": lambda n: len(np.zeros(n.item())),
}


@pytest.mark.parametrize("name", SIZES)
def test_a_size_that_depends_on_data_is_refused(name: str) -> None:
    def step(_: Any) -> None:
        torch.zeros(SIZES[name]((torch.randn(1000) > 0).sum()))

    with pytest.raises(PredictionError, match="depends on data"):
        predict_peak(lambda: None, step, 1, "cpu")


def test_a_number_that_depends_on_data_can_be_used_otherwise() -> None:
    def step(_: Any) -> None:
        count = (torch.randn(1000) > 0).sum()
        n, share = count.item(), 100.0 * count.item() / 1000
        assert isinstance(n, int)
        assert (str(n), f"{n:3d}", "%d of 3" % n, "%d %%" % share) == ("1", "  1", "1 of 3", "0 %")  # noqa: UP031
        assert ["a", "b"][n] == "b"
        assert {1: "one"}[n] == "one"
        assert n == 1
        assert torch.tensor(n).dtype is torch.int64
        assert torch.tensor([n, 2]).dtype is torch.int64
        assert (torch.arange(3) * n).dtype is torch.int64
        assert (torch.ones(3, dtype=torch.int64) + n * 0.5).dtype is torch.float32
        assert torch.full((2,), n).dtype is torch.int64
        assert isinstance(n / 2, float)
        assert (np.array([n, 2]).dtype.kind, np.asarray([n, 0.5]).dtype.kind) == ("i", "f")
        assert np.array([share]).squeeze().ndim == np.array([n]).squeeze().ndim == 0  # as TensorBoard does

    predict_peak(lambda: None, step, 1, "cpu")


@pytest.mark.slow
@pytest.mark.parametrize("size", ["int(float(n) * 0.1)", "int(as_number(n))"])
def test_float_in_a_script_keeps_the_mark(size: str, tmp_path: Path) -> None:
    (tmp_path / "numbers_of_mine.py").write_text("def as_number(x):\n    return float(x) + 1\n")
    text = """
        import torch
        from numbers_of_mine import as_number
        p = torch.nn.Parameter(torch.randn(9))
        assert type(float("2.5")) is float and float is type(0.5)
        n = (torch.randn(1000) > 0).sum()
        print("%.2f" % float(n))
        torch.zeros(SIZE)
    """
    (tmp_path / "train.py").write_text(textwrap.dedent(text).replace("SIZE", size))
    with pytest.raises(ScriptError, match=r"train.py:8: .*int\(\) got a number that depends on data"):
        predict_script(["python", str(tmp_path / "train.py")], target="cpu")


def test_float_is_replaced_in_own_files_and_in_packages_that_use_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / "site-packages"
    packages.mkdir()
    paths = sysconfig.get_paths() | {"purelib": str(packages)}
    monkeypatch.setattr(sysconfig, "get_paths", lambda: paths)
    replaced = {
        tmp_path / "own.py": True,
        packages / "with_pytorch.py": True,
        packages / "without.py": False,
        Path(torch.optim.lr_scheduler.__file__): False,
        Path(statistics.__file__): False,
    }
    for path, text in zip(replaced, ("", "import torch\n", ""), strict=False):
        path.write_text(f"{text}x = float(1)\n")
    # Both are set again after the test; the code replaces them until the process ends.
    monkeypatch.setattr(builtins, "__kept_float__", None, raising=False)
    monkeypatch.setattr(SourceFileLoader, "get_code", SourceFileLoader.get_code)
    keep_floats(Trace())
    for path, expected in replaced.items():
        assert "float(" in path.read_text()
        assert (b"__kept_float__" in marshal.dumps(SourceFileLoader("a", str(path)).get_code("a"))) == expected, path

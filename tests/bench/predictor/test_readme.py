"""The predictor's README lists all replaced names, all files, and the rules for buffers of convolutions."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from ppdm_bench import predictor
from ppdm_bench.predictor import Target, convolution_rules, predict_peak

README = (Path(predictor.__file__).parent / "README.md").read_text()


def replaced(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Return the names that a prediction replaces with ``mock.patch.object``.

    A prediction replaces ``safe_open`` in every module that imported it, such as other tests and diffusers; only the
    names in safetensors are returned.
    """
    names: set[str] = set()
    original = mock.patch.object

    def noted(owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        where = getattr(owner, "__name__", str(owner))
        module = getattr(owner, "__module__", "")
        names.add(f"{where if isinstance(owner, type(torch)) else module.split('.')[0] + '.' + where}.{name}")
        return original(owner, name, *args, **kwargs)

    monkeypatch.setattr(mock.patch, "object", noted)
    import_module("safetensors.torch")  # safetensors is replaced only if it is imported
    predict_peak(lambda: None, lambda _: None, target=Target())
    for name in [name for name in names if re.match(r"torch\.cuda\.(random|memory)\.", name)]:
        if re.sub(r"\.(random|memory)\.", ".", name) in names:  # the same function in the module that defines it
            names.remove(name)
    return {name for name in names if not name.endswith(".safe_open") or name.startswith("safetensors")}


def test_the_readme_lists_exactly_the_replaced_names(monkeypatch: pytest.MonkeyPatch) -> None:
    table = README.split("## What is replaced")[1]
    named = {
        name
        for row in table.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([\w.]+)`", row.split("|")[1])
    }
    found = replaced(monkeypatch)
    assert len(found) > 40
    assert found - named == set()
    assert named - found == set()


def test_the_readme_lists_every_file_of_the_package() -> None:
    files = {path.name for path in Path(predictor.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"`(\w+\.py)`", README.split("## Rules")[0]))


def test_the_readme_lists_the_rules_for_convolutions() -> None:
    for name in (convolution_rules.COLUMNS, convolution_rules.CHANNELS_LAST_COPIES, convolution_rules.LAYOUT_COPIES):
        assert name.removeprefix("convolution ").removeprefix("cuDNN ") in README

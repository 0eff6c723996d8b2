"""The predictor's README names what a prediction replaces, and every rule that adds a buffer."""

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
    """Names that a prediction replaces, as the code asks for it, in the libraries that it is about.

    ``safe_open`` is replaced wherever it was imported to: here, in other tests and in diffusers, too.
    """
    names: set[str] = set()
    original = mock.patch.object

    def noted(owner: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        where = getattr(owner, "__name__", str(owner))
        module = getattr(owner, "__module__", "")
        names.add(f"{where if isinstance(owner, type(torch)) else module.split('.')[0] + '.' + where}.{name}")
        return original(owner, name, *args, **kwargs)

    monkeypatch.setattr(mock.patch, "object", noted)
    import_module("safetensors.torch")  # what it offers is replaced where it is imported
    predict_peak(lambda: None, lambda _: None, target=Target())
    for name in [name for name in names if re.match(r"torch\.cuda\.(random|memory)\.", name)]:
        if re.sub(r"\.(random|memory)\.", ".", name) in names:  # the same function where it is defined
            names.remove(name)
    return {name for name in names if not name.endswith(".safe_open") or name.startswith("safetensors")}


def test_the_readme_names_all_that_is_replaced_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_every_file_of_the_package_is_listed() -> None:
    files = {path.name for path in Path(predictor.__file__).parent.glob("*.py")} - {"__init__.py"}
    assert files == set(re.findall(r"`(\w+\.py)`", README.split("## Rules")[0]))


def test_rules_of_convolutions_are_listed() -> None:
    for name in (convolution_rules.COLUMNS, convolution_rules.CHANNELS_LAST_COPIES, convolution_rules.LAYOUT_COPIES):
        assert name.removeprefix("convolution ").removeprefix("cuDNN ") in README

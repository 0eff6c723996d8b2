"""Plain words for the labels of configurations in figures: `loss.gradient=3.0` becomes `gradient loss weight 3`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import takewhile

from ppdm_bench.report.metrics import metric_name

# Words for complete settings, and for fields, whose value follows.
_SETTINGS = {
    "loss.mode=off": "no gradient loss",
    "loss.mode=cell": "gradient loss within blocks",
    "loss.mode=all": "gradient loss on all voxels",
    "loss.p=1": "L1 loss",
    "loss.p=2": "L2 loss",
    "representation=haar": "Haar",
    "representation=identity": "no puzzle",
    "kernel=i2sb": "I2SB bridge",
    "kernel=linear": "linear bridge",
    "kernel=brownian": "Brownian bridge",
    "target=x0": "x0 target",
    "target=residual": "residual target",
    "window.concatenate=false": "source not concatenated",
}
_FIELDS = {
    "loss.gradient": "gradient loss weight",
    "kernel.gamma": "bridge noise γ =",
    "optimisation.learning_rate": "learning rate",
    "optimisation.at_start": "fraction of times at t = 1:",
}


def plain_label(label: str) -> str:
    """Return the label of a configuration with its settings in plain words."""
    words = [", ".join(filter(None, map(_setting, _settings(word)))) for word in label.split(" ")]
    return re.sub(r"(?<=\d)x(?=\d)", "×", " ".join(words)).replace("haar", "Haar")


def metric_label(metric: str, unit: str) -> str:
    """Return the label of an axis: `PSNR (dB) ↑`."""
    return metric_name(metric, unit).replace(" dB", " (dB)").replace(" %", " (%)")


def without_common_words(labels: Sequence[str]) -> list[str]:
    """Return the labels without the words with which all begin; a label of only these words stays complete."""
    split = [label.split(" ") for label in labels]
    common = sum(1 for _ in takewhile(lambda words: len(set(words)) == 1, zip(*split, strict=False)))
    return [" ".join(words[common:]) or " ".join(words) for words in split]


def _settings(word: str) -> list[str]:
    """Return the settings of a word; with the gradient loss off, its weight is omitted."""
    settings = word.split("+")
    off = "loss.mode=off" in settings
    return [one for one in settings if not (off and one.startswith("loss.gradient="))]


def _setting(text: str) -> str:
    if text in _SETTINGS:
        return _SETTINGS[text]
    name, _, value = text.partition("=")
    if "." not in name and not (name == "kernel" and value):
        return text  # a word of a name, such as `r=4`
    if gaussian := re.fullmatch(r"kernel=gaussian(?:\(schedule=(\w+)\))?", text):
        return f"Gaussian noise ({gaussian[1]} schedule)" if gaussian[1] else "Gaussian noise"
    value = f"{float(value):g}" if re.fullmatch(r"-?\d+\.?\d*(e-?\d+)?", value) else value
    return f"{_FIELDS.get(name, re.sub('[._]', ' ', name))} {value}".strip()

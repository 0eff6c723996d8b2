"""Version of the distribution. It is read as text, because importing the package ``ppdm`` would import PyTorch."""

from importlib.util import find_spec
from pathlib import Path


def version() -> str:
    """Return the version of the distribution."""
    spec = find_spec("ppdm")
    if spec is None or spec.origin is None:
        raise RuntimeError("the package ppdm is not installed beside ppdm_bench; install both from one checkout")
    text = Path(spec.origin).with_name("_version.py").read_text()
    return text.split('__version__ = "')[1].split('"')[0]

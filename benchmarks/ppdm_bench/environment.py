"""The environment that every record contains: versions, hardware and commit."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from ppdm_bench.records import config_id


@cache
def environment() -> dict[str, Any]:
    """Return versions, hardware and the commit as JSON values; an unavailable value is an empty string or absent."""
    import torch

    from ppdm import __version__

    commit, dirty = _git()
    found = {
        "ppdm": __version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    return found | _cuda()


def provenance(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a record that state its origin: its options, their identifier, and the environment.

    Raises:
        RecordError: an option is not a JSON value.
    """
    return {"config_id": config_id(options), "env": environment(), "options": dict(options)}


def _cuda() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {}
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda or "",
        "cudnn": str(torch.backends.cudnn.version() or ""),
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        "allocator": torch.cuda.get_allocator_backend(),
        "driver": _driver(),
    }


def _driver() -> str:
    """Return the version of the driver; an empty string without NVML."""
    try:
        version = nvml().nvmlSystemGetDriverVersion()
        return version.decode() if isinstance(version, bytes) else str(version)
    except Exception:  # NVML raises its own exception types, and another one if its library is missing
        return ""


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _git() -> tuple[str, bool]:
    """Return the commit of the checkout of this code, and whether files were changed; empty outside a checkout."""
    folder = Path(__file__).resolve().parent

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        # Accept only a checkout of this project: an installed package may be inside another repository.
        if not git("ls-files", "--", Path(__file__).name):
            return "", False
        # Ignore results/: records that a run adds there do not change the code of the next run.
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)results")
        return git("rev-parse", "HEAD"), bool(changed)
    except (OSError, subprocess.SubprocessError):
        return "", False


def nvml() -> Any:
    """Return the initialised module ``pynvml``; without a driver it raises one of its own exception types."""
    import pynvml

    pynvml.nvmlInit()
    return pynvml


def nvml_note() -> str:
    """Return why NVML is not available; an empty string if it is."""
    if "torch" not in sys.modules:
        import torch  # noqa: F401  loads its CUDA libraries first, so that NVML finds the same driver
    try:
        nvml()
    except Exception as error:
        return f"NVML is not available ({error}); the memory of the process is not measured"
    return ""

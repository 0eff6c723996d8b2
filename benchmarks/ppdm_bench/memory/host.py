"""Host memory (RAM) of a process that translates one volume: it reads, scales, samples and writes.

:func:`host_peak` predicts the memory of weights and volumes, :func:`process_base` measures the memory of Python and its
libraries, and :func:`host_sentence` reports both. As a script, this module is the child process of the measurement.
"""

from collections.abc import Sequence
from functools import cache
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ppdm_bench.environment import environment
from ppdm_bench.isolation.child import serve
from ppdm_bench.isolation.runner import run_child
from ppdm_bench.records import Record
from ppdm_bench.units import gib, shape_text

if TYPE_CHECKING:  # the child process measures its own memory, so it must not import these
    from ppdm_bench.configuration import Configuration
    from ppdm_bench.predictor.peak import Peak

FLOAT = 4  # bytes of a voxel in memory

_SECONDS = 120  # time limit; the measurement usually takes a few seconds


def host_peak(peak: "Peak", shape: Sequence[int], device: str, stored: int = FLOAT) -> int:
    """Return the peak bytes of weights and volumes on the host in :func:`ppdm.translation.translate`.

    Args:
        peak: prediction of sampling one volume.
        shape: shape of the volume (D, H, W).
        device: device of the network, ``cpu`` or ``cuda``.
        stored: bytes per voxel in the NIfTI file: 2 for int16, 4 for float32.
    """
    voxels, weights = prod(shape), peak.breakdown.get("params", 0)
    volume = FLOAT * voxels
    kept = weights if device == "cpu" else 0
    return max(
        2 * weights,  # loading: content of the file, and the tensors
        kept + stored * voxels + volume,  # reading: voxels as stored, and as float32
        kept + 2 * volume,  # scaling: source and scaled source; writing: source and translation
        volume + peak.host,  # sampling: source, and tensors that stay on the host
    )


def translation_peak(peak: "Peak", configuration: "Configuration", phase: str, device: str) -> int | None:
    """Return :func:`host_peak` for a float32 file; None if the phase is not the sampling of one volume."""
    is_translation = phase == "sample" and configuration.batch_size == 1
    return host_peak(peak, configuration.shape, device) if is_translation else None


def host_sentence(records: Sequence[Record]) -> str:
    """Return a sentence on the RAM for a volume of the largest predicted shape; empty without such a prediction."""
    known = [record for record in records if record.metric == "peak_host" and record.value is not None]
    if not known:
        return ""
    shape = max((record.shape for record in known), key=prod)
    most = max((record for record in known if record.shape == shape), key=lambda record: record.value or 0)
    on_card = most.device == "cuda"
    with_gpu = on_card and "gpu" in environment()
    base = process_base("cuda" if with_gpu else "cpu")
    name = f"{most.method} {most.variant}".strip()
    value = gib((most.value or 0) + (base or 0))
    methods = {(record.method, record.variant) for record in known if record.shape == shape}
    parts = [
        f"Host RAM{', besides the card' if on_card else ''}: {'up to ' if len(methods) > 1 else ''}{value} GiB to "
        f"translate one volume of {shape_text(shape)} ({name}, float32 NIfTI)",
        "beside Python and its libraries"
        if base is None
        else f"of which Python and its libraries take {gib(base)} GiB",
    ]
    missing = "; CUDA's libraries take more, which can only be measured with a GPU" if on_card and not with_gpu else ""
    return f"{', '.join(parts)}{missing}."


@cache
def process_base(device: str) -> int | None:
    """Measure the resident memory of a process that has just translated a tiny volume on ``cpu`` or ``cuda``.

    Returns:
        Bytes; None on systems other than Linux, where they cannot be measured.
    """
    return run_child("ppdm_bench.memory.host", {"device": device}, _SECONDS).metrics.get("base")


def peak_resident() -> int:
    """Return the largest resident memory of this process so far in bytes.

    ``getrusage`` is not used, because it includes the memory of the parent when it started this process.

    Raises:
        OSError: the system has no ``/proc``.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    from ppdm import PPDM
    from ppdm.checkpoint import Trained
    from ppdm.data.normalise import Range
    from ppdm.data.scaling import PercentileScaling
    from ppdm.data.volume import Volume, write_volume
    from ppdm.translation import translate

    method = PPDM.with_network(width=8, multipliers=(1, 2))
    network = method.build().to(request["device"]).eval().requires_grad_(False)
    scaling, spacing = PercentileScaling(Range(0.0, 1.0)), (1.0, 1.0, 1.0)
    volume = Volume.from_array(np.random.default_rng(0).random((16, 16, 16)))
    with TemporaryDirectory() as folder:
        source = Path(folder) / "source.nii.gz"
        write_volume(source, volume.data, volume)
        translate(Trained(method, network, scaling, spacing, 1, 0), source, source.with_name("output.nii.gz"))
    return {"status": "ok", "metrics": {"base": peak_resident()}}


if __name__ == "__main__":
    serve(_answer)

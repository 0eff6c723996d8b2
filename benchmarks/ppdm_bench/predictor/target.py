"""Target of a prediction: card, capacity, and versions of the software."""

import re
from dataclasses import dataclass
from typing import Self

GIB = 2**30
MIB = 2**20

# Margin in bytes that is added to the predicted need. Predictions are too low more often than too high: of the 20
# published peaks of a third-party U-Net, 17 exceed their prediction, by at most 0.08 GiB
# (results/validation/published.md).
MARGIN = 128 * MIB

# cuDNN version that each PyTorch release on PyPI requires (`Requires-Dist` of its Linux wheels). Wheels from another
# index may have another version, so an explicit version is better. The build of 2.13 that was checked has no CUDA; its
# entry is an assumption from its neighbours.
_WHEEL_CUDNN = {
    (1, 13): (8, 5),
    (2, 0): (8, 5),
    (2, 1): (8, 9),
    (2, 2): (8, 9),
    (2, 3): (8, 9),
    (2, 4): (9, 1),
    (2, 5): (9, 1),
    (2, 6): (9, 1),
    (2, 7): (9, 5),
    (2, 8): (9, 10),
    (2, 9): (9, 10),
    (2, 10): (9, 10),
    (2, 11): (9, 19),
    (2, 12): (9, 20),
    (2, 13): (9, 20),
    (2, 14): (9, 24),
}


def _is_version(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(type(v) is int and v >= 0 for v in value)


@dataclass(frozen=True)
class Target:
    """Device and software of a memory prediction.

    Args:
        torch: release of PyTorch, such as ``2.9.0``; None means the installed one.
        capacity: memory of the card in bytes, including the CUDA context; with None, the prediction does not decide
            whether code fits.
        compute_capability: compute capability of the card: (9, 0) is Hopper, (8, 0) A100. It determines the size of
            cuBLAS workspaces, and whether convolutions use tensor cores.
        cudnn: version of cuDNN, (major, minor); None means the one that the release's wheels on PyPI require. For
            a release older than the table, the oldest entry is used, which is conservative.
        tf32: whether cuDNN may compute fp32 convolutions in TF32; None means the current setting of
            ``torch.backends.cudnn.allow_tf32`` (PyTorch's default is True).
        context: bytes of the CUDA context and loaded modules, which no counter of PyTorch includes: about half a GiB on
            recent cards. The value depends on card and driver, so a measured one is better.
        workspace: bytes of allocated memory that no rule explains, fitted to measurements
            (:mod:`ppdm_bench.memory.constants`); they are allocated all the time. 0 by default.
        gpu: name of the card, if it is one of ``ppdm_bench.predictor.cards``; it does not change the prediction.

    Raises:
        ValueError: an invalid version or compute capability, a capacity that is not positive, or a context or
            workspace below 0.
    """

    torch: str | None = None
    capacity: int | None = None
    compute_capability: tuple[int, int] = (9, 0)
    cudnn: tuple[int, int] | None = None
    tf32: bool | None = None
    context: int = GIB // 2
    workspace: int = 0
    gpu: str = ""

    def __post_init__(self) -> None:
        if self.torch is not None and not (
            isinstance(self.torch, str) and re.match(r"[12]\.\d+(\.\d+)?(?![\d.])", self.torch)
        ):
            raise ValueError(f"torch must be a release of PyTorch such as 2.9.0, got {self.torch!r}")
        if not _is_version(self.compute_capability) or not 5 <= self.compute_capability[0] <= 12:
            raise ValueError(
                "compute_capability must be a pair such as (8, 0), from (5, 0), Maxwell, to (12, x), Blackwell; "
                f"got {self.compute_capability!r}"
            )
        if self.cudnn is not None and (not _is_version(self.cudnn) or self.cudnn < (7, 0)):
            raise ValueError(f"cudnn must be (major, minor) from (7, 0) on, such as (9, 10), got {self.cudnn!r}")
        if self.tf32 not in (None, True, False):
            raise ValueError(f"tf32 must be True, False or None, got {self.tf32!r}")
        if (self.capacity is not None and self.capacity <= 0) or self.context < 0:
            raise ValueError(f"capacity must be positive and context not negative, got {self.capacity}, {self.context}")
        if self.workspace < 0:
            raise ValueError(f"workspace must be at least 0, got {self.workspace}")

    @property
    def release(self) -> tuple[int, int, int]:
        """The release of PyTorch as numbers."""
        text = self.torch
        if text is None:
            import torch

            text = torch.__version__
        major, minor, patch = (*(int(v) for v in re.findall(r"\d+", text)[:3]), 0)[:3]
        return major, minor, patch

    @property
    def cudnn_version(self) -> tuple[int, int]:
        """The version of cuDNN: explicit, or the one that the release's wheels require."""
        if self.cudnn:
            return self.cudnn
        nearest = max((known for known in _WHEEL_CUDNN if known <= self.release[:2]), default=min(_WHEEL_CUDNN))
        return _WHEEL_CUDNN[nearest]

    @property
    def knows_cudnn(self) -> bool:
        """Whether the version of cuDNN is explicit or known for the release; if not, its rules are assumptions."""
        return self.cudnn is not None or self.release[:2] in _WHEEL_CUDNN

    @property
    def allows_tf32(self) -> bool:
        """Whether cuDNN may compute fp32 convolutions in TF32: explicit, or the current PyTorch setting."""
        if self.tf32 is not None:
            return self.tf32
        import torch

        return str(torch._C._get_fp32_precision_getter("cuda", "conv")) == "tf32"

    @property
    def beside(self) -> int:
        """Bytes that a card needs in addition to PyTorch's allocator: CUDA context and margin of the prediction."""
        return self.context + MARGIN

    @property
    def has_bf16(self) -> bool:
        """Whether the card has bf16 arithmetic, from Ampere on. PyTorch emulates it on older cards, which is slow."""
        return self.compute_capability >= (8, 0)

    @property
    def room(self) -> int | None:
        """Bytes available to PyTorch's allocator."""
        return None if self.capacity is None else self.capacity - self.context

    @classmethod
    def of_this_machine(cls) -> Self:
        """Target for the first CUDA device and the installed PyTorch; the default target if there is no device."""
        import torch

        if not torch.cuda.is_available():
            return cls()
        properties = torch.cuda.get_device_properties(0)
        version = torch.backends.cudnn.version() or 0
        major, minor = version // 10_000, version % 10_000 // 100  # 91502 is 9.15.2
        return cls(
            torch=torch.__version__,
            capacity=properties.total_memory,
            compute_capability=(properties.major, properties.minor),
            cudnn=(major, minor),
        )

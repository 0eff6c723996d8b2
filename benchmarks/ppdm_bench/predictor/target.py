"""What a prediction is made for: the card, the versions that run on it, and the room it has."""

import re
from dataclasses import dataclass
from typing import Self

GIB = 2**30
MIB = 2**20

# cuDNN that the wheels of each release ship: 2.10 took 9.15 to get bf16 convolutions in 3-D back (pytorch#166643).
_WHEEL_CUDNN = {(2, 9): (9, 10), (2, 8): (9, 10), (2, 7): (9, 5), (2, 6): (9, 1), (2, 5): (9, 1), (2, 4): (9, 1)}
_LATEST_CUDNN = (9, 15)


@dataclass(frozen=True)
class Target:
    """The device and software that memory is predicted for.

    Args:
        torch: release of PyTorch, such as ``2.9.0``; the one at hand if absent.
        capacity: bytes of the card, of which the context takes its part; None asks for no verdict.
        compute_capability: of the card: (9, 0) is Hopper, (8, 0) A100. It decides the size of cuBLAS workspaces.
        cudnn: version of cuDNN, (major, minor); the one of the release's wheels if absent.
        context: bytes of the CUDA context and loaded modules, outside of every PyTorch counter. About half a GiB for
            PyTorch on recent cards; it differs with card and driver, so a measured value is better.
        workspace: bytes that the allocator holds from the start to the end beyond what rules explain, as fitted to
            measurements (:mod:`ppdm_bench.memory.constants`); none unless it was asked for.

    Raises:
        ValueError: a version that is none, a capacity that is not positive, or a context or workspace below 0.
    """

    torch: str | None = None
    capacity: int | None = None
    compute_capability: tuple[int, int] = (9, 0)
    cudnn: tuple[int, int] | None = None
    context: int = GIB // 2
    workspace: int = 0

    def __post_init__(self) -> None:
        if self.torch is not None and not re.match(r"\d+\.\d+(\.\d+)?", self.torch):
            raise ValueError(f"torch must be a release such as 2.9.0, got {self.torch!r}")
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
        """The version of cuDNN, as stated or as the release's wheels ship it."""
        return self.cudnn or _WHEEL_CUDNN.get(self.release[:2], _LATEST_CUDNN)

    @property
    def room(self) -> int | None:
        """Bytes that PyTorch's allocator can take."""
        return None if self.capacity is None else self.capacity - self.context

    @classmethod
    def of_this_machine(cls) -> Self:
        """The first CUDA device and the PyTorch at hand; the defaults where there is no device."""
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

"""A child process that translates a file on the CPU without a real network, and returns its peak memory."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

import ppdm
from ppdm.checkpoint import Trained
from ppdm.data.normalise import Range
from ppdm.data.scaling import PercentileScaling
from ppdm.method import Method
from ppdm.translation import translate
from ppdm_baselines import METHODS
from ppdm_bench.isolation.child import serve
from ppdm_bench.memory.host import peak_resident


class Zeros(nn.Module):
    """A network that allocates only its result, so that the other memory is that of the translation itself."""

    def __init__(self, c_out: int) -> None:
        super().__init__()
        self.c_out, self.place = c_out, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return torch.zeros_like(x[:, : self.c_out])


@dataclass(frozen=True)
class StandIn(ppdm.Backbone):
    def build(self, c_in: int, c_out: int, dims: int) -> nn.Module:
        return Zeros(c_out)


def method_of(name: str, block: int | None) -> Method:
    """Return a registered method with two sampling steps, the stand-in network, and blocks if given."""
    method = METHODS[name]
    method = replace(method, network=StandIn(), sampling=replace(method.sampling, steps=2))
    return method if block is None else method.in_blocks(block)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    method = method_of(request["method"], request["block"])
    trained = Trained(method, method.build().eval(), PercentileScaling(Range(0.0, 1.0)), (1.0, 1.0, 1.0), 1, 0)
    translate(trained, request["tiny"], request["output"])
    base = peak_resident()
    translate(trained, request["source"], request["output"], overwrite=True)
    return {"status": "ok", "metrics": {"base": base, "peak": peak_resident()}}


if __name__ == "__main__":
    serve(_answer)

"""Which module is at work, forward and backward, and on which level of a U-Net; for :mod:`ppdm_bench.memory.explain`.

Modules are seen by PyTorch's global hooks, which put nothing into the graph. A backward node has no module, but a
sequence number, given in the order in which nodes are made: whatever module was at work when its number was given is
the one whose backward it is. Blocks that are recomputed in the backward pass are numbered anew, and found the same way.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from math import log2, prod
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_iter

from ppdm import UNet

STAGES = ("forward", "backward", "optimizer")
OUTSIDE = "outside"  # of every module: the kernel, the loss, the average of the weights
ROOT = "."  # the path of a network itself

_LARGEST = 2**62  # numbers beyond are those of nodes that accumulate gradients, which come last whenever they can


@dataclass(frozen=True)
class Site:
    """Where something was made: ``forward``, ``backward`` or ``optimizer``, and the module's path in its network.

    Of a parameter and what an optimizer keeps for it, the path is that of the parameter.
    """

    stage: str = "forward"
    path: str = ""


@dataclass
class Modules:
    """Follows which module is at work."""

    _names: "WeakKeyDictionary[nn.Module, str]" = field(default_factory=WeakKeyDictionary)
    _networks: list[str] = field(default_factory=list)  # paths of U-Nets
    _stack: list[str] = field(default_factory=list)
    _sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)  # spatial size of what a part gives
    _numbers: list[int] = field(default_factory=list)  # since which sequence number ...
    _paths: list[str] = field(default_factory=list)  # ... which module is at work
    _last: str = ""
    _parameters: dict[int, str] = field(default_factory=dict)  # by id; they live as long as their modules

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Follow until the end of the block."""
        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(self._enter).remove)
            stack.callback(register_module_forward_hook(self._leave, always_call=True).remove)
            yield

    def site(self, backward: bool, optimizer: bool) -> Site:
        """Where the operator at hand belongs."""
        if optimizer:
            return Site("optimizer")
        if not backward:
            return Site("forward", self._stack[-1] if self._stack else "")
        if not self._stack:  # else the block is being recomputed, and its own modules are at work
            node = torch._C._current_autograd_node()
            if node is not None and (number := node._sequence_nr()) < _LARGEST:
                at = bisect_right(self._numbers, number) - 1
                self._last = self._paths[at] if at >= 0 else ""
            return Site("backward", self._last)
        return Site("backward", self._stack[-1])

    def owner(self, parameter: Tensor) -> str:
        """The name of a parameter, as its network has it; empty if its network was not called."""
        return self._parameters.get(id(parameter), "")

    def part(self, path: str, shape: tuple[int, ...] = ()) -> str:
        """The part of its network that a module belongs to: ``encoder level 0``, ``middle``, ``decoder level 0``.

        Of another network than :class:`ppdm.unet.UNet`, the first name of the path. A U-Net itself only joins skips on
        the way up: then the shape of what was made says the level; without it, the answer is empty.
        """
        if not path:
            return OUTSIDE
        for prefix in self._networks:
            if path == (prefix or ROOT):
                return self._level("decoder", prefix, shape[2:]) if shape else ""
            if path.startswith(prefix + "." if prefix else ""):
                return self._unet_part(prefix, path.removeprefix(prefix).lstrip(".").split("."))
        return path.split(".")[0] or OUTSIDE

    def _unet_part(self, prefix: str, names: list[str]) -> str:
        way = {"down": "encoder", "up": "decoder"}.get(names[0])
        return self._level(way, prefix, self._sizes.get(_joined(prefix, *names[:2]), ())) if way else names[0]

    def _level(self, way: str, prefix: str, size: tuple[int, ...]) -> str:
        finest = self._sizes.get(_joined(prefix, "stem"), ())
        if not size or len(size) != len(finest):
            return way
        return f"{way} level {round(log2(prod(finest) / prod(size)) / len(size))}"

    def _enter(self, module: nn.Module, _: Any) -> None:
        if module not in self._names:
            for name, inner in module.named_modules():
                self._names.setdefault(inner, name)
                if isinstance(inner, UNet) and name not in self._networks:
                    self._networks.append(name)
            self._parameters |= {id(p): name for name, p in module.named_parameters()}
        self._stack.append(self._names[module] or ROOT)
        self._note()

    def _leave(self, module: nn.Module, _: Any, result: Any) -> None:
        self._stack.pop()
        self._note()
        first = next((x for x in tree_iter(result) if isinstance(x, Tensor)), None)
        if first is not None and first.dim() > 2:
            self._sizes[self._names[module]] = tuple(first.shape[2:])

    def _note(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._paths.append(self._stack[-1] if self._stack else "")


def _joined(prefix: str, *names: str) -> str:
    return ".".join(filter(None, (prefix, *names)))

"""Find the module that is running, in the forward and in the backward pass.

In the forward pass, PyTorch's global module hooks report it; they add no nodes to the autograd graph. In the backward
pass, a node has a sequence number, which autograd assigned in the order of creation. The node belongs to the module
that was running when its number was assigned. Recomputed nodes get new numbers, so the same rule applies to them.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_iter

OUTSIDE = "outside"  # work outside every module: the method's kernel, the loss, the moving average of the weights
ROOT = "."  # the path of a network itself

# AccumulateGrad nodes have a larger number, so that autograd runs them as soon as possible.
_MAX_SEQUENCE_NUMBER = 2**62


@dataclass(frozen=True)
class Site:
    """Place of an allocation: ``forward``, ``backward`` or ``optimizer``, and the module's path in its network.

    For a parameter and its optimizer state, the path is that of the parameter.
    """

    stage: str = "forward"
    path: str = ""


@dataclass
class Modules:
    """Records which module is running.

    Attributes:
        networks: outermost path of every network of a type in ``watched``.
        sizes: spatial size of each module's last output, by its path.
        watched: types of networks whose parts a subclass can name.
    """

    watched: tuple[type[nn.Module], ...] = ()
    networks: list[str] = field(default_factory=list)
    sizes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _names: "WeakKeyDictionary[nn.Module, str]" = field(default_factory=WeakKeyDictionary)
    _stack: list[str] = field(default_factory=list)
    _numbers: list[int] = field(default_factory=list)  # first sequence numbers, ascending
    _paths: list[str] = field(default_factory=list)  # module that runs from the number at the same index on
    _last: str = ""
    _parameters: dict[int, str] = field(default_factory=dict)  # name by id, which is valid while the module exists

    @contextmanager
    def followed(self) -> Iterator[None]:
        """Record the running module until the end of the block."""
        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(self._enter).remove)
            stack.callback(register_module_forward_hook(self._leave, always_call=True).remove)
            yield

    def site(self, backward: bool, optimizer: bool) -> Site:
        """Stage and module of the current operator."""
        if optimizer:
            return Site("optimizer")
        if not backward:
            return Site("forward", self._stack[-1] if self._stack else "")
        if not self._stack:  # otherwise the pass recomputes a block, and the forward hooks report its modules
            node = torch._C._current_autograd_node()
            if node is not None and (number := node._sequence_nr()) < _MAX_SEQUENCE_NUMBER:
                at = bisect_right(self._numbers, number) - 1
                self._last = self._paths[at] if at >= 0 else ""
            return Site("backward", self._last)
        return Site("backward", self._stack[-1])

    def owner(self, parameter: Tensor) -> str:
        """Return the name of a parameter in its network; empty if the network was not called."""
        return self._parameters.get(id(parameter), "")

    def part(self, path: str, shape: tuple[int, ...] = ()) -> str:
        """The part of the network that a module belongs to: the first name in its path.

        Args:
            path: path of the module in its network.
            shape: shape of the tensor in question, for subclasses that need it to choose the part.
        """
        return path.split(".")[0] or OUTSIDE

    def _enter(self, module: nn.Module, _: Any) -> None:
        if module not in self._names:
            for name, inner in module.named_modules():
                self._names.setdefault(inner, name)
                if isinstance(inner, self.watched) and name not in self.networks:
                    self.networks.append(name)
            self._parameters |= {id(p): name for name, p in module.named_parameters()}
        self._stack.append(self._names[module] or ROOT)
        self._record()

    def _leave(self, module: nn.Module, _: Any, result: Any) -> None:
        self._stack.pop()
        self._record()
        first = next((x for x in tree_iter(result) if isinstance(x, Tensor)), None)
        if first is not None and first.dim() > 2:
            self.sizes[self._names[module]] = tuple(first.shape[2:])

    def _record(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._paths.append(self._stack[-1] if self._stack else "")

"""What is asked of a method: a registered name, or a user's own, with the options that commands offer."""

import difflib
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from ppdm_baselines import PRESETS

from ppdm import Method
from ppdm.pixel_puzzle import Factor

Shape = tuple[int, int, int]


class MethodError(ValueError):
    """A method that is not known, or an option that it does not have."""


@dataclass(frozen=True)
class Configuration:
    """One method at one size: what a child process is told, and what a record's identifier is made of.

    Attributes:
        method: a registered name, or ``module:ATTRIBUTE`` of a :class:`ppdm.Method`.
        shape: (D, H, W) in voxels.
        preset: which of the registered values: ``matched`` (the shared U-Net) or ``authors`` (the paper's).
        factor: puzzle factor; None keeps the method's own.
        width: channels of the finest level; None keeps the method's own.
        precision, checkpointing: as :class:`ppdm.UNetOptions` has them.
        batch_size: volumes at once.
    """

    method: str
    shape: Shape
    preset: str = "matched"
    factor: Factor | None = None
    width: int | None = None
    precision: str = "fp32"
    checkpointing: str = "none"
    batch_size: int = 1

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Configuration":
        """Make it from what :meth:`to_dict` gave, or from the same read back from JSON."""
        return cls(**{key: tuple(value) if isinstance(value, list) else value for key, value in data.items()})

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    def resolve(self) -> Method:
        """The method with these options.

        Raises:
            MethodError: there is no such method, or it lacks an option that was set.
        """
        method = find_method(self.method, self.preset)
        try:
            if self.factor is not None:
                method = method.with_factor(self.factor)
            width = {} if self.width is None else {"width": self.width}
            return method.with_network(precision=self.precision, checkpointing=self.checkpointing, **width)
        except ValueError as error:
            raise MethodError(str(error)) from error

    @property
    def variant(self) -> str:
        """What tells rows of this method apart."""
        preset = "" if self.preset == "matched" else self.preset
        return " ".join(filter(None, (self.resolve().variant, preset)))

    def describe(self) -> dict[str, Any]:
        """Everything that the numbers depend on, for a record: these options, and the method that they make."""
        method = self.resolve()
        try:
            resolved: Any = method.to_dict()
        except ValueError:  # a user's own axis value: it is found again by name
            resolved = repr(method)
        return self.to_dict() | {"width": method.network.width, "resolved": resolved}


def configurations(
    methods: Sequence[str],
    shape: Shape,
    *,
    presets: Sequence[str] = ("matched",),
    factors: Sequence[Factor] = (),
    precisions: Sequence[str] = ("fp32",),
    checkpointing: Sequence[str] = ("none",),
    width: int | None = None,
    batch_size: int = 1,
) -> list[Configuration]:
    """Every combination of the options, factors only for methods that have one, presets only where they exist.

    Raises:
        MethodError: there is no such method or preset, or an option is out of its range.
    """
    made = [
        Configuration(name, shape, preset, factor, width, precision, recomputed, batch_size)
        for name, preset in product(methods, presets)
        if _has_preset(name, preset)
        for factor in (factors if factors and find_method(name, preset).has_factor else (None,))
        for precision, recomputed in product(precisions, checkpointing)
    ]
    for configuration in made:
        configuration.resolve()
    return made


def method_names() -> list[str]:
    """Every registered name."""
    return list(PRESETS["matched"])


def find_method(name: str, preset: str = "matched") -> Method:
    """A registered method, or a user's own as ``module:ATTRIBUTE``.

    Raises:
        MethodError: there is none of that name; the nearest name is suggested.
    """
    if ":" in name:
        return _own_method(name)
    if preset not in PRESETS:
        raise MethodError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    if name in PRESETS[preset]:
        return PRESETS[preset][name]
    known = list(PRESETS[preset])
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = (
        f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}, or module:ATTRIBUTE of your own."
    )
    raise MethodError(f"there is no method {name!r} in the preset {preset!r}; {hint}")


def _has_preset(name: str, preset: str) -> bool:
    """Whether a method has the preset; an unknown name or preset is an error, not an absence."""
    find_method(name, "matched" if preset in PRESETS else preset)
    return (preset == "matched") if ":" in name else name in PRESETS[preset]


def _own_method(name: str) -> Method:
    module, _, attribute = name.partition(":")
    try:
        value = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise MethodError(f"{name} cannot be loaded: {error}; expected module:ATTRIBUTE of a ppdm.Method") from error
    if not isinstance(value, Method):
        raise MethodError(f"{name} is a {type(value).__name__}, expected a ppdm.Method")
    return value

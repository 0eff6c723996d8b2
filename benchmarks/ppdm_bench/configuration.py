"""What is asked of a method: a registered name, or a user's own, with the options that commands offer."""

import difflib
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from types import ModuleType
from typing import Any

from ppdm import Method
from ppdm.pixel_puzzle import Factor
from ppdm_baselines import PRESETS
from ppdm_bench.variation import Assignment, VariationError, moved, plain, read, read_one, settled, written

Shape = tuple[int, int, int]

# Fields of a method that are options of a configuration, too: however they are set, it is the same configuration.
_OPTIONS = {
    "representation.factor": "factor",
    "network.width": "width",
    "network.precision": "precision",
    "network.checkpointing": "checkpointing",
}
_LEFT_OUT_WHEN_EMPTY = ("point", "setting")  # of descriptions, so that identifiers stay what they were without them


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
        point: what :meth:`ppdm.Method.to_dict` gives, as JSON: a point that is not registered, in the place of the one
            that ``method`` names.
        setting: fields that are set otherwise, as :mod:`ppdm_bench.variation` writes them; those that are options above
            are never among them, see :meth:`varied`.
    """

    method: str
    shape: Shape
    preset: str = "matched"
    factor: Factor | None = None
    width: int | None = None
    precision: str = "fp32"
    checkpointing: str = "none"
    batch_size: int = 1
    point: str = ""
    setting: str = ""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Configuration":
        """Make it from what :meth:`to_dict` gave, or from the same read back from JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: value for name, value in asdict(self).items() if value != "" or name not in _LEFT_OUT_WHEN_EMPTY}

    def varied(self, assignments: Sequence[Assignment]) -> "Configuration":
        """The same with these fields set, what an option is for by that option.

        Raises:
            MethodError: a field that there is not, or a point that cannot be.
        """
        options: dict[str, Any] = {}
        others = read_one(self.setting) if self.setting else []
        for name, value in assignments:
            if name == "representation":
                options["factor"] = None
            if name in _OPTIONS and plain(value) is not None:
                options[_OPTIONS[name]] = plain(value)
            else:
                others.append((name, value))
        made = replace(self, setting=written(settled(others)), **options)
        made.resolve()
        return made

    def resolve(self) -> Method:
        """The method with these options.

        Raises:
            MethodError: there is no such method, or it lacks an option that was set.
        """
        try:
            method = Method.from_dict(json.loads(self.point)) if self.point else find_method(self.method, self.preset)
            if self.setting:
                method = moved(method, read_one(self.setting))
            if self.factor is not None:
                method = method.with_factor(self.factor)
            width = {} if self.width is None else {"width": self.width}
            return method.with_network(precision=self.precision, checkpointing=self.checkpointing, **width)
        except VariationError as error:
            raise MethodError(error.reason) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise MethodError(str(error)) from error

    @property
    def variant(self) -> str:
        """What tells rows of this method apart."""
        preset = "" if self.preset == "matched" else self.preset
        return " ".join(filter(None, (self.resolve().variant, preset, self.setting)))

    @property
    def label(self) -> str:
        """Method and variant."""
        return f"{self.method} {self.variant}".strip()

    def fields(self) -> dict[str, Any]:
        """What records have as fields of their own, so that they can be found and sorted by them."""
        network = self.resolve().network
        return {
            "method": self.method,
            "variant": self.variant,
            "shape": self.shape,
            "batch_size": self.batch_size,
            "precision": network.precision,
            "checkpointing": network.checkpointing,
            "channels_last": network.channels_last,
            "compile": network.compile,
        }

    def describe(self) -> dict[str, Any]:
        """Everything that the numbers depend on, for a record: these options, and the method that they make."""
        method = self.resolve()
        try:
            resolved: Any = method.to_dict()
        except ValueError:  # a user's own axis value: it is found again by name
            resolved = repr(method)
        return self.to_dict() | {"width": method.network.width, "resolved": resolved}


def configurations(
    methods: Sequence[str] | None,
    shape: Shape,
    *,
    presets: Sequence[str] = ("matched",),
    factors: Sequence[Factor] = (),
    precisions: Sequence[str] = ("fp32",),
    checkpointing: Sequence[str] = ("none",),
    width: int | None = None,
    batch_size: int = 1,
) -> list[Configuration]:
    """Every combination of the options, each once; factors only for methods that have one, presets where they exist.

    Args:
        methods: names; every registered one that has a preset if absent.
        shape, presets, factors, precisions, checkpointing, width, batch_size: as :class:`Configuration` has them; no
            factors keep each method's own.

    Raises:
        MethodError: there is no such method or preset, or an option is out of its range.
    """
    made = [
        Configuration(name, shape, preset, factor, width, precision, recomputed, batch_size)
        for name, preset in _points(methods, presets)
        for factor in (factors if factors and find_method(name, preset).has_factor else (None,))
        for precision, recomputed in product(precisions, checkpointing)
    ]
    for configuration in made:
        configuration.resolve()
    return list(dict.fromkeys(made))


def around(
    asked: Sequence[Configuration], starts: Sequence[str], variations: Sequence[str], tell: Callable[[str], None]
) -> list[Configuration]:
    """The configurations moved to another point, and around each the points of every variation alone, each once.

    Args:
        asked: configurations.
        starts: ``name=value``, each set in all of them.
        variations: ``name=a,b``.
        tell: called with a sentence for each point that some of the methods cannot have, which is left out.

    Raises:
        ValueError: a text that cannot be read, or a point that none of the methods can have.
    """
    for text in starts:
        asked = list(dict.fromkeys(_neighbours(asked, read_one(text), tell).values()))
    near = [_neighbours(asked, point, tell) for text in variations for point in read(text)]
    made = [
        one
        for centre in asked
        for one in (centre, *(points[centre] for points in near if centre in points))
        if one is centre or one.resolve() != centre.resolve()
    ]
    return list(dict.fromkeys(made))


def _neighbours(
    asked: Sequence[Configuration], assignments: Sequence[Assignment], tell: Callable[[str], None]
) -> dict[Configuration, Configuration]:
    """For each configuration the one with these fields set, where it can have them."""
    found: dict[Configuration, Configuration] = {}
    faults: dict[str, str] = {}
    for one in asked:
        try:
            found[one] = one.varied(assignments)
        except MethodError as error:
            faults[f"{one.method} {one.resolve().variant}".strip()] = str(error)
    point = written(assignments)
    if faults and not found:
        raise MethodError(f"{point}: {next(iter(faults.values()))}")
    names_of: dict[str, list[str]] = {}
    for name, fault in faults.items():  # what there is instead is for who meant this one method
        names_of.setdefault(fault.partition(";")[0], []).append(name)
    for reason, names in names_of.items():
        tell(f"left out: {point} of {', '.join(names)}: {reason}")
    return found


def check_phases(asked: Sequence[Configuration], phases: Sequence[str]) -> None:
    """See that some of the methods have one of the phases.

    Raises:
        MethodError: none has.
    """
    having = dict.fromkeys(phase for configuration in asked for phase in configuration.resolve().phases)
    if not having.keys() & set(phases):
        raise MethodError(f"none of the methods has the phase {', '.join(phases)}; they have {', '.join(having)}")


def _points(methods: Sequence[str] | None, presets: Sequence[str]) -> list[tuple[str, str]]:
    """Methods with the presets that they have; one that was asked for must have at least one."""
    for preset in presets:
        if preset not in PRESETS:
            raise MethodError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    names = methods or list(dict.fromkeys(name for preset in presets for name in PRESETS[preset]))
    for name in names:
        if not set(presets_of(name)) & set(presets):
            find_method(name, presets[0])
    return [(name, preset) for name in names for preset in presets if preset in presets_of(name)]


def find_method(name: str, preset: str = "matched") -> Method:
    """A registered method, or a user's own as ``module:ATTRIBUTE``.

    Raises:
        MethodError: there is none of that name (the nearest is suggested), or it lacks the preset.
    """
    if preset not in (having := presets_of(name)):
        raise MethodError(f"{name} has no preset {preset!r}; it has {', '.join(having)}")
    return _own_method(name) if _is_own(name) else PRESETS[preset][name]


def presets_of(name: str) -> list[str]:
    """The presets of a method; a user's own is one value.

    Raises:
        MethodError: there is none of that name; the nearest is suggested.
    """
    having = ["matched"] if _is_own(name) else [preset for preset, methods in PRESETS.items() if name in methods]
    if not having:
        raise MethodError(f"there is no method {name!r}; {_hint(name)}")
    return having


def _hint(name: str) -> str:
    known = list(dict.fromkeys(known for methods in PRESETS.values() for known in methods))
    if nearest := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {nearest[0]}?"
    return f"there are {', '.join(known)}, or module:ATTRIBUTE of your own"


def _is_own(name: str) -> bool:
    return ":" in name


def _own_method(name: str) -> Method:
    module, _, attribute = name.partition(":")
    try:
        value = getattr(_import_from_here(module), attribute)
    except (Exception, SystemExit) as error:  # other people's code may fail in any way
        raise MethodError(
            f"{name} cannot be loaded ({type(error).__name__}: {error}); expected module:ATTRIBUTE of a ppdm.Method, "
            "the module in the current folder or installed"
        ) from error
    if not isinstance(value, Method):
        raise MethodError(f"{name} is of type {type(value).__name__}, expected a ppdm.Method")
    return value


def _import_from_here(module: str) -> ModuleType:
    """Import a module that may lie in the current folder, where an installed command does not look by itself."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())  # last, so that nothing there hides what is installed
    return importlib.import_module(module)

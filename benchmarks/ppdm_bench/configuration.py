"""Configurations: a registered or user-defined method with the options of the commands."""

import difflib
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import entry_points
from itertools import product
from pathlib import Path
from typing import Any

from ppdm import Method
from ppdm.pixel_puzzle import Factor
from ppdm_baselines import PRESETS
from ppdm_bench.grouping import grouped
from ppdm_bench.variation import (
    Assignment,
    VariationError,
    assignments_text,
    difference,
    effective,
    parse_assignments,
    parse_value,
    parse_variation,
    with_assignments,
)

Shape = tuple[int, int, int]

# Fields of a method that are options of a configuration too. Both ways of setting them give the same configuration.
_OPTION_OF_FIELD = {
    "representation.factor": "factor",
    "network.width": "width",
    "network.precision": "precision",
    "network.checkpointing": "checkpointing",
}
# The name of a row in a quality table omits these fields: they have their own column, or are equal in all rows.
_UNNAMED_FIELDS = ("network.width", "network.precision", "sampling.steps", "sources")
# Descriptions omit these fields if they have these values, so that older records keep their identifiers.
_OMITTED_DEFAULTS = {"point": "", "setting": "", "sources": 1}


class MethodError(ValueError):
    """The method is unknown, or it does not have an option that was set."""


@dataclass(frozen=True)
class Configuration:
    """One method at one volume size, with its options.

    Child processes receive it, and record identifiers are computed from it.

    Attributes:
        method: a registered name, or ``module:ATTRIBUTE`` of a :class:`ppdm.Method`; see :func:`find_method`.
        shape: (D, H, W) in voxels.
        preset: registered preset: ``matched`` (the shared U-Net) or ``authors`` (the network of the paper).
        factor: puzzle factor; None keeps the default of the method.
        width: channels of the finest level; None keeps the default of the method.
        precision, checkpointing: see :class:`ppdm.UNetOptions`.
        batch_size: volumes per batch.
        point: output of :meth:`ppdm.Method.to_dict` as JSON: an unregistered method that replaces the one named by
            ``method``.
        setting: other fields that differ from the method, in the notation of :mod:`ppdm_bench.variation`. The options
            above are never among them, see :meth:`varied`.
        sources: number of sources; more than one replaces the sources of the method by ``source1``, ``source2``, ….
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
    sources: int = 1

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Configuration":
        """Create a configuration from the output of :meth:`to_dict`, also after a round trip through JSON."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as JSON values."""
        return {
            n: value for n, value in asdict(self).items() if n not in _OMITTED_DEFAULTS or value != _OMITTED_DEFAULTS[n]
        }

    def varied(self, assignments: Sequence[Assignment]) -> "Configuration":
        """Return a copy with these fields set; a field that is also an option is set through that option.

        Raises:
            MethodError: a field does not exist, or the resulting method is invalid.
        """
        options: dict[str, Any] = {}
        others = parse_assignments(self.setting) if self.setting else []
        for name, value in assignments:
            if name == "representation":
                options["factor"] = None
            if name in _OPTION_OF_FIELD and parse_value(value) is not None:
                options[_OPTION_OF_FIELD[name]] = parse_value(value)
            else:
                others.append((name, value))
        made = replace(self, setting=assignments_text(effective(others)), **options)
        made.resolve()
        return made

    def resolve(self) -> Method:
        """Return the method with these options applied.

        Raises:
            MethodError: the method does not exist, or it lacks an option that was set.
        """
        try:
            method = Method.from_dict(json.loads(self.point)) if self.point else find_method(self.method, self.preset)
            if self.setting:
                method = with_assignments(method, parse_assignments(self.setting))
            if self.factor is not None:
                method = method.with_factor(self.factor)
            if self.sources > 1:
                method = method.with_sources([f"source{k}" for k in range(1, self.sources + 1)])
            width = {} if self.width is None else {"width": self.width}
            return method.with_network(precision=self.precision, checkpointing=self.checkpointing, **width)
        except VariationError as error:
            raise MethodError(error.reason) from error
        except (ValueError, TypeError, RecursionError) as error:
            raise MethodError(str(error)) from error

    @property
    def variant(self) -> str:
        """Text that distinguishes the rows of this method."""
        preset = "" if self.preset == "matched" else self.preset
        sources = f"sources={self.sources}" if self.sources > 1 else ""
        return " ".join(filter(None, (self.resolve().variant, preset, self.setting, sources)))

    @property
    def name(self) -> str:
        """Name of the method in records and tables."""
        return self.resolve().name

    @property
    def label(self) -> str:
        """Name and variant."""
        return f"{self.name} {self.variant}".strip()

    def fields(self) -> dict[str, Any]:
        """Return the options that records store as separate fields, for filtering and sorting."""
        network = self.resolve().network
        return {
            "method": self.name,
            "variant": self.variant,
            "shape": self.shape,
            "batch_size": self.batch_size,
            "precision": network.precision,
            "checkpointing": network.checkpointing,
            "channels_last": network.channels_last,
            "compile": network.compile,
        }

    def describe(self) -> dict[str, Any]:
        """Return everything that determines the results, for a record: these options and the resolved method."""
        method = self.resolve()
        try:
            resolved: Any = method.to_dict()
        except ValueError:  # a user-defined axis value cannot be described as JSON
            resolved = repr(method)
        return self.to_dict() | {"width": method.width, "resolved": resolved}


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
    sources: int = 1,
) -> list[Configuration]:
    """Return every combination of the options without duplicates.

    Factors apply only to methods that have one. Presets apply only to methods that define them.

    Args:
        methods: names; by default every registered method that has one of the presets.
        shape, presets, factors, precisions, checkpointing, width, batch_size, sources: see :class:`Configuration`;
            without factors, each method keeps its default.

    Raises:
        MethodError: a method or preset does not exist, or an option is out of range.
    """
    made = [
        Configuration(name, shape, preset, factor, width, precision, recomputed, batch_size, sources=sources)
        for name, preset in _methods_with_presets(methods, presets)
        for factor in (factors if factors and find_method(name, preset).has_factor else (None,))
        for precision, recomputed in product(precisions, checkpointing)
    ]
    for configuration in made:
        configuration.resolve()
    return list(dict.fromkeys(made))


def with_variations(
    bases: Sequence[Configuration], settings: Sequence[str], variations: Sequence[str], notify: Callable[[str], None]
) -> list[Configuration]:
    """Return the configurations with the settings applied, each followed by its variations, without duplicates.

    Args:
        bases: the configurations to vary.
        settings: values of ``--set``, ``name=value``; each is set in all configurations.
        variations: values of ``--vary``, ``name=a,b``; each value gives one more configuration.
        notify: called with one sentence for each point that is skipped because some methods do not support it.

    Raises:
        ValueError: a text cannot be parsed, or none of the methods supports a point.
    """
    for text in settings:
        bases = list(dict.fromkeys(_all_varied(bases, parse_assignments(text), notify).values()))
    varied = [_all_varied(bases, point, notify) for text in variations for point in parse_variation(text)]
    made = [
        one
        for base in bases
        for one in (base, *(points[base] for points in varied if base in points))
        if one is base or one.resolve() != base.resolve()
    ]
    return list(dict.fromkeys(made))


def _all_varied(
    bases: Sequence[Configuration], assignments: Sequence[Assignment], notify: Callable[[str], None]
) -> dict[Configuration, Configuration]:
    """Map each configuration to its copy with these fields set; omit configurations that do not support them."""
    found: dict[Configuration, Configuration] = {}
    faults: dict[str, str] = {}
    for one in bases:
        try:
            found[one] = one.varied(assignments)
        except MethodError as error:
            faults[f"{one.name} {one.resolve().variant}".strip()] = str(error)
    point = assignments_text(assignments)
    if faults and not found:
        raise MethodError(f"{point}: {next(iter(faults.values()))}")
    # The part after ";" lists the choices of one method. It is dropped, so that several methods share one sentence.
    for reason, names in grouped(faults, lambda name: faults[name].partition(";")[0]).items():
        notify(f"left out: {point} of {', '.join(names)}: {reason}")
    return found


def check_phases(wanted: Sequence[Configuration], phases: Sequence[str]) -> None:
    """Check that at least one method has one of the phases.

    Raises:
        MethodError: no method has any of the phases.
    """
    available = dict.fromkeys(phase for configuration in wanted for phase in configuration.resolve().phases)
    if not available.keys() & set(phases):
        raise MethodError(f"none of the methods has the phase {', '.join(phases)}; they have {', '.join(available)}")


def _methods_with_presets(methods: Sequence[str] | None, presets: Sequence[str]) -> list[tuple[str, str]]:
    """Return pairs of method and available preset; a requested method must have at least one of the presets."""
    for preset in presets:
        if preset not in PRESETS:
            raise MethodError(f"there is no preset {preset!r}; there are {', '.join(PRESETS)}")
    wanted = methods or [name for preset in presets for name in PRESETS[preset]]
    names = list(dict.fromkeys(identifier(name) for name in wanted))
    for name in names:
        if not set(presets_of(name)) & set(presets):
            find_method(name, presets[0])  # raises the error
    return [(name, preset) for name in names for preset in presets if preset in presets_of(name)]


def find_method(name: str, preset: str = "matched") -> Method:
    """Return a registered method or a user-defined one.

    A user-defined method whose name is that of a registered one is renamed after its attribute, so that no table shows
    two methods of one name.

    Args:
        name: registered name, ``module:ATTRIBUTE``, or the name of a user-defined method; see :func:`identifier`.
        preset: registered preset.

    Raises:
        MethodError: the name is unknown (the message suggests the nearest one), or the method lacks the preset.
    """
    if preset not in (available := presets_of(name)):
        raise MethodError(f"{name} has no preset {preset!r}; it has {', '.join(available)}")
    name = identifier(name)
    return _own_method(name) if _is_own(name) else PRESETS[preset][name]


def with_width(method: Method, width: int | None) -> Method:
    """Return the method with this width; None, or a method without a network, changes nothing."""
    return method if width is None or method.width is None else method.with_network(width=width)


def variant_of(method: Method, known: Sequence[Method] = ()) -> str:
    """Return how a method differs from the registered one of its name, which distinguishes the rows of a table.

    The text begins with the label of the representation, such as ``r=2``. Every other field with a different value
    follows in the notation of :mod:`ppdm_bench.variation`: ``r=2 kernel.gamma=0.25``, ``representation=haar``. Of
    several presets, the most similar one is used, and is named unless it is ``matched``. Width, precision and number of
    network evaluations are omitted.

    Args:
        method: the method.
        known: methods that count as registered, such as a user's own.
    """
    starts = [("", one) for one in known] + [
        ("" if p == "matched" else p, m) for p in PRESETS for m in PRESETS[p].values()
    ]
    found = [(preset, _named_differences(method, start)) for preset, start in starts if start.name == method.name]
    nearest = min(found, key=lambda one: len(one[1]), default=("", []))
    return " ".join(filter(None, (method.variant, nearest[0], assignments_text(nearest[1]))))


def _named_differences(method: Method, start: Method) -> list[Assignment]:
    """Return the differences that a name states; the label of a representation replaces its type and its fields."""
    try:
        found = difference(method, start)
    except ValueError:  # a value of an unregistered type cannot be described
        return []
    unnamed = [*_UNNAMED_FIELDS]
    if method.learning_rate == start.optimisation.rate(method.width):
        unnamed.append("optimisation.learning_rate")
    return [
        (name, value)
        for name, value in found
        if name not in unnamed and not (method.variant and name.partition(".")[0] == "representation")
    ]


def identifier(name: str) -> str:
    """Return the registered name of a method, or ``module:ATTRIBUTE`` of a user-defined one.

    A user-defined method is found by its name in two places: the entry points ``ppdm.methods`` of installed packages,
    and the modules in the current folder whose text contains the name. Only these modules are imported.

    Raises:
        MethodError: no method, or several, have this name.
    """
    if _is_own(name) or any(name in methods for methods in PRESETS.values()):
        return name
    found = [entry.value for entry in entry_points(group="ppdm.methods", name=name)] or _in_current_folder(name)
    if len(found) != 1:
        several = f"several methods are called {name!r}: {', '.join(found)}; give one of these"
        raise MethodError(several if found else f"there is no method {name!r}; {_hint(name)}")
    return found[0]


def presets_of(name: str) -> list[str]:
    """Return the presets of a method; a user-defined method has only ``matched``.

    Raises:
        MethodError: the name is unknown; the message suggests the nearest one.
    """
    name = identifier(name)
    return ["matched"] if _is_own(name) else [preset for preset, methods in PRESETS.items() if name in methods]


def _hint(name: str) -> str:
    known = list(dict.fromkeys(known for methods in PRESETS.values() for known in methods))
    if nearest := difflib.get_close_matches(name, known, n=1):
        return f"did you mean {nearest[0]}?"
    return f"there are {', '.join(known)}; give your own method as module:ATTRIBUTE"


def _is_own(name: str) -> bool:
    return ":" in name


def _in_current_folder(name: str) -> list[str]:
    """Return ``module:ATTRIBUTE`` of every method of this name in modules of the current folder that mention it."""
    attribute = re.escape(name.replace("-", "_").upper())
    mention = re.compile(rf"""name\s*=\s*["']{re.escape(name)}["']|^{attribute}\b.*=""", re.MULTILINE)
    found = []
    for path in sorted(Path.cwd().glob("*.py")):
        if path.stem.isidentifier() and mention.search(path.read_text(errors="ignore")):
            module = import_own(path.stem)
            own = {f"{path.stem}:{key}": value for key, value in vars(module).items() if isinstance(value, Method)}
            found += [place for place, value in own.items() if _named(value, place).name == name]
    return found


def _own_method(name: str) -> Method:
    value = import_own(name)
    if not isinstance(value, Method):
        raise MethodError(f"{name} is of type {type(value).__name__}, expected a ppdm.Method")
    return _named(value, name)


def _named(method: Method, place: str) -> Method:
    """Return the method with an unregistered name: its own, that of its attribute, or ``module:ATTRIBUTE``."""
    registered = {name for methods in PRESETS.values() for name in methods}
    names = (method.name, place.partition(":")[2].lower().replace("_", "-"), place)
    return replace(method, name=next(name for name in names if name not in registered))


def import_own(name: str) -> Any:
    """Import a module of the user, and return it or, for ``module:ATTRIBUTE``, its attribute.

    A module in the current folder is found too, although this folder is not on the path of an installed command.

    Raises:
        MethodError: the module cannot be imported, or has no such attribute.
    """
    module, colon, attribute = name.partition(":")
    try:
        if not {"", os.getcwd()} & set(sys.path):
            sys.path.append(os.getcwd())  # last, so that local modules do not hide installed ones
        found = importlib.import_module(module)
        return getattr(found, attribute) if colon else found
    except (Exception, SystemExit) as error:  # user code can raise any exception
        raise MethodError(
            f"{name} cannot be loaded ({type(error).__name__}: {error}); expected module:ATTRIBUTE of a ppdm.Method, "
            "the module in the current folder or installed"
        ) from error

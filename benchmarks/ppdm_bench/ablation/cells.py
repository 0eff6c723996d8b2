"""The cells of an ablation: variations of a base method along three axes, and those that the user gives.

    space    r=1, r=2, r=4, r=8, r=1x2x2: puzzle factors (r=1 leaves the volume unchanged); haar
    loss     off, cell, all: which differences the puzzle-gradient loss uses
    bridge   brownian, linear, i2sb; noise: no bridge, Gaussian diffusion from noise

Bridges predict the residual between source and target. Gaussian diffusion predicts x0: its path starts from noise, to
which no residual can be added.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

from ppdm import Method
from ppdm.kernel import I2SB, Brownian, Gaussian, Kernel, Linear
from ppdm.loss import Loss
from ppdm.representation import Haar, Identity, Puzzle, Representation
from ppdm_bench.configuration import Configuration, Shape
from ppdm_bench.variation import vary

SPACES: Mapping[str, Representation] = {
    **{f"r={r}": Puzzle(r) for r in (1, 2, 4, 8)},
    "r=1x2x2": Puzzle((1, 2, 2)),
    "haar": Haar(),
}
FACTORS = tuple(name for name in SPACES if name.startswith("r="))
LOSSES = ("off", "cell", "all")
BRIDGES: Mapping[str, tuple[Kernel, str]] = {
    "brownian": (Brownian(), "residual"),
    "linear": (Linear(), "residual"),
    "i2sb": (I2SB(), "residual"),
    "noise": (Gaussian("cosine"), "x0"),
}
# Grid ``space``: every combination of these, which separates the effect of the puzzle from that of the bridge.
PUZZLE_OR_BRIDGE = ("r=1", "r=2", "r=4", "haar"), ("brownian", "noise")

DEFAULT = "default"

Levels = tuple[str, str, str]  # the levels on the axes space, loss and bridge


@dataclass(frozen=True)
class Cell:
    """A variation of the base method.

    Attributes:
        label: its difference from the base, such as ``r=4 loss=off``; ``default`` for the base itself.
        method: the varied method; for a skipped cell, the base method.
        timed: whether the cell is also trained at equal time, in addition to equal steps.
        reason: why the cell is skipped; empty if it is not.
        levels: levels of space, loss and bridge; empty for a cell from a user variation.
    """

    label: str
    method: Method
    timed: bool = False
    reason: str = ""
    levels: Levels | tuple[()] = ()

    def describe(self, base: str) -> dict[str, object]:
        """Return the fields of the cell in tables, as JSON values; ``base`` identifies the base method."""
        levels = dict(zip(("space", "loss", "bridge"), self.levels, strict=False))
        settings = {} if self.reason else settings_of(self.method)
        return {"label": self.label, "default": self.label == DEFAULT, "base": base, "levels": levels, **settings}

    def configuration(self, shape: Shape, batch_size: int) -> Configuration:
        """Return the configuration of the cell for one volume shape (D, H, W) and batch size."""
        network, point = self.method.network, json.dumps(self.method.to_dict(), sort_keys=True)
        return Configuration(
            self.method.name,
            shape,
            precision=network.precision,
            checkpointing=network.checkpointing,
            batch_size=batch_size,
            point=point,
        )


def plan_cells(base: Method, grids: Sequence[str], variations: Sequence[str] = ()) -> list[Cell]:
    """Return all cells without duplicates; the base method is the first.

    Args:
        base: base method of the cells.
        grids: ``one`` changes one axis at a time, ``full`` combines all axes, and ``space`` combines representations
            with and without a bridge; the cells of ``space`` are also trained at equal time.
        variations: ``name=a,b`` in the syntax of :func:`ppdm_bench.variation.vary`, each applied to the base.

    Raises:
        VariationError: a variation cannot be parsed, or a varied method is invalid.
    """
    made = [Cell(DEFAULT, base, levels=_own_levels(base))]
    made += [_cell(base, levels, timed) for grid in grids for levels, timed in _levels_of_grid(_own_levels(base), grid)]
    made += [Cell(point.label, point.method) for text in variations for point in vary(base, text)]
    found: dict[object, Cell] = {}
    for cell in made:
        key = cell.label if cell.reason else _canonical(cell.method)
        known = found.setdefault(key, cell)
        found[key] = replace(known, timed=known.timed or cell.timed)
    return list(found.values())


def settings_of(method: Method) -> dict[str, str]:
    """Return the columns that describe a method in a table: representation, factor, loss, kernel and target."""
    content = _canonical(method).to_dict()
    factor = content["representation"].get("factor", "")
    return {
        "representation": content["representation"]["type"],
        "factor": "x".join(map(str, factor)) if isinstance(factor, list) else str(factor),
        "loss": content["loss"]["mode"],
        "kernel": content["kernel"]["type"],
        "target": method.target,
    }


def _levels_of_grid(own: Levels, grid: str) -> Iterator[tuple[Levels, bool]]:
    """Yield the levels of every cell of a grid, and whether the cell is also trained at equal time."""
    axes = (FACTORS, LOSSES, tuple(BRIDGES))
    if grid == "full":
        yield from ((levels, False) for levels in product(*axes))
    elif grid == "space":
        yield from (((space, own[1], bridge), True) for space, bridge in product(*PUZZLE_OR_BRIDGE))
    else:
        for axis, names in enumerate(axes):
            for name in names:
                yield (*own[:axis], name, *own[axis + 1 :]), False  # type: ignore[misc]


def _own_levels(base: Method) -> Levels:
    """Return the levels of the base method; on an axis where it has none of them, the text of its value."""
    spaces = {space: name for name, space in SPACES.items()}
    kinds = {type(kernel): name for name, (kernel, _) in BRIDGES.items()}
    space = _canonical(base).representation
    return spaces.get(space, str(space)), base.loss.mode, kinds.get(type(base.kernel), str(base.kernel))


def _cell(base: Method, levels: Levels, timed: bool) -> Cell:
    own = _own_levels(base)
    names = ("", "loss=", "bridge=")
    changed = [f"{name}{level}" for name, level, mine in zip(names, levels, own, strict=True) if level != mine]
    label = " ".join(changed) or DEFAULT
    try:
        method = _at_levels(base, own, levels)
    except ValueError as error:  # a user's method may have a window that does not fit the representation
        return Cell(label, base, timed, str(error), levels)
    if method.loss.mode == "cell" and max(method.representation.cell) == 1:
        reason = "a block of one voxel has no differences inside, so that loss=cell would equal loss=all"
        return Cell(label, base, timed, reason, levels)
    return Cell(label, method, timed, levels=levels)


def _at_levels(base: Method, own: Levels, levels: Levels) -> Method:
    """Return the base method with these levels; where a level is its own, its values stay."""
    method, (space, loss, bridge) = base, levels
    if space != own[0]:
        method = replace(method, representation=SPACES[space])
    if loss != own[1]:
        weight = 0.0 if loss == "off" else base.loss.gradient or 1.0
        method = replace(method, loss=Loss(base.loss.p, weight, loss))
    if bridge != own[2]:
        kernel, target = BRIDGES[bridge]
        method = replace(method, kernel=kernel, target=target)
    return method


def _canonical(method: Method) -> Method:
    """Return the canonical form of a method: the identity is written as the puzzle of factor 1."""
    if isinstance(method.representation, Identity):
        return replace(method, representation=Puzzle(1))
    return method

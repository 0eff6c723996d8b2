"""What a trace saw: blocks of memory, their births and their deaths, in order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from ppdm_bench.predictor.allocator import CachingAllocator, Event, rounded
from ppdm_bench.predictor.modules import Site

KINDS = ("params", "grads", "optimizer", "inputs", "activations", "workspace")
Place = Literal["target", "host", "unknown"]
Basis = Literal["proven", "assumed"]


@dataclass
class Block:
    """One storage, or one buffer that a rule adds.

    Attributes:
        size: bytes, after the allocator's rounding.
        kind: one of :data:`KINDS`.
        name: the operator that made it, or the rule.
        place: where it lies. What is not known to lie on the host counts; a place may turn out later.
        site: the module that made it, where modules are followed.
        shape, dtype: of the tensor that it was seen with first.
        basis: ``assumed`` if it is a buffer of a rule that no published counter has shown yet for such a call.
        counted: whether it was known to lie on the target at its birth, so that ``Timeline.alive`` counts it.
    """

    size: int
    kind: str
    name: str
    place: Place = "target"
    site: Site | None = None
    shape: tuple[int, ...] = ()
    dtype: str = ""
    basis: Basis = "proven"
    counted: bool = True


@dataclass
class Timeline:
    """Blocks by number, and their births and deaths in order.

    ``alive`` counts live bytes of blocks that were known to lie on the target when they were born, and ``most`` is its
    maximum since it was last set; both are for a limit, which cannot wait until all places are known.
    """

    blocks: list[Block] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # where each iteration began, as an index into all events
    alive: int = 0
    most: int = 0
    sites: list[tuple[int, Site]] = field(default_factory=list)  # from which event on which module was at work
    ended: int | None = None  # where the last iteration ended; what the code held to its end dies after that
    _events: list[Event] = field(default_factory=list)

    def born(self, size: int, kind: str, name: str, place: Place = "target", basis: Basis = "proven") -> int:
        """Note a birth and number the block."""
        site = self.sites[-1][1] if self.sites else None
        block = Block(rounded(size), kind, name, place, site, basis=basis, counted=place == "target")
        self.blocks.append(block)
        self._events.append((len(self.blocks) - 1, block.size))
        self.alive += block.size * block.counted
        self.most = max(self.most, self.alive)
        return len(self.blocks) - 1

    def died(self, number: int) -> None:
        """Note a death."""
        self._events.append((number, 0))
        self.alive -= self.blocks[number].size * self.blocks[number].counted

    def mark(self) -> None:
        """Note that an iteration begins."""
        self.marks.append(self.now)

    def reach(self, site: Site) -> None:
        """Note which module is at work from now on."""
        if not self.sites or self.sites[-1][1] != site:
            self.sites.append((self.now, site))

    def hand_out(self) -> CachingAllocator:
        """Give every block on the target the size that an allocator without end hands out, and return that allocator.

        PyTorch's counters count the block, with a remainder of up to 1 MiB that is not split off, and not the request.
        """
        allocator = CachingAllocator()
        for at, (number, size) in enumerate(self._events):
            if self.blocks[number].place == "host":
                continue
            allocator.replay([(number, size)])
            if size:
                self.blocks[number].size = handed = allocator.size_of(number)
                self._events[at] = (number, handed)
        return allocator

    def reserved_growth(self) -> int:
        """Most bytes that the iterations take from the driver beyond what an emptied cache leaves before the first."""
        allocator = CachingAllocator()
        start = self.marks[0]
        allocator.replay(self._on_target(self._events[:start]))
        allocator.return_free_segments()
        held = allocator.peak_reserved = allocator.reserved
        allocator.replay(self._on_target(self._events[start:]))
        return allocator.peak_reserved - held

    def _on_target(self, events: Sequence[Event]) -> list[Event]:
        return [event for event in events if self.blocks[event[0]].place != "host"]

    @property
    def now(self) -> int:
        """How many events there were."""
        return len(self._events)

    @property
    def events(self) -> list[Event]:
        """Births and deaths on the target."""
        return self._on_target(self._events)

    @property
    def all_events(self) -> list[Event]:
        """Births and deaths, those of the host's included."""
        return list(self._events)

    def live(self) -> Iterator[int]:
        """Live bytes after each event, those of the host's included as events that change nothing."""
        total = 0
        for number, size in self._events:
            if self.blocks[number].place != "host":
                total += size or -self.blocks[number].size
            yield total

    def peak(self) -> tuple[int, int]:
        """The event at which most is alive, and how much."""
        return max(enumerate(self.live()), key=lambda entry: entry[1], default=(-1, 0))

    def peaks(self) -> tuple[int, ...]:
        """The peak within each iteration."""
        return tuple(self.peak_between(a, b) for a, b in zip(self.marks, [*self.marks[1:], None], strict=True))

    def peak_between(self, start: int, end: int | None) -> int:
        """Most live bytes from one event, counted from what is alive before it, to another."""
        live = list(self.live())
        return max(live[max(start - 1, 0) : end], default=0)

    def alive_at(self, event: int) -> list[Block]:
        """What is alive on the target after an event."""
        alive: dict[int, Block] = {}
        for number, size in self._events[: event + 1]:
            if size:
                alive[number] = self.blocks[number]
            else:
                del alive[number]
        return [block for block in alive.values() if block.place != "host"]

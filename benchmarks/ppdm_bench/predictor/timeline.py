"""Record of a trace: memory blocks, and their allocations and releases in order."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from ppdm_bench.predictor.allocator import CachingAllocator, Event, rounded
from ppdm_bench.predictor.lines import Line
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
        name: the operator or rule that allocated it.
        place: where it is. A block counts unless it is known to be on the host; a place can become known later.
        site: the module that allocated it, if modules are recorded.
        shape, dtype: shape and dtype of the first tensor that used the block.
        basis: ``assumed`` for a buffer of a rule that no published counter confirms for such a call.
        counted: whether ``Timeline.alive`` includes it, because its place was the target when it was allocated.
        line: the line of the user's code that was running, if lines are recorded.
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
    line: Line | None = None

    @property
    def operator(self) -> str:
        """The operator that allocated it, without namespace and overload, or the rule."""
        return self.name.removeprefix("aten.").rpartition(".")[0] if self.name.startswith("aten.") else self.name


@dataclass
class Timeline:
    """Blocks by number, and their allocations and releases in order.

    ``alive`` is the number of live bytes in blocks that were known at their allocation to be on the target, and
    ``most`` is its maximum since the last reset. The memory limit uses both, because it cannot wait until all places
    are known.
    """

    blocks: list[Block] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)  # first event of each iteration, as an index into all events
    alive: int = 0
    most: int = 0
    sites: list[tuple[int, Site]] = field(default_factory=list)  # (event, module that runs from this event on)
    current_line: Callable[[], Line | None] | None = None  # returns the running line; None: not recorded
    ended: int | None = None  # event at which the last iteration ended; later events release what the code still held
    _events: list[Event] = field(default_factory=list)

    def allocate(self, size: int, kind: str, name: str, place: Place = "target", basis: Basis = "proven") -> int:
        """Record an allocation and return the number of the block."""
        site = self.sites[-1][1] if self.sites else None
        block = Block(rounded(size), kind, name, place, site, basis=basis, counted=place == "target")
        block.line = self.current_line() if self.current_line else None
        self.blocks.append(block)
        self._events.append((len(self.blocks) - 1, block.size))
        self.alive += block.size * block.counted
        self.most = max(self.most, self.alive)
        return len(self.blocks) - 1

    def free(self, number: int) -> None:
        """Record a release."""
        self._events.append((number, 0))
        self.alive -= self.blocks[number].size * self.blocks[number].counted

    def mark(self) -> None:
        """Record the start of an iteration."""
        self.marks.append(self.now)

    def enter_site(self, site: Site) -> None:
        """Record which module runs from now on."""
        if not self.sites or self.sites[-1][1] != site:
            self.sites.append((self.now, site))

    def assign_blocks(self) -> CachingAllocator:
        """Set every block on the target to the size that an unlimited allocator assigns, and return the allocator.

        PyTorch's counters count the assigned block and not the request; a remainder of up to 1 MiB is not split off.
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
        """Maximum growth of the reserved bytes over all iterations, relative to an emptied cache before the first."""
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
        """Number of events so far."""
        return len(self._events)

    @property
    def events(self) -> list[Event]:
        """Allocations and releases on the target."""
        return self._on_target(self._events)

    @property
    def all_events(self) -> list[Event]:
        """All allocations and releases, including those on the host."""
        return list(self._events)

    def live(self) -> Iterator[int]:
        """Live bytes after each event; events on the host are included and change nothing."""
        total = 0
        for number, size in self._events:
            if self.blocks[number].place != "host":
                total += size or -self.blocks[number].size
            yield total

    def peak(self) -> tuple[int, int]:
        """The event with the maximum of live bytes, and this maximum."""
        return max(enumerate(self.live()), key=lambda entry: entry[1], default=(-1, 0))

    def host_peak(self, *, everywhere: bool) -> int:
        """Maximum of live bytes on the host; with ``everywhere``, of all blocks, for code that runs on the CPU."""
        alive = most = 0
        for number, size in self._events:
            if everywhere or self.blocks[number].place == "host":
                alive += size or -self.blocks[number].size
                most = max(most, alive)
        return most

    def peaks(self) -> tuple[int, ...]:
        """The peak within each iteration."""
        return tuple(self.peak_between(a, b) for a, b in zip(self.marks, [*self.marks[1:], None], strict=True))

    def peak_between(self, start: int, end: int | None) -> int:
        """Maximum of live bytes between two events, including those that are live before the first."""
        return max(islice(self.live(), max(start - 1, 0), end), default=0)

    def alive_at(self, event: int) -> list[Block]:
        """Blocks that are live on the target after an event."""
        alive: dict[int, Block] = {}
        for number, size in self._events[: event + 1]:
            if size:
                alive[number] = self.blocks[number]
            else:
                del alive[number]
        return [block for block in alive.values() if block.place != "host"]

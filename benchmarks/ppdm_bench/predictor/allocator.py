"""Model of PyTorch's caching allocator: the memory that a sequence of allocations reserves from the driver.

It models one stream with default settings (c10/cuda/CUDACachingAllocator.cpp). Requests are rounded up to 512 B.
Requests up to 1 MiB share segments of 2 MiB, requests below 10 MiB share segments of 20 MiB, and each larger request
gets its own segment, rounded up to 2 MiB. The allocator reuses the free block that fits best and splits it if enough
remains. Free neighbours merge. When the device is full, the allocator first returns the entirely free segments.
"""

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from operator import attrgetter

from ppdm_bench.predictor.target import MIB

ROUND = 512
Event = tuple[int, int]  # (block number, bytes) for an allocation, (block number, 0) for a release


def rounded(size: int) -> int:
    """Bytes that the allocator rounds a request to."""
    return -(-size // ROUND) * ROUND


@dataclass(eq=False)
class _Block:
    size: int
    small: bool
    number: int
    previous: "_Block | None" = None
    next: "_Block | None" = None
    free: bool = False


_ORDER = attrgetter("size", "number")  # order of free blocks; among blocks of one size, the oldest comes first


class CachingAllocator:
    """A model of one device's allocator.

    Args:
        capacity: maximum bytes that can be reserved from the driver; None means no limit.

    Attributes:
        reserved, peak_reserved: bytes reserved from the driver: current value and maximum.
        refused: bytes of the request that did not fit; None if every request fitted.
    """

    def __init__(self, capacity: int | None = None) -> None:
        self.capacity = capacity
        self.reserved = self.peak_reserved = 0
        self.refused: int | None = None
        self._free_blocks: dict[bool, list[_Block]] = {True: [], False: []}
        self._used: dict[int, _Block] = {}
        self._count = 0

    def size_of(self, name: int) -> int:
        """Bytes of the block that serves a live request."""
        return self._used[name].size

    def replay(self, events: Iterable[Event]) -> bool:
        """Apply allocations and releases in order; stop and return False at the first allocation that does not fit."""
        for name, size in events:
            if size == 0:
                self._release(self._used.pop(name))
            elif not self._allocate(name, size):
                self.refused = size
                return False
        return True

    def _allocate(self, name: int, size: int) -> bool:
        block = self._best_fit(size)
        if block is None:
            segment = _segment(size)
            if self.capacity is not None and self.reserved + segment > self.capacity:
                self.return_free_segments()
                if self.reserved + segment > self.capacity:
                    return False
            self.reserved += segment
            self.peak_reserved = max(self.peak_reserved, self.reserved)
            block = self._block(segment, size <= MIB)
        self._split(block, size)
        self._used[name] = block
        return True

    def _best_fit(self, size: int) -> _Block | None:
        free_blocks = self._free_blocks[size <= MIB]
        at = bisect_left(free_blocks, (size, 0), key=_ORDER)
        return self._take(free_blocks[at]) if at < len(free_blocks) else None

    def _split(self, block: _Block, size: int) -> None:
        rest = block.size - size
        if rest < ROUND if block.small else rest <= MIB:
            return
        tail = self._block(rest, block.small)
        tail.previous, tail.next = block, block.next
        if block.next:
            block.next.previous = tail
        block.next, block.size = tail, size
        self._set_free(tail)

    def _release(self, block: _Block) -> None:
        if block.previous and block.previous.free:
            left = self._take(block.previous)
            block.size, block.previous = block.size + left.size, left.previous
            if left.previous:
                left.previous.next = block
        if block.next and block.next.free:
            right = self._take(block.next)
            block.size, block.next = block.size + right.size, right.next
            if right.next:
                right.next.previous = block
        self._set_free(block)

    def return_free_segments(self) -> None:
        """Return all entirely free segments to the driver (``torch.cuda.empty_cache``)."""
        for free_blocks in self._free_blocks.values():
            for block in [block for block in free_blocks if not block.previous and not block.next]:
                self._take(block)
                self.reserved -= block.size

    def _block(self, size: int, small: bool) -> _Block:
        self._count += 1
        return _Block(size, small, self._count)

    def _set_free(self, block: _Block) -> None:
        block.free = True
        insort(self._free_blocks[block.small], block, key=_ORDER)

    def _take(self, block: _Block) -> _Block:
        free_blocks = self._free_blocks[block.small]
        del free_blocks[bisect_left(free_blocks, _ORDER(block), key=_ORDER)]
        block.free = False
        return block


def _segment(size: int) -> int:
    """Bytes reserved from the driver for a request that fits no free block."""
    if size <= MIB:
        return 2 * MIB
    return 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB

"""The model of the caching allocator, against sequences computed by hand and against invariants."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppdm_bench.predictor.allocator import CachingAllocator, rounded
from ppdm_bench.predictor.timeline import Timeline

KIB, MIB = 2**10, 2**20


def reserved_after(*events: tuple[int, int], capacity: int | None = None) -> int:
    allocator = CachingAllocator(capacity)
    assert allocator.replay(events)
    return allocator.reserved


@pytest.mark.parametrize(("size", "block"), [(1, 512), (512, 512), (513, 1024), (MIB, MIB), (0, 0)])
def test_requests_are_rounded_to_512_bytes(size: int, block: int) -> None:
    assert rounded(size) == block


@pytest.mark.parametrize(
    ("size", "segment"),
    [
        (512, 2 * MIB),
        (MIB, 2 * MIB),
        (MIB + 512, 20 * MIB),
        (10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB),
        (25 * MIB, 26 * MIB),
    ],
)
def test_the_first_request_takes_a_segment_of_its_class(size: int, segment: int) -> None:
    assert reserved_after((0, size)) == segment


def test_small_blocks_share_a_segment() -> None:
    assert reserved_after(*((i, MIB // 2) for i in range(4))) == 2 * MIB
    assert reserved_after(*((i, MIB // 2) for i in range(5))) == 4 * MIB


def test_small_and_large_blocks_do_not_share_a_segment() -> None:
    assert reserved_after((0, 2 * MIB), (1, 512)) == 22 * MIB


def test_a_large_block_is_split_only_where_more_than_a_mebibyte_is_left() -> None:
    # 12 MiB are free: 10.5 MiB leaves 1.5 MiB, enough for 1.25 MiB; 11 MiB leaves 1 MiB, which stays in the block.
    split = [(0, 12 * MIB), (0, 0), (1, 21 * MIB // 2), (2, 5 * MIB // 4)]
    whole = [(0, 12 * MIB), (0, 0), (1, 11 * MIB), (2, MIB + 512)]
    assert reserved_after(*split) == 12 * MIB
    assert reserved_after(*whole) == 32 * MIB


def test_the_best_fit_is_taken() -> None:
    # 40 MiB and 30 MiB are free. 30 MiB goes into the second block, so that 40 MiB still fits into the first.
    events = [(0, 40 * MIB), (1, 30 * MIB), (0, 0), (1, 0), (2, 30 * MIB), (3, 40 * MIB)]
    assert reserved_after(*events) == 70 * MIB


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (0, 2, 1), (1, 0, 2)])
def test_neighbours_merge_in_every_order_of_release(order: tuple[int, ...]) -> None:
    thirds = [(i, 10 * MIB) for i in range(3)]
    events = [(9, 30 * MIB), (9, 0), *thirds, *((i, 0) for i in order), (4, 30 * MIB)]
    assert reserved_after(*events) == 30 * MIB


def test_segments_do_not_merge_with_each_other() -> None:
    events = [(0, 20 * MIB), (1, 20 * MIB), (0, 0), (1, 0), (2, 40 * MIB)]
    assert reserved_after(*events) == 80 * MIB


def test_whole_free_segments_are_returned_when_the_device_is_full() -> None:
    events = [(0, 20 * MIB), (1, 20 * MIB), (0, 0), (1, 0), (2, 40 * MIB)]
    allocator = CachingAllocator(capacity=40 * MIB)
    assert allocator.replay(events)
    assert (allocator.reserved, allocator.peak_reserved) == (40 * MIB, 40 * MIB)


def test_a_segment_in_use_cannot_be_returned() -> None:
    # Half of the segment of 40 MiB is in use: its free 20 MiB are too small and not returnable; 40 + 30 MiB are needed.
    events = [(9, 40 * MIB), (9, 0), (0, 20 * MIB), (1, 20 * MIB), (1, 0), (2, 30 * MIB)]
    assert not CachingAllocator(capacity=60 * MIB).replay(events)
    assert CachingAllocator(capacity=70 * MIB).replay(events)


def test_a_request_that_is_larger_than_the_device_does_not_fit() -> None:
    assert not CachingAllocator(capacity=20 * MIB).replay([(0, 21 * MIB)])
    assert not CachingAllocator(capacity=MIB).replay([(0, 512)])  # 512 B are available, but a whole segment is not


SIZES = st.one_of(st.integers(1, 4096), st.integers(1, 30 * MIB), st.sampled_from([MIB, MIB + 512, 10 * MIB])).map(
    rounded
)


@st.composite
def sequences(draw: st.DrawFn) -> list[tuple[int, int]]:
    events: list[tuple[int, int]] = []
    alive: list[int] = []
    for name in range(draw(st.integers(1, 40))):
        events.append((name, draw(SIZES)))
        alive.append(name)
        while alive and draw(st.booleans()):
            events.append((alive.pop(draw(st.integers(0, len(alive) - 1))), 0))
    return events


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_invariants_hold_after_every_event(events: list[tuple[int, int]]) -> None:
    allocator = CachingAllocator()
    live: dict[int, int] = {}
    peaks = [0]
    for name, size in events:
        assert allocator.replay([(name, size)])
        live = live | {name: size} if size else {k: v for k, v in live.items() if k != name}
        assert allocator.reserved >= sum(live.values())
        assert {name: block.size >= live[name] for name, block in allocator._used.items()} == dict.fromkeys(live, True)
        in_use = sum(block.size for block in allocator._used.values())
        idle = sum(block.size for blocks in allocator._free_blocks.values() for block in blocks)
        assert in_use + idle == allocator.reserved  # no byte is in two blocks, and none is lost
        peaks.append(allocator.peak_reserved)
    assert all(a <= b for a, b in pairwise(peaks))


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_all_segments_can_be_returned_after_all_blocks_are_freed(events: list[tuple[int, int]]) -> None:
    allocator = CachingAllocator()
    allocator.replay(events)
    allocator.replay([(name, 0) for name in list(allocator._used)])
    allocator.return_free_segments()
    assert allocator.reserved == 0


@settings(max_examples=40, deadline=None)
@given(sequences())
def test_a_capacity_equal_to_the_peak_without_a_limit_suffices(events: list[tuple[int, int]]) -> None:
    endless = CachingAllocator()
    endless.replay(events)
    card = CachingAllocator(capacity=endless.peak_reserved)
    assert card.replay(events)
    assert card.peak_reserved == endless.peak_reserved


def test_a_long_sequence_is_replayed() -> None:
    """About a hundred thousand events, as in a deep network."""
    allocator = CachingAllocator()
    names = range(50_000)
    events = [event for i in names for event in ((i, rounded(1 + i * 7919 % (3 * MIB))), (i - 40, 0))[: 1 + (i >= 40)]]
    assert allocator.replay(events)
    assert allocator.reserved < 400 * MIB


def test_growth_is_counted_from_an_emptied_cache() -> None:
    timeline = Timeline()
    kept, gone = (timeline.allocate(size, "params", "made") for size in (4 * MIB, 30 * MIB))
    timeline.free(gone)
    timeline.allocate(100 * MIB, "inputs", "on the host", place="host")
    timeline.mark()
    inside = timeline.allocate(12 * MIB, "activations", "in what the segment of 20 MiB has left")
    timeline.free(inside)
    timeline.allocate(30 * MIB, "activations", "in a new segment, for the first was given back")
    timeline.free(kept)
    assert timeline.reserved_growth() == 30 * MIB

"""PeakMemory against allocations of a known size."""

import threading
import time

import pytest

from helpers.memory import PeakMemory, resident_bytes

MB = 1024**2


def hold(megabytes: int, seconds: float = 0.1) -> None:
    """Fill that much memory, keep it a moment, give it back."""
    block = b"x" * (megabytes * MB)
    time.sleep(seconds)
    assert block.endswith(b"x")


def test_growth_is_what_was_allocated():
    with PeakMemory() as memory:
        hold(200)
    assert 180 * MB < memory.growth_bytes < 260 * MB
    assert memory.peak_bytes == memory.start_bytes + memory.growth_bytes


def test_peak_is_seen_although_it_is_given_back_before_the_end():
    with PeakMemory() as memory:
        hold(200)
        after = resident_bytes()
    assert memory.peak_bytes - after > 150 * MB


def test_last_look_sees_a_block_shorter_than_the_interval():
    with PeakMemory(interval=60) as memory:
        block = b"x" * (100 * MB)
    assert memory.growth_bytes > 80 * MB and block.endswith(b"x")


def test_nothing_allocated_is_next_to_no_growth():
    with PeakMemory() as memory:
        time.sleep(0.05)
    assert 0 <= memory.growth_bytes < 20 * MB


def test_peak_is_readable_while_the_block_runs():
    with PeakMemory() as memory:
        block = b"x" * (100 * MB)
        time.sleep(0.2)
        assert memory.growth_bytes > 80 * MB and block.endswith(b"x")


def test_an_error_passes_through_and_the_thread_ends():
    before = threading.active_count()
    with pytest.raises(KeyError), PeakMemory():
        raise KeyError("the learner's own error")
    assert threading.active_count() == before


def test_one_watcher_serves_several_blocks_but_not_nested_ones():
    memory = PeakMemory()
    for _ in range(2):
        with memory:
            hold(100)
        assert memory.growth_bytes > 80 * MB
    with memory, pytest.raises(RuntimeError, match="already watching"):
        memory.__enter__()


@pytest.mark.parametrize("interval", [0, -1, float("nan")])
def test_an_interval_that_is_no_time_is_refused(interval):
    with pytest.raises(ValueError, match="more than 0"):
        PeakMemory(interval=interval)

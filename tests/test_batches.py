"""batches.py: global batches, fetched one ahead, in order and by one thread."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch

from posepipe.batches import read_ahead, split_batches


def test_a_last_batch_of_one_sample_is_left_out_and_one_of_two_is_not() -> None:
    assert [len(batch) for batch in split_batches(torch.arange(9), 4)] == [4, 4]
    assert [len(batch) for batch in split_batches(torch.arange(10), 4)] == [4, 4, 2]


def test_what_is_fetched_comes_in_order_and_at_most_one_ahead() -> None:
    asked: list[int] = []

    def fetch(item: int) -> int:
        asked.append(item)
        return 10 * item

    with read_ahead(fetch, range(5)) as fetched:
        for item in range(5):
            assert next(fetched) == 10 * item
            assert len(asked) <= item + 2
    assert asked == [0, 1, 2, 3, 4]


def test_the_next_batch_is_fetched_while_one_is_used() -> None:
    is_asked = threading.Event()
    with read_ahead(lambda item: is_asked.set() if item else None, range(2)) as fetched:
        next(fetched)
        assert is_asked.wait(60)


def test_a_fault_of_fetching_comes_up_at_its_own_batch_and_leaves_no_thread() -> None:
    used: list[Any] = []
    before = threading.active_count()

    def use(fetch: Callable[[int], Any]) -> None:
        with read_ahead(fetch, (2, 1, 0, 1)) as fetched:
            used.extend(fetched)

    with pytest.raises(ZeroDivisionError):
        use(lambda item: 6 // item)
    assert used == [3, 6]
    assert threading.active_count() == before


def test_what_fetches_has_one_core_and_takes_none_of_the_caller() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with read_ahead(lambda _: torch.get_num_threads(), range(2)) as fetched:
            assert list(fetched) == [1, 1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)

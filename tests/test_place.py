"""Placement: valid, at the lower bound on what networks look like, refused when it is not valid."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vessels.errors import PlanError
from vessels.place import Item, lower_bound, place, validate

items = st.builds(
    lambda size, start, length: Item(size, start, start + length),
    st.integers(1, 10_000),
    st.integers(0, 20),
    st.integers(1, 10),
)


@settings(max_examples=40)
@given(st.lists(items, max_size=20))
def test_valid(found: list[Item]) -> None:
    placement = place(found, seconds=0.05)
    validate(found, placement.offsets)
    assert all(o % 64 == 0 for o in placement.offsets)
    assert placement.size >= placement.lower_bound == lower_bound(found)


def test_chain_with_skips_reaches_the_lower_bound() -> None:
    choose = random.Random(1)
    found = [
        Item(choose.randrange(1, 1 << 20), i, i + choose.choice([2, 2, 2, 3, 5]))
        for i in range(200)
    ]
    placement = place(found)
    assert placement.size <= 1.02 * placement.lower_bound


@pytest.mark.parametrize(
    ("offsets", "problem"),
    [((0, 64), "overlap"), ((0, 128), None), ((0, 100), "aligned"), ((0, -64), "aligned")],
)
def test_validator(offsets: tuple[int, int], problem: str | None) -> None:
    pair = [Item(128, 0, 2), Item(64, 1, 3)]
    if problem is None:
        validate(pair, offsets)
    else:
        with pytest.raises(PlanError, match=problem):
            validate(pair, offsets)


def test_one_may_end_where_another_begins() -> None:
    placement = place([Item(640, 0, 1), Item(640, 1, 2)])
    assert placement.offsets == (0, 0) and placement.size == 640

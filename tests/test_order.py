"""The order pass: never worse than given, the best there is on small graphs, and valid."""

from __future__ import annotations

import time
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks import Net, random_net
from vessels.order import dependencies, order, overlap, peak_size
from vessels.program import Buffer, DType, Instruction, View


def is_valid(given: tuple[Instruction, ...], found: tuple[Instruction, ...]) -> bool:
    position = {id(i): n for n, i in enumerate(found)}
    return len(position) == len(given) and all(
        position[id(given[j])] < position[id(given[i])]
        for i, before in enumerate(dependencies(given))
        for j in before
    )


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 40))
def test_valid_and_never_worse(seed: int, length: int) -> None:
    given_order = random_net(seed, length).instructions
    found = order(given_order)
    assert is_valid(given_order, found)
    assert peak_size(found) <= peak_size(given_order)


@settings(max_examples=25)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_best_on_small_graphs(seed: int, length: int) -> None:
    instructions = random_net(seed, length).instructions[:7]
    before = dependencies(instructions)
    best = min(
        peak_size([instructions[i] for i in p])
        for p in permutations(range(len(instructions)))
        if all(p.index(j) < p.index(i) for i in range(len(p)) for j in before[i])
    )
    assert peak_size(order(instructions)) == best


def test_finds_the_better_branch_first() -> None:
    """Two branches with large middles: interleaved they hold both middles, in turn only one."""
    net = Net()
    x = net.input(8)
    middles = [net.conv(x, 64) for _ in range(4)]
    ends = [net.conv(m, 8) for m in middles]
    program = net.finish(net.concat(*ends))
    assert peak_size(order(program.instructions)) < peak_size(program.instructions) / 2


def test_slices_of_a_concatenation_do_not_overlap() -> None:
    buffer = Buffer("concat", 4 * 4 * 24 * 4)
    strides = (4 * 24 * 4, 4 * 24, 24, 1)
    a = View(buffer, 0, DType.F32, (1, 4, 4, 8), strides)
    b = View(buffer, 8 * 4, DType.F32, (1, 4, 4, 16), strides)
    c = View(buffer, 7 * 4, DType.F32, (1, 4, 4, 2), strides)
    assert not overlap(a, b)
    assert overlap(a, c) and overlap(b, c) and overlap(a, a)


@settings(max_examples=200)
@given(st.data())
def test_overlap_is_never_missed(data: st.DataObject) -> None:
    """Against the sets of bytes themselves."""
    buffer = Buffer("b", 4096)

    def view() -> View:
        rank = data.draw(st.integers(1, 3))
        shape = tuple(data.draw(st.integers(1, 4)) for _ in range(rank))
        strides = tuple(data.draw(st.sampled_from([0, 1, 2, 3, 8, 12, 16, -1, -8])) for _ in shape)
        offset = 4 * data.draw(st.integers(100, 140))
        return View(buffer, offset, DType.F32, shape, strides)

    def elements(v: View) -> set[int]:
        found = {v.offset}
        for d, s in zip(v.shape, v.strides, strict=True):
            found = {e + 4 * s * i for e in found for i in range(d)}
        return found

    a, b = view(), view()
    if elements(a) & elements(b):
        assert overlap(a, b)


@pytest.mark.parametrize("length", [1000])
def test_fast(length: int) -> None:
    instructions = random_net(3, length).instructions
    start = time.process_time()
    order(instructions)
    assert time.process_time() - start < 3.0

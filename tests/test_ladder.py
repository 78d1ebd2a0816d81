"""The ladder: every rung takes what it says, and gives the same answers."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vessels
from tests.networks import Net, random_net
from tests.test_plan import example, three_by_three
from vessels.check import check
from vessels.errors import UsageError
from vessels.ladder import MAX_SLOTS, PAGE_SIZE, Ladder, environment_size
from vessels.plan import Plan, make_plan
from vessels.program import LoweredProgram
from vessels.rungs import LEAST_SIZE, ladder_counts
from vessels.seal import open_sealed, read_header, seal

KEY = bytes(32)


def sealed(plan: Plan, folder: Path) -> Path:
    path = folder / "m.vessel"
    seal(plan, KEY, path)
    return path


@settings(max_examples=30)
@given(
    st.integers(0, 100_000),
    st.integers(1, 12),
    st.sampled_from([{}, {"resident": True}, {"memory": 1 << 22}, {"memory": 1 << 23}]),
    st.integers(1, 3),
)
def test_every_rung_is_checked(seed: int, length: int, how: dict[str, int], threads: int) -> None:
    program = make_plan(random_net(seed, length), threads=threads, **how).program  # type: ignore[arg-type]
    encoded = program.encoded()
    for number, rung in enumerate(program.rungs):
        placed = program.at(number)
        check(placed)
        kept = [i for i, c in enumerate(placed.chunks) if c.resident_offset is not None]
        assert set(program.order[: rung.resident_count]) <= set(kept)
        assert placed.instructions is program.instructions
        assert placed.offsets is program.offsets
        # What is sealed does not depend on the rung.
        assert placed.encoded() == encoded
    # A chunk has one place in all rungs that keep it.
    for index in range(len(program.chunks)):
        places = {program.at(n).chunks[index].resident_offset for n in range(len(program.rungs))}
        assert len(places - {None}) <= 1
    assert program.rungs[0].resident_count == 0
    assert program.rungs[-1].resident_count == len(program.order)
    assert program.rungs[-1].staging_size == 0


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_every_rung_gives_the_same_outputs(seed: int, threads: int, tmp_path: Path) -> None:
    lowered = three_by_three() if seed == 0 else random_net(seed, 4 * seed)
    path = sealed(make_plan(lowered, threads=2), tmp_path)
    ladder = Ladder.of(read_header(path))
    answers = []
    for number in range(len(ladder.rungs)):
        with vessels.Enclave(path, key=KEY, threads=threads, rung=number) as enclave:
            assert enclave.ready.pool_size == ladder.pool_size(number, 1, threads)
            answers.append(enclave.run(example(lowered)))
    assert len(answers) >= 2
    for answer in answers[1:]:
        for name, value in answers[0].items():
            assert answer[name].tobytes() == value.tobytes()


def test_the_default_rung_is_what_was_planned(tmp_path: Path) -> None:
    lowered = three_by_three()
    streamed, resident = make_plan(lowered), make_plan(lowered, resident=True)
    assert streamed.program.rung == 0
    assert resident.program.rung == len(resident.program.rungs) - 1
    memory = (streamed.pool_size + resident.pool_size) // 2
    path = sealed(make_plan(lowered, memory=memory), tmp_path)
    header = read_header(path)
    assert 0 < header.rung < len(header.rungs) - 1
    with vessels.Enclave(path, key=KEY) as enclave:
        assert enclave.ready.pool_size == header.pool_size <= memory
    program = open_sealed(path, KEY)
    assert program.layout.size == header.pool_size
    assert program.rungs == header.rungs


def test_a_conventional_plan_has_one_rung() -> None:
    plan = make_plan(three_by_three(), policy="conventional")
    assert len(plan.program.rungs) == 1 and plan.program.rung == 0
    assert plan.program.rungs[0].resident_size == plan.parameter_size


@given(st.lists(st.integers(1, 5000), max_size=200), st.data())
def test_rungs_are_apart(units: list[int], data: st.DataObject) -> None:
    sizes = np.array([64 * u for u in sorted(units, reverse=True)], np.int64)
    kept = np.concatenate([[0], np.cumsum(sizes)])
    default = data.draw(st.integers(0, len(sizes)))
    counts = ladder_counts(kept, default)
    ends = {0, len(sizes), default}
    assert ends <= set(counts) and counts == sorted(set(counts)) and len(counts) <= 7
    for a, b in itertools.pairwise(counts):
        assert {a, b} <= ends or kept[b] - kept[a] >= max(LEAST_SIZE, kept[-1] / 16)


def test_a_large_model_has_a_rung_for_every_part() -> None:
    kept = np.arange(0, 1001) * (100 << 10)
    parts = [count / 1000 for count in ladder_counts(kept, 0)]
    assert parts == [0, 0.125, 0.25, 0.5, 0.75, 1]
    # The default one takes the place of a rung that it is near to.
    assert ladder_counts(kept, 470) == [0, 125, 250, 470, 750, 1000]
    assert ladder_counts(kept, 1) == [0, 1, 125, 250, 500, 750, 1000]


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    path = sealed(make_plan(three_by_three(), threads=2), tmp_path_factory.mktemp("ladder"))
    return Ladder.of(read_header(path))


def test_pool_size(ladder: Ladder) -> None:
    for number, rung in enumerate(ladder.rungs):
        one = ladder.pool_size(number)
        assert one == ladder.slot_size + rung.resident_size + 2 * rung.staging_size
        assert ladder.pool_size(number, 5) - one == 4 * ladder.slot_size
        assert one - ladder.pool_size(number, 1, 1) == rung.staging_size
        assert ladder.pool_size(number, 1, 100) == one
    assert ladder.pool_size() == ladder.pool_size(ladder.default, 1, ladder.thread_count)


@pytest.mark.parametrize(
    "shape",
    [
        {"rung": -1},
        {"rung": 100},
        {"slots": 0},
        {"slots": MAX_SLOTS + 1},
        {"threads": 0},
    ],
)
def test_shapes_that_cannot_be(ladder: Ladder, shape: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=f"^{next(iter(shape))} is"):
        ladder.pool_size(**shape)
    with pytest.raises(UsageError):
        ladder.environment_size(**shape)


def small() -> LoweredProgram:
    """Its messages do not fit into its arena."""
    net = Net(size=4)
    return net.finish(net.conv(net.input(8), 8, 1))


@pytest.mark.parametrize("make", [small, three_by_three])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_environment_is_no_larger_than_said(make: object, threads: int, tmp_path: Path) -> None:
    assert callable(make)
    lowered = make()
    path = sealed(make_plan(lowered, threads=3), tmp_path)
    header = read_header(path)
    ladder = Ladder.of(header)
    for number in {0, len(ladder.rungs) - 1}:
        with vessels.Enclave(path, key=KEY, threads=threads, rung=number) as enclave:
            for _ in range(3):
                enclave.run(example(lowered))
            held = enclave.memory().trusted
        said = environment_size(header, number, 1, threads)
        assert said % PAGE_SIZE == 0
        assert said >= held > said / 2


def test_messages_beside_the_pool(tmp_path: Path) -> None:
    header = read_header(sealed(make_plan(small()), tmp_path))
    ladder = Ladder.of(header)
    assert ladder.message_size >= sum(p.size for p in header.inputs)
    more = ladder.environment_size(slots=3) - ladder.environment_size(slots=1)
    assert more >= 2 * (ladder.slot_size + ladder.message_size)
    roomy = read_header(sealed(make_plan(three_by_three()), tmp_path))
    assert Ladder.of(roomy).message_size == 0

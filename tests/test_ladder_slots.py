"""Rungs and slots together: sizes as told, and the answers of one rung and one slot."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vessels
from tests.networks import random_net
from tests.test_ladder import KEY, sealed, small
from tests.test_plan import three_by_three
from vessels.ladder import Ladder, environment_size
from vessels.pack import Array
from vessels.plan import make_plan
from vessels.program import LoweredProgram
from vessels.seal import read_header


def requests(program: LoweredProgram, count: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(3)
    return [
        {p.name: rng.standard_normal(p.view.shape).astype(np.float32) for p in program.inputs}
        for _ in range(count)
    ]


@pytest.mark.parametrize("make", [small, three_by_three, lambda: random_net(5, 9)])
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_at_every_rung(make: object, threads: int, tmp_path: Path) -> None:
    assert callable(make)
    lowered = make()
    path = sealed(make_plan(lowered, threads=2), tmp_path)
    header = read_header(path)
    ladder = Ladder.of(header)
    asked = requests(lowered, 4)
    with vessels.Enclave(path, key=KEY, threads=threads) as enclave:
        wanted = [enclave.run(inputs) for inputs in asked]
    for rung in range(len(ladder.rungs)):
        for slots in (2, 4):
            with vessels.Enclave(path, key=KEY, threads=threads, rung=rung, slots=slots) as enclave:
                assert enclave.ready.pool_size == ladder.pool_size(rung, slots, threads)
                found = enclave.run_batch(asked[:slots])
                held = enclave.memory().trusted
            assert environment_size(header, rung, slots, threads) >= held
            for answer, due in zip(found, wanted, strict=False):
                for name, value in due.items():
                    assert answer[name].tobytes() == value.tobytes()

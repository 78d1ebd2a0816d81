"""Lowering of random small graphs: fusion and placement must never change a result."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest

from tests import reference
from tests.test_lower import assert_equal, assert_written_once, expected, model, node, randoms
from vessels.importer import load
from vessels.lower import lower
from vessels.plan import make_plan
from vessels.simplify import simplify

Array = np.ndarray[Any, Any]
Shape = tuple[int, ...]


@dataclass
class Graph:
    """A graph in the making: convolutions, sums, concatenations that share their parts."""

    random: np.random.Generator
    values: dict[str, Shape]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def recent(self) -> str:
        return str(self.random.choice(list(self.values)[-4:]))

    def like(self, shape: Shape, channels: bool) -> str:
        """A value of the same shape, or the same but for its channels."""
        fits = [
            k
            for k, v in self.values.items()
            if v == shape or (channels and v[0] == shape[0] and v[2:] == shape[2:])
        ]
        return str(self.random.choice(fits))

    def grow(self, index: int) -> None:
        a, y = self.recent(), f"v{index}"
        shape = self.values[a]
        n, c, h, w = shape
        kind = self.random.choice(
            ["conv", "conv", "conv", "unary", "binary", "concat", "concat", "split", "gate",
             "transpose", "shuffle"]
        )  # fmt: skip
        if kind == "conv":
            group = int(self.random.choice([1, 1, 1, 2 if c % 2 == 0 else 1, c]))
            out = c if group == c else int(self.random.choice([4, 8, 16]))
            size = int(self.random.choice([1, 3]))
            self.constants[f"w{index}"] = randoms(out, c // group, size, size, seed=index) * 0.3
            self.nodes.append(node("Conv", f"{a} w{index}", y, pads=[size // 2] * 4, group=group))
            shape = (n, out, h, w)
        elif kind == "unary":
            self.nodes.append(
                node(str(self.random.choice(["Relu", "LeakyRelu", "HardSwish", "Tanh"])), a, y)
            )
        elif kind == "binary":
            b = self.like(shape, channels=False)
            self.nodes.append(node(str(self.random.choice(["Add", "Add", "Mul"])), f"{a} {b}", y))
        elif kind == "concat":
            parts = [self.like(shape, channels=True) for _ in range(self.random.integers(1, 4))]
            parts.append(a)
            total = sum(self.values[p][1] for p in parts)
            if total > 64:
                return
            self.nodes.append(node("Concat", " ".join(parts), y, axis=1))
            shape = (n, total, h, w)
        elif kind == "gate":
            self.nodes += [
                node("GlobalAveragePool", a, f"{y}p"),
                node("Sigmoid", f"{y}p", f"{y}s"),
                node("Mul", f"{a} {y}s", y),
            ]
        elif kind == "transpose":
            self.nodes.append(node("Transpose", a, y, perm=[0, 1, 3, 2]))
            shape = (n, c, w, h)
        elif c % 2 == 0 and kind == "split":
            self.nodes.append(node("Split", a, f"{y} {y}b", axis=1, num_outputs=2))
            shape = self.values[f"{y}b"] = (n, c // 2, h, w)
        elif c % 2 == 0:
            self.constants[f"r{index}"] = np.array([n, 2, c // 2, h, w])
            self.constants[f"q{index}"] = np.array(shape)
            self.nodes += [
                node("Reshape", f"{a} r{index}", f"{y}r"),
                node("Transpose", f"{y}r", f"{y}t", perm=[0, 2, 1, 3, 4]),
                node("Reshape", f"{y}t q{index}", y),
            ]
        else:
            return
        self.values[y] = shape


@pytest.mark.parametrize("seed", range(60))
def test_random_graphs(seed: int) -> None:
    random = np.random.default_rng(seed)
    start = (1 + seed % 2, 8, 6, 5)
    graph = Graph(random, {"x": start})
    graph.constants["w"] = randoms(8, 8, 1, 1)
    graph.nodes.append(node("Conv", "x w", "v"))
    graph.values["v"] = start
    for index in range(int(random.integers(3, 14))):
        graph.grow(index)
    used = {name for n in graph.nodes for name in n.input}
    outputs = [v for v in graph.values if v not in used]
    outputs += [str(random.choice([v for v in graph.values if v not in ("x", *outputs)] or ["v"]))]
    x = {"x": randoms(*start, seed=seed)}
    proto = model(graph.nodes, x, " ".join(dict.fromkeys(outputs)), graph.constants)
    wanted = expected(proto, x)
    for imported in (load(proto), simplify(load(proto))):
        program = lower(imported)
        assert_written_once(program)
        assert_equal(reference.run(program, x), wanted)
        make_plan(program, threads=2)

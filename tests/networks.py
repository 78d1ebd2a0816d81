"""Small lowered programs for the planner's tests: random ones, and one of each interesting kind."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import numpy as np

from vessels.program import (
    RELU,
    Buffer,
    Conv,
    Depthwise,
    DType,
    Instruction,
    LoweredProgram,
    Map,
    MapCode,
    MapOp,
    Parameters,
    Pool,
    PoolKind,
    Port,
    View,
)

ADD = (MapOp(MapCode.ADD_F, 0, 1),)
ABS = (MapOp(MapCode.ABS_F, 0),)


@dataclass
class Net:
    """Builds a lowered program over ``[1, size, size, C]`` images."""

    size: int = 8
    seed: int = 0
    instructions: list[Instruction] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)
        self.inputs: list[Port] = []
        self.count = 0

    def image(self, channels: int, kind: str = "arena", size: int | None = None) -> View:
        """A new image on a buffer of its own."""
        shape = (1, size or self.size, size or self.size, channels)
        self.count += 1
        buffer = Buffer(f"b{self.count}", int(np.prod(shape)) * 4, kind)  # type: ignore[arg-type]
        return View.dense(buffer, DType.F32, shape)

    def input(self, channels: int) -> View:
        view = self.image(channels, "input")
        self.inputs.append(Port(f"in{len(self.inputs)}", view))
        return view

    def constant(self, channels: int) -> View:
        shape = (1, self.size, self.size, channels)
        data = self.rng.standard_normal(shape).astype(np.float32)
        self.count += 1
        return View.dense(Buffer(f"k{self.count}", data.nbytes, "constant", data), DType.F32, shape)

    def parameters(self, *shape: int) -> Parameters:
        scale = 1 / np.sqrt(np.prod(shape[:-1]))
        weights = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        return Parameters(weights, self.rng.standard_normal(shape[-1]).astype(np.float32))

    def conv(
        self, x: View, channels: int, kernel: int = 3, residual: View | None = None,
        output: View | None = None,
    ) -> View:  # fmt: skip
        out = output or self.image(channels, size=x.shape[1])
        pad = kernel // 2
        self.instructions.append(
            Conv(
                x, out, residual, (kernel, kernel), (1, 1), (1, 1), (pad, pad), RELU, False,
                self.parameters(kernel, kernel, x.shape[3], channels),
            )
        )  # fmt: skip
        return out

    def depthwise(self, x: View) -> View:
        out = self.image(x.shape[3])
        parameters = self.parameters(3, 3, x.shape[3])
        self.instructions.append(
            Depthwise(x, out, None, (3, 3), (1, 1), (1, 1), (1, 1), RELU, False, parameters)
        )
        return out

    def map(self, *inputs: View, output: View | None = None) -> View:
        out = output or self.image(inputs[0].shape[3])
        self.instructions.append(Map(inputs, out, ABS if len(inputs) == 1 else ADD))
        return out

    def pool(self, x: View) -> View:
        out = self.image(x.shape[3])
        self.instructions.append(
            Pool(x, out, PoolKind.MAX, (3, 3), (1, 1), (1, 1), (1, 1, 1, 1), False)
        )
        return out

    def concat(self, *parts: View) -> View:
        """Each part is mapped into its slice of the channels."""
        out = self.image(sum(p.shape[3] for p in parts))
        at = 0
        for part in parts:
            to = View(out.buffer, at * 4, DType.F32, part.shape, out.strides)
            self.map(part, output=to)
            at += part.shape[3]
        return out

    def finish(self, *results: View) -> LoweredProgram:
        """Every result is copied to an output."""
        ports = []
        for number, result in enumerate(results):
            out = self.image(result.shape[3], "output", result.shape[1])
            self.map(result, output=out)
            ports.append(Port(f"out{number}", out))
        return LoweredProgram("net", tuple(self.inputs), tuple(ports), tuple(self.instructions))


def random_net(seed: int, length: int) -> LoweredProgram:
    """A valid random program of about ``length`` instructions, every value of which is used."""
    choose = random.Random(seed)
    net = Net(size=choose.choice([4, 5, 8]), seed=seed)
    values = [net.input(choose.choice([8, 16, 24]))]
    unused: dict[View, None] = {}
    for _ in range(length):
        x = choose.choice(values[-4:])
        same = [v for v in values if v.shape == x.shape and v is not x]
        kind = choose.choice(["conv", "residual", "map", "add", "constant", "concat", "pool", "dw"])
        used = [x]
        if kind == "conv":
            y = net.conv(x, choose.choice([16, 24, 40]), choose.choice([1, 3]))
        elif kind == "residual":
            wanted = choose.choice(values)
            used.append(wanted)
            y = net.conv(x, wanted.shape[3], 3, wanted if wanted.buffer is not x.buffer else None)
        elif kind == "add" and same:
            used.append(choose.choice(same))
            y = net.map(x, used[-1])
        elif kind == "constant":
            y = net.map(x, net.constant(x.shape[3]))
        elif kind == "concat" and x.shape[3] < 64:
            used.append(choose.choice(values[:2]))
            y = net.concat(x, used[-1])
        elif kind == "pool":
            y = net.pool(x)
        elif kind == "dw":
            y = net.depthwise(x)
        else:
            y = net.map(x)
        for v in used:
            unused.pop(v, None)
        unused[y] = None
        values.append(y)
    return net.finish(*unused)

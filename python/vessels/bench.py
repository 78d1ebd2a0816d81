"""Speed and memory beside ONNX Runtime, in turn, on one machine, in one run.

ONNX Runtime runs with all optimisations, one session of ``intra_op_num_threads`` threads,
sequential execution and its default spinning, and everything in plain memory.
"""

from __future__ import annotations

import secrets
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vessels.api import build, compile_model
from vessels.enclave import Enclave
from vessels.errors import VesselsError
from vessels.memory import onnxruntime_memory
from vessels.ports import Port
from vessels.program import Conv, Depthwise, Instruction, MatMul, Winograd
from vessels.seal import seal

Array = np.ndarray[Any, Any]
Mode = Literal["streamed", "resident"]
Progress = Callable[[str, float], None]

_WARMUP_COUNT = 3
_MIN_ROUNDS = 5
_MAX_ROUNDS = 200
_PAUSE_SECONDS = 0.1
"""Rest before each turn: ONNX Runtime's threads spin for up to 50 ms after a run (measured), on the
cores the other one needs."""


@dataclass(frozen=True)
class Row:
    """One line of ``vessels bench``: medians in milliseconds, memory in bytes.

    ``vessels_ms`` is a whole prediction. Of it, ``enclave_ms`` is from a sealed request to a sealed
    answer, measured with the same request again and again, and ``sealing_ms`` is the sealing of
    the request before. The ``ratio`` is of the whole.
    """

    model: str
    threads: int
    mode: Mode
    vessels_ms: float
    enclave_ms: float
    sealing_ms: float
    onnxruntime_ms: float
    ratio: float
    pool_size: int
    enclave_trusted_memory: int
    onnxruntime_memory: int

    def as_json(self) -> dict[str, Any]:
        """The row by column."""
        return asdict(self)


@dataclass(frozen=True)
class Layer:
    """One instruction of ``vessels bench --layers``.

    ``flop_count`` counts a multiply-add as two, in direct-convolution terms for Winograd;
    ``peak_share`` is of the speed that a large ONNX Runtime matrix product reached.
    """

    index: int
    mnemonic: str
    shape: tuple[int, ...]
    detail: str
    microseconds: float
    flop_count: int
    gflops: float
    peak_share: float

    def as_json(self) -> dict[str, Any]:
        """The layer by column."""
        return asdict(self)


def bench(
    model: Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: Sequence[int] = (1, 2),
    modes: Sequence[Mode] = ("streamed", "resident"),
    seconds: float = 4.0,
    progress: Progress | None = None,
) -> Iterator[Row]:
    """A row for each of ``modes`` and ``threads``, as they are measured.

    Each row times ONNX Runtime and Vessels in turn (A B A B …) for about ``seconds``. Inputs are
    seeded random numbers.
    """
    report = progress or (lambda step, part: None)
    key = secrets.token_bytes(32)
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        sealed = Path(folder) / "model.vessel"
        for thread_count in threads:
            plain: int | None = None
            session = None
            for mode in modes:
                report(f"{model.stem}, {thread_count} threads, {mode}: building", 0.0)
                build(
                    model, sealed, key=key, shapes=shapes, threads=thread_count,
                    resident=mode == "resident",
                )  # fmt: skip
                with Enclave(sealed, key=key, threads=thread_count) as enclave:
                    inputs = random_inputs(enclave.inputs)
                    if plain is None:
                        plain = onnxruntime_memory(model, inputs, thread_count)
                    if session is None:
                        session = onnxruntime_session(model, thread_count)
                    request = enclave.sealed(inputs)
                    [theirs], [ours, inside, sealing] = _in_turn(
                        [
                            [partial(session.run, None, inputs)],
                            [
                                partial(enclave.run, inputs),
                                partial(enclave.exchange, request),
                                partial(enclave.sealed, inputs),
                            ],
                        ],
                        seconds,
                        lambda part, m=mode, t=thread_count: report(  # type: ignore[misc]
                            f"{model.stem}, {t} threads, {m}", part
                        ),
                    )
                    yield Row(
                        model=model.stem,
                        threads=thread_count,
                        mode=mode,
                        vessels_ms=ours,
                        enclave_ms=inside,
                        sealing_ms=sealing,
                        onnxruntime_ms=theirs,
                        ratio=ours / theirs,
                        pool_size=enclave.ready.pool_size,
                        enclave_trusted_memory=enclave.memory().trusted,
                        onnxruntime_memory=plain,
                    )


def bench_layers(
    model: Path,
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    threads: int = 1,
    mode: Mode = "streamed",
    repeat: int = 15,
) -> list[Layer]:
    """Median time of each instruction over ``repeat`` runs in the enclave."""
    key = secrets.token_bytes(32)
    resident = mode == "resident"
    plan = compile_model(model, shapes=shapes, threads=threads, resident=resident)
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        sealed = Path(folder) / "model.vessel"
        seal(plan, key, sealed)
        with Enclave(sealed, key=key, threads=threads) as enclave:
            inputs = random_inputs(enclave.inputs)
            for _ in range(_WARMUP_COUNT):
                enclave.run(inputs)
            times = np.array([enclave.run_timed(inputs)[1] for _ in range(repeat)])
    peak = product_gflops(threads)
    layers: list[Layer] = []
    for index, instruction in enumerate(plan.program.instructions):
        nanoseconds = float(np.median(times[:, index]))
        flops = flop_count(instruction)
        gflops = flops / nanoseconds if nanoseconds else 0.0
        layers.append(
            Layer(
                index=index,
                mnemonic=instruction.mnemonic,
                shape=instruction.writes[0].shape,
                detail=describe(instruction),
                microseconds=nanoseconds / 1e3,
                flop_count=flops,
                gflops=gflops,
                peak_share=gflops / peak,
            )
        )
    return layers


def geometric_mean(rows: Sequence[Row]) -> float:
    """Of the rows' ratios."""
    return float(np.exp(np.mean(np.log([r.ratio for r in rows]))))


def random_inputs(ports: Sequence[Port], seed: int = 0) -> dict[str, Array]:
    """Seeded inputs: normal floats, small non-negative integers, that serve as indices too."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, Array] = {}
    for port in ports:
        if port.dtype.kind == "f":
            inputs[port.name] = rng.standard_normal(port.shape).astype(port.dtype)
        else:
            inputs[port.name] = rng.integers(0, 2, port.shape).astype(port.dtype)
    return inputs


def onnxruntime_session(model: Path, threads: int) -> Any:
    """An ONNX Runtime session as the module says; ``VesselsError`` when it is not installed."""
    try:
        import onnxruntime
    except ImportError as error:
        raise VesselsError(
            "benchmarks compare with ONNX Runtime, which is not installed: "
            "pip install 'vessels[bench]'."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def product_gflops(threads: int, size: int = 1024) -> float:
    """GFLOP/s of a float32 matrix product in ONNX Runtime: what the cores can do, nearly."""
    import onnx
    from onnx import helper

    kind = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        "product",
        [helper.make_tensor_value_info(n, kind, [size, size]) for n in ("a", "b")],
        [helper.make_tensor_value_info("c", kind, [size, size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="vessels-") as folder:
        path = Path(folder) / "product.onnx"
        onnx.save(model, path)
        session = onnxruntime_session(path, threads)
    inputs = {n: rng.standard_normal((size, size), dtype=np.float32) for n in ("a", "b")}
    times = [_seconds(lambda: session.run(None, inputs)) for _ in range(12)]
    return 2 * size**3 / min(times) / 1e9


def flop_count(instruction: Instruction) -> int:
    """Multiply-adds times two of an instruction, in direct-convolution terms; 0 for the rest."""
    match instruction:
        case Conv(input=source, output=result, kernel=(height, width)):
            return 2 * result.count * source.shape[-1] * height * width
        case Winograd(input=source, output=result):
            return 2 * result.count * source.shape[-1] * 9
        case Depthwise(output=result, kernel=(height, width)):
            return 2 * result.count * height * width
        case MatMul(a=left, output=result):
            return 2 * result.count * left.shape[-1]
        case _:
            return 0


def describe(instruction: Instruction) -> str:
    """A few words on an instruction: kernel, stride, algorithm, chunks."""
    match instruction:
        case Conv(input=source, kernel=kernel, stride=stride, cut=cut):
            words = f"{kernel[0]}x{kernel[1]}/{stride[0]} from {source.shape[-1]}"
        case Winograd(input=source, mode=mode, tile_block=block, cut=cut):
            words = f"3x3 from {source.shape[-1]}, {mode.name.lower()}, blocks of {block}"
        case Depthwise(kernel=kernel, stride=stride, cut=cut):
            words = f"{kernel[0]}x{kernel[1]}/{stride[0]}"
        case _:
            return ""
    return words if cut is None else f"{words}, {cut.chunk_count} chunks"


def _in_turn(
    turns: Sequence[Sequence[Callable[[], object]]],
    seconds: float,
    report: Callable[[float], None],
) -> list[list[float]]:
    """Median milliseconds of all work in each of ``turns``, one after the other for ``seconds``."""
    for _ in range(_WARMUP_COUNT):
        for works in turns:
            works[0]()
    rounds: list[list[list[float]]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < _MIN_ROUNDS or (time.perf_counter() < end and len(rounds) < _MAX_ROUNDS):
        rounds.append([_turn(works) for works in turns])
        report(max(0.0, min(1.0, 1 - (end - time.perf_counter()) / seconds)))
    return [
        [statistics.median(times) * 1e3 for times in zip(*turn, strict=True)]
        for turn in zip(*rounds, strict=True)
    ]


def _turn(works: Sequence[Callable[[], object]]) -> list[float]:
    """Seconds of each in a turn: after a rest, and a run that brings back caches and threads."""
    time.sleep(_PAUSE_SECONDS)
    works[0]()
    return [_seconds(work) for work in works]


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start

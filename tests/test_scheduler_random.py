"""The scheduler under random workloads: whatever happens, its promises hold at every moment.

That environments together never exceed the trusted memory, runs never the cores, batches never the
slots, and that nothing is answered twice or run where nothing is ready, :mod:`tests.scheduled`
checks after every event.
"""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scheduled import MIB, Bench, poisson
from vessels.schedule.events import Gone, Tick
from vessels.schedule.model import Machine, ModelSpec, RunTime, Shape


@st.composite
def specs(draw: st.DrawFn, epc_size: int | None, cores: int) -> list[ModelSpec]:
    most = 200 * MIB if epc_size is None else epc_size
    models = []
    for index in range(draw(st.integers(1, 5))):
        shapes = [
            Shape(
                draw(st.integers(0, 3)),
                draw(st.integers(1, 4)),
                draw(st.integers(1, cores)),
                draw(st.integers(1, most)),
            )
            for _ in range(draw(st.integers(1, 4)))
        ]
        models.append(
            ModelSpec(
                f"m{index}",
                tuple(shapes),
                weight=draw(st.sampled_from([0.5, 1.0, 4.0])),
                queue_count=draw(st.integers(1, 20)),
                deadline=draw(st.sampled_from([None, 2.0, 5.0])),
                run_time=RunTime(draw(st.floats(0, 0.1)), draw(st.floats(0.001, 0.1))),
                start_seconds=draw(st.floats(0.01, 1.0)),
            )
        )
    return models


@st.composite
def benches(draw: st.DrawFn) -> Bench:
    epc_size = draw(st.sampled_from([None, 30 * MIB, 93 * MIB]))
    cores = draw(st.integers(1, 4))
    models = draw(specs(epc_size, cores))
    noise = draw(st.sampled_from([0.0, 0.5, 5.0]))
    bench = Bench(Machine(cores, epc_size), models, seed=draw(st.integers(0, 1 << 20)))
    bench.seconds = lambda spec, _, count: (
        spec.run_time.seconds(count) * (1 + noise * bench.random.random() ** 4)
    )
    bench.start = lambda spec: spec.start_seconds * (1 + noise * bench.random.random())
    return bench


@settings(max_examples=25)
@given(benches(), st.floats(0.2, 3.0), st.booleans())
def test_promises_hold_and_every_ticket_is_answered(
    bench: Bench, load: float, failing: bool
) -> None:
    random = bench.random
    for spec in bench.specs:
        rate = load * bench.machine.core_count / len(bench.specs) / spec.run_time.seconds(1)
        options = {"deadline": 0.5} if random.random() < 0.3 else {}
        poisson(bench, spec.name, min(rate, 60.0), 6.0, **options)

    def disturb() -> None:
        if bench.environments and failing:
            bench.kill(random.choice(list(bench.environments)))
        if bench.waiting:
            bench.leave(random.choice(list(bench.waiting)))
        number = random.randrange(20)
        known = bench.environments.get(number)
        bench.arrive(number, known.model if known else bench.specs[0].name)
        if bench.now < 6.0:
            bench.at(bench.now + random.expovariate(2.0), disturb)

    bench.at(1.0, disturb)
    bench.run(50.0)
    assert not bench.waiting
    assert not any(view.queued_count for view in bench.scheduler.environments)
    assert all(bench.scheduler.queue_length(spec.name) == 0 for spec in bench.specs)
    assert all(each.state == "ready" for each in bench.environments.values())
    # Nobody is refused for lack of anything by a machine that has nothing else to do.
    for spec in bench.specs:
        before = len(bench.outcomes)
        bench.request(spec.name, retry=True)
        bench.run(bench.now + 40.0)
        what = [bench.outcomes[ticket].what for ticket in list(bench.outcomes)[before:]]
        assert what[-1] == "answered", what


@settings(max_examples=25)
@given(benches(), st.lists(st.floats(0.0, 0.5), max_size=40))
def test_same_events_same_decisions(bench: Bench, pauses: list[float]) -> None:
    """Two schedulers told the same say the same; one that is told nonsense is not moved by it."""
    other = type(bench.scheduler)(bench.machine, bench.specs)
    handle = bench.scheduler.handle

    def both(event: object) -> object:
        decisions = handle(event)  # type: ignore[arg-type]
        assert other.handle(event) == decisions  # type: ignore[arg-type]
        assert other.handle(Gone(bench.now, 1 << 40)) == []
        return decisions

    bench.scheduler.handle = both  # type: ignore[assignment, method-assign]
    poisson(bench, bench.specs[0].name, 20.0, 3.0)
    for pause in pauses:
        bench.run(bench.now + pause)
        bench.tell(Tick(bench.now))

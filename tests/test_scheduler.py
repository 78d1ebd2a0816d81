"""The scheduler, case by case: who is launched, run, refused and evicted, and when."""

from __future__ import annotations

import itertools

import pytest

from tests.scheduled import MIB, Bench, answered, poisson
from vessels.errors import UsageError
from vessels.schedule.decisions import Assign, Decision, Launch, Reason, Refuse, Run, Stop
from vessels.schedule.events import Arrived, Ended, Finished, Gone, Ready, Tick, Wanted
from vessels.schedule.model import Machine, ModelSpec, RunTime, Shape
from vessels.schedule.scheduler import Scheduler

TEN = Shape(rung=0, slots=1, threads=1, size=10 * MIB)


def model(name: str = "m", *shapes: Shape, each: float = 0.05, **options: object) -> ModelSpec:
    options.setdefault("run_time", RunTime(0.0, each))
    return ModelSpec(name, shapes or (TEN,), **options)  # type: ignore[arg-type]


def serving(spec: ModelSpec, machine: Machine | None = None) -> Scheduler:
    """A scheduler whose environment 1, of ``spec``, is ready at time 0."""
    scheduler = Scheduler(machine or Machine(1), [spec])
    assert scheduler.wake() == 0.0
    assert scheduler.handle(Tick(0.0)) == [Launch(1, spec.name, spec.shapes[-1])]
    assert scheduler.handle(Ready(0.0, 1)) == []
    return scheduler


def assert_overloaded(decisions: list[Decision], ticket: int) -> None:
    [refusal] = decisions
    assert isinstance(refusal, Refuse)
    assert (refusal.ticket, refusal.reason) == (ticket, Reason.OVERLOADED)
    assert refusal.retry_after > 0


def test_a_request_from_evidence_to_answer() -> None:
    scheduler = serving(model())
    assert scheduler.handle(Wanted(1.0, 1, "m")) == [Assign(1, 1)]
    assert scheduler.handle(Arrived(1.1, 2, 1)) == [Run(1, (2,))]
    assert scheduler.handle(Arrived(1.1, 3, 1)) == []
    assert scheduler.queue_length("m") == 1
    assert [(e.environment, e.state, e.queued_count) for e in scheduler.environments] == [
        (1, "running", 1)
    ]
    assert scheduler.handle(Finished(1.2, 1)) == [Run(1, (3,))]
    assert scheduler.handle(Finished(1.3, 1)) == []
    assert scheduler.account.used == 10 * MIB
    assert scheduler.account.by_environment == {1: 10 * MIB}


def test_what_waits_is_batched_up_to_the_slots() -> None:
    scheduler = serving(model("m", Shape(0, 4, 1, 10)))
    assert scheduler.handle(Arrived(1.0, 1, 1)) == [Run(1, (1,))]
    for ticket in range(2, 8):
        assert scheduler.handle(Arrived(1.0, ticket, 1)) == []
    assert scheduler.handle(Gone(1.0, 3)) == []
    assert scheduler.handle(Finished(1.05, 1)) == [Run(1, (2, 4, 5, 6))]
    assert scheduler.handle(Finished(1.25, 1)) == [Run(1, (7,))]


def test_a_batch_is_no_larger_than_the_deadline_of_one_in_it_allows() -> None:
    def run(deadline: float) -> list[Decision]:
        spec = model("m", Shape(0, 4, 1, 10), run_time=RunTime(0.05, 0.05))
        scheduler = serving(spec)
        # Alone a request takes 0.1 s, and each one more 0.05 s.
        for ticket in range(4):
            scheduler.handle(Arrived(float(ticket), ticket, 1))
            scheduler.handle(Finished(ticket + 0.1, 1))
        scheduler.handle(Arrived(9.0, 9, 1))
        for ticket in range(10, 15):
            late = deadline if ticket == 10 else None
            assert scheduler.handle(Arrived(9.0, ticket, 1, late)) == []
        # The run before took longer than was expected, and so may this one: 0.12 s and 0.06 s.
        return scheduler.handle(Finished(9.2, 1))

    assert run(9.2 + 0.2) == [Run(1, (10, 11))]
    assert run(9.2 + 0.32) == [Run(1, (10, 11, 12, 13))]


def test_a_deadline_that_cannot_be_met_is_refused_at_once_or_as_soon_as_known() -> None:
    scheduler = serving(model(each=0.1))
    scheduler.handle(Arrived(0.8, 0, 1))
    scheduler.handle(Finished(0.9, 1))
    assert_overloaded(scheduler.handle(Arrived(1.0, 1, 1, deadline=1.05)), 1)
    assert scheduler.handle(Arrived(1.0, 2, 1, deadline=2.0)) == [Run(1, (2,))]
    assert scheduler.handle(Arrived(1.0, 3, 1, deadline=1.3)) == []
    # Behind the other two it could only be late.
    assert_overloaded(scheduler.handle(Arrived(1.0, 4, 1, deadline=1.25)), 4)
    # The run does not end: from 1.2 on the third cannot be answered in time.
    wake = scheduler.wake()
    assert wake is not None and wake == pytest.approx(1.2)
    assert_overloaded(scheduler.handle(Tick(wake)), 3)
    assert scheduler.handle(Finished(1.3, 1)) == []


def test_a_full_queue_refuses() -> None:
    scheduler = serving(model(each=0.001, queue_count=3))
    late = 1000.0
    assert scheduler.handle(Arrived(1.0, 1, 1, late)) == [Run(1, (1,))]
    for ticket in range(2, 5):
        assert scheduler.handle(Arrived(1.0, ticket, 1, late)) == []
    assert_overloaded(scheduler.handle(Arrived(1.0, 5, 1, late)), 5)


def test_a_refusal_is_foreseen() -> None:
    scheduler = serving(model(queue_count=2))
    arrivals = [Arrived(1.0, ticket, 1) for ticket in range(1, 6)]
    for number, arrival in enumerate(arrivals):
        foreseen = scheduler.foresee(arrival)
        decisions = scheduler.handle(arrival)
        refused = [d for d in decisions if isinstance(d, Refuse)]
        assert refused == ([] if foreseen is None else [foreseen])
        # One runs, two wait.
        assert (foreseen is not None) == (number > 2)
    late = scheduler.foresee(Arrived(1.0, 9, 1, deadline=1.01))
    assert late is not None
    assert_overloaded([late], 9)
    assert scheduler.foresee(Arrived(1.0, 9, 7)) == Refuse(9, Reason.ELSEWHERE, 0.0)


def test_who_comes_to_no_or_another_environment_is_sent_elsewhere() -> None:
    scheduler = serving(model())
    assert scheduler.handle(Arrived(1.0, 1, 2)) == [Refuse(1, Reason.ELSEWHERE, 0.0)]


def test_what_waits_for_an_environment_that_ends_is_told_so() -> None:
    scheduler = serving(model())
    scheduler.handle(Arrived(1.0, 1, 1))
    scheduler.handle(Arrived(1.0, 2, 1))
    [refusal] = scheduler.handle(Ended(1.1, 1))
    assert refusal == Refuse(2, Reason.ENDED, refusal.retry_after)  # type: ignore[union-attr]
    assert scheduler.account.used == 0
    assert scheduler.handle(Finished(1.2, 1)) == []
    # The core is free again.
    [launch] = scheduler.handle(Tick(1.6))
    assert launch == Launch(2, "m", TEN)
    scheduler.handle(Ready(1.7, 2))
    assert scheduler.handle(Arrived(1.8, 3, 2)) == [Run(2, (3,))]


def test_restarts_are_delayed_more_and_more_until_one_is_healthy() -> None:
    scheduler = Scheduler(Machine(1), [model()])
    now, delays = 0.0, []
    scheduler.handle(Tick(now))
    for number in range(1, 10):
        assert scheduler.handle(Ended(now, number)) == []
        wake = scheduler.wake()
        assert wake is not None
        assert scheduler.handle(Tick((wake + now) / 2)) == []
        assert [type(d) for d in scheduler.handle(Tick(wake))] == [Launch]
        delays.append(wake - now)
        now = wake
    assert delays == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    scheduler.handle(Ready(now, 10))
    scheduler.handle(Ended(now + 10, 10))
    wake = scheduler.wake()
    assert wake == now + 10.5


def test_failures_long_ago_delay_no_restart() -> None:
    scheduler = Scheduler(Machine(1), [model()])
    now, delays = 0.0, []
    scheduler.handle(Tick(now))
    # Each is ready for a second only: the model is what does not fail for long.
    for number in range(1, 5):
        scheduler.handle(Ready(now, number))
        scheduler.handle(Ended(now + 1.0, number))
        wake = scheduler.wake()
        assert wake is not None
        delays.append(wake - now - 1.0)
        now = wake + (0.0 if number < 3 else 15.0)
        scheduler.handle(Tick(now))
    assert delays == [0.5, 1, 2, 0.5]


def test_a_model_too_large_for_the_machine_is_refused_with_the_figure() -> None:
    with pytest.raises(UsageError, match=r"needs 10,485,760 bytes .* has 10,485,759"):
        Scheduler(Machine(1, 10 * MIB - 1), [model()])
    # All that do not fit are named, and what the largest of them needs in whole MiB.
    sizes = {"m": MIB, "n": 3 * MIB + 1, "o": 9}
    models = [model(name, Shape(0, 1, 1, size)) for name, size in sizes.items()]
    with pytest.raises(UsageError, match=r"model m needs .* model n needs .* Give it 4 MiB"):
        Scheduler(Machine(1, MIB - 1), models)
    with pytest.raises(UsageError, match="needs 4 threads and the machine has 2"):
        Scheduler(Machine(2), [model("m", Shape(0, 1, 4, 1))])
    # Only shapes that fit are ever used.
    wide, large = Shape(0, 1, 2, 10), Shape(1, 1, 1, 11)
    scheduler = Scheduler(Machine(1, 10), [model("m", Shape(0, 1, 1, 9), wide, large)])
    assert scheduler.handle(Tick(0.0)) == [Launch(1, "m", Shape(0, 1, 1, 9))]


@pytest.mark.parametrize(
    "specs",
    [
        [model("a"), model("a")],
        [model("a", weight=0.0)],
        [model("a", queue_count=0)],
        [ModelSpec("a", ())],
    ],
)
def test_models_that_make_no_sense_are_refused(specs: list[ModelSpec]) -> None:
    with pytest.raises(UsageError, match="a"):
        Scheduler(Machine(1), specs)


def test_one_slow_run_does_not_shut_a_model_for_good() -> None:
    bench = Bench(Machine(1), [model(each=0.05, deadline=0.3)])
    bench.seconds = lambda spec, shape, count: 3.0 if bench.now < 2.0 else 0.05
    for second in range(1, 15):
        bench.at(float(second), lambda: bench.request("m"))
    bench.run(20.0)
    assert len(answered(bench, after=10.0)) >= 4
    whats = {outcome.what for outcome in bench.outcomes.values()}
    assert whats == {"assigned", "answered", "overloaded"}


def test_all_that_fit_are_launched_at_the_start() -> None:
    specs = [model(name, each=0.1) for name in "abc"]
    scheduler = Scheduler(Machine(1, 25 * MIB), specs)
    assert [d.model for d in scheduler.handle(Tick(0.0)) if isinstance(d, Launch)] == ["a", "b"]
    assert scheduler.account.used == 20 * MIB


def test_memory_that_is_left_goes_where_it_saves_most() -> None:
    def shapes(slot: int, parameters: int) -> tuple[Shape, ...]:
        sizes = itertools.product(range(3), (1, 2, 4))
        return tuple(
            Shape(rung, slots, 1, (5 + slots * slot + rung * parameters // 2) * MIB)
            for rung, slots in sizes
        )

    # Most of a run of the first is shared by a batch, and its slots are small.
    shared = model("shared", *shapes(1, 100), run_time=RunTime(0.09, 0.01))
    own = model("own", *shapes(10, 20), run_time=RunTime(0.01, 0.09))
    bench = Bench(Machine(2, 26 * MIB), [own, shared])
    bench.run(1.0)
    shape = {view.model: view.shape for view in bench.scheduler.environments}
    assert (shape["shared"].rung, shape["shared"].slots) == (0, 4)
    assert (shape["own"].rung, shape["own"].slots) == (0, 1)
    # Without a limit everything is resident.
    bench = Bench(Machine(2), [own, shared])
    bench.run(1.0)
    assert {view.shape.rung for view in bench.scheduler.environments} == {2}


def test_an_idle_environment_makes_room_and_its_model_comes_back() -> None:
    bench = Bench(Machine(1, 15 * MIB), [model("a"), model("b")])
    bench.run(5.0)
    assert [e.model for e in bench.environments.values()] == ["a"]
    for _ in range(3):
        for name in ("b", "a"):
            bench.request(name)
            bench.run(bench.now + 3.0)
            assert [e.model for e in bench.environments.values()] == [name]
    assert len(answered(bench)) == 6
    assert answered(bench)[-1] < 1.0


def test_two_models_that_do_not_fit_together_take_turns_and_do_not_thrash() -> None:
    bench = Bench(Machine(2, 15 * MIB), [model("a"), model("b")])
    for name in ("a", "b"):
        poisson(bench, name, 18.0, 60.0)
    bench.run(70.0)
    for name in ("a", "b"):
        assert len(answered(bench, name)) > 0.25 * 18 * 60
        assert max(o.end - o.arrival for o in bench.outcomes.values() if o.model == name) < 15
    # Each start of 0.2 s is followed by use for several times as long.
    assert sum(bench.launches.values()) * 0.2 < 0.25 * 60


def test_clients_that_pause_between_requests_keep_their_environment() -> None:
    bench = Bench(Machine(2, 15 * MIB), [model("a", each=0.01), model("b", each=0.01)])
    for name in ("a", "b"):

        def ask(name: str = name) -> None:
            done, asked = len(answered(bench, name)), bench.now
            bench.request(name)
            bench.at(bench.now + 0.02, lambda: again(name, done, asked))

        def again(name: str, done: int, asked: float) -> None:
            if bench.now >= 30.0:
                return
            if len(answered(bench, name)) > done or bench.now - asked > 2.0:
                ask(name)
            else:
                bench.at(bench.now + 0.02, lambda: again(name, done, asked))

        bench.at(0.5, ask)
    bench.run(40.0)
    # A start takes 0.2 s, and what has started is used for at least two seconds.
    assert 4 <= sum(bench.launches.values()) <= 2 + 30 / 2
    assert min(len(answered(bench, name)) for name in ("a", "b")) > 100


def test_a_large_model_is_not_starved_by_small_ones() -> None:
    small = [model(f"s{i}") for i in range(4)]
    large = model("large", Shape(0, 1, 1, 40 * MIB))
    bench = Bench(Machine(2, 45 * MIB), [*small, large])
    for spec in small:
        poisson(bench, spec.name, 20.0, 60.0)
    poisson(bench, "large", 0.5, 60.0)
    bench.run(70.0)
    ends = [o.end for o in bench.outcomes.values() if (o.model, o.what) == ("large", "answered")]
    gaps = [b - a for a, b in itertools.pairwise([0.0, *sorted(ends), 60.0])]
    assert max(gaps) < 20.0
    for spec in small:
        assert len(answered(bench, spec.name)) > 0.3 * 20 * 60


@pytest.mark.parametrize("weights", [(1.0, 1.0), (3.0, 1.0), (1.0, 2.0, 5.0)])
@pytest.mark.parametrize("cores", [1, 2])
def test_cores_are_shared_by_weight_under_saturation(
    weights: tuple[float, ...], cores: int
) -> None:
    specs = [
        model(f"m{i}", Shape(0, 1 + i, 1, 1), each=0.02 * (1 + i), weight=weight)
        for i, weight in enumerate(weights)
    ]
    bench = Bench(Machine(cores), specs)
    for spec in specs:
        poisson(bench, spec.name, 100.0, 15.0)
    bench.run(15.0)
    used = [bench.used_cores[spec.name] for spec in specs]
    assert sum(used) == pytest.approx(15 * cores, rel=0.05)
    # One environment cannot use more than its one core.
    if cores == 1:
        for seconds, weight in zip(used, weights, strict=True):
            assert seconds / 15 == pytest.approx(weight / sum(weights), rel=0.1)


def test_being_idle_earns_no_credit() -> None:
    bench = Bench(Machine(1), [model("a"), model("b")])
    poisson(bench, "a", 100.0, 30.0)
    bench.at(20.0, lambda: poisson(bench, "b", 100.0, 30.0))
    bench.run(30.0)
    assert bench.used_cores["b"] == pytest.approx(5.0, rel=0.1)


def test_a_run_that_needs_all_cores_is_not_starved_by_narrow_ones() -> None:
    wide = model("wide", Shape(0, 1, 2, 1), each=0.05)
    bench = Bench(Machine(2), [model("a"), model("b"), wide])
    for name in ("a", "b", "wide"):
        poisson(bench, name, 50.0, 30.0)
    bench.run(30.0)
    assert bench.used_cores["wide"] > 0.25 * 60


def test_a_second_environment_when_cores_are_free_and_the_queue_is_long() -> None:
    bench = Bench(Machine(2, 25 * MIB), [model()])
    poisson(bench, "m", 30.0, 30.0)
    bench.run(30.0)
    assert len(bench.environments) == 2
    assert len(answered(bench, after=10.0)) > 0.95 * 30 * 20 * 0.95
    # But none without room, and none without cores.
    for machine in (Machine(2, 15 * MIB), Machine(1, 25 * MIB)):
        bench = Bench(machine, [model()])
        poisson(bench, "m", 30.0, 10.0)
        bench.run(10.0)
        assert len(bench.environments) == 1


@pytest.mark.parametrize("slots", [1, 8])
@pytest.mark.parametrize("models", [1, 5])
def test_overload_neither_lengthens_the_tail_nor_costs_capacity(slots: int, models: int) -> None:
    def measure(load: float) -> tuple[float, float]:
        shape = Shape(0, slots, 1, 1)
        specs = [model(f"m{i}", shape, run_time=RunTime(0.02, 0.01)) for i in range(models)]
        bench = Bench(Machine(1), specs)
        capacity = slots / specs[0].run_time.seconds(slots)
        for spec in specs:
            poisson(bench, spec.name, load * capacity / models, 30.0)
        bench.run(40.0)
        seconds = answered(bench)
        return len(seconds) / 30 / capacity, seconds[int(0.99 * len(seconds))]

    busy_goodput, busy_tail = measure(0.9)
    goodput, tail = measure(2.0)
    assert busy_goodput > 0.86
    assert goodput > 0.95
    assert tail < 2 * busy_tail


def test_runs_are_as_wide_as_there_are_cores_for_each_model_in_use() -> None:
    shapes = (Shape(0, 1, 1, 10), Shape(0, 1, 2, 11), Shape(0, 1, 4, 13))
    for count, threads in ((1, 4), (2, 2), (3, 1), (8, 1)):
        bench = Bench(Machine(4), [model(f"m{i}", *shapes) for i in range(count)])
        bench.run(1.0)
        assert {view.shape.threads for view in bench.scheduler.environments} == {threads}
    # What is asked for alone gets the other cores too.
    bench = Bench(Machine(4), [model(f"m{i}", *shapes, each=0.1) for i in range(4)])
    poisson(bench, "m0", 30.0, 20.0)
    bench.run(20.0)
    own = [view.shape for view in bench.scheduler.environments if view.model == "m0"]
    assert sum(shape.threads for shape in own) > 2


def test_a_successor_in_a_better_shape_takes_over_without_a_refusal() -> None:
    shapes = tuple(Shape(0, slots, 1, (10 + slots) * MIB) for slots in (1, 8))
    a = model("a", *shapes, run_time=RunTime(0.08, 0.01))
    b = model("b", Shape(0, 1, 1, 40 * MIB))
    bench = Bench(Machine(1, 60 * MIB), [a, b])
    bench.run(1.0)
    assert {view.model: view.shape.slots for view in bench.scheduler.environments}["a"] == 8
    # Memory was short when it was launched, and is not any more.
    bench = Bench(Machine(1, 60 * MIB), [b, a])
    poisson(bench, "a", 20.0, 40.0)
    bench.run(40.0)
    views = {view.model: view.shape.slots for view in bench.scheduler.environments}
    assert views["a"] == 8


def test_a_start_that_hangs_does_not_keep_memory_from_others() -> None:
    bench = Bench(Machine(1, 15 * MIB), [model("hangs"), model("works")])
    bench.start = lambda spec: float("inf") if spec.name == "hangs" else 0.2
    poisson(bench, "works", 5.0, 60.0)
    poisson(bench, "hangs", 0.5, 60.0)
    bench.run(100.0)
    assert len(answered(bench, "works")) > 100


def test_environments_larger_than_planned_are_accounted_for() -> None:
    scheduler = Scheduler(Machine(1, 25 * MIB), [model("a"), model("b")])
    scheduler.handle(Tick(0.0))
    scheduler.handle(Ready(0.1, 1))
    assert scheduler.account.used == 20 * MIB
    scheduler.account.correct(1, 16 * MIB)
    assert scheduler.account.used == 26 * MIB
    assert scheduler.account.free == 0
    # Together they are too large: one goes.
    stops = [d for d in scheduler.handle(Ready(0.1, 2)) if isinstance(d, Stop)]
    assert len(stops) == 1
    scheduler.handle(Ended(0.2, stops[0].environment))
    assert scheduler.account.used in (10 * MIB, 16 * MIB)
    # An environment of the first is known to take 16 MiB from now on: there is no room for both.
    for now in (1.0, 5.0, 50.0):
        scheduler.handle(Tick(now))
        assert scheduler.account.used <= 25 * MIB
        assert len(scheduler.environments) == 1
    scheduler.handle(Wanted(51.0, 1, "a" if scheduler.environments[0].model == "b" else "b"))
    scheduler.handle(Tick(51.0 + 11.0))
    [leaving] = scheduler.environments
    assert leaving.state == "stopping"
    [launch, assign] = scheduler.handle(Ended(63.0, leaving.environment))
    assert isinstance(launch, Launch) and isinstance(assign, Assign)
    expected = 16 * MIB if launch.model == "a" else 10 * MIB
    assert scheduler.account.by_environment == {launch.environment: expected}


def test_the_account_refuses_what_does_not_fit() -> None:
    account = Scheduler(Machine(1, 10 * MIB), [model()]).account
    account.enter(1, 6 * MIB)
    for environment, size in ((2, 5 * MIB), (1, 1), (2, -1)):
        with pytest.raises(RuntimeError):
            account.enter(environment, size)
    assert (account.used, account.free) == (6 * MIB, 4 * MIB)
    account.strike(1)
    with pytest.raises(KeyError):
        account.strike(1)
    assert account.used == 0


def test_a_run_in_which_nothing_was_computed_is_no_measure() -> None:
    for computed, taken in ((0, False), (None, True)):
        scheduler = serving(model(each=1.0))
        for ticket in range(1, 31):
            assert scheduler.handle(Arrived(2.0 * ticket, ticket, 1)) == [Run(1, (ticket,))]
            assert scheduler.handle(Finished(2.0 * ticket + 0.001, 1, computed)) == []
        decisions = scheduler.handle(Arrived(60.5, 99, 1, deadline=61.0))
        if taken:
            assert decisions == [Run(1, (99,))]
        else:
            assert_overloaded(decisions, 99)


def test_a_few_clients_of_a_small_model_are_not_too_many() -> None:
    scheduler = serving(model(each=0.02))
    assert scheduler.handle(Arrived(1.0, 1, 1)) == [Run(1, (1,))]
    for ticket in range(2, 17):
        assert scheduler.handle(Arrived(1.0, ticket, 1)) == []

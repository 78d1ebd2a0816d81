"""What the report says in words and tables: values for its template, worked out from a study."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from difflib import SequenceMatcher
from typing import Any

from vessels.study.analysis import CACHE_PAGE_COUNT
from vessels.study.drawing import KIND_NAMES, POLICIES
from vessels.study.plots import FIRST_BIN, pool_parts
from vessels.study.result import KINDS, PAGE_SIZE, LayerRow, PlanAnalysis, Study
from vessels.study.wording import (
    NONE,
    about_text,
    at_epc,
    beyond_agreement,
    collapse,
    consequence,
    count_text,
    fits,
    mib_cell,
    predicted,
    size_text,
    speedup,
    tenants_that_fit,
    time_text,
    times_text,
    verdict,
)

CROSS = "\N{MULTIPLICATION SIGN}"
TOP_COUNT = 40
"""Rows of the table by layer that are shown at once."""


def values(study: Study) -> dict[str, Any]:
    """Everything the template asks for beside the study and its plots."""
    old, new = study.conventional, study.planned
    return {
        "verdict": verdict(study),
        "consequence": consequence(study),
        "keys": _keys(study),
        "kinds": _kinds(study),
        "runtime": size_text(study.footprint.runtime_size),
        "magnification": times_text(max(1.0, old.pool_size / max(1, new.pool_size))),
        "allocation_text": _allocation(study),
        "footprint_note": _footprint(study),
        "reuse_text": _reuse(study),
        "cache": size_text(CACHE_PAGE_COUNT * PAGE_SIZE),
        "near": {plan.policy: _near_share(plan) for plan in (old, new)},
        "latency_text": _latency(study),
        "latency_rows": _latency_rows(study),
        "tenants_text": _tenants(study),
        "tenant_rows": _tenant_rows(study),
        "budget_text": _budget(study),
        "layers_text": _layers_text(study),
        "layers": _layers(study),
        "facts": _facts(study),
        "padding_text": _padding(study),
        "agreement_text": _agreement(study),
        "agreement_rows": _agreement_rows(study),
    }


def _keys(study: Study) -> list[dict[str, str]]:
    old, new = study.conventional, study.planned
    slow = at_epc(study.latency, "conventional", study.epc_size)
    fast = at_epc(study.latency, "planned", study.epc_size)
    source = "" if slow and fast else " (analysis)"
    faults = [
        point.faults if point else predicted(study, plan)
        for point, plan in ((slow, old), (fast, new))
    ]
    keys = [
        ("Memory, conventional", size_text(old.pool_size), _against(old, study)),
        ("Memory, planned", size_text(new.pool_size), _against(new, study)),
        (
            "Faults per prediction",
            about_text(faults[1]),
            f"instead of {about_text(faults[0])}{source}",
        ),
    ]
    ratio = speedup(study)
    if slow and fast and ratio is not None:
        words = f"{times_text(ratio)} as fast" if ratio >= 1 else f"{times_text(1 / ratio)} as long"
        note = f"instead of {time_text(slow.median_ms)}: {words}"
        keys.append(("Latency, planned", time_text(fast.median_ms), note))
    held = tenants_that_fit(study, old)
    keys.append(
        (
            "Environments that fit",
            str(tenants_that_fit(study, new)),
            f"instead of {held or 'none'}",
        )
    )
    return [{"name": name, "value": value, "note": note} for name, value, note in keys]


def _against(plan: PlanAnalysis, study: Study) -> str:
    share = plan.pool_size / study.epc_size
    return (
        f"{share:.1f} times the EPC"
        if share >= 1
        else f"{100 * share:.2g}\N{NO-BREAK SPACE}% of the EPC"
    )


def _kinds(study: Study) -> list[dict[str, Any]]:
    old = {r.kind: r.allocated_size for r in study.conventional.reuse}
    new = {r.kind: r.allocated_size for r in study.planned.reuse}
    parts = pool_parts(study.planned)
    rows = [
        {
            "kind": KIND_NAMES[kind],
            "conventional": old.get(kind, 0),
            "unshared": new.get(kind, 0),
            "pool": parts[kind],
            # In the planned pool a workspace lies where activations are not.
            "shared": kind == "workspace" and new.get(kind, 0) > 0,
        }
        for kind in KINDS
    ]
    return [r for r in rows if r["conventional"] or r["unshared"] or r["pool"]]


def _allocation(study: Study) -> str:
    old, new = study.conventional, study.planned
    parts = pool_parts(old)
    largest = max(parts, key=lambda k: parts[k])
    share = 100 * parts[largest] / max(1, old.pool_size)
    words = (
        f"Conventionally every parameter, result and workspace has memory of its own: "
        f"{size_text(old.pool_size)}, of which {share:.0f}\N{NO-BREAK SPACE}% are {largest}. "
    )
    words += (
        f"That fits this EPC of {size_text(study.epc_size)}. "
        if fits(study, old)
        else f"This EPC holds {size_text(study.epc_size)}, so it pages. "
    )
    ratio = old.pool_size / max(1, new.pool_size)
    return words + (
        f"The planned pool is {times_text(ratio)} smaller: places are reused, parameters streamed."
        if ratio >= 1.05
        else "The planned pool is no smaller: there is little to reuse or to stream."
    )


def _footprint(study: Study) -> str:
    given, old = study.footprint, study.conventional.pool_size
    words = []
    if given.runtime_size:
        words.append(
            f"Beside its pool an enclave takes {size_text(given.runtime_size)} for code, stacks "
            "and tables, under either plan."
        )
    words.append(
        f"The conventional pool is {old / max(1, given.darknet_size):.2f} of what the rule of "
        f"Darknet gives, {size_text(given.darknet_size)}"
    )
    if given.onnxruntime_size is None:
        return " ".join(words) + "; ONNX Runtime was not measured."
    share = old / max(1, given.onnxruntime_size)
    return (
        " ".join(words)
        + f", and {share:.2f} of what ONNX Runtime grows by, {size_text(given.onnxruntime_size)}."
    )


def _reuse(study: Study) -> str:
    plan = study.conventional
    pages = sum(c for r in plan.reuse for c in r.touch_counts.values())
    once = sum(r.touch_counts.get(1, 0) for r in plan.reuse)
    share = 100 * once / max(1, pages)
    missed, planned = predicted(study, plan), predicted(study, study.planned)
    return (
        f"Of the {size_text(pages * PAGE_SIZE)} that a conventional prediction touches, "
        f"{share:.0f}\N{NO-BREAK SPACE}% are used once and not again before the next prediction. "
        "An EPC is of use only for what is used again soon: in this one the "
        f"{count_text(pages)} pages miss {_times(missed)} per prediction. Those of the planned "
        f"pool, used over and over, miss {_times(planned)}."
    )


def _times(count: float) -> str:
    return f"{count_text(count)} times" if round(count) else "not at all"


def _near_share(plan: PlanAnalysis) -> str:
    """Share of a plan's touches too near to be drawn."""
    near = sum(c for r in plan.reuse for b, c in r.distances.items() if b < FIRST_BIN)
    return f"{100 * near / max(1, plan.touch_count):.0f}\N{NO-BREAK SPACE}%"


def _latency(study: Study) -> str:
    points = [p for p in study.latency if p.policy == "planned"]
    calm = sorted(p.epc_size for p in points if p.faults < 0.5)
    slow = sorted(
        p.epc_size for p in study.latency if p.policy == "conventional" and p.faults < 0.5
    )
    words = (
        f"The planned program runs without faults from an EPC of {size_text(calm[0])} on"
        if calm
        else "The planned program faulted at every size that was measured"
    )
    other = (
        f"the conventional one from {size_text(slow[0])} on."
        if slow
        else "the conventional one faulted at every size that was measured."
    )
    return f"{words}, {other}"


def _latency_rows(study: Study) -> list[dict[str, Any]]:
    rows = []
    for size in sorted({p.epc_size for p in study.latency}):
        slow, fast = (at_epc(study.latency, policy, size) for policy in POLICIES)
        rows.append(
            {
                "epc_size": size,
                "here": size == study.epc_size,
                "conventional": time_text(slow.median_ms) if slow else NONE,
                "planned": time_text(fast.median_ms) if fast else NONE,
                "ratio": f"{slow.median_ms / fast.median_ms:.1f} {CROSS}"
                if slow and fast
                else NONE,
            }
        )
    return rows


def _tenants(study: Study) -> str:
    if not study.tenants:
        return ""
    words = []
    for policy in POLICIES:
        ratio = collapse(study.tenants, policy)
        if ratio is None:
            continue
        most = max(p.tenant_count for p in study.tenants if p.policy == policy)
        words.append(f"{most} {policy} tenants together do {ratio:.2g} times the work of one")
    sentences = ["; ".join(words)] if words else []
    held = tenants_that_fit(study, study.planned)
    if held < max(p.tenant_count for p in study.tenants):
        sentences.append(f"Of the planned ones {held or 'none'} fit at once; more page as well")
    sentences.append(f"This machine has {study.machine.core_count} cores")
    return " ".join(f"{sentence}." for sentence in sentences)


def _tenant_rows(study: Study) -> list[dict[str, Any]]:
    by_key = {(p.policy, p.tenant_count): p for p in study.tenants}
    counts = sorted({p.tenant_count for p in study.tenants})
    return [{"count": n, "points": [by_key.get((p, n)) for p in POLICIES]} for n in counts]


def _budget(study: Study) -> str:
    points = sorted(study.budget_latency, key=lambda p: p.pool_size)
    if len(points) < 2:
        return ""
    first, last = points[0], points[-1]
    saved = first.median_ms - last.median_ms
    words = (
        f"From {size_text(first.pool_size)}, everything streamed, to {size_text(last.pool_size)}: "
        f"{time_text(first.median_ms)} and {time_text(last.median_ms)}. "
    )
    if saved <= 0.02 * first.median_ms:
        return words + "More memory buys next to nothing."
    share = 100 * saved / first.median_ms
    return words + (
        "Decrypting parameters at every prediction costs "
        f"{share:.0f}\N{NO-BREAK SPACE}% of the time."
    )


def _family(row: LayerRow) -> tuple[object, ...]:
    """What the same instruction has in common under both plans, whichever kernel it is given."""
    name = "conv" if row.mnemonic == "winograd" else row.mnemonic
    return name, row.shape, row.parameter_size


def join_layers(
    old: Sequence[LayerRow], new: Sequence[LayerRow]
) -> list[tuple[LayerRow | None, LayerRow | None]]:
    """The rows of two programs in order, those of the same instruction together."""
    keys = [[_family(row) for row in rows] for rows in (old, new)]
    joined: list[tuple[LayerRow | None, LayerRow | None]] = []
    matcher = SequenceMatcher(None, keys[0], keys[1], autojunk=False)
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            joined += zip(old[a:b], new[c:d], strict=True)
        else:
            joined += [(row, None) for row in old[a:b]]
            joined += [(None, row) for row in new[c:d]]
    return joined


def _layers(study: Study) -> dict[str, list[dict[str, Any]]]:
    pairs = join_layers(study.conventional.layers, study.planned.layers)
    rows = list(enumerate(pairs))

    def cost(row: tuple[int, tuple[LayerRow | None, LayerRow | None]]) -> tuple[float, float]:
        there = [r for r in row[1] if r is not None]
        return max(r.miss_count for r in there), max(r.microseconds for r in there)

    costly = sorted(rows, key=cost, reverse=True)
    top, rest = costly[:TOP_COUNT], sorted(costly[TOP_COUNT:])
    return {"top": [_layer(p) for _, p in top], "rest": [_layer(p) for _, p in rest]}


def _layer(pair: tuple[LayerRow | None, LayerRow | None]) -> dict[str, Any]:
    old, new = pair
    either = new or old
    assert either is not None
    name = either.mnemonic
    if old and new and old.mnemonic != new.mnemonic:
        name = f"{old.mnemonic} / {new.mnemonic}"
    shape = CROSS.join(str(n) for n in either.shape)
    return {
        "number": either.index,
        "name": f"{name} {shape}".strip(),
        "parameters": mib_cell(either.parameter_size),
        "plans": [_cell(row) for row in pair],
    }


def _cell(row: LayerRow | None) -> dict[str, str] | None:
    if row is None:
        return None
    touched = row.parameter_size + row.read_size + row.written_size + row.workspace_size
    return {
        "touched": mib_cell(touched),
        "misses": count_text(row.miss_count) if row.miss_count else "0",
        "time": f"{row.microseconds / 1000:.2f}" if row.microseconds else NONE,
    }


def _layers_text(study: Study) -> str:
    joined = join_layers(study.conventional.layers, study.planned.layers)
    words = (
        "Costliest first, by misses in an LRU memory of this EPC and then by time. Parameters and "
        "touched memory (parameters, operands, results, workspace) in MiB"
    )
    timed = any(r.microseconds for p in (study.conventional, study.planned) for r in p.layers)
    words += ", time in ms with everything in plain memory. " if timed else ". "
    both = sum(a is not None and b is not None for a, b in joined)
    if both < len(joined):
        words += (
            f"{both} of {len(joined)} rows are one instruction under both plans; "
            "the others are in one of them only."
        )
    return words.strip()


def _facts(study: Study) -> list[tuple[str, str]]:
    machine = study.machine
    faults = "" if study.unmeasured is None else " (not emulated)"
    return [
        ("When", f"{datetime.fromisoformat(machine.date):%Y-%m-%d %H:%M} UTC"),
        ("Vessels", machine.vessels_version),
        ("Processor", f"{machine.cpu}, {machine.core_count} cores"),
        ("Kernel", machine.kernel),
        ("Instruction set", machine.isa or "not known: nothing was run"),
        ("Threads", f"{study.thread_count} for each enclave"),
        ("EPC", f"{size_text(study.epc_size)}{faults}"),
    ]


def _padding(study: Study) -> str:
    cost = study.fault_cost
    if cost is None:
        return ""
    total = cost.fault_ns + cost.padding_ns
    if cost.padding_ns > 0:
        return (
            f"Here {cost.padding_ns / 1000:.3g} µs of waiting were added to every fault, so that "
            f"it costs {total / 1000:.3g} µs: latencies under paging are stated, not only measured."
        )
    if total < 10_000:
        return (
            "Nothing was added here: on such hardware paging would cost more than the report shows."
        )
    if total > 13_400:
        return "A fault costs more here: on such hardware paging would cost less than shown."
    return "A fault costs about as much here, with nothing added."


def _agreement(study: Study) -> str:
    off = [p for p in study.latency if beyond_agreement(p)]
    words = (
        "Faults per steady prediction, as the emulator counts them, against a simulation of its "
        "policy over the analysed trace, and against exact LRU. "
    )
    total = len(study.latency)
    if not off:
        return words + (
            f"All {total} points agree with the simulation within 10 % or one batch of 16 pages."
        )
    places = ", ".join(f"{p.policy} at {size_text(p.epc_size)}" for p in off)
    more = sum(p.faults > p.predicted_policy for p in off)
    side = "more" if more == len(off) else "fewer" if more == 0 else "partly more, partly fewer"
    return words + (
        f"{total - len(off)} of {total} points agree with the simulation within 10 % or one batch "
        f"of 16 pages. Beyond it: {places}, with {side} faults than predicted. There the order of "
        "touches inside an instruction, which the analysis models and does not record, decides "
        "what is evicted."
    )


def _agreement_rows(study: Study) -> list[dict[str, Any]]:
    def difference(measured: float, expected: int) -> str:
        if expected == 0:
            return "0\N{NO-BREAK SPACE}%" if measured < 0.5 else f"+{count_text(measured)}"
        share = 100 * (measured - expected) / expected
        if abs(share) < 0.05:
            return "0\N{NO-BREAK SPACE}%"
        return f"{share:+.1f}\N{NO-BREAK SPACE}%".replace("-", "\N{MINUS SIGN}")

    return [
        {
            "point": p,
            "off": beyond_agreement(p),
            "policy": difference(p.faults, p.predicted_policy),
            "lru": difference(p.faults, p.predicted_lru),
        }
        for p in sorted(study.latency, key=lambda p: (p.policy, p.epc_size))
    ]

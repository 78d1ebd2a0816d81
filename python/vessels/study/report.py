"""The report: a study as one HTML page that needs nothing but itself.

No script, no network, no file beside it. Names of models, instructions and machines are text
from elsewhere: the template escapes every value, and only figures go in as markup.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vessels.files import write_text
from vessels.study import maps, plots, tables, wording
from vessels.study.result import PAGE_SIZE, PlanAnalysis, Study
from vessels.study.svg import inline

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_HERE = Path(__file__).parent
_CSS = "report.css"
_TEMPLATE = "report.html.j2"


def write(study: Study, output: Path) -> None:
    """Write the report of ``study`` to ``output``, whole or not at all.

    Raises :class:`~vessels.errors.OutputError`.
    """
    write_text(output, render(study))


def render(study: Study) -> str:
    """The page as text; equal studies give equal pages."""
    # Rare, and slow to import.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined
    )
    environment.filters.update(
        size=wording.size_text,
        mib=wording.mib_cell,
        count=wording.count_text,
        time=wording.time_text,
        micro=wording.micro_text,
        rate=wording.rate_text,
    )
    values = tables.values(study)
    figures = {name: Markup(svg) for name, svg in _figures(study).items()}
    css = Markup(_HERE.joinpath(_CSS).read_text(encoding="utf-8"))
    return environment.get_template(_TEMPLATE).render(
        study=study, plots=figures, css=css, page=PAGE_SIZE, **values
    )


def _figures(study: Study) -> dict[str, str]:
    """Every plot the page shows, by the name the template knows it by."""
    old, new = study.conventional, study.planned
    pool_part = max(PAGE_SIZE, study.epc_size - study.footprint.runtime_size)

    def of_plan(
        draw: Callable[..., Figure], plan: PlanAnalysis, **more: Any
    ) -> Callable[[], Figure]:
        return lambda: draw(plan, **more)

    drawings: dict[str, tuple[Callable[[], Figure], str, str]] = {
        "allocation": (
            lambda: plots.allocation(study),
            "Memory allocated, by kind",
            f"Bars. Conventional plan: {wording.size_text(old.pool_size)}; planned: "
            f"{wording.size_text(new.pool_size)}; EPC: {wording.size_text(study.epc_size)}.",
        ),
        "maps": (
            lambda: maps.memory_maps(study),
            "Memory maps of both plans to one scale",
            f"The conventional pool of {wording.size_text(old.pool_size)} beside the planned one "
            f"of {wording.size_text(new.pool_size)}; rectangles are buffers over their lifetimes.",
        ),
        "map": (
            lambda: maps.memory_map(new),
            "Memory map of the planned pool, magnified",
            "Rectangles are buffers: their lifetime in instructions across, their place upwards.",
        ),
        "miss_ratio": (
            lambda: plots.miss_ratio(study),
            "LRU miss ratio over the size of the EPC",
            "One falling curve for the conventional plan, and one for each planned one.",
        ),
        "miss_count": (
            lambda: plots.miss_count(study),
            "Misses per prediction over the size of the EPC",
            f"In this EPC the conventional plan misses {wording.predicted(study, old)} times, the "
            f"planned one {wording.predicted(study, new)} times.",
        ),
    }
    for name, plan in (("conventional", old), ("planned", new)):
        drawings[f"uses_{name}"] = (
            of_plan(plots.uses, plan),
            f"Uses of a page, {name} plan",
            "For each kind of memory, the shares of its pages used once, twice and more often.",
        )
        drawings[f"distances_{name}"] = (
            of_plan(plots.distances, plan, pool_part=pool_part, like=(old, new)),
            f"Reuse distances, {name} plan",
            f"{wording.predicted(study, plan)} of {plan.touch_count} touches lie beyond the EPC.",
        )
    if study.latency:
        drawings["latency"] = (
            lambda: plots.latency(study.latency, study.peer, study.epc_size),
            "Latency over the size of the EPC",
            "The table beside it has the values.",
        )
    if study.tenants:
        drawings["throughput"] = (
            lambda: plots.throughput(study.tenants),
            "Throughput over tenants",
            "The table beside it has the values.",
        )
    if study.budget_latency:
        drawings["budget_latency"] = (
            lambda: plots.budget_latency(study.budget_latency),
            "Latency over the size of the pool",
            "The table beside it has the values.",
        )
    return {
        name: inline(draw(), name.replace("_", "-"), title, description)
        for name, (draw, title, description) in drawings.items()
    }

"""The report: complete, self-contained, safe against any name, and true to the study."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.study_example import MIB, RUNTIME_SIZE, example, without_emulator
from vessels.errors import OutputError
from vessels.study import maps, network_plots, plots, report, wording
from vessels.study.result import LatencyPoint, LayerRow, Study
from vessels.study.svg import PALETTE, inline, save, style
from vessels.study.tables import join_layers, values
from vessels.study.wording import consequence, verdict

HOSTILE = '</title><script>alert("x")</script><img src=x onerror=alert(1)> & $\\frac{1}{2}$'


@pytest.fixture(scope="module")
def study() -> Study:
    return example()


@pytest.fixture(scope="module")
def text(study: Study) -> str:
    return report.render(study)


class Page(HTMLParser):
    """The elements and the text of a page; fails on tags that do not close."""

    VOID = frozenset({"meta", "br"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def plain(text: str) -> str:
    """``text`` with ordinary spaces."""
    return " ".join(text.split())


def test_page_needs_nothing_but_itself(text: str) -> None:
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "img", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "data"):
            assert (attributes.get(name) or "#").startswith("#")
        assert tag == "svg" or "xmlns" not in attributes
    assert set(re.findall(r"url\(([^)]*)", text)) <= {f"#{i}" for i in ids(page)}
    assert "@import" not in text
    assert "http:" not in text and "https:" not in text


def ids(page: Page) -> list[str]:
    return [i for _, attributes in page.tags if (i := attributes.get("id"))]


def test_ids_are_unique_and_references_lead_somewhere(text: str) -> None:
    page = Page(text)
    assert len(ids(page)) == len(set(ids(page)))
    for tag, attributes in page.tags:
        wanted = (attributes.get("aria-labelledby") or "").split()
        if tag == "use":
            wanted.append((attributes.get("href") or "").removeprefix("#"))
        assert set(wanted) <= set(ids(page))
    figures = page.named("svg")
    assert len(figures) == 12
    assert all(f["role"] == "img" and f["aria-labelledby"] and f["viewbox"] for f in figures)
    assert not any("width" in f or "height" in f for f in figures)


def test_page_has_every_part_in_order(study: Study, text: str) -> None:
    text = Page(text).text
    headings = [
        "First cause: large allocation",
        "Second cause: low reusability",
        "The memory maps",
        "Misses over the size of the EPC",
        "Latency over the size of the EPC",
        "Throughput over tenants",
        "Latency over the plan’s memory budget",  # noqa: RUF001
        "Layer by layer",
        "How it was measured",
        "Measured against predicted",
        "Words used here",
    ]
    places = [text.index(h) for h in headings]
    assert places == sorted(places)
    assert plain(verdict(study)) in text and plain(consequence(study)) in text
    assert text.index(plain(verdict(study))) < places[0]
    assert "2026-11-23 01:00 UTC" in text and study.machine.cpu in text
    assert "10.2 µs" in text and "40 000 cycles" in text


def test_hostile_names_stay_text(study: Study) -> None:
    row = replace(study.planned.layers[0], mnemonic=HOSTILE, miss_count=10**9)
    planned = replace(study.planned, layers=(row, *study.planned.layers[1:]))
    bad = replace(
        study,
        model=HOSTILE,
        planned=planned,
        machine=replace(study.machine, cpu=HOSTILE),
        notes=(HOSTILE,),
    )
    text = report.render(bad)
    page = Page(text)
    assert not page.named("script") and not page.named("img")
    assert "<script" not in text and "<img" not in text
    assert page.text.count(HOSTILE) >= 5


def test_without_an_emulator(study: Study) -> None:
    text = Page(report.render(without_emulator(study))).text
    assert "this kernel has no userfaultfd." in text
    assert "Latency over the size of the EPC" not in text
    assert "Throughput over tenants" not in text
    assert "times were not measured" in text
    assert "Measured against predicted" not in text


@pytest.mark.filterwarnings("error")
def test_bare_analysis_of_a_tiny_network() -> None:
    """Nothing measured, nothing resident, fewer layers than the table has room for."""
    small = example(measured=False, layer_count=4, width=16, epc_size=8 * MIB)
    bare = replace(
        small,
        footprint=replace(small.footprint, onnxruntime_size=None, runtime_size=0),
        budgets=(),
        budget_latency=(),
        machine=replace(small.machine, isa=""),
    )
    text = Page(report.render(bare)).text
    assert "ONNX Runtime was not measured" in text
    assert "by their pools alone" in text
    assert "The other" not in text


def test_long_tables_fold(study: Study, text: str) -> None:
    page = Page(text)
    rest = len(study.planned.layers) - 40
    assert len(page.named("details")) == 1
    assert f"The other {rest} instructions" in page.text


def test_written_whole_or_not_at_all(study: Study, text: str, tmp_path: Path) -> None:
    """And an equal study gives an equal page."""
    output = tmp_path / "report.html"
    output.write_text("before")
    report.write(example(), output)
    assert output.read_text(encoding="utf-8") == text
    with pytest.raises(OutputError):
        report.write(study, tmp_path / "missing" / "report.html")
    assert list(tmp_path.iterdir()) == [output]


# What follows from a study.


def test_verdict_paging_against_none(study: Study) -> None:
    assert plain(verdict(study)) == (
        "example-50 needs 295 MiB the conventional way, 3.2 times the 93 MiB of this EPC: each "
        "prediction pages 77 800 times and takes 964 ms; planned by Vessels it needs 7.2 MiB, "
        "does not page, and takes 213 ms: 4.5 times as fast."
    )
    assert plain(consequence(study)) == (
        "An EPC of 93 MiB holds 8 such environments at once without paging; "
        "of conventional ones it holds none."
    )


def test_verdict_where_both_fit() -> None:
    study = example(epc_size=400 * MIB)
    assert plain(verdict(study)) == (
        "example-50 needs 295 MiB the conventional way, which fits the 400 MiB of this EPC, and "
        "takes 194 ms; planned by Vessels it needs 7.2 MiB, does not page, and takes 213 ms: "
        "1.1 times as long, the price of decrypting parameters every time."
    )
    assert "of conventional ones it holds 1." in plain(consequence(study))


def test_verdict_where_neither_fits() -> None:
    study = example(epc_size=8 * MIB)
    words = plain(verdict(study))
    assert (
        "which does not fit either: it pages 4 090 times and takes 253 ms: 3.8 times as fast."
        in words
    )
    assert "a larger EPC is needed" in consequence(study)


def test_verdict_where_only_the_enclave_itself_is_too_much(study: Study) -> None:
    near = replace(study, epc_size=study.conventional.pool_size + RUNTIME_SIZE // 2)
    assert "with the 4 MiB that the enclave itself takes" in plain(verdict(near))


def test_verdict_from_analysis_alone(study: Study) -> None:
    assert plain(verdict(without_emulator(study))) == (
        "example-50 needs 295 MiB the conventional way, 3.2 times the 93 MiB of this EPC: each "
        "prediction pages 75 600 times by the analysis; planned by Vessels it needs 7.2 MiB and "
        "does not page: 41.1 times less memory (times were not measured)."
    )


def test_verdict_where_a_pool_that_fits_pages(study: Study) -> None:
    changed = tuple(replace(p, faults=30.0) if p.policy == "planned" else p for p in study.latency)
    assert "it needs 7.2 MiB, pages 30 times and takes" in plain(
        verdict(replace(study, latency=changed))
    )


@pytest.mark.parametrize(
    ("faults", "predicted", "beyond"),
    [(1000, 1000, False), (1100, 1000, False), (1101, 1000, True), (899, 1000, True),
     (16, 0, False), (17, 0, True), (0, 16, False), (40, 24, False), (41, 24, True)],
)  # fmt: skip
def test_agreement(faults: float, predicted: int, beyond: bool) -> None:
    point = LatencyPoint("planned", MIB, 1, 1, 1, 2, faults, 0, predicted, predicted)
    assert wording.beyond_agreement(point) == beyond


def test_disagreement_is_named(study: Study, text: str) -> None:
    assert "All 16 points agree" in Page(text).text
    first = study.latency[0]
    off = replace(first, faults=2.0 * first.predicted_policy)
    found = values(replace(study, latency=(off, *study.latency[1:])))
    words = plain(found["agreement_text"])
    assert "15 of 16 points agree" in words
    assert "Beyond it: conventional at 6 MiB, with more faults than predicted." in words
    assert [row["point"] for row in found["agreement_rows"] if row["off"]] == [off]


@pytest.mark.parametrize(
    ("padding", "said"),
    [(0.0, "nothing added"), (1800.0, "1.8 µs of waiting were added to every fault")],
)
def test_added_cost_is_said(study: Study, padding: float, said: str) -> None:
    assert study.fault_cost is not None
    padded = replace(study, fault_cost=replace(study.fault_cost, padding_ns=padding))
    assert said in values(padded)["padding_text"].lower()


def test_tenants_beyond_what_fits_are_said_to_page(study: Study) -> None:
    assert "more page" not in values(study)["tenants_text"]
    tight = replace(study, epc_size=24 * MIB)
    assert "Of the planned ones 2 fit at once; more page as well." in values(tight)["tenants_text"]


def test_numbers_as_text() -> None:
    cells = [wording.mib_cell(s) for s in (0, 600, MIB // 2, 93 * MIB)]
    assert cells == [wording.NONE, "<0.01", "0.50", "93.00"]
    sizes = [0, 50 << 10, MIB, int(6.66 * MIB), 93 * MIB, int(197.8 * MIB)]
    assert [plain(wording.size_text(s)) for s in sizes] == [
        "0 MiB", "50 KiB", "1 MiB", "6.7 MiB", "93 MiB", "198 MiB",
    ]  # fmt: skip
    assert [plain(wording.about_text(n)) for n in (0, 3.25, 812.4, 44971, 999_999)] == [
        "0", "3.25", "812", "45 000", "1 000 000",
    ]  # fmt: skip
    assert [plain(wording.time_text(t)) for t in (0.634, 19.4, 69.2, 812, 1240)] == [
        "0.63 ms", "19.4 ms", "69 ms", "812 ms", "1.24 s",
    ]  # fmt: skip
    assert [wording.rate_text(r) for r in (0, 0.0612, 4.7, 14.23, 123.4, 1234)] == [
        "0", "0.0612", "4.70", "14.2", "123", "1234",
    ]  # fmt: skip


# The plots.


def test_every_colour_has_a_variable_in_both_themes() -> None:
    css = Path(report.__file__).with_name("report.css").read_text(encoding="utf-8")
    light, dark, printed = (b for b in re.findall(r":root \{(.*?)\}", css, re.DOTALL))
    for name, colour in PALETTE.items():
        assert f"--{name}: {colour};" in light
        assert re.search(rf"--{name}: #[0-9a-f]{{6}};", dark), name
        assert re.search(rf"--{name}: #[0-9a-f]{{6}};", printed), name
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_inline_figures_hold_no_colour_of_their_own(text: str) -> None:
    text = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-fA-F]{6}\b", text)
    assert set(re.findall(r"var\(--([a-z0-9-]+)\)", text)) <= set(PALETTE)
    assert "font-family" not in text and "DejaVu" not in text


def test_a_colour_outside_the_palette_is_a_defect() -> None:
    from matplotlib.figure import Figure

    with style():
        figure = Figure()
        figure.add_subplot().plot([0, 1], color="#123456")
    with pytest.raises(KeyError):
        inline(figure, "key", "title", "description")


def test_maps_have_one_scale(study: Study) -> None:
    left, right = maps.memory_maps(study).axes
    assert left.get_ylim() == right.get_ylim()
    assert left.get_ylim()[0] == 0
    assert left.get_ylim()[1] * MIB >= study.conventional.pool_size
    box, other = left.get_position(), right.get_position()
    assert (box.y0, box.y1) == (other.y0, other.y1)


def test_parts_add_up_to_the_pool(study: Study) -> None:
    for plan in (study.conventional, study.planned, *study.budgets):
        parts = plots.pool_parts(plan)
        assert sum(parts.values()) == plan.pool_size
        reuse = {r.kind: r.allocated_size for r in plan.reuse}
        assert parts["parameters"] == reuse["parameters"]
        if plan.policy == "conventional":
            assert parts == reuse


def test_measured_points_lie_within_the_plot(study: Study) -> None:
    (axes,) = plots.miss_count(study).axes
    (low, high), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    for point in study.latency:
        assert low <= point.epc_size / MIB <= high
        assert bottom <= point.faults <= top


def test_curves_are_those_of_the_analysis(study: Study) -> None:
    """At every EPC size a drawn curve tells what the whole curve does."""
    (axes,) = plots.miss_count(study).axes
    for plan, label in (
        (study.conventional, "conventional"),
        (study.planned, "planned, all streamed"),
    ):
        line = next(line for line in axes.get_lines() if line.get_label() == label)
        for x, y in np.asarray(line.get_xydata()):
            alone = replace(study, epc_size=round(x * MIB))
            assert wording.predicted(alone, plan) == y


@pytest.mark.filterwarnings("error")
def test_bars_over_networks(tmp_path: Path) -> None:
    files = [tmp_path / "one.svg", tmp_path / "two.svg"]
    for output in files:
        bars = network_plots.network_bars(
            ["one", "t$w$o"],
            {"conventional": [20.0, None], "planned": [6.0, 7.0]},
            label="pool (MiB)",
            reference=(93.0, "EPC 93 MiB"),
            logarithmic=True,
        )
        assert len(bars.axes[0].patches) == 3
        save(bars, output)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert "t$w$o" in files[0].read_text(encoding="utf-8")


def test_scaling_over_networks(study: Study) -> None:
    figure = network_plots.network_scaling([("one", study.tenants), ("two", study.tenants)])
    planned = np.asarray(figure.axes[0].get_lines()[1].get_ydata())
    assert planned == pytest.approx([1, 2, 2, 2])


# The table by layer.

ROWS = st.lists(
    st.builds(
        lambda name, side, size: LayerRow(0, name, (1, side), size, 1, 1, 0, 0, 0.0),
        st.sampled_from(["conv", "winograd", "map"]),
        st.integers(1, 3),
        st.integers(0, 2),
    ),
    max_size=12,
).map(lambda rows: [replace(row, index=n) for n, row in enumerate(rows)])


@given(ROWS, ROWS)
def test_layers_join_in_order_and_none_is_lost(old: list[LayerRow], new: list[LayerRow]) -> None:
    joined = join_layers(old, new)
    assert [a for a, _ in joined if a is not None] == old
    assert [b for _, b in joined if b is not None] == new
    for a, b in joined:
        if a is not None and b is not None:
            assert (a.shape, a.parameter_size) == (b.shape, b.parameter_size)


@given(ROWS)
def test_equal_programs_join_by_index(rows: list[LayerRow]) -> None:
    assert join_layers(rows, rows) == [(row, row) for row in rows]

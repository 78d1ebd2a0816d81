"""Figures as files, and as inline SVG that takes the theme and the font of the page around it.

Figures are drawn in the colours of :data:`PALETTE` and no others. In a file they stay as they
are, on white; inline each becomes the CSS variable of its name, so that one drawing looks right
in a light and in a dark page.
"""

from __future__ import annotations

import io
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vessels.files import write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = {
    "ink": "#1f2429",
    "muted": "#626b75",
    "grid": "#e3e6ea",
    "page": "#fdfdfd",
    "conventional": "#c2532d",
    "planned": "#1f6cb0",
    "budget": "#8ab3d8",
    "peer": "#80868d",
    "idle": "#eceef1",
    "parameters": "#4a78b5",
    "activations": "#e09f3e",
    "workspace": "#3f9c85",
    "staging": "#a9568f",
    "io": "#8d949c",
    "used-1": "#7a2a10",
    "used-2": "#b9582f",
    "used-3": "#db9068",
    "used-4": "#eec0a6",
    "used-5": "#f6e0d3",
}
"""Name of the CSS variable, and the colour on a light page. Hues differ in lightness too, so
that they can be told apart without seeing colours."""

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vessels",
    "text.parse_math": False,
    "font.size": 11,
    "axes.labelsize": 11,
    "axes.titlesize": 11.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.9,
    "lines.markersize": 5.5,
    "text.color": PALETTE["ink"],
    "axes.labelcolor": PALETTE["muted"],
    "axes.edgecolor": PALETTE["muted"],
    "axes.facecolor": "none",
    "axes.titlecolor": PALETTE["ink"],
    "figure.facecolor": "none",
    "grid.color": PALETTE["grid"],
    "xtick.color": PALETTE["muted"],
    "ytick.color": PALETTE["muted"],
    "xtick.labelcolor": PALETTE["muted"],
    "ytick.labelcolor": PALETTE["muted"],
}


_NAMES = {colour: name for name, colour in PALETTE.items()}
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}\b")
_FONT = re.compile(r"font:\s*([^;']*?)([\d.]+)px[^;]*")
_FAMILY = re.compile(r"font-family:[^;]*;?\s*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")
_SVG = "{http://www.w3.org/2000/svg}"
_HREF = "{http://www.w3.org/1999/xlink}href"


@contextmanager
def style() -> Iterator[None]:
    """The settings that figures are drawn and saved under."""
    # Drawing is rare and importing the library takes half a second.
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def save(figure: Figure, output: Path) -> None:
    """``figure`` as a file on white, SVG or PNG by its suffix; equal figures give equal files."""
    metadata = {"Date": None} if output.suffix == ".svg" else None
    with style():
        write_whole(
            output,
            lambda path: figure.savefig(path, dpi=150, facecolor="white", metadata=metadata),
        )


def inline(figure: Figure, key: str, title: str, description: str) -> str:
    """``figure`` as an ``<svg>`` element for an HTML page.

    ``key`` starts every id of the element, and is to be unique in the page. ``title`` and
    ``description`` are what a screen reader says.
    """
    written = io.BytesIO()
    with style():
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    root = ElementTree.fromstring(written.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    referred = {name for e in root.iter() for name in _references(e)}
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib.update(_adapted(element, key))
        if (name := element.attrib.pop("id", None)) in referred:
            element.set("id", f"{key}-{name}")
        if (target := element.attrib.pop(_HREF, None)) is not None:
            element.set("href", f"#{key}-{target.removeprefix('#')}")
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title {key}-description")
    for place, (tag, words, name) in enumerate(
        (("title", title, "title"), ("desc", description, "description"))
    ):
        element = ElementTree.Element(tag, {"id": f"{key}-{name}"})
        element.text = words
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _references(element: ElementTree.Element) -> list[str]:
    """The ids that ``element`` refers to."""
    found = [m for value in element.attrib.values() for m in _REFERENCE.findall(value)]
    target = element.get(_HREF)
    return found if target is None else [*found, target.removeprefix("#")]


def _adapted(element: ElementTree.Element, key: str) -> dict[str, str]:
    """Changed attributes: references with the key, colours as variables, the page's font."""
    changed = {
        name: _REFERENCE.sub(rf"url(#{key}-\1)", value)
        for name, value in element.attrib.items()
        if "url(#" in value
    }
    if (style := changed.get("style", element.get("style"))) is not None:
        style = _FAMILY.sub("", _FONT.sub(_font, style))
        changed["style"] = _COLOUR.sub(lambda m: f"var(--{_NAMES[m[0].lower()]})", style)
    return changed


def _font(match: re.Match[str]) -> str:
    """Size and weight of the text; the family is the page's."""
    weight = match[1].strip()
    return f"font-size: {match[2]}px" + (f"; font-weight: {weight}" if weight else "")

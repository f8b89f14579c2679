"""How pictures look, and a figure's way to SVG and PNG.

Invariant: pictures are the same on every machine (the font comes with matplotlib, and SVG text is paths) and in every
run (no time, no random ids). A colour of the palette is drawn as its light hexadecimal value; in inline SVG that value
becomes a CSS variable, so that a picture follows the page from light to dark.
"""

import io
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

COLOURS = {
    "ink": ("#1c2530", "#e8ecf1"),
    "muted": ("#5d6b7a", "#9aa7b5"),
    "grid": ("#e2e7ed", "#2e3843"),
    "train": ("#2563c9", "#6ea8ff"),
    "valid": ("#d1620a", "#ffa65c"),
    "best": ("#12805c", "#4fd1a1"),
    "stop": ("#b4232f", "#ff7b84"),
}
"""Name → its value on a light and on a dark page. The light values are distinct: they are found again in the SVG."""

LIGHT = {name: light for name, (light, _) in COLOURS.items()}
FONT = "DejaVu Sans"
MISSING = "□"

_STYLE = {
    "svg.fonttype": "path",
    "svg.hashsalt": "finetune",
    "font.family": FONT,
    "font.size": 9,
    "text.color": LIGHT["ink"],
    "text.parse_math": False,
    "axes.edgecolor": LIGHT["muted"],
    "axes.labelcolor": LIGHT["muted"],
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.limits": (-3, 6),
    "axes.formatter.useoffset": False,
    "grid.color": LIGHT["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": LIGHT["muted"],
    "ytick.color": LIGHT["muted"],
    "ytick.left": False,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
    "path.simplify": True,
    "path.simplify_threshold": 0.3,
}
_lock = threading.Lock()


@dataclass(frozen=True)
class Picture:
    """One picture, drawn."""

    name: str
    """File name without ending, and the prefix of ids in the SVG."""
    title: str
    """What it shows."""
    description: str
    """What there is to see, for those who cannot."""
    svg: str
    """Inline SVG for the page."""
    png: bytes
    """The same with its title, for elsewhere."""
    wide: bool = False
    """Whether it takes the page's whole width."""


@contextmanager
def drawing() -> Iterator[None]:
    """Our style for as long as this is open; one thread at a time, for matplotlib's settings are global."""
    with _lock, mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def to_png(figure: Figure, title: str) -> bytes:
    """The figure on white, with its title: a picture that stands alone."""
    figure.suptitle(drawable(title), x=0.01, ha="left", fontsize=11, fontweight="bold")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, facecolor="white", metadata={"Software": None})
    return buffer.getvalue()


def to_svg(figure: Figure, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element to stand in a page: ids are unique to ``name``, colours are variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    body = buffer.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", body, flags=re.DOTALL)
    body = re.sub(r"<svg[^>]*?viewBox=\"([^\"]*)\"[^>]*>", _opening(name, description), body, count=1)
    body = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", body)
    body = re.sub(r"\n\s*", "\n", body)
    for colour, light in LIGHT.items():
        body = body.replace(light, f"var(--{colour})")
    return body


def _opening(name: str, description: str) -> str:
    label = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;").replace("\\", r"\\")
    return rf'<svg class="plot" data-picture="{name}" viewBox="\1" role="img" aria-label="{label}">'


def drawable(text: str) -> str:
    """The text with a box for every character that the font lacks; matplotlib would warn and draw one as well."""
    known = get_font(findfont(FONT)).get_charmap()
    return "".join(letter if ord(letter) in known else MISSING for letter in text)


def new_axes(size: tuple[float, float]) -> tuple[Figure, Axes]:
    """An empty figure of this size in inches; what is printed at 9 points in one is so in all."""
    figure = Figure(figsize=size)
    return figure, figure.add_subplot()


def add_legend(axes: Axes) -> None:
    """Names of the lines in a row above the picture, where no curve can be."""
    handles, _ = axes.get_legend_handles_labels()
    if handles:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1, 1), ncols=6, borderaxespad=0.2, handlelength=1.4, columnspacing=1.2
        )


def new_picture(name: str, title: str, description: str, figure: Figure, *, wide: bool = False) -> Picture:
    """The figure, drawn in both forms."""
    svg = to_svg(figure, name, f"{title}. {description}")
    return Picture(name, title, description, svg, to_png(figure, title), wide)

"""One way to draw: matplotlib's SVG, made part of the page (its colours, its font, its light and dark)."""

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from abmll.experiments.html.reading import Method
from abmll.experiments.tables import printable

# Stand-ins that are unlike any colour matplotlib draws by itself; each becomes a CSS variable of the page, so that
# one figure serves light, dark and print.
INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
NUM_COLORS = 8
_METHOD_COLORS = [f"#0102{16 + i:02x}" for i in range(NUM_COLORS)]
_VARIABLES = {
    **{INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)", PAPER: "var(--paper)"},
    **{color: f"var(--m{i})" for i, color in enumerate(_METHOD_COLORS)},
}
# 8 colours, 7 markers, 3 dashes: without a common factor, so that a ninth method looks like none of the first eight
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DASHES: tuple[Any, ...] = ((None, None), (5, 1.5), (2, 1.2))

# decorates every function that makes a figure and returns its SVG
styled = matplotlib.rc_context(fname=str(Path(__file__).with_name("figure.mplstyle")))


def canvas(size: tuple[float, float]) -> Figure:
    """An empty figure of ``size`` CSS pixels."""
    return Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")


def color_of(index: int) -> str:
    """The colour of the method with this index, the same in every figure and table."""
    return _METHOD_COLORS[index % NUM_COLORS]


def marks(index: int) -> dict[str, Any]:
    """The shape of the points of the method with this index."""
    return {"marker": _MARKERS[index % len(_MARKERS)], "markeredgecolor": PAPER, "markeredgewidth": 0.8}


def draw_line(ax: Axes, method: Method, x: Any, y: Any, text: str, **style: Any) -> Line2D:
    """A method's line in its colour and dashes; ``text`` is what ``label_ends`` writes at its end."""
    color, dashes = color_of(method.index), _DASHES[method.index % len(_DASHES)]
    [line] = ax.plot(x, y, label=text, linewidth=1.8, color=color, dashes=dashes, **style)
    return line


def label_ends(ax: Axes, lines: Sequence[Line2D], x: float, height: float) -> None:
    """Write each line's text to the right of its last point at ``x``, moved apart where they would overlap.

    ``height`` is the figure's, in points, of which the axes take about three quarters.
    """
    low, high = ax.get_ylim()
    values = [np.asarray(line.get_ydata(), dtype=float) for line in lines]
    ends = [float(one[np.isfinite(one)][-1]) for one in values]
    for y, line in zip(spread(ends, 13 / (0.75 * height) * (high - low), low, high), lines, strict=True):
        ax.annotate(
            printable(str(line.get_label())), (x, y), (6, 0), textcoords="offset points", va="center", fontsize=10,
            color=line.get_color(), annotation_clip=False,
        )  # fmt: skip


def inline_svg(figure: Figure, name: str, title: str, description: str) -> Markup:
    """The figure as an ``<svg>`` for the page; its text is part of the page and escaped.

    ``name`` must be unique on the page. The result is a pure function of the arguments: no dates, no random ids.
    """
    with matplotlib.rc_context({"svg.hashsalt": name}), warnings.catch_warnings():
        # the browser has the fonts: matplotlib need not know a script to leave its text to the page
        warnings.filterwarnings("ignore", message="(?s)Glyph .* missing from font")
        warnings.filterwarnings("ignore", message="Matplotlib currently does not support .* natively")
        buffer = io.StringIO()
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    body = svg[svg.index("</defs>", svg.index("<style")) + len("</defs>") : svg.rindex("</svg>")]
    body = re.sub("<[^>]*>", lambda tag: _adopt(tag[0], name), body)  # tags only: text is not ours to change
    width, height = (f"{72 * side:g}" for side in figure.get_size_inches())
    return Markup(
        f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" role="img" '
        f'viewBox="0 0 {width} {height}" aria-labelledby="{name}-title {name}-desc">'
        f'<title id="{name}-title">{escape(printable(title))}</title>'
        f'<desc id="{name}-desc">{escape(printable(description))}</desc>{body}</svg>'
    )


def standalone(svg: Markup) -> str:
    """A figure of ``inline_svg`` as an image of its own: with the colours and the font that the page would give it."""
    css = Path(__file__).with_name("style.css").read_text(encoding="utf-8")
    palette = css[: css.index("* {")]  # the variables, of light and of dark
    font = re.search(r"system-ui[^;]*", css)
    assert font is not None
    style = f"{palette}svg {{ background: var(--paper); font-family: {font[0]}; }}"
    return str(svg).replace(">", f"><style>{style}</style>", 1)


def _adopt(tag: str, name: str) -> str:
    """One tag of matplotlib's: the page's font, the page's colours, and ids that are unique on the page."""
    tag = re.sub(r'^<g id="[^"]*"', "<g", tag)  # nothing refers to a group
    tag = re.sub(r"font-family: [^;\"]*; ?", "", tag)
    tag = re.sub(r"(id=\"|url\(#|href=\"#)", rf"\g<1>{name}-", tag)
    return re.sub("#0102[0-9a-f]{2}", lambda color: _VARIABLES.get(color[0], color[0]), tag)


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """The positions moved as little as a sweep can so that they lie at least ``gap`` apart within [low, high]."""
    order = np.argsort(positions, kind="stable")
    steps = np.arange(len(positions)) * min(gap, (high - low) / max(len(positions) - 1, 1))
    placed = np.clip(np.asarray(positions, dtype=float)[order], low, high)
    placed = np.maximum.accumulate(placed - steps) + steps  # upwards, away from those below
    result = np.empty(len(placed))
    result[order] = np.minimum(placed, high - steps[::-1])  # downwards, where that left the limits
    return result.tolist()


def shorten(text: str, length: int) -> str:
    """The text with its middle left out where it is longer than ``length``."""
    text = printable(text)
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"

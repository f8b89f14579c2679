"""An experiment's plots as SVG: curves with bands over seeds, differences with intervals, a search's proposals.

Colours are Okabe and Ito's, which people with any colour vision tell apart (https://jfly.uni-koeln.de/color/), made
darker where text in them would be hard to read; the page has them as variables, for light and dark.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from finetune_cli import words

COLOURS = tuple(f"var(--v{number})" for number in range(8))
SHOWN = len(COLOURS)
"""Curves in one picture, at most."""
_DASHES = ("", "7 4", "2 3", "9 3 2 3")
"""Curves differ in more than colour."""
_WIDTH, _HEIGHT = 760, 360
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 166, 14, 44
_ROW = 34
_NAMES_WIDTH = 96
_EDGE = 4
_DOTS = 40
"""Evaluations of a curve that are marked; more of them would be a thick line."""
_NAME, _WORD = 18, 21
"""Characters that are drawn of a curve's name, and of another text."""
_TICKS = 6
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Axis:
    """Values → places on a picture, in pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    whole: bool = False
    """There is nothing between whole numbers."""

    def place(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (math.log10(one) for one in (self.low, self.high, value)) if self.log else (
            self.low, self.high, value,
        )  # fmt: skip
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round values along it, a few."""
        step = max(_round_step((self.high - self.low) / _TICKS), 1 if self.whole else 0)
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def curves(by_variant: Mapping[str, Sequence[Points]], metric: str) -> str:
    """The metric by step: each variant's mean over its seeds in a band of one standard deviation; empty without any."""
    bands = {name: band(courses) for name, courses in by_variant.items()}
    bands = {name: points for name, points in bands.items() if points}
    if not bands:
        return ""
    steps = [step for points in bands.values() for step, _, _ in points]
    ends = [
        value for points in bands.values() for _, mean, spread in points for value in (mean - spread, mean + spread)
    ]
    x = Axis(min(steps), max(steps), _LEFT, _WIDTH - _RIGHT, whole=True)
    y = _padded(ends, _HEIGHT - _BOTTOM, _TOP)
    parts = [*_grid(x, y, "optimizer step", metric)]
    for number, points in enumerate(bands.values()):
        parts += _band(x, y, points, COLOURS[number % len(COLOURS)], _DASHES[number % len(_DASHES)])
    parts += _names([(name, y.place(points[-1][1])) for name, points in bands.items()])
    told = "; ".join(f"{name} ends at {words.number(points[-1][1])}" for name, points in bands.items())
    return _svg(_HEIGHT, f"{metric} by step: {told}", parts)


def band(courses: Sequence[Points]) -> list[tuple[float, float, float]]:
    """(step, mean, standard deviation) at the steps that at least half of the courses have."""
    at: dict[float, list[float]] = {}
    for course in courses:
        for step, value in course:
            at.setdefault(step, []).append(value)
    shared = {step: values for step, values in at.items() if 2 * len(values) >= len(courses)}
    return [
        (step, statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
        for step, values in sorted(shared.items())
    ]


def differences(rows: Sequence[tuple[str, float, float | None, float | None, str]], first: str, metric: str) -> str:
    """Each variant's difference to the first with its interval: (name, mean, low, high, verdict); empty without any."""
    if not rows:
        return ""
    ends = [0.0, *(value for _, *numbers, _ in rows for value in numbers if value is not None)]
    height = _TOP + _ROW * len(rows) + _BOTTOM
    x = _padded(ends, _LEFT + _NAMES_WIDTH, _WIDTH - 40)
    parts = [*_upright(x, height), _line(x.place(0), _TOP, x.place(0), height - _BOTTOM, "zero")]
    parts.append(_label((x.start + x.end) / 2, height - 6, f"{metric} less that of {first}"))
    for number, (name, mean, low, high, verdict) in enumerate(rows):
        parts += _point(x, number, name, (mean, low, high), verdict)
    told = "; ".join(f"{name} {mean:+.3g} ({verdict})" for name, mean, _, _, verdict in rows)
    return _svg(height, f"Differences to {first}: {told}", parts)


def estimates(rows: Sequence[tuple[str, float, float | None, float | None]], metric: str) -> str:
    """Each one's value with its interval: (name, value, low, high); empty without any."""
    if not rows:
        return ""
    x = _padded(
        [value for _, *numbers in rows for value in numbers if value is not None], _LEFT + _NAMES_WIDTH, _WIDTH - 40
    )
    height = _TOP + _ROW * len(rows) + _BOTTOM
    parts = [*_upright(x, height), _label((x.start + x.end) / 2, height - 6, metric)]
    for number, (name, value, low, high) in enumerate(rows):
        parts += _point(x, number, name, (value, low, high), "unknown")
    told = "; ".join(f"{name} {words.number(value)}" for name, value, _, _ in rows)
    return _svg(height, f"{metric}: {told}", parts)


def _upright(x: Axis, height: float) -> Iterator[str]:
    """A grid of values below which there are rows."""
    bottom = height - _BOTTOM
    for tick in x.ticks():
        yield _line(x.place(tick), _TOP, x.place(tick), bottom, "grid")
        yield _text(x.place(tick), bottom + 18, words.number(tick), "middle", "tick")


def _point(
    x: Axis, number: int, name: str, value: tuple[float, float | None, float | None], kind: str
) -> Iterator[str]:
    """A row: its name, and a value with its interval."""
    (middle, low, high), y = value, _TOP + _ROW * (number + 0.5)
    yield _text(x.start - 10, y + 4, name, "end")
    if low is not None and high is not None:
        yield _line(x.place(low), y, x.place(high), y, f"interval {kind}")
    yield f'<circle cx="{x.place(middle):.1f}" cy="{y:.1f}" r="5" class="{escape(kind)}"/>'


def proposals(axes: Sequence[tuple[str, Sequence[float | str], bool]], values: Sequence[float], best: int) -> str:
    """Parallel coordinates of a search: (field, each proposal's value, whether by orders of magnitude), objective last.

    Args:
        axes: The fields.
        values: The objective of each proposal.
        best: Which one is the best.
    """
    if not values:
        return ""
    columns = [*axes, ("objective", list(values), False)]
    top, bottom = 40, _HEIGHT - 30
    places = [_LEFT + number * (_WIDTH - 2 * _LEFT) / (len(columns) - 1) for number in range(len(columns))]
    scales = [_scale(found, bottom, top, log=log) for _, found, log in columns]
    parts: list[str] = []
    told: list[str] = []
    heads = [(_EDGE, "start"), *((place, "middle") for place in places[1:-1]), (_WIDTH - _EDGE, "end")]
    for place, head, (name, _, _), (axis, labels) in zip(places, heads, columns, scales, strict=True):
        parts += [_line(place, top, place, bottom, "axis"), _text(head[0], 22, _last_of(name), head[1])]
        aside, anchor = (-6, "end") if place == places[-1] else (6, "start")
        told += [_text(place + aside, axis.place(at) + 4, label, anchor) for at, label in labels]
    for number in [*(one for one in range(len(values)) if one != best), best]:
        points = [
            (place, axis.place(_as_number(found[number], found)))
            for place, (_, found, _), (axis, _) in zip(places, columns, scales, strict=True)
        ]
        parts.append(_path(points, "proposal best" if number == best else "proposal"))
    return _svg(_HEIGHT, f"{len(values)} proposals; the best has {words.number(values[best])}", [*parts, *told])


def importance(rows: Sequence[tuple[str, float, float]]) -> str:
    """How much fields mattered, as bars, with marks of what chance gives: (field, value, chance); empty without any."""
    if not rows:
        return ""
    height = _TOP + _ROW * len(rows) + _BOTTOM
    x = Axis(0, max(max(value, chance) for _, value, chance in rows) or 1.0, _LEFT + _NAMES_WIDTH, _WIDTH - 40)
    parts = [*_upright(x, height)]
    parts.append(_label((x.start + x.end) / 2, height - 6, "importance (PED-ANOVA, no unit)"))
    for number, (field, value, chance) in enumerate(rows):
        y, kind = _TOP + _ROW * (number + 0.5), "bar told" if value > chance else "bar"
        parts.append(_text(x.start - 10, y + 4, _last_of(field), "end"))
        wide = x.place(value) - x.start
        parts.append(f'<rect x="{x.start:.1f}" y="{y - 9:.1f}" width="{wide:.1f}" height="18" class="{kind}"/>')
        parts.append(_line(x.place(chance), y - 13, x.place(chance), y + 13, "chance"))
    told = "; ".join(f"{field} {words.number(value)}, chance {words.number(chance)}" for field, value, chance in rows)
    return _svg(height, f"Importance: {told}", parts)


def _last_of(field: str) -> str:
    """The end of a field's path: ``strategy.learningRate.value`` → ``learningRate.value``."""
    return ".".join(field.split(".")[-2:])


def _label(x: float, y: float, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="middle" class="label">{escape(text)}</text>'


def _scale(
    found: Sequence[float | str], start: float, end: float, *, log: bool
) -> tuple[Axis, list[tuple[float, str]]]:
    if any(isinstance(one, str) for one in found):
        names = sorted({str(one) for one in found})
        return Axis(0, max(1, len(names) - 1), start, end), [(at, name) for at, name in enumerate(names)]
    numbers = [float(one) for one in found]
    axis = Axis(min(numbers), max(numbers), start, end, log=log and min(numbers) > 0)
    return axis, [(one, words.number(one)) for one in dict.fromkeys((axis.low, axis.high))]


def _as_number(value: float | str, found: Sequence[float | str]) -> float:
    if any(isinstance(one, str) for one in found):
        return sorted({str(one) for one in found}).index(str(value))
    return float(value)


def _padded(values: Sequence[float], start: float, end: float) -> Axis:
    low, high = min(values), max(values)
    pad = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return Axis(low - pad, high + pad, start, end)


def _round_step(step: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= step * (1 - 1e-9))


def _grid(x: Axis, y: Axis, below: str, beside: str) -> Iterator[str]:
    for tick in y.ticks():
        yield _line(x.start, y.place(tick), x.end, y.place(tick), "grid")
        yield _text(x.start - 8, y.place(tick) + 4, words.number(tick), "end", "tick")
    for tick in x.ticks():
        yield _text(x.place(tick), y.start + 18, words.number(tick), "middle", "tick")
    yield _line(x.start, y.start, x.end, y.start, "axis")
    yield _label((x.start + x.end) / 2, y.start + 36, below)
    turned = f"translate(16 {(y.start + y.end) / 2:.1f}) rotate(-90)"
    yield f'<text class="label" transform="{turned}" text-anchor="middle">{escape(beside)}</text>'


def _band(x: Axis, y: Axis, points: Sequence[tuple[float, float, float]], colour: str, dashes: str) -> Iterator[str]:
    upper = [(x.place(step), y.place(mean + spread)) for step, mean, spread in points]
    lower = [(x.place(step), y.place(mean - spread)) for step, mean, spread in reversed(points)]
    around = " ".join(f"{one:.1f},{other:.1f}" for one, other in [*upper, *lower])
    yield f'<polygon points="{around}" style="fill:{colour};opacity:.16"/>'
    middle = [(x.place(step), y.place(mean)) for step, mean, _ in points]
    style = f"stroke:{colour};stroke-dasharray:{dashes or 'none'}"
    yield _path(middle, "mean").replace("<path", f'<path style="{style}"')
    if len(middle) <= _DOTS:
        dots = f'r="2.5" style="fill:{colour}"'
        yield from (f'<circle cx="{one:.1f}" cy="{other:.1f}" {dots}/>' for one, other in middle)


def _names(ends: Sequence[tuple[str, float]]) -> Iterator[str]:
    """Each curve's name beside its end, moved apart where they would touch."""
    last = -math.inf
    for number, (name, wanted) in sorted(enumerate(ends), key=lambda one: one[1][1]):
        last = max(wanted, last + 16)
        x, style = _WIDTH - _RIGHT + 10, f"fill:{COLOURS[number % len(COLOURS)]};font-weight:600"
        yield f'<text x="{x}" y="{last + 4:.1f}" style="{style}">{_named(name, _NAME)}</text>'


def _svg(height: float, label: str, parts: Sequence[str]) -> str:
    head = f'<svg class="plot" viewBox="0 0 {_WIDTH} {height:g}" role="img" aria-label="{escape(label)}">'
    return "\n".join([head, *parts, "</svg>"])


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{escape(kind)}"/>'


def _text(x: float, y: float, text: str, anchor: str, kind: str = "") -> str:
    told = f' class="{kind}"' if kind else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{told}>{_named(text, _WORD)}</text>'


def _named(text: str, most: int) -> str:
    """A text, its end left out where it is long; all of it is in what a pointer shows."""
    if len(text) <= most:
        return escape(text)
    return f"{escape(text[: most - 1])}…<title>{escape(text)}</title>"


def _path(points: Points, kind: str) -> str:
    return f'<path class="{kind}" d="M{" L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'

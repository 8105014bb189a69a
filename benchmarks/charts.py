"""Charts as SVG: lines over a linear or logarithmic axis, and stacked bars. No library draws them; see plots.py."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

__all__ = ["Axis", "Line", "bars", "lines"]

WIDTH, HEIGHT = 860, 460
LEFT, TOP, RIGHT, BOTTOM = 74, 66, 240, 56
INK, FAINT, GRID = "#222222", "#666666", "#e3e3e3"
FONT = "font-family='Helvetica, Arial, sans-serif'"


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: what, and its unit.
        log: whether it is logarithmic.
        ticks: where it is labelled; none: at round numbers.
        least: where it begins; None: where the values do.
    """

    label: str
    log: bool = False
    ticks: Sequence[float] = ()
    least: float | None = None


@dataclass(frozen=True)
class Line:
    """A line with its name.

    Attributes:
        name: for the legend.
        points: x and y.
        colour: of the line.
        spread: least and most of y at each point, or nothing.
        dash: SVG's stroke-dasharray.
        marks: whether each point has a mark.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    spread: Sequence[tuple[float, float]] = field(default=())
    dash: str = ""
    marks: bool = False


def lines(title: str, note: str, x: Axis, y: Axis, drawn: Sequence[Line]) -> str:
    """Return a chart of lines; the legend has them in the order given."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    every_y = [v for line in drawn for pair in (line.spread or [(p[1], p[1]) for p in line.points]) for v in pair]
    to_x, x_ticks = _scale(x, [point[0] for line in drawn for point in line.points], LEFT, right)
    to_y, y_ticks = _scale(y, every_y, bottom, TOP)
    body = _frame(title, note, HEIGHT)
    for value in x_ticks:
        at = to_x(value)
        body += [_stroke(at, TOP, at, bottom, GRID), _text(at, bottom + 18, _number(value), "middle")]
    for value in y_ticks:
        at = to_y(value)
        body += [_stroke(LEFT, at, right, at, GRID), _text(LEFT - 8, at + 4, _number(value), "end")]
    body += [_stroke(LEFT, bottom, right, bottom, INK), _stroke(LEFT, TOP, LEFT, bottom, INK)]
    body.append(_text((LEFT + right) / 2, HEIGHT - 16, x.label, "middle", size=13))
    middle = (TOP + bottom) / 2
    body.append(_text(18, middle, y.label, "middle", size=13, more=f" transform='rotate(-90 18 {middle:.0f})'"))
    for n, line in enumerate(drawn):
        points = [(to_x(a), to_y(b)) for a, b in line.points]
        for (at, _), (low, high) in zip(points, line.spread, strict=False):
            body.append(_stroke(at, to_y(low), at, to_y(high), line.colour, 1.2))
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        style = f"fill='none' stroke='{line.colour}' stroke-width='2' stroke-dasharray='{line.dash}'"
        body.append(f"<polyline points='{path}' {style}/>")
        if line.marks:
            body += [f"<circle cx='{a:.1f}' cy='{b:.1f}' r='3.2' fill='{line.colour}'/>" for a, b in points]
        at = TOP + 12 + 22 * n
        body.append(_stroke(right + 16, at, right + 44, at, line.colour, 2.4, line.dash))
        body.append(_text(right + 52, at + 4, line.name))
    return _document(body, HEIGHT)


def bars(title: str, note: str, label: str, parts: Mapping[str, str], rows: Mapping[str, Sequence[float]]) -> str:
    """Return a chart of stacked bars, lying.

    Args:
        title: above it.
        note: below the title.
        label: of the axis of values.
        parts: colours by name of what the bars consist of.
        rows: the values of the parts, by name of the bar.
    """
    left, step = 250, 30
    top = TOP + 26
    bottom = top + step * len(rows)
    height, right = bottom + BOTTOM, WIDTH - 60
    to_x, ticks = _scale(Axis(label, least=0), [sum(values) for values in rows.values()], left, right)
    body = _frame(title, note, height)
    at = float(left)
    for name, colour in parts.items():
        body.append(f"<rect x='{at:.0f}' y='{TOP - 4}' width='12' height='12' fill='{colour}'/>")
        body.append(_text(at + 18, TOP + 6, name))
        at += 46 + 7 * len(name)
    for value in ticks:
        body.append(_stroke(to_x(value), top, to_x(value), bottom, GRID))
        body.append(_text(to_x(value), bottom + 18, _number(value), "middle"))
    for n, (name, values) in enumerate(rows.items()):
        y, done = top + step * n, 0.0
        body.append(_text(left - 8, y + 19, name, "end"))
        for value, colour in zip(values, parts.values(), strict=True):
            x, end = to_x(done), to_x(done + value)
            body.append(f"<rect x='{x:.1f}' y='{y + 5}' width='{end - x:.1f}' height='20' fill='{colour}'/>")
            done += value
        body.append(_text(to_x(done) + 6, y + 19, f"{done:.0f}", colour=FAINT))
    body.append(_stroke(left, top, left, bottom, INK))
    body.append(_text((left + right) / 2, height - 16, label, "middle", size=13))
    return _document(body, height)


def _scale(
    axis: Axis, values: Sequence[float], start: float, end: float
) -> tuple[Callable[[float], float], list[float]]:
    """Return what places a value between two coordinates, and the values of the ticks."""
    low = axis.least if axis.least is not None else min(values)
    high = max(values)
    if axis.log:
        ticks = [*axis.ticks] or [tick for tick in _decades(low, high) if low <= tick <= high]
        first, last = math.log(low), math.log(high * 1.05)
        return lambda value: start + (end - start) * (math.log(value) - first) / (last - first), ticks
    step = _step(high - low)
    ticks = [*axis.ticks] or [step * n for n in range(math.ceil(low / step), math.floor(high * 1.04 / step) + 1)]
    last = max(high * 1.04, *ticks)
    return lambda value: start + (end - start) * (value - low) / (last - low), ticks


def _decades(low: float, high: float) -> list[float]:
    steps = (1, 2, 5) if high / low < 3000 else (1,)
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**exponent for exponent in exponents for step in steps]


def _step(span: float) -> float:
    """Return a round step that gives four to eight ticks."""
    rough = span / 7
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:g}"


def _frame(title: str, note: str, height: float) -> list[str]:
    return [
        f"<rect width='{WIDTH}' height='{height:.0f}' fill='#ffffff'/>",
        _text(20, 26, title, size=17, more=" font-weight='bold'"),
        _text(20, 46, note, size=11, colour=FAINT),
    ]


def _text(
    x: float, y: float, text: str, anchor: str = "start", size: int = 12, colour: str = INK, more: str = ""
) -> str:
    place = f"x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' fill='{colour}'"
    return f"<text {place}{more}>{escape(text)}</text>"


def _stroke(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1.0, dash: str = "") -> str:
    place = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {place} stroke='{colour}' stroke-width='{width}' stroke-dasharray='{dash}'/>"


def _document(body: Sequence[str], height: float) -> str:
    size = f"width='{WIDTH}' height='{height:.0f}' viewBox='0 0 {WIDTH} {height:.0f}'"
    return "\n".join([f"<svg xmlns='http://www.w3.org/2000/svg' {size} {FONT}>", *body, "</svg>", ""])

"""The table of ratios."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from cases import Against, Case
from measuring import Point, Points

HEADINGS = (
    "case",
    "rows",
    "CPU",
    "wall",
    "peak MB",
    "memory",
    "CPU / row",
    "against",
    "ratio",
    "aim",
)
MAX_GROWTH = 1.2
FULL_ROWS = 2_000_000
READ_AHEAD = 256e6
"""What Polars decodes ahead: one bare scan of 16 million pairs or more holds 107 to 227 MB."""
MAX_PEAK = 1e9
SAME = 1e-9
MEGA = 1e6
UNITS = ((1.0, 1.0, "s"), (1e-3, 1e3, "ms"), (1e-6, 1e6, "us"), (0.0, 1e9, "ns"))
DIGITS = 3


def seconds(value: float) -> str:
    """Return seconds to three digits, in a unit that suits them."""
    _, scale, unit = next(each for each in UNITS if abs(value) >= each[0])
    scaled = value * scale
    decimals = 0 if not scaled else max(0, DIGITS - 1 - math.floor(math.log10(abs(scaled))))
    return f"{scaled:.{decimals}f} {unit}"


def marginal(points: Sequence[Point]) -> float | None:
    """Return CPU seconds a row: the larger size less the smaller, so that start-up is apart."""
    if len(points) == 1:
        return None
    small, large = points
    spent = large.cpu - small.cpu
    return spent / (large.rows - small.rows) if spent > 0.0 else None


def ratio(points: Points, case: Case, other: str) -> float | None:
    """Return how much dearer a case is than another one, if both were measured."""
    if other not in points:
        return None
    ours, theirs = points[case.name], points[other]
    if not case.has_sizes:
        return ours[0].cpu / theirs[0].cpu
    each, of = marginal(ours), marginal(theirs)
    return each / of if each is not None and of is not None else None


def noise(points: Points, *names: str) -> float:
    """Return how far off a ratio of these cases may be, as a share, by what their runs differ.

    Of two sizes the larger counts, and more so the nearer the smaller one is.
    """
    total = 0.0
    for group in (points[name] for name in names):
        largest = group[-1]
        shrinks = 1.0 if len(group) == 1 else 1.0 - group[0].rows / largest.rows
        total += (largest.noise / shrinks) ** 2
    return math.sqrt(total)


def misses(points: Points) -> Iterator[str]:
    """Yield the aims that are missed by more than the noise that was measured."""
    for group in points.values():
        case = group[0].case
        for aim in case.against:
            if aim.case is not None and aim.case not in points:
                continue
            value = group[0].cpu if aim.case is None else ratio(points, case, aim.case)
            others = () if aim.case is None else (aim.case,)
            margin = 1.0 + noise(points, case.name, *others)
            is_over = aim.at_most is not None and (value or 0.0) > aim.at_most * margin
            is_under = aim.at_least is not None and (value or math.inf) < aim.at_least / margin
            if value is not None and (is_over or is_under):
                yield (
                    f"{case.name} against {aim.case or 'seconds'}: {value:.2f}, "
                    f"{verdict(value, aim)} by more than the noise ({margin - 1.0:.0%})"
                )
        if "MISSED" in memory(group):
            yield f"{case.name}: memory {memory(group)}"


def verdict(value: float | None, aim: Against) -> str:
    """Return the aim and whether it is met."""
    if aim.at_most is not None:
        text, met = f"<= {aim.at_most:g}", value is not None and value <= aim.at_most
    elif aim.at_least is not None:
        text, met = f">= {aim.at_least:g}", value is not None and value >= aim.at_least
    else:
        return ""
    if value is None:
        return f"{text} not measured"
    return f"{text} {'met' if met else 'MISSED'}"


def memory(points: Sequence[Point]) -> str:
    """Return by how much memory grew with the size, and whether that is bounded.

    It grows until what is held at a time is full: of few rows, that it stays small is all.
    """
    case, small, large = points[0].case, points[0], points[-1]
    if not case.is_ours:
        return ""
    if case.holds_up_to is not None:
        most = case.holds_up_to / MEGA
        return f"<= {most:g} MB {'met' if large.peak <= case.holds_up_to else 'MISSED'}"
    growth, margin = large.peak / small.peak, math.hypot(small.noise_of_peak, large.noise_of_peak)
    is_full = small.rows >= FULL_ROWS and large.peak > READ_AHEAD
    is_flat = not is_full or growth <= MAX_GROWTH * (1.0 + margin)
    return f"x {growth:.2f} {'met' if is_flat and large.peak < MAX_PEAK else 'MISSED'}"


def lines(points: Points) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the table: one for each case and each comparison of it."""
    for group in points.values():
        case = group[0].case
        each = marginal(group)
        left: tuple[str, ...] = (
            case.name,
            " / ".join(f"{point.rows:,}" for point in group if point.rows),
            " / ".join(seconds(point.cpu) for point in group),
            " / ".join(seconds(point.wall) for point in group),
            " / ".join(f"{point.peak / MEGA:.0f}" for point in group),
            memory(group),
            "" if each is None else seconds(each),
        )
        # What was not asked for, or is not installed, is no line.
        aims: list[Against | None] = [
            aim for aim in case.against if aim.case is None or aim.case in points
        ]
        for aim in aims or [None]:
            if aim is None:
                right: tuple[str, ...] = ("", "", "")
            elif aim.case is None:
                right = ("seconds of CPU", f"{group[0].cpu:.2f}", verdict(group[0].cpu, aim))
            else:
                value = ratio(points, case, aim.case)
                right = (aim.case, "" if value is None else f"{value:.2f}", verdict(value, aim))
            yield (*left, *right)
            left = ("",) * len(left)


def table(points: Points) -> str:
    """Return the table as aligned Markdown."""
    rows = [HEADINGS, *lines(points)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
    drawn = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |"
        for row in rows
    ]
    drawn.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(drawn)


def disagreements(points: Points) -> Iterator[str]:
    """Yield the cases whose figures differ from others on the same data: other work was done."""
    seen: dict[tuple[str, int], tuple[str, dict[str, float]]] = {}
    for group in points.values():
        for point in group:
            figures = dict(point.runs[-1].figures)
            if not figures or point.case.data is None:
                continue
            key = (point.case.data.name, point.rows)
            first, expected = seen.setdefault(key, (point.case.name, figures))
            for name, value in figures.items():
                if not math.isclose(value, expected[name], rel_tol=SAME, abs_tol=SAME):
                    yield f"{name}: {point.case.name} {value!r}, {first} {expected[name]!r}"

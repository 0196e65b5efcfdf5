"""Curves of a run as one small SVG picture."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from sppo_report.curves import Curve, thin

WIDTH, HEIGHT, LEFT, TOP = 360, 200, 52, 28
POINTS = 200


def draw(curves: Sequence[tuple[str, Curve]]) -> str:
    """Curves with their titles, side by side, over optimizer steps. Those with fewer than two points are left out."""
    shown = [(title, thin(curve, POINTS)) for title, curve in curves if len(curve.steps) > 1]
    panels = "".join(_panel(title, curve, WIDTH * place) for place, (title, curve) in enumerate(shown))
    size = f'viewBox="0 0 {max(WIDTH * len(shown), 1)} {HEIGHT}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">{panels}</svg>\n'


def _panel(title: str, curve: Curve, left: int) -> str:
    low, high = min(curve.values), max(curve.values)
    first, last = curve.steps[0], curve.steps[-1]
    width, height = WIDTH - LEFT - 16, HEIGHT - TOP - 34
    points = " ".join(
        f"{left + LEFT + width * (step - first) / (last - first):.1f},"
        f"{TOP + height * (1 - (value - low) / ((high - low) or 1)):.1f}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    )
    x, bottom = left + LEFT, TOP + height
    return (
        f'<text x="{x}" y="16" font-weight="bold">{escape(title)}</text>'
        f'<path d="M{x} {TOP}V{bottom}H{x + width}" fill="none" stroke="#999"/>'
        f'<text x="{x - 6}" y="{TOP + 10}" text-anchor="end">{high:.3g}</text>'
        f'<text x="{x - 6}" y="{bottom}" text-anchor="end">{low:.3g}</text>'
        f'<text x="{x}" y="{bottom + 16}">step {first}</text>'
        f'<text x="{x + width}" y="{bottom + 16}" text-anchor="end">{last}</text>'
        f'<polyline points="{points}" fill="none" stroke="#2468b0" stroke-width="1.5"/>'
    )

"""How race.py and growth.py time a run, and how their pages show the figures."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

SHORT, MOST_IN_A_ROW = 0.1, 10  # seconds of a run, and how many of them come in a row


def in_a_row(run: Callable[[], object]) -> float:
    """How many seconds a run takes.

    As in training, one after another: short ones are run several times in a row, and the first of them, for which the
    caches are still those of whatever ran before, does not count.
    """

    def once() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    first = once()
    if first > SHORT:
        return first
    return median(once() for _ in range(max(1, min(MOST_IN_A_ROW, round(SHORT / first)))))


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return {"low": low, "median": middle, "high": high}


def cell(value: float) -> str:
    """Three digits that count."""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def decorate(ax: Any, xlabel: str, ylabel: str) -> None:
    """Logarithmic both ways, a quiet frame."""
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(axis="y", alpha=0.25)
    ax.xaxis.set_major_formatter("{x:,.0f}")
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")

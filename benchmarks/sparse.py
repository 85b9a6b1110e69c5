"""Products of spikes kept as bits beside dense products.

    python benchmarks/sparse.py [--page]

Writes results/sparse.json and docs/sparse.md; with --page, the page alone. Takes some three minutes, in one thread.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from _record import load, save
from tracetorch.functional.spikes import Spikes
from tracetorch.kernels import cpu

STEPS = 32
ROWS = (32, 128, 1024, 8192)
SHAPES = ((784, 128), (128, 128), (784, 512), (512, 512), (512, 10))
ACTIVITIES = (0.02, 0.05, 0.08, 0.10, 0.15, 0.20, 0.30)
SECONDS, FEWEST = 0.5, 9  # for each figure: the time, and the rounds
PASS = 5e-4  # what is shorter is run several times in a row, in seconds
DOCS = Path(__file__).parents[1] / "docs" / "sparse.md"

Figures = dict[str, Any]


def seconds(run: Callable[[], object], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        run()
    return (time.perf_counter() - begin) / times


def take_turns(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """The times of each, round by round, in seconds."""
    for run in runs.values():
        run()
    times = {name: 1 + int(PASS / seconds(run, 3)) for name, run in runs.items()}
    measured: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    while len(measured[next(iter(runs))]) < FEWEST or time.perf_counter() - begin < SECONDS:
        for name, run in runs.items():
            measured[name].append(seconds(run, times[name]))
    return measured


def ratio(measured: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long the one takes as the other: the median over rounds."""
    return statistics.median(a / b for a, b in zip(measured[slow], measured[fast], strict=True))


def spikes(rows: int, n: int, activity: float, dtype: torch.dtype) -> tuple[Tensor, Spikes]:
    x = (torch.rand(STEPS, rows // STEPS, n) < activity).to(dtype)
    bits = cpu.packed(x)
    assert bits is not None
    return x, bits


def product(rows: int, n: int, m: int, activity: float, dtype: torch.dtype) -> Figures:
    """W x and the gradient of W, both ways; the transposed copies that the sparse ways need are counted in."""
    x, bits = spikes(rows, n, activity, dtype)
    dense, weight, g = x.view(rows, n), torch.randn(m, n, dtype=dtype), torch.randn(rows, m, dtype=dtype)
    out, gradient = torch.empty_like(g), torch.empty_like(weight)
    measured = take_turns(
        {
            "mm": lambda: torch.mm(dense, weight.t(), out=out),
            "gather": lambda: cpu.gather(bits, weight, out),
            "mm_t": lambda: torch.mm(g.t(), dense, out=gradient),
            "gather_t": lambda: cpu.gather_t(bits, g, gradient),
        }
    )
    return {
        "rows": rows,
        "n": n,
        "m": m,
        "activity": activity,
        "ones": bits.ones,
        "dtype": str(dtype).removeprefix("torch."),
        "seconds": {name: statistics.median(values) for name, values in measured.items()},
        "product": ratio(measured, "mm", "gather"),
        "gradient": ratio(measured, "mm_t", "gather_t"),
    }


def window(rows: int, n: int) -> Figures:
    """What is done with a window of the inputs besides products, in numbers and in bits."""
    x, bits = spikes(rows, n, 0.15, torch.float32)
    copy, old, decay = torch.empty_like(x), torch.rand_like(x[0]), torch.tensor(0.9)
    new = torch.empty_like(old)
    size = old.numel()
    table = [STEPS, size, len(old), 0, size, *(t.data_ptr() for t in (x, old, new, decay)), 0, 0]
    measured = take_turns(
        {
            "taken": lambda: cpu.taken(x, copy),
            "pack": lambda: cpu.packed(x),
            "fold": lambda: cpu.run("fold", torch.float32, table),
            "fold_bits": lambda: cpu.fold_bits(bits, old, new, decay),
            "unpack": lambda: [cpu.unpack(bits, i, i + 256, copy) for i in range(0, rows, 256)],
        }
    )
    return {"rows": rows, "n": n, "seconds": {name: statistics.median(values) for name, values in measured.items()}}


PAGE = """# Sparse products

Made by `python benchmarks/sparse.py`. Spikes kept as bits, one for each, in windows of {steps} steps: how many times as long
the dense product of torch takes (`torch.mm`, the spikes as numbers) as the sum of the rows that the spikes choose
(`kernels.cpu.gather` for W x, `gather_t` for the gradient of W), one thread, medians of rounds in which they take turns. The
transposed copies that the sparse ways need are counted in; spikes as bits, or as numbers, are there already. Bold: the kernels'
rule (`sparse_pays`, `sparse_gradient_pays`) takes the sparse way. Columns are the activity of the input, rows the steps
times the lanes.

## W x, float32

{product}

## The gradient of W, float32

{gradient}

## float64, W x and the gradient of W

{product_64}

{gradient_64}

## A window of inputs

{lanes} lanes of {n} inputs, milliseconds: to keep the input (a copy that is checked on the way; or bits), to advance its trace,
and to make numbers of bits again, 256 rows at a time.

{window}

{machine}
"""


def table(products: list[Figures], key: str, dtype: str, rule: Callable[..., bool]) -> str:
    """A row for each shape, a column for each activity."""
    lines = ["| rows | n → m | " + " | ".join(f"{100 * a:g} %" for a in ACTIVITIES) + " |"]
    lines += ["|" + "---|" * (2 + len(ACTIVITIES))]
    shapes: dict[tuple[int, int, int], list[str]] = {}
    for p in products:
        if p["dtype"] == dtype:
            chosen = rule(p["rows"], p["n"], p["m"], p["ones"], getattr(torch, dtype))
            cell = f"**{p[key]:.1f}**" if chosen else f"{p[key]:.1f}"
            shapes.setdefault((p["rows"], p["n"], p["m"]), []).append(cell)
    lines += [f"| {rows:,} | {n} → {m} | " + " | ".join(cells) + " |" for (rows, n, m), cells in shapes.items()]
    return "\n".join(lines)


def page(figures: Figures) -> str:
    """The page, from what was saved."""
    products, whole, m = figures["products"], figures["window"], figures["machine"]
    lines = ["| | numbers | bits |", "|---|---|---|"]
    for name, numbers, bits in (("keep", "taken", "pack"), ("trace", "fold", "fold_bits"), ("numbers", None, "unpack")):
        cells = [f"{1e3 * whole['seconds'][key]:.2f}" if key else "" for key in (numbers, bits)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    tables = {}
    for key, rule in (("product", cpu.sparse_pays), ("gradient", cpu.sparse_gradient_pays)):
        tables |= {key: table(products, key, "float32", rule), f"{key}_64": table(products, key, "float64", rule)}
    return PAGE.format(
        steps=STEPS,
        lanes=whole["rows"] // STEPS,
        n=whole["n"],
        window="\n".join(lines),
        machine=f"{m['processor']}, torch {m['torch']}, Python {m['python']}.",
        **tables,
    )


def main() -> None:
    """Measure, save, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", action="store_true", help="write the page from what was measured before")
    if not parser.parse_args().page:
        torch.set_num_threads(1)
        torch.manual_seed(0)
        products = []
        for dtype, counts in ((torch.float32, ROWS), (torch.float64, (1024,))):
            for rows in counts:
                for n, m in SHAPES:
                    products += [product(rows, n, m, activity, dtype) for activity in ACTIVITIES]
                    print(rows, n, m, *(f"{p['product']:.2f} {p['gradient']:.2f}" for p in products[-7:]), flush=True)
        save("sparse", {"products": products, "window": window(8192, 784)})
    DOCS.write_text(page(load("sparse")))


if __name__ == "__main__":
    main()

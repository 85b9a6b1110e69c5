"""What the benchmarks of tasks over time share: rows, networks, the loop over windows, the choice of a learning rate.

Shapes: T steps, B lanes, n inputs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import torch

import tracetorch as tt
from _record import load, machine, save
from tracetorch.tasks import Sequences

SEEDS = (0, 1, 2)
VALIDATION_SEED = 100  # the learning rate is chosen with another seed than those that are reported
DOCS = Path(__file__).parents[1] / "docs"

Figures = dict[str, Any]


@dataclass(frozen=True)
class Row:
    """A learning rule, and how it is run."""

    label: str
    rule: str  # its name in tracetorch
    window: int | None = 1  # K, steps; None: the whole sequence is one window, with which every rule is BPTT
    horizon: int | None = None  # steps; None: the window
    recurrent: bool = False
    width: float = 0.5  # of the surrogate's slope
    clip: float | None = None  # the largest norm of a gradient, all parameters together; None: any


@dataclass(frozen=True)
class Benchmark:
    """What `command_line` needs to know."""

    name: str  # of results/<name>.json; of the page too, with dashes
    about: str  # for --help
    rows: Mapping[str, Row]
    run: Callable[[Any, int, float, int | None, bool], Figures]  # see `measure`
    page: Callable[[Figures], str]
    rates: tuple[float, ...]  # the learning rates to choose from


def network(sizes: tuple[int, ...], taus: tuple[float, float], row: Row, seed: int, **readout: float) -> tt.Sequential:
    """LIF layers with a time constant per neuron, log-uniform over `taus` (steps), and an LI readout with one beta.

    One seed gives the same network to every rule.
    """
    torch.manual_seed(seed)
    low, high = torch.tensor(taus).log()
    hidden = [
        tt.LIF(
            n,
            m,
            tau=torch.exp(low + (high - low) * torch.rand(m)),
            recurrent=row.recurrent,
            surrogate=tt.surrogate.ArcTan(row.width),
        )
        for n, m in pairwise(sizes[:-1])
    ]
    return tt.Sequential(*hidden, tt.LI(*sizes[-2:], **readout), rule=getattr(tt, row.rule)(), horizon=row.horizon)


def fit(model: tt.Sequential, batches: Iterable[Sequences], updates: int, lr: float, row: Row) -> float:
    """One update per batch, when its sequences end; Adam, the learning rate falling along a cosine. The seconds taken.

    Nothing is gone back for from a window in which nothing is asked: that is what an online rule is for.
    """
    optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    start = time.perf_counter()
    for x, target, weights in batches:
        model.reset()
        optimizer.zero_grad()
        steps = row.window or len(x)
        for x_window, w in zip(x.split(steps), weights.split(steps), strict=True):
            y = model.window(x_window)
            if w.any():
                model.backward(tt.loss.cross_entropy(y, target, w).ls)
        if row.clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), row.clip)
        optimizer.step()
        schedule.step()
    return time.perf_counter() - start


def accuracy(model: tt.Sequential, batches: Iterable[Sequences]) -> float:
    """The share of sequences whose output, summed over steps with the loss's weights, is largest for their class."""
    model.eval()
    scores, targets = [], []
    for x, target, weights in batches:
        model.reset()
        scores.append((weights.view(len(x), -1, 1) * model.window(x)).sum(0))
        targets.append(target)
    return tt.metrics.accuracy(torch.cat(scores), torch.cat(targets))


def measure(benchmark: Benchmark, row: Row, rates: tuple[float, ...], updates: int | None) -> Figures:
    """Choose the learning rate by a run of each on validation data, then run the seeds.

    `benchmark.run(row, seed, lr, updates, validate)` trains with the updates given, or as many as it takes, and returns
    a dictionary with its "accuracy", in [0, 1], and "seconds".
    """
    validation = {lr: benchmark.run(row, VALIDATION_SEED, lr, updates, True)["accuracy"] for lr in rates}
    print("  on validation data:", validation, flush=True)
    lr = max(rates, key=validation.__getitem__)
    runs = []
    for seed in SEEDS if updates is None else SEEDS[:1]:
        runs.append({"seed": seed, **benchmark.run(row, seed, lr, updates, False)})
        print(" ", runs[-1], flush=True)
    return {"machine": machine(), "lr": lr, "validation": validation, "runs": runs}


def command_line(benchmark: Benchmark) -> None:
    """Measure the rows asked for, save each when it is done, and write the page."""
    parser = argparse.ArgumentParser(description=benchmark.about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(benchmark.rows)}")
    parser.add_argument("--updates", type=int, help="a trial: so many updates, one seed, nothing is written")
    parser.add_argument("--rates", type=float, nargs="+", default=benchmark.rates, help="learning rates to choose from")
    arguments = parser.parse_args()
    unknown = [name for name in arguments.names if name not in benchmark.rows]
    if unknown:
        parser.error(f"there is no {', '.join(unknown)}; the rows are {', '.join(benchmark.rows)}")
    torch.set_num_threads(1)
    for name in arguments.names or benchmark.rows:
        print(name, flush=True)
        figures = measure(benchmark, benchmark.rows[name], tuple(arguments.rates), arguments.updates)
        if arguments.updates is None:
            rows = load(benchmark.name).get("rows", {})  # read late: another row may have been measured meanwhile
            save(benchmark.name, {"rows": rows | {name: figures}})
    if arguments.updates is None:
        (DOCS / f"{benchmark.name.replace('_', '-')}.md").write_text(benchmark.page(load(benchmark.name)))


def table(rows: Mapping[str, Row], figures: Figures, **columns: Callable[[Figures], str]) -> str:
    """The rows that have been measured, as Markdown, with further columns of one's own."""
    head = ["", "K", *columns, "accuracy", "each seed", "learning rate", "seconds"]
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        if name in figures["rows"]:
            measured = figures["rows"][name]
            percent = [100 * run["accuracy"] for run in measured["runs"]]
            lines.append(
                [
                    row.label,
                    "T" if row.window is None else str(measured["runs"][0].get("window", row.window)),
                    *(column(measured) for column in columns.values()),
                    f"{mean(percent):.1f} ± {stdev(percent):.1f} %",
                    ", ".join(f"{p:.1f}" for p in percent),
                    f"{measured['lr']:g}",
                    f"{median(run['seconds'] for run in measured['runs']):.0f}",
                ]
            )
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def measured_on(figures: Figures) -> str:
    """The machines and versions that the figures come from."""
    machines = [row["machine"] for row in figures["rows"].values()]
    found = {f"{m['processor']}, torch {m['torch']}, Python {m['python']}" for m in machines}
    return "; ".join(sorted(found)) + ". One thread per row."

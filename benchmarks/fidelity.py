"""Each rule's gradient beside BPTT's in a network of three hidden layers, new and trained: cosines and norm ratios.

    python benchmarks/fidelity.py

Writes results/fidelity.json and docs/exactness.md, which also names what is exact. Some five minutes on one core.
"""

from __future__ import annotations

import argparse
import math
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch

import tracetorch as tt
from _record import load, save
from tracetorch import rules, tasks, testing

SIZES, STEPS, LANES = (40, 48, 48, 48, 10), 96, 8
SEEDS = range(5)
WINDOWS = (1, 32)
UPDATES, LR, TRAIN_LANES = 300, 5e-3, 32
RULES = (
    rules.Truncated(),
    rules.InputTrace(),
    rules.MeanField(),
    rules.Eligibility(),
    rules.SLTT(),
    rules.OTTT(),
    rules.OSTL(),
    rules.OTPE(),
    rules.EProp(),
    rules.EProp(feedback="random"),
)
SETTINGS = {
    "time constants log-uniform over 2 to 30 steps, one per neuron": {},
    "all betas 0.9, the readout's too": {"beta": 0.9},
    "recurrent weights in every hidden layer": {"recurrent": True},
}
DOCS = Path(__file__).parents[1] / "docs" / "exactness.md"


def model(seed: int, beta: float | None = None, recurrent: bool = False) -> tt.Sequential:
    """Weights N(0, 1.96 / n), no biases to begin with, arctan of half-width 0.318, float64."""
    torch.manual_seed(seed)
    layers: list[tt.LIF | tt.LI] = []
    for n, m in pairwise(SIZES[:-1]):
        taus = torch.exp(torch.empty(m).uniform_(math.log(2), math.log(30)))
        layers.append(
            tt.LIF(
                n, m, beta=beta, tau=taus if beta is None else None, recurrent=recurrent,
                surrogate=tt.surrogate.ArcTan(0.318), dtype=torch.float64,
            )
        )  # fmt: skip
    layers.append(tt.LI(*SIZES[-2:], beta=beta or 0.95, dtype=torch.float64))
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=1.4 / math.sqrt(layer.in_features))
    return tt.Sequential(*layers)


def sequences(lanes: int, generator: torch.Generator) -> tasks.Sequences:
    x, target, weights = tasks.drifting_bump(lanes, steps=STEPS, channels=SIZES[0], generator=generator)
    return tasks.Sequences(x.double(), target, weights)


def train(net: tt.Sequential, generator: torch.Generator) -> None:
    """Train by BPTT: the whole sequence as one window."""
    optimizer = torch.optim.Adam(net.parameters(), lr=LR)
    for _ in range(UPDATES):
        x, target, weights = sequences(TRAIN_LANES, generator)
        net.reset()
        net.backward(tt.loss.cross_entropy(net.window(x), target, weights).ls)
        optimizer.step()
        optimizer.zero_grad()
    net.reset()


def rows(net: tt.Sequential, generator: torch.Generator) -> list[dict[str, Any]]:
    """Cosine and norm ratio of each layer's weights, for each rule and window."""
    x, target, weights = sequences(LANES, generator)
    testing.assert_alive(net, x)

    def loss(y: torch.Tensor) -> tt.loss.Loss:
        return tt.loss.cross_entropy(y, target, weights)

    found = testing.fidelity(net, x, loss, rules=RULES[:4], windows=WINDOWS)
    named = testing.fidelity(net, x, loss, rules=RULES[4:], windows=(1,))
    every = [*found, *(row for row in named if row.rule not in (testing.ATTACHED, testing.ADAM))]
    return [
        {"rule": r.rule, "K": r.window, "parameter": r.parameter, "cosine": r.cosine, "ratio": r.norm_ratio}
        for r in every
        if r.parameter.endswith("weight")
    ]


def measure() -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for label, options in SETTINGS.items():
        for trained in (False, True):
            found = []
            for seed in SEEDS:
                generator = torch.Generator().manual_seed(seed)
                net = model(seed, **options)
                if net[0].recurrent:  # the weights' usual scale would leave upper layers silent
                    net.calibrate(sequences(LANES, generator).x)
                if trained:
                    train(net, generator)
                found += [{"seed": seed, **row} for row in rows(net, generator)]
            name = f"{label}; {f'after {UPDATES} updates' if trained else 'new'}"
            figures[name] = found
            print(name, flush=True)
    return figures


def averages(found: list[dict[str, Any]]) -> dict[tuple[str, int], dict[str, tuple[float, float]]]:
    """(rule, K) -> parameter -> mean cosine and norm ratio over the seeds."""
    grouped: dict[tuple[str, int], dict[str, list[dict[str, Any]]]] = {}
    for row in found:
        grouped.setdefault((row["rule"], row["K"]), {}).setdefault(row["parameter"], []).append(row)
    return {
        key: {p: (mean(r["cosine"] for r in rs), mean(r["ratio"] for r in rs)) for p, rs in parameters.items()}
        for key, parameters in grouped.items()
    }


def table(found: list[dict[str, Any]]) -> str:
    """Markdown: a line per rule and window, a column per layer's weights."""
    by_rule = averages(found)
    names = list(next(iter(by_rule.values())))
    titles = [f"`{name.removesuffix('.weight')}`" for name in names]
    lines = ["| rule | K | " + " | ".join(titles) + " |", "|" + "---|" * (len(names) + 2)]
    for (rule, window), parameters in by_rule.items():
        cells = [f"{parameters[name][0]:.3f} ({parameters[name][1]:.2f})" for name in names]
        label = rule if rule in (testing.ATTACHED, testing.ADAM) else f"`{rule}`"
        lines.append(f"| {label} | {window if window < STEPS else 'T'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


PAGE = """# What is exact, and how good the rest is

"Exact" means: equal to backpropagation through time (BPTT) along the trajectory that was run, with parameters fixed
since the reset and no gradient through the reset spike; tested at 1e-10 in float64, parameter by parameter, with the
sequence cut into windows of K steps. H is the horizon, T the length of the sequence.

| topology | `Truncated` | `InputTrace` | `MeanField` | `Eligibility` | `MeanRate` |
|---|---|---|---|---|---|
| any depth, recurrent or not, any stateless modules; K or H = T | exact | exact | exact | exact | another gradient |
| one layer with state (LIF, LI, Softmax given dL/dpi), one beta; any K | approximate | **exact** | **exact** | **exact** | another gradient |
| the same under a memoryless linear head; any K | approximate | **exact** | **exact** | **exact** | another gradient |
| one hidden layer, then a fixed linear path and readouts (LI or spiking) with one beta each; any K | approximate | approximate, the readout exact | approximate, the readout exact | **exact** | another gradient |
| any depth, slopes that do not change in time, betas distinct or one per layer; any K | approximate | approximate | **exact** up to the bank | **exact** up to the bank | another gradient |
| deeper, recurrent weights, LayerNorm, dropout or activations in between; K and H below T | approximate | approximate | approximate | approximate | another gradient |

A beta per neuron adds the error of the bank, which `model.banks()` reports and the tests bound: the sum of |a_0| times
the kernel's L1 error times the largest input. While learning, parameters change under live traces: a single layer's
weights still get the sum over the copies that saw the data; what passes through the weights above, or through the bank,
is read with today's values.

## Three hidden layers

{sizes}, T = {steps}, a loss at the last step only, {lanes} sequences of `tracetorch.tasks.drifting_bump`; float64, mean
of {seeds} seeds. Each cell: cosine with BPTT's gradient (ratio of the norms); 1.000 (1.00) is BPTT. "As Adam sees it":
the signs of both gradients, which is the direction of Adam's first step. A random feedback matrix gives another
gradient by intent: no cosine is expected of it before the weights have aligned themselves.

{tables}

Made by `python benchmarks/fidelity.py`: {machine}.
For a network and data of your own: `tracetorch.testing.fidelity(model, x, loss)`, or `tracetorch fidelity --help`.
"""


def page(figures: dict[str, Any]) -> str:
    """The page, from what was saved."""
    m = figures["machine"]
    return PAGE.format(
        sizes="-".join(map(str, SIZES)),
        steps=STEPS,
        lanes=LANES,
        seeds=len(SEEDS),
        tables="\n\n".join(
            f"### {name[0].upper() + name[1:]}\n\n{table(rows)}" for name, rows in figures["settings"].items()
        ),
        machine=f"{m['processor']}, {m['cores']} cores, torch {m['torch']}, Python {m['python']}",
    )


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    torch.set_num_threads(1)
    save("fidelity", {"settings": measure()})
    DOCS.write_text(page(load("fidelity")))


if __name__ == "__main__":
    main()

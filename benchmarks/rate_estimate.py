"""The firing-rate estimates against the simulated neuron, over currents and decays.

    python benchmarks/rate_estimate.py

Writes results/rate_estimate.json and the tables of docs/rate-estimate.md. Takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from _record import save
from tracetorch.functional import firing, rate, scan, trace

BETAS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
SHOWN_BETAS = (0.5, 0.8, 0.9, 0.95)
SHOWN_CURRENTS = (0.12, 0.2, 0.3, 0.5, 0.7, 0.9)
STEPS, SETTLE = 6000, 1000
# The noisy current: its mean, and 10 excitatory and 10 inhibitory Bernoulli inputs on top that cancel in the mean.
INPUTS, INPUT_RATE, WEIGHT, LANES = 20, 0.1, 0.35, 50
DECAY = 0.99  # of the trace that measures the output
NOISY_CURRENTS = (-0.1, 0.0, 0.05, 0.12, 0.3, 0.5, 0.9)
CLIP = rate.Balance(width=1e-4)
DOCS = Path(__file__).parents[1] / "docs" / "rate-estimate.md"


def spikes_of(current: Tensor, beta: float) -> Tensor:
    """The spikes (K, B, n) of neurons with threshold 1, from rest, for currents (K, B, n)."""
    one = torch.ones((), dtype=torch.float64)
    values = {"beta": beta * one, "threshold": one}
    return scan.spiking(current, scan.State(torch.zeros_like(current[0])), values, scan.Form(firing.Spike())).y


def constant(currents: Tensor) -> Tensor:
    """Currents (n,) over time, (K, 1, n)."""
    return currents.expand(STEPS, 1, -1)


def noisy(currents: Tensor) -> Tensor:
    """Currents over time and lanes that are `currents` (n,) in the mean, (K, B, n)."""
    generator = torch.Generator().manual_seed(0)
    spikes = torch.rand(STEPS, LANES, len(currents), INPUTS, generator=generator) < INPUT_RATE
    signs = torch.tensor([1.0, -1.0]).repeat(INPUTS // 2)
    return currents + WEIGHT * (spikes.float() @ signs).double()


def estimate(kind: rate.RateEstimate, currents: Tensor, beta: float) -> Tensor:
    one = torch.ones((), dtype=torch.float64)
    return kind.value(currents, beta * one, one)


def worst_errors() -> list[dict[str, float]]:
    """The largest error over constant currents with simulated rates of .05 to .95."""
    currents = torch.linspace(0.01, 1.5, 6000, dtype=torch.float64)
    rows = []
    for beta in BETAS:
        true = spikes_of(constant(currents), beta)[SETTLE:].mean((0, 1))
        inside = (true >= 0.05) & (true <= 0.95)
        row: dict[str, float] = {"beta": beta, "bound": 0.27 * (1 - beta) + 0.01}
        for name, kind in (("clip", CLIP), ("balance", rate.Balance()), ("sigmoid", rate.Sigmoid())):
            row[name] = (estimate(kind, currents, beta) - true).abs()[inside].max().item()
        rows.append(row)
    return rows


def table(drive: Callable[[Tensor], Tensor], shown: tuple[float, ...]) -> list[dict[str, float]]:
    """A row per decay and mean current: the simulated rate and what the estimates say."""
    currents = torch.tensor(shown, dtype=torch.float64)
    rows = []
    for beta in SHOWN_BETAS:
        spikes = spikes_of(drive(currents), beta)
        measured = measured_value(spikes)
        columns = {
            "simulated": spikes[SETTLE:].mean((0, 1)),
            "clip": estimate(CLIP, currents, beta),
            "balance": estimate(rate.Balance(), currents, beta),
            "sigmoid": estimate(rate.Sigmoid(), currents, beta),
            "measured": measured.mean(0),
            "spread": measured.std(0, correction=0),
        }
        for i, current in enumerate(shown):
            rows.append({"beta": beta, "current": current, **{name: c[i].item() for name, c in columns.items()}})
    return rows


def measured_value(spikes: Tensor) -> Tensor:
    """What MeanRate(value="measured", decay=DECAY) holds for each lane (B, n) at the end of spikes (K, B, n)."""
    a, zero = torch.tensor(DECAY, dtype=torch.float64), torch.zeros_like(spikes[0])
    return trace.average(trace.advance(zero, spikes, a), trace.advance_ones(zero[:, :1], len(spikes), a))


def largest_error(rows: list[dict[str, float]], column: str) -> float:
    return max(abs(row[column] - row["simulated"]) for row in rows)


def markdown_table(rows: list[dict[str, float]], heads: dict[str, str]) -> str:
    """Rows as Markdown, columns as named in `heads`."""

    def cell(key: str, value: float) -> str:
        return f"{value:.3g}" if key in ("beta", "current") else f"{value:.3f}"

    lines = ["| " + " | ".join(heads.values()) + " |", "|" + "---|" * len(heads)]
    lines += ["| " + " | ".join(cell(key, row[key]) for key in heads) + " |" for row in rows]
    return "\n".join(lines)


HEADS = {
    "beta": "beta",
    "current": "I",
    "simulated": "simulated",
    "clip": "balance, w -> 0",
    "balance": "balance, w = 0.03",
    "sigmoid": "sigmoid",
}
NOISY_HEADS = HEADS | {"measured": "measured", "spread": "its spread"}
WORST_HEADS = {"beta": "beta", "bound": "bound", **{key: HEADS[key] for key in ("clip", "balance", "sigmoid")}}
PAGE = """# The firing-rate estimates of MeanRate

Made by `python benchmarks/rate_estimate.py`; threshold 1, rates in spikes per step. The formulas are in
`tracetorch.functional.rate`.

## A constant current

{constant}

The largest error over currents whose simulated rate lies between .05 and .95, beside 0.27 (1 - beta) + 0.01:

{worst}

From beta = 0.75 on the balance, with its default softness w = 0.03, stays within the bound; what is left of its error is
locking at simple rates such as 1/2. At smaller beta it does not near the ends, where the neuron's own curve is all but
vertical: at beta = 0.5 the currents from 0.50 to 0.57 hold all rates from 0 to 1/4. A softness w adds w ln 2 where the clip
begins and ends (here 0.02); w = 0.1 would add 0.047 at an estimate of .05 or .95. `Sigmoid` is the original's estimate.

## A noisy current

The same, with 10 excitatory and 10 inhibitory Bernoulli inputs on top (0.1 spikes per step each, weights of 0.35),
which cancel in the mean. "measured" is what `MeanRate(value="measured", decay=0.99)` holds, the trace average of the
output: its mean and its spread (standard deviation) over 50 lanes.

{noisy}

Noise fires a neuron whose mean current would not, which no function of the mean can know. Here the balance is off by up
to {soft_off:.2f}, the clip by {clip_off:.2f}, the original's estimate by {sigmoid_off:.2f}. The measured value has no such error (at most
{bias:.3f} in the mean); its spread is that of an average over a memory of 1 / (1 - decay) = 100 steps.
"""


def main() -> None:
    """Measure, save, write the page."""
    torch.set_num_threads(1)
    figures = {
        "constant": table(constant, SHOWN_CURRENTS),
        "worst": worst_errors(),
        "noisy": table(noisy, NOISY_CURRENTS),
    }
    save("rate_estimate", figures)
    page = PAGE.format(
        constant=markdown_table(figures["constant"], HEADS),
        worst=markdown_table(figures["worst"], WORST_HEADS),
        noisy=markdown_table(figures["noisy"], NOISY_HEADS),
        clip_off=largest_error(figures["noisy"], "clip"),
        soft_off=largest_error(figures["noisy"], "balance"),
        sigmoid_off=largest_error(figures["noisy"], "sigmoid"),
        bias=largest_error(figures["noisy"], "measured"),
    )
    DOCS.write_text(page)
    print(page)


if __name__ == "__main__":
    main()

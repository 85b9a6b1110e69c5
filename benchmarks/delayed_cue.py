"""A cue to be remembered over a delay, learned online: accuracy on sequences not seen before.

    python benchmarks/delayed_cue.py [NAME ...]

Adds the rows NAME, by default all, to results/delayed_cue.json and writes docs/delayed-cue.md.
"""

from __future__ import annotations

import torch

from _sequences import Benchmark, Figures, Row, accuracy, command_line, fit, measured_on, network, table
from tracetorch import tasks

SIZES, TAUS, READOUT_TAU = (41, 64, 64, 4), (5.0, 200.0), 5.0
LANES, UPDATES, TEST_LANES, TEST_BATCHES = 50, 200, 500, 2

ROWS = {
    "bptt": Row("BPTT", "Truncated", None),
    "eligibility-k1": Row("`Eligibility`", "Eligibility"),
    "mean-field-k1": Row("`MeanField`", "MeanField"),
    "input-trace-k1": Row("`InputTrace`", "InputTrace"),
    "input-trace-k5": Row("`InputTrace`", "InputTrace", 5),
    "truncated-k1": Row("`Truncated`", "Truncated"),
    "truncated-k5": Row("`Truncated`", "Truncated", 5),
}


def run(row: Row, seed: int, lr: float, updates: int | None, validate: bool) -> Figures:  # noqa: ARG001
    """Train on fresh sequences, test on other fresh ones; those of the validation seed are for validation."""
    updates = updates or UPDATES
    model = network(SIZES, TAUS, row, seed, tau=READOUT_TAU)
    train, test = (torch.Generator().manual_seed(start + seed) for start in (1000, 2000))
    model.calibrate(tasks.delayed_cue(LANES, generator=train).x)
    learned = (tasks.delayed_cue(LANES, generator=train) for _ in range(updates))
    seconds = fit(model, learned, updates, lr, row)
    tests = (tasks.delayed_cue(TEST_LANES, generator=test) for _ in range(TEST_BATCHES))
    return {"accuracy": accuracy(model, tests), "seconds": seconds}


PAGE = """# A cue, a delay, an answer

Made by `python benchmarks/delayed_cue.py`. One of four groups of ten inputs fires for 10 steps; for 50 steps there is
only noise; then, at a go signal, 5 steps of answer, the only ones with a loss (`tracetorch.tasks.delayed_cue`). Chance
is 25 %.

{sizes}: time constants of the LIF layers log-uniform over {low:g} to {high:g} steps, one per neuron; of the LI
readout {readout:g} steps, so that it cannot bridge the delay by itself (chosen by trying some with seed 0). {updates} updates, each of {lanes} sequences
when they end; Adam, the learning rate falling along a cosine from the best of {rates} on validation sequences. K is the
window: with K = 1 nothing but the rule's traces is kept of the past. Accuracy on {tests:,} fresh sequences, mean
and standard deviation of three seeds, each of which gives every rule the same network and the same sequences; seconds
of training, the median.

{table}

{machine}
"""


def page(figures: Figures) -> str:
    """The page, from what was saved."""
    return PAGE.format(
        sizes="-".join(map(str, SIZES)),
        low=TAUS[0],
        high=TAUS[1],
        readout=READOUT_TAU,
        updates=UPDATES,
        lanes=LANES,
        rates=", ".join(f"{rate:g}" for rate in BENCHMARK.rates),
        tests=TEST_LANES * TEST_BATCHES,
        table=table(ROWS, figures),
        machine=measured_on(figures),
    )


BENCHMARK = Benchmark("delayed_cue", __doc__, ROWS, run, page, rates=(3e-3, 1e-2, 2e-2))

if __name__ == "__main__":
    command_line(BENCHMARK)

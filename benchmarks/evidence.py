"""Evidence to be accumulated over 2,250 steps, learned online: accuracy, and the bytes kept for it.

    python benchmarks/evidence.py [NAME ...]

Adds the rows NAME, by default all, to results/evidence.json and writes docs/evidence.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch

import tracetorch as tt
from _sequences import Benchmark, Figures, Row, accuracy, command_line, fit, measured_on, network, table
from tracetorch import tasks

SIZES, TAUS, READOUT_BETA = (40, 64, 2), (20.0, 2000.0), 1.0
LANES, UPDATES, TEST_LANES, TEST_BATCHES = 16, 200, 100, 10
STEPS, WINDOW = 2250, 50


@dataclass(frozen=True)
class BytesRow(Row):
    """With the window given, or the shortest one that keeps as many bytes as another row."""

    window: int | None = WINDOW
    as_many_as: str | None = None  # the name of the other row


ROWS = {
    "bptt": BytesRow("BPTT", "Truncated", None),
    "eligibility": BytesRow("`Eligibility`", "Eligibility"),
    "truncated-as-eligibility": BytesRow("`Truncated`, bytes of `Eligibility`", "Truncated", as_many_as="eligibility"),
    "mean-field": BytesRow("`MeanField`", "MeanField"),
    "input-trace": BytesRow("`InputTrace`", "InputTrace"),
    "truncated-as-input-trace": BytesRow("`Truncated`, bytes of `InputTrace`", "Truncated", as_many_as="input-trace"),
}


def model_of(row: BytesRow, seed: int) -> tt.Sequential:
    """The network, with a perfect integrator as its readout."""
    return network(SIZES, TAUS, row, seed, beta=READOUT_BETA)


def bytes_kept(row: BytesRow, window: int) -> int:
    """State and tape of all lanes."""
    model = model_of(row, 0)
    return model.state_bytes(lanes=LANES) + model.tape_bytes(lanes=LANES, window=window)


def window_of(row: BytesRow) -> int:
    """The window that a row is run with."""
    if row.as_many_as is None:
        return row.window or STEPS
    other = ROWS[row.as_many_as]
    one, two = bytes_kept(row, 1), bytes_kept(row, 2)
    return 1 + math.ceil((bytes_kept(other, window_of(other)) - one) / (two - one))


def run(row: BytesRow, seed: int, lr: float, updates: int | None, validate: bool) -> Figures:  # noqa: ARG001
    """Train on fresh sequences, test on other fresh ones; of the validation seed, they are for validation."""
    updates, window = updates or UPDATES, window_of(row)
    model = model_of(row, seed)
    train, test = (torch.Generator().manual_seed(start + seed) for start in (1000, 2000))
    model.calibrate(tasks.evidence_accumulation(LANES, generator=train).x)
    learned = (tasks.evidence_accumulation(LANES, generator=train) for _ in range(updates))
    seconds = fit(model, learned, updates, lr, replace(row, window=window))
    tests = (tasks.evidence_accumulation(TEST_LANES, generator=test) for _ in range(TEST_BATCHES))
    return {
        "accuracy": accuracy(model, tests),
        "seconds": seconds,
        "window": window,
        "bytes": bytes_kept(row, window),
    }


PAGE = """# Evidence over 2,250 steps

Made by `python benchmarks/evidence.py`. Seven cues on the left or on the right, a delay of 1,050 steps, then 150 steps
in which is asked on which side there were more, the only ones with a loss (`tracetorch.tasks.evidence_accumulation`,
after Bellec et al. 2020, [doi:10.1038/s41467-020-17236-y](https://doi.org/10.1038/s41467-020-17236-y)). Chance is 50 %.

{sizes}: LIF neurons without recurrent weights, with time constants log-uniform over {low:,g} to {high:,g} steps, one
per neuron, and a perfect integrator (LI, beta = 1) as the readout, chosen by trying some with seed 0. {updates} updates, each of {lanes} sequences when
they end; Adam, the learning rate falling along a cosine from the best of {rates} on validation sequences. K is the
window; kept are `state_bytes` and the `tape_bytes` of a window, of all {lanes} lanes. Accuracy on {tests:,} fresh
sequences, mean and standard deviation of three seeds, each of which gives every rule the same network and the same
sequences; seconds of training, the median.

{table}

{machine}
"""


def page(figures: Figures) -> str:
    """The page, from what was saved."""
    return PAGE.format(
        sizes="-".join(map(str, SIZES)),
        low=TAUS[0],
        high=TAUS[1],
        updates=UPDATES,
        lanes=LANES,
        rates=", ".join(f"{rate:g}" for rate in BENCHMARK.rates),
        tests=TEST_LANES * TEST_BATCHES,
        table=table(ROWS, figures, kept=lambda row: f"{row['runs'][0]['bytes']:,} B"),
        machine=measured_on(figures),
    )


BENCHMARK = Benchmark("evidence", __doc__, ROWS, run, page, rates=(1e-3, 3e-3, 1e-2))

if __name__ == "__main__":
    command_line(BENCHMARK)

"""MNIST row by row, learned online: 28 steps of 28 pixels, and the digit is asked for at the end, or all along.

    TRACETORCH_DATA=<folder with MNIST> python benchmarks/rowwise_mnist.py [NAME ...]

Adds the rows NAME, by default all, to results/rowwise_mnist.json and writes docs/rowwise-mnist.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from _sequences import Benchmark, Figures, Row, accuracy, command_line, fit, measured_on, network, table
from tracetorch import datasets, loss
from tracetorch.tasks import Sequences

SIZES, STEPS, CLIP = (28, 128, 128, 10), 28, 1.0
TAUS = {"last": (2.0, 50.0), "ramp": (0.5, 10.0)}  # steps, by the loss
READOUT_TAUS = {"last": 20.0, "ramp": 10.0}
LANES, TEST_LANES = 50, 500
TRAIN, HELD_OUT = 60_000, 5_000  # images: of an epoch, and held out for choosing
CHOOSE = {"last": 15_000, "ramp": 55_000}  # of an epoch to choose by


@dataclass(frozen=True)
class ImageRow(Row):
    """With the loss at the "last" step, or at all as a "ramp"."""

    loss: str = "last"


ROWS = {
    "bptt": ImageRow("BPTT", "Truncated", None),
    "eligibility-k1": ImageRow("`Eligibility`", "Eligibility"),
    "mean-field-k1": ImageRow("`MeanField`", "MeanField"),
    "input-trace-k1": ImageRow("`InputTrace`", "InputTrace"),
    "input-trace-k7": ImageRow("`InputTrace`", "InputTrace", 7),
    "input-trace-k14": ImageRow("`InputTrace`", "InputTrace", 14),
    "input-trace-horizon-14": ImageRow("`InputTrace`, horizon 14", "InputTrace", 7, horizon=14),
    "truncated-k7": ImageRow("`Truncated`", "Truncated", 7),
    "truncated-k1": ImageRow("`Truncated`", "Truncated"),
    "bptt-ramp": ImageRow("BPTT", "Truncated", None, loss="ramp", clip=CLIP),
    "input-trace-ramp": ImageRow("`InputTrace`", "InputTrace", loss="ramp", clip=CLIP),
    "bptt-ramp-recurrent": ImageRow(
        "BPTT, recurrent", "Truncated", None, loss="ramp", recurrent=True, width=0.3, clip=CLIP
    ),
    "input-trace-ramp-recurrent": ImageRow(
        "`InputTrace`, recurrent", "InputTrace", 4, loss="ramp", recurrent=True, width=0.4, clip=CLIP
    ),
}


@cache
def images() -> datasets.Images:
    """MNIST, read once."""
    return datasets.mnist()


def batches(x: Tensor, y: Tensor, order: Tensor, lanes: int, row: ImageRow) -> Iterator[Sequences]:
    """The images (N, 784) in the order given, as rows over time (28, B, 28)."""
    weights = loss.ramp(STEPS) if row.loss == "ramp" else loss.last(STEPS)
    for batch in order.split(lanes):
        yield Sequences(datasets.rows(x[batch]), y[batch], weights)


def run(row: ImageRow, seed: int, lr: float, updates: int | None, validate: bool) -> Figures:
    """Train on one epoch, test on the test images; to choose a rate, on a shorter one and on held-out images."""
    train_x, train_y, test_x, test_y = images()
    if validate:
        test_x, test_y = train_x[-HELD_OUT:], train_y[-HELD_OUT:]
        train_x, train_y = train_x[:-HELD_OUT], train_y[:-HELD_OUT]
    order = torch.randperm(len(train_x), generator=torch.Generator().manual_seed(1000 + seed))
    order = order[: LANES * updates if updates else CHOOSE[row.loss] if validate else TRAIN]
    model = network(SIZES, TAUS[row.loss], row, seed, tau=READOUT_TAUS[row.loss])
    model.calibrate(next(batches(train_x, train_y, order, LANES, row)).x)
    learned = batches(train_x, train_y, order, LANES, row)
    seconds = fit(model, learned, len(order) // LANES, lr, row)
    tests = batches(test_x, test_y, torch.arange(len(test_x)), TEST_LANES, row)
    return {"accuracy": accuracy(model, tests), "seconds": seconds}


PAGE = """# MNIST row by row

Made by `python benchmarks/rowwise_mnist.py`. The rows of an image are 28 steps of 28 input currents.

{sizes}: LIF layers with time constants log-uniform over {last_low:g} to {last_high:g} steps where the loss is at the last step, over
{ramp_low:g} to {ramp_high:g} with the ramp, one per neuron, and an LI readout with one of {last_tau:g} steps and of {ramp_tau:g}. The surrogate has a
half-width of 0.5, in recurrent layers of 0.4, or 0.3 for BPTT. One epoch in batches of {lanes}, an update when the
images of a batch end; Adam, with the ramp the norm of the gradient at most {clip:g}, the learning rate falling along a
cosine from the best of {rates}, chosen by training on {choose_last:,} images, {choose_ramp:,} with the ramp, and testing on
{held_out:,} other training images. K is the window: with K = 1 nothing but the rule's traces is kept of the past.
Accuracy on the 10,000 test images, mean and standard deviation of three seeds, each of which gives every rule the same
network and the same order of images; seconds of training, the median. Time constants, widths, the clipping and the
window of the recurrent rows were chosen by trying some on the held-out training images.

## The digit is asked for at the last step only

{last}

## At every step, weighted as a ramp

{ramp}

{machine}
"""


def page(figures: Figures) -> str:
    """The page, from what was saved."""
    by_loss = {kind: {name: row for name, row in ROWS.items() if row.loss == kind} for kind in ("last", "ramp")}
    return PAGE.format(
        sizes="-".join(map(str, SIZES)),
        last_low=TAUS["last"][0],
        last_high=TAUS["last"][1],
        ramp_low=TAUS["ramp"][0],
        ramp_high=TAUS["ramp"][1],
        clip=CLIP,
        last_tau=READOUT_TAUS["last"],
        ramp_tau=READOUT_TAUS["ramp"],
        lanes=LANES,
        rates=", ".join(f"{rate:g}" for rate in BENCHMARK.rates),
        choose_last=CHOOSE["last"],
        choose_ramp=CHOOSE["ramp"],
        held_out=HELD_OUT,
        last=table(by_loss["last"], figures),
        ramp=table(by_loss["ramp"], figures),
        machine=measured_on(figures),
    )


BENCHMARK = Benchmark("rowwise_mnist", __doc__, ROWS, run, page, rates=(3e-3, 1e-2, 2e-2))

if __name__ == "__main__":
    command_line(BENCHMARK)

"""MNIST with a convolutional network, learned online: each image is a constant current for ten steps.

    TRACETORCH_DATA=<folder with MNIST> python benchmarks/conv_mnist.py [NAME ...]

Adds the rows NAME, by default all, to results/conv_mnist.json and writes docs/conv-mnist.md. Some five minutes for each
row and seed on one core.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import torch
from torch import Tensor, nn

import tracetorch as tt
from _sequences import Benchmark, Figures, Row, accuracy, command_line, fit, measured_on, table
from tracetorch import datasets
from tracetorch.tasks import Sequences

STEPS, EPOCHS, LANES, TEST_LANES = 10, 2, 64, 250
BETA, READOUT_BETA, WIDTH = 0.8, 0.9, 0.5
CHOOSE, HELD_OUT = 10_000, 5_000  # images: of an epoch to choose a learning rate by, and held out for choosing

ROWS = {
    "input-trace-k5": Row("`InputTrace`", "InputTrace", 5, width=WIDTH, clip=1.0),
    "input-trace-k1": Row("`InputTrace`", "InputTrace", 1, width=WIDTH, clip=1.0),
    "bptt": Row("BPTT", "Truncated", None, width=WIDTH, clip=1.0),
}


@cache
def images() -> datasets.Images:
    """MNIST, read once."""
    return datasets.mnist()


def network(row: Row, seed: int) -> tt.Sequential:
    """Two convolutions of 5 x 5 with a maximum over 2 x 2 after each, and a readout."""
    torch.manual_seed(seed)
    options = {"beta": BETA, "surrogate": tt.surrogate.ArcTan(row.width)}
    return tt.Sequential(
        tt.LIF(synapse=nn.Conv2d(1, 16, 5), **options),
        nn.MaxPool2d(2),
        tt.LIF(synapse=nn.Conv2d(16, 32, 5), **options),
        nn.MaxPool2d(2),
        nn.Flatten(),
        tt.LI(512, 10, beta=READOUT_BETA),
        rule=getattr(tt, row.rule)(),
    )


def batches(x: Tensor, y: Tensor, order: Tensor, lanes: int) -> Iterator[Sequences]:
    """The images (N, 784) in the order given, as constant currents (10, B, 1, 28, 28)."""
    for batch in order.split(lanes):
        current = x[batch].view(1, -1, 1, datasets.PIXELS, datasets.PIXELS)
        yield Sequences(current.expand(STEPS, -1, -1, -1, -1), y[batch], torch.full((STEPS,), 1 / STEPS))


def run(row: Row, seed: int, lr: float, updates: int | None, validate: bool) -> Figures:
    """Train for two epochs, test on the test images; to choose a rate, on fewer images and on held-out ones."""
    train_x, train_y, test_x, test_y = images()
    if validate:
        test_x, test_y = train_x[-HELD_OUT:], train_y[-HELD_OUT:]
        train_x, train_y = train_x[:-HELD_OUT], train_y[:-HELD_OUT]
    generator = torch.Generator().manual_seed(1000 + seed)
    order = torch.cat([torch.randperm(len(train_x), generator=generator) for _ in range(EPOCHS)])
    order = order[: LANES * updates if updates else CHOOSE if validate else None]
    model = network(row, seed)
    model.calibrate(next(batches(train_x, train_y, order, LANES)).x)
    learned = batches(train_x, train_y, order, LANES)
    seconds = fit(model, learned, -(-len(order) // LANES), lr, row)
    found = accuracy(model, batches(test_x, test_y, torch.arange(len(test_x)), TEST_LANES))
    return {"accuracy": found, "seconds": seconds, "tape_bytes": model.tape_bytes(1, row.window or STEPS)}


PAGE = """# MNIST with convolutions

Made by `python benchmarks/conv_mnist.py`. Each image is a constant current for {steps} steps.

Two convolutions of 5 x 5 with 16 and 32 channels of LIF neurons (beta {beta}), a maximum over 2 x 2 after each, and an
LI readout (beta {readout}) of 512 inputs, its output compared with the digit at every step. Two epochs in batches of
{lanes}, an update when a batch has been seen for {steps} steps; Adam, the gradient's norm clipped at 1, the learning
rate falling along a cosine from the best of {rates}, chosen by training on {choose:,} images and testing on
{held_out:,} other training images. K is the window: what is kept of the past besides it are the layers' traces. Accuracy
on the 10,000 test images, mean and standard deviation of the seeds; seconds of training for both epochs, the median. Other
programs ran beside the second and the third seed of `InputTrace`, whose first took 350 seconds.

{table}

{machine}
"""


def page(figures: Figures) -> str:
    """The page, from what was saved."""
    return PAGE.format(
        steps=STEPS,
        beta=BETA,
        readout=READOUT_BETA,
        lanes=LANES,
        rates=" and ".join(f"{rate:g}" for rate in BENCHMARK.rates),
        choose=CHOOSE,
        held_out=HELD_OUT,
        table=table(ROWS, figures, **{"tape, bytes per lane": tape}),
        machine=measured_on(figures),
    )


def tape(measured: Figures) -> str:
    """What is kept of a window."""
    return f"{measured['runs'][0]['tape_bytes']:,}"


BENCHMARK = Benchmark("conv_mnist", __doc__, ROWS, run, page, rates=(2e-3, 5e-3))

if __name__ == "__main__":
    command_line(BENCHMARK)

"""Spoken digits as spikes, learned online: recordings of 28 to 456 steps of 5 ms, and the digit is asked for all along.

    TRACETORCH_DATA=<folder with fsdd/fsdd_spikes.npz> python benchmarks/spoken_digits.py [NAME ...]

Adds the rows NAME, by default all, to results/spoken_digits.json and writes docs/spoken-digits.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import islice

import torch
from torch import Tensor

from _sequences import Benchmark, Figures, Row, accuracy, command_line, fit, measured_on, network, table
from tracetorch import datasets
from tracetorch.tasks import Sequences

SIZES, TAUS, READOUT_TAU = (120, 128, 128, 10), (1.0, 10.0), 20.0
LANES, TEST_LANES, EPOCHS, POOL = 50, 100, 12, 500
HELD_OUT = range(5, 15)  # of each speaker's takes of a digit, those that settings are chosen by; 0 to 4 are for testing
WINDOW, WIDTH, CLIP = 10, 0.4, 1.0

ROWS = {
    "bptt": Row("BPTT", "Truncated", None, width=WIDTH, clip=CLIP),
    "input-trace": Row("`InputTrace`", "InputTrace", WINDOW, width=WIDTH, clip=CLIP),
    "bptt-recurrent": Row("BPTT, recurrent", "Truncated", None, recurrent=True, width=0.15, clip=CLIP),
    "input-trace-recurrent": Row(
        "`InputTrace`, recurrent", "InputTrace", WINDOW, recurrent=True, width=WIDTH, clip=CLIP
    ),
    "truncated-recurrent": Row("`Truncated`, recurrent", "Truncated", WINDOW, recurrent=True, width=WIDTH, clip=CLIP),
}


@cache
def spoken() -> datasets.SpokenDigits:
    """The recordings, read once."""
    return datasets.spoken_digits()


def sequences(data: datasets.Recordings, chosen: Tensor) -> Sequences:
    """The recordings (B,) chosen, with silence after their ends and a ramp of loss weights up to there."""
    x, target, mask = data.batch(chosen)
    ramp = mask.cumsum(0) * mask
    return Sequences(x, target, ramp / ramp.sum(0))


def by_length(data: datasets.Recordings, order: Tensor, lanes: int) -> tuple[Tensor, ...]:
    """Batches of recordings of similar lengths."""
    return order[data.steps[order].argsort(stable=True)].split(lanes)


def epochs(data: datasets.Recordings, generator: torch.Generator) -> Iterator[Sequences]:
    """Batches without end: similar lengths together within pools of an epoch, in random order."""
    while True:
        order = torch.randperm(len(data), generator=generator)
        batches = [batch for pool in order.split(POOL) for batch in by_length(data, pool, LANES)]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield sequences(data, batches[i])


def run(row: Row, seed: int, lr: float, updates: int | None, validate: bool) -> Figures:
    """Train on the training recordings and test on the others; to choose a rate, on held-out ones of those."""
    train, test = spoken()
    if validate:
        held_out = (train.index >= HELD_OUT.start) & (train.index < HELD_OUT.stop)
        train, test = train.subset(~held_out), train.subset(held_out)
    learned = epochs(train, torch.Generator().manual_seed(1000 + seed))
    updates = updates or EPOCHS * -(-len(train) // LANES)
    model = network(SIZES, TAUS, row, seed, tau=READOUT_TAU)
    model.calibrate(next(learned).x)
    seconds = fit(model, islice(learned, updates), updates, lr, row)
    tests = (sequences(test, batch) for batch in by_length(test, torch.arange(len(test)), TEST_LANES))
    return {"accuracy": accuracy(model, tests), "seconds": seconds, "bytes": bytes_kept(row)}


def bytes_kept(row: Row) -> int:
    """State and tape of one lane, in the longest recording."""
    model = network(SIZES, TAUS, row, 0, tau=READOUT_TAU)
    steps = max(int(part.steps.max()) for part in spoken())
    return model.state_bytes(lanes=1) + model.tape_bytes(lanes=1, window=row.window or steps)


PAGE = """# Spoken digits

Made by `python benchmarks/spoken_digits.py`. The Free Spoken Digit Dataset (Jakobovski; CC BY-SA 4.0): ten digits by
six speakers, 3,000 recordings of 28 to 456 steps of 5 ms, as spikes of 120 channels: 40 mel bands, each with a
sustained, an onset and an offset channel. The official split: the first five takes of each speaker and digit, 300
recordings, are for testing, the other 2,700 for training. For comparison, logistic regression on the spike counts gets
91.3 %, on the counts in eight parts of the recording 95.3 %.

{sizes}: LIF layers, 256 neurons in all, with time constants log-uniform over {low:g} to {high:g} steps, one per neuron, and
an LI readout with one of {readout:g} steps. The digit is asked for at every step, with weights that grow linearly to the end of the
recording; the answer is the output summed over steps with these weights. {epochs} epochs in batches of {lanes} recordings, an
update when those of a batch end; Adam, the norm of the gradient at most {clip:g}, the learning rate falling along a cosine
from the best of {rates}. K is the window; kept are `state_bytes` and the
`tape_bytes` of a window, of one lane in the longest recording. The surrogate has a half-width of {width:g}, of 0.15 for BPTT with
recurrent weights, which learned worse with wider ones.

The learning rate, width, time constants, window and number of epochs were chosen by takes 5 to 14 of each speaker and digit
while training on the others, which lie in the training set. Accuracy on the 300 test recordings, mean and standard
deviation of three seeds, each of which gives every rule the same network and the same order of recordings; one recording is
0.33 %, so that the rules are hardly told apart, and a window of 50 ms is enough. Seconds of training, the median.

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
        epochs=EPOCHS,
        lanes=LANES,
        clip=CLIP,
        width=WIDTH,
        rates=", ".join(f"{rate:g}" for rate in BENCHMARK.rates),
        table=table(ROWS, figures, kept=lambda row: f"{row['runs'][0]['bytes']:,} B"),
        machine=measured_on(figures),
    )


BENCHMARK = Benchmark("spoken_digits", __doc__, ROWS, run, page, rates=(2e-3, 5e-3, 1e-2))

if __name__ == "__main__":
    command_line(BENCHMARK)

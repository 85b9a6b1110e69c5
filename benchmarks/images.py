"""Accuracy on real images, three seeds each.

    TRACETORCH_DATA=<folder with MNIST> python benchmarks/images.py [NAME ...]

Names: mean-rate-bernoulli, mean-rate-pixels, input-trace, digits; by default all. Adds them to results/images.json and
writes the table of README.md. On one core: some three minutes per seed for either of MeanRate's rows, less than one for
the others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch

from _record import load, machine, save, write_readme
from tracetorch import datasets, train

ROOT = Path(__file__).parents[1]
SEEDS = (0, 1, 2)


def mean_rate(seed: int, *options: str) -> dict[str, float]:
    """The original's setting: 784-128-128, Softmax of 10, one image at a time, 10 steps, one backward per image."""
    sys.path.insert(0, str(ROOT / "examples"))
    import mnist

    with tempfile.TemporaryDirectory() as out:
        found = mnist.main(["--rule", "mean-rate", "--seed", str(seed), "--out", out, *options])
    return {"accuracy": found["test_accuracy"], "seconds": found["seconds"]}


def input_trace(seed: int) -> dict[str, float]:
    """784-128-128-10, Bernoulli, 15 steps, batch 100, one epoch: the defaults of `tracetorch train mnist`."""
    settings = train.ImageSettings(seed=seed)
    data = datasets.mnist()
    model = train.build(data.train_x.shape[1], 10, settings)
    start = time.perf_counter()
    *_, last = train.fit(model, data, settings)
    return {"accuracy": last.test_accuracy or 0.0, "seconds": time.perf_counter() - start}


def digits(seed: int) -> dict[str, float]:
    """`tracetorch train digits`, from the start of the process to its end."""
    with tempfile.TemporaryDirectory() as out:
        tracetorch = Path(sys.executable).parent / "tracetorch"
        command = [tracetorch, "train", "digits", "--seed", str(seed), "--out", out]
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - start
        metrics = json.loads((Path(out) / "metrics.json").read_text())
    return {"accuracy": metrics["test_accuracy"], "seconds": seconds}


ROWS: dict[str, tuple[str, Callable[[int], dict[str, float]]]] = {
    "digits": ("`tracetorch train digits` (scikit-learn's 8 x 8 digits, held-out fifth)", digits),
    "input-trace": (
        "MNIST, `InputTrace`, 784-128-128-10, Bernoulli spikes, 15 steps, 100 lanes, one epoch",
        input_trace,
    ),
    "mean-rate-pixels": (
        "MNIST, `MeanRate`, 784-128-128-Softmax of 10, pixels as they are, 10 steps, one image at a time, one epoch",
        lambda seed: mean_rate(seed, "--encoding", "constant"),
    ),
    "mean-rate-bernoulli": ("the same, Bernoulli spikes at intensity 0.3", mean_rate),
}


def table(figures: dict[str, Any]) -> str:
    """The rows that have been measured, as Markdown."""
    lines = ["| | test accuracy, three seeds | seconds per seed (median) |", "|---|---|---|"]
    for name, (label, _) in ROWS.items():
        if name in figures["rows"]:
            runs = figures["rows"][name]["runs"]
            accuracies = ", ".join(f"{100 * run['accuracy']:.1f}" for run in runs)
            lines.append(f"| {label} | {accuracies} % | {median(run['seconds'] for run in runs):.0f} |")
    m = figures["rows"][next(iter(figures["rows"]))]["machine"]
    where = f"{m['processor']}, {m['cores']} cores; torch {m['torch']}, Python {m['python']}"
    return "\n".join(lines) + (
        f"\n\nMeasured by `benchmarks/images.py`, one thread each:\n{where}.\n"
        f"Learning rates, decays and thresholds were chosen by trying some on these data sets, so that the figures are\n"
        f"slightly optimistic."
    )


def main() -> None:
    """Measure the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the rows to measure")
    names = parser.parse_args().names or list(ROWS)
    for name in names:
        torch.set_num_threads(1)
        runs = []
        for seed in SEEDS:
            runs.append({"seed": seed, **ROWS[name][1](seed)})
            print(name, runs[-1], flush=True)
        rows = load("images").get("rows", {})  # read late: another row may have been measured meanwhile
        save("images", {"rows": rows | {name: {"machine": machine(), "runs": runs}}})
    write_readme("images", table(load("images")) + "\n")


if __name__ == "__main__":
    main()

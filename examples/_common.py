"""What the examples share: their options, their progress bar, the saving of their pictures."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

import tracetorch as tt
from tracetorch import plot

STABLE_EPOCHS = 10

RULES = {"input-trace": tt.InputTrace(), "mean-rate": tt.MeanRate(), "truncated": tt.Truncated()}


def at_least_one(text: str) -> int:
    """The number that an option gives, refused below 1."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return number


def options(name: str, about: str, *, rule: str, window: int) -> argparse.ArgumentParser:
    """The options that every example has, with the defaults given."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--rule", choices=RULES, default=rule, help="the learning rule of all layers")
    parser.add_argument("--window", type=at_least_one, default=window, help="steps in each call of the model")
    parser.add_argument("--seed", type=int, default=0, help="of weights, data and spikes")
    parser.add_argument("--device", default="cpu", help="such as cpu or cuda")
    parser.add_argument("--out", type=Path, default=Path("out") / name, help="where the pictures are written")
    return parser


def prepare(seed: int) -> None:
    """Make a run repeatable, and as fast as these small networks allow."""
    torch.manual_seed(seed)
    # Sharing out tensors this small among threads takes longer than computing them in one.
    torch.set_num_threads(1)


@contextmanager
def progress_bar(name: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """A progress bar over `total` of anything; yields `advance(how_many, what_to_say)`."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,}/{task.total:,}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[status]}"),
    )
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=total, status="")
        yield lambda how_many, status: progress.update(task, advance=how_many, status=status)


def binary_patterns(count: int, bits: int) -> Tensor:
    """`count` random patterns (count, bits) of zeros and ones, all different."""
    numbers = torch.randperm(2**bits)[:count]
    return (numbers[:, None] >> torch.arange(bits)).bitwise_and(1).float()


def all_right(history: list[float]) -> bool:
    """Whether the latest epochs were all without a fault: time to stop."""
    return history[-STABLE_EPOCHS:] == [1.0] * STABLE_EPOCHS


def learn_until_all_right(
    what: str, rule: str, epochs: int, train_epoch: Callable[[], float], share_right: Callable[[], float]
) -> tuple[list[float], list[float], float]:
    """Train and test in turn, for so many epochs or until all is right, with a progress bar.

    Returns:
        The loss and the share of `what` that was right, after each epoch; the seconds it took.
    """
    losses: list[float] = []
    right: list[float] = []
    start = time.perf_counter()
    with progress_bar(what, epochs) as advance:
        while len(right) < epochs and not all_right(right):
            losses.append(train_epoch())
            right.append(share_right())
            advance(1, f"loss {losses[-1]:.4f}, {what} right {right[-1]:.0%}")
    seconds = time.perf_counter() - start
    print(f"{rule}: {right[-1]:.0%} of the {what} right after {len(right)} epochs, {seconds:.1f} s")
    return losses, right, seconds


def raster_of_layers(model: tt.Sequential, x: Tensor) -> Figure:
    """The spikes of one lane, x (K, 1, n), on their way through the model: a raster per layer, the input first."""
    with tt.no_learning():
        spikes = [x]
        for layer in model:
            layer.reset()
            spikes.append(layer.window(spikes[-1]))
    model.reset()
    heights = [1 + 0.02 * min(spk.shape[-1], 60) for spk in spikes]
    figure = Figure(figsize=(7, 1.5 * sum(heights)), dpi=120, layout="constrained")
    rows = figure.subplots(len(spikes), sharex=True, height_ratios=heights)
    for i, (ax, spk) in enumerate(zip(rows, spikes, strict=True)):
        plot.raster(spk[:, 0], ax=ax, title="input" if i == 0 else f"layer {i}: {type(model[i - 1]).__name__}")
        ax.label_outer()
    return figure


def save_pictures(out: Path, **figures: Figure) -> None:
    """Write each figure to `out` as <name>.png."""
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png")
    print(f"pictures: {', '.join(str(out / f'{name}.png') for name in figures)}")

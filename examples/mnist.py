"""Handwritten digits from spike rates: 784-128-128 spiking neurons and a stochastic softmax readout.

Every pixel of an image spikes at random, more often the brighter it is, for 10 steps; with `--encoding constant` the
pixels are fed as they are. At every step the readout draws one of ten classes, and the loss compares the share of draws
that each class got with the one-hot target. One image at a time, with one backward and one update each, as if the
images came in as a stream.

Run it with `python mnist.py`; needs `pip install 'tracetorch-online[cli]'`. The images are downloaded unless --data, or
the environment variable TRACETORCH_DATA, names a folder that has them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import tracetorch as tt
from _common import RULES, at_least_one, options, prepare, progress_bar, raster_of_layers, save_pictures
from tracetorch import plot
from tracetorch.datasets import mnist

CLASSES = 10
# AdamW moves every weight by about its learning rate, and a digit lights a hundred pixels: against a threshold of 1
# each update is a large one. Against 3 the same updates are gentler.
THRESHOLD = 3.0
POINTS = 60  # of the learning curves, about
TEST_LANES = 500  # test images side by side


def encode(images: Tensor, args: argparse.Namespace) -> Tensor:
    """Images (B, 784) over time: (steps, B, 784)."""
    if args.encoding == "constant":
        return images.expand(args.steps, *images.shape)
    return tt.encode.bernoulli(images, args.steps, intensity=args.intensity)


def shares_of_classes(model: tt.Sequential, images: Tensor, args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Show images (B, 784) to as many fresh lanes: the share of draws (B, 10), and the output of the last window."""
    model.reset()
    counts = torch.zeros(len(images), CLASSES, device=images.device)
    for x in encode(images, args).split(args.window):
        y = model.window(x)
        counts += y.sum(0)
    return counts / args.steps, y


def train(
    model: tt.Sequential, images: Tensor, labels: Tensor, every: int, args: argparse.Namespace
) -> dict[str, list[float]]:
    """Learn from every image once per epoch, in random order; loss and accuracy as means over `every` updates."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    targets = torch.eye(CLASSES, device=images.device)[labels]
    order = torch.cat([torch.randperm(len(images)) for _ in range(args.epochs)]).to(images.device)
    sums = torch.zeros(2, device=images.device)
    curves: dict[str, list[float]] = {"loss": [], "accuracy": []}
    status = ""
    with progress_bar("mnist", len(order)) as advance:
        for number, batch in enumerate(order.split(args.lanes), start=1):
            shares, y = shares_of_classes(model, images[batch], args)
            loss, ls = tt.loss.mse(shares, targets[batch])
            # The share is a mean over steps. The last window stands for all of them: each of its steps has 1/K of it.
            model.backward((ls / len(y)).expand_as(y))
            optimizer.step()
            optimizer.zero_grad()
            sums += torch.stack([loss, (shares.argmax(-1) == labels[batch]).float().mean()])
            if number % every == 0:
                for curve, mean in zip(curves.values(), (sums / every).tolist(), strict=True):
                    curve.append(mean)
                sums.zero_()
                status = f"loss {curves['loss'][-1]:.4f}, right {curves['accuracy'][-1]:.1%}"
            advance(len(batch), status)
    return curves


def evaluate(model: tt.Sequential, images: Tensor, labels: Tensor, args: argparse.Namespace) -> float:
    """The share of images whose class is drawn most often."""
    with tt.no_learning():
        shares = torch.cat([shares_of_classes(model, some, args)[0] for some in images.split(TEST_LANES)])
    model.reset()
    return tt.metrics.accuracy(shares, labels)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = options("mnist", __doc__.splitlines()[0], rule="mean-rate", window=10)
    parser.add_argument("--data", help="the folder of the images; default: $TRACETORCH_DATA, or a download")
    parser.add_argument("--images", type=at_least_one, default=60_000, help="how many images to learn from")
    parser.add_argument("--epochs", type=at_least_one, default=1, help="how often each of them is shown")
    parser.add_argument(
        "--lanes", type=at_least_one, default=1, help="images side by side, with one update for all of them"
    )
    parser.add_argument("--steps", type=at_least_one, default=10, help="how long each image is shown")
    parser.add_argument("--encoding", choices=("bernoulli", "constant"), default="bernoulli", help="of the pixels")
    parser.add_argument(
        "--intensity",
        type=float,
        nargs=2,
        default=(0.0, 0.3),
        metavar=("LOW", "HIGH"),
        help="spikes per step of a black and of a white pixel",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, report, save the pictures; returns what was reached."""
    args = parse(argv)
    prepare(args.seed)
    try:
        data = mnist(args.data)
    except (OSError, RuntimeError, ValueError) as error:
        raise SystemExit(str(error)) from None
    train_x, train_y = data.train_x[: args.images].to(args.device), data.train_y[: args.images].to(args.device)
    test_x, test_y = data.test_x.to(args.device), data.test_y.to(args.device)
    model = tt.Sequential(
        tt.LIF(train_x.shape[1], 128, beta=0.9, threshold=THRESHOLD),
        tt.LIF(128, 128, beta=0.9, threshold=THRESHOLD),
        tt.Softmax(128, CLASSES, beta=0.5),  # settles well within the 10 steps
        rule=RULES[args.rule],
    ).to(args.device)

    shown = args.epochs * len(train_x)
    every = max(1, shown // args.lanes // POINTS)
    start = time.perf_counter()
    curves = train(model, train_x, train_y, every, args)
    seconds = time.perf_counter() - start
    accuracy = evaluate(model, test_x, test_y, args)

    print(f"{args.rule}: test accuracy {accuracy:.2%} after {shown:,} images, {seconds:.0f} s")
    axes = {"xlabel": "images", "every": every * args.lanes}
    save_pictures(
        args.out,
        raster=raster_of_layers(model, encode(test_x[:1], args)),
        loss=plot.learning_curve({"training": curves["loss"]}, ylabel="MSE of the shares", **axes),
        accuracy=plot.learning_curve({"training": curves["accuracy"]}, ylabel="images right (share)", **axes),
    )
    return {"test_accuracy": accuracy, "loss": curves["loss"][-1], "seconds": seconds}


if __name__ == "__main__":
    main()

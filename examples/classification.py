"""Can a spiking network tell ten random binary inputs apart? Three LIF layers and a stochastic softmax readout.

An input of ten bits is held for 50 steps; at every step the readout draws one of ten classes. The loss compares the
share of draws that each class got with the one-hot target, so it is known only at the end. The steps are presented in
short windows, and the learning signal comes once, with the last of them: what happened before it reaches the weights
through the layers' traces alone.

Run it with `python classification.py`; needs `pip install 'tracetorch-online[cli]'`.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import tracetorch as tt
from _common import (
    RULES,
    at_least_one,
    binary_patterns,
    learn_until_all_right,
    options,
    prepare,
    raster_of_layers,
    save_pictures,
)
from tracetorch import plot

SIZES = (10, 40, 40, 40)
CLASSES = 10
STEPS = 50


def hold(pattern: Tensor) -> Tensor:
    """A pattern (B, n) held for all steps: (STEPS, B, n)."""
    return pattern.expand(STEPS, *pattern.shape)


def train_epoch(
    model: tt.Sequential, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, window: int
) -> float:
    """Present every input once, in random order, with one backward and one update each; the mean loss."""
    losses = []
    for i in torch.randperm(len(inputs)).tolist():
        model.reset()
        counts = torch.zeros_like(targets[i : i + 1])
        for x in hold(inputs[i : i + 1]).split(window):
            y = model.window(x)
            counts += y.sum(0)
        loss, ls = tt.loss.mse(counts / STEPS, targets[i : i + 1])
        # The share is a mean over steps. The last window stands for all of them, so each of its steps has 1/K of it.
        model.backward((ls / len(y)).expand_as(y))
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return torch.stack(losses).mean().item()


def shares(model: tt.Sequential, inputs: Tensor) -> Tensor:
    """The share of draws of each class (B, CLASSES) for all inputs, side by side as lanes."""
    model.reset()
    with tt.no_learning():
        y = model.window(hold(inputs))
    model.reset()
    return y.mean(0)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, report, save the pictures; returns what was reached."""
    parser = options("classification", __doc__.splitlines()[0], rule="input-trace", window=5)
    parser.add_argument(
        "--epochs", type=at_least_one, default=500, help="at most so many presentations of the ten inputs"
    )
    args = parser.parse_args(argv)

    prepare(args.seed)
    inputs = binary_patterns(CLASSES, SIZES[0]).to(args.device)
    classes = torch.arange(CLASSES, device=args.device)
    targets = torch.eye(CLASSES, device=args.device)
    layers = [tt.LIF(n, m, beta=0.9) for n, m in itertools.pairwise(SIZES)]
    readout = tt.Softmax(SIZES[-1], CLASSES, beta=0.9)
    model = tt.Sequential(*layers, readout, rule=RULES[args.rule]).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)

    losses, right, seconds = learn_until_all_right(
        "classes",
        args.rule,
        args.epochs,
        train_epoch=lambda: train_epoch(model, optimizer, inputs, targets, args.window),
        share_right=lambda: tt.metrics.accuracy(shares(model, inputs), classes),
    )
    save_pictures(
        args.out,
        raster=raster_of_layers(model, hold(inputs[:1])),
        loss=plot.learning_curve({"loss": losses}, xlabel="epoch", ylabel="MSE of the shares"),
        accuracy=plot.learning_curve({"classes": right}, xlabel="epoch", ylabel="classes right (share)"),
    )
    return {"classes_right": right[-1], "loss": losses[-1], "epochs": len(right), "seconds": seconds}


if __name__ == "__main__":
    main()

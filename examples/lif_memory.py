"""Can a stack of spiking layers memorise? Five random binary inputs, each to recall its own random binary output.

An input of ten bits is held for 50 steps; the network, four LIF layers and nothing else, shall spike at the last step
exactly where the target has a one. The steps are presented in short windows. The learning signal comes only at the very
end, with the last window, so what happened before it reaches the weights through the layers' traces alone. (Since the
input never changes, the last window tells enough of it: --rule truncated, without any traces, learns the task too.)

Run it with `python lif_memory.py`; needs `pip install 'tracetorch-online[cli]'`.
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

SIZES = (10, 40, 40, 40, 10)
PAIRS = 5
STEPS = 50
# In the soft estimate every rate has a slope. In the default one, an output neuron that is driven far above threshold
# has almost none, and if it is wrong it stays wrong.
MEMORY_RULES = RULES | {"mean-rate": tt.MeanRate(rate="sigmoid")}


def hold(pattern: Tensor) -> Tensor:
    """A pattern (B, n) held for all steps: (STEPS, B, n)."""
    return pattern.expand(STEPS, *pattern.shape)


def train_epoch(
    model: tt.Sequential, optimizer: torch.optim.Optimizer, inputs: Tensor, targets: Tensor, window: int
) -> float:
    """Present every pair once, in random order, with one backward and one update each; the mean loss."""
    losses = []
    for i in torch.randperm(len(inputs)).tolist():
        model.reset()
        for x in hold(inputs[i : i + 1]).split(window):
            spk = model.window(x)
        loss, ls = tt.loss.mse(spk, targets[i : i + 1], tt.loss.last(len(spk)))
        model.backward(ls)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss)
    return torch.stack(losses).mean().item()


def bits_right(model: tt.Sequential, inputs: Tensor, targets: Tensor) -> float:
    """The share of bits recalled at the last step, all pairs side by side as lanes."""
    model.reset()
    with tt.no_learning():
        spk = model.window(hold(inputs))
    model.reset()
    return tt.metrics.bit_accuracy(spk[-1], targets)


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, report, save the pictures; returns what was reached."""
    parser = options("lif_memory", __doc__.splitlines()[0], rule="input-trace", window=5)
    parser.add_argument(
        "--epochs", type=at_least_one, default=500, help="at most so many presentations of the five pairs"
    )
    args = parser.parse_args(argv)

    prepare(args.seed)
    inputs, targets = binary_patterns(PAIRS, SIZES[0]), binary_patterns(PAIRS, SIZES[-1])
    inputs, targets = inputs.to(args.device), targets.to(args.device)
    layers = [tt.LIF(n, m, beta=0.9) for n, m in itertools.pairwise(SIZES)]
    model = tt.Sequential(*layers, rule=MEMORY_RULES[args.rule]).to(args.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, fused=True)

    losses, right, seconds = learn_until_all_right(
        "bits",
        args.rule,
        args.epochs,
        train_epoch=lambda: train_epoch(model, optimizer, inputs, targets, args.window),
        share_right=lambda: bits_right(model, inputs, targets),
    )
    save_pictures(
        args.out,
        raster=raster_of_layers(model, hold(inputs[:1])),
        loss=plot.learning_curve({"loss": losses}, xlabel="epoch", ylabel="MSE at the last step"),
        accuracy=plot.learning_curve({"bits": right}, xlabel="epoch", ylabel="bits right (share)"),
    )
    return {"bits_right": right[-1], "loss": losses[-1], "epochs": len(right), "seconds": seconds}


if __name__ == "__main__":
    main()

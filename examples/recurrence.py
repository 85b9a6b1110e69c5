"""Recurrent spiking neurons, with and without a threshold that adapts: which of two patterns came first?

Run it with `python recurrence.py`.
"""

from __future__ import annotations

import torch

import tracetorch as tt
from tracetorch import tasks

WINDOW, LANES = 5, 32


def network(horizon: int | None = None, **options: object) -> tt.Sequential:
    """One recurrent layer with time constants of 2 to 30 steps, and a readout."""
    torch.manual_seed(0)
    taus = torch.logspace(0.3, 1.5, 64).tolist()
    surrogate = tt.surrogate.ArcTan(width=0.3)  # narrow: recurrent gradients explode otherwise
    hidden = tt.LIF(41, 64, tau=taus, recurrent=True, self_connections=False, surrogate=surrogate, **options)
    return tt.Sequential(hidden, tt.LI(64, 2, tau=10.0), rule=tt.InputTrace(), horizon=horizon)


def learn(model: tt.Sequential, updates: int) -> float:
    """The accuracy after so many updates, one for each batch of sequences."""
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(updates):
        model.reset()
        optimizer.zero_grad()
        x, target, weights = tasks.order_of_patterns(LANES)
        for part, w in zip(x.split(WINDOW), weights.split(WINDOW), strict=True):
            y = model.window(part)
            if w.any():  # the answer is due: go back
                model.backward(tt.loss.cross_entropy(y, target, w).ls)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    with tt.no_learning():
        model.reset()
        x, target, _ = tasks.order_of_patterns(500)
        return tt.metrics.accuracy(model.window(x)[-5:].mean(0), target)


def main(updates: int = 150) -> dict[str, float]:
    """The accuracy of each network."""
    return {
        "windows of 5 steps": learn(network(), updates),
        "a horizon of 65 steps": learn(network(horizon=65), updates),
        "with adapting thresholds": learn(network(horizon=65, kappa=0.1, tau_adapt=40.0, learn_kappa=True), updates),
    }


if __name__ == "__main__":
    for name, accuracy in main().items():
        print(f"{name}: {accuracy:.1%} right")

"""A convolutional network on small digits, each shown for eight steps and learned online.

Run it with `python convolution.py`; it needs scikit-learn (`pip install 'tracetorch-online[data]'`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tracetorch as tt
from tracetorch import datasets

STEPS, LANES = 8, 32


def network() -> tt.Sequential:
    """Two convolutions, the second around a shortcut, and a readout."""
    return tt.Sequential(
        tt.LIF(synapse=nn.Conv2d(1, 12, 3, padding=1), beta=0.7),
        nn.AvgPool2d(2),
        tt.Residual(tt.LIF(synapse=nn.Conv2d(12, 12, 3, padding=1), beta=[0.5] * 6 + [0.8] * 6, learn_threshold=True)),
        nn.Flatten(),
        tt.LI(12 * 4 * 4, 10, beta=0.9),
        rule=tt.InputTrace(),
    )


def as_current(images: Tensor) -> Tensor:
    """Images (B, 64) as a constant current, (STEPS, B, 1, 8, 8)."""
    return images.view(1, -1, 1, 8, 8).expand(STEPS, -1, -1, -1, -1)


def main(epochs: int = 4) -> float:
    """The accuracy on held-out images after learning."""
    torch.manual_seed(0)
    images = datasets.digits()
    model = network()
    model.calibrate(as_current(images.train_x[:LANES]))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for batch in torch.randperm(len(images.train_x)).split(LANES):
            model.reset()
            optimizer.zero_grad()
            for x in as_current(images.train_x[batch]).split(4):  # windows of K = 4 steps
                y = model.window(x)
                model.backward(tt.loss.cross_entropy(y, images.train_y[batch]).ls)
            optimizer.step()
    print(tt.health.table(model))
    with tt.no_learning():
        model.reset()
        return tt.metrics.accuracy(model.window(as_current(images.test_x)).mean(0), images.test_y)


if __name__ == "__main__":
    print(f"digits: {main():.1%} right")

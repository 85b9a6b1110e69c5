"""Learning to classify images: the library's usual loop, behind the command line, the examples and the benchmarks.

An image is shown for `steps` steps, in windows of a few steps. After every window the network learns, and then the next
window is run with the new weights: nothing is stored but the latest window and the traces, however many steps follow.

Shapes: B lanes (the images of a batch), K steps of a window, n pixels, m classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import _checks, encode, loss, metrics
from .datasets import Images
from .nn import LI, LIF, Sequential, Softmax
from .rules import InputTrace, Rule

TEST_LANES = 500
"""Images that are tested side by side: enough to be fast, few enough to need little memory."""


@dataclass(frozen=True)
class ImageSettings:
    """What there is to choose. The defaults suit one pass over MNIST.

    Args:
        hidden: the sizes of the spiking layers.
        readout: leaky integrators ("li") or probabilities of leaky integrators ("softmax").
        rule: the learning rule.
        steps: how long each image is shown.
        window: K, the steps between two changes of the weights; the last window may be shorter.
        lanes: B, the images that are learned side by side.
        epochs: passes over the training images.
        lr: the learning rate of AdamW at the start; it falls to zero along a cosine.
        seed: of the weights, the order of the images and their spikes.
        intensity: (low, high), what a pixel of 0 and of 1 become, both in [0, 1]; values between lie in between.
        encoding: "bernoulli" makes that the probability of a spike at each step, "constant" gives it as a current.

    Raises:
        ValueError: one of them is out of range.
    """

    hidden: tuple[int, ...] = (128, 128)
    readout: Literal["li", "softmax"] = "li"
    rule: Rule = field(default_factory=InputTrace)
    steps: int = 15
    window: int = 5
    lanes: int = 100
    epochs: int = 1
    lr: float = 2e-3
    seed: int = 0
    intensity: tuple[float, float] = (0.0, 1.0)
    encoding: Literal["bernoulli", "constant"] = "bernoulli"

    def __post_init__(self) -> None:
        where = "ImageSettings"
        for size in self.hidden:
            _checks.at_least_one(where, "hidden sizes", size)
        for name in ("steps", "window", "lanes", "epochs"):
            _checks.at_least_one(where, name, getattr(self, name))
        _checks.positive(where, "lr", self.lr)
        for i, value in enumerate(self.intensity):
            _checks.fraction(where, f"intensity[{i}]", value)
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"{where}: expected seed from 0 to 2^63 - 1, got {self.seed}.")
        for name, allowed in (("readout", ("li", "softmax")), ("encoding", ("bernoulli", "constant"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{where}: expected {name} to be one of {allowed}, got {getattr(self, name)!r}.")

    def batches(self, data: Images) -> int:
        """How many batches an epoch has; the last one may be smaller."""
        return math.ceil(len(data.train_x) / self.lanes)


class BatchResult(NamedTuple):
    """What learning a batch gave. Loss and accuracy are those met on the way, while the weights were changing."""

    epoch: int  # counted from 1
    loss: float
    accuracy: float  # in [0, 1], of the batch
    test_accuracy: float | None  # in [0, 1], of the test images, after the last batch of an epoch; else None


def build(n_inputs: int, n_classes: int, settings: ImageSettings) -> Sequential:
    """A network of LIF layers and a readout.

    >>> build(64, 10, ImageSettings(hidden=(32,)))[0].weight.shape
    torch.Size([32, 64])
    """
    sizes = (n_inputs, *settings.hidden)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        hidden = [LIF(n, m) for n, m in pairwise(sizes)]
        readout: LI | Softmax = LI(sizes[-1], n_classes)
        if settings.readout == "softmax":
            generator = torch.Generator().manual_seed(settings.seed)
            readout = Softmax(sizes[-1], n_classes, generator=generator)
        return Sequential(*hidden, readout, rule=settings.rule)


def fit(model: Sequential, data: Images, settings: ImageSettings) -> Iterator[BatchResult]:
    """Learn from batch after batch, each when its result is asked for: to stop early, leave the loop over them.

    Args:
        model: what learns, on the device where it is.
        data: what it learns from, on any device.
        settings: those the model was built with.

    Yields:
        What each batch gave.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(settings.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, fused=True)
    updates = settings.epochs * settings.batches(data) * math.ceil(settings.steps / settings.window)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, updates)
    kind: Literal["probs", "logits"] = "probs" if isinstance(model[-1], Softmax) else "logits"

    for epoch, last, x, target in _batches(data, settings, generator):
        model.reset()
        total, scores = 0.0, torch.zeros((), device=device)
        for x_window, weights in _windows(x, settings, generator):
            y = _read(model, model.window(x_window))
            value, ls = loss.cross_entropy(y, target, weights, of=kind)
            optimizer.zero_grad()
            model.backward(ls)
            optimizer.step()
            schedule.step()
            total, scores = total + value.item(), scores + y.sum(0)
        tested = evaluate(model, data.test_x, data.test_y, settings) if last else None
        yield BatchResult(epoch, total, metrics.accuracy(scores, target), tested)


def evaluate(model: Sequential, x: Tensor, y: Tensor, settings: ImageSettings) -> float:
    """The share of images x (N, n) that are classified as y (N,) says, in [0, 1]. The model forgets its lanes."""
    return metrics.accuracy(classify(model, x, settings).to(y.device), y)


def classify(model: Sequential, x: Tensor, settings: ImageSettings) -> Tensor:
    """The scores (N, m) of images x (N, n): the readout summed over all steps. The model forgets its lanes.

    The spikes are drawn anew from the seed, so that the same model gives the same scores.
    """
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(settings.seed)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    scores = []
    try:
        for images in torch.split(x, TEST_LANES):
            model.reset()
            total = torch.zeros((), device=device)
            for x_window, _ in _windows(images.to(device), settings, generator):
                total = total + _read(model, model.window(x_window)).sum(0)
            scores.append(total)
    finally:
        for module, training in modes.items():
            module.training = training
        model.reset()
    return torch.cat(scores)


def encode_images(x: Tensor, steps: int, settings: ImageSettings, generator: torch.Generator) -> Tensor:
    """Images (B, n) as the network sees them, (K, B, n)."""
    low, high = settings.intensity
    current = low + (high - low) * x
    if settings.encoding == "constant":
        return current.expand(steps, *x.shape)
    return encode.bernoulli(current, steps, generator=generator)


def _windows(x: Tensor, settings: ImageSettings, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows of images (B, n), each (K, B, n), encoded as they are needed, with the loss's weights (K,).

    The weights grow from step to step: at first the network cannot know yet.
    """
    for weights in torch.split(loss.ramp(settings.steps, device=x.device), settings.window):
        yield encode_images(x, len(weights), settings, generator), weights


def _batches(
    data: Images, settings: ImageSettings, generator: torch.Generator
) -> Iterator[tuple[int, bool, Tensor, Tensor]]:
    """The epoch, whether it ends with this batch, and the batch's images and classes, on the generator's device."""
    device = generator.device
    for epoch in range(1, settings.epochs + 1):
        order = torch.randperm(len(data.train_x), generator=generator, device=device)
        batches = torch.split(order.to(data.train_x.device), settings.lanes)
        for number, batch in enumerate(batches, start=1):
            yield epoch, number == len(batches), data.train_x[batch].to(device), data.train_y[batch].to(device)


def _read(model: Sequential, y: Tensor) -> Tensor:
    """What is learned and classified by: a Softmax's probabilities in place of its samples y, an LI's membranes y."""
    readout = model[-1]
    return readout.probs if isinstance(readout, Softmax) else y

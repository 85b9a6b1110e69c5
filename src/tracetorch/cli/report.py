"""What a training run leaves behind: its figures, its model and a picture."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from .. import __version__, plot
from ..datasets import Images
from ..nn import LIF, Sequential
from ..train import BatchResult, ImageSettings, classify, encode_images

FILES = ("metrics.json", "model.pt", "picture.png")
SHOWN = 8  # test images in the picture


@dataclass(frozen=True)
class Run:
    """A training run that has ended."""

    dataset: str
    rule: str  # its name on the command line
    device: str
    settings: ImageSettings
    results: list[BatchResult]
    test_accuracy: float  # in [0, 1], of the model as it is now
    seconds: float
    interrupted: bool

    def plain_settings(self) -> dict[str, Any]:
        """The settings as numbers, texts and tuples of them."""
        return {"dataset": self.dataset, "device": self.device, **asdict(self.settings), "rule": self.rule}


def write(out: Path, run: Run, model: Sequential, images: Images) -> None:
    """Write `FILES` into the folder `out`."""
    metrics, weights, image = (out / name for name in FILES)
    state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    torch.save({"settings": run.plain_settings(), "state_dict": state}, weights)
    metrics.write_text(json.dumps(_metrics(run), indent=1) + "\n")
    picture(run, model, images).savefig(image)


def _metrics(run: Run) -> dict[str, Any]:
    return {
        "settings": run.plain_settings(),
        "versions": {
            "tracetorch": __version__,
            "torch": str(torch.__version__),
            "python": platform.python_version(),
        },
        "test_accuracy": run.test_accuracy,
        "accuracy_per_epoch": [r.test_accuracy for r in run.results if r.test_accuracy is not None],
        "learning_curve": {
            "loss": [r.loss for r in run.results],
            "accuracy": [r.accuracy for r in run.results],
        },
        "seconds": run.seconds,
        "interrupted": run.interrupted,
    }


def picture(run: Run, model: Sequential, images: Images) -> Figure:
    """How learning went, what some test images are taken for, and the spikes that the first of them causes."""
    figure = Figure(figsize=(11, 6), dpi=120, layout="constrained")
    rows = figure.add_gridspec(2, 1, height_ratios=(5, 2))
    top, bottom = figure.add_subfigure(rows[0]), figure.add_subfigure(rows[1])
    curve, spikes = top.subplots(1, 2)
    if run.results:
        tested = [(i, r.test_accuracy) for i, r in enumerate(run.results, start=1) if r.test_accuracy is not None]
        curve.plot(*zip(*tested, strict=True) if tested else ([], []), "o", color=plot.COLORS[1], label="test")
        training = {"training": [r.accuracy for r in run.results]}
        plot.learning_curve(
            training, xlabel="batch", ylabel="accuracy", ax=curve, title=f"{run.test_accuracy:.2%} on test images"
        )
    spk = hidden_spikes(model, images.test_x[0], run.settings)
    plot.raster(spk, ax=spikes, title="hidden neurons, first test image")

    shown = images.test_x[:SHOWN]
    guesses = classify(model, shown, run.settings).argmax(-1).cpu()
    side = int(shown.shape[1] ** 0.5)
    for ax, x, guess, truth in zip(bottom.subplots(1, len(shown)), shown, guesses, images.test_y, strict=False):
        ax.imshow(x.view(side, side).numpy(), cmap="gray_r")
        ax.set_title(f"{guess}" if guess == truth else f"{guess}, is {truth}", fontsize="medium")
        ax.set_axis_off()
    return figure


def hidden_spikes(model: Sequential, x: Tensor, settings: ImageSettings) -> Tensor:
    """The spikes (K, m) of all hidden neurons while the image x (n,) is shown."""
    device = next(model.parameters()).device
    generator = torch.Generator(device).manual_seed(settings.seed)
    spk = encode_images(x.to(device), settings.steps, settings, generator)
    model.reset()
    layers = []
    for layer in model:
        if isinstance(layer, LIF):
            spk = layer.window(spk)
            layers.append(spk)
    model.reset()
    return torch.cat(layers, dim=-1)

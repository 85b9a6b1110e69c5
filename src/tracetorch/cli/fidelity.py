"""`tracetorch fidelity`: how close each rule's gradient is to BPTT's, as a table and a picture."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from .. import loss, tasks
from ..nn import LI, LIF, Sequential
from ..rules import Rule
from ..testing import Fidelity, fidelity

LOSSES: dict[str, Callable[[int], Tensor]] = {
    "last": loss.last,
    "ramp": loss.ramp,
    "mean": lambda steps: torch.full((steps,), 1 / steps),
}


@dataclass(frozen=True)
class FidelitySettings:
    """The network and the data that gradients are compared on."""

    sizes: tuple[int, ...] = (40, 48, 48, 48, 10)
    taus: tuple[float, float] = (2.0, 30.0)  # steps; log-uniform between them, one for each hidden neuron
    beta: float | None = None  # one for all hidden neurons instead
    readout: float = 0.95  # beta of the readout
    recurrent: bool = False
    steps: int = 96
    lanes: int = 8
    loss: str = "last"
    seed: int = 0


def network(settings: FidelitySettings) -> Sequential:
    """LIF layers and an LI readout, in float64; weights of standard deviation 1.4 / sqrt(n)."""
    torch.manual_seed(settings.seed)
    low, high = (math.log(tau) for tau in settings.taus)
    sizes = list(pairwise(settings.sizes))
    layers: list[LIF | LI] = []
    for n, m in sizes[:-1]:
        taus = None if settings.beta is not None else torch.exp(torch.empty(m).uniform_(low, high))
        layers.append(LIF(n, m, beta=settings.beta, tau=taus, recurrent=settings.recurrent, dtype=torch.float64))
    layers.append(LI(*sizes[-1], beta=settings.readout, dtype=torch.float64))
    with torch.no_grad():
        for layer in layers:
            layer.weight.normal_(std=1.4 / math.sqrt(layer.in_features))
    return Sequential(*layers)


def report(
    settings: FidelitySettings,
    rules: list[Rule],
    windows: list[int],
    horizons: list[int | None],
    lr: float | None,
    updates: int,
    every: int | None,
) -> Fidelity:
    """The rows."""
    model = network(settings)
    generator = torch.Generator().manual_seed(settings.seed)
    x, target, _ = tasks.drifting_bump(
        settings.lanes,
        steps=settings.steps,
        channels=settings.sizes[0],
        classes=settings.sizes[-1],
        generator=generator,
    )
    weights = LOSSES[settings.loss](settings.steps)
    return fidelity(
        model,
        x.double(),
        lambda y: loss.cross_entropy(y, target, weights),
        rules=rules,
        windows=windows,
        horizons=horizons,
        lr=lr,
        updates=updates,
        every=every,
    )


def write(folder: Path, found: Fidelity) -> list[Path]:
    """Write the table and the picture: the last update's cosines of the weights."""
    from .. import plot

    latest = max(row.update for row in found)
    weights = [row for row in found.only(update=latest) if row.parameter.endswith("synapse.weight")]
    curves: dict[str, dict[str, dict[int, float]]] = {}
    for row in weights:
        rule = row.rule if row.horizon is None else f"{row.rule}, horizon {row.horizon}"
        layer = f"layer {row.parameter.removesuffix('.synapse.weight')}"
        curves.setdefault(layer, {}).setdefault(rule, {})[row.window] = row.cosine
    folder.mkdir(parents=True, exist_ok=True)
    table, picture = folder / "fidelity.md", folder / "fidelity.png"
    table.write_text(found.markdown() + "\n")
    plot.cosines(curves).savefig(picture)
    return [table, picture]

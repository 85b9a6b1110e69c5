"""What a step costs, and how that grows: with width, batch, depth, T, window, horizon, rule and neuron.

    make growth                           all of it: some ten minutes
    python benchmarks/growth.py           measures, writes results/growth.json
    python benchmarks/growth.py --page    writes docs/growth.md and its plot from it

`--only width,batch` measures these alone, and keeps what is recorded of the others on the same machine. Every row is
timed beside its floor, the matrix products that it cannot do without.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import conv_mnist
import tracetorch as tt
from _peers import ACTIVITY, BETA, Contestant, Floor, Source, StepwiseOTTT, Weights, ours, weights
from _record import load, machine, save
from _timing import cell, decorate, in_a_row, spread, table

DOCS = Path(__file__).parents[1] / "docs"
CHART = "growth.svg"
FEWEST, MOST = 5, 30  # rounds
MIDDLE, LANES, K = (784, 128, 128, 10), 32, 32
SHD = (700, 256, 256, 20)
STEPS = 64  # of a run at least; the input is as long, and comes again
MANY = 4  # G of Eligibility
INPUT_TRACE = tt.InputTrace()


# -- what is timed -----------------------------------------------------------------------------------------------------


class Endless:
    """Input that lies in memory, (T, B, n), again and again."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.at = x, 0

    def window(self, steps: int) -> Tensor:
        """The next (steps, B, n)."""
        start = self.at % len(self.x)
        self.at += steps
        return self.x[start : start + steps]

    def step(self) -> Tensor:
        """The next (B, n)."""
        return self.window(1)[0]


class Learner(Contestant):
    """A net of this library in a stream: after each window a loss and a backward, gradients zeroed before the next."""

    def __init__(self, net: tt.Sequential, window: int, reset: bool = False, zero: bool = True) -> None:
        self.net, self.window, self.reset, self.zero = net, window, reset, zero
        self.learned = list(net.parameters())

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """The loss of the last window."""
        loss = torch.zeros(())
        if self.reset:
            self.net.reset()
        for start in range(0, steps, self.window):
            if self.zero or start == 0:
                for p in self.learned:
                    p.grad = None
            y = self.net(source.step()) if self.window == 1 else self.net.window(source.window(self.window))
            loss, ls = tt.loss.cross_entropy(y, target)
            self.net.backward(ls)
        return loss


class RecurrentFloor(Floor):
    """The products of a net whose hidden layers have recurrent weights: of those, one each step in both directions."""

    def __init__(self, layers: list[Weights], window: int) -> None:
        super().__init__(layers, window)
        self.recurrent = [torch.randn(len(layer.bias), len(layer.bias)) for layer in layers[:-1]]

    @torch.no_grad()
    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Those of the other weights, over the rows of a window at once, and then these."""
        super().run(source, steps, target)
        lanes = len(target)
        for _ in range(0, steps, self.window):
            spikes, signals, results = self._room(self.window * lanes)
            for u, s, signal, out in zip(self.recurrent, spikes, signals, results, strict=False):
                for rows, into in zip(s.split(lanes), out.split(lanes), strict=True):
                    torch.mm(rows, u.t(), out=into)
                for rows, into in zip(signal.split(lanes), out.split(lanes), strict=True):
                    torch.mm(rows, u, out=into)
                torch.mm(signal.t(), s)
        return target.new_zeros(())


class ConvolutionFloor(Contestant):
    """The convolutions of `conv_mnist`'s net and its readout's product, with their gradients alone."""

    def __init__(self, window: int) -> None:
        self.net = nn.ModuleList(layer.synapse for layer in conv_network() if isinstance(layer, (tt.LIF, tt.LI)))
        self.window = window
        self.room: list[tuple[Tensor, Tensor]] = []  # inputs and learning signals of each layer

    def _room(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Inputs as large as the maximum over 2 x 2 leaves them."""
        made = []
        for layer in self.net:
            if not isinstance(layer, nn.Conv2d):
                x = x.flatten(1)
            y = layer(x.detach())
            made.append((x.requires_grad_(bool(made)), torch.randn_like(y)))
            x = torch.empty_like(F.max_pool2d(y, 2) if y.ndim == 4 else y).bernoulli_(ACTIVITY)
        return made

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Forward, the weights' gradients, and the inputs' gradients of all layers but the first."""
        for _ in range(0, steps, self.window):
            x = source.window(self.window).flatten(0, 1)
            self.room = self.room or self._room(x)
            for i, (layer, (s, signal)) in enumerate(zip(self.net, self.room, strict=True)):
                y = layer(s if i else x)
                torch.autograd.grad(y, [layer.weight, *([s] if i else [])], signal)
        return target.new_zeros(())


def conv_network() -> tt.Sequential:
    """That of conv_mnist.py, with weights by which its neurons fire."""
    net = conv_mnist.network(conv_mnist.ROWS["input-trace-k5"], 0)
    net.calibrate(torch.empty(K, LANES, 1, 28, 28).bernoulli_(ACTIVITY, generator=torch.Generator().manual_seed(2)))
    return net


@dataclass(frozen=True)
class Row:
    """A row of a table: what is timed, and its floor."""

    make: Callable[[], Contestant]
    floor: Callable[[], Contestant]
    shape: tuple[int, ...]  # of a lane's input
    classes: int
    lanes: int
    window: int
    steps: int  # of a run
    beside: str | None = None  # the row of the same table to compare with


def dense(
    sizes: tuple[int, ...] = MIDDLE,
    *,
    lanes: int = LANES,
    window: int = K,
    rule: tt.rules.Rule = INPUT_TRACE,
    horizon: int | None = None,
    steps: int | None = None,
    reset: bool = False,
    zero: bool = True,
    beside: str | None = None,
    **neuron: Any,
) -> Row:
    """A net of Linear layers: the middle one, but for what is given."""
    layers = weights(sizes)

    def make() -> Contestant:
        torch.manual_seed(0)
        net = ours(layers, **neuron)
        net.rule, net.horizon = rule, horizon
        return Learner(net, window, reset, zero)

    floor = RecurrentFloor if neuron.get("recurrent") else Floor
    steps = steps or window * math.ceil(STEPS / window)
    return Row(make, lambda: floor(layers, window), sizes[:1], sizes[-1], lanes, window, steps, beside)


def convolutional(rule: tt.rules.Rule = INPUT_TRACE, beside: str | None = None) -> Row:
    """The net of conv_mnist.py."""
    window = conv_mnist.STEPS

    def make() -> Contestant:
        net = conv_network()
        net.rule = rule
        return Learner(net, window)

    return Row(make, lambda: ConvolutionFloor(window), (1, 28, 28), 10, LANES, window, window, beside)


def by_hand() -> Row:
    """OTTT a step at a time, in plain torch."""
    row = dense(lanes=1, window=1)
    return Row(
        lambda: StepwiseOTTT(weights(MIDDLE)), row.floor, row.shape, row.classes, row.lanes, row.window, row.steps
    )


def pair(name: str, row: Callable[..., Row], **options: Any) -> dict[str, Row]:
    """`InputTrace` and `Eligibility` with the same net."""
    eligibility = row(rule=tt.Eligibility(nodes=MANY), beside=f"{name}, InputTrace", **options)
    return {f"{name}, InputTrace": row(**options), f"{name}, Eligibility": eligibility}


WIDTHS = (64, 128, 256, 512, 1024, 2048)
BATCHES = (1, 4, 16, 64, 256, 1024)
WINDOWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEPTHS = tuple(range(1, 9))
LENGTHS = (32, 96, 992, 9984)  # whole windows
BETAS = 1 - torch.logspace(-1.3, -0.3, MIDDLE[1])
HAND, SINGLE = "OTTT by hand, in plain torch", "single steps"


def variables() -> dict[str, dict[str, Row]]:
    """The tables, each with its rows."""
    return {
        "width": {str(m): dense((784, m, m, 10)) for m in WIDTHS},
        "batch": {str(lanes): dense(lanes=lanes) for lanes in BATCHES},
        "depth": {str(depth): dense((784, *[128] * depth, 10)) for depth in DEPTHS},
        "T": {str(steps): dense(steps=steps, reset=True) for steps in LENGTHS}
        | {
            f"{steps}, single steps of one lane": dense(lanes=1, window=1, steps=steps, reset=True) for steps in LENGTHS
        },
        "window": {str(window): dense(window=window) for window in WINDOWS},
        "horizon": {"none": dense()}
        | {str(horizon): dense(horizon=horizon, beside="none") for horizon in (32, 64, 128, 256)},
        "rule": {
            "InputTrace": dense(),
            "Truncated": dense(rule=tt.Truncated(), beside="InputTrace"),
            "MeanField": dense(rule=tt.MeanField(), beside="InputTrace"),
            "MeanRate": dense(rule=tt.MeanRate(), beside="InputTrace"),
            "Eligibility": dense(rule=tt.Eligibility(nodes=MANY), beside="InputTrace"),
        },
        "neuron": {
            "one beta": dense(),
            "one beta, learned": dense(learn_beta=True, beside="one beta"),
            "a beta per neuron": dense(beta=BETAS, beside="one beta"),
            "a beta per neuron, learned": dense(beta=BETAS, learn_beta=True, beside="one beta"),
            "a synaptic current": dense(alpha=0.8, gain=0.2, beside="one beta"),
            "an adapting threshold": dense(kappa=tt.ALIF.KAPPA, rho=tt.ALIF.RHO, beside="one beta"),
            "recurrent weights": dense(recurrent=True, beside="one beta"),
        },
        "net": pair("784-128-128-10", dense)
        | pair("784-128-128-10, one lane", dense, lanes=1)
        | pair("784-128-128-10, K = 1", dense, window=1)
        | pair("700-256-256-20, recurrent, K = 100", dense, sizes=SHD, window=100, recurrent=True)
        | pair(f"convolutions, K = {conv_mnist.STEPS}", convolutional),
        "step": {
            HAND: by_hand(),
            SINGLE: dense(lanes=1, window=1, beside=HAND, zero=False),
            "single steps, gradients zeroed at each": dense(lanes=1, window=1, beside=HAND),
            "single steps, a reset every 64": dense(lanes=1, window=1, beside=HAND, zero=False, reset=True),
        },
    }


# -- measuring ---------------------------------------------------------------------------------------------------------


def firing(net: nn.Module, x: Tensor) -> list[float]:
    """How much of the time the neurons of each hidden layer fire."""
    rates = []
    with tt.no_learning():
        for layer in list(net.children())[:-1]:
            x = layer.window(x) if isinstance(layer, tt.LIF) else layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
            if isinstance(layer, tt.LIF):
                rates.append(x.mean().item())
    return rates


def measure(rows: dict[str, Row], budget: float) -> dict[str, Any]:
    """Rounds of all rows, each beside its floor, in a new order each time, until so many seconds are spent."""
    generator = torch.Generator().manual_seed(1)
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    found: dict[str, Any] = {}
    start = time.perf_counter()
    for name, row in rows.items():
        x = torch.empty(max(STEPS, row.window), row.lanes, *row.shape)
        x = x[: row.window * (len(x) // row.window)].bernoulli_(ACTIVITY, generator=generator)
        target = torch.randint(row.classes, (row.lanes,), generator=generator)
        learner, floor = row.make(), row.floor()
        found[name] = {"lanes": row.lanes, "window": row.window, "steps": row.steps, "beside": row.beside}
        if isinstance(learner, Learner):
            found[name]["rates"] = firing(row.make().net, x)
            found[name]["tape_bytes"] = learner.net.tape_bytes(row.lanes, row.window)
        for kind, contestant in (("us", learner), ("floor", floor)):
            runs[name, kind] = partial(contestant.run, Endless(x), row.steps, target)
    times: dict[tuple[str, str], list[float]] = {run: [] for run in runs}
    order = random.Random(0)
    for count in range(-1, MOST):  # the first is for warming up
        if count >= FEWEST and time.perf_counter() - start > budget:
            break
        for name in order.sample(list(rows), len(rows)):
            for kind in order.sample(["us", "floor"], 2):
                took = in_a_row(runs[name, kind])
                if count >= 0:
                    times[name, kind].append(1e6 * took / rows[name].steps)
    for name, row in found.items():
        its, floor = times[name, "us"], times[name, "floor"]
        row |= {"us": spread(its), "floor": spread(floor), "ratio": quotients(its, floor)}
        if row["beside"]:
            row["times"] = quotients(its, times[row["beside"], "us"])
    return {"rounds": len(next(iter(times.values()))), "rows": found}


def quotients(those: list[float], these: list[float]) -> dict[str, float]:
    """Of the same rounds."""
    return spread([that / this for that, this in zip(those, these, strict=True)])


def report(title: str, found: dict[str, Any]) -> None:
    """Say on the terminal what was found."""
    print(f"{title}: {found['rounds']} rounds")
    for name, row in found["rows"].items():
        print(
            f"  {name:48} {row['us']['median']:10.1f} us a step, {row['ratio']['median']:6.2f} of the products", end=""
        )
        print(f", {row['times']['median']:6.2f} of {row['beside']}" if row["beside"] else "", flush=True)


def main() -> None:
    """Measure and save, or write the page."""
    tables = variables()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="for all that is measured")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", help="some of " + ",".join(tables))
    parser.add_argument("--page", action="store_true", help="write the page and its plot")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    figures = load("growth")
    wanted = arguments.only.split(",") if arguments.only else list(tables)
    if set(wanted) - set(tables):
        parser.error(f"expected --only to name some of {','.join(tables)}, got {arguments.only}.")
    versions = {"numba": version("numba")}
    here = {"machine": machine(), "versions": versions}
    kept = {name: found for name, found in figures.get("tables", {}).items() if name not in wanted}
    if kept and here != {key: figures[key] for key in here}:
        parser.error(f"what is recorded of {','.join(kept)} was measured on another machine; leave out --only.")
    end = time.perf_counter() + 60 * arguments.minutes
    for i, name in enumerate(wanted):
        kept[name] = measure(tables[name], (end - time.perf_counter()) / (len(wanted) - i))
        report(name, kept[name])
        save("growth", {"versions": versions, "tables": {each: kept[each] for each in tables if each in kept}})


if __name__ == "__main__":
    main()

"""What a step costs, and how that grows: with width, batch, depth, T, window, horizon, rule and neuron.

    make growth                           all of it: some ten minutes
    python benchmarks/growth.py           measures, writes results/growth.json
    python benchmarks/growth.py --page    writes docs/growth.md and its plot from it

`--only width,batch` measures these alone, and keeps what is recorded of the others, on the same machine. Every row is
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
from _peers import ACTIVITY, Contestant, Floor, Source, StepwiseOTTT, Weights, ours, weights
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
    compact: bool = False,
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
        net.rule, net.horizon, net.compact = rule, horizon, compact
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
LARGE, LONG = (784, 512, 512, 10), 256  # where compact tapes are compared with plain ones: the net, H
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
        "compact": {
            "plain tapes": dense(LARGE, horizon=LONG, steps=LONG),
            "compact tapes": dense(LARGE, horizon=LONG, steps=LONG, compact=True, beside="plain tapes"),
        },
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
            found[name]["state_bytes"] = learner.net.state_bytes(row.lanes)
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


def difference(rows: dict[str, Row]) -> float:
    """How far two nets' gradients after a horizon are apart, of the largest entry of each parameter's."""
    found = []
    for row in rows.values():
        learner = row.make()
        generator = torch.Generator().manual_seed(3)
        for _ in range(LONG // row.window + 2):
            learner.net.zero_grad()
            x = torch.empty(row.window, row.lanes, *row.shape).bernoulli_(ACTIVITY, generator=generator)
            y = learner.net.window(x)
            learner.net.backward(torch.sin(torch.arange(float(y.numel()))).view_as(y))
        found.append([p.grad for p in learner.net.parameters()])
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in zip(*found, strict=True))


def quotients(those: list[float], these: list[float]) -> dict[str, float]:
    """Of the same rounds."""
    return spread([that / this for that, this in zip(those, these, strict=True)])


def report(title: str, found: dict[str, Any]) -> None:
    """Say on the terminal what was found."""
    print(f"{title}: {found['rounds']} rounds")
    for name, row in found["rows"].items():
        beside = f", {row['times']['median']:6.2f} of {row['beside']}" if row["beside"] else ""
        us, ratio = row["us"]["median"], row["ratio"]["median"]
        print(f"  {name:48} {us:10.1f} us a step, {ratio:6.2f} of the products{beside}", flush=True)


# -- the page ----------------------------------------------------------------------------------------------------------

PAGE = """# How the cost of a step grows

Made by `make growth`. What one variable at a time does to the cost of a step, around one net in the middle: {middle},
LIF neurons with beta 0.9 and a leaky readout, {lanes} lanes, windows of K = {window} steps, `InputTrace`;
{activity:.0f} % of the inputs spike, and the hidden neurons, by their weights, in some 10 % of the steps ("fire").

Timed: forward, `tt.loss.cross_entropy`, backward, gradients zeroed, window after window in one stream. Beside each row,
in the same rounds, its *products*: the dense float32 matrix products alone over the rows of a window, forward, for the
gradients of all weights, and for the inputs of all layers but the first; with recurrent weights one more for each step
in both directions, with convolutions torch's convolutions and their gradients. "Times products" says where the cost is
not theirs.

Rows of a table take turns, in a new order every round, for at least {fewest} rounds; a run of less than 0.1 s comes up
to ten times in a row, and the first of them does not count. Medians, and quartiles in brackets, in microseconds per
step of all lanes. The sentences below a table are made from its figures, each of them where the figures bear it out.

{machine}

![Cost per step against width, batch, window and depth]({chart})

{sections}
"""

TITLES = {
    "width": ("Width", "m in 784-m-m-10", "m"),
    "batch": ("Batch", "Lanes that run side by side", "lanes"),
    "depth": ("Depth", "Hidden layers of 128", "layers"),
    "T": ("Length of a stream", "Steps since a reset, which is timed with them, in whole windows", "T"),
    "window": ("Window", "K, the steps of a window", "K"),
    "horizon": ("Horizon", f"H steps at K = {K}", "H"),
    "compact": (
        "Compact tapes",
        f"{'-'.join(map(str, LARGE))} with a horizon of {LONG} steps at K = {K}: spikes as bits, membranes computed "
        f"again when they are needed (`model.compact = True`)",
        "",
    ),
    "rule": ("Rule", f"`Eligibility` with G = {MANY}", "rule"),
    "neuron": ("Neuron", "Of the hidden layers", "neuron"),
    "net": (
        "Nets, and `Eligibility` beside `InputTrace`",
        f"A net of the size used for the Heidelberg digits, and [that of MNIST with convolutions](conv-mnist.md); "
        f"`Eligibility` with G = {MANY}; {LANES} lanes and K = {K} where nothing else is said",
        "net",
    ),
    "step": (
        "Single steps of one lane",
        f"{'-'.join(map(str, MIDDLE))}, a backward at each step; gradients add up over {STEPS} steps, as they do by "
        f"hand, where nothing else is said",
        "",
    ),
}


class Found:
    """The medians of a table, by the names of its rows."""

    def __init__(self, rows: dict[str, Any]) -> None:
        self.rows = rows

    def us(self, name: str) -> float:
        """Of a step."""
        return float(self.rows[name]["us"]["median"])

    def products(self, name: str) -> float:
        """Of the floor."""
        return float(self.rows[name]["floor"]["median"])

    def rest(self, name: str) -> float:
        """What a step takes besides them."""
        return self.us(name) - self.products(name)

    def lane(self, name: str) -> float:
        """Of a step and a lane."""
        return self.us(name) / int(self.rows[name]["lanes"])

    def ratio(self, name: str) -> float:
        """To the products."""
        return float(self.rows[name]["ratio"]["median"])

    def times(self, name: str) -> float:
        """To the row that it is compared with."""
        return float(self.rows[name]["times"]["median"])

    def mib(self, name: str, kind: str = "tape") -> str:
        """The record of a window, or the state that is kept between windows."""
        return f"{cell(self.rows[name][f'{kind}_bytes'] / 2**20)} MiB"


def on_width(found: Found, _: dict[str, Found]) -> list[str]:
    small, large = "256", "2048"

    def power(cost: Callable[[str], float]) -> float:
        return math.log(cost(large) / cost(small)) / math.log(int(large) / int(small))

    says = [
        f"From 256 to 2,048 a step grows with the power {power(found.us):.1f} of the width, its products alone with "
        f"the power {power(found.products):.1f}."
    ]
    cheaper = [m for m in found.rows if found.ratio(m) < 1]
    if cheaper:
        says.append(
            f"From {int(cheaper[0]):,} on it costs less than dense products alone: inputs that are spikes are "
            f"[added up](sparse.md) instead."
        )
    elif 0.8 < power(found.rest) < 1.2 and found.ratio(large) < 1.3:
        says.append("The neurons' part is in proportion to their number: wide nets cost little more than products.")
    if found.rest("64") > 0:
        says.append(
            f"Narrow nets have a part that the width does not change, the pass over the 784 inputs and the calls: at "
            f"64 a step takes {cell(found.rest('64'))} µs besides the products."
        )
    return says


def on_batch(found: Found, tables: dict[str, Found]) -> list[str]:
    says = []
    fixed = (4 * found.rest("1") - found.rest("4")) / 3
    if fixed > 0.5 * found.rest("4"):
        says.append(
            f"With few lanes it is calls of Python and torch that cost, and gradients as large as the weights: besides "
            f"the products one lane takes {cell(found.rest('1'))} µs a step, four {cell(found.rest('4'))} µs, so that "
            f"some {cell(fixed)} µs, or {cell(K * fixed)} µs a window, do not depend on the batch. That is "
            f"{100 * fixed / found.us('1'):.0f} % of the cost of one lane, and {100 * fixed / found.us('64'):.0f} % of "
            f"that of 64."
        )
    least = min(found.rows, key=found.lane)
    last = list(found.rows)[-1]
    if found.lane(last) > 1.1 * found.lane(least):
        products = (found.products(last) / int(last)) / (found.products(least) / int(least))
        says.append(
            f"A lane costs least among {least}; among {int(last):,} it costs "
            f"{found.lane(last) / found.lane(least):.2f} times as much, and its products alone {products:.2f} times: "
            f"the record of a window is {found.mib(last)} there instead of {found.mib(least)}, more than near caches "
            f"hold."
        )
        if "window" in tables and abs(tables["window"].lane("256") / found.lane("256") - 1) < 0.15:
            says.append(
                f"It is the rows of a window that count, K times the batch: with K = 256 and 32 lanes a step of a lane "
                f"takes {tables['window'].lane('256'):.2f} µs, with K = 32 and 256 lanes {found.lane('256'):.2f} µs."
            )
    return says


def on_depth(found: Found, _: dict[str, Found]) -> list[str]:
    early, late = (found.us("4") - found.us("1")) / 3, (found.us("8") - found.us("5")) / 3
    products = (found.products("8") - found.products("1")) / 7
    says = [
        f"From 1 to 4 layers each one adds {cell(early)} µs, from 5 to 8 {cell(late)} µs; {cell(products)} µs of that "
        f"are its products."
    ]
    if 0.75 < late / early < 1.33:
        says.append("So the cost is in proportion to the depth.")
    return says


def on_length(found: Found, _: dict[str, Found]) -> list[str]:
    says = []
    single = ", single steps of one lane"
    grows = [found.us(f"9984{tail}") / found.us(f"992{tail}") for tail in ("", single)]
    says.append(
        f"A step in 9,984 costs {grows[0]:.2f} times what one in 992 does, and in single steps {grows[1]:.2f} times"
        + (": it stays the same, however long the stream." if max(abs(g - 1) for g in grows) < 0.1 else ".")
    )
    reset = [steps * (found.us(f"{steps}{tail}") - found.us(f"992{tail}")) for steps, tail in ((32, ""), (32, single))]
    if max(abs(r) / (32 * found.us(f"992{t}")) for r, t in zip(reset, ("", single), strict=True)) < 0.1:
        says.append("A reset every 32 steps does not change it by a tenth.")
    else:
        says.append(f"A reset every 32 steps adds {cell(reset[0])} µs each, in single steps {cell(reset[1])} µs.")
    return says


def on_window(found: Found, _: dict[str, Found]) -> list[str]:
    least = min(found.rows, key=found.us)
    says = [f"A step costs least in windows of {least}."]
    products = found.products("1") / found.products(least)
    if found.us("1") > 1.5 * found.us(least):
        says.append(
            f"In windows of one it costs {found.us('1') / found.us(least):.1f} times as much: the products "
            f"{products:.1f} times, since they read all weights and write all gradients for {LANES} rows, and besides "
            f"them {cell(found.rest('1'))} µs for what comes once a window: calls, and the traces carried in."
        )
    if found.us("256") > 1.1 * found.us(least):
        says.append(
            f"In windows of 256 it costs {found.us('256') / found.us(least):.2f} times as much, with a record of "
            f"{found.mib('256')} instead of {found.mib(least)}, more than near caches hold."
        )
    return says


def on_horizon(found: Found, _: dict[str, Found]) -> list[str]:
    says = []
    if found.times("32") > 1.2:
        says.append(f"A horizon of one window costs {found.times('32'):.1f} times as much as none.")
    further = ("64", "128", "256")
    grown = ", ".join(f"{found.us(horizon) / found.us('32'):.1f}" for horizon in further)
    expected = ", ".join(f"{(int(horizon) + K) / (2 * K):.1f}" for horizon in further)
    says.append(
        f"Those of {', '.join(further)} steps cost {grown} times what one of 32 does; the work of a window is "
        f"(H + K) / (2 K) times as much, {expected}."
    )
    return says


def on_compact(found: Found, _: dict[str, Found]) -> list[str]:
    plain, compact = (found.rows[name]["tape_bytes"] for name in ("plain tapes", "compact tapes"))
    difference = found.rows["compact tapes"]["difference"]
    return [
        f"Compact tapes keep {found.mib('compact tapes')} of the latest {LONG} steps, plain ones "
        f"{found.mib('plain tapes')}, {plain / compact:.0f} times as much, and take "
        f"{found.times('compact tapes'):.2f} times as long. Gradients of the same data differ by at most "
        f"{difference:.0e} of the largest entry of each."
    ]


def on_rule(found: Found, _: dict[str, Found]) -> list[str]:
    others = [name for name in found.rows if name != "InputTrace"]
    near = [f"`{name}`" for name in others if found.times(name) < 1.25]
    says = [f"Within a quarter of `InputTrace`: {', '.join(near) or 'none'}."]
    if found.times("Eligibility") > 2:
        says.append(
            f"`Eligibility` keeps {found.mib('Eligibility', 'state')} in {LANES} lanes, where `InputTrace` keeps "
            f"{found.mib('InputTrace', 'state')}: matrices that every window reads and writes."
        )
    return says


def on_neuron(found: Found, _: dict[str, Found]) -> list[str]:
    others = [name for name in found.rows if name != "one beta"]
    says = []
    if min(map(found.times, others)) > 1.2:
        says.append(
            f"One constant beta for all neurons has a few fused calls of its own; whatever else goes [the general "
            f"way](notes/kernels.md), at {min(map(found.times, others)):.1f} times the cost or more."
        )
    if found.products("recurrent weights") > 1.2 * found.products("one beta"):
        says.append(
            f"Recurrent weights run step by step, and their products, of {LANES} rows each, take "
            f"{cell(found.products('recurrent weights') - found.products('one beta'))} µs of it."
        )
    return says


def on_net(found: Found, _: dict[str, Found]) -> list[str]:
    says = []
    dense_times = found.times("784-128-128-10, Eligibility")
    if found.times("784-128-128-10, K = 1, Eligibility") > 2 * dense_times:
        says.append(
            "The matrices are gone through once a window, whatever K is: in windows of one step that is at every step."
        )
    if found.times(f"convolutions, K = {conv_mnist.STEPS}, Eligibility") > 2 * dense_times:
        says.append("A convolution's matrices are as many as its positions times its weights.")
    return says


def on_step(found: Found, tables: dict[str, Found]) -> list[str]:
    says = [f"A single step takes {found.times(SINGLE):.2f} times what OTTT by hand does."]
    zeroed = "single steps, gradients zeroed at each"
    if found.us(zeroed) < 0.95 * found.us(SINGLE):
        says.append(
            f"With gradients zeroed at each step, as an optimizer's step at each would have it, "
            f"{found.times(zeroed):.2f} times: the new gradient then needs not be added to an old one."
        )
    if "batch" in tables and tables["batch"].us("1") < 0.5 * found.us(SINGLE):
        says.append(f"In windows of {K} a step of one lane takes {cell(tables['batch'].us('1'))} µs.")
    return says


SAYS: dict[str, Callable[[Found, dict[str, Found]], list[str]]] = {
    "width": on_width,
    "batch": on_batch,
    "depth": on_depth,
    "T": on_length,
    "window": on_window,
    "horizon": on_horizon,
    "compact": on_compact,
    "rule": on_rule,
    "neuron": on_neuron,
    "net": on_net,
    "step": on_step,
}


def interval(found: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{cell(found['median'])} ({cell(found['low'])} to {cell(found['high'])})"


def fire(row: dict[str, Any]) -> str:
    """From the layer that fires least to the one that fires most, in per cent."""
    if "rates" not in row:
        return ""
    least, most = (f"{100 * rate:.0f}" for rate in (min(row["rates"]), max(row["rates"])))
    return f"{least} %" if least == most else f"{least} to {most} %"


def rows_of(name: str, rows: dict[str, Any]) -> str:
    """The table."""
    compared = any(row["beside"] for row in rows.values()) and name != "net"
    header = [TITLES[name][2], "µs per step", "per step and lane", "products alone", "times products", "fire"]
    if compared:
        header.append(f'times "{next(row["beside"] for row in rows.values() if row["beside"])}"')
    lines = []
    for label, row in rows.items():
        head, *tail = label.split(", ", 1)
        number = ", ".join([f"{int(head):,}", *tail]) if head.isdigit() else label
        line = [number, interval(row["us"]), cell(row["us"]["median"] / row["lanes"]), cell(row["floor"]["median"])]
        line += [interval(row["ratio"]), fire(row)]
        if compared:
            line.append(interval(row["times"]) if row["beside"] else "")
        lines.append(line)
    return table(header, lines)


def pairs(found: Found) -> str:
    """`Eligibility` as a multiple of `InputTrace`, a row per net."""
    header = ["", "`Eligibility`, times `InputTrace`", "state, `InputTrace`", "state, `Eligibility`"]
    lines = []
    for name, row in found.rows.items():
        if other := row["beside"]:
            line = [interval(row["times"]), found.mib(other, "state"), found.mib(name, "state")]
            lines.append([name.removesuffix(", Eligibility"), *line])
    return table(header, lines)


def page(figures: dict[str, Any]) -> str:
    """The text of docs/growth.md."""
    tables = {name: Found(found["rows"]) for name, found in figures["tables"].items()}
    sections = []
    for name, found in tables.items():
        title, what, _ = TITLES[name]
        rounds = figures["tables"][name]["rounds"]
        parts = [f"## {title}", f"{what}; {rounds} rounds.", rows_of(name, found.rows)]
        parts += [pairs(found)] if name == "net" else []
        sections.append("\n\n".join([*parts, " ".join(SAYS[name](found, tables))]))
    m = figures["machine"]
    threads = "one thread" if m["threads"] == 1 else f"{m['threads']} threads"
    return PAGE.format(
        middle="-".join(map(str, MIDDLE)),
        lanes=LANES,
        window=K,
        activity=100 * ACTIVITY,
        fewest=FEWEST,
        machine=f"{m['processor']}, {threads}; torch {m['torch']}, numba {figures['versions']['numba']}, "
        f"Python {m['python']}.",
        chart=CHART,
        sections="\n\n".join(sections),
    )


def plot(figures: dict[str, Any], path: Path) -> None:
    """Cost against four of the variables, as SVG."""
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    from tracetorch.plot import COLORS, INK

    matplotlib.rcParams["svg.hashsalt"] = "growth"  # the same figures give the same file
    chart = Figure(figsize=(9.5, 6), dpi=120, layout="constrained")
    names = [name for name in ("width", "batch", "window", "depth") if name in figures["tables"]]
    for ax, name in zip(chart.subplots(2, 2).flat, names, strict=False):
        rows = figures["tables"][name]["rows"]
        at = [int(label) for label in rows]
        lines = (("us", "a step", COLORS[0], "-"), ("floor", "matrix products alone", INK, "--"))
        for kind, label, color, style in lines:
            low, middle, high = ([row[kind][q] for row in rows.values()] for q in ("low", "median", "high"))
            ax.plot(at, middle, color=color, label=label, linestyle=style, marker="o", markersize=3, linewidth=1.4)
            ax.fill_between(at, low, high, color=color, alpha=0.15, linewidth=0)
        decorate(ax, TITLES[name][0].lower() if name != "window" else "window, K", "µs per step")
        ax.set_xticks(at)
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.minorticks_off()
    chart.axes[0].legend(frameon=False, fontsize="small", loc="upper left")
    chart.savefig(path, metadata={"Date": None})


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
    if arguments.page:
        (DOCS / "growth.md").write_text(page(figures))
        plot(figures, DOCS / CHART)
        return
    wanted = arguments.only.split(",") if arguments.only else list(tables)
    if set(wanted) - set(tables):
        parser.error(f"expected --only to name some of {','.join(tables)}, got {arguments.only}.")
    versions = {"numba": version("numba")}
    here = {"machine": machine(), "versions": versions}
    kept = {name: found for name, found in figures.get("tables", {}).items() if name not in wanted}
    if kept and here != {key: figures[key] for key in here}:
        parser.error(f"what is recorded of {','.join(kept)} was measured with other threads, versions or machine.")
    end = time.perf_counter() + 60 * arguments.minutes
    for i, name in enumerate(wanted):
        kept[name] = measure(tables[name], (end - time.perf_counter()) / (len(wanted) - i))
        if name == "compact":
            kept[name]["rows"]["compact tapes"]["difference"] = difference(tables[name])
        report(name, kept[name])
    save("growth", {"versions": versions, "tables": {each: kept[each] for each in tables if each in kept}})


if __name__ == "__main__":
    main()

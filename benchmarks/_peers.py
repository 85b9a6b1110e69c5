"""The contestants of race.py: one net, written for each library the way that library is meant to be used.

Each has `parameters`, and `run(source, steps, target)`: from rest through so many steps, the loss, and its gradients
into `.grad`. The other libraries are imported when a contestant is made, so that the module needs none of them.
`like` holds the options of `tt.LIF` that give a contestant's hidden neurons here: race.py compares gradients with them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tracetorch as tt

BETA, TAU, THRESHOLD, WINDOW = 0.9, 10.0, 1.0, 32
ACTIVITY = 0.15  # the part of the inputs that spike in a step
WIDTH = 1 / math.pi  # of the ArcTan surrogate: what the others call ATan with alpha = 2


class Weights(NamedTuple):
    """One layer's weight (m, n) and bias (m,)."""

    weight: Tensor
    bias: Tensor

    def linear(self, scale: float = 1.0) -> nn.Linear:
        """A torch layer with a copy of them, times `scale`."""
        layer = nn.Linear(*self.weight.shape[::-1])
        with torch.no_grad():
            layer.weight.copy_(scale * self.weight)
            layer.bias.copy_(scale * self.bias)
        return layer


def weights(sizes: Sequence[int], seed: int = 0) -> list[Weights]:
    """Normal weights by which the hidden neurons fire in some 10 % of the steps, as about the inputs do."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for n, m in pairwise(sizes):
        weight = torch.randn(m, n, generator=generator) * (0.65 / math.sqrt(ACTIVITY * n))
        made.append(Weights(weight, torch.zeros(m)))
    return made


class Source(Protocol):
    """Where the input comes from, in order."""

    def window(self, steps: int) -> Tensor:
        """The next (steps, B, n)."""

    def step(self) -> Tensor:
        """The next (B, n)."""


class Held:
    """Input that lies in memory, (T, B, n): for timing."""

    def __init__(self, x: Tensor) -> None:
        self.x, self.at = x, 0

    def window(self, steps: int) -> Tensor:
        """The next (steps, B, n)."""
        self.at += steps
        return self.x[self.at - steps : self.at]

    def step(self) -> Tensor:
        """The next (B, n)."""
        self.at += 1
        return self.x[self.at - 1]


class Drawn:
    """Input that is drawn when it is asked for: for measuring memory."""

    def __init__(self, lanes: int, n: int, seed: int = 0) -> None:
        self.shape, self.generator = (lanes, n), torch.Generator().manual_seed(seed)

    def window(self, steps: int) -> Tensor:
        """The next (steps, B, n)."""
        return torch.empty(steps, *self.shape).bernoulli_(ACTIVITY, generator=self.generator)

    def step(self) -> Tensor:
        """The next (B, n)."""
        return self.window(1)[0]


class Contestant:
    """What all have in common."""

    net: nn.Module
    like: ClassVar[dict[str, Any]] = {}
    scale: ClassVar[tuple[float, float]] = (1.0, 1.0)  # of hidden and readout weights, which makes outputs the same

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Those of all layers: weight, bias, from the first layer to the last."""
        return list(self.net.parameters())

    def gradients(self) -> list[Tensor]:
        """Their gradients, as they would be for weights that are not scaled."""
        hidden, readout = self.scale
        scales = [hidden] * (len(self.parameters) - 2) + [readout] * 2
        return [p.grad * scale for p, scale in zip(self.parameters, scales, strict=True) if p.grad is not None]

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Forward, loss, backward; the loss, a mean over steps and lanes."""
        raise NotImplementedError


# -- tracetorch --------------------------------------------------------------------------------------------------------


def ours(layers: Sequence[Weights], **like: Any) -> tt.Sequential:
    """The net, in this library; with another library's hidden neurons where `like` says so."""
    neuron = {"beta": BETA, "threshold": THRESHOLD, "surrogate": tt.surrogate.ArcTan(WIDTH)} | like
    hidden = [tt.LIF(synapse=layer.linear(), **neuron) for layer in layers[:-1]]
    return tt.Sequential(*hidden, tt.LI(synapse=layers[-1].linear(), beta=BETA))


class Windows(Contestant):
    """This library, InputTrace, in windows of 32 steps."""

    def __init__(self, layers: Sequence[Weights]) -> None:
        self.net = ours(layers)

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """A backward at each window's end."""
        total = torch.zeros(())
        each = torch.full((WINDOW,), 1 / steps)
        self.net.reset()
        for start in range(0, steps, WINDOW):
            size = min(WINDOW, steps - start)
            y = self.net.window(source.window(size))
            loss, ls = tt.loss.cross_entropy(y, target, each[:size])
            self.net.backward(ls)
            total += loss
        return total


class SingleSteps(Contestant):
    """This library, InputTrace, a backward at each step."""

    def __init__(self, layers: Sequence[Weights]) -> None:
        self.net = ours(layers)

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """As in a stream of which nobody knows the end."""
        total = torch.zeros(())
        each = torch.full((1,), 1 / steps)
        self.net.reset()
        for _ in range(steps):
            y = self.net(source.step())
            loss, ls = tt.loss.cross_entropy(y, target, each)
            self.net.backward(ls)
            total += loss
        return total


# -- plain torch -------------------------------------------------------------------------------------------------------


class StepwiseOTTT(Contestant):
    """Plain torch without autograd: OTTT, a step forward and a step of learning at a time."""

    def __init__(self, layers: Sequence[Weights]) -> None:
        self.net = nn.ModuleList(layer.linear() for layer in layers)

    @torch.no_grad()
    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Traces of what each layer has received; the learning signal goes down within the step."""
        lanes = len(target)
        traces = [torch.zeros(lanes, layer.in_features) for layer in self.net]
        membranes = [torch.zeros(lanes, layer.out_features) for layer in self.net]
        for p in self.parameters:
            p.grad = torch.zeros_like(p)
        one_hot = F.one_hot(target, self.net[-1].out_features).float()
        total, bias_trace = torch.zeros(()), 0.0
        for _ in range(steps):
            bias_trace = BETA * bias_trace + 1
            s = source.step()
            slopes = []
            for layer, trace, v in zip(self.net, traces, membranes, strict=True):
                trace.mul_(BETA).add_(s)
                v.mul_(BETA).add_(layer.bias).addmm_(s, layer.weight.t())
                if layer is not self.net[-1]:
                    u = v - THRESHOLD
                    s = (u >= 0).float()
                    v.sub_(s, alpha=THRESHOLD)
                    slopes.append(u.div_(WIDTH).square_().add_(1).reciprocal_())
            log_probs = torch.log_softmax(v, 1)
            total -= (log_probs * one_hot).sum() / (lanes * steps)
            g = log_probs.exp_().sub_(one_hot).div_(lanes * steps)
            for i in range(len(self.net) - 1, -1, -1):
                layer = self.net[i]
                layer.weight.grad.addmm_(g.t(), traces[i])
                layer.bias.grad.add_(g.sum(0), alpha=bias_trace)
                if i:
                    g = g.mm(layer.weight).mul_(slopes[i - 1])
        return total


class Floor(Contestant):
    """The dense float32 products alone, over the rows of a window: no neuron, no loss, nothing between them."""

    def __init__(self, layers: Sequence[Weights], window: int = WINDOW) -> None:
        self.net = nn.ModuleList(layer.linear() for layer in layers)
        self.window = window
        self.rows: dict[int, tuple[list[Tensor], list[Tensor], list[Tensor]]] = {}

    def _room(self, rows: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """For so many rows: hidden spikes, learning signals, room for results."""
        if rows not in self.rows:
            outs = [layer.out_features for layer in self.net]
            spikes = [torch.empty(rows, m).bernoulli_(ACTIVITY) for m in outs[:-1]]
            self.rows[rows] = (spikes, [torch.randn(rows, m) for m in outs], [torch.empty(rows, m) for m in outs])
        return self.rows[rows]

    @torch.no_grad()
    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Forward, the weights' gradients, and the inputs' gradients of all layers but the first."""
        grads = [torch.empty_like(layer.weight) for layer in self.net]
        for start in range(0, steps, self.window):
            x = source.window(min(self.window, steps - start)).flatten(0, 1)
            spikes, signals, results = self._room(len(x))
            inputs = [x, *spikes]
            for layer, s, out in zip(self.net, inputs, results, strict=True):
                torch.mm(s, layer.weight.t(), out=out)
            for i, layer in enumerate(self.net):
                torch.mm(signals[i].t(), inputs[i], out=grads[i])
                if i:
                    torch.mm(signals[i], layer.weight, out=results[i - 1])
        return target.new_zeros(())


# -- snnTorch ----------------------------------------------------------------------------------------------------------


class SnnTorch(Contestant):
    """`Leaky` with its own defaults: ATan, a subtraction one step after the spike, detached.

    The readout is a `Leaky` that never resets, of which the membrane is read.
    """

    like: ClassVar = {"reset_delay": True}

    def __init__(self, layers: Sequence[Weights]) -> None:
        import snntorch as snn

        neurons = [snn.Leaky(beta=BETA, threshold=THRESHOLD, reset_mechanism="subtract") for _ in layers[:-1]]
        self.neurons = nn.ModuleList([*neurons, snn.Leaky(beta=BETA, reset_mechanism="none")])
        self.net = nn.ModuleList(layer.linear() for layer in layers)

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """As its tutorials have it: all layers step by step, the readout's membranes stacked, one loss."""
        membranes = [neuron.reset_mem() for neuron in self.neurons]
        read = []
        for _ in range(steps):
            s = source.step()
            for i, (linear, neuron) in enumerate(zip(self.net, self.neurons, strict=True)):
                s, membranes[i] = neuron(linear(s), membranes[i])
            read.append(membranes[-1])
        loss = every_step(torch.stack(read), target)
        loss.backward()
        return loss.detach()


class SnnTorchByLayer(SnnTorch):
    """The same neurons; each layer runs through all steps before the next, so that there is one product per layer."""

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Faster than the tutorials' order where the batch is small; it needs all of the input at once."""
        s = source.window(steps)
        for linear, neuron in zip(self.net, self.neurons, strict=True):
            membrane = neuron.reset_mem()
            spikes, membranes = [], []
            for current in linear(s):
                spike, membrane = neuron(current, membrane)
                spikes.append(spike)
                membranes.append(membrane)
            s = torch.stack(membranes if neuron is self.neurons[-1] else spikes)
        loss = every_step(s, target)
        loss.backward()
        return loss.detach()


# -- SpikingJelly ------------------------------------------------------------------------------------------------------


class SpikingJelly(Contestant):
    """`LIFNode` over many steps at once: no decay of the input, soft reset, detached, ATan.

    The readout is a `NonSpikingLIFNode`, which scales its input by 1 / tau: its weights are ten times as large.
    """

    scale: ClassVar = (1.0, TAU)

    def __init__(self, layers: Sequence[Weights]) -> None:
        from spikingjelly.activation_based import functional, neuron, surrogate

        options = {"tau": TAU, "decay_input": False, "v_threshold": THRESHOLD, "v_reset": None, "detach_reset": True}
        parts: list[nn.Module] = []
        for each in layers[:-1]:
            parts += [each.linear(), neuron.LIFNode(**options, surrogate_function=surrogate.ATan(2.0), step_mode="m")]
        self.net = nn.Sequential(*parts, layers[-1].linear(TAU), neuron.NonSpikingLIFNode(tau=TAU))
        self.reset = functional.reset_net

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Each layer runs through all steps before the next, as this library does it."""
        self.reset(self.net)
        loss = every_step(torch.stack(self.net(source.window(steps))), target)
        loss.backward()
        return loss.detach()


class SpikingJellyOTTT(Contestant):
    """`OTTTLIFNode` in an `OTTTSequential`, a backward at each step.

    As in the library's own networks, the first layer gets the input as it is, without a trace: that saves a product,
    and leaves the past out of the first layer's gradient. The readout's leak is a line of plain torch.
    """

    def __init__(self, layers: Sequence[Weights]) -> None:
        from spikingjelly.activation_based import functional, layer, neuron, surrogate

        parts: list[nn.Module] = []
        for each in layers[:-1]:
            parts += [each.linear(), neuron.OTTTLIFNode(tau=TAU, surrogate_function=surrogate.ATan(2.0))]
        self.net = layer.OTTTSequential(*parts, layers[-1].linear())
        self.reset = functional.reset_net

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Nothing is kept between steps but membranes and traces."""
        self.reset(self.net)
        y, total = torch.zeros(()), torch.zeros(())
        for _ in range(steps):
            y = BETA * y.detach() + self.net(source.step())
            loss = F.cross_entropy(y, target) / steps
            loss.backward()
            total += loss.detach()
        return total


# -- Norse -------------------------------------------------------------------------------------------------------------


def subtract_detached(z: Tensor, v: Tensor, reset: Tensor, threshold: Tensor) -> Tensor:  # noqa: ARG001
    """A `reset_method` for Norse: its own `reset_subtract` passes a gradient through the spike."""
    return v - z.detach() * threshold


class Norse(Contestant):
    """`LIFBoxCell` in a loop over time: the input is scaled by 1 - beta, so weights are ten times as large.

    The surrogate is SuperSpike, since there is no ATan; version 1.1.0 gives it the width 1 whatever `alpha` is. The
    readout is an `LIBoxCell`. The loop is not the library's `Lift`, which takes each step's current by its index: the
    backward of that grows with the square of T.
    """

    scale: ClassVar = (TAU, TAU)
    like: ClassVar = {"surrogate": tt.surrogate.FastSigmoid(1.0)}

    def __init__(self, layers: Sequence[Weights]) -> None:
        import norse.torch as norse
        from norse.torch.functional.leaky_integrator_box import LIBoxParameters
        from norse.torch.module.leaky_integrator_box import LIBoxCell

        tau_mem_inv = torch.tensor(1 / (0.001 * TAU))  # steps of a millisecond
        lif = norse.LIFBoxParameters(
            tau_mem_inv=tau_mem_inv,
            v_th=torch.tensor(THRESHOLD),
            reset_method=subtract_detached,
        )
        readout = LIBoxCell(LIBoxParameters(tau_mem_inv=tau_mem_inv))
        self.neurons = [*(norse.LIFBoxCell(lif) for _ in layers[:-1]), readout]
        self.net = nn.ModuleList(layer.linear(TAU) for layer in layers)

    def run(self, source: Source, steps: int, target: Tensor) -> Tensor:
        """Each layer runs through all steps before the next."""
        s = source.window(steps)
        for linear, neuron in zip(self.net, self.neurons, strict=True):
            state, out = None, []
            for current in linear(s):
                spike, state = neuron(current, state)
                out.append(spike)
            s = torch.stack(out)
        loss = every_step(s, target)
        loss.backward()
        return loss.detach()


def every_step(y: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy at every step, the mean over steps (T, B, m) and lanes."""
    return F.cross_entropy(y.flatten(0, 1), target.repeat(len(y)))


CONTESTANTS: dict[str, Callable[[Sequence[Weights]], Contestant]] = {
    "tracetorch, windows of 32": Windows,
    "tracetorch, single steps": SingleSteps,
    "snnTorch": SnnTorch,
    "snnTorch, layer by layer": SnnTorchByLayer,
    "SpikingJelly": SpikingJelly,
    "SpikingJelly, OTTT": SpikingJellyOTTT,
    "Norse": Norse,
    "OTTT by hand": StepwiseOTTT,
    "matrix products alone": Floor,
}

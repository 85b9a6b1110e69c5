"""A neuron of one's own: threshold-linear units, whose output is what their membrane has above a threshold.

v_t = beta * v_{t-1} + W x_t + b,  y_t = max(v_t - theta, 0)
"""

from __future__ import annotations

import torch
from torch import Tensor

import tracetorch as tt
from tracetorch import tasks, testing
from tracetorch.functional.scan import Values
from tracetorch.nn import Layer, MembraneNeuron
from tracetorch.nn.constraint import Constrained, firing_threshold, membrane_decay
from tracetorch.rules.base import Tape


class ThresholdLinearNeuron(MembraneNeuron):
    """The dynamics: the output, its slope by the membrane, and where the threshold comes in."""

    name = "ThresholdLinear"
    spiking = True
    direct = ("threshold",)

    def emit(self, mem: Tensor, values: Values) -> Tensor:
        """The output."""
        return (mem - values["threshold"]).clamp(min=0)

    def slope(self, tape: Tape) -> Tensor:
        """dy/dv."""
        return (tape.record.mem > tape.values["threshold"]).to(tape.record.mem.dtype)

    def per_membrane(self, tape: Tape, name: str) -> Tensor:  # noqa: ARG002
        """dy/dtheta over dy/dv."""
        return torch.full_like(tape.record.mem, -1.0)


class ThresholdLinear(Layer):
    """The layer: names its parameters, which are checked and kept in their ranges."""

    def __init__(self, n=None, m=None, *, beta=0.9, threshold=0.5, learn_beta=False, learn_threshold=False, **options):
        def parameters(each: int) -> dict[str, Constrained]:
            theta = firing_threshold("ThresholdLinear", threshold, learn_threshold, each)
            return membrane_decay("ThresholdLinear", beta, None, learn_beta, each) | {"threshold": theta}

        super().__init__(n, m, ThresholdLinearNeuron(), parameters=parameters, **options)


def unrolled(layer: ThresholdLinear, xs: list[Tensor]) -> list[Tensor]:
    """The same over time in plain torch, which tests compare with."""
    beta, theta, membranes = testing.value(layer, "beta"), testing.value(layer, "threshold"), [torch.tensor(0.0)]
    for x in xs:
        membranes.append(beta * membranes[-1] + layer.synapse(x))
    return [torch.relu(v - theta) for v in membranes[1:]]


testing.register_unrolled(ThresholdLinear, unrolled)


def main(updates: int = 300) -> float:
    """The accuracy after learning in which order two patterns came."""
    torch.manual_seed(0)
    model = tt.Sequential(ThresholdLinear(41, 64, learn_beta=True), tt.LI(64, 2, beta=0.8), rule=tt.Eligibility())
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(updates):
        model.reset()
        optimizer.zero_grad()
        x, target, weights = tasks.order_of_patterns(32)
        for part, w in zip(x.split(5), weights.split(5), strict=True):
            model.backward(tt.loss.cross_entropy(model.window(part), target, w).ls)
        optimizer.step()
    x, target, _ = tasks.order_of_patterns(500)
    model.reset()
    return tt.metrics.accuracy(model.window(x)[-1], target)


if __name__ == "__main__":
    print(f"in which order: {main():.1%} right")

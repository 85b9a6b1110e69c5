"""Which neurons there are kernels for."""

from __future__ import annotations

from torch import Tensor

from ..functional import firing, surrogate
from ..functional.firing import Firing
from ..functional.scan import Form, previous

# In the order of the codes in `loops.py`.
FIRINGS: dict[type[Firing], str] = {
    firing.Spike: "spike",
    firing.StrictSpike: "strict",
    firing.MultiSpike: "multi",
    firing.Graded: "graded",
    firing.EscapeNoise: "drawn",
}
SURROGATES: dict[type[surrogate.Surrogate], str] = {
    surrogate.ArcTan: "arctan",
    surrogate.FastSigmoid: "fast sigmoid",
    surrogate.Triangle: "triangle",
    surrogate.Sigmoid: "sigmoid",
    surrogate.Exponential: "exponential",
    type(firing.EscapeNoise().surrogate): "logistic",
}


def knows(form: Form) -> bool:
    """Whether the kernels can run neurons of this form: not those that fire by functions of the user's own."""
    return type(form.firing) in FIRINGS and type(form.firing.surrogate) in SURROGATES


def is_usual(form: Form) -> bool:
    """Whether neurons of this form emit single spikes, subtracted at once, and take their currents as they come."""
    emits_one = type(form.firing) in (firing.Spike, firing.StrictSpike) and knows(form)
    return emits_one and form.reset == "subtract" and not form.delayed and not form.attached and form.gain == 1


def add_recurrent(current: Tensor, given: Tensor, before: Tensor, weight: Tensor) -> None:
    """Add what recurrent weights give to all steps' currents (K, B, m), where all outputs are known."""
    m = current.shape[-1]
    current.view(-1, m).addmm_(previous(given, before).view(-1, m), weight.t())


def draws(form: Form, like: Tensor) -> Tensor | None:
    """The random numbers of a window, where the neuron draws some."""
    return form.firing.draws(like) if isinstance(form.firing, firing.EscapeNoise) else None

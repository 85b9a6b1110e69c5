"""Which neurons there are kernels for."""

from __future__ import annotations

from torch import Tensor

from ..functional import firing, surrogate
from ..functional.firing import Firing
from ..functional.scan import Form

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


def draws(form: Form, like: Tensor) -> Tensor | None:
    """The random numbers of a window, where the neuron draws some."""
    return form.firing.draws(like) if isinstance(form.firing, firing.EscapeNoise) else None

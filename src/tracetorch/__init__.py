"""traceTorch: train recurrent spiking neural networks online, with memory that does not grow with time."""

from importlib import import_module

from . import _checks

_checks.refuse_other_distribution()

from . import encode, functional, loss, metrics, nn, rules  # noqa: E402
from .functional import firing, surrogate  # noqa: E402
from .nn import ALIF, IF, LI, LIF, Concat, Parallel, Residual, Sequential, Softmax, Synaptic, no_learning  # noqa: E402
from .rules import Eligibility, InputTrace, MeanField, MeanRate, Truncated  # noqa: E402

__version__ = "0.1.0"

_ON_DEMAND = ("datasets", "health", "plot", "tasks", "testing", "train")  # some of them need an extra


def __getattr__(name: str) -> object:
    """Import `tracetorch.plot` and the like when they are first asked for."""
    if name in _ON_DEMAND:
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ALIF",
    "IF",
    "LI",
    "LIF",
    "Concat",
    "Eligibility",
    "InputTrace",
    "MeanField",
    "MeanRate",
    "Parallel",
    "Residual",
    "Sequential",
    "Softmax",
    "Synaptic",
    "Truncated",
    "encode",
    "firing",
    "functional",
    "loss",
    "metrics",
    "nn",
    "no_learning",
    "rules",
    "surrogate",
]

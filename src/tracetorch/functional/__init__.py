"""The mathematics: tensors in, tensors out; no modules, no state kept."""

from . import rate, scan, surrogate, trace

__all__ = ["rate", "scan", "surrogate", "trace"]

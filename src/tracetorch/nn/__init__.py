"""Layers and models."""

from .concat import Concat
from .layer import Layer
from .li import LI
from .lif import LIF
from .online import no_learning
from .sequential import Sequential
from .softmax import Softmax

__all__ = ["LI", "LIF", "Concat", "Layer", "Sequential", "Softmax", "no_learning"]

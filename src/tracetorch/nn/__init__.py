"""Layers and models."""

from .branches import Concat, Parallel, Residual
from .layer import Layer
from .li import LI
from .lif import ALIF, IF, LIF, Synaptic
from .neuron import MembraneNeuron
from .online import no_learning
from .sequential import Sequential
from .softmax import Softmax
from .synapse import MaskedLinear, register_synapse

__all__ = [
    "ALIF",
    "IF",
    "LI",
    "LIF",
    "Concat",
    "Layer",
    "MaskedLinear",
    "MembraneNeuron",
    "Parallel",
    "Residual",
    "Sequential",
    "Softmax",
    "Synaptic",
    "no_learning",
    "register_synapse",
]

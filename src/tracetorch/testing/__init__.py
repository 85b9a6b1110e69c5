"""The slow, obviously right way, and the tools to compare with it.

`bptt_gradients` unrolls a model over time and lets autograd do the rest: use it to test a rule, a neuron or a model of
your own. `fidelity` says how close each rule comes to it on your model and data.
"""

from .compare import Comparison, assert_gradients_close, compare, online_gradients
from .controls import LiveStorage, assert_alive, spike_rates
from .fidelity import ADAM, ATTACHED, Fidelity, FidelityRow, fidelity
from .reference import Gradients, bptt_gradients, pseudo_spike, register_unrolled, value
from .synapse import check_synapse

__all__ = [
    "ADAM",
    "ATTACHED",
    "Comparison",
    "Fidelity",
    "FidelityRow",
    "Gradients",
    "LiveStorage",
    "assert_alive",
    "assert_gradients_close",
    "bptt_gradients",
    "check_synapse",
    "compare",
    "fidelity",
    "online_gradients",
    "pseudo_spike",
    "register_unrolled",
    "spike_rates",
    "value",
]

"""Rules under the names that they have in the literature: configurations of this library's own.

A rule fixes what is done with the past; the window is the caller's. All of these papers update after every single step:
call the model step by step, `model(x_t)` then `model.backward(ls)`, or with windows of one step. With longer windows
the same rules are exact over more steps. Each class says where the configuration differs from its paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .eligibility import Eligibility
from .input_trace import InputTrace
from .truncated import Truncated


@dataclass(frozen=True, repr=False)
class SLTT(Truncated):
    """Spatial learning through time: `Truncated` with windows of one step.

    Meng et al. 2023, "Towards memory- and time-efficient backpropagation for training spiking neural networks",
    arXiv:2302.14311. The paper's variant SLTT-K, which learns at K randomly chosen steps of a sequence, is a matter of
    when `backward` is called.

    >>> SLTT()
    SLTT()
    """


@dataclass(frozen=True, repr=False)
class OTTT(InputTrace):
    """Online training through time: `InputTrace` with windows of one step.

    Xiao et al. 2022, "Online training through time for spiking neural networks", arXiv:2210.04195: presynaptic traces
    times the instantaneous spatial gradient. The paper's OTTT_A steps the optimizer at the end of a sequence, OTTT_O
    after every step; both are a matter of when the optimizer steps. The paper learns weights alone, with one leak for
    all; here betas, thresholds and leaks per neuron have traces too.

    >>> OTTT()
    OTTT()
    """


@dataclass(frozen=True, repr=False)
class OSTL(InputTrace):
    """Online spatio-temporal learning, for spiking layers without recurrent weights: `InputTrace`, one step at a time.

    Bohnstingl et al. 2022, "Online spatio-temporal learning in deep neural networks", IEEE TNNLS, arXiv:2007.12723:
    the spatial gradient of each step times the eligibility trace of each layer by itself. The paper's traces pass
    through the reset; here the reset is detached, and then they are those of OTTT. Its traces through recurrent
    weights, of size m^2 n, have no counterpart here.

    >>> OSTL()
    OSTL()
    """


@dataclass(frozen=True, repr=False)
class OTPE(Eligibility):
    """Online training with postsynaptic estimates: `Eligibility` that reaches one layer up, one step at a time.

    Summe et al. 2023, "Estimating post-synaptic effects for online training of feed-forward SNNs", arXiv:2311.16151:
    eligibility matrices, summed with the leak of the layer above. What goes on in layers further up is handed down as
    of the same step. The paper has one leak for the whole network; here each layer's own leaks are used, in a bank
    where they differ. The paper's approximate OTPE, of rank one, is not among the configurations; `MeanField` has the
    same memory and a better gradient.

    >>> OTPE()
    OTPE()
    """

    hops: int = 0
    paths: Literal["all", "own"] = "own"


@dataclass(frozen=True, repr=False)
class EProp(Eligibility):
    """e-prop for one layer of (recurrent) spiking neurons under leaky readouts, one step at a time.

    Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of spiking neurons",
    doi:10.1038/s41467-020-17236-y: eligibility traces filtered with the readout's leak, times the learning signal;
    credit through recurrent weights is left out. `feedback="symmetric"` is the paper's symmetric e-prop, "random" its
    random e-prop, with the fixed matrix at the readout's scale. With longer windows, credit passes through recurrent
    weights within the window, as it does not in the paper. Adaptive thresholds and the firing-rate regulariser are not
    part of the rule. In several layers the paper broadcasts the readout's error to each; here it goes from layer to
    layer.

    >>> EProp(feedback="random")
    EProp(feedback='random')
    """

    hops: int = 0
    paths: Literal["all", "own"] = "own"

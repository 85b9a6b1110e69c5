"""Every neuron with every synapse, reset and recurrence that can be built."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import tracetorch as tt
from cases import F64, RULES, B, T
from checks import equals_bptt, masked_reset_is_a_fresh_start
from tracetorch import testing
from tracetorch.nn.online import Online

EACH = torch.linspace(0.5, 0.95, 6).tolist()  # one for each neuron or channel
LEARNED = {"learn_beta": True, "learn_threshold": True}
CURRENT = {"alpha": 0.7, "learn_alpha": True}
ADAPTS = {"kappa": 0.2, "rho": 0.9, "learn_kappa": True, "learn_rho": True}


def escape() -> tt.firing.Firing:
    return tt.firing.EscapeNoise(0.3, torch.Generator().manual_seed(7))


NEURONS = {
    "soft": {},
    "zero": {"reset": "zero"},
    "no reset": {"reset": "none"},
    "delayed": {"reset_delay": True},
    "attached": {"reset_gradient": "attached"},
    "attached zero": {"reset": "zero", "reset_gradient": "attached"},
    "attached delayed": {"reset_delay": True, "reset_gradient": "attached"},
    "gain": {"gain": 0.4},
    "leak gain": {"gain": "leak"},
    "current": CURRENT,
    "current, alpha = beta": {"alpha": 0.8, "learn_alpha": True},
    "current zero": CURRENT | {"reset": "zero"},
    "current delayed, leak gain": CURRENT | {"reset_delay": True, "gain": "leak"},
    "adaptive": ADAPTS,
    "adaptive zero": ADAPTS | {"reset": "zero"},
    "adaptive delayed": ADAPTS | {"reset_delay": True},
    "adaptive current attached": ADAPTS | CURRENT | {"reset_gradient": "attached"},
    "a value each": {"beta": EACH, "threshold": EACH},
    "current, a value each": {"beta": EACH, "alpha": EACH[::-1], "learn_alpha": True},
    "adaptive, a value each": {"rho": EACH, "kappa": EACH, "learn_rho": True, "learn_kappa": True},
    "several spikes": {"firing": tt.firing.MultiSpike(), "threshold": 0.3},
    "several spikes, at most 2": {"firing": tt.firing.MultiSpike(most=2), "threshold": 0.3},
    "graded": {"firing": tt.firing.Graded()},
    "graded zero attached": {"firing": tt.firing.Graded(), "reset": "zero", "reset_gradient": "attached"},
    "graded adaptive": {"firing": tt.firing.Graded()} | ADAPTS,
    "stochastic": {"firing": escape},
    "stochastic zero": {"firing": escape, "reset": "zero"},
    "integrate and fire": {"beta": 1.0, "learn_beta": False},
    "like snntorch": {"like": "snntorch"},
    "like snntorch, current": {"like": "snntorch"} | CURRENT,
    "like spikingjelly": {"like": "spikingjelly"},
    "like norse, current": {"like": "norse"} | CURRENT,
    "like sinabs": {"like": "sinabs", "threshold": 0.3},
}
# the derivative of the state, spikes held fixed, is what BPTT has, and one trace for each stage holds it
CARRIED = [
    name
    for name, options in NEURONS.items()
    if options.get("reset") != "zero"
    and "kappa" not in options
    and options.get("reset_gradient") != "attached"
    and options.get("like") in (None, "snntorch")
    and "each" not in name
]
SYNAPSES = {
    "Linear": (lambda: nn.Linear(9, 6, **F64), (9,)),
    "masked": (lambda: tt.nn.MaskedLinear(9, 6, (torch.rand(6, 9) < 0.6), **F64), (9,)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3, stride=2, padding=2, dilation=2, groups=2, **F64), (4, 7)),
    "Conv2d": (lambda: nn.Conv2d(2, 6, (3, 2), stride=(1, 2), padding=1, **F64), (2, 4, 5)),
    "Conv2d, same": (lambda: nn.Conv2d(2, 6, 3, padding="same", bias=False, **F64), (2, 3, 4)),
    "Conv3d": (lambda: nn.Conv3d(1, 6, 2, **F64), (1, 3, 3, 3)),
    "ConvTranspose2d": (
        lambda: nn.ConvTranspose2d(2, 6, 3, stride=2, padding=1, output_padding=1, groups=2, **F64),
        (2, 2, 3),
    ),
}


def layer(neuron: str, synapse: str = "Linear", **more: object) -> tt.LIF:
    options = {"beta": 0.8, "threshold": 0.5} | LEARNED | NEURONS[neuron] | more
    if callable(options.get("firing")):
        options["firing"] = options["firing"]()
    return tt.LIF(synapse=SYNAPSES[synapse][0](), **options)


def problem(build: Callable[[], Online], shape: tuple[int, ...], seed: int = 0) -> tuple[Online, Tensor, Tensor]:
    """A model, scaled to an input that makes it fire, and a learning signal.

    Few neurons may all be silent by chance, so seeds are tried.
    """
    torch.manual_seed(seed)
    model = build()
    x = torch.bernoulli(torch.full((T, B, *shape), 0.4, **F64))
    model.calibrate(x)
    with tt.no_learning():
        y = model.window(x)
    model.reset()
    try:
        testing.assert_alive(model, x, high=5.0)
    except AssertionError:
        if seed > 20:
            raise
        return problem(build, shape, seed + 1)
    return model, x, torch.randn(y.shape, **F64)


def network(neuron: str, synapse: str, rule: tt.rules.Rule, horizon: int | None = None, **more: object):
    shape = SYNAPSES[synapse][1]

    def build() -> Online:
        first = layer(neuron, synapse, **more)
        width = first(torch.zeros(1, *shape, **F64)).numel()
        first.reset()
        second = tt.LIF(width, 5, beta=0.7, threshold=0.5, **LEARNED, **F64)
        return tt.Sequential(first, nn.Flatten(), second, tt.LI(5, 3, **F64), rule=rule, horizon=horizon)

    return problem(build, shape)


@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_a_horizon_of_the_sequence_is_bptt(neuron: str, synapse: str) -> None:
    equals_bptt(*network(neuron, synapse, tt.InputTrace(), T), 5)


@pytest.mark.parametrize("synapse", ["Linear", "masked"])
@pytest.mark.parametrize("neuron", NEURONS)
def test_a_horizon_of_the_sequence_is_bptt_with_recurrent_weights(neuron: str, synapse: str) -> None:
    equals_bptt(*network(neuron, synapse, tt.InputTrace(), T, recurrent=True), 5)


@pytest.mark.parametrize("rule", RULES[1:], ids=str)
@pytest.mark.parametrize("neuron", NEURONS)
def test_the_whole_sequence_in_one_window_is_bptt_for_the_other_rules(neuron: str, rule: tt.rules.Rule) -> None:
    equals_bptt(*network(neuron, "Linear", rule), T)


@pytest.mark.parametrize("window", [1, 4])
@pytest.mark.parametrize("synapse", SYNAPSES)
@pytest.mark.parametrize("neuron", CARRIED)
def test_input_trace_is_exact_with_any_window(neuron: str, synapse: str, window: int) -> None:
    equals_bptt(*problem(lambda: layer(neuron, synapse), SYNAPSES[synapse][1]), window)


@pytest.mark.parametrize(
    ("neuron", "synapse"),
    [(neuron, "Linear") for neuron in CARRIED] + [("soft", s) for s in SYNAPSES if "Transpose" not in s],
)
def test_eligibility_is_exact_under_a_readout(neuron: str, synapse: str) -> None:
    readout = {"beta": 0.95, "learn_beta": True} | F64
    shape = SYNAPSES[synapse][1]

    def build() -> Online:
        first = layer(neuron, synapse)
        width = first(torch.zeros(1, *shape, **F64)).numel()
        first.reset()
        return tt.Sequential(first, nn.Flatten(), tt.LI(width, 3, **readout), rule=tt.Eligibility())

    equals_bptt(*problem(build, shape), 4)


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_masked_reset_is_a_fresh_start(neuron: str) -> None:
    if "stochastic" in neuron:
        pytest.skip("lanes that are run apart draw other numbers")
    model, x, ls = network(neuron, "Linear", tt.InputTrace())
    masked_reset_is_a_fresh_start(model, x, ls, [0, 3, 6], 3)

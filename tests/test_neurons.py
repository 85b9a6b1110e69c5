"""Every neuron with every synapse, reset and recurrence that can be built."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import tracetorch as tt
from cases import F64, RULES, B, T
from checks import equals_bptt, gradients_in, gradients_of, masked_reset_is_a_fresh_start
from tracetorch import kernels, testing
from tracetorch.functional import scan
from tracetorch.functional.scan import Form
from tracetorch.nn.online import Online
from tracetorch.nn.spiking import SpikingNeuron

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
    "several spikes zero attached": {
        "firing": tt.firing.MultiSpike(),
        "threshold": 0.3,
        "reset": "zero",
        "reset_gradient": "attached",
    },
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


# -- what is approximate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("neuron", "least", "largest"),
    [
        ("zero", 0.97, 1.3),
        ("current zero", 0.97, 1.3),
        ("attached", 0.97, 1.3),
        ("adaptive", 0.85, 1.8),  # the adaptation, which holds back, is cut
        ("adaptive zero", 0.9, 1.3),
    ],
)
def test_what_the_border_does(neuron: str, least: float, largest: float) -> None:
    """Recorded: one layer, K = 4, cosine and norm ratio with BPTT; not exact, and but for one better than nothing."""
    found = {}
    for rule in (tt.InputTrace(), tt.Truncated()):
        model, x, ls = problem(lambda rule=rule: layer(neuron, rule=rule), (9,))
        rows = testing.compare(testing.online_gradients(model, x, ls, 4), testing.bptt_gradients(model, x, ls))
        found[str(rule)] = {row.name: row for row in rows}["synapse.weight"]
    carried, cut = found["InputTrace()"], found["Truncated()"]
    assert 1 - 1e-9 > carried.cosine > least
    assert 0.8 < carried.norm_ratio < largest
    assert carried.cosine > cut.cosine or neuron == "adaptive"


@pytest.mark.parametrize("neuron", ["zero", "current zero"])
def test_past_a_reset_to_zero_all_but_the_matrices_is_exact(neuron: str) -> None:
    model, x, ls = problem(lambda: layer(neuron), (9,))
    actual, expected = testing.online_gradients(model, x, ls, 1), testing.bptt_gradients(model, x, ls)
    exact = [name for name in expected if name not in ("synapse.weight",)]
    exact.remove("synapse.bias") if neuron == "current zero" else None  # the current is not reset, and is in there
    testing.assert_gradients_close({n: actual[n] for n in exact}, {n: expected[n] for n in exact})


def test_a_reset_to_zero_fades_what_is_carried_by_the_least_squares_factor() -> None:
    """`1 - beta^(2 d)` for a spike d steps ago, of a stream without a start."""
    layer = tt.LIF(1, 1, beta=0.8, reset="zero", **F64)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for x in [0.0] * 200 + [2.0] + [0.1] * 3:
        layer(torch.full((1, 1), x, **F64))
    y, n = layer._advanced_state().traces["survival"][0, :, 0]
    assert (y / n).item() == pytest.approx(1 - 0.8 ** (2 * 3))


# -- planted faults ----------------------------------------------------------------------------------------------------

true_gain, true_chain, true_accumulate = Form.gain_of, SpikingNeuron.chain, scan.accumulate


def chain_without(name: str) -> Callable:
    def chain(self, values, of):
        stages = true_chain(self, values, of)
        return stages[1:] if of == name and len(stages) > 1 else stages

    return chain


def drive_scaled(name: str) -> Callable:
    true_drive = SpikingNeuron.drive
    return lambda self, tape, of: true_drive(self, tape, of) * (0.99 if of == name else 1)


def slope_of_one_spike(self, u: Tensor, _: Tensor) -> Tensor:
    return self.surrogate.slope(u)


FAULTS = [
    ("current", SpikingNeuron, "drive", drive_scaled("alpha")),
    ("current", SpikingNeuron, "chain", chain_without("alpha")),
    ("leak gain without a learned leak", Form, "gain_of", lambda self, values: 0.99 * true_gain(self, values)),
    ("delayed", SpikingNeuron, "drive", drive_scaled("threshold")),
    ("several spikes", tt.firing.MultiSpike, "slope", slope_of_one_spike),
    ("graded", tt.firing.Graded, "slope", slope_of_one_spike),
    ("current zero", scan, "_after_reset", lambda p, theta, spikes, _: p - theta * spikes),
    ("adaptive", scan._Window, "_threshold_gradient", lambda _, e, *__: -e),
    ("current", scan, "accumulate", lambda q, decay, ahead: true_accumulate(q, 0.99 * decay, ahead)),
    ("adaptive current attached", scan, "previous", lambda after, _: after),
]


@kernels.reference()
@pytest.mark.parametrize(("neuron", "place", "name", "fault"), FAULTS, ids=[f"{f[0]}, {f[2]}" for f in FAULTS])
def test_a_fault_is_caught(neuron: str, place: object, name: str, fault: Callable, monkeypatch) -> None:
    """Each in the layer's own code: the reference has its own."""
    NEURONS.setdefault("leak gain without a learned leak", {"gain": "leak", "learn_beta": False})
    horizon = None if neuron in CARRIED or "leak" in neuron else T
    model, x, ls = problem(lambda: layer(neuron), (9,))
    model.horizon = horizon
    equals_bptt(model, x, ls, 3)
    expected = testing.bptt_gradients(model, x, ls)
    monkeypatch.setattr(place, name, fault)
    with pytest.raises(AssertionError, match="cosine"):
        testing.assert_gradients_close(testing.online_gradients(model, x, ls, 3), expected)


# -- properties --------------------------------------------------------------------------------------------------------

few = settings(max_examples=30, deadline=None)
names = st.sampled_from([name for name in NEURONS if "stochastic" not in name])
kinds = st.sampled_from(list(SYNAPSES))
seeds = st.integers(0, 2**16)


def drawn(neuron: str, synapse: str, lanes: int, seed: int) -> tuple[Online, Tensor, Tensor]:
    torch.manual_seed(seed)
    model = layer(neuron, synapse)
    x = torch.randn(9, lanes, *SYNAPSES[synapse][1], **F64)
    with tt.no_learning():
        y = model.window(x)
    model.reset()
    return model, x, torch.randn(y.shape, **F64)


@few
@given(names, kinds, st.integers(2, 4), st.integers(1, 5), seeds)
def test_lanes_are_single_runs(neuron, synapse, lanes, window, seed) -> None:
    model, x, ls = drawn(neuron, synapse, lanes, seed)
    together = testing.online_gradients(model, x, ls, window)
    apart = [testing.online_gradients(model, x[:, i : i + 1], ls[:, i : i + 1], window) for i in range(lanes)]
    testing.assert_gradients_close(together, {name: sum(a[name] for a in apart) for name in together})


@few
@given(names, kinds, seeds, st.data())
def test_any_cut_runs_alike_and_within_the_horizon_learns_alike(neuron, synapse, seed, data) -> None:
    model, x, ls = drawn(neuron, synapse, 2, seed)
    model.horizon = 9
    cuts = sorted(data.draw(st.sets(st.integers(1, 8), max_size=5)))
    sections = [b - a for a, b in zip([0, *cuts], [*cuts, 9], strict=True)]
    whole = model.window(x)
    model.reset()
    torch.testing.assert_close(torch.cat([model.window(part) for part in x.split(sections)]), whole)
    testing.assert_gradients_close(gradients_in(model, x, ls, sections), testing.bptt_gradients(model, x, ls))


@few
@given(names, kinds, st.integers(1, 8), st.integers(1, 4), seeds)
def test_a_stream_goes_on_from_its_saved_state(neuron, synapse, first, window, seed) -> None:
    model, x, ls = drawn(neuron, synapse, 2, seed)
    model.window(x[:first])
    other = layer(neuron, synapse)
    other.load_state_dict(model.state_dict())
    other(x[0])
    other.load_stream_state(model.stream_state())

    def go_on(net: Online) -> testing.Gradients:
        net.zero_grad()
        for x_window, ls_window in zip(x[first:].split(window), ls[first:].split(window), strict=True):
            net.window(x_window)
            net.backward(ls_window)
        return gradients_of(net)

    testing.assert_gradients_close(go_on(other), go_on(model))


@few
@given(names, st.integers(1, 3), st.lists(st.integers(0, 2), min_size=2, max_size=3), seeds)
def test_masked_resets_are_fresh_starts(neuron, window, at, seed) -> None:
    model, x, ls = drawn(neuron, "Linear", len(at), seed)
    masked_reset_is_a_fresh_start(model, x, ls, [window * a for a in at], window)


@pytest.mark.parametrize("neuron", NEURONS)
def test_a_model_moves_and_is_copied_with_its_state(neuron: str) -> None:
    if neuron.startswith("stochastic"):
        pytest.skip("a copy draws other numbers")
    model, x, ls = drawn(neuron, "Linear", 2, 0)
    model.window(x[:4])
    other = copy.deepcopy(model).float().to("cpu")
    assert other.mem.dtype == torch.float32
    other = copy.deepcopy(model)
    for net in (model, other):
        net.window(x[4:])
        net.backward(ls[4:])
    testing.assert_gradients_close(gradients_of(other), gradients_of(model))


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"reset": "soft"}, ValueError, r"LIF: expected reset to be one of \('subtract', 'zero', 'none'\), got 'soft'"),
        ({"reset_gradient": True}, ValueError, "expected reset_gradient to be one of"),
        ({"reset": "zero", "reset_delay": True}, ValueError, "expected reset_delay with reset='subtract', got 'zero'"),
        ({"gain": "beta"}, ValueError, "expected gain to be a number above 0, or 'leak' for 1 - beta, got 'beta'"),
        ({"gain": 0.0}, ValueError, "expected gain to be a finite number above 0, got 0.0"),
        ({"alpha": 1.0}, ValueError, r"expected alpha in \[0, 1\), got 1.0"),
        ({"alpha": 0.5, "tau_syn": 2.0}, ValueError, "expected alpha or tau_syn, got both"),
        ({"learn_alpha": True}, ValueError, "expected alpha together with other options of a synaptic current"),
        ({"rho": 0.9}, ValueError, "expected kappa together with other options of a threshold that adapts"),
        ({"kappa": -0.1}, ValueError, "expected kappa of at least 0, got -0.1"),
        ({"kappa": 0.0, "learn_kappa": True}, ValueError, "expected kappa above 0 where it is learned, got 0.0"),
        ({"kappa": 0.1, "rho": 1.0}, ValueError, r"expected rho in \[0, 1\), got 1.0"),
        ({"like": "brian"}, ValueError, "expected like to be one of 'snntorch', .*, got 'brian'"),
        ({"like": "snntorch", "reset": "zero", "alpha": 0.5}, ValueError, "drops the current of the step"),
        ({"like": "sinabs", "alpha": 0.5}, ValueError, "expected no synaptic current with like='sinabs'"),
        ({"firing": tt.surrogate.ArcTan()}, TypeError, r"expected firing to be a Firing such as firing.MultiSpike\(\)"),
        ({"firing": tt.firing.Spike(), "surrogate": tt.surrogate.ArcTan()}, ValueError, "or surrogate, got both"),
        ({"firing": tt.firing.Graded(), "reset_delay": True}, ValueError, "spikes that count with reset_delay"),
        ({"rule": tt.MeanRate(), "reset": "zero"}, ValueError, "MeanRate: expected a neuron whose firing rate"),
        ({"rule": tt.MeanRate(), "kappa": 0.1}, ValueError, "MeanRate: expected a neuron whose firing rate"),
    ],
    ids=str,
)  # fmt: skip
def test_bad_options_are_refused(options: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        tt.LIF(4, 3, **options)


def test_other_names_have_their_defaults() -> None:
    assert tt.IF(2, 3).beta.item() == 1
    assert tt.IF(2, 3, like="norse").neuron.form.gain == 1
    with pytest.raises(ValueError, match="IF: expected no leak, got tau"):
        tt.IF(2, 3, tau=3.0)
    assert tt.Synaptic(2, 3).alpha.item() == pytest.approx(0.8)
    assert tt.Synaptic(2, 3, tau_syn=5.0, like="norse").alpha.item() == pytest.approx(0.8)
    adaptive = tt.ALIF(2, 3, tau_adapt=10.0)
    assert (adaptive.rho.item(), adaptive.kappa.item()) == pytest.approx((math.exp(-0.1), 0.1))
    assert tt.LIF(2, 3, tau=4.0, like="spikingjelly").beta.item() == pytest.approx(0.75)
    assert tt.LIF(2, 3, tau=4.0, like="sinabs").beta.item() == pytest.approx(math.exp(-0.25))
    with pytest.raises(ValueError, match="EscapeNoise: expected width to be a finite number above 0"):
        tt.firing.EscapeNoise(0.0)
    with pytest.raises(TypeError, match="Spike: expected surrogate to be a Surrogate"):
        tt.firing.Spike("arctan")


def test_stochastic_neurons_fire_with_the_probability_of_their_membrane() -> None:
    layer = tt.LIF(synapse=nn.Linear(1, 1), beta=0.0, firing=tt.firing.EscapeNoise(0.5), reset="none")
    with torch.no_grad():
        layer.weight.fill_(1.0)
        layer.synapse.bias.fill_(0.0)
    spikes = layer.window(torch.full((200, 500, 1), 1.25))
    assert spikes.mean().item() == pytest.approx(torch.sigmoid(torch.tensor(0.5)).item(), abs=0.01)

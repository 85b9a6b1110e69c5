"""Synapses: those that are known, and one's own."""

import pytest
import torch
from torch import nn

import tracetorch as tt
from cases import F64, B, T
from checks import equals_bptt
from test_neurons import SYNAPSES, problem
from tracetorch import testing
from tracetorch.nn.synapse import _OPERATIONS, Synapse


class Banded(nn.Module):
    """Each output sums two neighbours: `y_c = w_c (x_c + x_{c+1}) + b_c`."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n - 1, **F64))
        self.bias = nn.Parameter(torch.randn(n - 1, **F64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * (x[:, 1:] + x[:, :-1]) + self.bias


def banded_gradient(module: Banded, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return (g * (x[:, 1:] + x[:, :-1])).sum(0)


def banded_transpose(module: Banded, weight: torch.Tensor, g: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    back = torch.zeros(len(g), *shape, dtype=g.dtype)
    back[:, 1:] += weight * g
    back[:, :-1] += weight * g
    return back


def register(**change: object) -> None:
    functions = {"weight_gradient": banded_gradient, "transpose": banded_transpose}
    shape = lambda module: (len(module.weight) + 1,)  # noqa: E731
    tt.nn.register_synapse(Banded, **(functions | {"input_shape": shape} | change))


@pytest.fixture(autouse=True)
def _tidy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tt.nn.synapse, "_OPERATIONS", dict(_OPERATIONS))


@pytest.mark.parametrize("name", SYNAPSES)
def test_the_known_synapses_agree_with_autograd(name: str) -> None:
    build, shape = SYNAPSES[name]
    module = build()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    testing.check_synapse(module, *shape)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(4, 6, 3, padding="valid", groups=2),
        nn.Conv2d(3, 6, (3, 5), padding="same", dilation=(2, 1)),
        nn.Conv3d(2, 2, 2, stride=(1, 2, 1), groups=2, bias=False),
        nn.ConvTranspose1d(4, 6, 3, stride=3, groups=2, dilation=2),
        nn.ConvTranspose3d(2, 3, 2, stride=2, output_padding=1, padding=1),
    ],
    ids=str,
)
def test_options_of_convolutions_agree_with_autograd(module: nn.Module) -> None:
    testing.check_synapse(module, module.in_channels, *[7, 6, 5][: len(module.kernel_size)])


def test_a_synapse_of_ones_own_learns_as_bptt_has_it() -> None:
    register()
    testing.check_synapse(Banded(9))
    layer = lambda: tt.LIF(synapse=Banded(9), beta=0.8, learn_beta=True, rule=tt.InputTrace())  # noqa: E731
    equals_bptt(*problem(layer, (9,)), 4)

    def deep(rule: tt.rules.Rule) -> tt.Sequential:
        return tt.Sequential(tt.LIF(synapse=Banded(9), beta=0.8, threshold=0.5), tt.LI(8, 3, **F64), rule=rule)

    for rule in (tt.InputTrace(), tt.MeanField()):
        equals_bptt(*problem(lambda rule=rule: deep(rule), (9,)), T)
    with pytest.raises(ValueError, match="Eligibility: expected LIF to have a synapse of which it is known"):
        problem(lambda: deep(tt.Eligibility()), (9,))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"weight_gradient": lambda *a: 1.01 * banded_gradient(*a)}, "weight_gradient"),
        ({"transpose": lambda *a: banded_transpose(*a).flip(1)}, "transpose"),
        ({"transpose": lambda module, _, g, s: banded_transpose(module, module.weight, g, s)}, "another weight"),
        ({"weight_gradient": lambda *a: banded_gradient(*a)[None]}, r"of shape \(8,\), got \(1, 8\)"),
    ],
)
def test_a_wrong_function_is_found(change: dict, what: str) -> None:
    register(**change)
    with pytest.raises(AssertionError, match=f"check_synapse: expected .*{what}"):
        testing.check_synapse(Banded(9))


def test_a_map_that_is_not_linear_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    monkeypatch.setattr(Banded, "forward", lambda self, x: torch.relu(self.weight * (x[:, 1:] + x[:, :-1])))
    with pytest.raises(AssertionError, match="expected linear in x as autograd has it"):
        testing.check_synapse(Banded(9))


def test_what_is_not_known_is_refused() -> None:
    with pytest.raises(NotImplementedError, match=r"got Banded\. .* with tt\.nn\.register_synapse"):
        tt.LIF(synapse=Banded(9))
    with pytest.raises(TypeError, match="expected a class of torch modules, got Linear"):
        tt.nn.register_synapse(nn.Linear(1, 1), weight_gradient=banded_gradient, transpose=banded_transpose)
    with pytest.raises(ValueError, match="Give it, such as check_synapse"):
        testing.check_synapse(nn.Conv2d(1, 1, 3))
    with pytest.raises(NotImplementedError, match="got padding='same' with an even kernel"):
        tt.LIF(synapse=nn.Conv2d(1, 1, 2, padding="same"))
    with pytest.raises(NotImplementedError, match="got padding_mode='circular'"):
        tt.LIF(synapse=nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"))
    with pytest.raises(ValueError, match=r"MaskedLinear: expected mask of shape \(2, 3\), got \(3, 2\)"):
        tt.nn.MaskedLinear(3, 2, torch.ones(3, 2))


def test_masked_weights_stay_as_they_are() -> None:
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    layer = tt.LIF(synapse=tt.nn.MaskedLinear(2, 2, mask), threshold=0.1)
    layer(torch.ones(1, 2))
    layer.backward(torch.ones(1, 2))
    assert torch.equal(layer.weight.grad != 0, mask.bool())
    assert "synapse.mask" in layer.state_dict()


@pytest.mark.parametrize("name", ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose2d"])
def test_initial_weights_make_the_membrane_as_large_as_the_threshold(name: str) -> None:
    """Without reset and bias, for spikes at a rate of 0.1; at the edges of the image there are fewer inputs."""
    torch.manual_seed(0)
    build, shape = SYNAPSES[name]
    wide = (shape[0], *[size + 12 for size in shape[1:]])
    layer = tt.LIF(synapse=build(), beta=0.8, reset="none")
    layer.reset_parameters()
    layer.window((torch.rand(60, 2, *wide) < 0.1).double())
    u = layer._segments[-1].tape.record.u + 1
    assert 0.5 < u[20:].square().mean().sqrt() < 1.7


def test_a_convolution_takes_one_size_at_a_time() -> None:
    layer = tt.LIF(synapse=nn.Conv2d(1, 2, 3))
    with pytest.raises(RuntimeError, match="expected to know the size of its input, got a Conv2d that takes any"):
        layer.state_bytes()
    with pytest.raises(ValueError, match="expected a model whose input has a size, got a convolution first"):
        layer.tape_bytes()
    layer(torch.rand(1, 1, 5, 5))
    assert layer.mem.shape == (1, 2, 3, 3)
    size = layer.state_bytes()
    with pytest.raises(ValueError, match=r"shape \(1, 5, 5\) as in the calls before, got \(1, 6, 5\)"):
        layer(torch.rand(1, 1, 6, 5))
    layer(torch.rand(1, 1, 5, 5))
    layer.backward(torch.ones(1, 2, 3, 3))
    layer.reset()
    assert layer(torch.rand(1, 6, 6)).shape == (2, 4, 4)  # a single lane
    assert layer.state_bytes() > size
    for bad in ((1, 2, 5, 5), (5, 5), (1, 1, 1, 5, 5)):
        with pytest.raises(ValueError, match=r"expected x of shape \(B, 1, any, any\), got"):
            layer(torch.rand(bad))
    layer.reset()
    with pytest.raises(ValueError, match=r"expected an input that Conv2d.* takes, got \(1, 2, 2\)"):
        layer(torch.rand(1, 1, 2, 2))


def test_what_a_convolution_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="expected recurrent weights between neurons in a row, got a Conv2d"):
        tt.LIF(synapse=nn.Conv2d(1, 2, 3), recurrent=True)
    with pytest.raises(ValueError, match=r"expected beta to be one number or one per neuron \(2,\), got shape \(3,\)"):
        tt.LIF(synapse=nn.Conv2d(1, 2, 3), beta=[0.1, 0.2, 0.3])
    model = tt.Sequential(tt.LIF(synapse=nn.Conv2d(1, 2, 3)), nn.Flatten(), tt.LI(18, 2), rule=tt.Eligibility(limit=B))
    with pytest.raises(ValueError, match="expected matrices of at most 3 bytes for a convolution, got 1,9"):
        model(torch.rand(B, 1, 5, 5))


def test_a_stream_of_a_convolution_is_saved_and_loaded() -> None:
    def build() -> tt.Sequential:
        torch.manual_seed(0)
        return tt.Sequential(
            tt.LIF(synapse=nn.Conv2d(1, 2, 3, **F64), beta=[0.6, 0.9], threshold=0.3), nn.Flatten(), tt.LI(18, 2, **F64)
        )

    model, other, x = build(), build(), torch.rand(8, 2, 1, 5, 5, **F64)
    model.window(x[:4])
    other(x[0])  # it knows the size of its input then
    other.load_stream_state(model.stream_state())
    for net in (model, other):
        net.zero_grad()
        net.window(x[4:])
        net.backward(torch.ones(4, 2, 2, **F64))
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_random_feedback_passes_through_a_convolution() -> None:
    layer = tt.LIF(synapse=nn.Conv2d(1, 2, 3), threshold=0.1, rule=tt.InputTrace(feedback="random"))
    y = layer(torch.rand(2, 1, 5, 5))
    below = layer.backward(torch.ones_like(y), input_signal=True)
    assert below.shape == (2, 1, 5, 5)
    assert layer.feedback.shape == layer.weight.shape
    expected = Synapse("", layer.synapse).operations.transpose(
        layer.synapse, layer.feedback, layer.neuron.slope(layer._segments[-1].tape)[0].view_as(y), (1, 5, 5)
    )
    torch.testing.assert_close(below, expected)

"""The bank of exponentials, against sums written out lag by lag."""

import math

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from cases import F64, HIDDEN, M, N, hidden
from tracetorch.functional import trace
from tracetorch.functional.bank import Bank, are_apart, geometric_nodes, with_pinned

LAGS = torch.arange(4000, **F64)
TAUS = torch.linspace(2.0, 50.0, 25, **F64)
BETAS = torch.exp(-1 / TAUS)


def nodes_of(count: int, shortest: float = 2 / 1.5, longest: float = 2.5 * 50) -> Tensor:
    return geometric_nodes(shortest, longest, count)


def powers(decays: Tensor) -> Tensor:
    """(...) -> (..., lags)."""
    return decays[..., None] ** LAGS


def convolution(p: Tensor, beta: Tensor) -> Tensor:
    """(H,), (m,) -> (m, H, lags): sum_{j <= k} p^j beta^(k-j), step by step."""
    drive = powers(p).expand(len(beta), len(p), len(LAGS))
    written = [torch.ones(len(beta), len(p), **F64)]
    for k in range(1, len(LAGS)):
        written.append(drive[..., k] + beta[:, None] * written[-1])
    return torch.stack(written, -1)


def relative(actual: Tensor, expected: Tensor) -> Tensor:
    return (actual - expected).norm(dim=-1) / expected.norm(dim=-1)


@pytest.mark.parametrize(("count", "bound"), [(4, 0.041), (6, 0.006), (8, 0.001)])
def test_kernels_are_written_as_well_as_the_design_says(count: int, bound: float) -> None:
    """Nodes spaced over the time constants themselves, 2 to 50 steps; coefficients below 1.4."""
    nodes = nodes_of(count, 2.0, 50.0)
    bank = Bank(nodes, BETAS)
    error = relative(bank.kernels @ powers(nodes), powers(BETAS))
    assert bound / 3 < error.max() < bound
    torch.testing.assert_close(bank.error().kernels, error, rtol=1e-6, atol=1e-9)
    assert bank.kernels.abs().max() < 1.4


@pytest.mark.parametrize(("count", "bound"), [(4, 0.30), (6, 0.09), (8, 0.015)])
def test_convolved_kernels_are_written_in_the_default_span(count: int, bound: float) -> None:
    """Recorded, resonance (a node above that equals a neuron's beta) included."""
    above = torch.exp(-1 / torch.tensor([2.0, 7.0, 20.0, 50.0], **F64))
    nodes = nodes_of(count)
    bank = Bank(nodes, BETAS[::4], above)
    error = relative(bank.convolved @ powers(nodes), convolution(above, BETAS[::4]))
    assert bound / 5 < error.max() < bound
    torch.testing.assert_close(bank.error().convolved, error, rtol=1e-6, atol=1e-9)


def test_least_squares_is_what_solving_over_the_lags_gives() -> None:
    nodes, above = nodes_of(4), torch.tensor([0.5, 0.8], **F64)
    bank = Bank(nodes, BETAS[:3], above)
    basis = powers(nodes).T
    for written, function in (
        (bank.kernels, powers(BETAS[:3])),
        (bank.convolved, convolution(above, BETAS[:3])),
        (bank.converted, powers(above)),
        (bank.delayed, torch.cat([torch.zeros(4, 1, **F64), powers(nodes)[:, :-1]], -1)),
    ):
        expected = torch.linalg.lstsq(basis, function.flatten(0, -2).T).solution.T
        torch.testing.assert_close(written.flatten(0, -2), expected, rtol=1e-4, atol=1e-5)


def test_what_is_a_node_is_written_exactly() -> None:
    nodes = torch.tensor([0.0, 0.3, 0.8, 0.95, 1.0], **F64)
    bank = Bank(nodes, nodes, torch.tensor([0.8, 1.0, 0.3], **F64))
    assert torch.equal(bank.kernels, torch.eye(5, **F64))
    assert torch.equal(bank.converted, torch.eye(5, **F64)[[2, 4, 1]])


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.95])
@pytest.mark.parametrize("above", [0.8, 1.0, 0.5])
def test_convolutions_of_nodes_that_lie_apart_are_exact(beta: float, above: float) -> None:
    """Partial fractions; with one node at 1, a perfect integrator, too."""
    nodes = torch.tensor([0.0, 0.3, 0.5, 0.8, 0.95, 1.0], **F64)
    bank = Bank(nodes, torch.tensor(beta, **F64), torch.tensor([above], **F64))
    expected = convolution(bank.above, bank.beta.reshape(1))[..., :200]
    torch.testing.assert_close(bank.convolved @ powers(nodes)[:, :200], expected, rtol=1e-9, atol=1e-9)


def test_a_perfect_integrator_under_a_leaky_signal_is_exact() -> None:
    nodes = torch.tensor([0.5, 0.9, 1.0], **F64)
    bank = Bank(nodes, torch.tensor(1.0, **F64), torch.tensor([0.5, 0.9], **F64))
    expected = convolution(bank.above, torch.ones(1, **F64))[..., :200]
    torch.testing.assert_close(bank.convolved @ powers(nodes)[:, :200], expected, rtol=1e-9, atol=1e-9)


def test_delayed_exponentials() -> None:
    nodes = torch.cat([nodes_of(8), torch.ones(1, **F64)])
    written = Bank(nodes, torch.tensor(0.9)).delayed @ powers(nodes)[:, :200]
    true = torch.cat([torch.zeros(9, 1, **F64), powers(nodes)[:, :199]], -1)
    error = (written - true).norm(dim=-1)
    scale = true.norm(dim=-1)
    assert (error[:4] / scale[:4] < 0.5).all()  # the fastest cannot: their delay is no sum of decays
    assert (error[4:] / scale[4:] < 0.1).all()
    assert error[-1] < 0.5  # 1 is off by the value at lag 0 alone
    with_zero = torch.cat([torch.zeros(1, **F64), nodes])  # 0^k is that value: then every delay is a division
    exact = Bank(with_zero, torch.tensor(0.9)).delayed[1:] @ powers(with_zero)[:, :200]
    torch.testing.assert_close(exact, true, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("distance", [1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-12])
def test_coefficients_stay_small_where_nodes_lie_close(distance: float) -> None:
    """Recorded, in a bank of eight: without the ridge they would be of the order of 1 / distance."""
    close = [0.9, 0.9 + distance]
    nodes = with_pinned(geometric_nodes(6.0, 25.0, 8), close)
    bank = Bank(nodes, torch.tensor([*close, 0.9 + distance / 2, 0.88], **F64), torch.tensor([*close, 0.95], **F64))
    for coefficients, bound in (
        (bank.kernels, 10),
        (bank.convolved, 500),
        (bank.converted, 1000),
        (bank.delayed, 1500),
    ):
        assert coefficients.abs().max() < bound
    assert relative(bank.kernels @ powers(nodes), powers(bank.beta)).max() < 1e-4
    assert relative(bank.convolved @ powers(nodes), convolution(bank.above, bank.beta)).max() < 0.02


@pytest.mark.parametrize("beta", [0.5, 0.9, 0.98])
def test_resonance_stays_of_the_size_of_its_function(beta: float) -> None:
    """Layers with one beta: (k + 1) beta^k, in the default span; its norm is what the coefficients may have."""
    tau = -1 / math.log(beta)
    nodes = with_pinned(geometric_nodes(max(0.2, tau / 1.5), 2.5 * tau, 8), [beta])
    bank = Bank(nodes, torch.tensor(beta, **F64), torch.tensor([beta], **F64))
    expected = (LAGS + 1) * powers(torch.tensor(beta, **F64))
    assert relative(bank.convolved[0, 0] @ powers(nodes), expected) < 0.01
    assert bank.convolved.abs().max() < 30 * expected.max()


def test_an_error_is_small_or_reported() -> None:
    """A bank that cannot write a function says so."""
    bank = Bank(torch.tensor([0.5], **F64), torch.tensor([0.5, 0.98], **F64), torch.tensor([0.5], **F64))
    assert bank.error().kernels[0] == 0
    assert bank.error().kernels[1] > 0.5
    assert (bank.error().convolved > 0.3).all()
    assert Bank(nodes_of(3), BETAS).error().convolved is None


def test_a_perfect_integrators_bank_has_no_error() -> None:
    assert tt.LI(N, M, beta=1.0).banks()[""].error().kernels.tolist() == [0.0]


def test_geometric_nodes() -> None:
    nodes = geometric_nodes(3.0, 48.0, 5)
    torch.testing.assert_close(-1 / nodes.log(), torch.tensor([3.0, 6, 12, 24, 48], **F64))
    torch.testing.assert_close(-1 / geometric_nodes(3.0, 48.0, 1).log(), torch.tensor([12.0], **F64))


@pytest.mark.parametrize(
    ("pinned", "expected"),
    [
        ([], [0.5, 0.7, 0.9]),
        ([0.69], [0.5, 0.69, 0.9]),
        ([0.69, 0.71], [0.5, 0.69, 0.9]),  # its nearest is taken: the next one in time constants, 0.5
        ([0.71, 0.71], [0.5, 0.71, 0.9]),
        ([0.0, 1.0], [0.0, 0.5, 0.7, 0.9, 1.0]),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.7, 0.9]),
        ([0.9], [0.5, 0.7, 0.9]),
    ],
    ids=str,
)
def test_pinned_decays_take_the_place_of_their_neighbours(pinned: list[float], expected: list[float]) -> None:
    actual = with_pinned(torch.tensor([0.5, 0.7, 0.9], **F64), pinned)
    torch.testing.assert_close(actual, torch.tensor(expected, **F64))
    assert actual.dtype == torch.float64


def test_are_apart() -> None:
    assert are_apart([])
    assert are_apart([0.9, 0.89])
    assert not are_apart([0.9, 0.895])
    assert not are_apart([0.5, 0.9, 0.5])


def test_traces_of_a_bank_are_sums_over_lags() -> None:
    torch.manual_seed(0)
    nodes, drive = torch.tensor([0.0, 0.5, 1.0], **F64), torch.randn(7, 2, 3, **F64)
    before = torch.randn(2, 3, 3, **F64)
    expected = before * nodes[:, None] ** 7
    for k in range(7):
        expected = expected + nodes[:, None] ** k * drive[6 - k][:, None]
    torch.testing.assert_close(trace.advance_bank(before, drive, nodes), expected)
    stepwise = before
    for step in drive:
        stepwise = trace.advance_bank(stepwise, step[None], nodes)
    torch.testing.assert_close(stepwise, expected)


# -- the banks of a model ----------------------------------------------------------------------------------------------


def nodes_by_layer(model: tt.Sequential) -> dict[str, list[float]]:
    return {name: [round(q, 6) for q in bank.nodes.tolist()] for name, bank in model.banks().items()}


def test_betas_that_lie_apart_are_the_basis() -> None:
    def model(rule: tt.rules.Rule) -> tt.Sequential:
        return tt.Sequential(
            hidden(beta=0.5, learn_beta=False), tt.LIF(HIDDEN, M, beta=0.9), tt.LI(M, M, beta=1.0), rule=rule
        )

    expected = {"0": [0.5, 0.9, 1.0], "1": [0.5, 0.9, 1.0], "2": [1.0]}
    assert nodes_by_layer(model(tt.Eligibility())) == nodes_by_layer(model(tt.MeanField())) == expected
    assert nodes_by_layer(model(tt.InputTrace())) == {"0": [0.5], "1": [0.9], "2": [1.0]}
    assert nodes_by_layer(model(tt.Truncated())) == {}
    assert model(tt.Truncated()).banks() == {}


@pytest.mark.parametrize("span", [None, (3.0, 30.0)])
def test_otherwise_nodes_are_spaced_and_constants_pinned(span: tuple[float, float] | None) -> None:
    """Time constants from the model's shortest / 1.5 to 2.5 times its longest, or as the rule says."""
    model = tt.Sequential(
        tt.LIF(N, HIDDEN, tau=torch.linspace(4, 20, HIDDEN).tolist()),
        tt.LIF(HIDDEN, HIDDEN, beta=0.85, learn_beta=True),
        tt.LI(HIDDEN, M, beta=0.9),
        rule=tt.MeanField(nodes=6, span=span),
    )
    low, high = span or (4 / 1.5, 50.0)
    expected = with_pinned(geometric_nodes(low, high, 6), [model[2].beta.double().item()])
    banks = model.banks()
    for name in ("0", "1"):
        torch.testing.assert_close(banks[name].nodes, expected, rtol=1e-5, atol=0)
    assert banks["2"].nodes.tolist() == [model[2].beta.double().item()]
    assert torch.equal(banks["0"].above, banks["1"].nodes)
    assert banks["2"].above is None


def test_input_trace_has_a_bank_for_a_beta_per_neuron_alone() -> None:
    taus = torch.linspace(4, 20, M).tolist()
    for learned, (low, high) in ((False, (4, 20)), (True, (4 / 1.5, 50))):
        layer = tt.LIF(N, M, tau=taus, learn_beta=learned, **F64)
        torch.testing.assert_close(layer.banks()[""].nodes, geometric_nodes(low, high, 8))
        assert layer.banks()[""].error().kernels.max() < 3e-3


def test_the_bank_stays_while_a_stream_runs_and_is_chosen_anew_after_a_reset() -> None:
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, beta=0.9, **F64), rule=tt.Eligibility())
    x = torch.rand(2, N, **F64)
    model(x)
    before = model.banks()["0"].nodes
    with torch.no_grad():
        model[0].raw_beta += 1
    model(x)
    assert torch.equal(model.banks()["0"].nodes, before)
    assert model.banks()["0"].beta == model[0].beta
    model.reset()
    model(x)
    assert not torch.equal(model.banks()["0"].nodes, before)


@pytest.mark.parametrize("per_neuron", [False, True])
def test_a_learned_beta_that_leaves_the_bank_warns_once_per_stream(per_neuron: bool) -> None:
    beta = torch.linspace(0.8, 0.9, HIDDEN) if per_neuron else 0.85
    model = tt.Sequential(hidden(beta=beta), tt.LI(HIDDEN, M, beta=0.9, **F64), rule=tt.Eligibility())
    x, ls = torch.rand(2, N, **F64), torch.ones(2, M, **F64)

    def step() -> None:
        model(x)
        model.backward(ls, input_signal=True)
        model.banks()

    step()
    with torch.no_grad():
        model[0].raw_beta += 0.2  # still inside
    step()
    with torch.no_grad():
        model[0].raw_beta += 4
    with pytest.warns(
        UserWarning, match=r"LIF: expected learned betas to stay in the range of the bank, 0.\d+ to 0.9\d+"
    ):
        step()
    step()  # and no more
    model.reset()
    step()
    with torch.no_grad():
        model[0].raw_beta -= 9
    with pytest.warns(UserWarning, match="or give the rule a wider span"):
        step()


@pytest.mark.parametrize("rule", [tt.InputTrace(nodes=3), tt.MeanField(nodes=3), tt.Eligibility(nodes=4)], ids=str)
def test_a_bank_covers_the_betas_it_was_chosen_for(rule: tt.rules.Rule) -> None:
    """However many constants there are in the model: without a warning at the very start, and with a small error."""
    taus = torch.linspace(2, 30, HIDDEN).tolist()
    above = [tt.LIF(HIDDEN, HIDDEN, beta=beta, **F64) for beta in (0.95, 0.96, 0.97)]
    layer = tt.LIF(N, HIDDEN, tau=taus, learn_beta=True, **F64)
    model = tt.Sequential(layer, *above, tt.LI(HIDDEN, M, beta=0.9, **F64), rule=rule)
    assert model.banks()["0"].error().kernels.max() < 0.3

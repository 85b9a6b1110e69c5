"""Properties that hold for all sizes, cuts, decays and seeds."""

import io
import math

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tracetorch as tt
from cases import F64, LEARNED
from checks import gradients_in, gradients_of, masked_reset_is_a_fresh_start
from tracetorch import testing
from tracetorch.functional.bank import Bank, geometric_nodes, with_pinned

sizes = st.integers(1, 5)
decays = st.floats(0.01, 0.99)
seeds = st.integers(0, 2**16)
quick = settings(max_examples=25, deadline=None)


def problem(n: int, m: int, steps: int, lanes: int, beta: float, threshold: float, seed: int):
    torch.manual_seed(seed)
    layer = tt.LIF(n, m, beta=beta, threshold=threshold, **LEARNED, **F64)
    return layer, torch.randn(steps, lanes, n, **F64), torch.randn(steps, lanes, m, **F64)


@quick
@given(sizes, sizes, st.integers(1, 12), sizes, st.integers(1, 12), decays, st.floats(0.1, 3.0), seeds)
def test_input_trace_equals_bptt(n, m, steps, lanes, window, beta, threshold, seed) -> None:
    layer, x, ls = problem(n, m, steps, lanes, beta, threshold, seed)
    actual, expected = testing.online_gradients(layer, x, ls, window), testing.bptt_gradients(layer, x, ls)
    testing.assert_gradients_close(actual, expected)


@quick
@given(sizes, sizes, sizes, decays, seeds, st.data())
def test_any_cut_gives_the_same_gradient(n, m, lanes, beta, seed, data) -> None:
    layer, x, ls = problem(n, m, 12, lanes, beta, 1.0, seed)
    cuts = sorted(data.draw(st.sets(st.integers(1, 11), max_size=6)))
    sections = [b - a for a, b in zip([0, *cuts], [*cuts, 12], strict=True)]
    for part, signal in zip(x.split(sections), ls.split(sections), strict=True):
        layer.window(part)
        layer.backward(signal)
    actual = {name: p.grad for name, p in layer.named_parameters()}
    testing.assert_gradients_close(actual, testing.bptt_gradients(layer, x, ls))


@quick
@given(sizes, sizes, st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 3), decays, seeds)
def test_masked_resets_are_fresh_starts(n, m, at, window, beta, seed) -> None:
    layer, x, ls = problem(n, m, 6 * window, len(at), beta, 1.0, seed)
    masked_reset_is_a_fresh_start(layer, x, ls, [window * a for a in at], window)


@quick
@given(sizes, sizes, sizes, st.floats(0.5, 2.0), seeds)
def test_a_reset_model_is_as_good_as_new(n, m, lanes, beta, seed) -> None:
    assume(beta < 1)
    layer, x, ls = problem(n, m, 6, lanes, beta, 1.0, seed)
    layer.window(x)
    layer.reset()
    actual = testing.online_gradients(layer, x, ls, 2)
    testing.assert_gradients_close(actual, testing.bptt_gradients(layer, x, ls))


@quick
@given(sizes, sizes, st.integers(1, 6), seeds)
def test_two_layers_are_exact_when_the_window_is_the_sequence(n, m, lanes, seed) -> None:
    torch.manual_seed(seed)
    model = tt.Sequential(tt.LIF(n, 6, **LEARNED, **F64), tt.LI(6, m, learn_beta=True, **F64))
    x, ls = torch.randn(5, lanes, n, **F64), torch.randn(5, lanes, m, **F64)
    testing.assert_gradients_close(testing.online_gradients(model, x, ls, 5), testing.bptt_gradients(model, x, ls))


# -- the rules that continue the adjoint -------------------------------------------------------------------------------

BANKED = [tt.MeanField(), tt.Eligibility(), tt.MeanField(nodes=3), tt.Eligibility(nodes=3), tt.Eligibility(hops=2)]
few = settings(max_examples=15, deadline=None)
rules = st.sampled_from(BANKED)
horizons = st.sampled_from([None, 1, 4, 30])


def deep(n: int, m: int, steps: int, lanes: int, rule: tt.rules.Rule, seed: int, horizon: int | None = None):
    """A learned beta, a beta per neuron, recurrent weights, a layer that feeds two."""
    torch.manual_seed(seed)
    taus = (2 + 10 * torch.rand(3)).tolist()
    model = tt.Sequential(
        tt.LIF(n, 4, beta=0.8, threshold=0.5, **LEARNED, **F64),
        tt.Concat(
            tt.LIF(4, 3, tau=taus, threshold=0.5, **LEARNED, **F64),
            tt.LIF(4, 2, recurrent=True, threshold=0.5, learn_threshold=True, **F64),
        ),
        tt.LI(5, m, learn_beta=True, **F64),
        rule=rule,
        horizon=horizon,
    )
    return model, torch.randn(steps, lanes, n, **F64), torch.randn(steps, lanes, m, **F64)


@few
@given(sizes, sizes, st.integers(1, 12), sizes, st.integers(1, 12), decays, decays, seeds)
def test_eligibility_equals_bptt_under_a_readout(n, m, steps, lanes, window, beta, above, seed) -> None:
    layer, x, _ = problem(n, 4, steps, lanes, beta, 0.5, seed)
    model = tt.Sequential(layer, tt.LI(4, m, beta=above, **F64), rule=tt.Eligibility())
    ls = torch.randn(steps, lanes, m, **F64)
    actual, expected = testing.online_gradients(model, x, ls, window), testing.bptt_gradients(model, x, ls)
    testing.assert_gradients_close(actual, expected)


@few
@given(
    sizes,
    st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.85, 0.95, 1.0]), min_size=2, max_size=4, unique=True),
    st.integers(1, 12),
    seeds,
)
def test_mean_field_equals_bptt_where_slopes_are_constant(n, betas, window, seed) -> None:
    assume(1.0 not in betas[:-2])  # refused: see test_errors
    torch.manual_seed(seed)
    fire = tt.surrogate.Custom(lambda u: (u >= 0).to(u.dtype), lambda u: torch.full_like(u, 0.6))
    layers = [tt.LIF(n if i == 0 else 4, 4, beta=beta, surrogate=fire, **F64) for i, beta in enumerate(betas[:-1])]
    model = tt.Sequential(*layers, tt.LI(4, 2, beta=betas[-1], **F64), rule=tt.MeanField())
    x, ls = torch.randn(12, 2, n, **F64), torch.randn(12, 2, 2, **F64)
    actual, expected = testing.online_gradients(model, x, ls, window), testing.bptt_gradients(model, x, ls)
    testing.assert_gradients_close(actual, expected, rtol=1e-8, atol=1e-8)


@few
@given(sizes, sizes, st.integers(2, 4), st.integers(1, 5), rules, horizons, seeds)
def test_lanes_are_single_runs(n, m, lanes, window, rule, horizon, seed) -> None:
    model, x, ls = deep(n, m, 8, lanes, rule, seed, horizon)
    together = testing.online_gradients(model, x, ls, window)
    apart = [testing.online_gradients(model, x[:, i : i + 1], ls[:, i : i + 1], window) for i in range(lanes)]
    testing.assert_gradients_close(together, {name: sum(a[name] for a in apart) for name in together})


@few
@given(sizes, st.lists(st.integers(0, 4), min_size=1, max_size=3), st.integers(1, 3), rules, horizons, seeds)
def test_masked_resets_are_fresh_starts_in_deep_models(n, at, window, rule, horizon, seed) -> None:
    model, x, ls = deep(n, 2, 5 * window, len(at), rule, seed, horizon)
    masked_reset_is_a_fresh_start(model, x, ls, [window * a for a in at], window)


@few
@given(sizes, st.integers(1, 9), st.integers(1, 5), rules, st.booleans(), seeds)
def test_a_stream_goes_on_from_its_saved_state(n, first, window, rule, step, seed) -> None:
    """Gradients after loading are those of the stream that was saved, after an optimizer's step too."""
    model, x, ls = deep(n, 2, 10, 2, rule, seed)

    def go_on(part: tt.Sequential, since: int) -> testing.Gradients:
        part.zero_grad()
        for x_window, ls_window in zip(x[since:].split(window), ls[since:].split(window), strict=True):
            part.window(x_window)
            part.backward(ls_window)
        return gradients_of(part)

    model.window(x[:first])
    if step:
        model.backward(ls[:first])
        torch.optim.SGD(model.parameters(), lr=0.01).step()
    file = io.BytesIO()
    torch.save({"weights": model.state_dict(), "stream": model.stream_state()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, *_ = deep(n, 2, 10, 2, rule, seed + 1)
    other.load_state_dict(saved["weights"])
    with torch.no_grad():  # a constant of the layers, in no state_dict's place of its own
        other[1][0].load_state_dict(model[1][0].state_dict())
    other.load_stream_state(saved["stream"])
    testing.assert_gradients_close(go_on(other, first), go_on(model, first))


@few
@given(sizes, sizes, st.integers(1, 4), seeds, st.data())
def test_any_cut_within_the_horizon_gives_the_same_gradient(n, m, lanes, seed, data) -> None:
    model, x, ls = deep(n, m, 10, lanes, tt.InputTrace(), seed, horizon=10)
    cuts = sorted(data.draw(st.sets(st.integers(1, 9), max_size=6)))
    sections = [b - a for a, b in zip([0, *cuts], [*cuts, 10], strict=True)]
    testing.assert_gradients_close(gradients_in(model, x, ls, sections), testing.bptt_gradients(model, x, ls))


@quick
@given(
    st.floats(0.5, 20.0),
    st.floats(1.0, 30.0),
    st.integers(2, 8),
    st.lists(st.floats(0.05, 0.995), max_size=3),
    seeds,
)
def test_a_banks_own_error_is_the_brute_force_one(shortest, ratio, count, pinned, seed) -> None:
    torch.manual_seed(seed)
    nodes = with_pinned(geometric_nodes(shortest, 1.1 * ratio * shortest, count), pinned)
    beta, above = 0.99 * torch.rand(3, **F64), nodes[:2]
    bank = Bank(nodes, beta, above)
    slowest = max(nodes.max().item(), beta.max().item())
    lags = torch.arange(int(-40 / math.log(slowest)) + 64, **F64)
    basis, kernels = nodes[:, None] ** lags, beta[:, None] ** lags
    error = (bank.kernels @ basis - kernels).norm(dim=-1) / kernels.norm(dim=-1)
    torch.testing.assert_close(bank.error().kernels, error, rtol=1e-4, atol=1e-8)
    assert (error <= 1 + 1e-9).all()  # nothing at all would be off by 1

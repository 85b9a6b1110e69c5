"""Properties that hold for all sizes, cuts, decays and seeds."""

import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import tracetorch as tt
from cases import F64, LEARNED
from checks import masked_reset_is_a_fresh_start
from tracetorch import testing

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

"""The matrices of Eligibility are advanced when they are first read: whenever that is, the numbers are the same."""

import copy
import pickle
from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import tracetorch as tt
from cases import F64
from tracetorch import kernels
from tracetorch.functional.spikes import Spikes
from tracetorch.rules.base import Pending, map_tensors

N, M, T, LANES = 9, 4, 24, 3
WINDOW = 6


def made(recurrent: bool = False) -> tt.Sequential:
    torch.manual_seed(3)
    return tt.Sequential(
        tt.LIF(N, 8, recurrent=recurrent, learn_beta=True, **F64),
        tt.LIF(8, 8, beta=0.8, **F64),
        tt.LI(8, M, beta=0.9, **F64),
        rule=tt.Eligibility(nodes=3, span=(2.0, 20.0)),
    )


def data() -> tuple[Tensor, Tensor]:
    torch.manual_seed(4)
    return (torch.rand(T, LANES, N) < 0.4).double(), torch.randn(T, LANES, M, **F64)


def pending(model: tt.Sequential) -> list[Pending]:
    found = [layer._state.traces.matrices for layer in model]
    return [matrix for matrices in found for matrix in matrices.values() if isinstance(matrix, Pending)]


def read(model: tt.Sequential) -> None:
    for matrix in pending(model):
        matrix.value()


def learn(
    model: tt.Sequential, between: Callable[[tt.Sequential], tt.Sequential | None], every: int = 1
) -> dict[str, Tensor]:
    """The gradients where `between` is done to the model, or replaces it, after each window's forward call."""
    model.zero_grad()
    for k, (x, ls) in enumerate(zip(*(part.split(WINDOW) for part in data()), strict=True)):
        model.window(x)
        model = between(model) or model
        if k % every == every - 1 and model._latest is not None:
            model.backward(ls)
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def refused(model: tt.Sequential) -> None:
    for bad in (torch.full((WINDOW, LANES, N), torch.nan, **F64), torch.zeros(WINDOW, LANES + 1, N, **F64)):
        with pytest.raises(ValueError, match="expected"):
            model.window(bad)


def refused_by_the_last(model: tt.Sequential) -> None:
    """The layers below have made their proposals."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model[2].neuron, "scan", fails)
        patch.setattr(type(model[2]), "_as_row", lambda *_: None)
        with pytest.raises(RuntimeError, match="on purpose"):
            model.window(torch.ones(WINDOW, LANES, N, **F64))


def fails(*_: object) -> None:
    raise RuntimeError("on purpose")


def saved(model: tt.Sequential) -> None:
    for tensors in model.stream_state()["tensors"].values():
        for tensor in tensors.values():
            tensor.fill_(torch.nan)  # a copy


def counted(model: tt.Sequential) -> None:
    assert model.state_bytes() > 0


def moved(model: tt.Sequential) -> None:
    assert copy.deepcopy(model).float()[0]._state is not None


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("between", [read, refused, refused_by_the_last, saved, counted, moved])
def test_what_happens_between_forward_and_backward_changes_nothing(
    between: Callable[[tt.Sequential], None], every: int, recurrent: bool
) -> None:
    torch.testing.assert_close(
        learn(made(recurrent), between, every), learn(made(recurrent), lambda _: None, every), rtol=1e-12, atol=1e-12
    )


def test_a_matrix_is_computed_at_backward_and_not_before() -> None:
    model, (x, ls) = made(), data()
    model.window(x[:WINDOW])
    model.window(x[WINDOW : 2 * WINDOW])
    assert [bool(matrix._window) for matrix in pending(model)] == [True, True]
    model.backward(ls[:WINDOW])
    assert [bool(matrix._window) for matrix in pending(model)] == [False, False]


def test_a_second_backward_adds_the_same() -> None:
    once = learn(made(), lambda _: None)
    model = made()
    for x, ls in zip(*(part.split(WINDOW) for part in data()), strict=True):
        model.window(x)
        model.backward(ls)
        model.backward(ls)
    twice = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(twice, {name: 2 * grad for name, grad in once.items()}, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_has_matrices_of_its_own(duplicate: Callable[[tt.Sequential], tt.Sequential]) -> None:
    model, (x, ls) = made(), data()
    windows = list(zip(x.split(WINDOW), ls.split(WINDOW), strict=True))
    model.window(windows[0][0])
    model.window(windows[1][0])
    other = duplicate(model)
    for part in (other, model):  # the second must find nothing that the first has advanced
        for of_x, of_ls in windows[2:]:
            part.window(of_x)
            part.backward(of_ls)
    torch.testing.assert_close(
        *({name: parameter.grad for name, parameter in part.named_parameters()} for part in (other, model)),
        rtol=1e-12,
        atol=1e-12,
    )


def test_a_stream_goes_on_from_a_state_saved_while_matrices_are_pending() -> None:
    model, other, (x, ls) = made(), made(), data()
    for part in x[: 3 * WINDOW].split(WINDOW):
        model.window(part)
    state = model.stream_state()
    assert not any(matrix._window for matrix in pending(model))
    other.load_stream_state(state)
    for part in (model, other):
        part.window(x[3 * WINDOW :])
        part.backward(ls[3 * WINDOW :])
    torch.testing.assert_close(
        *({name: parameter.grad for name, parameter in part.named_parameters()} for part in (other, model)),
        rtol=1e-12,
        atol=1e-12,
    )


def test_lanes_that_forget_leave_the_others_alone() -> None:
    mask = torch.tensor([True, False, False])
    gradients = []
    for reads in (True, False):
        model, (x, ls) = made(), data()
        for part in x[: 3 * WINDOW].split(WINDOW):
            model.window(part)
            if reads:
                read(model)
        model.reset(mask)
        model.window(x[3 * WINDOW :])
        matrices = map_tensors(Tensor.clone, model[0]._state.traces.matrices)
        assert matrices["weight"][0].abs().sum() == 0
        assert matrices["weight"][1].abs().sum() > 0
        model.backward(ls[3 * WINDOW :])
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)


def test_a_window_of_spikes_is_kept_as_bits_until_its_matrix_is_computed() -> None:
    """As numbers, or read at once, it makes the same of them."""
    torch.manual_seed(5)
    xs, ls = (torch.rand(96, 8, N) < 0.3).double(), torch.randn(96, 8, M, **F64)
    gradients = []
    for change, reads in ((0.0, False), (0.0, True), (1e-9, False)):
        model = made(recurrent=True)
        for x, of_x in zip(xs.split(32), ls.split(32), strict=True):
            model.window(x + change)
            matrix = model[0]._state.traces.matrices["weight"]
            if isinstance(matrix, Pending):  # from the second window on
                assert isinstance(matrix._window[2], Spikes) == (change == 0)
            if reads:
                read(model)
            model.backward(of_x)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients[:2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradients[0], gradients[2], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("recurrent", [False, True])
def test_windows_of_any_length_and_kind_make_the_same_matrices(recurrent: bool) -> None:
    """Long and short ones, of spikes as bits and of few rows as numbers, with the kernels and without."""
    torch.manual_seed(6)
    xs, ls = (torch.rand(140, 16, N) < 0.3).double(), torch.randn(140, 16, M, **F64)
    cuts = [1, 3, 70, 20, 46]
    gradients = []
    for context in (nullcontext, kernels.reference):
        model = made(recurrent)
        with context():
            for x, of_x in zip(xs.split(cuts), ls.split(cuts), strict=True):
                model.window(x)
                model.backward(of_x)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


def test_weights_that_change_between_windows_leave_the_pending_ones_as_they_were() -> None:
    gradients = []
    for reads in (False, True):
        model, (x, ls) = made(), data()
        for of_x, of_ls in zip(x.split(WINDOW), ls.split(WINDOW), strict=True):
            model.window(of_x)
            if reads:
                read(model)
            model.zero_grad()
            model.backward(of_ls)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.01 * parameter.grad
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-12)

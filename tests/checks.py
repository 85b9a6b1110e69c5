"""One check per property; tests run them on the library, and on planted faults to see that they are caught."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from tracetorch import testing
from tracetorch.nn.online import Online


def equals_bptt(model: Online, x: Tensor, ls: Tensor, window: int) -> None:
    """Every gradient equals BPTT's when the sequence is cut into windows; dL/dx too where nothing is cut."""
    whole = window == len(x)
    actual = testing.online_gradients(model, x, ls, window, input_gradient=whole)
    expected = testing.bptt_gradients(model, x, ls, input_gradient=whole)
    for name, gradient in expected.items():
        assert gradient.norm() > 1e-6, f"{name}: the reference is zero, and everything would pass"
    testing.assert_gradients_close(actual, expected)


def gradients_in(model: Online, x: Tensor, ls: Tensor, sections: list[int]) -> testing.Gradients:
    """What `model.backward` accumulates from rest, when x and ls are cut into these sections."""
    model.reset()
    model.zero_grad()
    for x_window, ls_window in zip(x.split(sections), ls.split(sections), strict=True):
        model.window(x_window)
        model.backward(ls_window)
    return gradients_of(model)


def gradients_of(model: Online) -> testing.Gradients:
    """What is in `.grad`."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def last_step_alone(ls: Tensor) -> Tensor:
    """A learning signal at the last step and nowhere else."""
    return torch.cat([torch.zeros_like(ls[:-1]), ls[-1:]])


def relative_errors(actual: testing.Gradients, expected: testing.Gradients) -> dict[str, float]:
    """`|actual - expected| / |expected|` by parameter."""
    assert actual.keys() == expected.keys()
    return {name: ((actual[name] - e).norm() / e.norm()).item() for name, e in expected.items()}


def masked_reset_is_a_fresh_start(
    model: Online, x: Tensor, ls: Tensor, reset_at: list[int], window: int, exact: bool = False
) -> None:
    """Lanes that are reset at steps of their own give the sum of the gradients of separate single-lane runs.

    Of the model in windows; where it is exact, of BPTT.
    """
    together = copy.deepcopy(model)
    together.reset()
    together.zero_grad()
    for t in range(0, len(x), window):
        mask = torch.tensor([at == t for at in reset_at])
        if t and mask.any():
            together.reset(mask)
        together.window(x[t : t + window])
        together.backward(ls[t : t + window])
    actual = {name: p.grad for name, p in together.named_parameters()}

    expected: dict[str, Tensor] = {}
    for lane, at in enumerate(reset_at):
        own_x, own_ls = x[:, lane : lane + 1], ls[:, lane : lane + 1]
        for part in (slice(0, at), slice(at, len(x))):
            if part.stop == part.start:
                continue
            if exact:
                gradients = testing.bptt_gradients(model, own_x[part], own_ls[part])
            else:
                gradients = testing.online_gradients(model, own_x[part], own_ls[part], window)
            for name, gradient in gradients.items():
                expected[name] = expected.get(name, 0) + gradient
    testing.assert_gradients_close(actual, expected)

"""How close each rule's gradient is to that of backpropagation through time, on a given model and data."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import _checks
from ..nn.online import Online, probe_of
from ..nn.streaming import forked_random_numbers
from ..rules import Eligibility, InputTrace, MeanField, Rule, Truncated
from .compare import compare, online_gradients
from .reference import Gradients, bptt_gradients

Loss = Callable[[Tensor], tuple[Tensor, Tensor]]
"""y -> (loss, ls), as the functions of `tracetorch.loss` return them."""

ATTACHED = "BPTT, reset attached"
ADAM = "Truncated, as Adam sees it"


@dataclass(frozen=True)
class FidelityRow:
    """One parameter's gradient by one rule, beside BPTT's with detached reset."""

    update: int  # updates of training before the gradient was taken
    rule: str  # as `repr(rule)`, or the name of a reference
    window: int  # K, steps; T for the references
    horizon: int | None  # H, steps
    parameter: str  # as in `named_parameters()`
    cosine: float
    norm_ratio: float  # of the rule's norm to that of BPTT


@dataclass(frozen=True)
class Fidelity:
    """The rows of a report."""

    rows: list[FidelityRow]

    def only(self, **wanted: object) -> Fidelity:
        """The rows whose fields have the values wanted, such as `only(window=1, rule="InputTrace()")`."""
        return Fidelity([row for row in self.rows if all(getattr(row, k) == v for k, v in wanted.items())])

    def __iter__(self) -> Iterator[FidelityRow]:
        """The rows."""
        return iter(self.rows)

    def markdown(self) -> str:
        """A table: a line for each rule, window and horizon, a column for each parameter with cosine (norm ratio)."""
        parameters = list(dict.fromkeys(row.parameter for row in self.rows))
        lines: dict[tuple[int, str, int, int | None], dict[str, FidelityRow]] = {}
        for row in self.rows:
            lines.setdefault((row.update, row.rule, row.window, row.horizon), {})[row.parameter] = row
        several = len({update for update, *_ in lines}) > 1
        head = [*(["update"] if several else []), "rule", "K", "H", *(f"`{name}`" for name in parameters)]
        table = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for (update, rule, window, horizon), found in lines.items():
            cells = [f"{found[name].cosine:.3f} ({found[name].norm_ratio:.2f})" for name in parameters]
            start = [str(update)] if several else []
            table.append("| " + " | ".join([*start, rule, str(window), str(horizon or window), *cells]) + " |")
        return "\n".join(table)


def fidelity(
    model: Online,
    x: Tensor,
    loss: Loss,
    *,
    rules: Sequence[Rule] | None = None,
    windows: Sequence[int] = (1,),
    horizons: Sequence[int | None] = (None,),
    lr: float | None = None,
    updates: int = 0,
    every: int | None = None,
) -> Fidelity:
    """Compare every rule's gradient of a loss with that of backpropagation through time (reset detached).

    The model is run from rest over the whole of x; the rules get x and the learning signal in windows. Two references
    have rows of their own: BPTT with the gradient through the reset, and what Adam makes of `Truncated` with the
    shortest window: Adam divides each entry by its size, so its first step has the direction of the gradient's signs,
    and those are compared with the signs of BPTT's.

    Args:
        model: any layer or model of tracetorch; neither it nor its `.grad` is changed. Give a `Softmax` inside a
            generator of its own.
        x: (T, B, n) input.
        loss: y (T, B, m) -> (loss, ls); only ls is used, except in training.
        rules: to compare, each for all layers; by default Truncated, InputTrace, MeanField and Eligibility.
        windows: K, in steps.
        horizons: H, in steps; None for the window alone.
        lr: learning rate of Adam, for rows along a training run on x. Each rule then has a row "weights moving" too:
            the sum of its gradients when such a step is taken after every (shortest) window, so that weights change
            under live traces. Where the loss comes at the end alone, that is the same.
        updates: how many updates that run has.
        every: how many updates lie between two rows; by default all of them.

    Returns:
        A `Fidelity`: rows, `markdown()`.

    Raises:
        ValueError: windows, horizons or updates below 1; a rule that cannot serve the model.

    >>> import tracetorch as tt
    >>> model = tt.Sequential(tt.LIF(5, 8), tt.LI(8, 2))
    >>> x = (torch.rand(12, 4, 5) < 0.5).float()
    >>> report = fidelity(model, x, lambda y: tt.loss.mse(y, torch.zeros_like(y), tt.loss.last(12)))
    >>> all(abs(row.cosine - 1) < 1e-4 for row in report.only(rule="Eligibility()"))
    True
    """
    where = "testing.fidelity"
    for window in windows:
        _checks.at_least_one(where, "windows", window)
    for horizon in horizons:
        if horizon is not None:
            _checks.at_least_one(where, "horizons", horizon)
    if (lr is None) != (updates == 0):
        raise ValueError(f"{where}: expected lr and updates together, got lr={lr} and updates={updates}.")
    if lr is not None:
        _checks.at_least_one(where, "updates", updates)
    if every is not None:
        _checks.at_least_one(where, "every", every)
    if not windows or not horizons:
        raise ValueError(f"{where}: expected at least one window and one horizon, got {windows} and {horizons}.")
    rules = rules or (Truncated(), InputTrace(), MeanField(), Eligibility())
    rows: list[FidelityRow] = []
    with forked_random_numbers(x), probe_of(model) as probe:
        for layer in probe._layers().values():
            layer.rule = Truncated()  # which is BPTT where one window holds the whole sequence
        for update in _along_training(probe, x, loss, lr, updates, every or max(1, updates)):
            rows += _rows(probe, x, loss, update, rules, windows, horizons, lr)
    return Fidelity(rows)


def _along_training(probe: Online, x: Tensor, loss: Loss, lr: float | None, updates: int, every: int) -> Iterator[int]:
    """Train by BPTT, and stop at every point where gradients are to be compared."""
    yield 0
    if lr is None:
        return
    optimizer = torch.optim.Adam([p for p in probe.parameters() if p.requires_grad], lr=lr)
    for update in range(1, updates + 1):
        probe.reset()
        optimizer.zero_grad()
        probe.backward(loss(probe.window(x))[1])
        optimizer.step()
        if update % every == 0:
            probe.zero_grad()
            yield update


def _rows(
    probe: Online,
    x: Tensor,
    loss: Loss,
    update: int,
    rules: Sequence[Rule],
    windows: Sequence[int],
    horizons: Sequence[int | None],
    lr: float | None,
) -> Iterator[FidelityRow]:
    whole = copy.deepcopy(probe)
    whole.reset()
    ls = loss(whole.window(x))[1]
    expected = bptt_gradients(probe, x, ls)

    def compared(
        rule: str, window: int, horizon: int | None, actual: Gradients, beside: Gradients
    ) -> Iterator[FidelityRow]:
        shared = {name: actual[name] for name in beside if name in actual}  # a rule may have a parameter of its own
        for row in compare(shared, {name: beside[name] for name in shared}):
            yield FidelityRow(update, rule, window, horizon, row.name, row.cosine, row.norm_ratio)

    yield from compared(ATTACHED, len(x), None, bptt_gradients(probe, x, ls, reset="attached"), expected)
    whole.horizon = None
    signs = _signs(online_gradients(whole, x, ls, min(windows)))
    yield from compared(ADAM, min(windows), None, signs, _signs(expected))
    for rule in rules:
        ruled = copy.deepcopy(probe)
        for layer in ruled._layers().values():
            layer.rule = rule
        for horizon in horizons:
            ruled.horizon = horizon
            for window in windows:
                actual = online_gradients(ruled, x, ls, window)
                yield from compared(repr(rule), window, horizon, actual, expected)
                if lr is not None and window == min(windows):
                    moved = _moving_gradients(ruled, x, ls, window, lr)
                    yield from compared(f"{rule!r}, weights moving", window, horizon, moved, expected)


def _moving_gradients(model: Online, x: Tensor, ls: Tensor, window: int, lr: float) -> Gradients:
    """The sum of the windows' gradients when Adam takes a step after each."""
    with probe_of(model) as probe:
        probe.zero_grad()
        parameters = {name: p for name, p in probe.named_parameters() if p.requires_grad}
        optimizer = torch.optim.Adam(parameters.values(), lr=lr)
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for x_window, ls_window in zip(torch.split(x, window), torch.split(ls, window), strict=True):
            probe.window(x_window)
            probe.backward(ls_window)
            for name, p in parameters.items():
                total[name] += 0 if p.grad is None else p.grad
            optimizer.step()
            optimizer.zero_grad()
    return total


def _signs(gradients: Gradients) -> Gradients:
    return {name: gradient.sign() for name, gradient in gradients.items()}

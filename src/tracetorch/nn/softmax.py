"""The stochastic softmax readout."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..functional import rate
from ..functional.scan import Reverse, Scan, State, Values
from ..rules.base import Rule, Tape
from .constraint import OneOrEach, membrane_decay
from .layer import Layer, LayerStep
from .neuron import LINeuron
from .online import Rescaling
from .streaming import Call


class SoftmaxRecord(NamedTuple):
    """What the reverse scan needs."""

    mem: Tensor  # (K, B, m) membrane after each step
    probs: Tensor  # (K, B, m) its softmax


class SoftmaxNeuron(LINeuron):
    """The dynamics of `Softmax`."""

    name = "Softmax"

    def __init__(self, generator: torch.Generator | None) -> None:
        self.generator = generator

    def scan(self, values: Values, current: Tensor, start: State) -> Scan:
        """A window of steps."""
        mem = kernels.li(current, start.mem, values["beta"])
        probs = torch.softmax(mem, dim=-1)
        return Scan(self._sample(probs), SoftmaxRecord(mem, probs), State(mem[-1].clone()))

    def recall(self, values: Values, current: Tensor, start: State, y: Tensor | None) -> SoftmaxRecord:
        """The record of a window that was run before."""
        mem = super().recall(values, current, start, y).mem
        return SoftmaxRecord(mem, torch.softmax(mem, dim=-1))

    def _sample(self, probs: Tensor) -> Tensor:
        """One-hot samples by inverting the cumulative distribution; one draw per lane and step, steps in turn.

        Drawing step by step makes the samples the same however the steps are cut into windows.
        """
        steps, lanes, _ = probs.shape
        device = probs.device if self.generator is None else self.generator.device
        draws = torch.empty(steps, lanes, 1, dtype=probs.dtype, device=device)
        for draw in draws:
            draw.uniform_(generator=self.generator)
        draws = draws.to(probs.device)
        cumulative = probs.cumsum(-1)
        index = torch.searchsorted(cumulative, draws * cumulative[..., -1:], right=True)
        classes = probs.shape[-1]
        return F.one_hot(index.squeeze(-1).clamp_(max=classes - 1), classes).to(probs.dtype)

    def reverse(
        self,
        tape: Tape,
        ls: Tensor | None,
        wanted: Collection[str],
        ahead: State | None = None,
    ) -> Reverse:
        """The window backwards, with ls = dL/dpi: straight through the sample, then through the softmax."""
        through = None if ls is None else rate.softmax_signal(ls, tape.record.probs)
        return super().reverse(tape, through, wanted, ahead)

    def slope(self, tape: Tape) -> None:  # noqa: ARG002
        """None: each probability depends on all membranes."""
        return

    def output(self, tape: Tape) -> Tensor:
        """The probabilities, of which the output is a sample."""
        probs: Tensor = tape.record.probs
        return probs

    def rate(self, name: str) -> rate.RateEstimate | None:  # noqa: ARG002
        """The probabilities that a constant current settles at."""
        return rate.Softmax()


class Softmax(Layer):
    """A stochastic classifier: leaky integrators, and at each step one class drawn from their softmax.

        v_t  = beta * v_{t-1} + W x_t + b
        pi_t = softmax(v_t)                       `layer.probs`
        output: a one-hot sample of pi_t, in eval mode too

    Its learning signal is dL/dpi, passed straight through the sample; so a loss may be computed on the samples or, with
    less noise, on `probs`.

    Args:
        in_features: n.
        out_features: m, the classes.
        synapse: an `nn.Linear` to use as it is, instead of the two sizes.
        bias: whether the synapse made from the two sizes has a bias.
        beta: decay of the membrane per step, in [0, 1] (dimensionless): one number, or one per neuron (m,). 0.9.
        tau: its time constant in steps instead of beta: `beta = exp(-1 / tau)`.
        learn_beta: make beta a parameter, `raw_beta`, inside (0, 1).
        generator: what the samples are drawn with; by default torch's global one. Where several layers draw, give each
            its own: then the samples do not depend on how the steps are cut into windows.
        rule: the learning rule of this layer; by default the model's.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: a step (B, n) -> (B, m); a window (K, B, n) -> (K, B, m).

    Raises:
        ValueError: beta outside [0, 1], tau not above 0, both beta and tau, sizes and a synapse.
        NotImplementedError: a synapse that is not known to be linear.

    >>> layer = Softmax(2, 3)
    >>> layer(torch.zeros(1, 2)).sum(), layer.probs
    (tensor(1.), tensor([[0.3333, 0.3333, 0.3333]]))
    """

    neuron: SoftmaxNeuron

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        synapse: nn.Module | None = None,
        bias: bool = True,
        beta: OneOrEach | None = None,
        tau: OneOrEach | None = None,
        learn_beta: bool = False,
        generator: torch.Generator | None = None,
        rule: Rule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            SoftmaxNeuron(generator),
            synapse=synapse,
            bias=bias,
            parameters=lambda each: membrane_decay("Softmax", beta, tau, learn_beta, each),
            rule=rule,
            device=device,
            dtype=dtype,
        )
        self._probs: Tensor | None = None

    @property
    def generator(self) -> torch.Generator | None:
        """What the samples are drawn with."""
        return self.neuron.generator

    @property
    def probs(self) -> Tensor:
        """A copy of the probabilities pi of the latest call, in the shape of its output.

        Raises:
            RuntimeError: there is no latest call.
        """
        if self._probs is None:
            raise RuntimeError(
                "Softmax.probs: expected a call before, got none since the start or reset(). Call the model first."
            )
        return self._probs.clone()

    def _commit(self, step: LayerStep, call: Call) -> None:
        super()._commit(step, call)
        self._probs = call.unfold(step.record.probs)

    def _forget(self) -> None:
        super()._forget()
        self._probs = None

    def _reset_lanes(self, mask: Tensor) -> None:
        super()._reset_lanes(mask)
        self._probs = None

    def _calibrate(self, x: Tensor) -> tuple[Tensor, list[Rescaling]]:
        generator = self.neuron.generator
        before = torch.get_rng_state() if generator is None else generator.get_state()
        result = super()._calibrate(x)
        torch.set_rng_state(before) if generator is None else generator.set_state(before)
        return result

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles hold no latest call."""
        return super().__getstate__() | {"_probs": None}

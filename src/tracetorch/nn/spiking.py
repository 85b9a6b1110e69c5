"""The dynamics of spiking neurons, as a layer runs them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..functional import rate, scan
from ..functional.scan import Form, Record, Reverse, Scan, State, Values
from ..functional.trace import Stage
from ..rules.base import Tape

_MEMBRANE = {"beta", "threshold"}  # the parameters of a neuron that is a membrane alone


class SpikingNeuron:
    """A neuron of `functional.scan`: what it is made of follows from its form and the names of its parameters.

    Args:
        name: what messages call it.
        form: the kind of neuron.
        parameters: the names of its parameters; with "recurrent" it has recurrent weights, with "alpha" a synaptic
            current, with "rho" and "kappa" a threshold that adapts.
    """

    spiking = True
    direct = ("threshold", "kappa")

    def __init__(self, name: str, form: Form, parameters: Collection[str]) -> None:
        self.name = name
        self.form = form
        self.parameters = frozenset(parameters)

    @property
    def resets_to_zero(self) -> bool:
        """By its form."""
        return self.form.reset == "zero"

    def rest(self, zeros: Tensor) -> State:
        """Everything at zero."""
        return State(
            zeros,
            zeros.clone() if "alpha" in self.parameters else None,
            zeros.clone() if "kappa" in self.parameters else None,
            zeros.clone() if "recurrent" in self.parameters or self.form.delayed else None,
        )

    def scan(self, values: Values, current: Tensor, start: State) -> Scan:
        """A window of steps."""
        return kernels.spiking(current, start, values, self.form)

    def recall(self, values: Values, current: Tensor, start: State, y: Tensor | None) -> Record:
        """The record of a window that was run before."""
        record: Record = kernels.spiking(current, start, values, self.form, y).record
        return record

    def reverse(self, tape: Tape, ls: Tensor | None, wanted: Collection[str], ahead: Any = None) -> Reverse:
        """The window backwards; a membrane that nothing else looks at is not kept where it must be computed again."""
        recall = tape.recall() if not wanted and self.parameters == _MEMBRANE else None
        if recall is not None:
            return kernels.recalled_reverse(ls, *recall, tape.start, tape.values, self.form, wanted, ahead)
        return kernels.spiking_reverse(ls, tape.record, tape.start, tape.values, self.form, wanted, ahead)

    def chain(self, values: Values, name: str) -> tuple[Stage, ...]:
        """The synaptic current, then the membrane; an adaptation by itself."""
        if name == "rho":
            return (Stage("adapt", "rho", values["rho"]),)
        gain = self.form.gain_of(values)
        mem = Stage("mem", "beta", values["beta"], gain)
        if "alpha" in values and name in ("input", "alpha"):
            return (Stage("cur", "alpha", values["alpha"]), mem)
        return (mem if name == "input" else mem._replace(gain=1.0),)

    def drive(self, tape: Tape, name: str) -> Tensor:
        """`v_{t-1}` for beta, `i_{t-1}` for alpha, `a_{t-1}` for rho, `-s_t` for theta, times `a_{t-1}` for kappa.

        With gain = 1 - beta, `v_{t-1} - i_t`; `-s_{t-1}` where the reset is delayed; 0 where it takes no theta.
        """
        record: Record = tape.record
        if name == "alpha":
            assert record.cur is not None
            return scan.previous(record.cur, tape.start.cur)
        if name == "rho":
            assert record.adapt is not None
            return record.adapt
        steps = scan.steps_of(record, tape.values, self.form)
        if name == "recurrent":
            return scan.previous(steps.y, tape.start.spk)
        if name == "beta":
            before = scan.previous(steps.membrane(record, self.form), tape.start.mem)
            return before if self.form.gain != "leak" or record.cur is None else before - record.cur
        if self.form.reset != "subtract":
            removed = torch.zeros_like(record.u)
        elif self.form.delayed:
            removed = -scan.previous(steps.spikes, self.form.firing.count(tape.start.spk))
        else:
            removed = -steps.spikes
        return removed if record.adapt is None or name == "threshold" else removed * record.adapt

    def slope_drive(self, tape: Tape, name: str) -> Tensor:
        """`-psi_t`, of which an immediate subtraction gives `psi_t s_t` back; times `a_{t-1}` for kappa."""
        slope = -self.slope(tape)
        if self.form.reset == "subtract" and not self.form.delayed:
            slope = slope * (1 - scan.steps_of(tape.record, tape.values, self.form).spikes)
        return slope * tape.record.adapt if name == "kappa" else slope

    def output(self, tape: Tape) -> Tensor:
        """What was emitted."""
        return scan.steps_of(tape.record, tape.values, self.form).y

    def silent(self, tape: Tape) -> Tensor:
        """`[s_t = 0]`."""
        return (scan.steps_of(tape.record, tape.values, self.form).spikes == 0).to(tape.record.u.dtype)

    def slope(self, tape: Tape) -> Tensor:
        """The firing's."""
        return self.form.firing.slope(tape.record.u, scan.threshold_of(tape.record, tape.values))

    def rate(self, name: str) -> rate.RateEstimate | None:
        """The estimate of the firing rate named; for a membrane with a subtractive reset alone."""
        form, others = self.form, self.parameters - {"beta", "threshold"}
        if others or form.reset != "subtract" or form.delayed or form.gain != 1 or not form.firing.recomputable:
            return None
        return rate.Sigmoid() if name == "sigmoid" else rate.Balance()

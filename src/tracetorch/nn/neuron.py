"""What neurons of one membrane have in common; a neuron of your own starts here."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import kernels
from ..functional import rate, scan
from ..functional.scan import Reverse, Scan, State, Values
from ..functional.trace import Stage
from ..rules.base import Tape


class MembraneRecord(NamedTuple):
    """What a window keeps for the reverse scan."""

    mem: Tensor  # (K, B, m) membrane after each step


class MembraneNeuron:
    """Base of neurons whose state is one membrane, `v_t = beta * v_{t-1} + W x_t + b`, and that never reset it.

    Subclasses write `emit` and `slope`, and, where they have parameters besides beta, `direct` and `per_membrane`.
    Shapes: K steps, B lanes, m neurons.
    """

    name = "Membrane"
    spiking = False  # whether it has a threshold
    resets_to_zero = False  # whether a spike sets the membrane to zero
    direct: Collection[str] = ()  # its parameters that have a part in the output not by way of the membrane alone

    def rest(self, zeros: Tensor) -> State:
        """Membranes at zero."""
        return State(zeros)

    def scan(self, values: Values, current: Tensor, start: State) -> Scan:
        """A window of steps."""
        mem = kernels.li(current, start.mem, values["beta"])
        return Scan(self.emit(mem, values), MembraneRecord(mem), State(mem[-1].clone()))

    def recall(self, values: Values, current: Tensor, start: State, y: Tensor | None) -> Any:  # noqa: ARG002
        """The record of a window that was run before; goes with `scan`."""
        return MembraneRecord(kernels.li(current, start.mem, values["beta"]))

    def emit(self, mem: Tensor, values: Values) -> Tensor:
        """The output y (K, B, m) for membranes."""
        raise NotImplementedError

    def slope(self, tape: Tape) -> Tensor | None:
        """Psi, dy/dv (K, B, m); None where neurons share an output."""
        raise NotImplementedError

    def reverse(self, tape: Tape, ls: Tensor | None, wanted: Collection[str], ahead: Any = None) -> Reverse:
        """The window backwards: `g_t = psi_t * ls_t + beta * g_{t+1}`."""
        mem: Tensor = tape.record.mem
        if ls is not None:
            slope = self.slope(tape)
            assert slope is not None
            ls = slope * ls
        run = kernels.li_reverse(ls, mem, tape.start, tape.values["beta"], ahead)
        others = {name: self._direct_gradient(tape, name, ls, mem) for name in wanted if name in self.direct}
        return run._replace(own={name: others[name] if name in others else run.own[name] for name in wanted})

    def _direct_gradient(self, tape: Tape, name: str, signal: Tensor | None, mem: Tensor) -> Tensor:
        """`sum_t dL/dv_t * (slope_drive_t / psi_t)`, (B, m), for u = v - theta and the like: psi is in the signal."""
        if signal is None:
            return torch.zeros_like(mem[0])
        return (signal * self.per_membrane(tape, name)).sum(0)

    def per_membrane(self, tape: Tape, name: str) -> Tensor:
        """For a `direct` parameter: dy/dparameter over dy/dv, (K, B, m) or less; -1 for a threshold."""
        raise NotImplementedError

    def chain(self, values: Values, name: str) -> tuple[Stage, ...]:  # noqa: ARG002
        """The membrane."""
        return (Stage("mem", "beta", values["beta"]),)

    def drive(self, tape: Tape, name: str) -> Tensor:
        """`v_{t-1}` for beta; a `direct` parameter has no part in the membrane."""
        if name in self.direct:
            return torch.zeros_like(tape.record.mem)
        return scan.previous(tape.record.mem, tape.start.mem)

    def slope_drive(self, tape: Tape, name: str) -> Tensor:
        """`psi * per_membrane`."""
        slope = self.slope(tape)
        assert slope is not None
        return slope * self.per_membrane(tape, name)

    def output(self, tape: Tape) -> Tensor:
        """What was emitted."""
        return self.emit(tape.record.mem, tape.values)

    def silent(self, tape: Tape) -> Tensor:
        """Always: nothing resets the membrane."""
        return torch.ones_like(tape.record.mem)

    def rate(self, name: str) -> rate.RateEstimate | None:  # noqa: ARG002
        """There is no estimate of the average output: `MeanRate` refuses it."""
        return None


class LINeuron(MembraneNeuron):
    """The dynamics of `LI`."""

    name = "LI"

    def emit(self, mem: Tensor, values: Values) -> Tensor:  # noqa: ARG002
        """The membrane."""
        return mem

    def slope(self, tape: Tape) -> Tensor | None:
        """1: the output is the membrane."""
        return torch.ones_like(tape.record.mem)

    def reverse(self, tape: Tape, ls: Tensor | None, wanted: Collection[str], ahead: State | None = None) -> Reverse:
        """The window backwards."""
        if ls is None and not wanted:
            ls = tape.start.mem.new_zeros(tape.steps, *tape.start.mem.shape)
        if ls is not None and ls.ndim == 3 and not wanted:
            ls = ls.contiguous()  # in the place of the membranes, which only dL/dbeta needs
            return kernels.li_reverse(ls, ls, tape.start, tape.values["beta"], ahead)._replace(own={})
        mem: Tensor = tape.record.mem
        if ls is not None:
            ls = ls.expand(len(mem), *ls.shape[1:-2], *mem.shape[-2:])
        run = kernels.li_reverse(ls, mem, tape.start, tape.values["beta"], ahead)
        return run._replace(own={name: run.own[name] for name in wanted})

    def rate(self, name: str) -> rate.RateEstimate | None:  # noqa: ARG002
        """The membrane that a constant current settles at."""
        return rate.Linear()

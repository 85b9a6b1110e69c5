"""Is a network alive, and what is it made of? Firing rates, warnings about layers that cannot learn, a model's table.

A layer that never fires passes nothing on, and where every membrane is far from its threshold the surrogate's slope,
and with it the gradient, is near zero; a layer that always fires says nothing of its input. Rates are in spikes per
step; of outputs other than 0 and 1 it is their size that is averaged. Readouts, which have no threshold, are left out.

Shapes: K steps of a window, B lanes, n inputs; a layer's neurons (m,), or whatever dimensions follow (K, B).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from . import _checks
from .nn.layer import Layer
from .nn.online import Online, probe_of
from .nn.streaming import forked_random_numbers

_REMEDIES = {
    "silent": "Call model.calibrate(x), or give it larger inputs, weights or biases, or a lower threshold",
    "saturated": "Call model.calibrate(x), or give it smaller inputs, weights or biases, or a higher threshold",
}


class HealthWarning(UserWarning):
    """A layer fires so rarely or so often that it hardly learns."""


class LayerHealth(NamedTuple):
    """How a spiking layer fires."""

    layer: str  # its name in the model, or the class of a layer by itself
    kind: str  # its class
    neurons: int
    mean: float  # spikes per step, over all neurons
    lowest: float  # of a neuron
    highest: float
    silent: float  # share of the neurons, in [0, 1], that fire more rarely than the limit `low`
    saturated: float  # share that fire more often than `high`


class Health(NamedTuple):
    """A report; `print` shows it as a table."""

    layers: tuple[LayerHealth, ...]

    def __str__(self) -> str:
        """The table: a line for each layer."""
        head = ("layer", "", "neurons", "spikes per step", "lowest", "highest", "silent", "saturated")
        rows = [
            (
                row.layer,
                row.kind,
                f"{row.neurons:,}",
                *(f"{rate:.4f}" for rate in (row.mean, row.lowest, row.highest)),
                *(f"{share:.0%}" for share in (row.silent, row.saturated)),
            )
            for row in self.layers
        ]
        return _aligned([head, *rows], left=2)


class _Limits(NamedTuple):
    """Between which rates a layer is healthy."""

    low: float  # spikes per step; below it a layer, or a neuron, is silent
    high: float  # spikes per step; above it it is saturated
    share: float  # of a layer's neurons that may be silent, and that may be saturated, in [0, 1]


# -- rates -------------------------------------------------------------------------------------------------------------


def rates(model: Online) -> dict[str, Tensor]:
    """The firing rates of a running model's spiking layers in its latest call, a step or a window.

    Args:
        model: any layer or model of tracetorch, in training mode: elsewhere nothing is kept of a call.

    Returns:
        Spikes per step of each neuron (m,), the mean over the call's steps and lanes, by the layer's name.

    Raises:
        RuntimeError: there is no latest call to look at.

    >>> from tracetorch import LI, LIF, Sequential
    >>> model = Sequential(LIF(1, 2, beta=0.5), LI(2, 1))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[0.75], [0.6]]))
    >>> y = model.window(torch.ones(4, 1, 1))  # before resets 0.75, 1.125, ... and 0.6, 0.9, 1.05, ...
    >>> rates(model)
    {'0': tensor([0.5000, 0.2500])}
    """
    return {name: _mean(y) for name, y in _latest_outputs("health.rates", model).items()}


def probe_rates(model: Online, x: Tensor) -> dict[str, Tensor]:
    """The firing rates of a model's spiking layers when a copy of it runs x from rest, whatever the mode.

    Args:
        model: any layer or model of tracetorch; it and torch's random numbers stay as they are.
        x: (K, B, n), or (K, n) for a single lane.

    Returns:
        Spikes per step of each neuron (m,), the mean over steps and lanes, by the layer's name.

    Raises:
        ValueError: as for `window`.
        TypeError: as for `window`.
    """
    _checks.is_tensor("health.probe_rates", "x", x)
    with forked_random_numbers(x), probe_of(model) as probe:
        probe.window(x)
        return rates(probe)


def check(
    model: Online,
    x: Tensor | None = None,
    *,
    low: float = 0.005,
    high: float = 0.95,
    share: float = 0.5,
) -> Health:
    """Look at the firing of every spiking layer, and warn of those that are silent or saturated.

    Args:
        model: any layer or model of tracetorch.
        x: (K, B, n) input as the model will see it, which a copy of the model runs from rest; without it, the model's
            latest call is looked at. Some hundred steps and lanes together, or rare spikes look like none.
        low: spikes per step; below it a layer or a neuron counts as silent.
        high: spikes per step; above it it counts as saturated.
        share: of a layer's neurons that may be silent, and that may be saturated, in [0, 1].

    Returns:
        A row for each spiking layer; `print` shows a table.

    Warns:
        HealthWarning: names the layer, its rate and what to do.

    Raises:
        RuntimeError: without x, there is no latest call to look at.
        ValueError: limits out of order or range; x as for `window`.
        TypeError: x as for `window`.

    >>> from tracetorch import LI, LIF, Sequential
    >>> model = Sequential(LIF(2, 3, bias=False), LI(3, 1))
    >>> _ = model[0].weight.data.copy_(torch.tensor([[0.5, 0.5], [0.2, 0.1], [0.0, 0.0]]))
    >>> print(check(model, torch.ones(100, 1, 2)))
    layer       neurons  spikes per step  lowest  highest  silent  saturated
    0      LIF        3           0.4167  0.0000   1.0000     33%        33%
    """
    limits = _checked("health.check", low, high, share)
    found = _report(model, rates(model) if x is None else probe_rates(model, x), limits)
    for row in found.layers:
        if _problem(row, limits) is not None:
            warnings.warn(_message("health.check", row, limits), HealthWarning, stacklevel=2)
    return found


class Monitor:
    """Averages of the firing rates of a model that runs on, in memory that does not grow with time.

        r_t = decay^K r_{t-1} + (1 - decay^K) rate          a call of K steps with the mean rate `rate`

    It starts at zero, which `rates()` corrects for. Every 1 / (1 - decay) steps all layers are looked at, and of each
    one that is silent or saturated there is one warning.

    Args:
        model: any layer or model of tracetorch; it is not copied.
        decay: of the averages per step, in [0, 1): they look back over some 1 / (1 - decay) steps.
        low: as for `check`.
        high: as for `check`.
        share: as for `check`.

    Raises:
        ValueError: decay or limits out of range.

    >>> from tracetorch import LIF
    >>> layer = LIF(1, 1, beta=0.0)
    >>> _ = layer.weight.data.fill_(1.0)
    >>> monitor = Monitor(layer, decay=0.5)
    >>> for x in (0.0, 1.0):
    ...     y = layer(torch.full((1, 1), x))
    ...     monitor.update()
    >>> monitor.rates()  # (0.25 * 0 + 0.5 * 1) / (0.25 + 0.5)
    {'LIF': tensor([0.6667])}
    """

    def __init__(
        self,
        model: Online,
        *,
        decay: float = 0.999,
        low: float = 0.005,
        high: float = 0.95,
        share: float = 0.5,
    ) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"health.Monitor: expected decay in [0, 1), got {decay}. 0.999 averages over 1000 steps.")
        self.model = model
        self.decay = decay
        self.limits = _checked("health.Monitor", low, high, share)
        self._averages: dict[str, Tensor] = {}
        self._weights: dict[str, float] = {}  # what the averages of a rate of 1 would be by now
        self._every = round(1 / (1 - decay))
        self._steps = 0  # since the layers were looked at
        self._warned: set[str] = set()

    def update(self) -> None:
        """Take in the model's latest call: once after each.

        Warns:
            HealthWarning: names a layer, its average rate and what to do; once for each layer.

        Raises:
            RuntimeError: there is no latest call to look at.
        """
        outputs = _latest_outputs("health.Monitor.update", self.model)
        for name, y in outputs.items():
            kept, rate = self.decay ** len(y), _mean(y)
            if name not in self._averages or self._averages[name].shape != rate.shape:  # a new layer in this place
                self._averages[name], self._weights[name] = torch.zeros_like(rate), 0.0
            self._averages[name] = kept * self._averages[name].to(rate.device) + (1 - kept) * rate
            self._weights[name] = kept * self._weights[name] + (1 - kept)
        self._steps += max(map(len, outputs.values()), default=0)
        if self._steps < self._every:
            return
        self._steps = 0
        for row in self.report().layers:
            if row.layer not in self._warned and _problem(row, self.limits) is not None:
                self._warned.add(row.layer)
                warnings.warn(_message("health.Monitor", row, self.limits), HealthWarning, stacklevel=2)

    def rates(self) -> dict[str, Tensor]:
        """The average spikes per step of each neuron (m,), by the layer's name; empty before the first `update`."""
        return {
            name: self._averages[name] / self._weights[name] for name in _spiking(self.model) if name in self._averages
        }

    def report(self) -> Health:
        """How the layers fire on average; `print` shows a table."""
        return _report(self.model, self.rates(), self.limits)


def _spiking(model: Online) -> dict[str, Layer]:
    layers = cast(dict[str, Layer], model._layers())
    return {_called(name, layer): layer for name, layer in layers.items() if layer.threshold is not None}


def _called(name: str, module: nn.Module) -> str:
    return name or type(module).__name__


@torch.no_grad()
def _latest_outputs(where: str, model: Online) -> dict[str, Tensor]:
    """The spikes (K, B, ...) of the latest call, by layer."""
    outputs = {}
    for name, layer in _spiking(model).items():
        if not layer._segments:
            raise RuntimeError(
                f"{where}: expected a call in training mode to look at, but layer {name} keeps none (none has "
                f"been made, a reset since, eval mode, no_learning()). Call the model first, or health.check(model, x)."
            )
        outputs[name] = layer.neuron.output(layer._segments[-1].tape.opened())
    return outputs


def _mean(y: Tensor) -> Tensor:
    """(K, B, ...) -> (...), in float32 at least."""
    return y.abs().mean((0, 1), dtype=torch.promote_types(y.dtype, torch.float32))


# -- limits ------------------------------------------------------------------------------------------------------------


def _checked(where: str, low: float, high: float, share: float) -> _Limits:
    if not 0 <= low < high:
        raise ValueError(f"{where}: expected low and high with 0 <= low < high, got {low} and {high} spikes per step.")
    _checks.fraction(where, "share", share)
    return _Limits(low, high, share)


def _report(model: Online, measured: Mapping[str, Tensor], limits: _Limits) -> Health:
    layers = _spiking(model)
    return Health(tuple(_row(name, layers[name], rate, limits) for name, rate in measured.items()))


def _row(name: str, layer: Layer, rate: Tensor, limits: _Limits) -> LayerHealth:
    figures = (rate.mean(), rate.min(), rate.max(), rate.lt(limits.low).sum(), rate.gt(limits.high).sum())
    mean, lowest, highest, silent, saturated = torch.stack([figure.double() for figure in figures]).tolist()
    neurons = rate.numel()
    kind = type(layer).__name__
    return LayerHealth(name, kind, neurons, mean, lowest, highest, silent / neurons, saturated / neurons)


def _problem(row: LayerHealth, limits: _Limits) -> str | None:
    if row.mean < limits.low or row.silent > limits.share:
        return "silent"
    if row.mean > limits.high or row.saturated > limits.share:
        return "saturated"
    return None


def _message(where: str, row: LayerHealth, limits: _Limits) -> str:
    problem = cast(str, _problem(row, limits))
    share = row.silent if problem == "silent" else row.saturated
    layer = f"layer {row.layer}" + (f" ({row.kind})" if row.layer != row.kind else "")
    return (
        f"{where}: expected {layer} to fire between {limits.low:g} and {limits.high:g} spikes per step, and at most "
        f"{limits.share:.0%} of its neurons to be silent or saturated, got {row.mean:.4f} with {share:.0%} of "
        f"{row.neurons} neurons {problem}. {_REMEDIES[problem]}; another width of the surrogate does not change how it "
        f"fires."
    )


# -- what a model is made of -------------------------------------------------------------------------------------------


class ModuleSummary(NamedTuple):
    """A layer, or another module that has parameters, as it stands in a model."""

    module: str  # its name in the model, or the class of a layer by itself
    kind: str  # its class
    weight: tuple[int, ...] | None  # the shape of its weight, (m, n); None without one
    parameters: int  # how many numbers, frozen ones too
    rule: str | None  # None for modules that are no layers, here and below
    state_bytes: int | None  # kept between calls, for all lanes
    tau: tuple[float, float] | None  # steps: the shortest and the longest, of the membranes' beta
    threshold: tuple[float, float] | None  # the lowest and the highest; None for readouts
    rate: float | None  # spikes per step, the mean of its neurons; None where no input was given


class Summary(NamedTuple):
    """What a model is made of; `print` shows it as a table."""

    modules: tuple[ModuleSummary, ...]
    lanes: int  # B
    parameters: int  # of the model; what several modules share counts once
    state_bytes: int  # kept between calls, for all lanes
    tape_bytes: int | None  # kept of the latest call, for each step and lane; None where the input's size is unknown

    def cells(self) -> list[tuple[str, ...]]:
        """The table's lines as texts: a head, the modules, the total."""
        rated = any(row.rate is not None for row in self.modules)
        lanes = "lane" if self.lanes == 1 else f"{self.lanes} lanes"
        head = ("module", "", "rule", "weight", "parameters", f"bytes per {lanes}", "tau (steps)", "threshold")
        lines = [(*head, *(["spikes per step"] if rated else []))]
        for row in self.modules:
            rate = ["-" if row.rate is None else f"{row.rate:.4f}"] if rated else []
            weight = "-" if row.weight is None else " x ".join(map(str, row.weight))
            figures = (weight, _count(row.parameters), _count(row.state_bytes), _range(row.tau), _range(row.threshold))
            lines.append((row.module, row.kind, row.rule or "-", *figures, *rate))
        blank = ["", "", *([""] if rated else [])]
        return [*lines, ("total", "", "", "", _count(self.parameters), _count(self.state_bytes), *blank)]

    def tape(self) -> str:
        """What the latest call keeps, as a sentence."""
        return f"tape of the latest call: {_count(self.tape_bytes)} bytes per step and lane"

    def __str__(self) -> str:
        """The table, and the sentence on the tape below it."""
        return f"{_aligned(self.cells(), left=3)}\n{self.tape()}"


def summary(model: Online, lanes: int = 1, x: Tensor | None = None) -> Summary:
    """What a model is made of, and what it keeps.

    Args:
        model: any layer or model of tracetorch; it stays as it is.
        lanes: B, for which state is counted.
        x: (K, B, n) input; with it the layers' firing rates are found, and warned of, as `check` does.

    Returns:
        A row for each layer, and for each other module that has parameters; and totals.

    Warns:
        HealthWarning: with x, of a layer that is silent or saturated on it.

    Raises:
        ValueError: lanes below 1; x as for `window`.
        TypeError: x as for `window`.

    >>> from tracetorch import LI, LIF, Sequential
    >>> found = summary(Sequential(LIF(20, 64, tau=4.0), LI(64, 2)), lanes=10)
    >>> [(row.kind, row.parameters, row.state_bytes, row.tau) for row in found.modules][0]
    ('LIF', 1344, 3400, (4.0, 4.0))
    """
    _checks.at_least_one("health.summary", "lanes", lanes)
    fired = {} if x is None else {row.layer: row.mean for row in check(model, x).layers}
    plans = model._planned()
    rows = []
    for name, module in _rows_of(model):
        parameters = sum(parameter.numel() for parameter in module.parameters())
        weight = getattr(module, "weight", None)
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else None
        kind = type(module).__name__
        if isinstance(module, Layer):
            state = module._state_bytes_per_lane(plans[id(module)].nodes) * lanes
            tau, threshold = _taus(module.beta), None if module.threshold is None else _ends(module.threshold)
            rows.append(
                ModuleSummary(name, kind, shape, parameters, repr(module.rule), state, tau, threshold, fired.get(name))
            )
        elif parameters:
            rows.append(ModuleSummary(name, kind, shape, parameters, None, None, None, None, None))
    total = sum(parameter.numel() for parameter in model.parameters())
    return Summary(tuple(rows), lanes, total, model.state_bytes(lanes), _tape_bytes_per_step(model))


def table(model: Online, lanes: int = 1, x: Tensor | None = None) -> str:
    """The `summary` as a text, for `print`.

    >>> from tracetorch import LI, LIF, Sequential
    >>> print(table(Sequential(LIF(20, 64, beta=0.9), LI(64, 2, tau=[5.0, 20.0]))))
    module       rule           weight  parameters  bytes per lane  tau (steps)  threshold
    0       LIF  InputTrace()  64 x 20       1,344             340         9.49          1
    1       LI   InputTrace()   2 x 64         130           2,064        5..20          -
    total                                    1,474           2,404
    tape of the latest call: 600 bytes per step and lane
    """
    return str(summary(model, lanes, x))


def _rows_of(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Layers and other modules by name, in order; models are gone into."""
    if isinstance(module, Layer) or not isinstance(module, Online):
        yield _called(name, module), module
        return
    for child_name, child in module.named_children():
        yield from _rows_of(child, f"{name}.{child_name}".lstrip("."))


def _tape_bytes_per_step(model: Online) -> int | None:
    with forked_random_numbers(next(model.parameters())), probe_of(model) as probe:
        probe.horizon = None  # which keeps several windows
        try:
            return probe.tape_bytes(1, 2) - probe.tape_bytes(1, 1)
        except ValueError:  # a stateless module comes first, and what it takes is unknown
            return None


def _ends(values: Tensor) -> tuple[float, float]:
    return values.min().item(), values.max().item()


def _taus(beta: Tensor) -> tuple[float, float]:
    """The shortest and the longest."""
    low, high = _ends(beta)
    return _tau(low), _tau(high)


def _tau(beta: float) -> float:
    """-1 / ln(beta), rounded to what a beta in single precision tells."""
    if beta <= 0:
        return 0.0
    return math.inf if beta >= 1 else float(f"{-1 / math.log(beta):.4g}")


# -- text --------------------------------------------------------------------------------------------------------------


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _range(ends: tuple[float, float] | None) -> str:
    if ends is None:
        return "-"
    return "..".join(dict.fromkeys(f"{end:.3g}" for end in ends))


def _aligned(lines: Sequence[Sequence[str]], left: int) -> str:
    """Lines of texts as columns two spaces apart: the first `left` ones flush left, the others flush right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i < left else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )

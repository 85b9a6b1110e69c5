"""Pictures of spikes, membranes, traces, weights and learning, with matplotlib (the extra `plot`).

Every function takes plain tensors, draws into `ax` or into a new figure, and returns the figure: save it with
`figure.savefig("name.png")`. Figures are made without pyplot, so nothing global is kept and no window opens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import _checks

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator
except ImportError as error:
    raise ImportError(
        "tracetorch.plot: expected matplotlib to be installed, but it cannot be imported. "
        "Run pip install 'tracetorch-online[plot]'."
    ) from error

MAX_LINES = 8
"""More lines than this in one picture cannot be told apart."""

# Okabe and Ito's palette without its yellow, which is faint on white: distinct to colour-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
INK = "#222222"


def raster(spk: Tensor, *, ax: Axes | None = None, title: str | None = None) -> Figure:
    """The spikes of one lane: a stroke for every spike, time to the right, one row per neuron.

    Args:
        spk: (K, m) spikes of K steps; every entry that is not 0 is one. Boolean or of any real dtype.
        ax: where to draw; by default a new figure.
        title: of the picture.

    Raises:
        TypeError: spk is not a tensor.
        ValueError: spk has another number of dimensions, or no entries.

    >>> figure = raster(torch.eye(5))
    >>> figure.axes[0].get_xlabel()
    'time (steps)'
    """
    _check_shape("plot.raster", "spk", spk, ("K", "m"))
    steps, neurons = spk.shape
    ax = _axes(ax, title, "time (steps)", "neuron", height=1.6 + min(3.0, 0.05 * neurons))
    time, row = spk.detach().cpu().nonzero(as_tuple=True)
    # A little less than a row, so that neighbours do not touch; with many rows longer, since it could not be seen.
    half = max(0.4, neurons / 300)
    ax.vlines(
        time.numpy(), row.numpy() - half, row.numpy() + half, color=INK, linewidth=min(1.6, max(0.6, 120 / steps))
    )
    _index_limits(ax, columns=steps, rows=neurons)
    return _root(ax)


def membrane(
    mem: Tensor, *, threshold: float | Tensor | None = None, ax: Axes | None = None, title: str | None = None
) -> Figure:
    """Membrane potentials over time, a line per neuron, and the threshold as a dashed line.

    Args:
        mem: (K,) or (K, m) potentials of at most 8 neurons, such as `layer.mem` of one lane, stacked over the steps.
        threshold: one for all, or one per neuron (m,), each then in its neuron's colour.
        ax: where to draw; by default a new figure.
        title: of the picture.

    Raises:
        TypeError: mem is not a tensor.
        ValueError: mem or threshold has another shape; more than 8 neurons.

    >>> figure = membrane(torch.rand(20, 2), threshold=1.0)
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['neuron 0', 'neuron 1', 'threshold']
    """
    where = "plot.membrane"
    lines = _as_lines(where, "mem", mem)
    neurons = lines.shape[1]
    if neurons > MAX_LINES:
        raise ValueError(
            f"{where}: expected at most {MAX_LINES} neurons, got {neurons}. Choose some of them, such as mem[:, :4]."
        )
    levels = None if threshold is None else torch.as_tensor(threshold).detach().cpu()
    if levels is not None and tuple(levels.shape) not in ((), (neurons,)):
        raise ValueError(
            f"{where}: expected one threshold, or one per neuron ({neurons},), got shape {tuple(levels.shape)}."
        )
    ax = _axes(ax, title, "time (steps)", "membrane (dimensionless)")
    _draw_lines(ax, lines, [f"neuron {i}" for i in range(neurons)])
    if levels is not None:
        for i, level in enumerate(levels.reshape(-1).tolist()):
            color = COLORS[i] if levels.ndim else INK
            ax.axhline(level, color=color, linestyle="--", linewidth=1, label=None if i else "threshold")
    _legend(ax)
    return _root(ax)


def traces(
    values: Tensor, *, labels: Sequence[str] | None = None, ax: Axes | None = None, title: str | None = None
) -> Figure:
    """Traces over time: a line each up to 8 of them, an image with a row each above that.

    Args:
        values: (K,) or (K, n) traces of one lane, stacked over the steps.
        labels: n names for the lines; by default "trace 0" and so on.
        ax: where to draw; by default a new figure.
        title: of the picture.

    Raises:
        TypeError: values is not a tensor.
        ValueError: values has another number of dimensions; another number of labels than lines.

    >>> figure = traces(torch.rand(20, 2), labels=["fast", "slow"])
    >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    ['fast', 'slow']
    """
    where = "plot.traces"
    lines = _as_lines(where, "values", values)
    count = lines.shape[1]
    if labels is not None and (len(labels) != count or count > MAX_LINES):
        limit = f" (more than {MAX_LINES} traces become an image, without labels)" if count > MAX_LINES else ""
        raise ValueError(f"{where}: expected one label for each of {count} lines{limit}, got {len(labels)} labels.")
    if count > MAX_LINES:
        ax = _axes(ax, title, "time (steps)", "trace", height=3.6)
        # The rows keep a colour scale from 0 where they can: traces of spikes are never negative.
        low = min(0.0, lines.min().item())
        _image(ax, lines.T, "trace (dimensionless)", cmap="viridis", vmin=low, vmax=lines.max().item())
        return _root(ax)
    ax = _axes(ax, title, "time (steps)", "trace (dimensionless)")
    _draw_lines(ax, lines, labels or [f"trace {i}" for i in range(count)])
    _legend(ax)
    return _root(ax)


def weights(w: Tensor, *, ax: Axes | None = None, title: str | None = None) -> Figure:
    """A weight matrix as an image: red above zero, blue below, white at zero.

    Args:
        w: (m, n) weights, a row per neuron, such as `layer.weight`.
        ax: where to draw; by default a new figure.
        title: of the picture.

    Raises:
        TypeError: w is not a tensor.
        ValueError: w has another number of dimensions, or no entries.

    >>> figure = weights(torch.randn(3, 4))
    >>> figure.axes[0].get_ylabel()
    'neuron'
    """
    _check_shape("plot.weights", "w", w, ("m", "n"))
    matrix = w.detach().cpu().float()
    ax = _axes(ax, title, "input", "neuron", height=3.6)
    largest = matrix.abs().max().item() or 1.0
    _image(ax, matrix, "weight (dimensionless)", cmap="RdBu_r", vmin=-largest, vmax=largest)
    return _root(ax)


def learning_curve(
    curves: Mapping[str, Tensor | Sequence[float]],
    *,
    xlabel: str = "update",
    ylabel: str = "loss",
    every: int = 1,
    ax: Axes | None = None,
    title: str | None = None,
) -> Figure:
    """How losses, accuracies or other figures of merit went during learning: a line per name.

    Args:
        curves: name -> N values in the order in which they came; lengths may differ.
        xlabel: what is counted to the right: updates, epochs, images.
        ylabel: what the values are, with their unit.
        every: how many of what `xlabel` says lie between two values; the first value stands at `every`.
        ax: where to draw; by default a new figure.
        title: of the picture.

    Raises:
        ValueError: no curve, more than 8, a curve that is empty or has several dimensions; every below 1.

    >>> figure = learning_curve({"train": [0.9, 0.5, 0.3]}, xlabel="epoch")
    >>> figure.axes[0].lines[0].get_xdata()
    array([1., 2., 3.])
    """
    where = "plot.learning_curve"
    _checks.at_least_one(where, "every", every)
    if not 0 < len(curves) <= MAX_LINES:
        raise ValueError(f"{where}: expected 1 to {MAX_LINES} curves, got {len(curves)}. Give {{name: values}}.")
    ax = _axes(ax, title, xlabel, ylabel)
    for (name, values), color in zip(curves.items(), COLORS, strict=False):
        points = torch.as_tensor(values, dtype=torch.float64).detach().cpu()
        _check_shape(where, f"curve {name!r}", points, ("N",))
        x = every * torch.arange(1, len(points) + 1, dtype=torch.float64)
        # A single point makes no line, so it needs a mark to be seen.
        ax.plot(x.numpy(), points.numpy(), color=color, label=name, marker="o" if len(points) == 1 else None)
    ax.grid(axis="y", alpha=0.25)
    _legend(ax)
    return _root(ax)


def cosines(
    curves: Mapping[str, Mapping[str, Mapping[int, float]]], *, xlabel: str = "window (steps)", title: str | None = None
) -> Figure:
    """Cosines with the true gradient against the window: a panel for each layer, a line for each rule.

    Args:
        curves: layer -> rule -> {K: cosine}, with at most 8 rules, such as a report of `testing.fidelity` gives.
        xlabel: what K is.
        title: of the picture.

    Raises:
        ValueError: no layer, or a layer without rules or with more than 8.

    >>> figure = cosines({"layer 0": {"InputTrace()": {1: 0.3, 8: 0.6}}, "layer 1": {"InputTrace()": {1: 0.7, 8: 0.8}}})
    >>> len(figure.axes)
    2
    """
    where = "plot.cosines"
    if not curves or not all(0 < len(rules) <= MAX_LINES for rules in curves.values()):
        raise ValueError(
            f"{where}: expected at least one layer, each with 1 to {MAX_LINES} rules, "
            f"got {[len(rules) for rules in curves.values()]}. Choose some of them."
        )
    figure = Figure(figsize=(1.5 + 2.2 * len(curves), 3.4), dpi=120, layout="constrained")
    panels = figure.subplots(1, len(curves), sharey=True, squeeze=False)[0]
    names = list(dict.fromkeys(name for rules in curves.values() for name in rules))
    for ax, (layer, rules) in zip(panels, curves.items(), strict=True):
        _axes(ax, layer, xlabel, "cosine with BPTT" if ax is panels[0] else "")
        for name, points in rules.items():
            windows = sorted(points)
            color = COLORS[names.index(name) % len(COLORS)]
            ax.plot(windows, [points[k] for k in windows], color=color, label=name, marker="o", markersize=3)
        ax.set_xscale("log", base=2)
        ax.grid(axis="y", alpha=0.25)
    _legend(panels[-1])
    if title is not None:
        figure.suptitle(title, fontsize="medium")
    return figure


# -- shapes ------------------------------------------------------------------------------------------------------------


def _check_shape(where: str, name: str, value: object, dimensions: tuple[str, ...]) -> None:
    """Raise unless `value` is a tensor with these dimensions, none of them empty."""
    _checks.is_tensor(where, name, value)
    assert isinstance(value, Tensor)
    if value.ndim != len(dimensions) or value.numel() == 0:
        expected = f"({', '.join(dimensions)}{',' if len(dimensions) == 1 else ''})"
        remedy = " Choose one lane, such as x[:, 0]." if value.ndim == 3 and "K" in dimensions else ""
        raise ValueError(
            f"{where}: expected {name} of shape {expected} with at least one entry, got {tuple(value.shape)}.{remedy}"
        )


def _as_lines(where: str, name: str, value: Tensor) -> Tensor:
    """(K,) or (K, n) -> (K, n), ready to be drawn."""
    _checks.is_tensor(where, name, value)
    value = value[:, None] if value.ndim == 1 else value
    _check_shape(where, name, value, ("K", "n"))
    return value.detach().cpu().float()


# -- drawing -----------------------------------------------------------------------------------------------------------


def _axes(ax: Axes | None, title: str | None, xlabel: str, ylabel: str, height: float = 2.8) -> Axes:
    """The axes given, or those of a new figure of `height` inches, with labels and a quiet frame."""
    if ax is None:
        ax = Figure(figsize=(7, height), dpi=120, layout="constrained").subplots()
    ax.spines[["top", "right"]].set_visible(False)
    ax.set_xlabel(xlabel)
    ax.set_ylabel(ylabel)
    if title is not None:
        ax.set_title(title, loc="left", fontsize="medium")
    return ax


def _root(ax: Axes) -> Figure:
    """The whole figure, where `ax` lies in a part of one too."""
    figure = ax.figure.figure
    assert isinstance(figure, Figure)
    return figure


def _draw_lines(ax: Axes, lines: Tensor, labels: Sequence[str]) -> None:
    for line, label, color in zip(lines.T, labels, COLORS, strict=False):
        ax.plot(line.numpy(), color=color, linewidth=1.4, label=label)
    ax.margins(x=0)
    ax.xaxis.set_major_locator(_whole_numbers())
    ax.grid(axis="y", alpha=0.25)


def _image(ax: Axes, matrix: Tensor, label: str, **colors: Any) -> None:
    """A matrix (rows, columns), row 0 at the bottom as in a raster, with its colour scale."""
    image = ax.imshow(matrix.numpy(), aspect="auto", origin="lower", interpolation="nearest", **colors)
    _root(ax).colorbar(image, ax=ax, label=label)
    _index_limits(ax, columns=matrix.shape[1], rows=matrix.shape[0])


def _index_limits(ax: Axes, *, columns: int, rows: int) -> None:
    """Axes that count whole steps and neurons, the first and last in full view."""
    ax.set_xlim(-0.5, columns - 0.5)
    ax.set_ylim(-0.5, rows - 0.5)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(_whole_numbers())


def _whole_numbers() -> MaxNLocator:
    return MaxNLocator(nbins=8, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1)


def _legend(ax: Axes) -> None:
    """Names beside the picture, where there is something to tell apart."""
    if len(ax.lines) > 1:
        ax.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))

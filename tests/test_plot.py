"""Pictures: each function draws what it was given and refuses what it cannot draw."""

import importlib
import sys

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from tracetorch import plot

GOOD = {
    "raster": lambda **kw: plot.raster(torch.eye(5), **kw),
    "membrane": lambda **kw: plot.membrane(torch.rand(20, 2), threshold=1.0, **kw),
    "traces": lambda **kw: plot.traces(torch.rand(20, 3), **kw),
    "traces as an image": lambda **kw: plot.traces(torch.rand(20, 30), **kw),
    "weights": lambda **kw: plot.weights(torch.randn(3, 4), **kw),
    "learning_curve": lambda **kw: plot.learning_curve({"train": [3.0, 2.0], "test": torch.rand(3)}, **kw),
}


def image_of(figure: Figure) -> AxesImage:
    return figure.axes[0].images[0]


@pytest.mark.parametrize("name", GOOD)
def test_returns_a_figure_that_can_be_saved(name, tmp_path):
    figure = GOOD[name](title="a title")
    assert isinstance(figure, Figure)
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 0
    ax = figure.axes[0]
    assert ax.get_title(loc="left") == "a title"
    assert ax.get_xlabel()
    assert ax.get_ylabel()


@pytest.mark.parametrize("name", GOOD)
def test_draws_into_the_axes_given(name):
    figure = Figure()
    left, right = figure.subfigures(1, 2)
    ax = left.subplots()
    other = right.subplots()
    assert GOOD[name](ax=ax) is figure
    assert ax.has_data()
    assert not other.has_data()


def test_no_global_state():
    for draw in GOOD.values():
        draw()
    assert "matplotlib.pyplot" not in sys.modules


def test_raster_has_a_stroke_for_every_spike():
    spk = torch.rand(30, 7) < 0.2
    (strokes,) = plot.raster(spk).axes[0].collections
    drawn = {(path.vertices[0, 0], round(path.vertices[:, 1].mean())) for path in strokes.get_paths()}
    assert drawn == {tuple(index) for index in spk.nonzero().tolist()}


@pytest.mark.parametrize("spk", [torch.zeros(4, 3), torch.tensor([[-1, 0]]), torch.ones(1, 1, dtype=torch.bool)])
def test_raster_takes_silence_signs_and_bools(spk, tmp_path):
    plot.raster(spk).savefig(tmp_path / "picture.png")


def test_membrane_has_a_threshold_for_all_or_for_each():
    mem = torch.rand(20, 2)
    assert len(plot.membrane(mem).axes[0].lines) == 2
    *_, common = plot.membrane(mem, threshold=torch.tensor(1.5)).axes[0].lines
    assert list(common.get_ydata()) == [1.5, 1.5]
    first, second, *levels = plot.membrane(mem, threshold=torch.tensor([1.0, 2.0])).axes[0].lines
    assert [line.get_color() for line in levels] == [first.get_color(), second.get_color()]
    assert [line.get_ydata()[0] for line in levels] == [1, 2]


def test_traces_become_an_image_when_there_are_many():
    values = torch.rand(20, 30)
    figure = plot.traces(values)
    assert not figure.axes[0].lines
    torch.testing.assert_close(torch.from_numpy(image_of(figure).get_array().data), values.T)


def test_one_series_may_be_flat():
    assert len(plot.traces(torch.rand(20)).axes[0].lines) == 1
    assert len(plot.membrane(torch.rand(20)).axes[0].lines) == 1


@pytest.mark.parametrize("scale", [1.0, 0.0])
def test_weights_are_white_at_zero(scale):
    low, high = image_of(plot.weights(scale * torch.randn(3, 4))).get_clim()
    assert low == -high < 0


def test_weights_may_require_grad():
    plot.weights(torch.nn.Linear(3, 2).weight)


def test_learning_curve_counts_from_the_first_point():
    ax = plot.learning_curve({"loss": [3.0, 2.0]}, every=100, xlabel="images").axes[0]
    assert list(ax.lines[0].get_xdata()) == [100, 200]
    assert ax.get_legend() is not None or len(ax.lines) == 1


BAD = [
    (lambda: plot.raster(torch.zeros(5)), ValueError, r"raster: expected spk of shape \(K, m\).*got \(5,\)"),
    (lambda: plot.raster(torch.zeros(5, 1, 2)), ValueError, r"got \(5, 1, 2\)\. Choose one lane, such as x\[:, 0\]"),
    (lambda: plot.raster(torch.zeros(0, 2)), ValueError, "with at least one entry"),
    (lambda: plot.raster([[1, 0]]), TypeError, "raster: expected spk to be a torch.Tensor, got list"),
    (lambda: plot.membrane(torch.zeros(5, 9)), ValueError, r"at most 8 neurons, got 9\. Choose some of them"),
    (lambda: plot.membrane(torch.zeros(5, 1, 2)), ValueError, r"membrane: expected mem of shape \(K, n\)"),
    (
        lambda: plot.membrane(torch.zeros(5, 3), threshold=torch.ones(2)),
        ValueError,
        r"one threshold, or one per neuron \(3,\), got shape \(2,\)",
    ),
    (lambda: plot.traces(torch.zeros(5, 1, 2)), ValueError, r"traces: expected values of shape \(K, n\)"),
    (lambda: plot.traces(torch.zeros(5, 2), labels=["a"]), ValueError, "one label for each of 2 lines, got 1 labels"),
    (
        lambda: plot.traces(torch.zeros(5, 9), labels=list("abcdefghi")),
        ValueError,
        "more than 8 traces become an image",
    ),
    (lambda: plot.weights(torch.zeros(3)), ValueError, r"weights: expected w of shape \(m, n\).*got \(3,\)"),
    (lambda: plot.learning_curve({}), ValueError, "expected 1 to 8 curves, got 0"),
    (
        lambda: plot.learning_curve({"a": torch.zeros(2, 2)}),
        ValueError,
        r"curve 'a' of shape \(N,\) with at least one entry, got \(2, 2\)",
    ),
    (lambda: plot.cosines({}), ValueError, "expected at least one layer, each with 1 to 8 rules, got "),
    (lambda: plot.cosines({"layer 0": {}}), ValueError, r"each with 1 to 8 rules, got \[0\]"),
    (lambda: plot.learning_curve({"a": []}), ValueError, r"curve 'a'.*got \(0,\)"),
    (lambda: plot.learning_curve({"a": [1.0]}, every=0), ValueError, "expected every to be a whole number"),
]


@pytest.mark.parametrize(("draw", "error", "message"), BAD)
def test_refuses(draw, error, message):
    with pytest.raises(error, match=message):
        draw()


def test_says_what_to_install_where_matplotlib_is_missing(monkeypatch):
    monkeypatch.delitem(sys.modules, "tracetorch.plot")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'tracetorch-online\[plot\]'"):
        importlib.import_module("tracetorch.plot")

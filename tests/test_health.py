"""Firing rates are those of the spikes, warnings name the layer and the remedy, summaries add up."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import tracetorch as tt
from cases import CONCAT, F64, HIDDEN, M, N, T, hidden
from tracetorch import health, testing

SILENT = (
    r"expected layer {name} \(LIF\) to fire between 0.005 and 0.95 spikes per step, and at most 50% of its neurons to "
    r"be silent or saturated, got 0.0000 with 100% of {neurons} neurons silent. Call model.calibrate\(x\), or give it "
    r"larger inputs, weights or biases, or a lower threshold; another width of the surrogate does not change"
)
SATURATED = (
    r"expected layer {name} \(LIF\) to fire .*, got 1.0000 with 100% of {neurons} neurons saturated. "
    r"Call model.calibrate\(x\), or give it smaller inputs, weights or biases, or a higher threshold"
)


def relay(n: int = 1, weight: float = 1.0, **options: object) -> tt.LIF:
    """Neurons without memory that each fire where their own input is 1."""
    layer = tt.LIF(n, n, beta=0.0, threshold=1.0, bias=False, **F64, **options)
    with torch.no_grad():
        layer.weight.copy_(weight * torch.eye(n))
    return layer


def spikes(*rates: float, steps: int = 100, lanes: int = 2) -> torch.Tensor:
    """(T, B, n): input i is 1 in the first `rates[i] * steps` steps of every lane."""
    times = torch.arange(steps)[:, None, None].expand(-1, lanes, len(rates))
    return (times < torch.tensor(rates) * steps).double()


# -- rates -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("single_steps", [True, False])
def test_rates_are_the_mean_of_the_latest_calls_spikes(single_steps: bool) -> None:
    torch.manual_seed(0)
    model = tt.Sequential(hidden(), hidden(HIDDEN, M))
    x = (torch.rand(T, 3, N, **F64) < 0.4).double()
    model.calibrate(x)
    model.window(x[:-5])
    for _ in range(2):
        y = model(x[-1])[None] if single_steps else model.window(x[-5:])
        torch.testing.assert_close(health.rates(model)["1"], y.mean((0, 1)))


def test_rates_by_hand_over_steps_and_lanes() -> None:
    layer = relay(3)
    x = torch.zeros(4, 2, 3, **F64)
    x[:, 0, 0] = 1
    x[1, :, 1] = 1
    layer.window(x)
    torch.testing.assert_close(health.rates(layer), {"LIF": torch.tensor([0.5, 0.25, 0.0], **F64)})


def test_a_horizon_keeps_several_windows_of_which_the_latest_counts() -> None:
    model = tt.Sequential(relay(), horizon=10)
    for value in (1.0, 0.0):
        model.window(torch.full((3, 1, 1), value, **F64))
    assert health.rates(model)["0"].item() == 0


@pytest.mark.parametrize("case", CONCAT, ids=str)
def test_layers_of_nested_models_go_by_their_names(case) -> None:
    model, x, _ = case.make(tt.InputTrace())
    measured = health.probe_rates(model, x)
    assert {*measured} == {name or "LIF" for name, layer in model._layers().items() if layer.threshold is not None}
    torch.testing.assert_close(measured, testing.spike_rates(model, x))
    model.window(x)
    torch.testing.assert_close(health.rates(model), measured)
    assert {row.layer for row in health.check(model).layers} == {*measured}


def test_a_probe_leaves_the_model_and_random_numbers_alone() -> None:
    model = tt.Sequential(relay(4), nn.Dropout()).eval()
    model[1].train()  # draws random numbers
    before = torch.get_rng_state()
    with tt.no_learning(), torch.inference_mode():
        assert health.probe_rates(model, spikes(1, 1, 1, 1))["0"].tolist() == [1] * 4
    assert torch.equal(torch.get_rng_state(), before)
    assert model[0].mem is None
    assert not model.training


def test_outputs_of_several_dimensions_keep_them() -> None:
    class Planes:
        """A neuron whose output has channels, height and width, and spikes of both signs."""

        def output(self, tape: SimpleNamespace) -> torch.Tensor:
            return tape.record

    layer = relay()
    layer.window(torch.ones(1, 1, 1, **F64))
    record = torch.zeros(6, 2, 3, 4, 5)
    record[:3, :, 1] = -1
    layer.neuron = Planes()
    tape = SimpleNamespace(record=record)
    tape.opened = lambda: tape
    layer._segments = (layer._segments[-1]._replace(tape=tape),)
    rate = health.rates(layer)["LIF"]
    assert rate.shape == (3, 4, 5)
    assert rate[1].unique().item() == 0.5
    (row,) = health.check(layer, share=0.7).layers
    assert (row.neurons, row.mean, row.silent) == (60, pytest.approx(1 / 6), pytest.approx(2 / 3))
    monitor = health.Monitor(layer)
    monitor.update()
    torch.testing.assert_close(monitor.rates()["LIF"], rate)


def test_rates_in_half_precision_are_averaged_in_single() -> None:
    layer = relay().to(torch.bfloat16)
    layer.window(spikes(0.29, steps=1000).bfloat16())
    assert health.rates(layer)["LIF"].item() == pytest.approx(0.29)


@pytest.mark.parametrize("ended", ["none made", "reset", "eval", "no_learning"])
def test_without_a_latest_call_it_says_what_to_do(ended: str) -> None:
    model = tt.Sequential(relay(), tt.LI(1, 1, **F64))
    x = spikes(0.5)
    if ended != "none made":
        model.window(x)
    if ended == "reset":
        model.reset()
    elif ended == "eval":
        model.eval().window(x)
    elif ended == "no_learning":
        with tt.no_learning():
            model.window(x)
    told = (
        r"expected a call in training mode to look at, but layer 0 keeps none .*Call the model first, or health.check"
    )
    for where, look in (("rates", health.rates), ("rates", health.check), ("Monitor.update", watch)):
        with pytest.raises(RuntimeError, match=f"health.{where}: {told}"):
            look(model)


def watch(model) -> None:
    health.Monitor(model).update()


def test_a_model_of_readouts_alone_has_nothing_to_look_at() -> None:
    model = tt.Sequential(tt.LI(2, 3), tt.Softmax(3, 2))
    assert health.check(model, torch.ones(3, 1, 2)).layers == ()
    assert str(health.check(model)).startswith("layer")
    watch(model)


# -- check -------------------------------------------------------------------------------------------------------------


def test_a_healthy_network_is_reported_without_a_warning() -> None:
    model = tt.Sequential(relay(4), tt.LI(4, 1, **F64))
    report = health.check(model, spikes(0.1, 0.2, 0.01, 1.0))
    (row,) = report.layers
    assert row == ("0", "LIF", 4, pytest.approx(0.3275), pytest.approx(0.01), 1.0, 0.0, 0.25)
    assert str(report).splitlines() == [
        "layer       neurons  spikes per step  lowest  highest  silent  saturated",
        "0      LIF        4           0.3275  0.0100   1.0000      0%        25%",
    ]


@pytest.mark.parametrize("inner", [False, True])
def test_a_silent_layer_is_named_with_what_to_do(inner: bool) -> None:
    layers = relay(3), relay(3, weight=0.9)
    model = tt.Sequential(layers[0], tt.Sequential(layers[1])) if inner else tt.Sequential(*layers)
    with pytest.warns(health.HealthWarning, match=SILENT.format(name=r"1\.0" if inner else 1, neurons=3)) as caught:
        report = health.check(model, spikes(0.5, 0.5, 0.5))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert [(row.mean, row.silent, row.saturated) for row in report.layers] == [(0.5, 0, 0), (0, 1, 0)]


def test_a_saturated_layer_is_named_with_what_to_do() -> None:
    model = tt.Sequential(relay(3), relay(3))
    with torch.no_grad():
        model[1].weight.fill_(100)
    x = spikes(0.9, 0.5, 0.5)
    x[90:, :, 2] = 1
    with pytest.warns(health.HealthWarning, match=SATURATED.format(name=1, neurons=3)) as caught:
        health.check(model, x)
    assert len(caught) == 1


def test_a_layer_by_itself_is_named_by_its_class() -> None:
    with pytest.warns(health.HealthWarning, match=r"expected layer LIF to fire"):
        health.check(relay(), spikes(0.0))


@pytest.mark.parametrize(
    ("rates", "limits", "told"),
    [
        ((0.5, 0.0, 0.0), {}, r"got 0.1667 with 67% of 3 neurons silent"),
        ((0.5, 0.0, 0.0), {"share": 0.7}, None),
        ((0.5, 0.0), {}, None),
        ((0.01, 0.0), {"low": 0.01, "share": 1.0}, r"got 0.0050 with 50% of 2 neurons silent"),
        ((1.0, 0.98), {"high": 0.98, "share": 1.0}, r"got 0.9900 with 50% of 2 neurons saturated"),
        ((0.5, 1.0, 1.0), {}, r"got 0.8333 with 67% of 3 neurons saturated"),
        ((0.5, 0.5), {"low": 0.6}, r"between 0.6 and 0.95 .*, got 0.5000 with 100% of 2 neurons silent"),
        ((0.5, 0.5), {"high": 0.4}, r"between 0.005 and 0.4 .*, got 0.5000 with 100% of 2 neurons saturated"),
    ],
)
def test_limits(rates: tuple[float, ...], limits: dict[str, float], told: str | None) -> None:
    layer, x = relay(len(rates)), spikes(*rates)
    if told is None:
        health.check(layer, x, **limits)
        return
    with pytest.warns(health.HealthWarning, match=told):
        health.check(layer, x, **limits)


def test_calibration_is_a_remedy() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LIF(20, 30), tt.LIF(30, 30), tt.LI(30, 2))
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    x = (torch.rand(50, 8, 20) < 0.1).float()
    with pytest.warns(health.HealthWarning, match=r"layer [01] \(LIF\)"):
        health.check(model, x)
    model.calibrate(x)
    health.check(model, x)


@pytest.mark.parametrize("use", [lambda model, **o: health.check(model, spikes(0.5), **o), health.Monitor])
def test_limits_that_make_no_sense_are_refused(use) -> None:
    with pytest.raises(
        ValueError, match=r"expected low and high with 0 <= low < high, got 0.5 and 0.1 spikes per step"
    ):
        use(relay(), low=0.5, high=0.1)
    with pytest.raises(ValueError, match=r"expected share in \[0, 1\], got 2"):
        use(relay(), share=2)


def test_an_input_that_is_none_is_refused() -> None:
    with pytest.raises(TypeError, match=r"health.probe_rates: expected x to be a torch.Tensor, got list"):
        health.check(relay(), [[[1.0]]])  # type: ignore[arg-type]


# -- monitor -----------------------------------------------------------------------------------------------------------


def test_a_monitor_averages_exponentially() -> None:
    layer = relay()
    monitor = health.Monitor(layer, decay=0.9)
    average = weight = 0.0
    for steps, value in ((1, 1.0), (4, 0.0), (2, 1.0)):
        layer.window(torch.full((steps, 3, 1), value, **F64))
        monitor.update()
        average = 0.9**steps * average + (1 - 0.9**steps) * value
        weight = 0.9**steps * weight + (1 - 0.9**steps)
    torch.testing.assert_close(monitor.rates(), {"LIF": torch.tensor([average / weight], **F64)})
    assert monitor.report().layers[0].mean == pytest.approx(average / weight)


def test_a_monitor_warns_once_per_layer_and_not_before_it_has_seen_enough() -> None:
    model = tt.Sequential(relay(2), relay(2, weight=0.5))
    monitor = health.Monitor(model, decay=0.9)
    x = spikes(1.0, 0.0, steps=9)
    model.window(x)
    monitor.update()  # 9 steps of 10
    model(x[0])
    with pytest.warns(health.HealthWarning, match="health.Monitor: " + SILENT.format(name=1, neurons=2)) as caught:
        monitor.update()
    assert len(caught) == 1
    assert caught[0].filename == __file__
    for _ in range(5):
        model.window(x)
        monitor.update()


def test_a_monitor_looks_at_the_layers_now_and_then() -> None:
    class Counting(health.Monitor):
        looks = 0

        def report(self) -> health.Health:
            self.looks += 1
            return super().report()

    layer = relay(2)
    monitor = Counting(layer, decay=0.9)
    for x in spikes(0.0, 1.0, steps=50):
        layer(x)
        monitor.update()
    assert monitor.looks == 5


def test_a_monitor_in_a_training_loop_keeps_no_more_as_time_goes_on() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LIF(6, 8), tt.LI(8, 2))
    x = (torch.rand(400, 4, 6) < 0.4).float()
    model.calibrate(x)
    kept = []
    with testing.LiveStorage() as live:
        monitor = health.Monitor(model, decay=0.9)
        for x_t in x:
            y = model(x_t)
            model.backward(torch.ones_like(y))
            model.zero_grad()
            monitor.update()
            del y
            kept.append(live.bytes)
    assert max(kept[200:]) == max(kept[:200])  # outputs are made some steps ahead
    average = monitor.rates()["0"]
    assert average.shape == (8,)
    assert 0.01 < average.mean() < 0.9


def test_lanes_may_change_and_a_layer_may_be_replaced_under_a_monitor() -> None:
    model = tt.Sequential(relay(2))
    monitor = health.Monitor(model)
    for lanes in (1, 5):
        model.window(spikes(0.5, 0.5, lanes=lanes))
        monitor.update()
        model.reset()
    model[0] = relay(3)
    model.window(spikes(1.0, 0.0, 1.0))
    monitor.update()
    assert monitor.rates()["0"].tolist() == pytest.approx([1.0, 0.0, 1.0])


@pytest.mark.parametrize("decay", [1.0, -0.1])
def test_a_decay_without_an_end_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"health.Monitor: expected decay in \[0, 1\), got {decay}. 0.999 averages"):
        health.Monitor(relay(), decay=decay)


# -- summary -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", [tt.InputTrace(), tt.Eligibility()], ids=repr)
@pytest.mark.parametrize("case", CONCAT, ids=str)
def test_a_summary_adds_up(case, rule) -> None:
    model, x, _ = case.make(rule)
    found = health.summary(model, lanes=3)
    assert sum(row.parameters for row in found.modules) == found.parameters
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert sum(row.state_bytes or 0 for row in found.modules) == found.state_bytes == model.state_bytes(3)
    model.window(x)
    saved = model.stream_state()["tensors"]
    for row in found.modules:
        module = model.get_submodule(row.module)
        assert row.kind == type(module).__name__
        assert row.weight == tuple(module.weight.shape)
        if row.state_bytes is not None:
            assert row.state_bytes == sum(tensor.nbytes for tensor in saved[row.module].values())
            assert row.rule == repr(module.rule)
    assert {row.module for row in found.modules if row.rule} == {*model._layers()}


def test_a_horizon_does_not_change_what_a_step_keeps() -> None:
    layers = tt.LIF(4, 3), tt.LI(3, 2)
    found = [health.summary(tt.Sequential(*layers, horizon=horizon)).tape_bytes for horizon in (None, 7)]
    model = tt.Sequential(*layers)
    assert found == [model.tape_bytes(1, 2) - model.tape_bytes(1, 1)] * 2
    assert found[0] > 0


def test_time_constants_and_thresholds_are_ranges() -> None:
    model = tt.Sequential(
        tt.LIF(2, 3, tau=[2.0, 20.0, 5.0], threshold=torch.tensor([0.5, 1.0, 2.0])),
        tt.LIF(3, 3, beta=torch.tensor([0.0, 0.5, 1.0])),
        tt.LI(3, 1, tau=7.0, rule=tt.Truncated()),
    )
    first, second, readout = health.summary(model).modules
    assert (first.tau, first.threshold, first.rule) == ((2.0, 20.0), (0.5, 2.0), "InputTrace()")
    assert second.tau == (0.0, float("inf"))
    assert (readout.tau, readout.threshold, readout.rule) == ((7.0, 7.0), None, "Truncated()")


def test_the_table_shows_modules_without_state_and_what_is_unknown() -> None:
    model = tt.Sequential(nn.Tanh(), nn.Linear(4, 3), tt.LIF(3, 2, tau=[2.0, 30.0], bias=False), tt.LI(2, 1, beta=0.5))
    lines = health.table(model, lanes=2).splitlines()
    assert lines[0].split("  ")[-3:] == ["bytes per 2 lanes", "tau (steps)", "threshold"]
    assert lines[1].split() == ["1", "Linear", "-", "3", "x", "4", "15", "-", "-", "-"]
    assert lines[2].split()[:7] == ["2", "LIF", "InputTrace()", "2", "x", "3", "6"]
    assert lines[2].split()[-2:] == ["2..30", "1"]
    assert lines[3].split()[-2:] == ["1.44", "-"]
    assert lines[4].split() == ["total", "24", str(model.state_bytes(2))]
    assert lines[5] == "tape of the latest call: - bytes per step and lane"


def test_a_layer_by_itself_has_a_summary() -> None:
    (row,) = health.summary(tt.LIF(4, 3)).modules
    assert (row.module, row.kind, row.parameters) == ("LIF", "LIF", 15)


def test_with_an_input_there_are_rates_and_warnings() -> None:
    model = tt.Sequential(relay(2), relay(2, weight=0.5), tt.LI(2, 1, **F64))
    with pytest.warns(health.HealthWarning, match=SILENT.format(name=1, neurons=2)):
        text = health.table(model, x=spikes(0.25, 0.25))
    assert [line.split()[-1] for line in text.splitlines()[:4]] == ["step", "0.2500", "0.0000", "-"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [row.rate for row in health.summary(model).modules] == [None] * 3


def test_a_summary_leaves_the_model_as_it_is() -> None:
    model = tt.Sequential(relay(2), tt.LI(2, 1, **F64))
    model.window(spikes(0.5, 0.5))
    before = model.stream_state()["tensors"]
    health.summary(model, x=spikes(0.1, 0.1))
    torch.testing.assert_close(model.stream_state()["tensors"], before)
    model.backward(torch.ones(100, 2, 1, **F64))  # the latest call is still there


def test_lanes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match=r"health.summary: expected lanes to be a whole number of at least 1, got 0"):
        health.summary(relay(), lanes=0)

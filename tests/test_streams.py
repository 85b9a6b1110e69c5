"""Steps and windows, lanes, resets, saved states, and the order of calls."""

import copy
import io
import pickle

import pytest
import torch

import tracetorch as tt
from cases import ALL, F64, HIDDEN, ONE_LAYER, RULES, Case, M, N, T, hidden
from tracetorch import kernels, testing
from tracetorch.rules.base import Wanted

WITH_MEAN_RATE = [*RULES, tt.MeanRate(value="measured"), tt.MeanRate(learn_decay=True)]


def fresh_generators(model: tt.nn.online.Online, seed: int = 3) -> None:
    for module in model.modules():
        if isinstance(module, tt.Softmax):
            module.neuron.generator = torch.Generator().manual_seed(seed)


def assert_same_state(a: dict, b: dict, atol: float = 1e-12) -> None:
    assert a["lanes"] == b["lanes"]
    for name, tensors in a["tensors"].items():
        assert tensors.keys() == b["tensors"][name].keys()
        for key, value in tensors.items():
            torch.testing.assert_close(value, b["tensors"][name][key], rtol=1e-10, atol=atol, msg=f"{name}.{key}")


@pytest.mark.parametrize(
    ("case", "rule"),
    [(case, rule) for case in ALL for rule in (*RULES, tt.MeanRate(value="measured")) if case.accepts(rule)],
    ids=str,
)
def test_steps_and_windows_give_the_same_outputs_and_states(case: Case, rule: tt.rules.Rule) -> None:
    model, x, _ = case.make(rule)
    results = []
    for cut in ([1] * T, [T], [3] * (T // 3), [1, T - 1], [T - 1, 1], [7, 1, 13]):
        fresh_generators(model)
        model.reset()
        y = torch.cat([model(part[0])[None] if len(part) == 1 else model.window(part) for part in x.split(cut)])
        results.append((y, model.stream_state()))
    for y, state in results[1:]:
        torch.testing.assert_close(y, results[0][0], rtol=1e-10, atol=1e-12)
        # a bank in which eligibility matrices are written goes on from window to window with its small error
        banked = isinstance(rule, tt.Eligibility) and "betas per" in case.name
        assert_same_state(state, results[0][1], 2e-3 if banked else 1e-12)


@pytest.mark.parametrize("rule", WITH_MEAN_RATE, ids=str)
def test_lanes_are_independent(rule: tt.rules.Rule) -> None:
    model = tt.Sequential(hidden(), hidden(HIDDEN, M), tt.LI(M, M, **F64), rule=rule)
    torch.manual_seed(0)
    x, ls = torch.rand(T, 4, N, **F64), torch.randn(T, 4, M, **F64)
    together = testing.online_gradients(model, x, ls, 5)
    apart = [testing.online_gradients(model, x[:, i : i + 1], ls[:, i : i + 1], 5) for i in range(4)]
    testing.assert_gradients_close(together, {name: sum(a[name] for a in apart) for name in together})


def test_a_single_lane_may_come_without_its_dimension() -> None:
    model = tt.Sequential(hidden(), tt.Softmax(HIDDEN, M, **F64))
    x = torch.rand(T, N, **F64)
    assert model(x[0]).shape == (M,)
    assert model[-1].probs.shape == (M,)
    assert model.backward(torch.ones(M, **F64), input_signal=True).shape == (N,)
    y = model.window(x)
    assert y.shape == (T, M)
    assert model.backward(torch.ones(T, M, **F64), input_signal=True).shape == (T, N)
    assert model(x[:1]).shape == (1, M)


def test_booleans_are_cast() -> None:
    layer = hidden()
    x = torch.rand(2, N) < 0.5
    y = layer(x)
    layer.reset()
    assert torch.equal(layer(x.double()), y)


@pytest.mark.parametrize("rule", WITH_MEAN_RATE, ids=str)
def test_a_stream_state_round_trips(rule: tt.rules.Rule) -> None:
    torch.manual_seed(0)
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, learn_beta=True, **F64), rule=rule)
    x, ls = torch.rand(T, 2, N, **F64), torch.randn(T, 2, M, **F64)
    model.window(x[:10])
    file = io.BytesIO()
    torch.save(model.stream_state(), file)
    file.seek(0)
    other = copy.deepcopy(model)
    other.reset()
    other.load_stream_state(torch.load(file, weights_only=True))
    for part in (model, other):
        part.zero_grad()
        part.window(x[10:])
        part.backward(ls[10:])
    testing.assert_gradients_close(
        *({name: p.grad for name, p in part.named_parameters() if p.grad is not None} for part in (other, model))
    )


def test_taking_a_stream_state_disturbs_nothing() -> None:
    model, x, ls = ONE_LAYER[0].make(tt.InputTrace())
    expected = testing.online_gradients(model, x, ls, 7)
    for part, signal in zip(x.split(7), ls.split(7), strict=True):
        model.window(part)
        state = model.stream_state()
        for tensor in state["tensors"][""].values():
            tensor.fill_(float("nan"))  # a copy, not a view
        model.backward(signal)
    testing.assert_gradients_close({name: p.grad for name, p in model.named_parameters()}, expected)


def test_state_is_not_in_the_state_dict() -> None:
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, **F64))
    before = set(model.state_dict())
    model(torch.rand(2, N, **F64))
    assert set(model.state_dict()) == before
    other = tt.Sequential(hidden(beta=0.3), tt.LI(HIDDEN, M, beta=0.4, **F64))
    other.load_state_dict(model.state_dict())
    x = torch.rand(T, 2, N, **F64)
    model.reset()
    torch.testing.assert_close(other.window(x), model.window(x), rtol=0, atol=0)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_go_on_from_the_same_state(duplicate) -> None:
    model, x, ls = ONE_LAYER[0].make(tt.InputTrace())
    model.window(x[:7])
    other = duplicate(model)
    with pytest.raises(RuntimeError, match="a copy has none yet"):
        other.backward(ls[:7])
    for part in (model, other):
        part.window(x[7:])
        part.backward(ls[7:])
    testing.assert_gradients_close(*({n: p.grad for n, p in part.named_parameters()} for part in (other, model)))


def test_state_moves_with_the_parameters() -> None:
    layer = tt.LIF(N, M)
    layer(torch.rand(2, N))
    layer.double()
    assert layer.mem.dtype == torch.float64
    assert layer(torch.rand(2, N, **F64)).dtype == torch.float64


def test_a_second_backward_adds() -> None:
    model, x, ls = ONE_LAYER[0].make(tt.InputTrace())
    model.window(x)
    model.backward(ls)
    once = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.backward(ls)
    testing.assert_gradients_close(
        {name: p.grad for name, p in model.named_parameters()}, {name: 2 * g for name, g in once.items()}
    )


@pytest.mark.parametrize("frozen", ["synapse.weight", "synapse.bias", "raw_beta", "raw_threshold"])
def test_each_parameter_can_be_frozen(frozen: str) -> None:
    model, x, ls = ONE_LAYER[0].make(tt.InputTrace())
    expected = testing.online_gradients(model, x, ls, 7)
    dict(model.named_parameters())[frozen].requires_grad_(False)
    actual = testing.online_gradients(model, x, ls, 7)
    del expected[frozen]
    testing.assert_gradients_close(actual, expected)


@kernels.reference()
def test_frozen_layers_below_cost_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tt.Sequential(hidden(), hidden(HIDDEN, HIDDEN), tt.LI(HIDDEN, M, **F64))
    model[0].requires_grad_(False)
    asked = []
    true_transpose = tt.nn.layer.Layer.transpose
    monkeypatch.setattr(
        tt.nn.layer.Layer, "transpose", lambda self, g: asked.append(self.in_features) or true_transpose(self, g)
    )
    model.window(torch.rand(3, 2, N, **F64))
    model.backward(torch.ones(3, 2, M, **F64))
    assert len(asked) == 1  # from the readout to the second layer, and no further
    model.backward(torch.ones(3, 2, M, **F64), input_signal=True)
    assert len(asked) == 4


def test_learning_resumes_with_fresh_traces_and_the_membrane_as_it_was() -> None:
    layer = hidden(N, M)
    x = torch.rand(T, 2, N, **F64)
    layer.window(x[:5])
    with tt.no_learning():
        layer.window(x[5:10])
        with pytest.raises(RuntimeError, match=r"got eval mode, no_learning\(\) or inference mode"):
            layer.backward(torch.ones(5, 2, M, **F64))
    mem = layer.mem.clone()
    layer.window(x[10:])
    assert layer._state.traces["weight"].abs().sum() == 0
    torch.testing.assert_close(layer._segments[-1].tape.start.mem, mem)
    layer.eval()
    layer.window(x)
    assert layer._state.traces is None
    layer.train()
    layer.window(x)
    layer.backward(torch.ones(T, 2, M, **F64))


def test_dropout_replays_its_mask() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LI(N, HIDDEN, **F64), torch.nn.Dropout(0.5), tt.LI(HIDDEN, M, **F64))
    y = model.window(torch.rand(T, 2, N, **F64))
    readout = model[2]
    kept = readout._segments[-1].tape.x != 0
    torch.manual_seed(1)
    before = torch.get_rng_state()
    ls = torch.ones_like(y)
    model.backward(ls)
    assert torch.equal(torch.get_rng_state(), before)
    wanted = Wanted(signal=True, adjoint=False)
    result = readout.rule.backward(readout, readout._segments, readout._state.traces, [ls], None, wanted)
    expected = testing.bptt_gradients(model[0], model[0]._segments[-1].tape.x, 2 * kept * result.ls_below[0])
    testing.assert_gradients_close({name: p.grad for name, p in model[0].named_parameters()}, expected)


def test_the_layers_alone_have_the_models_methods() -> None:
    layer = tt.LI(2, 1, beta=0.5)
    layer.window(torch.ones(3, 4, 2))
    layer.backward(torch.ones(3, 4, 1))
    layer.reset(torch.tensor([True, False, False, True]))
    assert layer.mem[0] == 0
    assert layer.mem[1] != 0
    assert layer.state_bytes() == layer.state_bytes(lanes=4)
    layer.load_stream_state(layer.stream_state())
    layer.reset()
    assert layer.mem is None


def test_samples_are_drawn_with_the_generator_in_eval_mode_too() -> None:
    def run(training: bool) -> torch.Tensor:
        torch.manual_seed(0)
        layer = tt.Softmax(3, 4, generator=torch.Generator().manual_seed(1)).train(training)
        return layer.window(torch.ones(30, 2, 3))

    samples = run(True)
    assert torch.equal(samples, run(False))
    assert samples.sum(-1).eq(1).all()
    assert samples.sum((0, 1)).gt(0).all()


def test_sampled_frequencies_are_the_probabilities() -> None:
    layer = tt.Softmax(1, 3, beta=0.0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        layer.synapse.bias.copy_(torch.tensor([0.0, 1.0, -1.0]))
    y = layer.window(torch.zeros(200, 100, 1))
    torch.testing.assert_close(y.mean((0, 1)), layer.probs[0, 0], atol=0.01, rtol=0)


def test_buffers_may_be_filled_anew_for_every_call() -> None:
    """x is copied and y is a copy, so that neither numpy's nor torch's in-place writes reach the traces."""
    model, x, ls = ONE_LAYER[6].make(tt.InputTrace())
    assert isinstance(model, tt.LI)  # its output is its membrane
    expected = testing.online_gradients(model, x, ls, 1)
    array = x[0].numpy().copy()
    buffer = torch.from_numpy(array)
    for x_t, ls_t in zip(x, ls, strict=True):
        array[:] = x_t.numpy()
        y = model(buffer)
        array[:] = 1e6
        y.fill_(1e6)
        model.backward(ls_t)
    testing.assert_gradients_close({name: p.grad for name, p in model.named_parameters()}, expected)


def test_what_a_layer_shows_is_a_copy() -> None:
    model = tt.Sequential(hidden(beta=0.5, learn_beta=False), tt.Softmax(HIDDEN, M, **F64))
    x, ls = torch.rand(2, N, **F64), torch.rand(2, M, **F64)
    model(x)
    model.backward(ls)
    before = [p.grad.clone() for p in model.parameters()]
    for shown in (model[0].mem, model[0].beta, model[1].mem, model[1].probs):
        shown.fill_(7)
    model.zero_grad()
    model.backward(ls)
    torch.testing.assert_close([p.grad for p in model.parameters()], before, rtol=0, atol=0)


def test_a_stateless_module_first_keeps_its_input() -> None:
    model = tt.Sequential(torch.nn.Linear(N, HIDDEN, **F64), hidden(HIDDEN, M))
    x, ls = torch.rand(T, 2, N, **F64), torch.randn(T, 2, M, **F64)
    expected = testing.bptt_gradients(model, x, ls)
    mine = x.clone()
    model.window(mine)
    mine.fill_(1e6)
    model.backward(ls)
    testing.assert_gradients_close({name: p.grad for name, p in model.named_parameters()}, expected)
    model.reset()
    assert model(x[0, 0]).shape == (M,)


def test_the_rule_is_the_models() -> None:
    model = tt.Sequential(hidden(), hidden(HIDDEN, rule=tt.Truncated()), tt.LI(HIDDEN, M, **F64), rule=tt.MeanRate())
    assert [layer.rule for layer in model] == [tt.MeanRate(), tt.Truncated(), tt.MeanRate()]
    model.rule = tt.InputTrace()
    assert [layer.rule for layer in model] == [tt.InputTrace(), tt.Truncated(), tt.InputTrace()]


def test_new_modules_take_the_models_rule_and_its_parameters_at_once() -> None:
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, **F64), rule=tt.MeanRate(learn_decay=True))
    model[1] = tt.LI(HIDDEN, M, **F64)
    model.append(tt.LI(M, M, **F64)).insert(1, hidden(HIDDEN, HIDDEN))
    assert {layer.rule for layer in model} == {model.rule}
    assert [name for name, _ in model.named_parameters() if "raw_decay" in name] == [f"{i}.raw_decay" for i in range(4)]
    del model[3]
    model += [tt.LI(M, M, **F64)]
    assert len(model) == 4
    assert model[3].rule == (model + torch.nn.Sequential(torch.nn.Tanh())).rule == model.rule


def test_slices_have_the_rule_and_mode_and_leave_the_layers_as_they_are() -> None:
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, **F64), rule=tt.MeanRate(learn_decay=True)).eval()
    decay = model[0].raw_decay
    part = model[:1]
    assert (part.rule, part.training) == (model.rule, False)
    part(torch.rand(2, N, **F64))
    assert model[0].raw_decay is decay
    model.rule = tt.InputTrace()
    part.append(torch.nn.Tanh())
    part(torch.rand(2, N, **F64))
    assert model[0].rule == tt.InputTrace()


def test_a_model_without_a_rule_leaves_its_layers_the_one_they_have() -> None:
    layer = hidden()
    model = tt.Sequential(layer, rule=tt.MeanRate(learn_decay=True))
    tt.Sequential(layer, tt.LI(HIDDEN, M, **F64))
    assert layer.rule == model.rule
    assert "0.raw_decay" in dict(model.named_parameters())
    assert tt.Sequential(layer, rule=tt.Truncated())[0].rule == tt.Truncated()


def test_the_innermost_models_rule_counts() -> None:
    inner = tt.Sequential(hidden(HIDDEN), rule=tt.Truncated())
    bare = tt.Sequential(hidden())
    model = tt.Sequential(bare, inner, rule=tt.MeanRate())
    assert (bare[0].rule, inner[0].rule) == (tt.MeanRate(), tt.Truncated())
    assert bare.rule == model.rule == tt.MeanRate()


def test_another_rule_starts_with_fresh_traces() -> None:
    layer = tt.LIF(N, M, **F64)
    layer(torch.rand(2, N, **F64))
    layer(torch.rand(2, N, **F64))
    layer.rule = tt.MeanRate()
    layer(torch.rand(2, N, **F64))
    assert layer._state.traces.inputs.abs().sum() == 0


def test_probs_end_with_a_reset_and_are_not_copied() -> None:
    layer = tt.Softmax(2, 3)
    layer(torch.ones(1, 2))
    for other in (copy.deepcopy(layer), layer):
        other.reset()
        with pytest.raises(RuntimeError, match="expected a call before"):
            _ = other.probs
    layer(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match="expected a call before"):
        _ = copy.deepcopy(layer).probs


def test_a_loaded_state_is_a_copy() -> None:
    layer = tt.LI(2, 2)
    layer(torch.ones(1, 2))
    state = layer.stream_state()
    layer.load_stream_state(state)
    mem = layer.mem
    state["tensors"][""]["neuron.mem"].fill_(5)
    assert torch.equal(layer.mem, mem)


def test_the_membrane_is_not_the_output_in_eval_mode_either() -> None:
    layer = tt.LI(2, 2).eval()
    y = layer.window(torch.ones(3, 1, 2))
    mem = layer.mem
    y.fill_(9)
    assert torch.equal(layer.mem, mem)


def test_inference_mode_is_no_learning() -> None:
    model = tt.Sequential(tt.LIF(2, 3), torch.nn.Linear(3, 2))
    with torch.inference_mode():
        model(torch.ones(1, 2))
        with pytest.raises(RuntimeError, match="inference mode"):
            model.backward(torch.ones(1, 2))
    model(torch.ones(1, 2))
    model.backward(torch.ones(1, 2))
    assert not model[0].weight.grad.is_inference()


def test_autocast_changes_nothing() -> None:
    model = tt.Sequential(tt.LIF(2, 3), torch.nn.Linear(3, 2))
    with torch.autocast("cpu", torch.bfloat16):
        y = model.window(torch.ones(3, 1, 2))
        model.backward(torch.ones(3, 1, 2))
    assert y.dtype == model[0].weight.grad.dtype == torch.float32
    model.window(torch.ones(3, 1, 2))


def test_autocast_reaches_no_trace() -> None:
    torch.manual_seed(0)
    layer = tt.LIF(20, 3)
    layer.window(torch.rand(9, 2, 20))
    expected = layer.stream_state()["tensors"]
    with torch.autocast("cpu", torch.bfloat16):
        actual = layer.stream_state()["tensors"]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@pytest.mark.parametrize("module", [torch.nn.FractionalMaxPool2d(2, output_size=1), torch.nn.Sequential()])
def test_random_modules_replay_what_they_drew(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Sequential):
        model = tt.Sequential(tt.LI(4, 4, **F64), module, tt.LI(4, 4, **F64))
        module.append(torch.nn.Dropout())  # after the model was made
    else:
        view = torch.nn.Unflatten(-1, (1, 3, 3))
        pool = torch.nn.Sequential(view, module, torch.nn.Flatten())
        model = tt.Sequential(tt.LI(4, 9, **F64), pool, tt.LI(1, 4, **F64))
    for seed in range(5):
        torch.manual_seed(seed)
        model.window(torch.rand(6, 2, 4, **F64))
        part = model._adapters["1"]
        passed = model[2]._segments[-1].tape.x
        wanted = Wanted(signal=True, adjoint=False)
        (below,) = part._backward([torch.ones_like(passed)], None, wanted, part._segments[-1].call).ls_below
        inner = model[0]._segments[-1].tape.record.mem
        # both modules pass some entries on, scaled: their output is the gradient times the input, summed
        torch.testing.assert_close((below * inner).sum(-1), passed.sum(-1))


def test_frozen_stateless_parameters_get_no_gradient() -> None:
    model = tt.Sequential(hidden(), torch.nn.Linear(HIDDEN, M, **F64))
    model[1].requires_grad_(False)
    model(torch.rand(2, N, **F64))
    model.backward(torch.ones(2, M, **F64))
    assert model[1].weight.grad is None
    assert model[0].weight.grad is not None


def test_gradients_share_no_memory() -> None:
    class Offsets(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1, M, **F64))
            self.q = torch.nn.Parameter(torch.zeros(1, M, **F64))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.p + self.q

    model = tt.Sequential(hidden(N, M), Offsets())
    ls = torch.ones(1, M, **F64)
    model(torch.rand(1, N, **F64))
    model.backward(ls)
    model.backward(ls)
    assert model[1].p.grad.eq(2).all()
    assert model[1].q.grad.eq(2).all()
    assert ls.eq(1).all()


def test_an_optimizer_step_before_backward_leaves_beta_and_threshold_consistent() -> None:
    """Their chain rule uses the values that the window was run with."""
    model, x, ls = ONE_LAYER[0].make(tt.InputTrace())
    expected = testing.online_gradients(model, x, ls, T)
    model.window(x)
    with torch.no_grad():
        model.raw_beta -= 2
        model.raw_threshold += 2
    model.backward(ls)
    testing.assert_gradients_close({name: p.grad for name, p in model.named_parameters()}, expected)


def test_loading_constants_leaves_the_latest_window_with_the_old_ones() -> None:
    layer, other = tt.LI(1, 1, beta=0.8), tt.LI(1, 1, beta=0.1)
    layer(torch.ones(1, 1))
    layer(torch.ones(1, 1))
    layer.load_state_dict(other.state_dict())
    layer(torch.ones(1, 1))
    assert layer._state.traces["weight"].item() == pytest.approx(1.8)


def test_spikes_of_the_users_may_be_boolean() -> None:
    fire = tt.surrogate.Custom(lambda u: u >= 0, tt.surrogate.ArcTan().slope)
    torch.manual_seed(0)
    layer = hidden(N, M, surrogate=fire)
    x, ls = torch.rand(T, 2, N, **F64), torch.randn(T, 2, M, **F64)
    actual, expected = testing.online_gradients(layer, x, ls, 5), testing.bptt_gradients(layer, x, ls)
    testing.assert_gradients_close(actual, expected)


def test_each_softmax_with_its_own_generator_is_the_same_for_any_cut() -> None:
    def run(cut: list[int]) -> torch.Tensor:
        torch.manual_seed(0)
        model = tt.Sequential(
            tt.Softmax(N, HIDDEN, generator=torch.Generator().manual_seed(1), **F64),
            tt.Softmax(HIDDEN, M, generator=torch.Generator().manual_seed(2), **F64),
        )
        return torch.cat([model.window(part) for part in x.split(cut)])

    x = torch.rand(T, 2, N, **F64)
    assert torch.equal(run([T]), run([5, 9, 7]))


NESTED = [
    lambda model: model[0].state_bytes(),
    lambda model: model[0].tape_bytes(2, 3),
    lambda model: model[0].banks(),
    lambda model: model[0].stream_state(),
    lambda model: model[1].banks(),
    lambda model: model[:2].state_bytes(),
    lambda model: model.banks(),
    lambda model: model.stream_state(),
    lambda model: model.state_bytes(),
    lambda model: model.break_even(),
    lambda model: copy.deepcopy(model),
    lambda model: testing.spike_rates(model, torch.rand(5, 2, N, **F64)),
]


@pytest.mark.parametrize("ask", NESTED)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_question_in_mid_stream_changes_nothing(rule: tt.rules.Rule, ask) -> None:
    """Of the model or of a part of it, between calls, and between a call and its backward."""
    torch.manual_seed(0)
    model = tt.Sequential(hidden(), hidden(HIDDEN, HIDDEN), tt.LI(HIDDEN, M, **F64), rule=rule)
    x, ls = torch.rand(9, 2, N, **F64), torch.randn(9, 2, M, **F64)
    expected = testing.online_gradients(model, x, ls, 3)
    for x_window, ls_window in zip(x.split(3), ls.split(3), strict=True):
        ask(model)
        model.window(x_window)
        ask(model)
        model.backward(ls_window)
    testing.assert_gradients_close({name: p.grad for name, p in model.named_parameters()}, expected)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_part_that_ran_by_itself_leaves_a_model_that_can_be_saved(rule: tt.rules.Rule) -> None:
    torch.manual_seed(0)
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, **F64), rule=rule)
    x, ls = torch.rand(12, 2, N, **F64), torch.randn(12, 2, M, **F64)
    model.window(x[:4])
    model[0].window(x[4:6])
    model.window(x[6:9])
    state = model.stream_state()
    kept = sum(tensor.nbytes for tensors in state["tensors"].values() for tensor in tensors.values())
    assert kept == model.state_bytes()
    other = copy.deepcopy(model)
    other.reset()
    other.load_stream_state(state)
    for part in (model, other):
        part.window(x[9:])
        part.backward(ls[9:])
    testing.assert_gradients_close(*({n: p.grad for n, p in part.named_parameters()} for part in (other, model)))
    model.reset()
    model.zero_grad()
    actual = testing.online_gradients(model, x, ls, 4)
    fresh = tt.Sequential(*copy.deepcopy(list(model)), rule=rule)
    testing.assert_gradients_close(actual, testing.online_gradients(fresh, x, ls, 4))


def test_models_that_share_a_layer_one_after_the_other_are_told_apart() -> None:
    """Slices are models of their own, made and thrown away: none is taken for another that has its place in memory."""
    torch.manual_seed(0)
    model = tt.Sequential(hidden(), hidden(HIDDEN, HIDDEN), tt.LI(HIDDEN, M, **F64), rule=tt.Eligibility())
    x, ls = torch.rand(9, 2, N, **F64), torch.randn(9, 2, HIDDEN, **F64)
    for cut in (2, 1, 2, 1):
        part = model[:cut]
        part.window(x[:4])
        part.window(x[4:])
        part.backward(ls[4:])
        banks = {name: len(bank.nodes) for name, bank in part.banks().items()}
        alone = copy.deepcopy(part)
        alone.reset()
        alone.window(x)
        assert banks == {name: len(bank.nodes) for name, bank in alone.banks().items()}
        kept = [t for tensors in part.stream_state()["tensors"].values() for t in tensors.values()]
        assert sum(t.nbytes for t in kept) == part.state_bytes() == alone.state_bytes()
        del part, alone


@pytest.mark.xfail(strict=True, reason="a part by itself has no layers above, and no place for what they hand down")
def test_a_nested_parts_state_round_trips() -> None:
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, **F64), rule=tt.Eligibility())
    model.window(torch.rand(5, 2, N, **F64))
    state = model[0].stream_state()
    model[0].load_stream_state(state)
    assert_same_state(model[0].stream_state(), state)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_what_is_frozen_changes_no_other_gradient(rule: tt.rules.Rule) -> None:
    """Each parameter, each module, and all but one module: signals and adjoints still pass where they are wanted."""
    torch.manual_seed(0)
    model = tt.Sequential(
        hidden(),
        hidden(HIDDEN, HIDDEN, recurrent=True),
        torch.nn.Linear(HIDDEN, HIDDEN, **F64),
        tt.Concat(hidden(HIDDEN, 3), tt.LI(HIDDEN, 2, learn_beta=True, **F64)),
        rule=rule,
    )
    x, ls = torch.rand(12, 2, N, **F64), torch.randn(12, 2, 5, **F64)
    model.calibrate(x)
    expected = testing.online_gradients(model, x, ls, 3)
    modules = ["0", "1", "2", "3", "3.0", "3.1"]
    frozen = [[name] for name in expected]
    frozen += [[name for name in expected if name.startswith(module)] for module in modules]
    frozen += [[name for name in expected if not name.startswith(module)] for module in modules]
    for names in frozen:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name not in names)
        actual = testing.online_gradients(model, x, ls, 3)
        testing.assert_gradients_close(actual, {name: g for name, g in expected.items() if name not in names})


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_traces_move_with_the_parameters_in_mid_stream(rule: tt.rules.Rule) -> None:
    taus = torch.linspace(2, 9, HIDDEN).tolist()
    model = tt.Sequential(tt.LIF(N, HIDDEN, tau=taus, learn_beta=True), tt.LI(HIDDEN, M, learn_beta=True), rule=rule)
    torch.manual_seed(0)
    x, ls = torch.rand(12, 2, N), torch.randn(6, 2, M, **F64)
    model.calibrate(x)
    double = copy.deepcopy(model).double()
    model.window(x[:6])
    model.double()
    double.window(x[:6].double())
    for part in (model, double):
        part.window(x[6:].double())
        part.backward(ls)
    actual, expected = ({n: p.grad for n, p in part.named_parameters()} for part in (model, double))
    testing.assert_gradients_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [tt.MeanField(), tt.Eligibility()], ids=str)
def test_constants_loaded_in_mid_stream_are_the_exponentials_from_then_on(rule: tt.rules.Rule) -> None:
    model, other = (tt.Sequential(hidden(), tt.LI(HIDDEN, M, beta=beta, **F64), rule=rule) for beta in (0.9, 0.5))
    x = torch.rand(4, 2, N, **F64)
    model.window(x)
    model.load_state_dict(other.state_dict())
    model.window(x)
    assert model[1]._segments[-1].tape.nodes.own.tolist() == [0.5]


class Masks(torch.nn.Module):
    """The masks that a Dropout drew, one after the other."""

    def __init__(self, masks: torch.Tensor) -> None:
        super().__init__()
        self.masks = iter(masks)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * next(self.masks)


def test_within_a_horizon_a_dropout_replays_all_its_masks() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LI(N, HIDDEN, **F64), torch.nn.Dropout(0.5), tt.LI(HIDDEN, M, **F64), horizon=T)
    x, ls = torch.rand(T, 2, N, **F64), torch.randn(T, 2, M, **F64)
    for x_window, ls_window in zip(x.split(4), ls.split(4), strict=True):
        model.window(x_window)
        model.backward(ls_window)
    kept = torch.cat([segment.tape.x != 0 for segment in model[2]._segments])
    expected = testing.bptt_gradients(tt.Sequential(model[0], Masks(2.0 * kept), model[2]), x, ls)
    testing.assert_gradients_close({name: p.grad for name, p in model.named_parameters()}, expected)


def test_a_state_saved_in_eval_mode_goes_on_with_fresh_traces() -> None:
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, learn_beta=True, **F64), rule=tt.Eligibility())
    x = torch.rand(4, 2, N, **F64)
    model.eval().window(x)
    state = model.stream_state()
    model.train().load_stream_state(state)
    mem = model[0].mem
    model.window(x)
    torch.testing.assert_close(model[0]._segments[-1].tape.start.mem, mem)
    assert model[0]._state.traces.matrices["weight"].abs().sum() == 0
    model.backward(torch.ones(4, 2, M, **F64))


@pytest.mark.parametrize("window", [1, 7])
def test_neurons_that_all_have_the_same_beta_each_are_exact(window: int) -> None:
    """The bank is then one node, not several that coincide."""
    layer = tt.LIF(N, M, tau=torch.full((M,), 20.0), **F64)
    x, ls = (torch.rand(T, 2, N, **F64) < 0.3).double(), torch.randn(T, 2, M, **F64)
    layer.calibrate(x)
    testing.assert_gradients_close(testing.online_gradients(layer, x, ls, window), testing.bptt_gradients(layer, x, ls))


def test_a_window_is_gone_back_through_in_the_mode_that_it_ran_in() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LI(N, HIDDEN, **F64), torch.nn.Dropout(0.5), tt.LI(HIDDEN, M, **F64), horizon=8)
    x = torch.rand(8, 2, N, **F64)
    model.window(x[:4])
    kept = (model[2]._segments[-1].tape.x != 0) * 2.0
    model[1].eval()
    model.window(x[4:])
    ls = torch.randn(4, 2, M, **F64)
    model.backward(ls)
    leaf = model[0].synapse.weight.detach().requires_grad_()
    v = u = torch.zeros(())
    total = torch.zeros(())
    for t in range(8):
        v = 0.9 * v + x[t] @ leaf.t() + model[0].synapse.bias.detach()
        u = 0.9 * u + (v * kept[t] if t < 4 else v) @ model[2].synapse.weight.detach().t()
        total = total + ((ls[t - 4] * u).sum() if t >= 4 else 0)
    torch.testing.assert_close(
        model[0].synapse.weight.grad, torch.autograd.grad(total, leaf)[0], rtol=1e-10, atol=1e-10
    )


def test_modules_that_change_cut_the_horizon() -> None:
    """Tapes of what was there before are not gone back through with what is there now."""
    torch.manual_seed(0)
    model = tt.Sequential(hidden(), hidden(HIDDEN), tt.LI(HIDDEN, M, **F64), horizon=100, rule=tt.Truncated())
    x, ls = torch.rand(6, 2, N, **F64), torch.randn(6, 2, M, **F64)
    model.window(x)
    del model[1]
    model.window(x)
    model.backward(ls)
    assert len(model[0]._segments) == 1
    cut = [p.grad.clone() for p in model[0].parameters()]
    model.zero_grad()
    model.horizon = None
    model.backward(ls)
    torch.testing.assert_close([p.grad for p in model[0].parameters()], cut)


def test_a_question_to_a_branch_changes_nothing() -> None:
    def run(ask: bool) -> list[torch.Tensor]:
        torch.manual_seed(0)
        branches = tt.Concat(torch.nn.Identity(), hidden(HIDDEN, 3))
        model = tt.Sequential(hidden(), branches, tt.LI(HIDDEN + 3, M, **F64), rule=tt.Eligibility())
        for _ in range(3):
            model.window(torch.rand(5, 2, N, **F64))
        if ask:
            branches.state_bytes()
        model.backward(torch.ones(5, 2, M, **F64))
        return [p.grad for p in model.parameters()]

    torch.testing.assert_close(run(True), run(False), rtol=0, atol=0)

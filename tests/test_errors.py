"""Bad input: the message says what came, what was expected and what to do; the state is as it was before."""

import contextlib
from collections.abc import Callable

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import tracetorch as tt

N, H, M, B = 4, 3, 2, 2


def make() -> tt.Sequential:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LIF(N, H, learn_beta=True), tt.LI(H, M))
    model(torch.ones(B, N))
    model.backward(torch.ones(B, M))
    return model


def snapshot(model: tt.Sequential) -> dict:
    return {
        "state": model.stream_state(),
        "grads": [p.grad.clone() for p in model.parameters()],
        "latest": model._latest,
    }


@contextlib.contextmanager
def unchanged(model: tt.Sequential):
    before = snapshot(model)
    yield
    after = snapshot(model)
    torch.testing.assert_close(after["state"]["tensors"], before["state"]["tensors"], rtol=0, atol=0)
    torch.testing.assert_close(after["grads"], before["grads"], rtol=0, atol=0)
    assert after["latest"] is before["latest"]


NAN = torch.full((B, N), float("nan"))
BAD_INPUTS = [
    (torch.ones(B, N + 1), ValueError, r"Sequential: expected x of shape \(B, 4\), got \(2, 5\)"),
    (torch.ones(B, 2, N), ValueError, r"got \(2, 2, 4\). For a window of steps, time first, call window\(x\)"),
    (
        torch.ones(B, 2, 2),
        ValueError,
        r"expected x of shape \(B, 4\), got \(2, 2, 2\). Flatten it first, with x.flatten\(1\)",
    ),
    (torch.ones(B, N).to_sparse(), TypeError, "expected a dense x, got torch.sparse_coo"),
    (torch.ones(()), ValueError, r"expected x of shape \(B, 4\), got \(\)"),
    (
        torch.ones(B, N, dtype=torch.int64),
        TypeError,
        r"expected x to be torch.float32 like the weights, or bool, got torch.int64",
    ),
    (torch.ones(B, N, dtype=torch.complex64), TypeError, "got torch.complex64"),
    (torch.ones(B, N, dtype=torch.float64), TypeError, r"got torch.float64. Convert it with x.to\(torch.float32\)"),
    (
        torch.ones(B, N).requires_grad_(),
        TypeError,
        r"expected x without requires_grad.*backward\(ls, input_signal=True\)",
    ),
    ([[1.0]], TypeError, "expected x to be a torch.Tensor, got list"),
    (
        torch.ones(B + 1, N),
        ValueError,
        r"module 0: LIF: expected 2 lanes as in the calls before, got 3. Call reset\(\) first",
    ),
    (torch.ones(0, N), ValueError, "expected at least one step and one lane"),
    (NAN, ValueError, r"expected finite numbers in x, got 8 that are not, the first \(nan\) at index \(0, 0\)"),
    (torch.full((B, N), float("inf")), ValueError, "expected finite numbers in x"),
    (torch.ones(B, N, device="meta"), ValueError, "expected x on cpu like the weights, got meta"),
]


@pytest.mark.parametrize(("x", "kind", "message"), BAD_INPUTS)
def test_a_bad_step_is_refused(x: torch.Tensor, kind: type[Exception], message: str) -> None:
    model = make()
    with unchanged(model), pytest.raises(kind, match=message):
        model(x)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, B, N + 1), r"expected a window of x of shape \(K, B, 4\), got \(3, 2, 5\)"),
        ((0, B, N), "expected at least one step"),
        ((3, B + 1, N), "expected 2 lanes"),
        ((1, 3, B, N), r"expected a window of x of shape \(K, B, 4\)"),
    ],
)
def test_a_bad_window_is_refused(shape: tuple[int, ...], message: str) -> None:
    model = make()
    with unchanged(model), pytest.raises(ValueError, match=message):
        model.window(torch.ones(shape))


@pytest.mark.parametrize(
    ("ls", "kind", "message"),
    [
        (
            torch.ones(B, M + 1),
            ValueError,
            r"Sequential.backward: expected ls of shape \(2, 2\), got \(2, 3\). ls is dL/dy",
        ),
        (torch.tensor(0.5), ValueError, r"expected ls of shape \(2, 2\), got \(\)"),
        (torch.ones(1, B, M), ValueError, r"expected ls of shape \(2, 2\), got \(1, 2, 2\)"),
        (torch.ones(B, M, dtype=torch.float64), TypeError, "expected ls to be torch.float32 like y, got torch.float64"),
        (torch.ones(B, M, dtype=torch.int64), TypeError, "expected ls to be a floating-point tensor, got torch.int64"),
        (1.0, TypeError, "expected ls to be a torch.Tensor, got float"),
        (
            (torch.ones(()), torch.ones(B, M)),
            TypeError,
            "got tuple. A loss of tracetorch.loss returns a pair",
        ),
        (torch.full((B, M), float("nan")), ValueError, "expected finite numbers in ls"),
        (torch.ones(B, M, device="meta"), ValueError, "expected ls on cpu like the weights, got meta"),
    ],
)
def test_a_bad_signal_is_refused(ls: torch.Tensor, kind: type[Exception], message: str) -> None:
    model = make()
    with unchanged(model), pytest.raises(kind, match=message):
        model.backward(ls)


def test_the_check_for_finite_numbers_can_be_switched_off() -> None:
    layer = tt.LI(N, M)
    layer.check_finite = False
    assert layer(NAN).isnan().all()


def test_large_but_finite_numbers_pass() -> None:
    model = make()
    model(torch.full((B, N), 3e38))  # their sum overflows


def before_any_call(model: tt.Sequential) -> tt.Sequential:
    return tt.Sequential(tt.LIF(N, H), tt.LI(H, M))


def after_reset(model: tt.Sequential) -> tt.Sequential:
    model.reset()
    return model


def after_masked_reset(model: tt.Sequential) -> tt.Sequential:
    model.reset(torch.tensor([True, False]))
    return model


def in_eval_mode(model: tt.Sequential) -> tt.Sequential:
    model.eval()
    model(torch.ones(B, N))
    return model


def switched_to_eval_mode(model: tt.Sequential) -> tt.Sequential:
    return model.eval()


def in_training_mode_again(model: tt.Sequential) -> tt.Sequential:
    return in_eval_mode(model).train()


def after_another_module(model: tt.Sequential) -> tt.Sequential:
    model = tt.Sequential(tt.LIF(N, H), nn.Linear(H, M))
    model(torch.ones(B, N))
    model[1] = nn.Linear(H, M)
    return model


def after_an_inner_models_own_call(model: tt.Sequential) -> tt.Sequential:
    model = tt.Sequential(tt.LIF(N, H), tt.Sequential(tt.LI(H, H), nn.Linear(H, M)))
    model(torch.ones(B, N))
    model[1](torch.ones(B, H))
    return model


def after_a_change_inside_an_inner_model(model: tt.Sequential) -> tt.Sequential:
    model = tt.Sequential(tt.Sequential(tt.LIF(N, H), tt.LIF(H, H), tt.LIF(H, H)), tt.LI(H, M))
    model(torch.ones(B, N))
    del model[0][1]
    return model


def after_loading_a_state(model: tt.Sequential) -> tt.Sequential:
    model.load_stream_state(model.stream_state())
    return model


def after_another_rule(model: tt.Sequential) -> tt.Sequential:
    model[0].rule = tt.Truncated()
    return model


def after_a_layers_own_call(model: tt.Sequential) -> tt.Sequential:
    model[1](torch.ones(B, H))
    return model


def after_a_layers_own_reset(model: tt.Sequential) -> tt.Sequential:
    model[0].reset()
    return model


def after_moving(model: tt.Sequential) -> tt.Sequential:
    return model.double().float()


@pytest.mark.parametrize(
    ("situation", "message"),
    [
        (
            before_any_call,
            "Sequential.backward: expected a forward call in training mode to go back to, but none has been",
        ),
        (after_reset, r"but reset\(\) ended the latest"),
        (after_masked_reset, r"but reset\(\) ended the latest"),
        (in_eval_mode, "expected training mode, got eval mode"),
        (switched_to_eval_mode, "expected training mode, got eval mode"),
        (in_training_mode_again, "but the latest ran in eval mode"),
        (after_another_module, "but its modules were changed after the latest"),
        (
            after_a_change_inside_an_inner_model,
            "module 0: Sequential: expected to be as the model's latest call left it",
        ),
        (after_an_inner_models_own_call, "module 1: Sequential: expected to be as the model's latest call left it"),
        (after_loading_a_state, r"but load_stream_state\(\) ended the latest"),
        (after_another_rule, "module 0: LIF: expected to be as the model's latest call left it"),
        (after_a_layers_own_call, "module 1: LI: expected to be as the model's latest call left it"),
        (after_a_layers_own_reset, "module 0: LIF: expected to be as the model's latest call left it"),
        (after_moving, "expected to be as the model's latest call left it"),
    ],
)
def test_backward_without_a_call_to_go_back_to_is_refused(
    situation: Callable[[tt.Sequential], tt.Sequential], message: str
) -> None:
    model = situation(make())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match=message):
        model.backward(torch.ones(B, M))
    for p, grad in zip(model.parameters(), grads, strict=True):
        assert (p.grad is None) if grad is None else torch.equal(p.grad, grad)


@pytest.mark.parametrize(
    ("mask", "kind", "message"),
    [
        (torch.ones(B), TypeError, "Sequential.reset: expected mask to be bool, got torch.float32"),
        (torch.ones(B + 1, dtype=torch.bool), ValueError, r"expected mask of shape \(2,\), got \(3,\)"),
        ([True, False], TypeError, "expected mask to be a torch.Tensor, got list"),
    ],
)
def test_a_bad_mask_is_refused(mask: torch.Tensor, kind: type[Exception], message: str) -> None:
    model = make()
    with unchanged(model), pytest.raises(kind, match=message):
        model.reset(mask)


def test_a_masked_reset_before_any_call_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"expected a call before reset\(mask\)"):
        tt.LIF(N, H).reset(torch.ones(B, dtype=torch.bool))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"beta": 1.1}, r"LIF: expected beta in \[0, 1\], got 1.1"),
        ({"beta": -0.1}, r"expected beta in \[0, 1\], got -0.1"),
        ({"beta": float("nan")}, r"expected beta in \[0, 1\], got nan"),
        ({"beta": 1.0, "learn_beta": True}, "expected a learned beta strictly between 0 and 1, got 1.0"),
        ({"beta": 0.0, "learn_beta": True}, "expected a learned beta strictly between 0 and 1, got 0.0"),
        ({"beta": [0.5, 0.6]}, r"expected beta to be one number or one per neuron \(3,\), got shape \(2,\)"),
        ({"tau": 0.0}, r"expected tau \(steps\) above 0, got 0.0"),
        ({"tau": -2.0}, r"expected tau \(steps\) above 0, got -2.0"),
        ({"tau": 5.0, "beta": 0.5}, "expected beta or tau, got both"),
        ({"threshold": 0.0}, "expected threshold above 0, got 0.0"),
        ({"threshold": -1.0}, "expected threshold above 0, got -1.0"),
        ({"threshold": float("inf")}, "expected threshold above 0, got inf"),
        ({"recurrent": True, "rule": tt.MeanRate()}, "MeanRate: expected LIF without recurrent weights"),
    ],
)
def test_bad_parameters_are_refused(kwargs: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tt.LIF(N, H, **kwargs)


def pruned() -> nn.Linear:
    return nn.utils.prune.random_unstructured(nn.Linear(N, H), "weight", 0.5)


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: tt.LIF(N), ValueError, "LIF: expected in_features and out_features, or synapse=, got in_features=4"),
        (
            lambda: tt.LIF(N, H, synapse=nn.Linear(N, H)),
            ValueError,
            "and a synapse. Give the two sizes, or the synapse",
        ),
        (lambda: tt.LIF(0, H), ValueError, "expected in_features to be a whole number of at least 1, got 0"),
        (lambda: tt.LI(N, 2.0), TypeError, "expected out_features to be a whole number of at least 1, got 2.0"),
        (
            lambda: tt.LIF(synapse=nn.Tanh()),
            NotImplementedError,
            r"gradient and transpose are known \(Linear, .*\), got Tanh",
        ),
        (lambda: tt.LIF(synapse=torch.tanh), TypeError, "expected synapse to be a torch.nn.Module"),
        (lambda: tt.LIF(N, H, surrogate=torch.sigmoid), TypeError, "LIF: expected surrogate to be a Surrogate"),
        (lambda: tt.LIF(N, H, rule=tt.InputTrace), TypeError, "expected rule to be a Rule such as InputTrace"),
        (
            lambda: tt.LIF(synapse=nn.Linear(N, H, dtype=torch.complex64)),
            TypeError,
            "expected the synapse's weight to be",
        ),
        (lambda: tt.Sequential(), ValueError, "Sequential: expected at least one layer of tracetorch, got none"),
        (lambda: tt.Sequential(nn.Linear(2, 2)), ValueError, "expected at least one layer of tracetorch"),
        (
            lambda: tt.Sequential(tt.LIF(N, H), nn.BatchNorm1d(H)),
            TypeError,
            "module 1: expected modules that treat each step and lane by itself, got BatchNorm1d",
        ),
        (
            lambda: tt.Sequential(tt.LIF(N, H), nn.BatchNorm1d(H, track_running_stats=False).eval()),
            TypeError,
            "got BatchNorm1d with statistics of the batch",
        ),
        (lambda: tt.Sequential(tt.LIF(N, H), rule="input-trace"), TypeError, "Sequential: expected rule to be a Rule"),
        (lambda: tt.Sequential(tt.LIF(N, H), nn.RNN(H, H)), TypeError, "got RNN, whose state over time would be lost"),
        (
            lambda: tt.Sequential(tt.LIF(N, H), nn.Sequential(tt.LIF(H, H))),
            TypeError,
            "Put layers of tracetorch directly in tt.Sequential",
        ),
        (lambda: tt.Sequential(tt.LIF(N, H), nn.ReLU(inplace=True)), TypeError, "got ReLU with inplace=True"),
        (
            lambda: tt.Sequential(tt.LIF(N, N), tt.LIF(N, H, recurrent=True), rule=tt.MeanRate()),
            ValueError,
            "Sequential, module 1: MeanRate: expected LIF without recurrent weights",
        ),
    ],
)
def test_bad_models_are_refused(build: Callable[[], object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        build()


def test_a_layer_in_two_places_is_refused() -> None:
    layer = tt.LIF(N, N)
    with pytest.raises(ValueError, match="expected each layer once"):
        tt.Sequential(layer, layer)


@pytest.mark.parametrize("rule", [tt.MeanField(), tt.Eligibility()], ids=str)
def test_a_softmax_below_others_is_refused_when_a_stream_begins(rule: tt.rules.Rule) -> None:
    model = tt.Sequential(tt.Softmax(N, H), tt.LI(H, M), rule=rule)
    with pytest.raises(ValueError, match=r"module 0: .*: expected a Softmax to be the last layer, got one below"):
        model(torch.ones(B, N))
    assert model[0].mem is None
    model.eval()
    model(torch.ones(B, N))  # without learning there is nothing to refuse


def test_a_perfect_integrator_that_feeds_another_is_refused() -> None:
    model = tt.Sequential(tt.LIF(N, H), tt.LIF(H, H, beta=1.0), tt.LI(H, M, beta=1.0), rule=tt.MeanField())
    message = r"module 1: .*: expected at most one perfect integrator .* got one that feeds another"
    with pytest.raises(ValueError, match=message):
        model(torch.ones(B, N))
    assert model[0].mem is None
    model.rule = tt.Eligibility()
    model(torch.ones(B, N))
    with pytest.raises(ValueError, match=message):
        model.backward(torch.ones(B, M))
    assert model[1].weight.grad is None
    lowest = model[1:]  # with nothing below there is nothing to hand down
    lowest(torch.ones(B, H))
    lowest.backward(torch.ones(B, M))


@pytest.mark.parametrize(
    ("rule", "betas"),
    [
        (tt.MeanField(), (1.0, 0.5, 0.9)),
        (tt.MeanField(), (0.7, 1.0, 0.5, 0.9)),
        (tt.Eligibility(), (0.7, 1.0, 0.5, 0.9)),
    ],
    ids=str,
)
def test_a_perfect_integrator_under_leaky_layers_is_accepted(rule: tt.rules.Rule, betas: tuple[float, ...]) -> None:
    layers = [tt.LIF(N if i == 0 else H, H, beta=beta) for i, beta in enumerate(betas[:-1])]
    model = tt.Sequential(*layers, tt.LI(H, M, beta=betas[-1]), rule=rule)
    model(torch.ones(B, N))
    model.backward(torch.ones(B, M))


@pytest.mark.parametrize(
    ("build", "kind", "message"),
    [
        (lambda: tt.MeanField(nodes=0), ValueError, "MeanField: expected nodes to be a whole number of at least 1"),
        (lambda: tt.Eligibility(nodes=2.5), TypeError, "Eligibility: expected nodes to be a whole number"),
        (lambda: tt.InputTrace(nodes=-1), ValueError, "InputTrace: expected nodes to be a whole number of at least 1"),
        (lambda: tt.MeanField(span=(0.0, 5.0)), ValueError, r"expected span to be the shortest .* got \(0.0, 5.0\)"),
        (lambda: tt.MeanField(span=(9.0, 5.0)), ValueError, r"Give for example span=\(2.0, 50.0\)"),
        (lambda: tt.InputTrace(span=(2.0, float("inf"))), ValueError, "InputTrace: expected span"),
        (
            lambda: tt.MeanField(hops=-1),
            ValueError,
            "MeanField: expected hops, .* a whole number of at least 1",
        ),
        (
            lambda: tt.Eligibility(paths="some"),
            ValueError,
            "Eligibility: expected paths to be 'all' or 'own', got 'some'",
        ),
        (
            lambda: tt.Sequential(tt.LI(N, M), horizon=0),
            ValueError,
            "Sequential: expected horizon to be a whole number",
        ),
        (lambda: tt.Concat(tt.LI(N, M), horizon=1.5), TypeError, "Concat: expected horizon to be a whole number"),
        (lambda: setattr(tt.LI(N, M), "horizon", -3), ValueError, "LI: expected horizon to be a whole number"),
        (lambda: tt.LI(N, M).break_even(window=0), ValueError, "expected window to be a whole number of at least 1"),
        (lambda: tt.Concat(), ValueError, "Concat: expected at least one layer of tracetorch, got none"),
        (lambda: tt.Concat(nn.Linear(N, M)), ValueError, "Concat: expected at least one layer of tracetorch"),
        (
            lambda: tt.Concat(tt.LIF(N, H), nn.BatchNorm1d(N)),
            TypeError,
            "Concat, module 1: expected modules that treat each step and lane by itself, got BatchNorm1d",
        ),
        (
            lambda: tt.Sequential(nn.Flatten(), tt.LI(N, M)).break_even(),
            ValueError,
            "expected a model that starts with a layer",
        ),
    ],
)
def test_bad_rules_horizons_and_branches_are_refused(
    build: Callable[[], object], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        build()


def test_branches_of_other_shapes_are_refused_and_leave_the_state() -> None:
    model = tt.Concat(tt.LIF(N, H), tt.Sequential(tt.LIF(N, H), nn.Unflatten(-1, (H, 1))))
    with pytest.raises(
        ValueError, match=r"Concat: expected outputs that differ .* got the shapes \[\(3,\), \(3, 1\)\]"
    ):
        model(torch.ones(B, N))
    assert model[0].mem is None
    model = tt.Concat(tt.LIF(N, H), tt.LIF(N + 1, H))
    with pytest.raises(ValueError, match=r"Concat, module 1: LIF: expected 5 inputs, got \(4,\)"):
        model(torch.ones(B, N))
    assert model[0].mem is None


def test_a_branch_that_was_called_by_itself_is_noticed() -> None:
    model = tt.Sequential(tt.LIF(N, H), tt.Concat(tt.LI(H, 1), tt.LI(H, 1)))
    model(torch.ones(B, N))
    model[1][0](torch.ones(B, H))
    with pytest.raises(RuntimeError, match="module 1: Concat, module 0: LI: expected to be as the model's latest call"):
        model.backward(torch.ones(B, 2))
    model(torch.ones(B, N))
    model[1](torch.ones(B, H))
    with pytest.raises(RuntimeError, match="module 1: Concat: expected to be as the model's latest call"):
        model.backward(torch.ones(B, 2))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: None,
        lambda nodes: {"0": nodes["0"]},
        lambda nodes: nodes | {"0": ["a"]},
        lambda nodes: nodes | {"0": [0.5, 1.5]},
        lambda nodes: nodes | {"0": [[0.5]]},
        lambda nodes: nodes | {"0": [float("nan")]},
        lambda _: [0.5],
    ],
)
def test_a_state_with_other_nodes_is_refused(spoil: Callable) -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LIF(N, H, learn_beta=True), tt.LI(H, M), rule=tt.Eligibility())
    model(torch.ones(B, N))
    model.backward(torch.ones(B, M))
    state = model.stream_state()
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"load_stream_state: expected the nodes of each layer's bank"),
    ):
        model.load_stream_state(state | {"nodes": spoil(state["nodes"])})


def test_a_state_with_fewer_nodes_is_refused_and_the_bank_stays() -> None:
    model = tt.Sequential(tt.LIF(N, H, learn_beta=True), tt.LI(H, M), rule=tt.MeanField())
    model(torch.ones(B, N))
    model.backward(torch.ones(B, M))
    state, nodes = model.stream_state(), model.banks()["0"].nodes
    state["nodes"]["0"] = state["nodes"]["0"][1:]
    with unchanged(model), pytest.raises(ValueError, match="Build the model as it was when the state was saved"):
        model.load_stream_state(state)
    assert torch.equal(model.banks()["0"].nodes, nodes)
    model.backward(torch.ones(B, M))


@pytest.mark.parametrize("version", [1, 2, 4])
def test_states_of_other_versions_are_refused(version: int) -> None:
    model = make()
    with unchanged(model), pytest.raises(ValueError, match=f"expected a stream state of version 3, got {version}"):
        model.load_stream_state(model.stream_state() | {"version": version})


def test_sizes_that_do_not_fit_are_refused_and_leave_the_layers_below_as_they_were() -> None:
    model = tt.Sequential(tt.LIF(N, H), tt.LI(H + 1, M))
    with pytest.raises(
        ValueError, match=r"Sequential, module 1: LI: expected 4 inputs, got \(3,\) from the module below"
    ):
        model(torch.ones(B, N))
    assert model[0].mem is None


def with_entry(state: dict, entry: object) -> dict:
    return state | {"tensors": state["tensors"] | {"0": state["tensors"]["0"] | {"neuron.mem": entry}}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda s: s | {"version": 0}, "expected a stream state of version 3, got 0"),
        (lambda _: {}, "expected a stream state of version 3, got None"),
        (lambda _: torch.ones(1), "expected a stream state of version 3, got Tensor"),
        (lambda s: s | {"layers": {"0": "LIF"}}, "expected the state of a model with the layers .*LIF with InputTrace"),
        (lambda s: s | {"lanes": None}, "Build the model as it was"),
        (lambda s: s | {"lanes": 3}, r"module 0 \(LIF\): expected tensors of the shapes .*\(3, 3\).*, got .*\(2, 3\)"),
        (
            lambda _: {"version": 3},
            r"expected a stream state, got a dictionary without \['lanes', 'layers', 'nodes', 'tensors'\]",
        ),
        (lambda s: with_entry(s, torch.full((B, H), float("nan"))), "expected finite numbers in neuron.mem"),
        (lambda s: s | {"tensors": {"0": s["tensors"]["0"]}}, r"tensors for each of the layers \['0', '1'\]"),
        (lambda s: s | {"tensors": None}, "tensors for each of the layers"),
        (lambda s: s | {"tensors": {"0": 5, "1": 5}}, "tensors for each of the layers"),
        (lambda s: s | {"lanes": "2"}, "expected lanes to be a whole number of at least 1, got '2'"),
        (lambda s: s | {"lanes": -2}, "expected lanes to be a whole number of at least 1, got -2"),
        (lambda s: with_entry(s, [0.0]), "expected neuron.mem to be a torch.Tensor, got list"),
        (
            lambda s: s | {"tensors": {k: {n: t[:, :1] for n, t in v.items()} for k, v in s["tensors"].items()}},
            "Build the model as it was when the state was saved",
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused(spoil: Callable[[dict], dict], message: str) -> None:
    model = make()
    state = spoil(model.stream_state())
    with unchanged(model), pytest.raises((ValueError, TypeError), match=message):
        model.load_stream_state(state)


def test_probs_before_a_call_are_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Softmax.probs: expected a call before"):
        _ = tt.Softmax(2, 2).probs


@pytest.mark.parametrize(("lanes", "window"), [(0, 1), (1, 0)])
def test_counting_bytes_of_nothing_is_refused(lanes: int, window: int) -> None:
    with pytest.raises(ValueError, match=r"tape_bytes: expected (lanes|window) to be a whole number of at least 1"):
        make().tape_bytes(lanes, window)


def test_counting_bytes_of_unknown_inputs_is_refused() -> None:
    model = tt.Sequential(nn.Flatten(), tt.LIF(N, H))
    with pytest.raises(ValueError, match="expected a model that starts with a layer"):
        model.tape_bytes()
    with pytest.raises(ValueError, match=r"expected x of shape \(B, ...\), got \(\)"):
        model(torch.ones(()))


def test_a_window_that_is_not_finite_is_refused() -> None:
    model = make()
    x = torch.ones(3, B, N)
    x[1, 0, 2] = float("nan")
    with (
        unchanged(model),
        pytest.raises(ValueError, match=r"got 1 that are not, the first \(nan\) at index \(1, 0, 2\)"),
    ):
        model.window(x)


def test_a_masked_reset_of_layers_with_different_lanes_is_refused() -> None:
    model = make()
    model.reset()
    model[0](torch.ones(2, N))
    model[1](torch.ones(3, H))
    with pytest.raises(RuntimeError, match=r"expected a call before reset\(mask\), got layers with \[2, 3\] lanes"):
        model.reset(torch.ones(2, dtype=torch.bool))


def test_a_refused_construction_leaves_the_layers_as_they_were() -> None:
    below, above = tt.LIF(N, N), tt.LIF(N, H, recurrent=True)
    with pytest.raises(ValueError, match="module 1: MeanRate: expected LIF without recurrent weights"):
        tt.Sequential(below, above, rule=tt.MeanRate())
    model = tt.Sequential(below, above, rule=tt.Truncated())
    assert [layer.rule for layer in model] == [tt.Truncated(), tt.Truncated()]
    with pytest.raises(ValueError, match="module 1: MeanRate: expected LI to have beta below 1"):
        tt.Sequential(below, tt.LI(N, M, beta=1.0), rule=tt.MeanRate(learn_decay=True))
    assert not below.learns("decay")


def test_a_refused_rule_leaves_the_model_as_it_was() -> None:
    model = tt.Sequential(tt.LIF(N, H, recurrent=True), tt.LI(H, M), rule=tt.Truncated())
    with pytest.raises(ValueError, match="module 0: MeanRate"):
        model.rule = tt.MeanRate()
    assert model.rule == model[0].rule == tt.Truncated()


def test_a_refused_calibration_changes_no_weight() -> None:
    model = tt.Sequential(tt.LIF(N, H), tt.LI(H + 1, M))
    weight = model[0].synapse.weight.clone()
    with pytest.raises(ValueError, match=r"module 1: LI: expected 4 inputs, got \(3,\)"):
        model.calibrate(torch.rand(5, B, N))
    assert torch.equal(model[0].synapse.weight, weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda model: model.append(nn.BatchNorm1d(M)), "module 3: expected modules that treat each step and lane"),
        (lambda model: model.append(model[0]), "expected each layer once"),
        (lambda model: model.insert(1, nn.LSTM(H, H)), "got LSTM, whose state over time would be lost"),
        (lambda model: model.__setitem__(0, nn.ReLU(inplace=True)), "got ReLU with inplace=True"),
        (lambda model: model.__delitem__(slice(None)), "expected at least one layer of tracetorch"),
        (
            lambda model: model.extend([tt.LI(M, M), nn.BatchNorm1d(M)]),
            "expected modules that treat each step and lane",
        ),
        (lambda model: model.__iadd__([nn.BatchNorm1d(M)]), "expected modules that treat each step and lane"),
        (lambda model: model.add_module("head", nn.LSTM(M, M)), "got LSTM, whose state over time would be lost"),
        (lambda model: model.__setitem__(1, nn.BatchNorm1d(M)), "expected modules that treat each step and lane"),
        (lambda model: model * 2, "expected no repetition of layers"),
        (lambda model: model.append(tt.LI(M, M, beta=1.0)), "MeanRate: expected LI to have beta below 1"),
    ],
)
def test_a_refused_change_of_the_modules_is_undone(change: Callable[[tt.Sequential], object], message: str) -> None:
    model = tt.Sequential(tt.LIF(N, H), nn.Tanh(), tt.LI(H, M), rule=tt.MeanRate())
    y = model(torch.ones(B, N))
    modules = list(model)
    with pytest.raises((ValueError, TypeError), match=message):
        change(model)
    assert list(model) == modules
    model.backward(torch.ones_like(y))


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(2)


@pytest.mark.parametrize(
    ("module", "kind", "message"),
    [
        (InPlace(), TypeError, "module 1: InPlace: expected a module that leaves its input as it is"),
        (nn.Flatten(0), ValueError, "module 1: Flatten: expected as many rows as came, 2"),
        (nn.InstanceNorm1d(H, track_running_stats=True), TypeError, "got InstanceNorm1d with statistics of the batch"),
    ],
)
def test_a_module_that_is_no_function_of_each_row_is_refused(
    module: nn.Module, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        tt.Sequential(tt.LIF(N, H), module, tt.LI(H, M))(torch.ones(B, N))


def test_calibrating_a_shared_synapse_is_refused() -> None:
    synapse = nn.Linear(N, N)
    before = synapse.weight.clone()
    with pytest.raises(ValueError, match="expected each layer to have weights of its own"):
        tt.Sequential(tt.LI(synapse=synapse), tt.LI(synapse=synapse)).calibrate(torch.rand(3, B, N))
    assert torch.equal(synapse.weight, before)


def test_a_dropout_switched_off_between_forward_and_backward_is_noticed() -> None:
    model = tt.Sequential(tt.LIF(N, H), nn.Dropout(), tt.LI(H, M))
    y = model(torch.ones(B, N))
    model[1].eval()
    with pytest.raises(RuntimeError, match="module 1: Dropout: expected to be as the model's latest call left it"):
        model.backward(torch.ones_like(y))


def test_backward_after_calibrate_is_refused() -> None:
    model = make()
    model.calibrate(torch.rand(3, B, N))
    with pytest.raises(RuntimeError, match=r"but calibrate\(\) changed the weights after the latest"):
        model.backward(torch.ones(B, M))


def test_a_state_of_another_kind_of_layer_is_refused() -> None:
    layer = tt.LIF(N, N)
    layer(torch.ones(B, N))
    with pytest.raises(ValueError, match=r"expected the state of a model with the layers .*LI with InputTrace"):
        tt.LI(N, N).load_stream_state(layer.stream_state())


def test_a_childs_masked_reset_ends_the_models_call() -> None:
    model = make()
    model(torch.ones(B, N))
    model[0].reset(torch.tensor([True, False]))
    with pytest.raises(RuntimeError, match="module 0: LIF: expected to be as the model's latest call left it"):
        model.backward(torch.ones(B, M))

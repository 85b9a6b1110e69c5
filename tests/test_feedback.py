"""feedback="random": signals go down through fixed random matrices in place of the weights' transposes."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tracetorch as tt
from cases import CONCAT, DEEP, F64, HIDDEN, RECURRENT, Case, M, N, T, hidden
from checks import equals_bptt, gradients_of
from tracetorch import testing
from tracetorch.nn.online import Online
from tracetorch.rules import Rule

RULES = [kind(feedback="random") for kind in (tt.InputTrace, tt.Truncated, tt.MeanField, tt.Eligibility, tt.MeanRate)]
EXACT = RULES[:4]


class _FeedbackProduct(torch.autograd.Function):
    """x W^T forwards, g times the feedback backwards."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
        ctx.save_for_backward(x, feedback)
        return x @ weight.t()

    @staticmethod
    def backward(ctx, g: Tensor):
        x, feedback = ctx.saved_tensors
        return g @ feedback, g.t() @ x, None


class FeedbackLinear(nn.Module):
    def __init__(self, linear: nn.Linear, feedback: Tensor) -> None:
        super().__init__()
        self.weight, self.bias, self.feedback = linear.weight, linear.bias, feedback

    def forward(self, x: Tensor) -> Tensor:
        y = _FeedbackProduct.apply(x, self.weight, self.feedback)
        return y if self.bias is None else y + self.bias


def reference(model: Online, x: Tensor, ls: Tensor, input_gradient: bool = False) -> testing.Gradients:
    """BPTT of the model with the transposed weights replaced; those of recurrent weights are not."""
    other = copy.deepcopy(model)
    for layer in other._layers().values():
        layer.synapse = FeedbackLinear(layer.synapse, layer.feedback)
    return testing.bptt_gradients(other, x, ls, input_gradient=input_gradient)


def two_layers(rule: Rule | None) -> tt.Sequential:
    return tt.Sequential(hidden(), tt.LI(HIDDEN, M, beta=0.95, **F64), rule=rule)


CASES = [DEEP[0], DEEP[3], DEEP[5], DEEP[6], RECURRENT[2], CONCAT[0]]


@pytest.mark.parametrize("rule", EXACT, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_gradient_is_bptts_with_the_transposes_replaced(case: Case, rule: Rule) -> None:
    model, x, ls = case.make(rule)
    expected = reference(model, x, ls, input_gradient=True)
    testing.assert_gradients_close(testing.online_gradients(model, x, ls, T, input_gradient=True), expected)
    del expected["x"]
    model.horizon = T
    testing.assert_gradients_close(testing.online_gradients(model, x, ls, 4), expected)
    with pytest.raises(AssertionError, match="cosine"):
        equals_bptt(model, x, ls, T)


@pytest.mark.parametrize("window", [1, 4])
def test_eligibility_is_exact_with_it_too(window: int) -> None:
    """Where it is with symmetric feedback: one hidden layer under a readout with one beta."""
    model, x, ls = Case("", two_layers).make(tt.Eligibility(feedback="random"))
    testing.assert_gradients_close(testing.online_gradients(model, x, ls, window), reference(model, x, ls))


def test_only_what_is_below_sees_it() -> None:
    """The uppermost layer's gradients are those with symmetric feedback; the others' are not."""
    model, x, ls = Case("", two_layers).make(tt.InputTrace(feedback="random"))
    random = testing.online_gradients(model, x, ls, 4)
    model.rule = tt.InputTrace()
    symmetric = testing.online_gradients(model, x, ls, 4)
    for name, gradient in symmetric.items():
        assert torch.allclose(random[name], gradient, rtol=1e-3) == name.startswith("1."), name


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_the_matrices_are_fixed(rule: Rule) -> None:
    """Of the weights' shape and scale; neither time nor the optimizer nor a call changes them."""
    torch.manual_seed(0)
    model = tt.Sequential(tt.LIF(50, 40), tt.LI(40, 30), rule=rule)
    for layer in model:
        assert layer.feedback.shape == layer.weight.shape
        torch.testing.assert_close(layer.feedback.std(), layer.weight.std(), rtol=0.1, atol=0)
        assert abs((layer.feedback * layer.weight).mean() / layer.weight.var()) < 0.1  # drawn independently
        assert not layer.feedback.requires_grad
    before = [layer.feedback.clone() for layer in model]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        model.backward(torch.ones_like(model.window(torch.rand(4, 2, 50))))
        optimizer.step()
        model.reset()
    model.rule = tt.Eligibility(feedback="random", nodes=3)  # another rule that has them
    for layer, feedback in zip(model, before, strict=True):
        assert torch.equal(layer.feedback, feedback)
    assert {name for name, _ in model.named_parameters()} == {
        f"{i}.synapse.{kind}" for i in (0, 1) for kind in ("weight", "bias")
    }


def test_they_are_in_the_state_dict_and_leave_with_the_rule() -> None:
    model, other = (two_layers(tt.InputTrace(feedback="random")) for _ in range(2))
    assert {"0.feedback", "1.feedback"} <= set(model.state_dict())
    assert not torch.equal(model[0].feedback, other[0].feedback)
    other.load_state_dict(model.state_dict())
    x, ls = torch.rand(T, 2, N, **F64), torch.randn(T, 2, M, **F64)
    testing.assert_gradients_close(*(testing.online_gradients(m, x, ls, 3) for m in (model, other)))
    model.rule = tt.InputTrace()
    assert not any("feedback" in name for name in model.state_dict())
    testing.assert_gradients_close(
        testing.online_gradients(model, x, ls, 3),
        testing.online_gradients(model.__class__(*model), x, ls, 3),
    )
    with pytest.raises(RuntimeError, match="feedback"):
        model.load_state_dict(other.state_dict())


def test_a_layers_own_rule_decides() -> None:
    model = tt.Sequential(
        hidden(), tt.LI(HIDDEN, M, rule=tt.rules.EProp(feedback="random"), **F64), rule=tt.Eligibility()
    )
    assert not hasattr(model[0], "feedback")
    assert model[1].feedback.shape == (M, HIDDEN)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_have_the_same(duplicate) -> None:
    model, x, ls = Case("", two_layers).make(tt.Eligibility(feedback="random"))
    model.window(x[:5])
    other = duplicate(model)
    for part in (model, other):
        part.window(x[5:])
        part.backward(ls[5:])
    testing.assert_gradients_close(gradients_of(other), gradients_of(model))


def test_they_move_with_the_weights() -> None:
    model = two_layers(tt.InputTrace(feedback="random")).float()
    assert model[0].feedback.dtype == torch.float32
    model(torch.rand(2, N))
    model.backward(torch.ones(2, M), input_signal=True)


def test_weights_align_with_the_feedback() -> None:
    """Feedback alignment: learning turns the readout's weights towards the matrix that its error goes down through."""
    torch.manual_seed(0)
    model = tt.Sequential(
        tt.LI(10, 20, beta=0.0), nn.Tanh(), tt.LI(20, 5, beta=0.0), rule=tt.Truncated(feedback="random")
    )
    teacher = torch.randn(5, 10) / 3
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    readout = model[2]

    def alignment() -> float:
        return F.cosine_similarity(readout.weight.flatten(), readout.feedback.flatten(), 0).item()

    before = alignment()
    for _ in range(300):
        x = torch.randn(64, 10)
        _, ls = tt.loss.mse(model(x), x @ teacher.t())
        model.backward(ls)
        optimizer.step()
        optimizer.zero_grad()
    assert alignment() > before + 0.2


@pytest.mark.parametrize("rule", [tt.InputTrace, tt.Truncated, tt.MeanField, tt.Eligibility, tt.MeanRate])
def test_another_word_is_refused(rule: type[Rule]) -> None:
    with pytest.raises(
        ValueError, match=f"{rule.__name__}: expected feedback to be 'symmetric' or 'random', got 'none'"
    ):
        rule(feedback="none")

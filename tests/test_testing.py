"""The public test tools say what is wrong, and where."""

import pytest
import torch

import tracetorch as tt
from cases import F64, HIDDEN, M, N, hidden
from tracetorch import testing
from tracetorch.nn.constraint import membrane_decay


def test_a_difference_is_reported_with_its_place() -> None:
    expected = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.ones(2)}
    actual = {"w": torch.tensor([[1.0, 2.0], [3.5, 4.0]]), "b": torch.ones(2)}
    with pytest.raises(AssertionError, match=r"w: cosine 0\.99\d+, .* worst entry \(1, 0\): 3.5 where 3"):
        testing.assert_gradients_close(actual, expected)
    with pytest.raises(AssertionError) as error:
        testing.assert_gradients_close(actual, expected)
    assert "b: cosine" not in str(error.value)


def test_a_wrong_norm_is_seen_where_the_cosine_is_one() -> None:
    (row,) = testing.compare({"w": torch.full((3,), 0.81)}, {"w": torch.full((3,), 0.80)})
    assert row.cosine == pytest.approx(1)
    assert row.norm_ratio == pytest.approx(0.81 / 0.80)


@pytest.mark.parametrize(
    ("actual", "cosine", "ratio"), [([0.0, 0.0], 0.0, 0.0), ([1.0, 0.0], 1.0, 1.0), ([-1.0, 0.0], -1.0, 1.0)]
)
def test_edges_of_the_comparison(actual: list[float], cosine: float, ratio: float) -> None:
    (row,) = testing.compare({"w": torch.tensor(actual)}, {"w": torch.tensor([1.0, 0.0])})
    assert (row.cosine, row.norm_ratio) == (cosine, ratio)


def test_two_zeros_agree_and_a_zero_reference_does_not_hide() -> None:
    zero, one = {"w": torch.zeros(2)}, {"w": torch.ones(2)}
    assert testing.compare(zero, zero)[0].cosine == 1.0
    assert testing.compare(one, zero)[0].norm_ratio == float("inf")


def test_gradients_of_other_parameters_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected gradients of the same parameters, got \['a'\] and \['b'\]"):
        testing.compare({"a": torch.ones(1)}, {"b": torch.ones(1)})
    with pytest.raises(ValueError, match=r"expected a of one shape, got \(1,\) and \(2,\)"):
        testing.compare({"a": torch.ones(1)}, {"a": torch.ones(2)})


def test_the_reference_changes_nothing_and_omits_what_is_frozen() -> None:
    model = tt.Sequential(hidden(), tt.LI(HIDDEN, M, **F64))
    model[0].synapse.bias.requires_grad_(False)
    x, ls = torch.rand(4, 2, N, **F64), torch.randn(4, 2, M, **F64)
    gradients = testing.bptt_gradients(model, x, ls, input_gradient=True)
    assert "0.synapse.bias" not in gradients
    assert gradients["x"].shape == x.shape
    assert model[0].mem is None
    assert all(p.grad is None for p in model.parameters())
    testing.online_gradients(model, x, ls, 2)
    assert model[0].mem is None
    assert all(p.grad is None for p in model.parameters())


def test_a_layer_without_a_reference_is_named() -> None:
    class Own(tt.nn.layer.Layer):
        def __init__(self) -> None:
            super().__init__(N, M, tt.nn.li.LINeuron(), parameters=lambda m: membrane_decay("Own", 0.9, None, False, m))

    with pytest.raises(NotImplementedError, match=r"got Own\. Give its unrolled form"):
        testing.bptt_gradients(Own(), torch.ones(1, 1, N), torch.ones(1, 1, M))


def test_silent_and_saturated_layers_are_named() -> None:
    model = tt.Sequential(tt.LIF(N, HIDDEN, **F64), tt.LIF(HIDDEN, M, **F64))
    with torch.no_grad():
        model[0].synapse.bias.fill_(100)
        model[1].synapse.weight.fill_(-1)
    with pytest.raises(AssertionError, match=r"got \{'0': '1.0000', '1': '0.0000'\}. model.calibrate\(x\)"):
        testing.assert_alive(model, torch.rand(5, 2, N, **F64))


def test_live_storage_counts_what_is_kept_and_no_more() -> None:
    with testing.LiveStorage() as live:
        kept = [torch.zeros(100) for _ in range(3)]
        view = kept[0][:10]
        del kept[0]
        torch.ones(1000).mul(2)
        assert live.bytes == 1200
        del view
        assert live.bytes == 800


def test_a_silent_network_is_noticed_where_nothing_is_learned() -> None:
    model = tt.Sequential(tt.LIF(N, HIDDEN, **F64)).eval()
    with tt.no_learning(), torch.inference_mode(), pytest.raises(AssertionError, match=r"got .*'0': '0.0000'"):
        testing.assert_alive(model, torch.zeros(5, 2, N, **F64))


def test_neither_inference_mode_nor_autocast_changes_what_is_compared() -> None:
    torch.manual_seed(0)
    model = tt.Sequential(tt.LIF(N, HIDDEN), torch.nn.Linear(HIDDEN, M))
    x, ls = torch.rand(6, 2, N), torch.randn(6, 2, M)
    expected = testing.bptt_gradients(model, x, ls)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        testing.assert_gradients_close(testing.bptt_gradients(model, x, ls), expected, rtol=1e-6, atol=1e-6)
        testing.assert_gradients_close(testing.online_gradients(model, x, ls, 2), expected, rtol=1e-4, atol=1e-5)

"""The report of how close each rule comes to BPTT: it says what is exact, and does not say it of what is not."""

import pytest
import torch

import tracetorch as tt
from cases import DEEP, F64, HIDDEN, Case, M, hidden
from tracetorch import testing

SHALLOW = Case("LIF, LI", lambda rule: tt.Sequential(hidden(), tt.LI(HIDDEN, M, beta=0.95, **F64), rule=rule))


def report(case: Case, **options: object):
    model, x, _ = case.make(tt.InputTrace())
    target = torch.arange(x.shape[1]) % M
    weights = tt.loss.last(len(x), dtype=torch.float64)
    found = testing.fidelity(model, x, lambda y: tt.loss.cross_entropy(y, target, weights), **options)
    return model, x, found


def test_it_names_what_is_exact_and_nothing_else() -> None:
    _, _, found = report(SHALLOW, windows=(1, 4))
    for window in (1, 4):
        for row in found.only(rule="Eligibility()", window=window):
            assert (row.cosine, row.norm_ratio) == pytest.approx((1, 1), abs=1e-12), row
        lowest = found.only(window=window, parameter="0.synapse.weight")
        input_trace, truncated = (lowest.only(rule=rule).rows[0] for rule in ("InputTrace()", "Truncated()"))
        assert truncated.norm_ratio < input_trace.norm_ratio < 0.9


def test_with_the_horizon_of_the_sequence_every_rule_is_bptt() -> None:
    _, _, found = report(DEEP[3], windows=(4,), horizons=(21,))
    ours = [row for row in found if row.rule not in (testing.ATTACHED, testing.ADAM)]
    assert {row.rule for row in ours} == {"Truncated()", "InputTrace()", "MeanField()", "Eligibility()"}
    for row in ours:
        assert (row.cosine, row.norm_ratio) == pytest.approx((1, 1), abs=1e-10), row


def test_the_references_are_other_gradients() -> None:
    _, _, found = report(SHALLOW, windows=(1, 3))
    attached, adam = (
        found.only(rule=name, parameter="0.synapse.weight").rows for name in (testing.ATTACHED, testing.ADAM)
    )
    assert [row.window for row in attached] == [21]
    assert attached[0].cosine < 0.9999
    assert [row.window for row in adam] == [1]
    assert 0 < adam[0].cosine < 0.99


def test_the_reset_matters_only_where_neurons_spike_more_than_once() -> None:
    """With the reset attached, a single step has the same gradient."""
    model, x, ls = SHALLOW.make(tt.InputTrace())
    for steps, alike in ((1, True), (21, False)):
        both = [testing.bptt_gradients(model, x[:steps], ls[:steps], reset=reset) for reset in ("detached", "attached")]
        assert all(torch.allclose(a, b) for a, b in zip(*(g.values() for g in both), strict=True)) == alike


def test_along_a_training_run_and_with_weights_that_move() -> None:
    model, x, _ = SHALLOW.make(tt.InputTrace())
    before = {name: p.clone() for name, p in model.named_parameters()}

    def loss(y: torch.Tensor) -> tt.loss.Loss:
        return tt.loss.mse(y, torch.ones_like(y))

    found = testing.fidelity(model, x, loss, rules=[tt.Eligibility()], lr=1e-3, updates=4, every=2)
    assert {row.update for row in found} == {0, 2, 4}
    assert len({row.cosine for row in found.only(rule=testing.ATTACHED, parameter="0.synapse.weight")}) == 3
    moved = found.only(rule="Eligibility(), weights moving", update=0)
    moving = [row for row in moved if row.parameter.endswith("weight")]
    assert all(row.cosine > 0.5 for row in moving), moving
    assert min(row.cosine for row in moving) < 1 - 1e-6
    assert found.markdown().startswith("| update | rule |")
    torch.testing.assert_close(dict(model.named_parameters()), before)
    assert all(p.grad is None for p in model.parameters())


def test_the_table_has_a_line_per_rule_window_and_horizon() -> None:
    _, _, found = report(SHALLOW, rules=[tt.InputTrace(), tt.rules.OTPE()], windows=(1, 3), horizons=(None, 7))
    lines = found.markdown().splitlines()
    assert lines[0].startswith("| rule | K | H | `0.")
    assert len(lines) == 2 + 2 + 2 * 2 * 2
    assert any(line.startswith("| OTPE() | 3 | 7 | ") for line in lines)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": (0,)}, "fidelity: expected windows to be a whole number of at least 1, got 0"),
        ({"horizons": (0,)}, "fidelity: expected horizons to be a whole number of at least 1, got 0"),
        ({"lr": 0.1}, "expected lr and updates together, got lr=0.1 and updates=0"),
        ({"updates": 3}, "expected lr and updates together, got lr=None and updates=3"),
        ({"rules": [tt.MeanRate()]}, "MeanRate: expected LI to have beta below 1"),
    ],
)
def test_bad_requests_are_refused(options: dict, message: str) -> None:
    case = Case("", lambda rule: tt.Sequential(hidden(), tt.LI(HIDDEN, M, beta=1.0, **F64), rule=rule))
    with pytest.raises(ValueError, match=message):
        report(case, **options)


def test_names_from_the_literature_are_what_they_say() -> None:
    rules = tt.rules
    named = [rules.SLTT(), rules.OTTT(), rules.OSTL(), rules.OTPE(), rules.EProp(), rules.EProp(feedback="random")]
    _, _, found = report(DEEP[3], rules=[tt.Truncated(), tt.InputTrace(), tt.Eligibility(), *named])
    by_rule: dict[str, list[tuple[float, float]]] = {}
    for row in found:
        by_rule.setdefault(row.rule, []).append((row.cosine, row.norm_ratio))
    assert by_rule["SLTT()"] == by_rule["Truncated()"]
    assert by_rule["OTTT()"] == by_rule["OSTL()"] == by_rule["InputTrace()"]
    assert by_rule["OTPE()"] == by_rule["EProp()"]  # without recurrent weights

    def lowest(rule: str) -> float:
        return found.only(rule=rule, parameter="0.synapse.weight").rows[0].norm_ratio

    assert lowest("InputTrace()") < lowest("OTPE()") < lowest("Eligibility()")
    top = found.only(rule="OTPE()", parameter="2.synapse.weight").rows[0]
    assert top.cosine == pytest.approx(1, abs=1e-10)  # one layer below the readout it is exact

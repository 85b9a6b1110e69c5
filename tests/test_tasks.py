"""Tasks over time: their shapes, their rates, their answers, their generators."""

from itertools import permutations

import pytest
import torch

from tracetorch import tasks

TASKS = [tasks.delayed_cue, tasks.evidence_accumulation, tasks.order_of_patterns, tasks.copy_memory]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("task", TASKS)
def test_the_generator_decides(task) -> None:
    before = torch.get_rng_state()
    one, same, other = (task(8, delay=20, generator=generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(map(torch.equal, one, same))
    assert not torch.equal(one.x, other.x)
    assert not torch.equal(one.target, other.target)
    assert torch.equal(one.weights, other.weights)


@pytest.mark.parametrize(
    ("task", "steps", "inputs", "answer"),
    [(TASKS[0], 65, 41, 5), (TASKS[1], 2250, 40, 150), (TASKS[2], 65, 41, 5), (TASKS[3], 70, 9, 10)],
)
def test_shapes_and_weights(task, steps: int, inputs: int, answer: int) -> None:
    x, target, weights = task(3)
    assert x.shape == (steps, 3, inputs)
    assert x.dtype == torch.get_default_dtype()
    assert set(x.unique().tolist()) == {0.0, 1.0}
    assert (target.shape, target.dtype) == ((steps, 3) if task is tasks.copy_memory else (3,), torch.int64)
    assert weights.shape == (steps,)
    assert weights.nonzero().flatten().tolist() == list(range(steps - answer, steps))
    assert weights.sum().item() == pytest.approx(1)
    assert weights[-answer:].unique().numel() == 1


def many_cues(**options) -> tasks.Sequences:
    """Many lanes of few steps."""
    sizes = {"cue": 4, "pause": 3, "delay": 6, "answer": 5, "group": 2}
    return tasks.evidence_accumulation(4000, **sizes | options, generator=generator())


def test_the_classes_are_equally_frequent() -> None:
    copied = tasks.copy_memory(4000, length=1, delay=1, generator=generator())
    for target in (
        tasks.delayed_cue(4000, delay=0, generator=generator()).target,
        many_cues().target,
        tasks.order_of_patterns(4000, patterns=3, channels=6, generator=generator()).target,
        copied.target[-1],
    ):
        frequency = torch.bincount(target) / len(target)
        torch.testing.assert_close(frequency, torch.full_like(frequency, 1 / len(frequency)), atol=0.03, rtol=0)


# -- delayed_cue -------------------------------------------------------------------------------------------------------


def test_only_the_class_own_channels_fire_at_the_high_rate_and_only_during_the_cue() -> None:
    x, target, _ = tasks.delayed_cue(2000, rate=0.4, noise=0.05, generator=generator())
    channels, own = x[..., :40], torch.arange(40) // 10 == target[:, None]  # (T, B, 40), (B, 40)
    rates = {
        "cue, own": channels[:10, own].mean(),
        "cue, others": channels[:10, ~own].mean(),
        "delay": channels[10:60].mean(),
        "answer": channels[60:].mean(),
    }
    expected = {"cue, own": 0.4, "cue, others": 0.05, "delay": 0.05, "answer": 0.05}
    assert {name: rate.item() for name, rate in rates.items()} == pytest.approx(expected, abs=0.005)
    each_step = channels.mean((1, 2))
    assert each_step[:10].tolist() == pytest.approx([0.1375] * 10, abs=0.01)
    assert each_step[10:].tolist() == pytest.approx([0.05] * 55, abs=0.01)


def test_the_go_signal_comes_with_the_answer() -> None:
    x = tasks.delayed_cue(2, cue=3, delay=0, answer=4, channels=8).x
    assert x.shape == (7, 2, 9)
    assert x[..., -1].T.tolist() == [[0, 0, 0, 1, 1, 1, 1]] * 2


def test_the_cue_names_the_class() -> None:
    x, target, _ = tasks.delayed_cue(500, classes=5, channels=15, rate=1.0, noise=0.0)
    assert torch.equal(x[0, :, :15].unflatten(-1, (5, 3)).mean(-1), torch.nn.functional.one_hot(target, 5).float())
    assert x[10:, :, :15].sum() == 0


# -- evidence_accumulation ---------------------------------------------------------------------------------------------


def test_each_cue_is_on_one_side_and_the_target_is_the_side_of_most() -> None:
    x, target, _ = many_cues(cues=5, rate=1.0, noise=0.0)
    shown = x[:35].unflatten(0, (5, 7)).unflatten(-1, (4, 2))  # (cue, step, B, group, input)
    assert shown[:, 4:].sum() == 0  # the pauses
    sides = shown[:, :4, :, :2]
    assert (sides == sides[:, :1, :, :, :1]).all()  # a cue does not change, and all of its group show it
    left, right = sides[:, 0, :, :, 0].unbind(-1)
    assert (left + right == 1).all()
    assert torch.equal(target, (right.sum(0) > left.sum(0)).long())


@pytest.mark.parametrize(("favoured", "share"), [(0.5, 0.5), (0.7, 0.58), (1.0, 1.0)])
def test_cues_of_a_lane_agree_as_often_as_they_should(favoured: float, share: float) -> None:
    x = many_cues(cues=3, favoured=favoured, rate=1.0).x
    right = x[: 3 * 7 : 7, :, 2]
    assert (right[0] == right[1]).float().mean().item() == pytest.approx(share, abs=0.03)  # p^2 + (1 - p)^2


def test_recall_and_noise_have_their_times_and_rates() -> None:
    x, target, _ = tasks.evidence_accumulation(400, generator=generator())
    left, right, recall, noise = x.unflatten(-1, (4, 10)).mean(-1).unbind(-1)  # (T, B) each
    assert noise.mean().item() == pytest.approx(0.01, abs=3e-4)
    assert noise.mean(1).min() > 0
    assert recall[:-150].sum() == 0
    assert recall[-150:].mean().item() == pytest.approx(0.04, abs=1e-3)
    assert left[1050:].sum() == right[1050:].sum() == 0
    in_cues = torch.arange(1050) % 150 < 100
    assert (left + right)[:1050][in_cues].mean().item() == pytest.approx(0.04, abs=1e-3)
    assert (left + right)[:1050][~in_cues].sum() == 0
    assert ((right - left).sum(0) > 0).long().eq(target).float().mean() > 0.97  # the counts of spikes tell nearly all


# -- order_of_patterns and copy_memory ---------------------------------------------------------------------------------


def test_the_order_is_read_off_through_noise_and_not_from_counts() -> None:
    x, target, _ = tasks.order_of_patterns(1000, patterns=3, channels=60, generator=generator())
    groups = x[..., :-1].unflatten(-1, (3, -1)).mean(-1)  # (T, B, pattern)
    shown = torch.stack([groups[begin : begin + 10].mean(0).argmax(-1) for begin in (0, 30, 60)], dim=1)
    orders = torch.tensor(list(permutations(range(3))))
    assert torch.equal(shown, orders[target])
    most = groups.sum(0).argmax(-1)
    told = (orders[target, 0] == most).float().mean().item()
    assert told == pytest.approx(1 / 3, abs=0.05)  # chance: the pattern with most spikes is any
    assert groups[70:].mean().item() == pytest.approx(0.05, abs=0.003)  # nothing is shown in the delay and the answer


def test_patterns_have_their_times() -> None:
    x = tasks.order_of_patterns(5, channels=4, pattern=3, gap=2, delay=4, answer=2, rate=1.0, noise=0.0).x
    assert x.shape == (14, 5, 5)
    assert x[..., :-1].sum(-1).T.tolist() == [[2, 2, 2, 0, 0, 2, 2, 2, 0, 0, 0, 0, 0, 0]] * 5
    assert x[..., -1].T.tolist() == [[0] * 12 + [1] * 2] * 5


def test_a_copy_needs_all_symbols_in_order() -> None:
    x, target, weights = tasks.copy_memory(500, symbols=4, length=3, delay=2, generator=generator())
    assert x[:3].sum(-1).eq(1).all()  # one symbol in each step
    asked = weights > 0
    assert torch.equal(x[:3, :, :4].argmax(-1), target[asked])
    for guess in (x[:1, :, :4].argmax(-1).expand(3, -1), torch.zeros(3, 500)):  # the first one again; always one
        right = guess.eq(target[asked]).float().mean(1)
        assert right[1:].tolist() == pytest.approx([0.25, 0.25], abs=0.06)


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("task", "options", "kind", "message"),
    [
        (TASKS[0], {"lanes": 0}, ValueError, "tasks.delayed_cue: expected lanes to be a whole number of at least 1"),
        (TASKS[0], {"cue": 1.5}, TypeError, "expected cue to be a whole number of at least 1, got 1.5"),
        (TASKS[0], {"answer": 0}, ValueError, "expected answer to be a whole number of at least 1, got 0"),
        (TASKS[0], {"delay": -1}, ValueError, "expected delay to be a whole number of at least 0, got -1"),
        (TASKS[0], {"delay": 0.5}, TypeError, "expected delay to be a whole number of at least 0, got 0.5"),
        (TASKS[0], {"channels": 41}, ValueError, "channels to be a multiple of classes, got 41 channels for 4 classes"),
        (TASKS[0], {"rate": 1.1}, ValueError, r"expected rate in \[0, 1\], got 1.1"),
        (TASKS[0], {"noise": -0.1}, ValueError, r"expected noise in \[0, 1\], got -0.1"),
        (TASKS[1], {"lanes": 0}, ValueError, "tasks.evidence_accumulation: expected lanes to be a whole number"),
        (TASKS[1], {"cues": 6}, ValueError, "expected an odd number of cues, got 6. With an even one there are ties"),
        (TASKS[1], {"pause": -1}, ValueError, "expected pause to be a whole number of at least 0, got -1"),
        (TASKS[1], {"group": 0}, ValueError, "expected group to be a whole number of at least 1, got 0"),
        (TASKS[1], {"rate": float("nan")}, ValueError, r"expected rate in \[0, 1\], got nan"),
        (TASKS[1], {"favoured": 2.0}, ValueError, r"expected favoured in \[0, 1\], got 2.0"),
        (TASKS[2], {"lanes": 0}, ValueError, "tasks.order_of_patterns: expected lanes to be a whole number"),
        (TASKS[2], {"patterns": 1}, ValueError, "expected two or more patterns, .* got 1 patterns and 40 channels"),
        (TASKS[2], {"patterns": 3}, ValueError, "a multiple of them, got 3 patterns and 40 channels"),
        (TASKS[2], {"gap": -1}, ValueError, "expected gap to be a whole number of at least 0, got -1"),
        (TASKS[2], {"delay": 0.5}, TypeError, "expected delay to be a whole number of at least 0, got 0.5"),
        (TASKS[2], {"rate": 1.5}, ValueError, r"expected rate in \[0, 1\], got 1.5"),
        (TASKS[3], {"lanes": 0}, ValueError, "tasks.copy_memory: expected lanes to be a whole number"),
        (TASKS[3], {"symbols": 2.5}, TypeError, "expected symbols to be a whole number of at least 1, got 2.5"),
        (TASKS[3], {"length": 0}, ValueError, "expected length to be a whole number of at least 1, got 0"),
        (TASKS[3], {"delay": 0}, ValueError, "expected delay to be a whole number of at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(task, options: dict, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        task(**{"lanes": 2} | options)

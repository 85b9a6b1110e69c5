"""Tasks over time, drawn anew at each call: what was shown must be remembered until the answer is asked for.

Shapes: T steps, B lanes, n inputs. All draw from a `generator`, by default torch's, on the generator's device.
"""

from __future__ import annotations

import operator
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor

from . import _checks


class Sequences(NamedTuple):
    """Sequences of spikes, one per lane, and what is to be answered."""

    x: Tensor  # (T, B, n) zeros and ones, torch's default dtype
    target: Tensor  # (B,) int64 classes; (T, B) where each step has its own
    weights: Tensor  # (T,) the loss's weights: equal where the answer is asked for, 0 elsewhere; they sum to 1


def delayed_cue(
    lanes: int,
    *,
    classes: int = 4,
    channels: int = 40,
    cue: int = 10,
    delay: int = 50,
    answer: int = 5,
    rate: float = 0.4,
    noise: float = 0.05,
    generator: torch.Generator | None = None,
) -> Sequences:
    """Which group of channels fired at the start? Asked after a delay.

        steps      cue                            delay        answer
        channels   the class' own at `rate`,      at `noise`   at `noise`
                   the others at `noise`
        go         0                              0            1

    The classes have `channels / classes` channels each, in order; the last of the `channels + 1` inputs is the go
    signal. T = cue + delay + answer. A delayed response, as in experiments on working memory; the sizes are ours.

    Args:
        lanes: B.
        classes: how many there are; each lane's is drawn with equal probability.
        channels: inputs that carry cues and noise, a multiple of `classes`.
        cue: steps during which the cue is shown.
        delay: steps between the cue and the answer, 0 or more.
        answer: steps of the answer; only there the weights are above 0.
        rate: spikes per step of the class' channels during the cue, in [0, 1].
        noise: spikes per step of all other channels, and of all of them after the cue, in [0, 1].
        generator: what everything is drawn with.

    Returns:
        x (T, B, channels + 1), target (B,), weights (T,).

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: a size below 1, a delay below 0, channels that do not divide into classes, a rate outside [0, 1].

    >>> x, target, weights = delayed_cue(3, classes=2, channels=4, cue=2, delay=1, answer=2, rate=1.0, noise=0.0)
    >>> (x[0, :, :4].reshape(3, 2, 2).mean(-1).argmax(-1) == target).all()
    tensor(True)
    >>> x[:, 0, -1], weights
    (tensor([0., 0., 0., 1., 1.]), tensor([0.0000, 0.0000, 0.0000, 0.5000, 0.5000]))
    """
    where = "tasks.delayed_cue"
    for name, size in (
        ("lanes", lanes),
        ("classes", classes),
        ("channels", channels),
        ("cue", cue),
        ("answer", answer),
    ):
        _checks.at_least_one(where, name, size)
    _at_least_zero(where, "delay", delay)
    _checks.fraction(where, "rate", rate)
    _checks.fraction(where, "noise", noise)
    if channels % classes:
        raise ValueError(
            f"{where}: expected channels to be a multiple of classes, got {channels} channels for {classes} classes. "
            f"Each class has channels / classes of them."
        )
    device = _device(generator)
    target = torch.randint(classes, (lanes,), generator=generator, device=device)
    group = torch.arange(channels, device=device) // (channels // classes)  # (channels,) whose channel it is
    probability = torch.full((cue + delay + answer, lanes, channels + 1), noise, device=device)
    probability[:cue, :, :channels] = torch.where(group == target[:, None], rate, noise)
    probability[..., -1] = 0
    probability[-answer:, :, -1] = 1
    return Sequences(
        torch.bernoulli(probability, generator=generator), target, _last_steps(cue + delay + answer, answer, device)
    )


def evidence_accumulation(
    lanes: int,
    *,
    cues: int = 7,
    cue: int = 100,
    pause: int = 50,
    delay: int = 1050,
    answer: int = 150,
    group: int = 10,
    rate: float = 0.04,
    noise: float = 0.01,
    favoured: float = 0.7,
    generator: torch.Generator | None = None,
) -> Sequences:
    """On which side were more cues? Left or right, asked after a delay.

        steps          cue, pause, cue, pause, ...                   delay      answer
        left (0)       at `rate` during the cues that are left       0          0
        right (1)      at `rate` during the cues that are right      0          0
        recall (2)     0                                             0          at `rate`
        noise (3)      at `noise`                                    at `noise` at `noise`

    Each of the four groups has `group` inputs, in this order. Each lane favours one side, drawn with equal probability;
    each of its cues is on that side with the probability `favoured`. T = cues (cue + pause) + delay + answer: by
    default 2,250 steps of 1 ms. After Bellec et al. 2020, "A solution to the learning dilemma for recurrent networks of
    spiking neurons" (doi:10.1038/s41467-020-17236-y), with their rates of 40 and 10 Hz; here the delay has one length.

    Args:
        lanes: B.
        cues: how many are shown, an odd number, so that one side has more.
        cue: steps of a cue.
        pause: steps after each cue without one, 0 or more.
        delay: steps between the last pause and the answer, 0 or more.
        answer: steps of the answer; only there the weights are above 0.
        group: inputs of each of the four groups.
        rate: spikes per step of the inputs that show a cue or ask for the answer, in [0, 1].
        noise: spikes per step of the noise inputs, in [0, 1].
        favoured: the probability that a cue is on its lane's favoured side, in [0, 1]; at 0.5 all cues are independent.
        generator: what everything is drawn with.

    Returns:
        x (T, B, 4 * group), target (B,): 0 where more cues were left, 1 where more were right; weights (T,).

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: a size below 1, a pause or delay below 0, an even number of cues, a rate or probability outside
            [0, 1].

    >>> x, target, _ = evidence_accumulation(2, cues=3, cue=4, pause=1, delay=5, answer=2, rate=1.0, noise=0.0)
    >>> x.shape
    torch.Size([22, 2, 40])
    >>> steps_right = x[:, :, 10].sum(0)
    >>> torch.equal(target == 1, steps_right > 6)    # of 12
    True
    """
    where = "tasks.evidence_accumulation"
    for name, size in (("lanes", lanes), ("cues", cues), ("cue", cue), ("answer", answer), ("group", group)):
        _checks.at_least_one(where, name, size)
    _at_least_zero(where, "delay", delay)
    _at_least_zero(where, "pause", pause)
    for name, probability in (("rate", rate), ("noise", noise), ("favoured", favoured)):
        _checks.fraction(where, name, probability)
    if cues % 2 == 0:
        raise ValueError(f"{where}: expected an odd number of cues, got {cues}. With an even one there are ties.")
    device = _device(generator)
    steps = cues * (cue + pause) + delay + answer
    favours_right = torch.rand(1, lanes, generator=generator, device=device) < 0.5
    on_favoured = torch.rand(cues, lanes, generator=generator, device=device) < favoured
    right = on_favoured == favours_right  # (cues, B)

    shown = torch.zeros(cues, cue + pause, lanes, 2, device=device)
    shown[:, :cue] = torch.stack([~right, right], dim=-1)[:, None].to(shown)
    chances = torch.zeros(steps, lanes, 4, device=device)
    chances[: cues * (cue + pause), :, :2] = rate * shown.flatten(0, 1)
    chances[-answer:, :, 2] = rate
    chances[..., 3] = noise
    return Sequences(
        torch.bernoulli(chances.repeat_interleave(group, dim=-1), generator=generator),
        (2 * right.sum(0) > cues).long(),
        _last_steps(steps, answer, device),
    )


def drifting_bump(
    lanes: int,
    *,
    steps: int = 96,
    channels: int = 40,
    classes: int = 10,
    low: float = 0.05,
    high: float = 0.55,
    width: float = 4.0,
    generator: torch.Generator | None = None,
) -> Sequences:
    """How does the bump of activity drift over a ring of inputs? Asked at the last step.

        rate of input i      low + (high - low) exp(-d^2 / (2 width^2))      d: its distance from the bump's centre

    The centre starts anywhere and moves by -1/2 to 1/2 of an input per step, a speed of each lane's own; the class is
    that of `classes` equal parts of this range in which the speed lies. Input that changes in time, with a loss at the
    last step alone, is what gradients through time are hard for.

    Args:
        lanes: B.
        steps: T.
        channels: n, inputs on the ring.
        classes: how many there are, equally probable.
        low: spikes per step far from the bump, in [0, 1].
        high: spikes per step at its centre, in [0, 1].
        width: its standard deviation, in inputs.
        generator: what everything is drawn with.

    Returns:
        x (T, B, channels), target (B,), weights (T,): 1 at the last step.

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: a size below 1, a rate outside [0, 1], a width not above 0.

    >>> x, target, weights = drifting_bump(2, steps=5, channels=6)
    >>> x.shape, weights
    (torch.Size([5, 2, 6]), tensor([0., 0., 0., 0., 1.]))
    """
    where = "tasks.drifting_bump"
    for name, size in (("lanes", lanes), ("steps", steps), ("channels", channels), ("classes", classes)):
        _checks.at_least_one(where, name, size)
    _checks.fraction(where, "low", low)
    _checks.fraction(where, "high", high)
    _checks.positive(where, "width", width)
    device = _device(generator)
    start, speed = torch.rand(2, lanes, 1, generator=generator, device=device)
    centre = channels * start + (speed - 0.5) * torch.arange(steps, device=device)[:, None, None]  # (T, B, 1)
    distance = (torch.arange(channels, device=device) - centre + channels / 2) % channels - channels / 2
    rates = low + (high - low) * torch.exp(-(distance**2) / (2 * width**2))
    return Sequences(
        torch.bernoulli(rates, generator=generator),
        (classes * speed[:, 0]).long(),
        _last_steps(steps, 1, device),
    )


def order_of_patterns(
    lanes: int,
    *,
    patterns: int = 2,
    channels: int = 40,
    pattern: int = 10,
    gap: int = 20,
    delay: int = 20,
    answer: int = 5,
    rate: float = 0.4,
    noise: float = 0.05,
    generator: torch.Generator | None = None,
) -> Sequences:
    """In which order did the patterns come? Each is shown once, and asked for after a delay.

        steps      pattern, gap, pattern, gap, ..., pattern       delay        answer
        channels   the pattern's own at `rate`, others `noise`    at `noise`   at `noise`
        go         0                                              0            1

    Each of the patterns has `channels / patterns` channels. The classes are the `patterns!` orders, numbered as
    `itertools.permutations` gives them. Counts over the whole sequence say nothing: all have the same.

    Args:
        lanes: B.
        patterns: how many there are, at least 2; each lane's order is drawn with equal probability.
        channels: inputs that carry patterns and noise, a multiple of `patterns`.
        pattern: steps that one is shown for.
        gap: steps between two of them, 0 or more.
        delay: steps between the last and the answer, 0 or more.
        answer: steps of the answer; only there the weights are above 0.
        rate: spikes per step of a pattern's channels while it is shown, in [0, 1].
        noise: spikes per step of all others, in [0, 1].
        generator: what everything is drawn with.

    Returns:
        x (T, B, channels + 1), target (B,), weights (T,).

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: a size below 1, fewer than two patterns, channels that do not divide into patterns, a rate outside
            [0, 1].

    >>> x, target, _ = order_of_patterns(3, channels=4, pattern=2, gap=1, delay=1, answer=1, rate=1.0, noise=0.0)
    >>> (x[0, :, 0] == 1 - target).all()    # class 0: the first pattern comes first
    tensor(True)
    """
    where = "tasks.order_of_patterns"
    sizes = (("lanes", lanes), ("patterns", patterns), ("channels", channels), ("pattern", pattern), ("answer", answer))
    for name, size in sizes:
        _checks.at_least_one(where, name, size)
    _at_least_zero(where, "gap", gap)
    _at_least_zero(where, "delay", delay)
    _checks.fraction(where, "rate", rate)
    _checks.fraction(where, "noise", noise)
    if patterns < 2 or channels % patterns:
        raise ValueError(
            f"{where}: expected two or more patterns, and channels that are a multiple of them, got {patterns} "
            f"patterns and {channels} channels. Each pattern has channels / patterns of them."
        )
    device = _device(generator)
    orders = torch.tensor(list(permutations(range(patterns))), device=device)
    target = torch.randint(len(orders), (lanes,), generator=generator, device=device)
    group = torch.arange(channels, device=device) // (channels // patterns)
    steps = patterns * (pattern + gap) - gap + delay + answer
    chances = torch.full((steps, lanes, channels + 1), noise, device=device)
    for place in range(patterns):
        begin = place * (pattern + gap)
        shown = orders[target, place][:, None]
        chances[begin : begin + pattern, :, :channels] = torch.where(group == shown, rate, noise)
    chances[..., -1] = 0
    chances[-answer:, :, -1] = 1
    return Sequences(torch.bernoulli(chances, generator=generator), target, _last_steps(steps, answer, device))


def copy_memory(
    lanes: int,
    *,
    symbols: int = 8,
    length: int = 10,
    delay: int = 50,
    generator: torch.Generator | None = None,
) -> Sequences:
    """Say again, in order, what was shown before a delay: the copy memory problem.

        steps      length                delay            length
        inputs     one symbol a step     none, then go    none
        target     any                   any              the symbols, in order

    One input per symbol, and one that fires in the last step of the delay. Hochreiter & Schmidhuber 1997 and Arjovsky
    et al. 2016, arXiv:1511.06464, where blanks count too; here the weights are above 0 while the answer is due alone,
    so that chance is 1 / symbols.

    Args:
        lanes: B.
        symbols: how many there are, drawn with equal probability.
        length: how many are shown.
        delay: steps until they are to be said, at least 1.
        generator: what everything is drawn with.

    Returns:
        x (T, B, symbols + 1) with T = 2 length + delay; target (T, B), the symbol of each step, 0 where the weights
        are; weights (T,).

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: a size below 1.

    >>> x, target, weights = copy_memory(1, symbols=3, length=2, delay=1)
    >>> torch.equal(x[:2, 0, :3].argmax(-1), target[3:, 0]), weights
    (True, tensor([0.0000, 0.0000, 0.0000, 0.5000, 0.5000]))
    """
    where = "tasks.copy_memory"
    for name, size in (("lanes", lanes), ("symbols", symbols), ("length", length), ("delay", delay)):
        _checks.at_least_one(where, name, size)
    device = _device(generator)
    steps = 2 * length + delay
    shown = torch.randint(symbols, (length, lanes), generator=generator, device=device)
    x = torch.zeros(steps, lanes, symbols + 1, device=device)
    x[:length, :, :symbols] = torch.nn.functional.one_hot(shown, symbols).to(x)
    x[length + delay - 1, :, -1] = 1
    target = torch.zeros(steps, lanes, dtype=torch.int64, device=device)
    target[-length:] = shown
    return Sequences(x, target, _last_steps(steps, length, device))


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _last_steps(steps: int, answer: int, device: torch.device) -> Tensor:
    """Weights (T,) that are equal over the last steps, and 0 before."""
    weights = torch.zeros(steps, device=device)
    weights[-answer:] = 1 / answer
    return weights


def _at_least_zero(where: str, name: str, value: int) -> None:
    """Raise unless `value` is a whole number of at least 0."""
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{where}: expected {name} to be a whole number of at least 0, got {value!r}.") from None
    if number < 0:
        raise ValueError(f"{where}: expected {name} to be a whole number of at least 0, got {value}.")

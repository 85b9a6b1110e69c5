"""Models as data: a new layer, neuron or rule is a new row here, and all shared tests run on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import tracetorch as tt
from own_neuron import ThresholdLinear
from tracetorch import testing
from tracetorch.nn.online import Online
from tracetorch.rules import Rule

N, HIDDEN, M = 9, 8, 5  # inputs, hidden neurons, outputs
T, B = 21, 3  # steps, lanes
WINDOWS = (1, 3, 7, T)
F64 = {"dtype": torch.float64}
LEARNED = {"learn_beta": True, "learn_threshold": True}


@dataclass(frozen=True)
class Case:
    """A model and the sizes of what it takes."""

    name: str
    build: Callable[[Rule], Online]

    def __str__(self) -> str:
        return self.name

    def make(self, rule: Rule, seed: int = 0) -> tuple[Online, Tensor, Tensor]:
        """The model with `rule`, calibrated and alive, an input (T, B, N) and a learning signal (T, B, M).

        Few neurons may all be silent by chance, so seeds are tried from `seed` on.
        """
        torch.manual_seed(seed)
        model = self.build(rule)
        x = torch.bernoulli(torch.full((T, B, N), 0.3, **F64))
        ls = torch.randn(T, B, M, **F64)
        model.calibrate(x)
        try:
            testing.assert_alive(model, x)
        except AssertionError:
            if seed > 20:
                raise
            return self.make(rule, seed + 1)
        return model, x, ls

    def accepts(self, rule: Rule) -> bool:
        """Whether the rule can serve the model; what is refused is tested in test_errors."""
        try:
            self.make(rule)
        except ValueError:
            return False
        return True


def hidden(n: int = N, m: int = HIDDEN, **options: object) -> tt.LIF:
    return tt.LIF(n, m, **(LEARNED | F64 | {"beta": 0.85, "threshold": 0.9} | options))


ONE_LAYER = [
    Case("LIF", lambda rule: hidden(N, M, rule=rule)),
    Case("LIF, a threshold per neuron", lambda rule: hidden(N, M, threshold=torch.linspace(0.5, 1.5, M), rule=rule)),
    Case("LIF, another surrogate", lambda rule: hidden(N, M, surrogate=tt.surrogate.FastSigmoid(), rule=rule)),
    Case("LIF, no bias, constants", lambda rule: tt.LIF(N, M, bias=False, tau=8.0, rule=rule, **F64)),
    Case("LIF, stateless", lambda rule: tt.LIF(N, M, beta=0.0, rule=rule, **F64)),
    Case("LIF, perfect integrator", lambda rule: tt.LIF(N, M, beta=1.0, learn_threshold=True, rule=rule, **F64)),
    Case("LI", lambda rule: tt.LI(N, M, learn_beta=True, rule=rule, **F64)),
    Case("LI, perfect integrator", lambda rule: tt.LI(N, M, beta=1.0, rule=rule, **F64)),
    Case("Softmax", lambda rule: tt.Softmax(N, M, learn_beta=True, rule=rule, **F64)),
]
UNDER_A_LINEAR_HEAD = [
    Case("LIF, Linear", lambda rule: tt.Sequential(hidden(), nn.Linear(HIDDEN, M, **F64), rule=rule))
]


def _deep(depth: int, readout: Callable[[], nn.Module]) -> Callable[[Rule], Online]:
    def build(rule: Rule) -> Online:
        layers = [hidden(N if i == 0 else HIDDEN) for i in range(depth)]
        return tt.Sequential(*layers, readout(), rule=rule)

    return build


DEEP = [
    Case("2 LIF", lambda rule: tt.Sequential(hidden(), hidden(HIDDEN, M), rule=rule)),
    Case("LIF, LI", _deep(1, lambda: tt.LI(HIDDEN, M, learn_beta=True, **F64))),
    Case("2 LIF, Softmax", _deep(2, lambda: tt.Softmax(HIDDEN, M, learn_beta=True, **F64))),
    Case("3 LIF, LI", _deep(3, lambda: tt.LI(HIDDEN, M, learn_beta=True, **F64))),
    Case(
        "a Softmax inside",
        lambda rule: tt.Sequential(
            hidden(), tt.Softmax(HIDDEN, 6, generator=torch.Generator().manual_seed(5), **F64), hidden(6, M), rule=rule
        ),
    ),
    Case(
        "stateless modules between",
        lambda rule: tt.Sequential(
            nn.Linear(N, HIDDEN, **F64),
            hidden(HIDDEN),
            nn.LayerNorm(HIDDEN, **F64),
            nn.Tanh(),
            hidden(HIDDEN, M),
            rule=rule,
        ),
    ),
    Case("a model in a model", lambda rule: tt.Sequential(tt.Sequential(hidden()), tt.LI(HIDDEN, M, **F64), rule=rule)),
]
A_BETA_PER_NEURON = [
    Case("LIF, a beta per neuron", lambda rule: hidden(N, M, beta=torch.linspace(0.5, 0.95, M), rule=rule)),
    Case("LI, a beta per neuron", lambda rule: tt.LI(N, M, tau=[2.0, 4, 8, 16, 32], learn_beta=True, rule=rule, **F64)),
]
TAUS = {"tau": torch.linspace(2.0, 12.0, HIDDEN).tolist(), "beta": None}
RECURRENT = [
    Case("recurrent", lambda rule: hidden(N, M, recurrent=True, rule=rule)),
    Case(
        "recurrent, no self connections",
        lambda rule: hidden(N, M, recurrent=True, self_connections=False, rule=rule),
    ),
    Case(
        "stacked recurrent, betas per neuron",
        lambda rule: tt.Sequential(
            hidden(recurrent=True, **TAUS),
            hidden(HIDDEN, HIDDEN, recurrent=True, self_connections=False),
            tt.LI(HIDDEN, M, **F64),
            rule=rule,
        ),
    ),
]
CONCAT = [
    Case(
        "a layer that feeds several",
        lambda rule: tt.Sequential(
            hidden(),
            tt.Concat(hidden(HIDDEN, 4), nn.Linear(HIDDEN, 3, **F64), tt.LI(HIDDEN, 2, beta=0.7, **F64)),
            tt.LI(9, M, beta=0.95, **F64),
            rule=rule,
        ),
    ),
    Case(
        "two readouts",
        lambda rule: tt.Sequential(
            hidden(), tt.Concat(tt.LI(HIDDEN, 2, beta=0.7, **F64), tt.LI(HIDDEN, M - 2, beta=0.95, **F64)), rule=rule
        ),
    ),
    Case(
        "two inputs' layers, one of them recurrent",
        lambda rule: tt.Sequential(
            tt.Concat(hidden(N, 4, recurrent=True), tt.Sequential(hidden(N, 5), nn.Tanh())), hidden(9, M), rule=rule
        ),
    ),
]
MIXED = [
    Case(
        "a rule for each layer",
        lambda rule: tt.Sequential(
            hidden(rule=tt.Eligibility()),
            hidden(HIDDEN, HIDDEN, rule=tt.MeanField(nodes=4)),
            tt.Softmax(HIDDEN, 6, generator=torch.Generator().manual_seed(5), rule=tt.InputTrace(), **F64),
            hidden(6, HIDDEN, rule=tt.Truncated()),
            hidden(HIDDEN, M, recurrent=True),
            rule=rule,
        ),
    )
]
ALL = ONE_LAYER + UNDER_A_LINEAR_HEAD + DEEP + A_BETA_PER_NEURON + RECURRENT + CONCAT
RULES = [tt.InputTrace(), tt.Truncated(), tt.MeanField(), tt.Eligibility()]
CONVOLUTION = [
    Case(
        "stateless first, convolution, pooling, residual, betas per channel",
        lambda rule: tt.Sequential(
            nn.Unflatten(1, (1, 3, 3)),
            tt.LIF(synapse=nn.Conv2d(1, 4, 2, padding=1, **F64), beta=[0.6, 0.7, 0.8, 0.9], **LEARNED, **F64),
            nn.AvgPool2d(2),
            tt.Residual(tt.LIF(synapse=nn.Conv2d(4, 4, 3, padding=1, groups=2, **F64), beta=0.8, **LEARNED, **F64)),
            nn.GroupNorm(2, 4, **F64),
            nn.Conv2d(4, 4, 2, padding=1, **F64),
            nn.Dropout2d(0.0),
            nn.MaxPool2d(2, stride=1),
            nn.Flatten(),
            hidden(16, M),
            rule=rule,
        ),
    ),
    Case(
        "stateless first, branches of channels, one transposed",
        lambda rule: tt.Sequential(
            nn.Unflatten(1, (1, 3, 3)),
            tt.Concat(
                tt.LIF(synapse=nn.Conv2d(1, 2, 3, padding=1, **F64), beta=0.7, **LEARNED, **F64),
                nn.Sequential(nn.MaxPool2d(3), nn.Upsample(scale_factor=3)),
                dim=0,
            ),
            tt.Parallel(
                tt.LIF(synapse=nn.ConvTranspose2d(3, 2, 2, **F64), beta=0.8, threshold=[0.5, 1.0], **LEARNED, **F64),
                tt.LI(synapse=nn.Conv2d(3, 2, 2, padding=1, **F64), beta=0.8, **F64),
            ),
            nn.Flatten(),
            tt.LI(32, M, learn_beta=True, **F64),
            rule=rule,
        ),
    ),
]
CONTAINERS = [
    Case(
        "residual and parallel",
        lambda rule: tt.Sequential(
            tt.Residual(hidden(N, N), nn.Linear(N, N, **F64)),
            tt.Parallel(hidden(N, M, beta=0.6), tt.Sequential(hidden(N, 4), tt.LI(4, M, **F64))),
            tt.LI(M, M, learn_beta=True, **F64),
            rule=rule,
        ),
    ),
]
OWN = [
    Case("a neuron of one's own", lambda rule: ThresholdLinear(N, M, **(LEARNED | F64), rule=rule)),
    Case(
        "a neuron of one's own, deep",
        lambda rule: tt.Sequential(
            ThresholdLinear(N, HIDDEN, **(LEARNED | F64)), hidden(HIDDEN, M), tt.LI(M, M, **F64), rule=rule
        ),
    ),
]
ALL += CONVOLUTION + CONTAINERS + OWN

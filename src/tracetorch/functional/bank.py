"""The bank: functions of the lag written as sums of a few exponentials.

The adjoint of a layer, as a function of the lag k = 0, 1, 2, ... (steps before the window), is made of its neurons'
kernels `beta_i^k` and of their convolutions with what comes from above. A bank keeps G fixed decays q_g, its *nodes*,
and writes every such function as `sum_g c_g q_g^k`:

    kernels      beta_i^k                                ~ sum_g C[i, g] q_g^k
    convolved    sum_{j <= k} p_h^j beta_i^(k-j)         ~ sum_g D[i, h, g] q_g^k       (p: nodes above)
    converted    p_h^k                                   ~ sum_g T[h, g] q_g^k
    delayed      q_h^(k-1) for k >= 1, 0 for k = 0       ~ sum_g S[h, g] q_g^k

The coefficients are least squares over all lags, in closed form: inner products of exponentials are
`sum_k q_g^k q_h^k = 1 / (1 - q_g q_h)`, and that of a convolution with an exponential is a product of two of them. The
normal equations are solved in float64 for nodes of unit norm, by eigenvalues kept off zero, so that coefficients stay
of order 1 where nodes lie close together or kernels resonate (several layers with the same beta). What is a node
itself is written exactly. q = 1, a perfect integrator, has no norm: it is split off by partial fractions.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

RIDGE = 1e-10  # added to the eigenvalues of the Gram matrix of unit-norm exponentials
DELAY_RIDGE = 1e-6  # a delay by one step is beyond slow exponentials, and would have coefficients of thousands
MAX_FRACTION = 100.0  # partial fractions are used where their coefficients stay below this
NEXT_TO = 0.02  # of a logarithm of time constants
SLOWEST_TAU = 1e9  # steps
FASTEST_TAU = 0.2  # steps; what decays faster (to below 0.7 % in one step) is as good as gone


class BankError(NamedTuple):
    """How far a bank is off: relative L2 errors over all lags (dimensionless)."""

    kernels: Tensor  # (m,) or (1,)
    convolved: Tensor | None  # (m, H) or (1, H); None where nothing comes from above


def geometric_nodes(shortest: float, longest: float, count: int) -> Tensor:
    """`count` decays whose time constants are spaced geometrically from `shortest` to `longest` (steps).

    Returns:
        (count,) float64; (1,) where both are the same.

    >>> (-1 / geometric_nodes(2.0, 32.0, 3).log()).round()
    tensor([ 2.,  8., 32.], dtype=torch.float64)
    """
    if count == 1 or longest / shortest - 1 < 1e-9:
        return torch.exp(torch.tensor([-1 / math.sqrt(shortest * longest)], dtype=torch.float64))
    log_tau = torch.linspace(math.log(shortest), math.log(longest), count, dtype=torch.float64)
    return torch.exp(-torch.exp(-log_tau))


def with_pinned(nodes: Tensor, pinned: list[float]) -> Tensor:
    """The nodes, with each pinned decay in the place of the nearest that is not pinned; 0 and 1 are added.

    At most half of the nodes give way, and never the slowest; nor is a decay pinned that is next to one that has been
    (within 2 % of its time constant): nodes so close would have large coefficients.

    >>> with_pinned(torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64), [0.8, 1.0])
    tensor([0.5000, 0.8000, 0.9000, 1.0000], dtype=torch.float64)
    """
    free: list[float] = nodes.tolist()
    kept: list[float] = []
    added: list[float] = []
    room = max(1, len(free) // 2)
    for decay in dict.fromkeys(pinned):
        if decay in (0, 1):
            added.append(decay)
            continue
        if len(kept) == room or any(abs(_log_tau(decay) - _log_tau(other)) < NEXT_TO for other in kept):
            continue
        if decay in free:
            kept.append(decay)
            continue
        candidates = [q for q in free if q not in kept and (q < free[-1] or len(nodes) == 1)]
        free.remove(min(candidates, key=lambda q: abs(_log_tau(q) - _log_tau(decay))))
        kept.append(decay)
    return torch.tensor(sorted({*free, *kept, *added}), dtype=torch.float64, device=nodes.device)


def _log_tau(decay: float) -> float:
    return -math.log(-math.log(decay))


def are_apart(decays: list[float]) -> bool:
    """Whether decays are a basis of their own convolutions: no two alike, partial fractions with small coefficients.

    >>> are_apart([0.9, 0.8]), are_apart([0.9, 0.9])
    (True, False)
    """
    return all(MAX_FRACTION * abs(a - b) >= 1 for i, a in enumerate(decays) for b in decays[:i])


class Bank:
    """The kernels of m neurons, and their convolutions with exponentials from above, in a basis of exponentials.

    Args:
        nodes: (G,) float64, the decays q_g, distinct, in [0, 1].
        beta: () or (m,), the decays of the neurons, in [0, 1].
        above: (H,) float64, the nodes in which the adjoint from above is written; None where nothing comes.

    >>> bank = Bank(geometric_nodes(1.5, 50.0, 8), torch.tensor([0.6, 0.9]))
    >>> bool((bank.error().kernels < 0.01).all())
    True
    """

    def __init__(self, nodes: Tensor, beta: Tensor, above: Tensor | None = None) -> None:
        self.nodes = nodes
        self.beta = beta.detach().clone()
        self.above = above
        self._decays = beta.detach().double().reshape(-1)  # (m,) or (1,)
        self._slow = nodes == 1
        self._summable = ~self._slow
        q = nodes[self._summable]
        self._q = q
        self._norm = torch.sqrt(1 - q * q)
        gram = 1 / (1 - q[:, None] * q) * self._norm[:, None] * self._norm
        self._eigenvalues, self._vectors = torch.linalg.eigh(gram)

    def fits(self, nodes: Tensor, beta: Tensor, above: Tensor | None) -> bool:
        """Whether this is the bank of these nodes and decays."""
        same_above = above is self.above or (
            above is not None and self.above is not None and torch.equal(above, self.above)
        )
        return same_above and torch.equal(nodes, self.nodes) and torch.equal(beta, self.beta)

    @cached_property
    def kernels(self) -> Tensor:
        """C, (m, G), or (1, G) for one beta; float64."""
        return self._exponentials(self._decays)

    @cached_property
    def convolved(self) -> Tensor:
        """D, (m, H, G), or (1, H, G) for one beta; float64. Not for beta = 1 with a node of 1 above."""
        assert self.above is not None
        p, beta = self.above[None, :], self._decays[:, None]
        q = self._q
        fitted = self._fit(1 / ((1 - p[..., None] * q) * (1 - beta[..., None] * q)))
        apart = p - beta
        exact = apart.abs() * MAX_FRACTION >= 1
        exact &= self._is_node(p) & self._is_node(beta) | (p == 1) | (beta == 1)
        apart = torch.where(exact, apart, torch.ones_like(apart))[..., None]
        fractions = self.converted * p[..., None] - self.kernels[:, None] * beta[..., None]
        return torch.where(exact[..., None], fractions / apart, fitted)

    @cached_property
    def converted(self) -> Tensor:
        """T, (H, G); float64."""
        assert self.above is not None
        return self._exponentials(self.above)

    @cached_property
    def delayed(self) -> Tensor:
        """S, (G, G); float64."""
        fitted = self._fit(self._q / (1 - self.nodes[:, None] * self._q), DELAY_RIDGE)
        if bool(self._slow.any()):  # 1 for k >= 1 is 1 without its value at k = 0
            fitted[self._slow] = self._fit(-torch.ones_like(self._q), DELAY_RIDGE)
            fitted[self._slow, self._slow] = 1
        return fitted

    def error(self) -> BankError:
        """The relative L2 errors of the kernels and of the convolved kernels, over lags up to 20 time constants."""
        slowest = torch.cat([self._decays, self.nodes, self._decays if self.above is None else self.above])
        slowest = max([0.1, *slowest[slowest < 1].tolist()])
        steps = max(64, math.ceil(-20 / math.log(slowest)))
        lags = torch.arange(steps, dtype=torch.float64, device=self.nodes.device)
        basis = self.nodes[:, None] ** lags
        kernels = self._decays[:, None] ** lags
        convolved = None
        if self.above is not None:
            drive = self.above[:, None] ** lags
            true = [torch.ones(len(self._decays), len(self.above)).to(drive)]
            for k in range(1, steps):  # a leaky integrator, step by step
                true.append(torch.addcmul(drive[:, k], self._decays[:, None], true[-1]))
            convolved = _relative(torch.stack(true, -1), self.convolved @ basis)
        return BankError(_relative(kernels, self.kernels @ basis), convolved)

    def _exponentials(self, decays: Tensor) -> Tensor:
        """(N,) -> (N, G): exponentials in the basis, exactly where they are nodes."""
        fitted = self._fit(1 / (1 - decays[:, None] * self._q))
        exactly = (decays[:, None] == self.nodes).to(fitted.dtype)
        return torch.where(self._is_node(decays)[:, None], exactly, fitted)

    def _is_node(self, decays: Tensor) -> Tensor:
        return (decays[..., None] == self.nodes).any(-1)

    def _fit(self, products: Tensor, ridge: float = RIDGE) -> Tensor:
        """Least squares for functions whose inner products (..., G') with the summable nodes are given: (..., G)."""
        inverse = (self._vectors / (self._eigenvalues.clamp(min=0) + ridge)) @ self._vectors.T
        coefficients: Tensor = (products * self._norm) @ inverse * self._norm
        if not bool(self._slow.any()):
            return coefficients
        whole = torch.zeros(*coefficients.shape[:-1], len(self.nodes), dtype=torch.float64, device=self.nodes.device)
        whole[..., self._summable] = coefficients
        return whole


def _relative(true: Tensor, written: Tensor) -> Tensor:
    error: Tensor = (true - written).norm(dim=-1) / true.norm(dim=-1)
    return error

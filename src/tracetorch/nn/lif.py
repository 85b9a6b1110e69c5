"""Spiking layers: leaky integrate-and-fire neurons with options, and the names of the field for some of them."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from .. import _checks
from ..functional.firing import Firing
from ..functional.scan import Form
from ..functional.surrogate import Surrogate
from ..rules.base import Rule
from .constraint import Constrained, OneOrEach, UnitInterval, adaptation_strength, decay, firing_threshold
from .layer import Layer
from .presets import Library, Preset, preset
from .spiking import SpikingNeuron


class LIF(Layer):
    """Leaky integrate-and-fire neurons.

        p_t = beta * v_{t-1} + W x_t + b          membrane before the reset; recurrent: + U s_{t-1}
        s_t = [p_t >= theta]                      output spike
        v_t = p_t - theta * s_t                   membrane after the reset; no gradient through this s_t

    That is the default. With options, each of which adds a term:

        i_t     = alpha * i_{t-1} + W x_t + b     alpha: a synaptic current; without it i_t = W x_t + b
        p_t     = beta * v_{t-1} + gain * i_t     gain
        theta_t = theta + kappa * a_{t-1}         rho, kappa: a threshold that adapts,
        a_t     = rho * a_{t-1} + s_t             raised by each spike
        v_t     = p_t - theta_t * s_t             reset "subtract"; "zero": p_t * [s_t = 0]; "none": p_t

    `Synaptic`, `ALIF` and `IF` are the names of the field for some of these. Gerstner et al. 2014, "Neuronal Dynamics",
    chapters 1 and 6; Bellec et al. 2020, doi:10.1038/s41467-020-17236-y, for the adaptation.

    Gradients: inside a window, or horizon, all of it is exact. What is older is carried by the state with the spikes
    held fixed: exactly with a subtractive reset, and with a synaptic current; past a reset to zero for the weights in a
    least-squares fit (see `rules.adjoint.faded`); an adaptation, a spike that came back through recurrent weights, and
    an attached reset have no part in it.

    Args:
        in_features: n.
        out_features: m.
        synapse: a linear map to use as it is, instead of the two sizes: `nn.Linear`, `nn.Conv1d/2d/3d`,
            `nn.ConvTranspose1d/2d/3d`, `MaskedLinear`, or one made known by `register_synapse`.
        bias: whether the synapse made from the two sizes has a bias.
        beta: decay of the membrane per step, in [0, 1] (dimensionless): one number, or one per neuron (m,), with a
            convolution per channel (C,). 0.9.
        tau: its time constant in steps instead of beta: `beta = exp(-1 / tau)`, or as `like` has it.
        threshold: theta, above 0 (dimensionless): one number, or one per neuron or channel. 1.
        alpha: decay of a synaptic current per step, in [0, 1), likewise; None: there is none.
        tau_syn: its time constant in steps instead.
        rho: decay of the adaptation per step, in [0, 1), likewise; needs kappa.
        tau_adapt: its time constant in steps instead.
        kappa: what the threshold rises by for each spike, 0 or more, likewise; None: the threshold is fixed.
        gain: the factor on the current: a number, or "leak" for 1 - beta. 1.
        reset: "subtract", "zero" or "none". "subtract".
        reset_delay: whether a subtraction comes one step later, from the next p, without beta. False.
        reset_gradient: "detached" passes no gradient through the spike that resets; "attached" does, within the window.
        firing: how it fires (see `functional.firing`), with its own surrogate. `Spike()`.
        surrogate: the pseudo-derivative of the spike, instead of `firing`. `ArcTan()`.
        recurrent: add weights U from each neuron's output of the step before to all neurons, the parameter
            `recurrent_weight` (m, m), to row i from column j.
        self_connections: whether U has a diagonal; without it the diagonal counts as zero.
        learn_beta: make beta a parameter, `raw_beta`, inside (0, 1).
        learn_threshold: make theta a parameter, `raw_threshold`, above 0.
        learn_alpha: likewise.
        learn_rho: likewise.
        learn_kappa: likewise, above 0.
        like: take the defaults of another library: "snntorch", "spikingjelly", "norse" or "sinabs" (see `nn.presets`).
            Options given win over them.
        rule: the learning rule of this layer; by default the model's.
        device: of the parameters.
        dtype: of the parameters.

    Shapes: a step (B, n) -> (B, m); a window (K, B, n) -> (K, B, m). With a convolution (B, C, ...) -> (B, C', ...).

    Raises:
        ValueError: a value outside its range, both a decay and its time constant, sizes and a synapse, options that
            exclude each other.
        NotImplementedError: a synapse that is not known to be linear.

    >>> layer = LIF(2, 3, beta=0.5)
    >>> layer(torch.zeros(4, 2)).shape
    torch.Size([4, 3])
    >>> LIF(synapse=nn.Conv2d(1, 8, 5), beta=0.5)(torch.zeros(4, 1, 28, 28)).shape
    torch.Size([4, 8, 24, 24])
    """

    neuron: SpikingNeuron

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        synapse: nn.Module | None = None,
        bias: bool = True,
        beta: OneOrEach | None = None,
        tau: OneOrEach | None = None,
        threshold: OneOrEach = 1.0,
        alpha: OneOrEach | None = None,
        tau_syn: OneOrEach | None = None,
        rho: OneOrEach | None = None,
        tau_adapt: OneOrEach | None = None,
        kappa: OneOrEach | None = None,
        gain: float | Literal["leak"] | None = None,
        reset: Literal["subtract", "zero", "none"] | None = None,
        reset_delay: bool | None = None,
        reset_gradient: Literal["detached", "attached"] | None = None,
        firing: Firing | None = None,
        surrogate: Surrogate | None = None,
        recurrent: bool = False,
        self_connections: bool = True,
        learn_beta: bool = False,
        learn_threshold: bool = False,
        learn_alpha: bool = False,
        learn_rho: bool = False,
        learn_kappa: bool = False,
        like: Library | None = None,
        rule: Rule | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        where = type(self).__name__
        defaults = preset(where, like)
        currents = alpha is not None or tau_syn is not None
        adapts = kappa is not None
        _refuse_idle(where, "alpha", currents, learn_alpha)
        _refuse_idle(where, "kappa", adapts, learn_kappa or learn_rho or rho is not None or tau_adapt is not None)
        form = _form(where, defaults, firing, surrogate, reset, reset_delay, reset_gradient, gain)
        if like == "snntorch" and form.reset == "zero" and currents:
            raise ValueError(
                f"{where}: expected reset='subtract' or 'none' with like='snntorch' and a synaptic current, got "
                f"'zero', with which that library also drops the current of the step after a spike. Leave out like, "
                f"or alpha."
            )
        if like == "sinabs" and currents:
            raise ValueError(
                f"{where}: expected no synaptic current with like='sinabs', which decays an input in the step in which "
                f"it comes, got alpha. Leave out like; give gain=alpha * (1 - beta) for the same spikes."
            )

        def parameters(each: int) -> dict[str, Constrained]:
            beta_value = decay(where, ("beta", "tau"), beta, tau, learn_beta, each, defaults.beta, defaults.decay)
            found = {
                "beta": Constrained(beta_value, learn_beta, UnitInterval),
                "threshold": firing_threshold(where, threshold, learn_threshold, each),
            }
            if currents:
                given = (where, ("alpha", "tau_syn"), alpha, tau_syn, learn_alpha, each)
                value = decay(*given, None, defaults.decay, below_one=True)
                found["alpha"] = Constrained(value, learn_alpha, UnitInterval)
            if adapts:
                value = decay(
                    where,
                    ("rho", "tau_adapt"),
                    rho,
                    tau_adapt,
                    learn_rho,
                    each,
                    ALIF.RHO,
                    defaults.decay,
                    below_one=True,
                )
                found["rho"] = Constrained(value, learn_rho, UnitInterval)
                found["kappa"] = adaptation_strength(where, kappa, learn_kappa, each)
            return found

        names = ["beta", "threshold", *["alpha"] * currents, *["rho", "kappa"] * adapts, *["recurrent"] * recurrent]
        super().__init__(
            in_features,
            out_features,
            SpikingNeuron(where, form, names),
            synapse=synapse,
            bias=bias,
            parameters=parameters,
            recurrent=recurrent,
            self_connections=self_connections,
            rule=rule,
            device=device,
            dtype=dtype,
        )

    @property
    def surrogate(self) -> Surrogate:
        """The firing function and its pseudo-derivative."""
        return self.neuron.form.firing.surrogate

    @property
    def firing(self) -> Firing:
        """How it fires."""
        return self.neuron.form.firing


def _refuse_idle(where: str, name: str, there: bool, options: bool) -> None:
    """Raise where options of something are given that the neuron has not."""
    if options and not there:
        what = "a synaptic current" if name == "alpha" else "a threshold that adapts"
        raise ValueError(f"{where}: expected {name} together with other options of {what}, got none. Give {name}=.")


def _form(
    where: str,
    defaults: Preset,
    firing: Firing | None,
    surrogate: Surrogate | None,
    reset: str | None,
    delay: bool | None,
    gradient: str | None,
    gain: float | str | None,
) -> Form:
    """The kind of neuron that the options make.

    Raises:
        ValueError: a value that is none of those known, options that exclude each other.
        TypeError: no surrogate, no firing.
    """
    if firing is not None and surrogate is not None:
        raise ValueError(f"{where}: expected firing or surrogate, got both. Give firing={type(firing).__name__}(...).")
    if surrogate is not None and not isinstance(surrogate, Surrogate):
        raise TypeError(
            f"{where}: expected surrogate to be a Surrogate such as surrogate.ArcTan(), got {surrogate!r}. "
            f"Wrap a pair of functions in surrogate.Custom(spike, slope)."
        )
    if firing is not None and not isinstance(firing, Firing):
        raise TypeError(f"{where}: expected firing to be a Firing such as firing.MultiSpike(), got {firing!r}.")
    chosen = defaults.firing() if firing is None else firing
    if surrogate is not None:
        chosen.surrogate = surrogate
    reset = defaults.reset if reset is None else reset
    gradient = defaults.reset_gradient if gradient is None else gradient
    gain = defaults.gain if gain is None else gain
    given = delay is not None
    delay = (defaults.reset_delay and reset == "subtract") if delay is None else delay
    for name, value, allowed in (
        ("reset", reset, ("subtract", "zero", "none")),
        ("reset_gradient", gradient, ("detached", "attached")),
    ):
        if value not in allowed:
            raise ValueError(f"{where}: expected {name} to be one of {allowed}, got {value!r}.")
    if gain != "leak":
        if isinstance(gain, str):
            raise ValueError(f"{where}: expected gain to be a number above 0, or 'leak' for 1 - beta, got {gain!r}.")
        _checks.positive(where, "gain", gain)
    if delay and given and reset != "subtract":
        raise ValueError(
            f"{where}: expected reset_delay with reset='subtract', got {reset!r}. A reset to zero that comes before "
            f"the next input is the same as one at once."
        )
    if delay and type(chosen).count is not Firing.count:  # its slope is another than that of what recurs
        raise ValueError(
            f"{where}: expected spikes that count with reset_delay, got {chosen!r}. Leave out reset_delay."
        )
    return Form(chosen, reset, delay, gradient == "attached", gain if isinstance(gain, str) else float(gain))  # type: ignore[arg-type]


class Synaptic(LIF):
    """Current-based LIF neurons with two states: a synaptic current, and the membrane that it charges.

        i_t = alpha * i_{t-1} + W x_t + b
        p_t = beta * v_{t-1} + i_t
        s_t = [p_t >= theta]
        v_t = p_t - theta * s_t

    `LIF` with `alpha`; see there for all options, and for what is exact.

    Args:
        in_features: n.
        out_features: m.
        alpha: decay of the current per step, in [0, 1) (dimensionless): one number, or one per neuron or channel. 0.8.
        tau_syn: its time constant in steps instead.
        options: those of `LIF`.

    >>> layer = Synaptic(synapse=nn.Linear(1, 1), alpha=0.5, beta=0.0)
    >>> layer(torch.zeros(1, 1)).shape
    torch.Size([1, 1])
    """

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        alpha: OneOrEach | None = None,
        tau_syn: OneOrEach | None = None,
        **options: Any,
    ) -> None:
        if alpha is None and tau_syn is None:
            alpha = preset(type(self).__name__, options.get("like")).alpha
        super().__init__(in_features, out_features, alpha=alpha, tau_syn=tau_syn, **options)


class ALIF(LIF):
    """LIF neurons whose threshold adapts: each spike raises it by kappa, and it decays back by rho.

        p_t     = beta * v_{t-1} + W x_t + b
        theta_t = theta + kappa * a_{t-1}
        s_t     = [p_t >= theta_t]
        v_t     = p_t - theta_t * s_t
        a_t     = rho * a_{t-1} + s_t

    `LIF` with `kappa`; see there for all options. Bellec et al. 2018, "Long short-term memory and learning-to-learn in
    networks of spiking neurons". The gradient through the adaptation is exact inside a window, or horizon, and cut at
    its border: an adaptation that outlasts the window is worth a horizon. In windows much shorter than it, what the
    membrane alone carries can be too much (K = 4, kappa = 0.2, rho = 0.9, a signal at each step: cosine 0.89 and norm
    ratio 1.7 with BPTT; `Truncated` 0.94 and 1.1).

    Args:
        in_features: n.
        out_features: m.
        rho: decay of the adaptation per step, in [0, 1) (dimensionless): one number, or one each. 0.97.
        tau_adapt: its time constant in steps instead.
        kappa: what the threshold rises by for each spike, 0 or more, likewise. 0.1.
        options: those of `LIF`.

    >>> ALIF(2, 3, tau_adapt=100.0)(torch.zeros(1, 2)).shape
    torch.Size([1, 3])
    """

    RHO = 0.97
    KAPPA = 0.1

    def __init__(
        self,
        in_features: int | None = None,
        out_features: int | None = None,
        *,
        rho: OneOrEach | None = None,
        tau_adapt: OneOrEach | None = None,
        kappa: OneOrEach | None = None,
        **options: Any,
    ) -> None:
        kappa = self.KAPPA if kappa is None else kappa
        super().__init__(in_features, out_features, rho=rho, tau_adapt=tau_adapt, kappa=kappa, **options)


class IF(LIF):
    """Integrate-and-fire neurons: LIF without a leak, beta = 1.

        p_t = v_{t-1} + W x_t + b
        s_t = [p_t >= theta]
        v_t = p_t - theta * s_t

    Args:
        in_features: n.
        out_features: m.
        options: those of `LIF`, but for beta, tau and learn_beta.

    Raises:
        ValueError: a leak was given.

    >>> IF(2, 3).beta
    tensor(1.)
    """

    def __init__(self, in_features: int | None = None, out_features: int | None = None, **options: Any) -> None:
        leak = sorted(options.keys() & {"beta", "tau", "learn_beta"})
        if leak:
            raise ValueError(f"{type(self).__name__}: expected no leak, got {', '.join(leak)}. Use LIF.")
        if options.get("like") in ("spikingjelly", "norse", "sinabs"):
            options = {"gain": 1.0} | options  # theirs has none without a leak
        super().__init__(in_features, out_features, beta=1.0, **options)

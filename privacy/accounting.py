"""How much a mechanism tells: ε at a given δ, from Google's dp_accounting.

    Gaussian, k times:  Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ) = δ,  μ = √k / z      (Balle & Wang 1805.06530)

z is the noise multiplier: standard deviation ÷ L2 sensitivity. The caller says what the sensitivity is of, and with it
the unit and the neighbouring relation: for a Gaussian the figure is the same for every relation whose sensitivity was
used. Poisson sampling is accounted for adding or removing one unit (PLD: 2207.04380; RDP: 1908.10530).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from types import ModuleType
from typing import Final, Literal

from florilegium.errors import ConfigError

__all__ = ["effective_multiplier", "gaussian_epsilon", "gaussian_multiplier", "sampled_epsilon"]

_LOSS_STEP: Final = 1e-4


def gaussian_epsilon(noise_multiplier: float, *, delta: float, compositions: int = 1) -> float:
    """Return ε of a Gaussian mechanism applied `compositions` times, adaptively, without sampling.

    Composing k Gaussians of multiplier z equals one of z/√k, exactly, so the privacy loss distribution has a closed
    form and needs no discretization.

    Args:
        noise_multiplier: z, standard deviation ÷ L2 sensitivity under the caller's neighbouring relation; 0 gives ∞.
        delta: δ, in (0, 1).
        compositions: k, how often a neighbouring data set can make a difference.

    Raises:
        ConfigError: an argument is out of its range, or dp_accounting is not installed.
    """
    _check(noise_multiplier, delta)
    if compositions < 0:
        raise ConfigError(f"compositions must be >= 0, got {compositions}", "count the releases")
    if compositions == 0:
        return 0.0
    return float(_dp_accounting().get_epsilon_gaussian(noise_multiplier / math.sqrt(compositions), delta))


def gaussian_multiplier(epsilon: float, *, delta: float, compositions: int = 1) -> float:
    """Return the least noise multiplier with which `compositions` Gaussians are (ε, δ)-private together.

    Args:
        epsilon: ε > 0, the target.
        delta: δ, in (0, 1).
        compositions: k >= 1.

    Raises:
        ConfigError: an argument is out of its range, or dp_accounting is not installed.
    """
    _check(0.0, delta)
    if not 0 < epsilon < math.inf:
        raise ConfigError(f"epsilon must be finite and > 0, got {epsilon}", "1 to 10 is usual")
    if compositions < 1:
        raise ConfigError(f"compositions must be >= 1, got {compositions}", "count the releases")
    return float(_dp_accounting().get_sigma_gaussian(epsilon, delta)) * math.sqrt(compositions)


def sampled_epsilon(
    noise_multiplier: float,
    *,
    sampling_rate: float,
    steps: int,
    delta: float,
    method: Literal["pld", "rdp"] = "pld",
) -> float:
    """Return ε of `steps` Gaussians, each on a fresh Poisson sample of the units.

    Neighbours differ in one unit that is added or removed; the norm is L2, of the sum of clipped units. Every unit must
    be drawn independently with `sampling_rate` in every step, whatever else was drawn: shuffled epochs are not that.

    Args:
        noise_multiplier: z, standard deviation ÷ clip norm; 0 gives ∞.
        sampling_rate: q, in [0, 1].
        steps: T >= 0.
        delta: δ, in (0, 1).
        method: "pld" is tight; "rdp" is a second opinion, and never below it by more than rounding.

    Raises:
        ConfigError: an argument is out of its range, or dp_accounting is not installed.
    """
    _check(noise_multiplier, delta)
    if not 0 <= sampling_rate <= 1:
        raise ConfigError(f"sampling_rate must be in [0, 1], got {sampling_rate}", "use batch ÷ units, as a share")
    if steps < 0:
        raise ConfigError(f"steps must be >= 0, got {steps}", "count the optimizer's steps")
    if method not in ("pld", "rdp"):
        raise ConfigError(f"no accounting method {method!r}", "use 'pld' or 'rdp'")
    if sampling_rate == 0 or steps == 0:
        return 0.0
    if noise_multiplier == 0:
        return math.inf
    library = _dp_accounting()
    relation = library.NeighboringRelation.ADD_OR_REMOVE_ONE
    if method == "pld":
        accountant = library.pld.PLDAccountant(relation, _loss_step(noise_multiplier))
    else:
        accountant = library.rdp.RdpAccountant(neighboring_relation=relation)
    sampled = library.PoissonSampledDpEvent(sampling_rate, library.GaussianDpEvent(noise_multiplier))
    return float(accountant.compose(sampled, steps).get_epsilon(delta))


def effective_multiplier(noise_multipliers: Iterable[float]) -> float:
    """Return the multiplier of the one Gaussian that equals several composed: (Σ 1/zᵢ²)^−½; ∞ for none.

    >>> effective_multiplier([2.0, 2.0, 2.0, 2.0])
    1.0
    """
    multipliers = list(noise_multipliers)
    if 0 in multipliers:
        return 0.0
    precision = math.fsum(multiplier**-2 for multiplier in multipliers)
    return precision**-0.5 if precision else math.inf


def _loss_step(noise_multiplier: float) -> float:
    # Losses range over 1/z²: with a fixed step, a table for little noise would not fit the memory. ε stays a bound.
    return _LOSS_STEP / min(1.0, noise_multiplier) ** 2


def _check(noise_multiplier: float, delta: float) -> None:
    if not 0 <= noise_multiplier < math.inf:
        raise ConfigError(f"noise_multiplier must be finite and >= 0, got {noise_multiplier}", "0 is no privacy")
    if not 0 < delta < 1:
        raise ConfigError(f"delta must be in (0, 1), got {delta}", "choose well below 1 ÷ units")


def _dp_accounting() -> ModuleType:
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise ConfigError(
            "dp_accounting is not installed, and ε cannot be computed without it",
            "in a clone of the project: pip install '.[privacy]'",
        ) from None
    library: ModuleType = dp_accounting
    return library

"""FedEx: a distribution over configurations, learned while the fleet trains (Khodak et al., arXiv 2106.04502).

    draw      p = (1 − ε) softmax(z) + ε / K             K candidates; a device gets candidate c with probability p_c
    device    (f · e_c, e_c)                             f its improvement in [−1, 1], e_c one-hot: a (2, K) tensor
    server    (S, n) = Σ over devices                    all that it looks at
              λ = Σ_s γ^(t−s) m_s / Σ_s γ^(t−s)           over rounds s < t, m = ΣS / Σn of a round; 0 before the first
              ∇_j = −(S_j − λ n_j) / (p_j Σn)
              z ← log softmax(z − η ∇)                   η = η₀ / d, η₀ = √(2 ln K)

    d         aggressive ‖∇‖∞      adaptive √Σ_s ‖∇_s‖²∞      decaying √t      constant 1

Who is there and who is not moves the sum by ‖(f e_c, e_c)‖ <= √2. With the draw as it is, which no data touches, other
data on the device move it by 2 at most.

Deviations: devices weigh the same, since counts of rows would be a release of their own; improvements take the place of
losses, so that one device's hard dialogues do not count against what it drew. ε is ours, as in Exp3 (Auer et al. 2002):
without it the noise of a private sum is divided by probabilities that vanish, and no candidate ever comes back.
The default d does not depend on how large improvements are in this fleet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Literal

import torch
from torch import Tensor

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors
from strategies.draws import seed_of
from strategies.hyperparameters import IMPROVEMENT_BOUNDS, require_values

__all__ = ["FedExHPO"]

_LEAST_EXPLORATION: Final = 1e-6
# What rounding leaves of an improvement that equals the baseline must not be scaled up to a step.
_ROUNDING: Final = 1e-9
# The state: z; numerator and denominator of λ; d² of the schedules that remember.
_LOG_WEIGHTS, _BASELINE, _SQUARES = "log_weights", "baseline", "squares"


@dataclass(frozen=True, slots=True, kw_only=True)
class FedExHPO:
    """Learn which candidate improves devices most.

    Attributes:
        candidates: configurations, all of the same hyperparameters, no two alike.
        schedule: d, what the step size is divided by.
        step_size: η₀; None for √(2 ln K).
        discount: γ of the baseline; 0 takes the last round's mean, 1 that of all rounds.
        exploration: ε, share of draws that are uniform.

    Raises:
        ConfigError: a candidate cannot be, or a number is out of its range.
    """

    candidates: tuple[Mapping[str, float], ...]
    schedule: Literal["aggressive", "adaptive", "decaying", "constant"] = "aggressive"
    step_size: float | None = None
    discount: float = 0.9
    exploration: float = 0.1

    def __post_init__(self) -> None:
        self._check_candidates()
        if self.schedule not in ("aggressive", "adaptive", "decaying", "constant"):
            raise ConfigError(f"no schedule {self.schedule!r}", "use aggressive, adaptive, decaying or constant")
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise ConfigError(f"step_size must be finite and > 0, got {self.step_size}", "leave it out for the default")
        if not 0 <= self.discount <= 1:
            raise ConfigError(f"discount must be in [0, 1], got {self.discount}", "0.9 is a good start")
        if not _LEAST_EXPLORATION <= self.exploration <= 1:
            raise ConfigError(
                f"exploration must be from {_LEAST_EXPLORATION} to 1, got {self.exploration}", "0.1 is a good start"
            )
        # A frozen value must not change with the mappings it was made from.
        frozen = tuple(MappingProxyType(dict(candidate)) for candidate in self.candidates)
        object.__setattr__(self, "candidates", frozen)

    @property
    def sensitivity(self) -> float:
        """Return √2: an improvement of 1 and a count of 1."""
        return math.sqrt(2.0)

    def start(self) -> Tensors:
        """Return the uniform distribution."""
        arms = len(self.candidates)
        return {
            _LOG_WEIGHTS: torch.full((arms,), -math.log(arms), dtype=torch.float64),
            _BASELINE: torch.zeros(2, dtype=torch.float64),
            _SQUARES: torch.zeros((), dtype=torch.float64),
        }

    def probabilities(self, state: Mapping[str, Tensor]) -> Tensor:
        """Return p, (K,), float64: how likely each candidate is to be drawn."""
        learned = torch.softmax(state[_LOG_WEIGHTS], dim=0)
        return (1.0 - self.exploration) * learned + self.exploration / len(self.candidates)

    def best(self, state: Mapping[str, Tensor]) -> dict[str, float]:
        """Return the candidate that is thought best, for what comes after the run."""
        return dict(self.candidates[int(state[_LOG_WEIGHTS].argmax())])

    def draw(self, state: Mapping[str, Tensor], *, server_round: int, device: int, seed: int) -> dict[str, float]:
        """Draw a candidate for a device; draws of different devices and rounds are independent."""
        # The highest 53 of 63 bits: a fraction that float64 holds exactly, below 1.
        fraction = (seed_of(seed, "fedex_hpo", server_round, device) >> 10) * 2.0**-53
        rising = self.probabilities(state).cumsum(dim=0)
        arm = int(torch.searchsorted(rising, fraction * float(rising[-1]), right=True))
        return dict(self.candidates[min(arm, len(self.candidates) - 1)])

    def feedback(self, drawn: Mapping[str, float], improvement: float) -> Tensor:
        """Return a device's improvement and its count at the place of what it drew, (2, K), float64.

        Raises:
            InputError: `drawn` is no candidate, or the improvement is not finite.
        """
        if not math.isfinite(improvement):
            raise InputError(f"an improvement must be finite, got {improvement}", "leave this device out of the sum")
        found = [arm for arm, candidate in enumerate(self.candidates) if candidate == drawn]
        if not found:
            raise InputError("what was drawn is none of the candidates", "give it as draw gave it")
        contribution = torch.zeros(2, len(self.candidates), dtype=torch.float64)
        contribution[0, found[0]] = IMPROVEMENT_BOUNDS.quantize(improvement)
        contribution[1, found[0]] = 1.0
        return contribution

    def advance(self, state: Mapping[str, Tensor], summed_feedback: Tensor) -> Tensors:
        """Take one exponentiated-gradient step.

        Args:
            state: the tuner's.
            summed_feedback: Σ over devices, (2, K), with or without noise.

        Raises:
            InputError: it has another shape, or is not finite.
        """
        self._require_sum(summed_feedback)
        if not bool(summed_feedback.any()):
            return dict(state)
        gains, counts = summed_feedback.double()
        # Noise may leave a sum of counts that no fleet has, and a mean that no devices have.
        total = max(1.0, float(counts.sum()))
        mean = min(max(float(gains.sum()) / total, IMPROVEMENT_BOUNDS.lower), IMPROVEMENT_BOUNDS.upper)
        surplus = gains - _baseline(state) * counts
        surplus[surplus.abs() < _ROUNDING] = 0.0
        gradient = -surplus / (self.probabilities(state) * total)
        squares = state[_SQUARES] + (1.0 if self.schedule == "decaying" else float(gradient.abs().max()) ** 2)
        moved = state[_LOG_WEIGHTS] - self._rate(gradient, float(squares)) * gradient
        return {
            _LOG_WEIGHTS: torch.log_softmax(moved, dim=0),
            _BASELINE: self.discount * state[_BASELINE] + torch.tensor([mean, 1.0], dtype=torch.float64),
            _SQUARES: squares,
        }

    def _rate(self, gradient: Tensor, squares: float) -> float:
        """Return η; 0 where there is no gradient to divide by."""
        first = math.sqrt(2.0 * math.log(len(self.candidates))) if self.step_size is None else self.step_size
        if self.schedule == "constant":
            return first
        divisor = float(gradient.abs().max()) if self.schedule == "aggressive" else math.sqrt(squares)
        return first / divisor if divisor else 0.0

    def _require_sum(self, summed: Tensor) -> None:
        found, wanted = tuple(summed.shape), (2, len(self.candidates))
        if found != wanted or not bool(summed.isfinite().all()):
            raise InputError(
                f"summed feedback of shape {found} is no finite tensor of shape {wanted}", "add up what feedback gives"
            )

    def _check_candidates(self) -> None:
        if len(self.candidates) < 2:
            raise ConfigError(
                f"there are {len(self.candidates)} candidates", "give two at least; for one, choose fixed"
            )
        for number, candidate in enumerate(self.candidates):
            require_values(candidate)
            if candidate.keys() != self.candidates[0].keys():
                raise ConfigError(
                    f"candidates 0 and {number} are of different hyperparameters", "name the same ones in all"
                )
            if candidate in self.candidates[:number]:
                raise ConfigError(f"candidate {number} is there twice", "give each once")


def _baseline(state: Mapping[str, Tensor]) -> float:
    numerator, weight = state[_BASELINE].tolist()
    return float(numerator / weight) if weight else 0.0

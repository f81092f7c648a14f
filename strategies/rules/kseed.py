"""FedKSeed: devices measure slopes along K common random directions and send K numbers (Qin et al., arXiv 2312.06353).

    device   ρ = (L(θ + ε zₖ) − L(θ − ε zₖ)) / 2ε,  θ ← θ − η ρ zₖ     k drawn anew in each local step
    server   sₖ ← sₖ + Σ pᵢ Σ η ρ  over device i's steps along zₖ;     θ = θ₀ − Σ sₖ zₖ

16 KiB travel each way for K = 4096, whatever the model. All replay θ from s, which is a sum, so that masks, noise and
server optimizers act on K numbers. After some rounds a replay draws all K directions, which on one core is 7 s for B of
155,648 numbers: a round should have many local steps, or fewer seeds.

Ours: the paper tunes all weights, here it is B beside an A that is drawn from the plan's seed, as in FFA-LoRA (arXiv
2403.12313). While B is zero a step along A changes nothing, so that A's half of a direction would only be noise; the
weights' change is linear in B, so that a replay means the same in any order and from any start; and the error of a
slope grows with the number of trained values. All K numbers travel, also zeros, since only vectors of one shape can be
masked. Seeds are drawn uniformly; drawing them by their mean |ρ|, as FedKSeed-Pro does, takes a second K numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from florilegium.errors import ConfigError, InputError
from florilegium.tensors import Tensors, add
from strategies.directions import SCALARS, Directions
from strategies.rule import Duty, Linear, Loaded, Turn

__all__ = ["FedKSeed"]

_MOST_SEEDS: Final = 2**16  # each may cost a device a draw of B's size


@dataclass(frozen=True, slots=True, kw_only=True)
class FedKSeed(Linear):
    """Sum steps along common random directions.

    Attributes:
        seeds: K; the paper advises 1024 to 4096.
        epsilon: ε, how far to both sides along a direction the loss is measured. A slope errs with ε² by the loss's
            curves, and with 1 / ε by its rounding: on the built-in model 0.001 is best in float32 and drowned in
            bfloat16, 0.01 serves both.

    Raises:
        ConfigError: a value is out of its range.
    """

    name: ClassVar[str] = "fedkseed"
    seeds: int = 4096
    epsilon: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= _MOST_SEEDS:
            raise ConfigError(f"seeds must be >= 1 and <= {_MOST_SEEDS}, got {self.seeds}", "4096 is a good start")
        if not 0 < self.epsilon < math.inf:
            raise ConfigError(f"epsilon must be finite and > 0, got {self.epsilon}", "0.01 is a good start")

    def sums_updates(self, turn: Turn) -> bool:
        """They are updates, of s."""
        return True

    def duty(self, turn: Turn) -> Duty:
        """Move B along directions."""
        return Duty(work="zeroth-order", part="B")

    def start(self, adapter: Tensors, turn: Turn) -> Tensors:
        """Hold s = 0 and, for `adapter`, θ₀."""
        scalars = torch.zeros(self.seeds)
        return self._directions(scalars, turn).adapter(adapter) | {SCALARS: scalars}

    def down(self, state: Tensors, turn: Turn) -> Tensors:
        """Send s."""
        return {SCALARS: state[SCALARS]}

    def load(self, down: Tensors, kept: Tensors, turn: Turn) -> Loaded:
        """Leave the replay to whoever knows the adapter's shapes.

        Raises:
            InputError: what was received is not one number for each seed.
        """
        if down[SCALARS].shape != (self.seeds,):
            raise InputError(f"{down[SCALARS].numel()} scalars came for {self.seeds} seeds", "send one for each seed")
        return Loaded(adapter={}, directions=self._directions(down[SCALARS], turn))

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send what s has changed by: nothing, if no step was taken."""
        return {SCALARS: after.get(SCALARS, torch.zeros_like(down[SCALARS]))}

    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Add the mean change of s."""
        return state | add({SCALARS: state[SCALARS]}, mean)

    def adapter(self, state: Tensors, turn: Turn) -> Loaded:
        """Replay s in the shapes of θ₀."""
        start = {key: tensor for key, tensor in state.items() if key != SCALARS}
        return self.load(state, {}, turn).replayed(start)

    def _directions(self, scalars: torch.Tensor, turn: Turn) -> Directions:
        return Directions(seed=turn.seed, scalars=scalars, epsilon=self.epsilon)

"""FedASK: sum products by a two-sided sketch, linearly (Yang et al., arXiv 2507.09990).

    exchange 0   Y = Σ pᵢ sᵢ Bᵢ(AᵢΩ)      Ω: (inputs, k), drawn from the plan's seed and the round;   Q = orth(Y)
    exchange 1   Z = Σ pᵢ sᵢ (QᵀBᵢ)Aᵢ     Q Z = Σ pᵢ sᵢ BᵢAᵢ exactly where k is at least the rank of the sum

Only sums of small matrices reach the server, so it is linear, and the devices' ranks may differ. Ours: what is sketched
is the change of the product in this round, whose rank is at most rank + rankᵢ a device, so that a device which missed
rounds, or holds the state cut to a lower rank, brings nothing old back and takes nothing away.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from florilegium.errors import ConfigError
from florilegium.tensors import Tensors
from strategies.draws import gaussian
from strategies.factors import Factors, join, layers, stack, truncate, truncated_svd
from strategies.rule import Duty, Linear, Turn

__all__ = ["Sketch"]

_Q = "sketch."


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch(Linear):
    """Average products through sketches.

    Attributes:
        width: k, cut to a layer's inputs and outputs; exact from the rank of the devices' summed changes on, which at
            most is the sum of twice their ranks.

    Raises:
        ConfigError: the width is less than 1.
    """

    name: ClassVar[str] = "sketch"
    mixed_ranks: ClassVar[bool] = True
    width: int = 32

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ConfigError(f"the sketch's width must be >= 1, got {self.width}", "twice the rank is a good start")

    def exchanges(self, round_number: int) -> int:
        """Two: the range of the sum, then its coordinates in it."""
        return 2

    def duty(self, turn: Turn) -> Duty:
        """Train once, sketch twice."""
        return Duty(work="train" if turn.exchange == 0 else "nothing")

    def down(self, state: Tensors, turn: Turn) -> Tensors:
        """Send the factors cut to the device's rank, then Q."""
        if turn.exchange == 1:
            return {key: tensor for key, tensor in state.items() if key.startswith(_Q)}
        return join({layer: truncate(pair, turn.rank) for layer, pair in _factors(state).items()})

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send the sketch of s (BA after − BA before)."""
        new, old = layers(after), layers(before)
        if turn.exchange == 0:
            wide = {layer: self._omega(layer, pair, turn) for layer, pair in new.items()}
            return {
                layer: turn.scale * (pair.b @ (pair.a @ wide[layer]) - old[layer].b @ (old[layer].a @ wide[layer]))
                for layer, pair in new.items()
            }
        return {
            layer: turn.scale * self._coordinates(down[_Q + layer], pair, old[layer]) for layer, pair in new.items()
        }

    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Find the range; then add what lies in it, and cut to the server's rank."""
        factors = _factors(state)
        if turn.exchange == 0:
            ranges = {_Q + layer: torch.linalg.qr(mean[layer].double())[0].float() for layer in factors}
            return join(factors) | ranges
        return join(
            {
                layer: truncated_svd(
                    stack([(1.0, pair), (1.0 / turn.scale, Factors(mean[layer], state[_Q + layer]))]), turn.rank
                )
                for layer, pair in factors.items()
            }
        )

    def _omega(self, layer: str, pair: Factors, turn: Turn) -> Tensor:
        outputs, inputs = int(pair.b.shape[0]), int(pair.a.shape[1])
        return gaussian((inputs, min(self.width, outputs, inputs)), turn.seed, turn.round, layer)

    @staticmethod
    def _coordinates(q: Tensor, new: Factors, old: Factors) -> Tensor:
        return (q.t() @ new.b) @ new.a - (q.t() @ old.b) @ old.a


def _factors(state: Tensors) -> dict[str, Factors]:
    return layers({key: tensor for key, tensor in state.items() if not key.startswith(_Q)})

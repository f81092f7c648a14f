"""Fed-SB: freeze A and B as the first gradient says, average the core between (Singhal et al., arXiv 2502.15436).

    ΔW = s B R A,  R̄ = Σ pᵢ Rᵢ    exact, and r² numbers a layer

B and A span the largest singular directions of the fleet's first gradient G. Round 1 finds them without training, by
two sums: Y = Σ pᵢ GᵢΩ, Q = orth(Y), then Z = Σ pᵢ QᵀGᵢ, whose SVD gives both. A device needs no matrix of W's size for
that: GΩ is the gradient of a LoRA's B while A = Ωᵀ, and QᵀG that of its A while B = Q. Ours: the sums in place of one
device's or the server's own data, and R = 0 as the start, so that a device begins at the base model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from florilegium.tensors import Tensors, add, subtract
from strategies.draws import gaussian
from strategies.factors import Factors, join, key_of, layers, split
from strategies.rule import Duty, Linear, Loaded, Turn

__all__ = ["FedSB"]

_CORE = "core."


@dataclass(frozen=True, slots=True)
class FedSB(Linear):
    """Average the cores between factors that are common and fixed."""

    name: ClassVar[str] = "fedsb"

    def sums_updates(self, turn: Turn) -> bool:
        """The cores' changes are updates, the gradients of the first round are not."""
        return turn.round > 1

    def exchanges(self, round_number: int) -> int:
        """Two in the first round, which finds the directions; one from then on."""
        return 2 if round_number == 1 else 1

    def duty(self, turn: Turn) -> Duty:
        """Measure the first gradient from both sides; then train the core."""
        if turn.round == 1:
            return Duty(work="gradient", part="B" if turn.exchange == 0 else "A")
        return Duty(part="core")

    def start(self, adapter: Tensors, turn: Turn) -> Tensors:
        """Hold Ωᵀ in the place of A."""
        return join(
            {
                layer: Factors(gaussian(tuple(pair.a.shape), turn.seed, "fedsb", layer), torch.zeros_like(pair.b))
                for layer, pair in layers(adapter).items()
            }
        )

    def load(self, down: Tensors, kept: Tensors, turn: Turn) -> Loaded:
        """Put the factors in place, and the core between them."""
        core = {key.removeprefix(_CORE): tensor for key, tensor in down.items() if key.startswith(_CORE)}
        return Loaded(adapter=_factors_alone(down), core=core or None)

    def up(self, before: Tensors, after: Tensors, down: Tensors, turn: Turn) -> Tensors:
        """Send the gradient of one factor, or what the core has changed by.

        The slot holds B R, and B's columns are orthonormal, so R = Bᵀ (B R).
        """
        if turn.round == 1:
            return split(after, "B" if turn.exchange == 0 else "A")
        change = subtract(split(after, "B"), split(before, "B"))
        return {
            _CORE + layer: down[key_of(layer, "B")].t() @ change[key_of(layer, "B")]
            for layer in layers(_factors_alone(down))
        }

    def advance(self, state: Tensors, mean: Tensors, turn: Turn) -> Tensors:
        """Find Q, then A and B; from the second round on move the core."""
        if turn.round == 1 and turn.exchange == 0:
            return join(
                {
                    layer: Factors(
                        torch.zeros_like(pair.a), torch.linalg.qr(mean[key_of(layer, "B")].double())[0].float()
                    )
                    for layer, pair in layers(state).items()
                }
            )
        if turn.round == 1:
            return self._directions(state, mean)
        return state | add({key: state[key] for key in mean}, mean)

    @staticmethod
    def _directions(state: Tensors, mean: Tensors) -> Tensors:
        found, cores = {}, {}
        for layer, pair in layers(state).items():
            u, _, v = torch.linalg.svd(mean[key_of(layer, "A")].double(), full_matrices=False)
            found[layer] = Factors(v.float(), pair.b @ u.float())
            cores[_CORE + layer] = torch.zeros(pair.rank, pair.rank)
        return join(found) | cores


def _factors_alone(state: Tensors) -> Tensors:
    return {key: tensor for key, tensor in state.items() if not key.startswith(_CORE)}

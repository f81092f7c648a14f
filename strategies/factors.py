"""The two factors of LoRA layers, and what rules of sharing do with their products.

    ΔW = s B A      A: (rank, inputs), B: (outputs, rank), s = α / rank

Products are never multiplied out where a rule needs a sum of them: the sum of K products of rank r is a product of rank
K·r, whose singular values are found from two thin QR decompositions and one (K·r × K·r) core.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from florilegium.errors import InputError
from florilegium.tensors import Tensors

__all__ = ["Factors", "join", "key_of", "layers", "pad", "split", "stack", "truncate", "truncated_svd"]

_A, _B = ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True, slots=True)
class Factors:
    """One layer's adapter.

    Attributes:
        a: `(rank, inputs)`.
        b: `(outputs, rank)`.
    """

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        """Width of the two factors."""
        return int(self.a.shape[0])

    def product(self) -> Tensor:
        """Return B A, `(outputs, inputs)`."""
        return self.b @ self.a

    def norm(self) -> float:
        """Return the Frobenius norm of B A, without multiplying it out: ‖BA‖² = ⟨BᵀB, AAᵀ⟩."""
        return float((self.b.t() @ self.b * (self.a @ self.a.t())).sum().clamp(min=0).sqrt())


def key_of(layer: str, factor: str) -> str:
    """Return the key under which PEFT's files hold a layer's factor, "A" or "B"."""
    return f"{layer}.lora_{factor}.weight"


def layers(state: Mapping[str, Tensor]) -> dict[str, Factors]:
    """Pair the factors of a whole adapter by layer.

    Raises:
        InputError: a factor lacks its other.
    """
    names = {key.removesuffix(_A).removesuffix(_B): None for key in state}
    try:
        return {name: Factors(state[name + _A], state[name + _B]) for name in names}
    except KeyError as error:
        raise InputError(f"there is no tensor {error.args[0]!r} beside its other factor", "send both") from None


def join(factors: Mapping[str, Factors]) -> Tensors:
    """Undo `layers`."""
    return {key: tensor for name, pair in factors.items() for key, tensor in ((name + _A, pair.a), (name + _B, pair.b))}


def split(state: Mapping[str, Tensor], factor: str) -> Tensors:
    """Return only the tensors of one factor, "A" or "B"."""
    return {key: tensor for key, tensor in state.items() if f".lora_{factor}." in key}


def stack(pairs: Iterable[tuple[float, Factors]]) -> Factors:
    """Return factors whose product is Σ wᵢ Bᵢ Aᵢ, exactly; their rank is the sum of the ranks."""
    weighted = list(pairs)
    return Factors(
        torch.cat([pair.a for _, pair in weighted]), torch.cat([weight * pair.b for weight, pair in weighted], dim=1)
    )


def truncated_svd(factors: Factors, rank: int) -> Factors:
    """Return the best approximation of B A by factors of `rank`, balanced: BᵀB = AAᵀ = the singular values.

    Where the product's rank is less, the rest of the factors is zero. Of the two signs that a pair of singular vectors
    may have, the one is taken that makes B's largest entry positive: else rounding would decide.
    """
    # In float64: squaring the condition in float32 costs half the digits of the small singular values.
    q_b, r_b = torch.linalg.qr(factors.b.double())
    q_a, r_a = torch.linalg.qr(factors.a.double().t())
    u, values, v = torch.linalg.svd(r_b @ r_a.t(), full_matrices=False)
    kept = min(rank, len(values))
    root = values[:kept].sqrt()
    left = q_b @ u[:, :kept]
    signs = left.gather(0, left.abs().argmax(0, keepdim=True))[0].sign()
    small = Factors((signs * root)[:, None] * (v[:kept] @ q_a.t()), left * (signs * root))
    return pad(Factors(small.a.to(factors.a.dtype), small.b.to(factors.b.dtype)), rank)


def truncate(factors: Factors, rank: int) -> Factors:
    """Keep the first `rank` rows of A and columns of B."""
    return Factors(factors.a[:rank], factors.b[:, :rank])


def pad(factors: Factors, rank: int) -> Factors:
    """Fill up with zeros to `rank`; the product stays."""
    missing = rank - factors.rank
    if missing <= 0:
        return factors
    a = torch.cat([factors.a, factors.a.new_zeros(missing, factors.a.shape[1])])
    b = torch.cat([factors.b, factors.b.new_zeros(factors.b.shape[0], missing)], dim=1)
    return Factors(a, b)

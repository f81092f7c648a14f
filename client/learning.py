"""Learning: train an adapter on rows, choose how much of it to use, and let the gate judge it.

A device does it once a round (`client.device`), a simulation for many arms (`simulation.play`), which remembers what
arms have in common. So an adapter is a value here, and who scores it is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

from torch import Tensor

from client.adapters import PERSONAL, SHARED, AdaptedModel
from client.dialogue import Example
from client.evaluation import Shots, nll
from client.finetuning import FineTuneConfig, FineTuneReport, Progress, finetune
from client.gate import Gate, Scores
from client.model import BaseModel
from client.strength import interpolate

__all__ = ["Adapter", "Trial", "judge", "train", "wearing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A personal adapter as a value.

    Attributes:
        rows: what it was trained on.
        strength: how much of its training it uses; see `client.strength`.
        state: its tensors, keyed as PEFT's files key them; None is the bare base.
        start: those that its training started from, likewise.
        training: what fine-tuning reports; None where it is not known.
        shared: tensors of the shared adapter that it is worn beside; None for none.
    """

    rows: frozenset[Example] = frozenset()
    strength: float = 1.0
    state: Mapping[str, Tensor] | None = field(default=None, repr=False)
    start: Mapping[str, Tensor] | None = field(default=None, repr=False)
    training: FineTuneReport | None = None
    shared: Mapping[str, Tensor] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, model: AdaptedModel) -> Self:
        """Return what the slots of a model hold."""
        return cls(state=_held(model, PERSONAL), shared=_held(model, SHARED))

    @property
    def states(self) -> dict[str, Mapping[str, Tensor]]:
        """The tensors by slot; none of a slot that is not worn."""
        slots = {SHARED: self.shared, PERSONAL: self.state}
        return {slot: state for slot, state in slots.items() if state is not None}

    @property
    def diverged(self) -> bool:
        """Whether training ended in numbers that are not finite; the state is then that of the beginning."""
        return self.training is not None and bool(self.training.stopped)

    def at(self, strength: float) -> Self:
        """Return a part of what was trained, of an adapter at full strength."""
        assert self.state is not None
        return replace(self, strength=strength, state=interpolate(self.start, self.state, strength))


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the gate said of a trained adapter.

    Attributes:
        candidate: the adapter, at the strength that the hold-out likes best.
        scores: the candidate's, on the hold-out.
        present: those of the adapter in use.
        promoted: whether the candidate may replace it.
    """

    candidate: Adapter
    scores: Scores
    present: Scores
    promoted: bool


@contextmanager
def wearing(model: AdaptedModel, adapter: Adapter) -> Iterator[BaseModel]:
    """Let a model answer with an adapter, and no other, inside the block."""
    for slot, state in adapter.states.items():
        model.load_state(slot, state)
    with model.active(*adapter.states):
        yield model.base


def train(
    model: AdaptedModel,
    rows: Sequence[Example],
    config: FineTuneConfig,
    *,
    checkpoint: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> Adapter:
    """Train the personal slot of a model from the state it is in, beside the shared one if that is not blank.

    For arguments and errors see `finetune`.
    """
    before = Adapter.of(model)
    training = finetune(model, rows, config=config, checkpoint=checkpoint, progress=progress)
    return replace(before, rows=frozenset(rows), state=model.state(PERSONAL), start=before.state, training=training)


def _held(model: AdaptedModel, slot: str) -> Mapping[str, Tensor] | None:
    return None if slot not in model.slots or model.is_blank(slot) else model.state(slot)


def judge(
    model: AdaptedModel,
    trained: Adapter,
    present: Adapter,
    gate: Gate,
    heldout: Sequence[Example],
    *,
    score: Callable[[Adapter], Scores],
    shots: Sequence[Shots] | None = None,
) -> Trial:
    """Choose how much of a trained adapter to use, and compare that with the adapter in use.

    Args:
        model: wears them.
        trained: at full strength.
        present: the adapter in use.
        gate: chooses and decides.
        heldout: the device's own annotated dialogues that no adapter was trained on; at least one.
        score: scores an adapter on them; it is asked for the candidate first.
        shots: for each held-out dialogue, questions with answers to put before it.
    """

    def nll_per_token(strength: float) -> float:
        with wearing(model, trained.at(strength)) as base:
            nats, tokens = nll(base, heldout, shots=shots)
        return nats / tokens

    candidate = trained.at(gate.choose_strength(nll_per_token))
    scores, before = score(candidate), score(present)
    return Trial(candidate=candidate, scores=scores, present=before, promoted=gate.better_or_equal(scores, before))

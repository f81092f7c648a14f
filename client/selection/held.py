"""The buffered sets as arrays: everything a policy compares a newcomer with, kept in step with the buffer.

Row r is bin r, in memory as in the file, so that a reopened buffer sees the same order. For every set two things are
kept current as the buffer changes, at O(sets · hidden) per change: the sum of its cosines to the sets of its domain,
which gives its IDD against the buffer as it is now, and its nearest neighbour over all domains.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from client.selection.metrics import Vector
from client.selection.policy import Scored

__all__ = ["Held"]

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

_SCORES: Final = ("eoe", "dss", "question_words", "possessives", "answered")


class Held:
    """Index over the held sets of one buffer.

    Args:
        capacity: how many sets the buffer can hold.
        seen: how many newcomers were decided before the next one.
    """

    def __init__(self, capacity: int, *, seen: int = 0) -> None:
        self.capacity = capacity
        self.seen = seen
        self.ids: list[str] = []
        self._codes_by_domain: dict[str, int] = {}
        self._vectors: Vector = np.empty((0, 0), np.float32)
        self._numbers: dict[str, Floats] = {name: np.zeros(capacity) for name in (*_SCORES, "square", "sum", "near")}
        self._codes: Ints = np.zeros(capacity, np.int64)
        self._arrived: Ints = np.zeros(capacity, np.int64)
        self._nearest: Ints = np.full(capacity, -1, np.int64)
        self._last_cosines: tuple[Vector, Vector] | None = None

    @classmethod
    def build(cls, capacity: int, sets: Iterable[tuple[Scored, int]], *, seen: int = 0) -> Held:
        """Index many sets, each with the number of its arrival, in the order of their bins."""
        held = cls(capacity, seen=seen)
        for scored, arrived in sets:
            held.ids.append(scored.dialogue_id)
            held._write(len(held) - 1, scored, arrived)
        held._search(range(len(held)))
        return held

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def has_room(self) -> bool:
        """Whether a bin is free."""
        return len(self) < self.capacity

    @property
    def hidden_size(self) -> int | None:
        """The length of the held vectors; None while there are none."""
        return self._vectors.shape[1] if self.ids else None

    @property
    def vectors(self) -> Vector:
        """Unit vectors, (sets, hidden)."""
        return self._vectors[: len(self)]

    @property
    def eoe(self) -> Floats:
        """Entropies of embedding, (sets,)."""
        return self._numbers["eoe"][: len(self)]

    @property
    def dss(self) -> Floats:
        """Domain specific scores, (sets,)."""
        return self._numbers["dss"][: len(self)]

    @property
    def question_words(self) -> Floats:
        """How many different words the user said, (sets,)."""
        return self._numbers["question_words"][: len(self)]

    @property
    def possessives(self) -> Floats:
        """How many words of the user's say that something is the user's own, (sets,)."""
        return self._numbers["possessives"][: len(self)]

    @property
    def answered(self) -> NDArray[np.bool_]:
        """Mark the sets whose user accepted the response or gave the ideal one, (sets,)."""
        return self._numbers["answered"][: len(self)] > 0

    @property
    def oldest_unanswered(self) -> str | None:
        """The set that arrived first of those that nobody answered about, else of all; None while there are none."""
        order = np.lexsort((self.arrived, self.answered))
        return self.ids[order[0]] if len(order) else None

    @property
    def idd(self) -> Floats:
        """In-domain dissimilarities against the buffer as it is now, (sets,); 1 for the only set of a domain."""
        codes = self._codes[: len(self)]
        others = np.bincount(codes)[codes] - 1 if len(self) else codes
        return np.where(others > 0, 1.0 - self._numbers["sum"][: len(self)] / np.maximum(others, 1), 1.0)

    @property
    def arrived(self) -> Ints:
        """Numbers of arrival, (sets,): a later set has a larger one."""
        return self._arrived[: len(self)]

    @property
    def nearest(self) -> Ints:
        """The row of each set's nearest other set over all domains, (sets,); -1 for the only set."""
        return self._nearest[: len(self)]

    @property
    def nearest_cosine(self) -> Floats:
        """The cosine of each set to its nearest other set, (sets,); -1 for the only set."""
        return self._numbers["near"][: len(self)]

    def in_domain(self, domain: str) -> NDArray[np.bool_]:
        """Mark the sets of a domain, (sets,)."""
        return np.equal(self._codes[: len(self)], self._codes_by_domain.get(domain, -1))

    def cosines(self, vector: Vector) -> Vector:
        """Return the cosines of a unit vector to every held set, (sets,); asked again for one newcomer it is free."""
        if not self.ids:
            return np.empty(0, np.float32)
        if self._last_cosines is None or self._last_cosines[0] is not vector:
            self._last_cosines = (vector, _dot(self.vectors, vector))
        return self._last_cosines[1]

    def distances(self, vector: Vector) -> Floats:
        """Return 1 − cosine of a unit vector to every held set, (sets,), as ‖v − h‖² / 2: exactly 0 between equals."""
        return (float(_dot(vector, vector)) + self._numbers["square"][: len(self)]) / 2 - self.cosines(vector)

    def idd_of(self, vector: Vector, domain: str) -> float:
        """Return the in-domain dissimilarity of a newcomer; 1 for the first set of a domain."""
        cosines = self.cosines(vector)[self.in_domain(domain)]
        return 1.0 - float(cosines.mean(dtype=np.float64)) if len(cosines) else 1.0

    def add(self, scored: Scored, arrived: int) -> None:
        """Put a set into the next free bin."""
        cosines = self.cosines(scored.vector)
        self.ids.append(scored.dialogue_id)
        self._write(len(self) - 1, scored, arrived)
        self._link(len(self) - 1, np.append(cosines, 0))

    def replace(self, row: int, scored: Scored, arrived: int) -> None:
        """Put a set into the bin of another."""
        cosines = self.cosines(scored.vector)
        orphans = self._unlink(row)
        self.ids[row] = scored.dialogue_id
        self._write(row, scored, arrived)
        self._link(row, cosines)
        self._search(orphans)

    def note_answer(self, dialogue_id: str, *, answered: bool) -> None:
        """Note that a set's user answered about it, or took the answer back; sets that are not held are passed over."""
        if dialogue_id in self.ids:
            self._numbers["answered"][self.ids.index(dialogue_id)] = answered

    def _search(self, rows: Iterable[int]) -> None:
        """Compute the cosine sums and nearest neighbours of some sets from scratch."""
        for row in rows:
            self._settle(row, _dot(self.vectors, self._vectors[row]))

    def _write(self, row: int, scored: Scored, arrived: int) -> None:
        if not self._vectors.size:
            self._vectors = np.empty((self.capacity, len(scored.vector)), np.float32)
        self._vectors[row] = scored.vector
        self._codes[row] = self._codes_by_domain.setdefault(scored.domain, len(self._codes_by_domain))
        self._arrived[row] = arrived
        self._numbers["square"][row] = _dot(scored.vector, scored.vector)
        for name in _SCORES:
            self._numbers[name][row] = getattr(scored, name)
        self._last_cosines = None

    def _link(self, row: int, cosines: Vector) -> None:
        """Make a set that was just written and all others known to one another."""
        others, same = self._settle(row, cosines)
        self._numbers["sum"][: len(self)][same] += others[same]
        closer = others > self.nearest_cosine
        self._numbers["near"][: len(self)][closer] = others[closer]
        self._nearest[: len(self)][closer] = row

    def _unlink(self, row: int) -> Ints:
        """Make all others forget a set; return the rows whose nearest neighbour it was."""
        same = self._codes[: len(self)] == self._codes[row]
        self._numbers["sum"][: len(self)][same] -= _dot(self.vectors, self._vectors[row])[same]
        self._last_cosines = None
        orphans: Ints = np.flatnonzero(self.nearest == row)
        return orphans

    def _settle(self, row: int, cosines: Vector) -> tuple[Floats, NDArray[np.bool_]]:
        """Store a set's cosine sum and nearest neighbour, given its cosines to all; its own does not matter.

        Of equals the last is the nearest, lest a run of equal sets have one neighbour in common, whose removal would
        cost a search for each of them.

        Returns:
            The cosines, minus infinity to itself, and which of the others are of its domain.
        """
        others = cosines.astype(np.float64)
        others[row] = -np.inf
        same = self._codes[: len(self)] == self._codes[row]
        same[row] = False
        last = len(self) - 1 - int(others[::-1].argmax())
        self._numbers["sum"][row] = others[same].sum()
        self._nearest[row] = last if len(self) > 1 else -1
        self._numbers["near"][row] = others[last] if len(self) > 1 else -1.0
        return others, same


def _dot(vectors: Vector, vector: Vector) -> Vector:
    """Return the dot product of a vector with another, or with each row of many: row by row, on one thread.

    A matrix product would be handed to all cores, which the model may be using; waiting for them costs far more than
    they save.
    """
    return np.asarray(np.vecdot(vectors, vector), np.float32)

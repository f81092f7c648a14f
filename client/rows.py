"""Training rows: a device's annotated dialogues, and what the base model writes from each of them.

It is written once and kept beside its dialogue, and each dialogue is read alone: what is written from it is the same
to the bit whatever else the buffer holds, and leaves with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from client.annotation import annotated_examples
from client.buffer import PrivateBuffer
from client.dialogue import Example, derive_id
from client.personal import PersonalModel
from client.settings import DeviceSettings
from client.synthesis import SYNTHESIZERS, Reason

__all__ = ["limit_children", "training_rows"]

_SYNTHESIS: Final = "synthesis"  # the buffer's note on how the stored children were written


def training_rows(
    buffer: PrivateBuffer, model: PersonalModel, settings: DeviceSettings
) -> tuple[list[Example], Counter[str]]:
    """Return the annotated dialogues, each with its children, and why generations were dropped.

    Args:
        buffer: holds the dialogues; children that it lacks are written and stored.
        model: the bare base writes; it is loaded only if there is an annotated dialogue.
        settings: how to write.

    Raises:
        ModelError: the base model cannot be loaded.
        StorageError: the disk refuses; what was stored before stays.
    """
    rows: list[Example] = []
    drops: Counter[str] = Counter()
    originals = annotated_examples(buffer.dialogues())
    if originals:
        _follow_settings(buffer, model, settings)
    for original in originals:
        _write_children(original, buffer, model, settings)
        rows += [original, *buffer.children(original.source_id)]
        drops.update(buffer.child_drops(original.source_id))
    return rows, drops


def limit_children(rows: Iterable[Example], count: int) -> list[Example]:
    """Keep `count` synthesized rows of each dialogue at most, the first ones."""
    seen: Counter[str] = Counter()
    kept = []
    for row in rows:
        seen[row.source_id] += row.is_synthesized
        if not row.is_synthesized or seen[row.source_id] <= count:
            kept.append(row)
    return kept


def _follow_settings(buffer: PrivateBuffer, model: PersonalModel, settings: DeviceSettings) -> None:
    """Drop children that were written by another model or with other settings."""
    how = (settings.synthesizer, settings.synthesis_count, str(settings.synthesis_temperature), settings.seed)
    name = derive_id(model.adapted.base_fingerprint, *how)
    if buffer.meta(_SYNTHESIS) != name:
        buffer.drop_children({_SYNTHESIS: name})


def _write_children(original: Example, buffer: PrivateBuffer, model: PersonalModel, settings: DeviceSettings) -> None:
    key = original.source_id
    if buffer.children(key) or buffer.child_drops(key):
        return
    with model.active() as base:
        (made,) = SYNTHESIZERS[settings.synthesizer](
            base,
            [original],
            count=settings.synthesis_count,
            seed=settings.seed,
            temperature=settings.synthesis_temperature,
        )
    fitting = [child for child in made.children if buffer.fits(child.question, child.response)]
    excess = Counter({Reason.TOO_LONG.value: len(made.children) - len(fitting)})
    buffer.store_children(key, fitting, made.drops + excess)

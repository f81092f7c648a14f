"""Device: the loop that personalizes one user's model, with no server anywhere.

    observe → respond, embed, select, keep        (every dialogue)
    learn   → ask, synthesize, fine-tune, gate    (every `round_every` dialogues)

After Qin et al., DAC 2024 (arXiv 2311.12275). The state is a directory: whatever a call did is there when it returns,
and what a killed process left undone is done by the next one.
"""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from itertools import accumulate, repeat
from pathlib import Path
from typing import Final, Self

import tomli_w

from client.adapters import AdaptedModel, AdapterStore
from client.annotation import Annotator, QueueAnnotator, read_edit
from client.buffer import PrivateBuffer
from client.dialogue import Annotation, Dialogue, derive_id, derive_seed
from client.durable import make_directory, remove_drafts, replace_file, storage_errors
from client.finetuning import Progress
from client.model import BaseModel, Embedding, Generation
from client.personal import PersonalModel
from client.round import Round, RoundReport
from client.selection.lexicons import load_lexicons
from client.selection.policy import Decision
from client.settings import DeviceSettings
from florilegium.errors import ConfigError, InputError, StorageError

__all__ = ["Device", "DeviceSettings", "Observation", "RoundReport"]

REDRAW_TEMPERATURE: Final = 0.8
LONGEST_REDRAW: Final = 256  # as many times anyone asks for another response in a row
_COORDINATION: Final = "coordination"  # folder of what the device needs for coordinated rounds, once it takes part

_log = logging.getLogger(__name__)

# The device's values in the buffer's file.
_ROUND: Final = "round"  # rounds done
_ROUND_SEEN: Final = "round_seen"  # dialogues seen when the last one began
_ROUND_DUE: Final = "round_due"  # a reason for a round before enough dialogues came
_FORGETTING: Final = "forgetting"  # what was forgotten may still be in adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What came of one dialogue."""

    dialogue: Dialogue
    decision: Decision


class Device:
    """One user's device: a directory, a frozen base model, a private buffer and a personal adapter.

    Use `Device.create` once and `Device.open` from then on; a device is a context manager. The base model is loaded
    when it is first needed. Threads may share a device: while one uses the model, to train it say, the others wait.

    Attributes:
        directory: where its state is.
        settings: as in `device.toml`.
        buffer: the private buffer.
        adapters: the personal adapter's versions.
    """

    def __init__(
        self,
        directory: Path,
        settings: DeviceSettings,
        *,
        model: BaseModel | None = None,
        annotator: Annotator | None = None,
        read_only: bool = False,
    ) -> None:
        self.directory, self.settings = directory, settings
        self._changing = threading.RLock()  # held while the adapter in use may change; taken before the model's own
        self.buffer = PrivateBuffer(
            directory / "buffer.sqlite",
            bins=settings.bins,
            bin_bytes=settings.bin_kilobytes * 1024,
            policy=settings.policy,
            holdout_share=settings.holdout_share,
            holdout_bins=max(1, settings.bins // 4),
            seed=settings.seed,
            eoe=settings.eoe,
            lexicons=load_lexicons(directory / "lexicons"),
            read_only=read_only,
        )
        try:
            self.adapters = AdapterStore(directory / "adapters", read_only=read_only)
            self._model = PersonalModel(
                directory,
                settings,
                self.adapters,
                base=model,
                on_load=self._follow_model,
                on_misfit=lambda: self.buffer.set_meta(_ROUND_DUE, "1"),
                coordinated=self.coordination.is_dir(),
                closed=read_only,
            )
            self._annotator = annotator or QueueAnnotator(self.buffer)
            if not read_only:
                self._recover()
        except BaseException:
            self.buffer.close()
            raise

    @classmethod
    def create(cls, directory: Path, settings: DeviceSettings | None = None) -> None:
        """Make a device's directory, for its owner only.

        Raises:
            ConfigError: there is a device already.
            StorageError: the directory cannot be written.
        """
        path = directory / "device.toml"
        if path.exists():
            raise ConfigError(f"{directory} is a device already", "open it, or choose another directory")
        values = (settings or DeviceSettings()).model_dump(mode="json", exclude_none=True)
        with storage_errors(directory):
            make_directory(directory)
            replace_file(path, tomli_w.dumps(values).encode())

    @staticmethod
    def read_settings(directory: Path) -> DeviceSettings:
        """Return a device's settings, whoever has it open.

        Raises:
            StorageError: there is no device.
            ConfigError: they are wrong.
        """
        if not (directory / "device.toml").is_file():
            raise StorageError(f"{directory} is no device", f"make one: florilegium device init {directory}")
        return DeviceSettings.load(directory / "device.toml")

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        model: BaseModel | None = None,
        annotator: Annotator | None = None,
        read_only: bool = False,
        coordinated: bool = False,
    ) -> Self:
        """Open a device; only one process at a time can, but for those that only look.

        Args:
            directory: as given to `create`.
            model: the base model, if it is loaded already; the settings' own otherwise.
            annotator: who answers; a durable queue for people by default.
            read_only: look at the buffer and the status while another process may have the device open.
            coordinated: let it take part in coordinated rounds; from then on it has room for a shared adapter.

        Raises:
            BusyError: it is in use.
            StorageError: there is no device, or it cannot be read.
        """
        settings = cls.read_settings(directory)
        if coordinated:
            with storage_errors(directory):
                make_directory(directory / _COORDINATION)
        never_ran = not (directory / "buffer.sqlite").is_file()  # so there is nothing to look at yet, and no one writes
        return cls(directory, settings, model=model, annotator=annotator, read_only=read_only and not never_ran)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def load(self) -> None:
        """Load the base model now; the first call that needs it does it otherwise.

        Raises:
            ModelError: it cannot be loaded.
        """
        self._model.adapted  # noqa: B018

    def close(self) -> None:
        """Take the adapter off the base model and release the directory."""
        self._model.close()
        self.buffer.close()

    def observe(self, question: str, response: str | None = None, *, dialogue_id: str | None = None) -> Observation:
        """Answer a question, unless its response is given, and let selection decide about the dialogue.

        When this returns, the decision is on the disk.

        Args:
            question: what the user said.
            response: what the model answered, if it answered already.
            dialogue_id: an identifier of the caller's; a random one by default. Observing one again changes nothing.

        Raises:
            InputError: the question is empty, or the identifier is none; see `Dialogue`.
            ModelError: the base model cannot be loaded.
            StorageError: nothing was stored.
        """
        named = {} if dialogue_id is None else {"dialogue_id": dialogue_id}
        asked = Dialogue(question=question, response=response or "", **named)
        if response is not None:
            return self._offer(asked)
        answer = self._answer(question)
        return self._offer(replace(asked, response=answer.text), answer.embedding)

    def regenerate(self, dialogue: Dialogue) -> Observation:
        """Draw another response for a user who did not like the first; the first gains priority for being asked about.

        The draw depends on the dialogue's identifier and the settings' seed alone.
        """
        with suppress(InputError):  # the buffer did not keep it: there is nothing to ask about
            QueueAnnotator(self.buffer).regenerated(dialogue.dialogue_id)
        answer = self._answer(dialogue.question, redraw=derive_seed(self.settings.seed, dialogue.dialogue_id))
        key = _redrawn(dialogue.dialogue_id)
        return self._offer(
            Dialogue(question=dialogue.question, response=answer.text, dialogue_id=key), answer.embedding
        )

    def annotate(self, annotation: Annotation) -> bool:
        """Store what the user said of a dialogue; return False if the buffer does not hold it."""
        return self.buffer.annotate(annotation)

    def edit(self, dialogue: Dialogue, text: str) -> bool:
        """Take a reply that the user edited as the ideal answer, and keep its dialogue whatever selection decided.

        Returns:
            False if it cannot be kept: it is larger than a bin.

        Raises:
            InputError: the text is empty or too long.
            StorageError: nothing was stored.
        """
        annotation = read_edit(dialogue, text)
        if self.buffer.annotate(annotation):
            return True
        self.buffer.adopt(dialogue, self._embed(dialogue))
        return self.buffer.annotate(annotation)

    @property
    def due(self) -> bool:
        """Whether enough dialogues came since the last round, or the adapter was lost: to a forgetting, to settings."""
        last = int(self.buffer.meta(_ROUND_SEEN) or 0)
        return self.buffer.meta(_ROUND_DUE) is not None or self.buffer.seen - last >= self.settings.round_every

    def learn(self, *, memory_mb: int | None = None, progress: Callable[[Progress], None] | None = None) -> RoundReport:
        """Run one learning round; a round that was killed goes on where it was.

        Args:
            memory_mb: bound on the process's memory in fine-tuning, MiB, in place of the settings' own.
            progress: called after each step of fine-tuning.

        Raises:
            MemoryBudgetError: fine-tuning does not fit the memory it was given; the present adapter stays.
            ModelError: the base model cannot be loaded.
            StorageError: the disk refuses; the present adapter stays.
        """
        with self._changing:
            number = int(self.buffer.meta(_ROUND) or 0) + 1
            seen = self.buffer.seen
            config = self.settings.finetuning
            learning = Round(
                number=number,
                settings=self.settings,
                finetuning=config if memory_mb is None else replace(config, memory_mb=memory_mb),
                buffer=self.buffer,
                annotator=self._annotator,
                model=self._model,
                adapters=self.adapters,
                checkpoint=self._checkpoint,
                progress=progress,
            )
            with self.buffer.frozen():
                report = learning.run()
                self.buffer.update_meta({_ROUND: str(number), _ROUND_SEEN: str(seen), _ROUND_DUE: None})
        return report

    def forget(self, dialogue_id: str) -> bool:
        """Delete a dialogue and all that came of it, the responses drawn instead and every adapter included.

        What a server was sent before is in its hands.

        A learning round is due then, and trains without it. If rounds start afresh and the dialogue displaced no other,
        the adapter is to the bit what it would be had the dialogue never been kept.

        Returns:
            Whether anything was known of it.

        Raises:
            StorageError: the disk refuses or a reader holds the file; the next call or opening ends it.
        """
        redrawn = accumulate(repeat(dialogue_id, LONGEST_REDRAW), lambda before, _: _redrawn(before))
        with self._changing:
            try:
                return self.buffer.forget(*redrawn, meta={_FORGETTING: "1", _ROUND_DUE: "1"})
            finally:
                self._end_forgetting()

    def roll_back(self) -> int | None:
        """Put the adapter before the present one in use again; return its version, None for the bare base."""
        with self._changing, self._model.changing():
            return self.adapters.roll_back()

    @property
    def coordination(self) -> Path:
        """The folder of what the device needs for coordinated rounds; it is there once the device took part."""
        return self.directory / _COORDINATION

    @property
    def memory(self) -> Path:
        """The file of what a participant keeps between coordinated rounds, a personal adapter among it."""
        return self.coordination / "memory"

    @property
    def worn(self) -> tuple[str, ...]:
        """The adapters that the device answers with: "shared", "personal", both, or none."""
        current = self.adapters.current
        return () if current is None else self.adapters.version(current).slots

    @contextmanager
    def lent(self) -> Iterator[PersonalModel]:
        """Lend the model in the block; whatever its slots held, the device wears the adapters in use afterwards."""
        with self._changing, self._model.changing():
            yield self._model

    def status(self) -> dict[str, object]:
        """Return what the device has seen, holds, asks and learned: numbers, for people and programs."""
        return {
            "model": self.settings.model,
            **asdict(self.buffer.stats()),
            "asked": len(self.buffer.pending()),
            "rounds": int(self.buffer.meta(_ROUND) or 0),
            "round_due": self.due,
            "adapters_in_use": list(self.worn),
            "adapter_version": self.adapters.current,
            "adapter_versions": self.adapters.numbers,
        }

    @property
    def _checkpoint(self) -> Path:
        return self.directory / "round" / "finetuning.pt"

    def _follow_model(self, model: AdaptedModel) -> None:
        if self.buffer.follow_model(model.base_fingerprint, model.embed):
            _log.warning("%s: the base model is another one, so what is held was embedded again", self.directory)

    def _recover(self) -> None:
        """Finish what an earlier process left undone."""
        with storage_errors(self.directory):
            remove_drafts(self.directory)
            remove_drafts(self._checkpoint.parent)
            remove_drafts(self.coordination)
        self._end_forgetting()

    def _end_forgetting(self) -> None:
        """Delete every adapter that may have learned what was forgotten; the ledger of releases stays."""
        if self.buffer.meta(_FORGETTING) is None:
            return
        with self._model.changing():
            self.adapters.clear()
            with storage_errors(self.directory):
                self.memory.unlink(missing_ok=True)
                if self._checkpoint.parent.exists():
                    shutil.rmtree(self._checkpoint.parent)
        self.buffer.set_meta(_FORGETTING, None)

    def _answer(self, question: str, *, redraw: int | None = None) -> Generation:
        """Answer with the adapters in use, greedily unless `redraw` seeds a draw.

        The embedding comes from the pass that made the response. Where an adapter took part in that pass there is none:
        embeddings of different adapters cannot be compared.
        """
        with self._model.in_use() as base:
            (answer,) = base.generate(
                [base.chat.prompt(question)],
                max_new_tokens=self.settings.max_new_tokens,
                temperature=0.0 if redraw is None else REDRAW_TEMPERATURE,
                seeds=[redraw or 0],
                embed=not self._model.adapted.worn,
            )
        return answer

    def _embed(self, dialogue: Dialogue) -> Embedding:
        with self._model.active() as base:
            return base.embed([dialogue])[0]

    def _offer(self, dialogue: Dialogue, embedding: Embedding | None = None) -> Observation:
        """Let selection decide; without an embedding the bare base reads the dialogue first."""
        decision = self.buffer.offer(dialogue, embedding or self._embed(dialogue))
        return Observation(dialogue=dialogue, decision=decision)


def _redrawn(dialogue_id: str) -> str:
    """Return the identifier of the dialogue with another response to the same question."""
    return derive_id("regenerated", dialogue_id)

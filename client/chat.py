"""Chat text as tokens: which of them are the user's, which the model's, which the template's.

A chat template is rendered once with placeholders and cut at them; the text between is tokenized in its own right.
So the tokens of a question are known exactly (for embeddings and for the loss), a dialogue that spells out a control
token cannot open a turn, and no template engine runs per prompt. A model without a template gets the plain format

    Question:⏎QUESTION⏎Answer:⏎ANSWER⏎⏎
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from transformers import PreTrainedTokenizerBase

from florilegium.errors import ModelError

__all__ = ["ChatFormat", "Prompt"]

_SLOT: Final = re.compile(r"FLORISLOT(\d+)X")
_PLAIN_TURN: Final = ("Question:\n{}\nAnswer:\n", "{}\n\n")
_PLAIN_STOP: Final = "\nQuestion:"
_CHARACTERS_PER_TOKEN: Final = 16  # more than any natural text has; what lies beyond is not worth tokenizing

_Frame = list[list[int] | int]  # tokens of the template, or the number of the text that goes there


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt's tokens; those from `start` to `stop` are the question's own."""

    ids: list[int]
    start: int
    stop: int

    def __repr__(self) -> str:
        return f"Prompt({len(self.ids)} tokens, question {self.start}:{self.stop})"


class ChatFormat:
    """The way one model's tokenizer writes a chat.

    Args:
        tokenizer: the model's own.
        context_length: the longest sequence the model takes, tokens.
        stop_ids: tokens that the model's generation settings name as an end, if any.

    Attributes:
        stop_ids: every token that ends an answer.

    Raises:
        ModelError: the chat template cannot be rendered, or there is no token that ends an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context_length: int, stop_ids: Sequence[int] = ()) -> None:
        self.context_length = context_length
        self._tokenizer = tokenizer
        self._frames: dict[tuple[int, bool], _Frame] = {}
        self._has_template = bool(tokenizer.chat_template)
        self._end = self._closing()
        self.stop_ids = frozenset({self._end[-1], *stop_ids} | ({tokenizer.eos_token_id} - {None}))

    def prompt(self, question: str, *, shots: Sequence[tuple[str, str]] = (), system: str | None = None) -> Prompt:
        """Write a question so that an answer can follow, leaving a quarter of the context to the answer.

        What does not fit goes in this order: the first shots, one by one, then the head of the question.

        Args:
            question: the user's text.
            shots: earlier questions with their answers, the most relevant one last.
            system: an instruction for the whole chat.
        """
        return self._fit(question, list(shots), system, self.context_length - self.context_length // 4)

    def example(
        self, question: str, response: str, *, shots: Sequence[tuple[str, str]] = ()
    ) -> tuple[list[int], Prompt]:
        """Write a question with its answer, at most `context_length` tokens.

        What does not fit goes in this order: the tail of a response beyond three quarters of the context (it then has
        no end-of-turn token, because it does not end there), the first shots, the head of the question.

        Returns:
            The whole row, and the prompt it begins with; the rest is the response and its end of turn.
        """
        room = self.context_length * 3 // 4
        answer = self._encode(response[: room * _CHARACTERS_PER_TOKEN]) + self._end
        if len(answer) > room:
            answer = answer[:room]
        prompt = self._fit(question, list(shots), None, self.context_length - len(answer))
        return prompt.ids + answer, prompt

    def dialogue(self, question: str, response: str) -> tuple[list[int], Prompt]:
        """Write a question with a response as `example` does, without the end of turn."""
        ids, prompt = self.example(question, response)
        return (ids[: -len(self._end)] if ids[-len(self._end) :] == self._end else ids), prompt

    def plain(self, text: str) -> list[int]:
        """Write a text that is no chat: the token that begins a document, if the model has one, and the text's own."""
        bos = self._tokenizer.bos_token_id
        ids = self._encode(text[: self.context_length * _CHARACTERS_PER_TOKEN])
        return ((bos is not None) * [bos] + ids)[: self.context_length]

    def clean(self, ids: Sequence[int]) -> str:
        """Return generated tokens as clean text: up to the end of turn, without control tokens and outer spaces."""
        stop = next((at for at, token in enumerate(ids) if token in self.stop_ids), len(ids))
        text = str(self._tokenizer.decode(list(ids[:stop]), skip_special_tokens=True))
        return (text if self._has_template else text.split(_PLAIN_STOP, 1)[0]).strip()

    def _fit(self, question: str, shots: list[tuple[str, str]], system: str | None, limit: int) -> Prompt:
        question = question[-limit * _CHARACTERS_PER_TOKEN :]
        prompt = self._write(question, shots, system)
        while len(prompt.ids) > limit and shots:
            shots = shots[1:]
            prompt = self._write(question, shots, system)
        while len(prompt.ids) > limit:
            tokens = prompt.stop - prompt.start
            kept = len(question) * (tokens - len(prompt.ids) + limit) // tokens
            if kept < 1:
                raise ModelError(
                    f"the chat format alone takes {len(prompt.ids) - tokens} of the {limit} tokens of a prompt",
                    "use a model with a longer context, or a shorter system prompt",
                )
            question = question[-kept:]
            prompt = self._write(question, shots, system)
        return prompt

    def _write(self, question: str, shots: Sequence[tuple[str, str]], system: str | None) -> Prompt:
        texts = [text for shot in shots for text in shot] + [question]
        if system is not None:
            texts.append(system)
        ids: list[int] = []
        start = stop = 0
        for part in self._frame(len(shots), system is not None):
            if isinstance(part, list):
                ids += part
                continue
            before = len(ids)
            ids += self._encode(texts[part])
            if part == 2 * len(shots):
                start, stop = before, len(ids)
        return Prompt(ids, start, stop)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text.strip(), add_special_tokens=False, split_special_tokens=True)["input_ids"])

    def _frame(self, shots: int, system: bool) -> _Frame:
        key = (shots, system)
        if key not in self._frames:
            self._frames[key] = self._cut(self._render(shots, system=system), 2 * shots + 1 + system)
        return self._frames[key]

    def _cut(self, text: str, slots: int) -> _Frame:
        parts = _SLOT.split(text)  # template, slot, template, slot, ..., template
        if sorted(parts[1::2]) != sorted(str(slot) for slot in range(slots)):
            raise ModelError("the model's chat template does not show every message once", "use another model")
        frame: _Frame = []
        for at, part in enumerate(parts):
            frame.append(int(part) if at % 2 else self._template_ids(part))
        return frame

    def _template_ids(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    def _render(self, shots: int, *, system: bool) -> str:
        contents = [f"FLORISLOT{slot}X" for slot in range(2 * shots + 2)]
        asked = contents[2 * shots]
        instruction = contents[2 * shots + 1]
        if not self._has_template:
            turns = "".join(
                _PLAIN_TURN[0].format(contents[2 * shot]) + _PLAIN_TURN[1].format(contents[2 * shot + 1])
                for shot in range(shots)
            )
            head = f"{instruction}\n\n" if system else ""
            return self._leading() + head + turns + _PLAIN_TURN[0].format(asked)
        messages = [
            {"role": "assistant" if slot % 2 else "user", "content": contents[slot]} for slot in range(2 * shots + 1)
        ]
        if system:
            with_role = [{"role": "system", "content": instruction}, *messages]
            text = self._apply(with_role, prompt=True, refusable=True)
            if instruction in text:
                return text
            messages[0]["content"] = (
                f"{instruction}\n\n{messages[0]['content']}"  # no such role: the first turn says it
            )
        return self._apply(messages, prompt=True)

    def _apply(self, messages: list[dict[str, str]], *, prompt: bool, refusable: bool = False) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    messages,
                    tokenize=False,
                    add_generation_prompt=prompt,
                    enable_thinking=False,  # answers, not drafts of them; templates that know no thinking ignore it
                )
            )
        except Exception as error:  # a template may raise whatever it likes
            if refusable:
                return ""
            raise ModelError(f"the model's chat template fails ({type(error).__name__})", "use another model") from None

    def _leading(self) -> str:
        first = list(self._tokenizer("")["input_ids"])[:1]
        return str(self._tokenizer.bos_token) if first and first == [self._tokenizer.bos_token_id] else ""

    def _closing(self) -> list[int]:
        """Return what ends an answer: the template's text after it, up to its first control token."""
        if self._has_template:
            texts = ["FLORISLOT0X", "FLORISLOT1X"]
            roles = ["user", "assistant"]
            messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=True)]
            ids = self._template_ids(self._apply(messages, prompt=False).rpartition(texts[1])[2])
            added = self._tokenizer.added_tokens_decoder.items()
            control = {*self._tokenizer.all_special_ids, *(token for token, piece in added if piece.special)}
            for at, token in enumerate(ids):
                if token in control:
                    return ids[: at + 1]
        if self._tokenizer.eos_token_id is None:
            raise ModelError("the model's tokenizer has no token that ends an answer", "set its eos_token")
        return [int(self._tokenizer.eos_token_id)]

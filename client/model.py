"""The frozen base model of a device: write prompts, generate, embed.

One pass answers a question and embeds the dialogue. The embedding is the final hidden state (after the last norm),
averaged over the tokens of question and response, template tokens left out, and scaled to length 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from client.chat import ChatFormat, Prompt
from client.dialogue import Dialogue
from client.generation import Request, generate
from client.loading import SEEDLING, DType, load_parts, locate
from client.quantization import Quantization
from client.reading import Row, device_of, read
from client.selection.metrics import eoe_energy, eoe_histogram
from florilegium.errors import ConfigError, ModelError

__all__ = ["BaseModel", "Embedding", "Generation", "Prompt", "default_device", "load_model"]

MAX_CONTEXT = 4096  # a device's memory: no sequence is longer, whatever a model says it takes


@dataclass(frozen=True, slots=True)
class Embedding:
    """What selection knows of a dialogue.

    Attributes:
        vector: mean final hidden state over the dialogue's text, (hidden,), float32, length 1.
        eoe_histogram: entropy of embedding, the released code's reading.
        eoe_energy: entropy of embedding, the length-fair reading.
    """

    vector: NDArray[np.float32] = field(repr=False)
    eoe_histogram: float
    eoe_energy: float


@dataclass(frozen=True, slots=True)
class Generation:
    """An answer.

    Attributes:
        text: without control tokens and outer spaces.
        token_count: tokens generated, the end of turn left out.
        embedding: of the question with this answer, if asked for.
    """

    text: str
    token_count: int
    embedding: Embedding | None = None

    def __repr__(self) -> str:
        return f"Generation({self.token_count} tokens, {len(self.text)} characters)"


class BaseModel:
    """A causal language model with its tokenizer; adapters injected into `module` take part while they are active.

    Args:
        name: how errors and reports call it.
        module: frozen, in evaluation mode, on its device.
        tokenizer: its own.

    Attributes:
        name: as given.
        module: as given.
        tokenizer: as given.
        hidden_size: width of the embedding.
        context_length: the longest sequence, tokens; at most `MAX_CONTEXT`.
        weight_bytes: memory of the weights as they were given.
        chat: how prompts are written.
    """

    def __init__(self, name: str, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.name, self.module, self.tokenizer = name, module, tokenizer
        config = module.config.get_text_config()
        self.hidden_size = int(config.hidden_size)
        self.context_length = min(int(getattr(config, "max_position_embeddings", None) or MAX_CONTEXT), MAX_CONTEXT)
        tensors = [*module.parameters(), *module.buffers()]
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        self.chat = ChatFormat(tokenizer, self.context_length, _generation_stops(module))

    def __repr__(self) -> str:
        return f"BaseModel({self.name!r}, {self.weight_bytes / 1e6:.1f} MB on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return device_of(self.module)

    def prompt_ids(
        self, question: str, *, shots: Sequence[tuple[str, str]] = (), system: str | None = None
    ) -> list[int]:
        """Return the tokens of a prompt; see `ChatFormat.prompt` for what goes when it is too long."""
        return self.chat.prompt(question, shots=shots, system=system).ids

    def example_ids(self, question: str, response: str) -> tuple[list[int], int]:
        """Return the tokens of a training row and how many leading ones are not supervised; the end of turn is.

        See `ChatFormat.example` for what goes when it is too long.
        """
        ids, prompt = self.chat.example(question, response)
        return ids, len(prompt.ids)

    def generate(
        self,
        prompts: Sequence[list[int] | Prompt],
        *,
        max_new_tokens: int | Sequence[int] = 64,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        embed: bool = False,
    ) -> list[Generation]:
        """Continue prompts, in batches.

        Args:
            prompts: from `prompt_ids` or `ChatFormat.prompt`; equal ones are read once. Of a bare list every token
                but the first counts as the question's when an embedding is asked for.
            max_new_tokens: most tokens of an answer, or one number for each; fewer where the context ends.
            temperature: 0 for the likeliest token; above, tokens are drawn.
            seeds: one per prompt, needed for drawing; equal prompts with equal seeds have equal answers.
            embed: also embed each question with its answer, in the same pass.

        Raises:
            ConfigError: an argument is out of its range.
            ModelError: a prompt is empty or leaves no room for an answer.
        """
        limits = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
        _check_sampling(len(prompts), limits, temperature, seeds)
        whole = [_as_prompt(prompt) for prompt in prompts]
        requests = [
            self._request(prompt, limit, seed)
            for prompt, limit, seed in zip(whole, limits, seeds or [0] * len(whole), strict=True)
        ]
        generated = generate(
            self.module, requests, stop_ids=self.chat.stop_ids, temperature=temperature, with_states=embed
        )
        answers = []
        for prompt, result in zip(whole, generated, strict=True):
            embedding = None
            if result.prompt_states is not None and result.states is not None:
                embedding = _embedding(torch.cat([result.prompt_states[prompt.start : prompt.stop], result.states]))
            answers.append(Generation(self.chat.clean(result.ids), len(result.ids), embedding))
        return answers

    def respond(
        self,
        questions: Sequence[str],
        *,
        shots: Sequence[Sequence[tuple[str, str]]] | None = None,
        max_new_tokens: int = 64,
        embed: bool = True,
    ) -> list[Generation]:
        """Answer questions greedily.

        Args:
            questions: the users' texts.
            shots: for each question, earlier questions with answers to put before it.
            max_new_tokens: most tokens of an answer.
            embed: also embed each dialogue. Behind shots this takes a pass of its own, because an embedding must not
                depend on what stood before the dialogue.
        """
        given = shots or [()] * len(questions)
        prompts = [self.chat.prompt(text, shots=before) for text, before in zip(questions, given, strict=True)]
        answers = self.generate(prompts, max_new_tokens=max_new_tokens, embed=embed and shots is None)
        if not embed or shots is None:
            return answers
        pairs = [(question, answer.text) for question, answer in zip(questions, answers, strict=True)]
        embeddings = self._embed(pairs)
        return [
            Generation(answer.text, answer.token_count, embedding)
            for answer, embedding in zip(answers, embeddings, strict=True)
        ]

    def embed(self, dialogues: Sequence[Dialogue]) -> list[Embedding]:
        """Embed dialogues, in batches."""
        return self._embed([(dialogue.question, dialogue.response) for dialogue in dialogues])

    def _embed(self, pairs: Sequence[tuple[str, str]]) -> list[Embedding]:
        written = [self.chat.dialogue(question, response) for question, response in pairs]
        rows = [Row(ids, 1, 1) for ids, _ in written]
        embeddings = []
        for (_, prompt), reading in zip(written, read(self.module, rows, with_states=True), strict=True):
            assert reading.states is not None
            states = [reading.states[prompt.start : prompt.stop], reading.states[len(prompt.ids) :]]
            embeddings.append(_embedding(torch.cat(states)))
        return embeddings

    def _request(self, prompt: Prompt, max_new_tokens: int, seed: int) -> Request:
        room = self.context_length - len(prompt.ids)
        if not prompt.ids or room < 1:
            raise ModelError(
                f"a prompt has {len(prompt.ids)} tokens, it must have 1 to {self.context_length - 1}",
                "write it with prompt_ids, which cuts what does not fit",
            )
        return Request(prompt.ids, min(max_new_tokens, room), seed)


def load_model(
    name_or_path: str = SEEDLING,
    *,
    dtype: DType = "auto",
    quantization: Quantization | None = None,
    device: str = "auto",
) -> BaseModel:
    """Load a base model, once per process for the same arguments.

    Args:
        name_or_path: "seedling" (the built-in model), a local folder or a Hub name.
        dtype: "float32", "bfloat16" or "auto": bfloat16 on an accelerator; on a CPU float32, or bfloat16 where float32
            weights would take more than 4 GiB.
        quantization: "int8", "int4" or None; needs the extra `quantization`.
        device: "cpu", "cuda", ... or "auto": CUDA if there is one.

    Raises:
        ModelError: there is no such model or it cannot be loaded.
        ConfigError: an argument has no such value, or a library is missing.
    """
    _check_one_of("dtype", dtype, ("auto", "float32", "bfloat16"))
    _check_one_of("quantization", quantization, (None, "int8", "int4"))
    place = default_device() if device == "auto" else device
    return _load(name_or_path, locate(name_or_path), dtype, quantization, place)


def default_device() -> str:
    """Return where a model is put that is asked for with the device "auto"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@functools.lru_cache(maxsize=4)
def _load(name: str, source: str, dtype: DType, quantization: Quantization | None, device: str) -> BaseModel:
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ConfigError(f"device {device!r} is not there", 'use "auto" or "cpu"') from None
    return BaseModel(name, *load_parts(source, dtype, quantization, place))


def _check_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def _check_sampling(count: int, limits: Sequence[int], temperature: float, seeds: Sequence[int] | None) -> None:
    if len(limits) != count:
        raise ConfigError(f"there are {len(limits)} limits for {count} prompts", "give one number, or one per prompt")
    if min(limits, default=1) < 1:
        raise ConfigError(f"max_new_tokens must be >= 1, got {min(limits)}")
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"temperature must be finite and >= 0, got {temperature}", "0 takes the likeliest token")
    if temperature > 0 and seeds is None:
        raise ConfigError("drawing tokens needs seeds", "give one seed per prompt, or temperature=0")
    if seeds is not None and len(seeds) != count:
        raise ConfigError(f"there are {len(seeds)} seeds for {count} prompts", "give one seed per prompt")


def _as_prompt(prompt: list[int] | Prompt) -> Prompt:
    return prompt if isinstance(prompt, Prompt) else Prompt(prompt, min(1, len(prompt) - 1), len(prompt))


def _embedding(states: torch.Tensor) -> Embedding:
    values = states.numpy()
    mean = values.mean(axis=0)
    length = float(np.linalg.norm(mean))
    vector = (mean / length if length > 0 else mean).astype(np.float32)
    return Embedding(vector, eoe_histogram(values), eoe_energy(values))


def _generation_stops(module: PreTrainedModel) -> list[int]:
    named = module.generation_config.eos_token_id if module.generation_config is not None else None
    return [named] if isinstance(named, int) else list(named or [])

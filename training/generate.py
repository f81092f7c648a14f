"""Continue chats in batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from training.corpora import Turn
from training.tokenizer import ASSISTANT, PAD, SPECIAL_TOKENS, render


@torch.inference_mode()
def answers(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    chats: Sequence[Sequence[Turn]],
    *,
    temperature: float = 0.0,
    top_p: float = 0.95,
    most_tokens: int = 64,
    batch: int = 32,
    seed: int = 0,
) -> list[str]:
    """Return the assistant's next message for each chat.

    Args:
        model: The model.
        tokenizer: Its tokenizer.
        chats: Chats that end with the user's message.
        temperature: Zero takes the likeliest token.
        top_p: The share of probability that sampling considers.
        most_tokens: The longest answer.
        batch: Chats continued together.
        seed: Decides the samples.
    """
    torch.manual_seed(seed)
    prompts = [tokenizer.encode(render(chat) + ASSISTANT, add_special_tokens=False).ids for chat in chats]
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    pad = SPECIAL_TOKENS.index(PAD)
    found = [""] * len(prompts)
    for start in range(0, len(order), batch):
        chosen = order[start : start + batch]
        longest = max(len(prompts[index]) for index in chosen)
        ids = torch.full((len(chosen), longest), pad)
        for row, index in enumerate(chosen):
            ids[row, longest - len(prompts[index]) :] = torch.tensor(prompts[index])
        sampling = (
            {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
            if temperature
            else {"do_sample": False}
        )
        mask = torch.ones_like(ids)
        mask[ids == pad] = 0
        made = model.generate(  # type: ignore[misc]
            ids, attention_mask=mask, max_new_tokens=most_tokens, **sampling
        )
        assert isinstance(made, torch.Tensor)
        for row, index in enumerate(chosen):
            found[index] = tokenizer.decode(made[row, longest:].tolist()).strip()
    return found

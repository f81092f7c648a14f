"""Write a model as a Hugging Face folder: configuration, bf16 safetensors, tokenizer with chat template."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaForCausalLM

from training.tokenizer import as_pretrained

# An answer of this length ends sooner by itself; the limit only stops a model that repeats itself.
MOST_NEW_TOKENS: Final = 128


def export(model: LlamaForCausalLM, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the model in bf16, atomically: readers see the old folder or the new one, never a half.

    Args:
        model: The model; it is left as it is.
        tokenizer: Its tokenizer.
        folder: The folder to create or replace.
    """
    partial = folder.with_name(f".{folder.name}.partial")
    retired = folder.with_name(f".{folder.name}.retired")
    for stale in (partial, retired):
        shutil.rmtree(stale, ignore_errors=True)
    state = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config)
    copy.to(dtype=torch.bfloat16)  # type: ignore[call-arg]
    copy.load_state_dict(state)
    copy.tie_weights()
    copy.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        max_new_tokens=MOST_NEW_TOKENS,
    )
    copy.save_pretrained(partial)
    as_pretrained(tokenizer).save_pretrained(partial)
    if folder.exists():
        folder.replace(retired)
    # The library writes the weights for their owner alone.
    (partial / "model.safetensors").chmod(0o644)
    partial.replace(folder)
    shutil.rmtree(retired, ignore_errors=True)

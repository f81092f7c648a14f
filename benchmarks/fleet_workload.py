"""The fleet's workload, and its training as plainly as PyTorch and PEFT write it.

A GPT-2 with random weights (4 layers, width 128, 2,048 tokens) and LoRA of rank 8 on the input of its attention. Every
device has rows of random tokens, a few of the vocabulary and the same for all, so that there is something to learn; the
last one ends a row. A device's part in a round is one pass over its rows by SGD without momentum; the server averages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from client.adapters import AdapterConfig, fresh_adapter
from florilegium.tensors import Tensors

__all__ = [
    "ADAPTER",
    "Played",
    "Workload",
    "adapter_of",
    "begin",
    "mean_loss",
    "plain_model",
    "put_adapter",
    "token_rows",
    "train_plainly",
    "word",
    "write_model",
]

ADAPTER: Final = AdapterConfig(rank=8, alpha=16.0, dropout=0.0, target_modules=("c_attn",))

_VOCABULARY: Final = 2048
_USED: Final = 64  # tokens that rows are made of
_END: Final = 0
_SCORED_DEVICES: Final = 4

Played = tuple[list[float], Tensors]  # seconds of each round, and the shared adapter at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """How much of everything.

    Attributes:
        model: folder of the base model.
        devices: in the fleet.
        cohort: devices of a round.
        rounds: how many.
        rows: of a device.
        tokens: of a row.
        batch: rows of a step.
        learning_rate: of SGD.
    """

    model: str
    devices: int = 64
    cohort: int = 8
    rounds: int = 10
    rows: int = 16
    tokens: int = 64
    batch: int = 4
    learning_rate: float = 0.1


def word(token: int) -> str:
    """Return the text of a token, for those who read text alone."""
    return f"w{token}"


def token_rows(workload: Workload, device: int) -> list[list[int]]:
    """Return a device's rows."""
    draw = random.Random(device)
    used = random.Random(-1).sample(range(1, _VOCABULARY), _USED)
    return [[*draw.choices(used, k=workload.tokens - 1), _END] for _ in range(workload.rows)]


def write_model(folder: Path) -> None:
    """Write the base model with a tokenizer that has one word for each token and nothing around a dialogue."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    config = GPT2Config(
        vocab_size=_VOCABULARY,
        n_positions=128,
        n_embd=128,
        n_layer=4,
        n_head=4,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=_END,
        eos_token_id=_END,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        GPT2LMHeadModel(config).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word(token): token for token in range(_VOCABULARY)}, unk_token=word(_END)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer: Any = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=word(_END))  # type: ignore[no-untyped-call]
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }}"
        "{{ ' ' if message['role'] == 'user' else eos_token }}{% endfor %}"
    )
    tokenizer.save_pretrained(folder)


def begin(workload: Workload) -> Tensors:
    """Return the adapter that every side begins with."""
    return fresh_adapter(workload.model, ADAPTER, 0)


def plain_model(workload: Workload) -> Any:
    """Load the model with PEFT's own adapter."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    models: Any = AutoModelForCausalLM
    shape = LoraConfig(
        r=ADAPTER.rank,
        lora_alpha=int(ADAPTER.alpha),
        target_modules=list(ADAPTER.target_modules),
        fan_in_fan_out=True,
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(models.from_pretrained(workload.model), shape)
    put_adapter(model, begin(workload))
    return model.train()


def put_adapter(model: Any, adapter: Tensors) -> None:
    """Copy an adapter into a plain model."""
    from peft import set_peft_model_state_dict

    found: Any = set_peft_model_state_dict(model, adapter)
    assert not found.unexpected_keys


def adapter_of(model: Any) -> Tensors:
    """Return a plain model's adapter."""
    from peft import get_peft_model_state_dict

    return {key: tensor.detach().clone() for key, tensor in get_peft_model_state_dict(model).items()}


def train_plainly(model: Any, rows: Sequence[Sequence[int]], workload: Workload) -> None:
    """Pass over the rows once."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=workload.learning_rate)
    for ids in _batches(rows, workload.batch):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def mean_loss(workload: Workload, adapter: Tensors) -> float:
    """Return the loss of an adapter on some devices' rows, nats a token."""
    model = plain_model(workload).eval()
    put_adapter(model, adapter)
    losses = [
        float(model(input_ids=ids, labels=ids).loss)
        for device in range(min(_SCORED_DEVICES, workload.devices))
        for ids in _batches(token_rows(workload, device), workload.batch)
    ]
    return sum(losses) / len(losses)


def _batches(rows: Sequence[Sequence[int]], size: int) -> Iterator[Tensor]:
    for start in range(0, len(rows), size):
        yield torch.tensor(rows[start : start + size])

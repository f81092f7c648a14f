"""The model as fine-tuning sees it: hidden states of packed rows, split below the first trained layer.

Everything that a slot's training changes about the wrapped module (which adapters are on, fused LoRA layers, packed
attention, the weights' precision, recomputed activations) is set up by `training_network` and undone when its block
ends, by whatever exception. The module stays in evaluation mode: LoRA dropout is ours, and the base has none to train.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from transformers.activations import NewGELUActivation

from client.finetuning.attention import packed_attention
from client.finetuning.batching import Pack, Row, pack, rounded
from client.finetuning.dropout import DropoutSource
from client.finetuning.lora import trainable_layers
from client.finetuning.precision import weights_in
from client.head import Head, output_head

if TYPE_CHECKING:
    from client.adapters import AdaptedModel

__all__ = ["Network", "training_network"]

_PROBE_LENGTHS = (7, 5)
_PACKS: WeakKeyDictionary[nn.Module, dict[torch.dtype, bool]] = WeakKeyDictionary()  # what was found, by model
_PACKING_TOLERANCE = 0.05  # relative; bfloat16 noise is below 0.02, a row that sees its neighbour is far above


class _ReachedTopError(Exception):
    """Ends a forward pass at the first trained layer."""


class Network:
    """Hidden states of packed rows, with the gradient of one slot's parameters.

    Attributes:
        head: from final hidden states to logits.
        device: where the module is.
        dtype: of the activations.
        width: of the hidden states.
        depth: number of decoder layers below the first trained one; their output can be cached.
        packs: whether rows can share a forward pass; where they cannot, `Pack`s must hold one row.
        rounds: whether token counts are rounded up to one of few. On a processor each new shape of a bfloat16 product
            costs a millisecond and 0.6 MiB of generated code (oneDNN), so there must not be many.
    """

    def __init__(self, model: AdaptedModel, slot: str, dtype: torch.dtype) -> None:
        module: Any = model.module
        self.module = module
        self.head: Head = output_head(module)
        self.device: torch.device = model.flat(slot).device
        self.dtype = dtype
        self.width = int(module.get_input_embeddings().weight.shape[1])
        self.dropout = DropoutSource(model.config(slot).dropout)
        self.layers = _decoder_layers(module)
        self.depth = _first_trained(self.layers)
        self.packs = False
        self.rounds = dtype == torch.bfloat16 and self.device.type == "cpu"

    def pack(self, rows: Sequence[Row]) -> Pack:
        """Lay rows end to end for this network."""
        return pack(rows, self.device, rounding=self.rounds and self.packs)

    def size(self, rows: Sequence[Row]) -> int:
        """Return how many tokens `pack` makes of the rows."""
        tokens = sum(row.length for row in rows)
        return rounded(tokens) if self.rounds and self.packs else tokens

    def hidden(self, packed: Pack, *, seeds: Sequence[int] | None = None, entering: Tensor | None = None) -> Tensor:
        """Return the final hidden states, `(tokens, hidden)`.

        Args:
            packed: the rows.
            seeds: one dropout seed for each of the pack's lengths; None computes without dropout.
            entering: the hidden states entering the first trained layer, if they are known, `(tokens, hidden)`.
        """
        self.dropout.begin(seeds or (), packed.lengths if seeds else ())
        with _starting_at(self.layers, self.depth if entering is not None else 0, entering):
            hidden = self._forward(packed)
        self.dropout.forget_input()  # the seeds stay: the backward pass may compute layers again
        return hidden

    @torch.no_grad()
    def trunk(self, packed: Pack) -> Tensor:
        """Return the hidden states entering the first trained layer, `(tokens, hidden)`."""
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _ReachedTopError

        handle = self.layers[self.depth].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self._forward(packed)
        except _ReachedTopError:
            return caught[0][0]
        finally:
            handle.remove()
        raise AssertionError("the forward pass did not enter the first trained layer")

    def _forward(self, packed: Pack) -> Tensor:
        extra: dict[str, object] = {"segments": packed.lengths} if self.packs else {}
        output = self.module.get_decoder()(
            input_ids=packed.input_ids, position_ids=packed.position_ids, use_cache=False, **extra
        )
        hidden: Tensor = output.last_hidden_state
        return hidden[0]

    @torch.no_grad()
    def probe(self) -> Tensor:
        """Return the hidden states of two short rows, packed where rows are packed, `(tokens, hidden)`."""
        rows = [Row("", tuple(range(1, length + 2)), 1) for length in _PROBE_LENGTHS]
        packs = [rows] if self.packs else [[row] for row in rows]
        return torch.cat([self.hidden(pack(each, self.device)).float() for each in packs])


@contextmanager
def training_network(
    model: AdaptedModel, slot: str, dtype: torch.dtype, *, beside: Sequence[str] | None = None
) -> Iterator[Network]:
    """Prepare the model for training `slot`, with other slots active and frozen beside it: all of them if None.

    Inside the block the module must not be used for anything else.
    """
    chosen = model.slots if beside is None else beside
    others = [name for name in model.slots if name in chosen and name != slot and not model.is_blank(name)]
    with ExitStack() as stack:
        stack.enter_context(model.training(slot, *others))
        network = Network(model, slot, dtype)
        stack.enter_context(weights_in(dtype, model.frozen))
        stack.enter_context(trainable_layers(model.module, slot, others, network.dropout))
        stack.enter_context(_fused_activations(network.module))
        if network.module._can_set_attn_implementation():
            _try_packing(network, stack)
        yield network


def _try_packing(network: Network, stack: ExitStack) -> None:
    """Pack rows if that gives what the model's own attention gives each row alone.

    It does not where layers carry a state along, or where attention does what ours does not know of.
    """
    known = _PACKS.setdefault(network.module, {})
    if network.dtype not in known:
        alone = network.probe()
        if not bool(alone.isfinite().all()):
            return  # says nothing of the model
        with packed_attention(network.module):
            network.packs = True
            known[network.dtype] = bool((network.probe() - alone).norm() <= _PACKING_TOLERANCE * alone.norm())
    network.packs = known[network.dtype]
    if network.packs:
        stack.enter_context(packed_attention(network.module))


@contextmanager
def _fused_activations(module: nn.Module) -> Iterator[None]:
    """Compute the activation that transformers composes of eight operations in one."""
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, NewGELUActivation):
                cast(Any, part).forward = partial(functional.gelu, approximate="tanh")
                stack.callback(delattr, part, "forward")
        yield


@contextmanager
def recomputed_activations(network: Network) -> Iterator[None]:
    """Keep only what enters each decoder layer, and compute the rest again in the backward pass."""
    with ExitStack() as stack:
        for layer in network.layers[network.depth :]:
            inner = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
            layer.forward = inner
            stack.callback(delattr, layer, "forward")
        yield


def _decoder_layers(module: nn.Module) -> list[nn.Module]:
    config: Any = module.config
    depth = config.get_text_config().num_hidden_layers
    decoder: nn.Module = module.get_decoder()  # type: ignore[operator]
    return next(list(part) for part in decoder.children() if isinstance(part, nn.ModuleList) and len(part) == depth)


def _first_trained(layers: Sequence[nn.Module]) -> int:
    trained = (any(parameter.requires_grad for parameter in layer.parameters()) for layer in layers)
    return next((number for number, is_trained in enumerate(trained) if is_trained), 0)


@contextmanager
def _starting_at(layers: Sequence[nn.Module], first: int, entering: Tensor | None) -> Iterator[None]:
    """Skip the layers below `first`, and hand `entering` to it."""
    with ExitStack() as stack:
        if entering is not None:
            for layer in layers[:first]:
                layer.forward = _pass_through
                stack.callback(delattr, layer, "forward")
            handle = layers[first].register_forward_pre_hook(_replacing(entering[None]), with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _pass_through(hidden_states: Tensor, *_: object, **__: object) -> Tensor:
    return hidden_states


def _replacing(entering: Tensor) -> Callable[..., tuple[tuple[object, ...], dict[str, object]]]:
    def replace(
        _: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> tuple[tuple[object, ...], dict[str, object]]:
        if args:
            return (entering, *args[1:]), kwargs
        return args, kwargs | {"hidden_states": entering}

    return replace

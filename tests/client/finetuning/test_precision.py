import contextlib

import pytest
import torch
from torch import nn

from client.finetuning.precision import base_dtype, resolve_precision, weights_in

CPU = torch.device("cpu")


def test_weights_come_back_bitwise() -> None:
    module = nn.Linear(3, 3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    with contextlib.suppress(RuntimeError), weights_in(torch.bfloat16, module.parameters()):
        assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.bfloat16}
        raise RuntimeError("inside")
    assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in before.items())


def test_base_dtype_is_that_of_most_weights() -> None:
    norms = torch.ones(4)
    assert base_dtype([norms, torch.ones(9, dtype=torch.bfloat16), torch.ones(99, dtype=torch.int8)]) is torch.bfloat16


@pytest.mark.parametrize("native", [True, False])
def test_auto_follows_the_weights_and_the_processor(monkeypatch: pytest.MonkeyPatch, native: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_precision("auto", torch.float32, CPU) is (torch.bfloat16 if native else torch.float32)
    assert resolve_precision("auto", torch.float16, CPU) is torch.float16
    assert resolve_precision("float32", torch.bfloat16, CPU) is torch.float32
    assert resolve_precision("bfloat16", torch.float32, CPU) is torch.bfloat16

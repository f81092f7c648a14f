from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig, LoraModel

from client.dialogue import Dialogue
from client.model import BaseModel, Embedding, Prompt
from client.selection.metrics import eoe_energy, eoe_histogram
from florilegium.errors import ConfigError, ModelError

QUESTIONS = (
    "What should I cook for dinner tonight?",
    "Why?",
    "My sister is coming to stay. What shall we do on Friday?",
)
DIALOGUES = tuple(
    Dialogue(question=question, response=response)
    for question, response in zip(QUESTIONS, ("Lentil soup.", "Because.", "Take the train to the coast."), strict=True)
)


def by_hand(model: BaseModel, prompt: Prompt, answer: Sequence[int]) -> tuple[NDArray[np.float32], Embedding]:
    """Embed with one whole pass over one dialogue, and loops."""
    ids = [*prompt.ids, *answer]
    with torch.inference_mode():
        output = model.module(torch.tensor([ids]), output_hidden_states=True)
    states = output.hidden_states[-1][0].float().numpy()
    chosen = states[[at for at in range(len(ids)) if prompt.start <= at < prompt.stop or at >= len(prompt.ids)]]
    total = np.zeros(model.hidden_size)
    for state in chosen:
        total += state
    vector = (total / np.sqrt((total**2).sum())).astype(np.float32)
    return chosen, Embedding(vector, eoe_histogram(chosen), eoe_energy(chosen))


def assert_same(one: Embedding | None, other: Embedding) -> None:
    assert one is not None
    assert one.vector.dtype == np.float32
    np.testing.assert_allclose(one.vector, other.vector, atol=1e-5)
    assert np.linalg.norm(one.vector) == pytest.approx(1.0, abs=1e-5)
    assert one.eoe_energy == pytest.approx(other.eoe_energy, abs=1e-4)


def test_embedding_by_hand(shared_tiny_model: BaseModel) -> None:
    for dialogue, embedding in zip(DIALOGUES, shared_tiny_model.embed(DIALOGUES), strict=True):
        ids, prompt = shared_tiny_model.chat.dialogue(dialogue.question, dialogue.response)
        states, expected = by_hand(shared_tiny_model, prompt, ids[len(prompt.ids) :])
        words = len(shared_tiny_model.tokenizer(dialogue.question + dialogue.response)["input_ids"])
        assert abs(len(states) - words) <= 1  # no template token is among them; a merge may cross the seam
        assert_same(embedding, expected)


def test_generation_embeds_in_the_same_pass(shared_tiny_model: BaseModel) -> None:
    model = shared_tiny_model
    prompts = [model.chat.prompt(question) for question in QUESTIONS]
    fed: list[tuple[int, ...]] = []
    hook = model.module.register_forward_pre_hook(
        lambda _module, _args, named: fed.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    answers = model.generate(prompts, max_new_tokens=8, embed=True)
    hook.remove()
    assert fed[0] == (3, max(len(prompt.ids) for prompt in prompts))
    assert all(width == 1 for _, width in fed[1:])
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = greedy(model, prompt.ids, 8)
        assert answer.token_count == len(ids)
        assert answer.text == model.chat.clean(ids)
        assert_same(answer.embedding, by_hand(model, prompt, ids)[1])


def greedy(model: BaseModel, ids: Sequence[int], count: int) -> list[int]:
    written = list(ids)
    while len(written) < len(ids) + count:
        with torch.inference_mode():
            token = int(model.module(torch.tensor([written])).logits[0, -1].argmax())
        if token in model.chat.stop_ids:
            break
        written.append(token)
    return written[len(ids) :]


def test_respond_is_generate_of_the_prompts(shared_tiny_model: BaseModel) -> None:
    model = shared_tiny_model
    prompts = [model.prompt_ids(question) for question in QUESTIONS]
    texts = [answer.text for answer in model.generate(prompts, max_new_tokens=6)]
    assert [answer.text for answer in model.respond(QUESTIONS, max_new_tokens=6)] == texts
    assert [model.respond([question], max_new_tokens=6)[0].text for question in QUESTIONS] == texts


def test_shots_change_the_answer_and_not_what_the_embedding_is_of(shared_tiny_model: BaseModel) -> None:
    model = shared_tiny_model
    shots = [[("Where is the key?", "Under the mat.")], [], [("Who?", "Me."), ("When?", "Now.")]]
    answers = model.respond(QUESTIONS, shots=shots, max_new_tokens=6)
    for question, before, answer in zip(QUESTIONS, shots, answers, strict=True):
        assert answer.text == model.chat.clean(greedy(model, model.prompt_ids(question, shots=before), 6))
        assert_same(answer.embedding, model.embed([Dialogue(question=question, response=answer.text)])[0])
    assert all(answer.embedding is None for answer in model.respond(QUESTIONS, max_new_tokens=2, embed=False))


def test_an_empty_response_is_embedded(shared_tiny_model: BaseModel) -> None:
    (embedding,) = shared_tiny_model.embed([Dialogue(question="Why?", response="")])
    assert np.linalg.norm(embedding.vector) == pytest.approx(1.0, abs=1e-5)


def test_a_long_dialogue_is_embedded_by_what_fits(shared_tiny_model: BaseModel) -> None:
    long = Dialogue(question="Why not? " * 2000, response="Because. " * 2000)
    (embedding,) = shared_tiny_model.embed([long])
    assert np.isfinite(embedding.vector).all()
    (answer,) = shared_tiny_model.respond([long.question], max_new_tokens=3)
    assert answer.embedding is not None


def test_the_supervised_tokens_are_the_answer_and_its_end(shared_tiny_model: BaseModel) -> None:
    ids, unsupervised = shared_tiny_model.example_ids("Why?", "Because.")
    assert shared_tiny_model.tokenizer.decode(ids[unsupervised:]) == "Because.<|end|>"
    assert ids[:unsupervised] == shared_tiny_model.prompt_ids("Why?")


def test_adapters_in_the_module_take_part(tiny_model: BaseModel) -> None:
    prompts = [tiny_model.prompt_ids(question) for question in QUESTIONS]
    before = [answer.text for answer in tiny_model.generate(prompts, max_new_tokens=6)]
    config = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        layers = LoraModel(tiny_model.module, config, "personal").eval()
    after = [answer.text for answer in tiny_model.generate(prompts, max_new_tokens=6)]
    assert after == [tiny_model.chat.clean(greedy(tiny_model, ids, 6)) for ids in prompts]
    assert after != before
    layers.disable_adapter_layers()
    assert [answer.text for answer in tiny_model.generate(prompts, max_new_tokens=6)] == before


def test_seeds_decide_what_is_drawn(shared_tiny_model: BaseModel) -> None:
    def draw(seeds: Sequence[int]) -> list[str]:
        prompts = [shared_tiny_model.prompt_ids("Why?")] * len(seeds)
        answers = shared_tiny_model.generate(prompts, max_new_tokens=8, temperature=1.0, seeds=seeds)
        return [answer.text for answer in answers]

    texts = draw([1, 2, 2**63 - 1, 1])
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3
    assert draw([2**63 - 1, 2]) == [texts[2], texts[1]]


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be >= 1, got 0"),
        ({"temperature": -1.0}, "temperature must be finite and >= 0, got -1.0"),
        ({"temperature": float("nan")}, "temperature must be finite"),
        ({"temperature": 1.0}, "drawing tokens needs seeds"),
        ({"temperature": 1.0, "seeds": [1]}, "there are 1 seeds for 2 prompts"),
    ],
)
def test_settings_out_of_range_are_refused(
    shared_tiny_model: BaseModel, settings: dict[str, object], problem: str
) -> None:
    with pytest.raises(ConfigError, match=problem):
        shared_tiny_model.generate([[1, 2], [3]], **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [0, 512, 600])
def test_a_prompt_without_room_is_refused(shared_tiny_model: BaseModel, size: int) -> None:
    with pytest.raises(ModelError, match=f"a prompt has {size} tokens, it must have 1 to 511"):
        shared_tiny_model.generate([[7] * size])


def test_an_answer_ends_where_the_context_does(shared_tiny_model: BaseModel) -> None:
    model = copy.copy(shared_tiny_model)
    model.chat = copy.copy(model.chat)
    model.chat.stop_ids = frozenset({10**6})
    first, second = model.generate([[7] * 509, [7] * 3], max_new_tokens=5)
    assert (first.token_count, second.token_count) == (3, 5)


def test_sizes(shared_tiny_model: BaseModel) -> None:
    model = shared_tiny_model
    assert (model.hidden_size, model.context_length) == (32, 512)
    assert model.device == torch.device("cpu")
    floats = sum(parameter.numel() for parameter in model.module.parameters())
    rotary = 2 * (32 // 4 // 2)  # inverse frequencies, kept twice
    assert model.weight_bytes == 4 * (floats + rotary)


def test_no_text_in_what_is_printed(shared_tiny_model: BaseModel) -> None:
    prompt = shared_tiny_model.chat.prompt("secret")
    (answer,) = shared_tiny_model.generate([prompt], max_new_tokens=4)
    assert "secret" not in repr(prompt)
    assert repr(answer) == f"Generation({answer.token_count} tokens, {len(answer.text)} characters)"
    assert "MB on cpu" in repr(shared_tiny_model)

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchmarks.synthesis import measure, read_examples, table
from client.dialogue import Example, derive_id, derive_seed
from client.model import BaseModel, Generation, Prompt
from client.synthesis import SYNTHESIZERS, Reason, Rules
from client.synthesis.brackets import bracketed
from client.synthesis.check import check_answer, check_question, check_window
from client.synthesis.meaning import content_kept, key_tokens, word_key
from client.synthesis.prompt import rewrite_prompt
from client.synthesis.questions import judge_replies
from florilegium.errors import ConfigError

QUESTION = "When does the train to York leave on Friday?"
RESPONSE = "It departs at 7:42 sharp."
GOOD = (
    "At what time does the train to York leave on Friday?",
    "When is the Friday train to York leaving?",
    "On Friday, when does the York train depart?",
    "Friday: when will the train leave to York?",
)
RULES = Rules()


def make_example(question: str = QUESTION, response: str = RESPONSE, key: str = "a" * 32) -> Example:
    return Example(question=question, response=response, source_id=key, example_id=key)


def reason_for(candidate: str, question: str = QUESTION, response: str = RESPONSE) -> Reason | None:
    return check_question(candidate, original=question, response=response, rules=RULES)


class Scripted(BaseModel):
    """The tiny model, with replies from a list; what it was asked is kept."""

    def __init__(self, model: BaseModel, replies: Iterable[str]) -> None:
        super().__init__("scripted", model.module, model.tokenizer)
        self.replies = iter(replies)
        self.prompts: list[list[list[int] | Prompt]] = []
        self.seeds: list[list[int]] = []

    def generate(
        self,
        prompts: Sequence[list[int] | Prompt],
        *,
        max_new_tokens: int | Sequence[int] = 64,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        embed: bool = False,
    ) -> list[Generation]:
        self.prompts.append(list(prompts))
        self.seeds.append(list(seeds or ()))
        return [Generation(next(self.replies), 1) for _ in prompts]


SHORT = "when leaves the train to york"


class Fluent(BaseModel):
    """The tiny model as if it could write: a fair paraphrase of `SHORT` that ends in a word of what it really drew."""

    def __init__(self, model: BaseModel) -> None:
        super().__init__("fluent", model.module, model.tokenizer)
        self.rewriting = self.prompt_ids(rewrite_prompt(SHORT))

    def generate(
        self,
        prompts: Sequence[list[int] | Prompt],
        *,
        max_new_tokens: int | Sequence[int] = 64,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        embed: bool = False,
    ) -> list[Generation]:
        drawn = super().generate(prompts, max_new_tokens=8, temperature=temperature, seeds=seeds)
        words = [derive_id(each.text)[:4].translate(str.maketrans("0123456789", "ghijklmnop")) for each in drawn]
        texts = [f"when leaves the train {word}" for word in words]
        return [
            Generation(f"[{text}]" if prompt == self.rewriting else text, 1)
            for prompt, text in zip(prompts, texts, strict=True)
        ]


# --- the reply -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("[a b]", "a b"),
        ("Sure! Here it is: [a b] I hope this helps.", "a b"),
        ("[a] or [b]", "a"),
        ("[[a b]]", "a b"),
        ("[ [ a b ] ]", "a b"),
        ("[a [b] c]", "a [b] c"),
        ("[[a] and [b]]", "[a] and [b]"),
        ("] [a\n\n  b]", "a b"),
        ("【a b】", "a b"),
        ("[]", ""),
        ("[ ]", ""),
        ("a b", None),
        ("[a b", None),
        ("a b]", None),
        ("[a [b]", None),
        ("", None),
    ],
)
def test_text_in_brackets(reply: str, text: str | None) -> None:
    assert bracketed(reply) == text


PLAIN = st.text(st.characters(exclude_characters="[]［］【】", codec="utf-8"))


@given(PLAIN, PLAIN, st.text())
def test_whatever_surrounds_the_brackets_is_ignored(before: str, text: str, after: str) -> None:
    assert bracketed(f"{before}[{text}]{after}") == " ".join(text.split())


@given(st.text(st.sampled_from("[] ab\n")))
def test_any_reply_gives_one_line_or_nothing(reply: str) -> None:
    text = bracketed(reply)
    assert text is None or (text == " ".join(text.split()) and text.count("[") == text.count("]"))


# --- the checks ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("candidate", GOOD)
def test_fair_paraphrases_pass(candidate: str) -> None:
    assert reason_for(candidate) is None


@pytest.mark.parametrize(
    ("candidate", "reason"),
    [
        ("", Reason.EMPTY),
        ("  ", Reason.EMPTY),
        ("When does the York train leave on \ufffd Friday?", Reason.ODD_CHARACTERS),
        ("When does the York train leave on Friday?<|end|>", Reason.ODD_CHARACTERS),
        ("When does\u200b the York train leave on Friday?", Reason.ODD_CHARACTERS),
        ("WHEN does the train to York leave, on friday", Reason.SAME_AS_ORIGINAL),
        ("On Friday when does the train leave to York?", Reason.ROUGE_TOO_HIGH),
        ("When does the train to York leave on Friday, " + "and when " * 10 + "?", Reason.TOO_LONG),
        ("Which bus goes home?", Reason.ROUGE_TOO_LOW),
        ("The train to York leaves early on Friday.", Reason.NOT_A_QUESTION),
        ("Does the train to York departs at 7:42 on Friday?", Reason.ANSWERS),
        ("When does the train to Leeds leave on Friday?", Reason.LOST_KEY_TOKEN),
        ("When does the train to York leave tomorrow?", Reason.LOST_KEY_TOKEN),
        ("When does the train to York leave on Friday with Mia?", Reason.NEW_KEY_TOKEN),
        ("When does the train to York leave on Friday 13?", Reason.NEW_KEY_TOKEN),
        ("In York, is it on Friday, the cook, to tell?", Reason.LOST_CONTENT),
    ],
)
def test_each_flaw_has_its_reason(candidate: str, reason: Reason) -> None:
    assert reason_for(candidate) is reason


def test_sibling_is_told_by_its_words() -> None:
    siblings = [word_key(GOOD[0])]
    twin = GOOD[0].lower().replace("?", " ?!")
    assert (
        check_question(twin, original=QUESTION, response=RESPONSE, siblings=siblings, rules=RULES) is Reason.DUPLICATE
    )


@given(st.text(), st.text())
def test_copy_is_always_dropped(question: str, response: str) -> None:
    assert reason_for(question, question, response) in {Reason.EMPTY, Reason.SAME_AS_ORIGINAL}


WRITTEN = st.tuples(
    st.sampled_from(["What", "when", "my", "dog", "it's", "7:30"]),
    st.sampled_from([str.upper, str.lower, str.title]),
    st.sampled_from(["", ",", " !"]),
)


@given(st.lists(WRITTEN, min_size=1, max_size=8))
def test_copy_in_other_letters_and_marks_is_dropped(written: list[tuple[str, Callable[[str], str], str]]) -> None:
    original = " ".join(word for word, _, _ in written) + "?"
    changed = " ".join(letters(word) + mark for word, letters, mark in written) + "?"
    assert reason_for(changed, original, "") is Reason.SAME_AS_ORIGINAL


WORDS = st.lists(st.sampled_from([f"w{letter}" for letter in "abcdefgh"]), min_size=1, max_size=12)
SHARES = st.fractions(0, 1, max_denominator=12)


@given(WORDS, WORDS, SHARES, SHARES)
def test_window_is_exact_at_its_ends(candidate: list[str], original: list[str], one: Fraction, other: Fraction) -> None:
    low, high = sorted((one, other))
    shared = (Counter(candidate) & Counter(original)).total()
    f1 = Fraction(2 * shared, len(candidate) + len(original))
    rules = Rules(rouge_low=float(low), rouge_high=float(high), content_low=0.0, length_ratio=100.0)
    reason = check_question(" ".join(candidate), original=" ".join(original), response="", rules=rules)
    if candidate == original:
        assert reason is Reason.SAME_AS_ORIGINAL
    elif f1 > high:
        assert reason is Reason.ROUGE_TOO_HIGH
    elif f1 < low:
        assert reason is Reason.ROUGE_TOO_LOW
    else:
        assert reason is None


def test_window_ends_belong_to_it() -> None:
    assert check_window(0.3, RULES) is None
    assert check_window(0.95, RULES) is None
    assert check_window(0.3 - 1e-6, RULES) is Reason.ROUGE_TOO_LOW
    assert check_window(0.95 + 1e-6, RULES) is Reason.ROUGE_TOO_HIGH


@pytest.mark.parametrize(
    ("question", "candidate", "reason"),
    [
        ("去约克的火车星期五几点开?", "星期五去约克的火车什么时候开?", None),
        ("去约克的火车星期五几点开？", "我的狗叫什么名字？", Reason.ROUGE_TOO_LOW),
        ("متى يغادر القطار إلى يورك يوم الجمعة؟", "في أي ساعة يغادر القطار إلى يورك يوم الجمعة؟", None),
        ("متى يغادر القطار إلى يورك يوم الجمعة؟", "متى يغادر القطار إلى يورك يوم الجمعة", Reason.SAME_AS_ORIGINAL),
        ("Когда уходит поезд в 7:42?", "В котором часу уходит поезд?", Reason.LOST_KEY_TOKEN),
        ("Wann fährt der Zug nach Kiel am Montag ab?", "Um wie viel Uhr fährt der Zug am Montag nach Kiel ab?", None),
    ],
)
def test_other_scripts_are_checked_alike(question: str, candidate: str, reason: Reason | None) -> None:
    assert reason_for(candidate, question, "42") is reason


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("When does Anna's train leave for York? At 7:30 or at 8?", {"anna", "york", "7", "30", "8"}),
        ("When do I have to go if I'm late?", set()),
        ("Ask Mia: Can she come?", {"mia"}),
        ("Wo ist Omas Haus am See mit dem Boot?", set()),  # three capitals in eight words: German, not names
        ("WHERE IS MY DOG 4", {"4"}),
        ("", set()),
    ],
)
def test_numbers_and_names_are_keys(text: str, keys: set[str]) -> None:
    assert key_tokens(text) == keys


@pytest.mark.parametrize(
    ("candidate", "asking"),
    [
        ("Tell me when the train to York will leave on Friday.", True),
        ("The train to York leaves on Friday, when it is early.", True),  # the price of knowing no grammar
        ("When the train to York does leave on Friday, I wave.", False),  # no word of its own before
        ("Train to York when Friday leave", False),  # shorter than the question
        ("The train to York leaves early on a Friday, I am sure.", False),
    ],
)
def test_request_asks_without_a_question_mark(candidate: str, asking: bool) -> None:
    assert (reason_for(candidate) is Reason.NOT_A_QUESTION) is not asking


def test_statement_needs_no_question_mark() -> None:
    assert reason_for("Please call the plumber at 9.", "Remind me to call the plumber at 9.", "Yes.") is None


def test_content_by_hand() -> None:
    """Weigh the letters beyond the second: when 2, does 2, the 1, train 3, leave 3: 11 in all."""
    question = "When does the train leave?"
    assert content_kept("When do trains go?", question) == 5 / 11
    assert content_kept("It is leaving", question) == 3 / 11
    assert content_kept("a trainer", question) == 3 / 11
    assert content_kept("a trainline", question) == 0  # four letters more: another word
    assert content_kept("tram", question) == 0
    assert content_kept("anything", "Is he in?") == 1


@given(st.text(), st.text())
def test_content_is_a_share_and_whole_for_a_copy(candidate: str, original: str) -> None:
    assert 0 <= content_kept(candidate, original) <= 1
    assert content_kept(f"{candidate} {original}", original) == 1


def test_possessive_and_case_of_a_name_may_change() -> None:
    assert reason_for("What is anna's dog's name?", "What is the name of Anna's dog?", "Rex") is None


def test_answer_may_share_few_words_with_the_candidate() -> None:
    # The response adds {it, departs, at, 7, 42, sharp} or, by words, six; three of six are not more than half.
    assert reason_for("When departs it at York, the train to leave on Friday?") is None


def test_answer_may_repeat_but_not_stray() -> None:
    assert check_answer(RESPONSE, original=RESPONSE, rules=RULES) is None
    assert check_answer("It leaves sharp at 7:42.", original=RESPONSE, rules=RULES) is None
    assert check_answer("It departs at 7:43 sharp.", original=RESPONSE, rules=RULES) is Reason.ANSWER_STRAYS
    assert check_answer("It departs for Leeds at 7:42 sharp.", original=RESPONSE, rules=RULES) is Reason.ANSWER_STRAYS
    assert check_answer("I like cheese.", original=RESPONSE, rules=RULES) is Reason.ANSWER_STRAYS
    assert check_answer(" ", original=RESPONSE, rules=RULES) is Reason.EMPTY
    assert check_answer(RESPONSE * 4, original=RESPONSE, rules=RULES) is Reason.TOO_LONG


@pytest.mark.parametrize(
    "values",
    [
        {"rouge_low": 0.5, "rouge_high": 0.4},
        {"rouge_high": 1.5},
        {"content_low": 2},
        {"length_ratio": 0.5},
        {"batches": 0},
    ],
)
def test_rules_out_of_range_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must"):
        Rules(**values)  # type: ignore[arg-type]


# --- drawing ---------------------------------------------------------------------------------------------------------

REPLIES = st.sampled_from([f"[{text}]" for text in (*GOOD, QUESTION, "", "Which bus?")] + ["none", "[open"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(replies=st.lists(REPLIES, min_size=12, max_size=12), count=st.integers(0, 4), batches=st.integers(1, 3))
def test_children_and_drops_make_up_all_samples(
    shared_tiny_model: BaseModel, replies: list[str], count: int, batches: int
) -> None:
    model = Scripted(shared_tiny_model, replies)
    (made,) = SYNTHESIZERS["questions"](model, [make_example()], count=count, seed=1, rules=Rules(batches=batches))
    samples = sum(map(len, model.prompts))
    assert len(made.children) + made.drops.total() == samples <= count * batches
    assert len(made.children) == count or samples == count * batches
    assert len({word_key(child.question) for child in made.children}) == len(made.children)
    # Naive reference: the first distinct good replies, in order.
    drawn = [reply[1:-1] for reply in replies[:samples] if reply[1:-1] in GOOD]
    assert [child.question for child in made.children] == list(dict.fromkeys(drawn))[:count]


def test_one_batch_has_one_prompt_and_seeds_of_its_own(shared_tiny_model: BaseModel) -> None:
    model = Scripted(shared_tiny_model, ["none"] * 9)
    SYNTHESIZERS["questions"](model, [make_example(key="b" * 32)], count=3, seed=5)
    prompt = model.prompt_ids(rewrite_prompt(QUESTION))
    assert model.prompts == [[prompt] * 3] * 3
    assert model.seeds == [[derive_seed(5, "b" * 32, attempt, k) for k in range(3)] for attempt in range(3)]


def test_only_what_lacks_children_is_drawn_again(shared_tiny_model: BaseModel) -> None:
    replies = [f"[{GOOD[0]}]", f"[{GOOD[1]}]", "none", f"[{GOOD[2]}]", "none", f"[{GOOD[3]}]"]
    model = Scripted(shared_tiny_model, replies)
    examples = [make_example(), make_example("Why? " * 400, key="b" * 32), make_example(key="c" * 32)]
    made = SYNTHESIZERS["questions"](model, examples, count=2, seed=5)
    assert [[child.question for child in each.children] for each in made] == [[*GOOD[:2]], [], [GOOD[2], GOOD[3]]]
    assert [each.drops for each in made] == [{}, {"no-room": 6}, {"no-brackets": 2}]
    assert [len(prompts) for prompts in model.prompts] == [4, 2]


def test_lineage_and_response_are_kept(shared_tiny_model: BaseModel) -> None:
    model = Scripted(shared_tiny_model, [f"[{text}]" for text in GOOD])
    example = make_example()
    (made,) = SYNTHESIZERS["questions"](model, [example], count=4, seed=0)
    assert [child.question for child in made.children] == list(GOOD)
    for child in made.children:
        assert child.is_synthesized
        assert child.source_id == example.source_id
        assert child.response == RESPONSE
        assert child.example_id == derive_id("child", example.source_id, child.question, RESPONSE)
    assert not made.drops


def test_what_is_drawn_beyond_the_wanted_is_surplus(shared_tiny_model: BaseModel) -> None:
    model = Scripted(shared_tiny_model, ["none", f"[{GOOD[0]}]", f"[{GOOD[1]}]", f"[{GOOD[2]}]"])
    (made,) = SYNTHESIZERS["questions"](model, [make_example()], count=2, seed=0)
    assert [child.question for child in made.children] == list(GOOD[:2])
    assert made.drops == {"no-brackets": 1, "surplus": 1}


def test_question_too_long_for_the_context_is_not_drawn(shared_tiny_model: BaseModel) -> None:
    model = Scripted(shared_tiny_model, [])
    (made,) = SYNTHESIZERS["questions"](model, [make_example("Why? " * 400)], count=3, seed=0)
    assert made.drops == {"no-room": 9}
    assert model.prompts == []


def test_judged_replies_keep_their_order() -> None:
    replies = [f"[{GOOD[0]}]", "none", f"[{GOOD[0]}]", f"[{GOOD[1]}]"]
    outcomes = judge_replies(replies, make_example(), [], RULES)
    kinds = [each if isinstance(each, Reason) else each.question for each in outcomes]
    assert kinds == [GOOD[0], Reason.NO_BRACKETS, Reason.DUPLICATE, GOOD[1]]


def test_pairs_are_answered_with_the_annotated_pair_as_example(shared_tiny_model: BaseModel) -> None:
    replies = [f"[{GOOD[0]}]", "none", f"[{GOOD[1]}]", "It departs  at 7:42.", "I like cheese."]
    model = Scripted(shared_tiny_model, [*replies, *["none"] * 6])
    (made,) = SYNTHESIZERS["pairs"](model, [make_example()], count=3, seed=0)
    assert [(child.question, child.response) for child in made.children] == [(GOOD[0], "It departs at 7:42.")]
    assert made.drops == {"no-brackets": 7, "answer-strays": 1}
    shots = [(QUESTION, RESPONSE)]
    assert model.prompts[1] == [model.prompt_ids(GOOD[0], shots=shots), model.prompt_ids(GOOD[1], shots=shots)]


# --- the contract of every synthesizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(SYNTHESIZERS))
def test_what_is_made_depends_on_the_example_alone(name: str, shared_tiny_model: BaseModel) -> None:
    model = Fluent(shared_tiny_model)
    rules = Rules(rouge_low=0.0)
    one, other = (make_example(SHORT, "It is late.", digit * 32) for digit in "12")
    (alone,) = SYNTHESIZERS[name](model, [one], count=3, seed=3, rules=rules)
    neighbour, beside = SYNTHESIZERS[name](model, [other, one], count=3, seed=3, rules=rules)
    assert alone == beside
    if name != "none":
        assert alone.children
        assert [child.question for child in alone.children] != [child.question for child in neighbour.children]
        assert [alone] != SYNTHESIZERS[name](model, [one], count=3, seed=4, rules=rules)
    assert all(child.source_id == one.source_id and child.is_synthesized for child in alone.children)
    assert len({child.example_id for child in alone.children}) == len(alone.children) <= 3


@pytest.mark.parametrize("name", sorted(SYNTHESIZERS))
def test_count_zero_draws_nothing(name: str, shared_tiny_model: BaseModel) -> None:
    model = Scripted(shared_tiny_model, [])
    (made,) = SYNTHESIZERS[name](model, [make_example()], count=0, seed=0)
    assert (made.children, made.drops.total(), model.prompts) == ((), 0, [])


@pytest.mark.parametrize("name", ["questions", "pairs"])
@pytest.mark.parametrize(
    ("count", "temperature", "named"), [(-1, 0.7, "count"), (3, 0.0, "temp"), (3, float("nan"), "temp")]
)
def test_settings_out_of_range_are_refused(
    name: str, count: int, temperature: float, named: str, shared_tiny_model: BaseModel
) -> None:
    with pytest.raises(ConfigError, match=named):
        SYNTHESIZERS[name](shared_tiny_model, [make_example()], count=count, seed=0, temperature=temperature)


@pytest.mark.parametrize("name", ["questions", "pairs"])
def test_model_without_a_chat_template_works(name: str, tiny_model: BaseModel) -> None:
    tokenizer = copy.deepcopy(tiny_model.tokenizer)
    tokenizer.chat_template = None
    plain = BaseModel("plain", tiny_model.module, tokenizer)
    (made,) = SYNTHESIZERS[name](plain, [make_example()], count=2, seed=0)
    assert len(made.children) + made.drops.total() == 6


def test_nothing_prints_text(shared_tiny_model: BaseModel) -> None:
    model = Scripted(shared_tiny_model, [f"[{text}]" for text in GOOD])
    assert "York" not in repr(SYNTHESIZERS["questions"](model, [make_example()], count=3, seed=0))


# --- the measurement -------------------------------------------------------------------------------------------------


def test_measurement_counts_what_was_made(shared_tiny_model: BaseModel) -> None:
    first = ["none", f"[{GOOD[0]}]", "none", "none"]  # two samples for each example
    second = [f"[{GOOD[1]}]", f"[{GOOD[2]}]", "none", "none"]
    model = Scripted(shared_tiny_model, [*first, *second, "none", "none"])
    examples = [make_example(), make_example("Any ideas?", key="c" * 32)]
    summary, results = measure(model, examples, mode="questions", temperature=0.5, count=2, seed=0)
    # First example: 1 drop and 3 valid of 4 samples; second: 6 drops of 6 samples.
    assert (summary.samples, summary.valid_share, summary.children, summary.complete_share) == (10, 0.3, 1.0, 0.5)
    assert summary.drops == {"no-brackets": 7, "surplus": 1}
    assert [len(result.children) for result in results] == [2, 0]
    assert len(table([summary]).splitlines()) == 3


def test_measured_questions_are_distinct() -> None:
    examples = read_examples()
    assert len({example.example_id for example in examples}) == len(examples) == 60
    assert json.dumps([example.question for example in examples])

from __future__ import annotations

import itertools
import random
import re
from collections import Counter
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from florilegium.errors import ConfigError
from simulation.overlap import overlap_f1
from simulation.users import UserData
from simulation.world import (
    FIRST_TRAINING_SEED,
    WorldConfig,
    bank,
    generate_users,
    training_paraphrases,
    training_text,
)
from simulation.world.bank import BLANK, Kind, blanks
from simulation.world.facts import Fact, draw_fact, redraw
from simulation.world.heldout import hold_out
from simulation.world.profile import Profile, draw_profile, draw_town
from simulation.world.retyping import retype, slip
from simulation.world.stream import Talk
from simulation.world.style import PLAIN, Style, draw_style, drift_style, render
from simulation.world.values import MAKERS, draw

SMALL = WorldConfig(turns=80, heldout=12)
FACTUAL = (*bank.private(), *bank.common())
ALL_KINDS = (*FACTUAL, *bank.chitchat(), *itertools.chain(*bank.views()))
STYLES = tuple(
    Style(tone="plain", twelve_hours=twelve, miles=miles)
    for twelve, miles in itertools.product((False, True), repeat=2)
)
seeds = st.integers(0, FIRST_TRAINING_SEED - 1)


@pytest.fixture(scope="module")
def users() -> list[UserData]:
    return generate_users(11, 20)


def profiles(seed: int, count: int, config: WorldConfig | None = None) -> list[Profile]:
    return [draw_profile(seed, index, config or WorldConfig()) for index in range(count)]


# --- the banks -------------------------------------------------------------------------------------------------


def wordings(kind: Kind) -> tuple[tuple[str, ...], tuple[str, ...]]:
    return (*kind.ask, *kind.tell, *kind.change), (*kind.brief, *kind.full)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.name)
def test_every_sentence_of_a_bank_renders_as_good_english(kind: Kind) -> None:
    said, answered = wordings(kind)
    rng = random.Random(kind.name)
    for _ in range(12):
        fact = draw_fact(kind, rng, training=False, divided=kind in FACTUAL)
        for template in said + answered:
            text = render(template, fact)
            assert not re.search(r"[{}]|  |\s$|^\s|([a-z])\1\1", text), template
            assert text[0].isupper(), template
            assert text[-1] in ".?!", template
            # "a" before a sounded vowel and "an" before a consonant; the banks have no exception but these.
            assert not re.search(r"\b[Aa] (?!uni|one)([aeiou]|8|11\b|18\b)", text), text
            assert not re.search(r"\b[Aa]n (?!hour|honest)[^aeiou8 1]", text), text
        assert all(4 <= len(render(template, fact).split()) <= 20 for template in said)
        assert all(4 <= len(render(template, fact).split()) <= 25 for template in answered)


@pytest.mark.parametrize("kind", ALL_KINDS, ids=lambda kind: kind.name)
def test_blanks_are_declared_and_questions_begin_with_a_word(kind: Kind) -> None:
    for template in itertools.chain(*wordings(kind)):
        assert blanks(template) <= kind.slots.keys()
    assert not any(BLANK.match(template) for template in kind.ask)
    for source in kind.slots.values():
        assert draw(source, random.Random(0))


@pytest.mark.parametrize("kind", FACTUAL, ids=lambda kind: kind.name)
def test_a_fact_is_given_whole_by_every_statement_and_answer(kind: Kind) -> None:
    value = kind.slots.keys() - set(kind.key)
    assert value
    for template in (*kind.tell, *kind.change, *kind.brief, *kind.full):
        assert value <= blanks(template), template
    for template in (*kind.tell, *kind.change):
        assert blanks(template) == kind.slots.keys(), template


@pytest.mark.parametrize("kind", FACTUAL, ids=lambda kind: kind.name)
def test_a_kind_has_many_values_on_both_sides(kind: Kind) -> None:
    rng = random.Random(kind.name)
    for training in (False, True):
        fact = draw_fact(kind, rng, training=training)
        others = {tuple(redraw(fact, rng).values.items()) for _ in range(60)}
        assert len(others) >= 20
        assert all(dict(values)[name] == fact.values[name] for values in others for name in (*kind.key, *kind.keeps))


def test_private_life_is_broad() -> None:
    assert len(bank.private()) >= 60
    assert len({kind.domain for kind in bank.private()}) >= 10
    assert len({kind.name for kind in ALL_KINDS}) == len(ALL_KINDS)
    for kind in (*FACTUAL, *itertools.chain(*bank.views())):
        assert len(kind.ask) >= 6
        assert len(kind.brief) >= 2
        assert len(kind.full) >= 2
    assert all(len(kind.tell) >= 2 and kind.change for kind in bank.private())
    assert all(len(kind.ask) >= 4 for kind in bank.chitchat())


def test_wordings_of_one_question_are_paraphrases_and_no_copies() -> None:
    for kind in ALL_KINDS:
        for left, right in itertools.combinations(kind.ask, 2):
            assert overlap_f1(left, right) <= 0.85, (left, right)


def test_opinions_contradict_each_other() -> None:
    for left, right in bank.views():
        assert left.ask == right.ask
        assert not set(left.brief) & set(right.brief)


# --- rendering and style ---------------------------------------------------------------------------------------


def fact_of(values: dict[str, str], **slots: str) -> Fact:
    kind = Kind(
        name="t", domain="t", slots=slots, ask=(), tell=(), change=(), keeps=(), brief=("Yes, it is so.",), full=()
    )
    return Fact(kind=kind, values=values)


@pytest.mark.parametrize(
    ("value", "shown"),
    [("06:00", "6:00 am"), ("12:10", "12:10 pm"), ("11:50", "11:50 am"), ("13:05", "1:05 pm"), ("22:30", "10:30 pm")],
)
def test_times_follow_the_style(value: str, shown: str) -> None:
    fact = fact_of({"at": value}, at="@time")
    assert render("At {at}.", fact, Style(tone="plain", twelve_hours=True)) == f"At {shown}."
    assert render("At {at}.", fact) == f"At {value}."


def test_distances_follow_the_style() -> None:
    fact = fact_of({"far": "10"}, far="@km 1 20")
    # 10 km / 1.609 km per mile = 6.215 miles
    assert render("{far}", fact, Style(tone="plain", miles=True)) == "6.2 miles"
    assert render("{far}", fact) == "10 km"


@pytest.mark.parametrize(
    ("word", "article"),
    [("apple", "an"), ("boat", "a"), ("hour", "an"), ("horse", "a"), ("uniform", "a"), ("18", "an"), ("80", "an"),
     ("118", "a"), ("1 km", "a"), ("umbrella", "an"), ("one-way trip", "a")],
)  # fmt: skip
def test_articles(word: str, article: str) -> None:
    assert render("{a thing}", fact_of({"thing": word}, thing="x")) == f"{article} {word}"


def test_only_formal_and_plain_styles_write_words_out() -> None:
    body = "It is late, and I am sure that it is."
    assert Style(tone="formal").dress(body) == body
    assert PLAIN.dress(body) == body
    # The last "it is" stands before a full stop, where English does not contract.
    assert Style(tone="warm").dress(body) == "It's late, and I'm sure that it is."


@given(seed=st.integers(), training=st.booleans())
@settings(max_examples=60, deadline=None)
def test_styles_stay_on_their_side(seed: int, training: bool) -> None:
    rng = random.Random(seed)
    style = draw_style(rng, training=training)
    assert style.for_training is training
    changed = drift_style(style, rng)
    assert changed.for_training is training
    assert (changed.tone, changed.address) == (style.tone, style.address)


@given(seed=st.integers(), training=st.booleans(), kind=st.sampled_from(FACTUAL))
@settings(max_examples=100, deadline=None)
def test_facts_stay_on_their_side(seed: int, training: bool, kind: Kind) -> None:
    rng = random.Random(seed)
    fact = draw_fact(kind, rng, training=training)
    assert fact.for_training is training
    changed = redraw(fact, rng)
    assert changed.for_training is training
    assert changed.values != fact.values


@given(seed=st.integers(), text=st.sampled_from([t for kind in ALL_KINDS for t in kind.ask if "{" not in t]))
@settings(max_examples=100, deadline=None)
def test_retyping_changes_little(seed: int, text: str) -> None:
    rng = random.Random(seed)
    typo = slip(text, rng)
    assert sorted(typo) == sorted(text)
    again = retype(text, rng, slips=0.0)
    assert again != text
    assert overlap_f1(text, again) >= 0.6


def test_makers_know_no_empty_value() -> None:
    assert all(make(random.Random(1)) for make in MAKERS.values())


# --- users -----------------------------------------------------------------------------------------------------


@given(seed=seeds, count=st.integers(1, 3), more=st.integers(0, 3))
@settings(max_examples=10, deadline=None)
def test_users_depend_on_nothing_but_seed_and_number(seed: int, count: int, more: int) -> None:
    few, many = generate_users(seed, count, SMALL), generate_users(seed, count + more, SMALL)
    assert few == many[:count]
    assert [user.user_id for user in many] == [f"u{index:04d}" for index in range(count + more)]


def test_another_seed_is_another_world() -> None:
    one, other = generate_users(1, 1, SMALL)[0], generate_users(2, 1, SMALL)[0]
    assert {turn.preferred for turn in one.stream}.isdisjoint(turn.preferred for turn in other.stream)
    assert draw_town(1, 30).facts != draw_town(2, 30).facts


def test_identifiers_are_unique(users: list[UserData]) -> None:
    ids = [turn.turn_id for user in users for turn in user.stream]
    ids += [example.example_id for user in users for example in user.heldout]
    assert len(set(ids)) == len(ids)


def test_no_held_out_question_is_in_the_stream(users: list[UserData]) -> None:
    scorer = RougeScorer(["rouge1"])
    for user in users[:2]:
        asked = {turn.question for turn in user.stream}
        for example in user.heldout:
            closest = max(scorer.score(question, example.question)["rouge1"].fmeasure for question in asked)
            assert closest <= 0.9


def test_held_out_wordings_are_never_the_streams() -> None:
    for profile in profiles(3, 10):
        for topic in (*profile.private, *profile.common, *profile.views, *profile.chitchat):
            assert topic.kept
            assert not set(topic.asked) & set(topic.kept)
            assert {*topic.asked, *topic.kept} == set(topic.kind.ask)


def test_a_question_that_the_stream_gives_away_is_not_held_out() -> None:
    def held_out(*given_away: str) -> set[str]:
        talk = Talk.begin(draw_profile(3, 0, SMALL), SMALL, random.Random(5))
        list(talk.turns("3/u0000"))
        talk.questions.extend(given_away)
        return {example.question for example in hold_out(talk, "3/u0000")[0]}

    free = sorted(held_out())
    assert len(free) >= 10
    copied, *others = free
    assert held_out(f"hey, {copied.lower().rstrip('?.!')}").isdisjoint({copied})
    assert len(held_out(copied) & set(others)) >= len(others) - 1


@pytest.mark.parametrize("seed", range(6))
def test_what_is_held_out_can_be_learned_from_the_stream(seed: int) -> None:
    config = WorldConfig(turns=100, private=0.6, private_facts=8, fact_drift=1.5, style_drift=0.0)
    talk = Talk.begin(draw_profile(seed, 0, config), config, random.Random(seed))
    answers = [turn.preferred for turn in talk.turns("key")]
    held, kinds = hold_out(talk, "key")
    facts = {talk.preferred(topic, talk.facts[topic]): talk.facts[topic] for topic in talk.profile.private}
    private = [example.response for example in held if kinds[example.example_id] == "private"]
    assert len(private) >= 3
    for response in private:
        fact = facts[response]
        value = fact.kind.slots.keys() - set(fact.kind.key)
        shown = [render(f"{{{name}}}", fact, talk.style) for name in value]
        assert any(all(text in answer for text in shown) for answer in answers)


def test_held_out_questions_probe_what_the_config_wants(users: list[UserData]) -> None:
    for user in users:
        assert set(user.heldout_kinds) == {example.example_id for example in user.heldout}
        # 40 questions: half private, a quarter common, a tenth views, the rest style
        assert Counter(user.heldout_kinds.values()) == {"private": 20, "common": 10, "view": 4, "style": 6}


def test_proportions_are_the_configs(users: list[UserData]) -> None:
    counts = Counter(turn.kind for user in users for turn in user.stream)
    total = counts.total()
    shares = {
        "chitchat": counts["chitchat"],
        "private": counts["private"] + counts["tell"] + counts["change"],
        "common": counts["common"],
        "view": counts["view"],
        "repeat": counts["repeat"],
        "near-duplicate": counts["near-duplicate"],
    }
    for (name, count), weight in zip(shares.items(), WorldConfig().weights(), strict=True):
        # 12,000 independent draws: four standard deviations of a share of 0.6 are 0.018.
        assert count / total == pytest.approx(weight, abs=0.018), name


def test_lengths(users: list[UserData]) -> None:
    for user in users:
        for turn in user.stream:
            extra = 3 if turn.kind == "near-duplicate" else 0
            assert 3 <= len(turn.question.split()) <= 20 + extra
            assert 4 <= len(turn.preferred.split()) <= 35
            assert turn.response is None


def test_preferred_answers_are_short_paragraphs(users: list[UserData]) -> None:
    words = [len(turn.preferred.split()) for user in users for turn in user.stream]
    assert sum(5 <= count <= 30 for count in words) >= 0.99 * len(words)


def test_days_do_not_run_backwards(users: list[UserData]) -> None:
    for user in users:
        days = [turn.day for turn in user.stream]
        assert days == sorted(days)
        assert 600 < days[-1] - days[0] <= 730


def test_repeats_are_copies_and_near_duplicates_are_not(users: list[UserData]) -> None:
    for user in users[:5]:
        before: set[str] = set()
        for turn in user.stream:
            if turn.kind == "repeat":
                assert turn.question in before
            if turn.kind == "near-duplicate":
                assert max(overlap_f1(turn.question, question) for question in before) >= 0.4
            before.add(turn.question)


def test_hundreds_of_users_are_distinct() -> None:
    drawn = profiles(4, 300)
    private = {tuple(tuple(topic.fact.values.items()) for topic in p.private if topic.fact) for p in drawn}
    assert len(private) == 300
    assert len({profile.style for profile in drawn}) >= 295
    assert len({frozenset(topic.kind.name for topic in profile.private) for profile in drawn}) >= 295


def test_common_facts_are_shared_and_private_ones_are_not() -> None:
    drawn = profiles(5, 40)
    town = draw_town(5, WorldConfig().town_facts)
    common = [fact for profile in drawn for topic in profile.common if (fact := topic.fact)]
    assert all(fact in town.facts for fact in common)
    assert max(Counter(id(fact) for fact in common).values()) >= 10
    private = [(f.kind.name, *f.values.items()) for p in drawn for t in p.private if (f := t.fact)]
    # A pair of values may coincide by chance; nearly all must not.
    assert len(set(private)) >= 0.98 * len(private)


def test_a_town_has_one_fact_per_question() -> None:
    facts = draw_town(6, 80).facts
    asked = [(fact.kind.name, *(fact.values[name] for name in fact.kind.key)) for fact in facts]
    assert len(set(asked)) == 80


def test_overlap_makes_interests_alike() -> None:
    def spread(overlap: float) -> int:
        config = WorldConfig(overlap=overlap, private_facts=12)
        return len({topic.kind.domain for profile in profiles(8, 30, config) for topic in profile.private[:3]})

    def agreement(overlap: float) -> int:
        config = WorldConfig(overlap=overlap)
        top = Counter(topic.kind.domain for profile in profiles(8, 60, config) for topic in profile.private)
        return top.most_common(1)[0][1]

    assert spread(0.0) >= 10
    assert agreement(1.0) > agreement(0.0)


@pytest.mark.parametrize(("conflict", "low", "high"), [(0.0, 0.0, 0.0), (0.3, 0.2, 0.4), (1.0, 1.0, 1.0)])
def test_conflict_is_the_share_of_the_other_opinion(conflict: float, low: float, high: float) -> None:
    majority = {
        topic.kind.name.rpartition(".")[0]: topic.kind.name
        for profile in profiles(9, 100, WorldConfig(conflict=0.0))
        for topic in profile.views
    }
    held = [t.kind.name for p in profiles(9, 100, WorldConfig(conflict=conflict)) for t in p.views]
    minority = sum(name != majority[name.rpartition(".")[0]] for name in held) / len(held)
    assert low <= minority <= high


def values_said(text: str, kind: Kind) -> dict[str, str] | None:
    """Read the values back out of a sentence that reports a change."""
    for template in kind.change:
        pattern = BLANK.sub(lambda match: f"(?:an? )?(?P<{match[2]}>.+?)", re.escape(template).replace(r"\{", "{")
                            .replace(r"\}", "}").replace(r"\ ", " "))  # fmt: skip
        if match := re.fullmatch(pattern, text):
            return match.groupdict()
    return None


@pytest.mark.parametrize("seed", range(8))
def test_the_newest_fact_holds_in_the_held_out_set(seed: int) -> None:
    config = WorldConfig(turns=120, chitchat=0.1, private=0.8, private_facts=1, fact_drift=3.0, style_drift=0.0)
    user = generate_users(seed, 1, config)[0]
    profile = draw_profile(seed, 0, config)
    kind = profile.private[0].kind
    changes = [turn.question for turn in user.stream if turn.kind == "change"]
    assert changes
    newest = values_said(changes[-1], kind)
    assert newest is not None
    first = profile.private[0].fact
    assert first is not None
    assert newest != {name: render(f"{{{name}}}", first, profile.style) for name in kind.slots}
    answers = [e.response for e in user.heldout if user.heldout_kinds[e.example_id] == "private"]
    assert answers
    for answer, name in itertools.product(answers, kind.slots.keys() - set(kind.key)):
        assert newest[name] in answer


def test_style_strength_and_drift() -> None:
    plain = generate_users(12, 1, WorldConfig(turns=60, style_strength=0.0, style_drift=0.0))[0]
    dressed = generate_users(12, 1, WorldConfig(turns=60, style_strength=1.0, style_drift=0.0))[0]
    style = draw_profile(12, 0, WorldConfig()).style
    assert style.opener
    assert style.closer
    for bare, full in zip(plain.stream, dressed.stream, strict=True):
        assert full.preferred.startswith(style.opener)
        assert full.preferred.endswith(style.closer)
        assert not bare.preferred.startswith(style.opener)
    restless = generate_users(12, 1, WorldConfig(turns=60, style_strength=1.0, style_drift=8.0))[0]
    assert len({turn.preferred.split(maxsplit=1)[0] for turn in restless.stream}) > 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("turns", 0), ("heldout", 0), ("tell", 1.5), ("style_strength", -0.1), ("years", -1.0), ("repeats", -0.5),
        ("common_facts", 1000), ("fact_drift", -1.0), ("chitchat", float("nan")), ("private_facts", 10_000),
        ("town_facts", 10_000), ("opinions", 100), ("years", float("inf")),
    ],
)  # fmt: skip
def test_impossible_settings_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=name):
        WorldConfig(**{name: value})  # type: ignore[arg-type]


def test_a_world_without_new_turns_is_refused() -> None:
    with pytest.raises(ConfigError, match="weights"):
        WorldConfig(chitchat=0, private=0, common=0, views=0)


def test_experiments_and_training_have_seeds_of_their_own() -> None:
    with pytest.raises(ConfigError, match="seed"):
        generate_users(FIRST_TRAINING_SEED, 1)
    with pytest.raises(ConfigError, match="seed"):
        next(training_text(FIRST_TRAINING_SEED - 1))
    with pytest.raises(ConfigError, match="seed"):
        next(training_paraphrases(3))
    with pytest.raises(ConfigError, match="count"):
        generate_users(1, -1)
    assert generate_users(1, 0) == []


# --- the training text -----------------------------------------------------------------------------------------


def test_chats_alternate_and_depend_on_their_number_alone() -> None:
    chats = list(training_text(FIRST_TRAINING_SEED, 300))
    assert chats[:100] == list(training_text(FIRST_TRAINING_SEED, 100))
    for chat in chats:
        roles = [role for role, _ in chat]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2)
        assert turns
        for _, text in chat:
            assert not re.search(r"[{}]|  |\s$|^\s", text)


def test_every_wording_of_a_question_is_taught() -> None:
    said = {text for chat in training_text(FIRST_TRAINING_SEED, 4000) for role, text in chat if role == "user"}
    fixed = {text for kind in ALL_KINDS for text in kind.ask if not blanks(text)}
    assert len(fixed) > 100
    assert len(fixed & said) >= 0.95 * len(fixed)


def test_no_fact_of_an_evaluated_user_is_ever_stated() -> None:
    chats = list(training_text(FIRST_TRAINING_SEED, 3000))
    said = {text for chat in chats for role, text in chat if role == "user"}
    quoted = "\n".join(text for chat in chats[:1000] for role, text in chat if role == "system")
    facts = [topic.fact for p in profiles(0, 30) for topic in (*p.private, *p.common) if topic.fact]
    statements = {
        render(template, fact, style)
        for fact in facts
        for template in (*fact.kind.tell, *fact.kind.change)
        for style in STYLES
    }
    assert len(statements) > 2000
    assert not statements & said
    assert not [statement for statement in statements if statement in quoted]
    # The same search does find facts of the training side.
    assert any(re.fullmatch(r"My \w+ is called \w+ and wears an? \w+ collar\.", text) for text in said)
    assert re.search(r"My \w+ is called \w+ and wears an? \w+ collar\.", quoted)


def test_no_style_of_an_evaluated_user_is_ever_worn() -> None:
    styles = [profile.style for profile in profiles(0, 120)]
    worn = [text for chat in training_text(FIRST_TRAINING_SEED, 600) for role, text in chat if role == "assistant"]
    # Only styles that name the user at both ends or have both ends can be recognized from outside.
    telling = {(s.opener, s.closer) for s in styles if s.address in s.opener and s.closer}
    assert len(telling) > 50
    for opener, closer in telling:
        # A made-up address may meet another tone's closing by chance, never the same whole.
        assert not [text for text in worn if text.startswith(f"{opener} ") and text.endswith(f" {closer}")]


def patterns(kinds: Iterable[Kind]) -> list[re.Pattern[str]]:
    """Match whatever a kind's questions can be."""
    wordings = {BLANK.sub("@", text) for kind in kinds for text in kind.ask}
    return [re.compile(re.escape(text).replace("@", ".+")) for text in wordings]


def test_paraphrases_are_of_small_talk_and_never_of_facts_or_opinions(users: list[UserData]) -> None:
    small_talk, rest = patterns(bank.chitchat()), patterns((*FACTUAL, *itertools.chain(*bank.views())))
    for first, second in training_paraphrases(FIRST_TRAINING_SEED, 200):
        assert first != second
        for text in (first, second):
            assert any(pattern.fullmatch(text) for pattern in small_talk)
            assert not any(pattern.fullmatch(text) for pattern in rest)
    # Held-out questions of the kind "style", and no others, are small talk as well.
    for user in users[:2]:
        for example in user.heldout:
            is_small_talk = any(pattern.fullmatch(example.question) for pattern in small_talk)
            assert is_small_talk == (user.heldout_kinds[example.example_id] == "style")


def test_what_is_no_fact_is_taught_word_for_word() -> None:
    chats = training_text(FIRST_TRAINING_SEED, 6000)
    answers = "\n".join(text for chat in chats for role, text in chat if role == "assistant")
    opinions, small_talk = (
        {text for kind in kinds for text in (*kind.brief, *kind.full) if not blanks(text)}
        for kinds in (itertools.chain(*bank.views()), bank.chitchat())
    )
    # docs/comparing.md names these numbers.
    assert (len(opinions), len(small_talk)) == (48, 109)
    assert all(text in answers for text in opinions | small_talk)

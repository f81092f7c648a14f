import random
from collections import Counter

from training.corpora import Document
from training.inflection import gerund, plural, verb_forms, with_article
from training.knowledge import pairs
from training.questions import question_documents, repeated_chat, system_chat, told_chat


def test_chats_alternate_and_end_with_an_answer(chats: list[Document]) -> None:
    for document in chats:
        roles = [turn.role for turn in document.turns]
        if roles[0] == "system":
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2)


def test_the_chat_holds_the_answer() -> None:
    for seed in range(100):
        turns = told_chat(random.Random(seed))
        answer, said = turns[-1].text, " ".join(turn.text for turn in turns[:-2])
        rare = [word.strip(".") for word in answer.split()[2:] if word[0].isupper() or word[0].isdigit()]
        assert all(word in said for word in rare), turns


def test_the_system_message_holds_the_answer_or_the_model_says_so() -> None:
    for seed in range(100):
        turns = system_chat(random.Random(seed))
        names = [word.strip(".") for word in turns[2].text.split()[2:] if word[0].isupper()]
        assert all(name in turns[0].text for name in names), turns


def test_a_repeated_question_has_its_first_answer() -> None:
    turns = repeated_chat(random.Random(5))
    answers = Counter(turn.text for turn in turns if turn.role == "assistant")
    assert answers[turns[-1].text] >= 2


def test_answers_are_whole_sentences() -> None:
    for _, answer in pairs(random.Random(1), 500):
        assert answer[-1] in ".?!", answer
        assert not answer[0].islower(), answer
        assert "{" not in answer


def test_documents_are_repeatable() -> None:
    assert list(question_documents(1, count=5)) == list(question_documents(1, count=5))


def test_inflection() -> None:
    assert verb_forms("stop").past == "stopped"
    assert verb_forms("take off").participle == "taken off"
    assert gerund("write") == "writing"
    assert plural("peach") == "peaches"
    assert [with_article(word) for word in ("owl", "unit", "hour")] == ["an owl", "a unit", "an hour"]

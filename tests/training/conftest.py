import pytest
from tokenizers import Tokenizer

from training.corpora import Document
from training.questions import question_documents
from training.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def chats() -> list[Document]:
    return list(question_documents(count=60))


@pytest.fixture(scope="session")
def tiny_tokenizer(chats: list[Document]) -> Tokenizer:
    return train_tokenizer((turn.text for chat in chats for turn in chat.turns), 400)

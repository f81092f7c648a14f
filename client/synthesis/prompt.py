"""The fixed prompt that asks a model to rewrite a question; seedling is trained on exactly this text."""

from __future__ import annotations

from typing import Final

__all__ = ["REWRITE_PROMPT", "rewrite_prompt"]

REWRITE_PROMPT: Final = (
    "Rewrite the text in brackets in other words, with the same meaning. "
    "Do not answer it, do not explain it. Give only the new text, in brackets.\n[{question}]"
)


def rewrite_prompt(question: str) -> str:
    """Return the prompt for one question.

    >>> rewrite_prompt("Where is my bike?").splitlines()[-1]
    '[Where is my bike?]'
    """
    # Not str.format: a question may hold braces of its own.
    return REWRITE_PROMPT.replace("{question}", question)

"""Ways of being personal: one file each, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from strategies.personal.ditto import DITTO
from strategies.personal.dual import DUAL
from strategies.personal.finetune import FINETUNE
from strategies.personal.local import LOCAL
from strategies.personal.way import Personal

__all__ = ["PERSONAL_WAYS", "Personal"]

PERSONAL_WAYS: Final[Mapping[str, Personal]] = {way.name: way for way in (LOCAL, DUAL, DITTO, FINETUNE)}

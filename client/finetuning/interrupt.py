"""Ctrl-C between two micro-batches, where nothing is half done."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Self

__all__ = ["InterruptGate"]


class InterruptGate:
    """Holds a SIGINT back inside its block until `check` is called; a second one is not held back.

    Outside the main thread Python delivers no signals, and the gate does nothing.
    """

    def __init__(self) -> None:
        self._pressed = False
        self._before: object = None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)  # type: ignore[arg-type]
        if error is None:
            self.check()

    def check(self) -> None:
        """Raise the interrupt that was held back.

        Raises:
            KeyboardInterrupt: there was one.
        """
        if self._pressed:
            self._pressed = False
            raise KeyboardInterrupt

    def _press(self, _: int, __: FrameType | None) -> None:
        if self._pressed:
            raise KeyboardInterrupt
        self._pressed = True

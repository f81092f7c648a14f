import contextlib
import os
import signal
import threading

import pytest

from client.finetuning.interrupt import InterruptGate


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupt_waits_for_the_check() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with InterruptGate() as gate:
        gate.check()
        press()
        with pytest.raises(KeyboardInterrupt):
            gate.check()
        gate.check()
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_second_interrupt_does_not_wait() -> None:
    with contextlib.suppress(KeyboardInterrupt), InterruptGate():
        press()
        press()
        pytest.fail("the second interrupt was held back")


def test_an_interrupt_that_nothing_checked_is_raised_at_the_end() -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), InterruptGate():
        press()
    assert signal.getsignal(signal.SIGINT) is handler


def test_in_another_thread_it_does_nothing() -> None:
    seen: list[object] = []

    def run() -> None:
        with InterruptGate() as gate:
            gate.check()
            seen.append(signal.getsignal(signal.SIGINT))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]

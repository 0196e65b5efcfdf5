"""Signals end what this rank waits for by itself. Many ranks: tests/integration/test_preemption.py."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import pytest

from sppo_megatron.cluster.interrupt import SIGNALS, Interrupted, StopSignals, interruptible, undivided, was_told


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    signals = StopSignals()
    yield signals
    signals.close()


def tell(number: signal.Signals = signal.SIGTERM, after_s: float = 0.1) -> None:
    threading.Timer(after_s, lambda: os.kill(os.getpid(), number)).start()


WAITS = {
    "sleep": lambda: time.sleep(60),
    "future": lambda: Future().result(timeout=60),
    "thread": None,
    "python": lambda: [None for _ in iter(time.monotonic, -1)],
}


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_a_wait_ends_at_once(signals, wait, number):
    if wait is None:
        thread = threading.Thread(target=time.sleep, args=(60,), daemon=True)
        thread.start()
        wait = thread.join
    tell(number)
    started = time.monotonic()
    with pytest.raises(Interrupted), interruptible():
        wait()
    assert time.monotonic() - started < 5 and was_told()


def test_told_before_it_does_not_begin(signals):
    os.kill(os.getpid(), signal.SIGTERM)
    assert was_told()
    with pytest.raises(Interrupted), interruptible():
        pytest.fail("it has begun")


def test_code_that_goes_on_after_what_fails_does_not_go_on(signals):
    tell()
    with pytest.raises(Interrupted), interruptible():
        while True:
            with contextlib.suppress(Exception):
                time.sleep(60)


def test_outside_of_a_wait_it_is_only_noted(signals):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
    assert was_told()


def test_a_second_signal_disturbs_nobody_who_cleans_up(signals):
    tell()
    with pytest.raises(Interrupted), interruptible():
        try:
            time.sleep(60)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned_up = True
    assert cleaned_up


def test_what_must_not_be_left_half_done_is_done(signals):
    done = []
    with pytest.raises(Interrupted), interruptible():
        with undivided():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.01)
            done.append("whole")
        done.append("and more")
    assert done == ["whole"]


def test_other_threads_are_left_alone(signals):
    done = []

    def work():
        with interruptible():
            time.sleep(0.3)
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    os.kill(os.getpid(), signal.SIGTERM)
    thread.join()
    assert done == [True]


def test_without_anyone_who_looks_for_signals():
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible():
        pass
    StopSignals().close()
    assert [signal.getsignal(number) for number in SIGNALS] == before and not was_told()

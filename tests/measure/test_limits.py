"""`limits.call`: the same limits of time and memory in the main thread and in any other, and nothing left behind."""

import contextlib
import resource
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from nucleoscope.measure import limits

PLENTY, LITTLE = 2**30, 2**27  # bytes
LONG, SHORT = 60.0, 0.2  # seconds


def call_in_thread(function: Callable, seconds: float, size: int):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(limits.call, function, seconds, size).result()


@pytest.fixture(params=["the main thread", "another thread"])
def call(request) -> Callable:
    """`limits.call` in one of two threads."""
    return limits.call if request.param == "the main thread" else call_in_thread


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS)
    yield
    assert before == (signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_AS))
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert not limits._LOCK.locked()


def loop() -> None:
    while True:
        pass


def loop_and_catch() -> None:
    while True:
        with contextlib.suppress(Exception):
            loop()


def loop_and_catch_once() -> None:
    with contextlib.suppress(BaseException):
        loop()
    loop()


def sleep_in_steps() -> None:
    while True:
        time.sleep(0.01)


def grow() -> None:
    parts = []
    while True:
        parts.append(bytes(2**20))


def test_what_ends_in_time_gives_its_result(call):
    assert call(lambda: sum(range(10)), LONG, PLENTY) == 45


def test_an_error_is_passed_on(call):
    with pytest.raises(ZeroDivisionError):
        call(lambda: 1 / 0, LONG, PLENTY)


@pytest.mark.parametrize("endless", [loop, loop_and_catch, loop_and_catch_once, sleep_in_steps])
def test_what_does_not_end_is_interrupted(call, endless):
    with pytest.raises(limits.Exceeded, match=r"^it did not end within 0\.2 s$"):
        call(endless, SHORT, PLENTY)


def test_memory_without_bound_is_refused(call):
    with pytest.raises(limits.Exceeded, match=r"^it needs more than 134 MB of memory$"):
        call(grow, LONG, LITTLE)


def test_memory_within_the_limit_is_given(call):
    assert len(call(lambda: bytes(LITTLE // 4), LONG, LITTLE)) == LITTLE // 4


def test_an_interruption_never_arrives_after_the_call(call):
    """The time ends about when the function does: whichever is first, nothing happens after the answer."""
    outcomes = []

    def work(seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            pass

    for step in range(60):
        try:
            call(lambda: work(0.01), 0.007 + step / 10_000, PLENTY)
            outcomes.append("ended")
        except limits.Exceeded:
            outcomes.append("interrupted")
    time.sleep(0.05)
    assert set(outcomes) <= {"ended", "interrupted"}
    assert len(outcomes) == 60


def test_a_call_in_a_thread_leaves_no_thread_behind():
    before = threading.active_count()
    for _ in range(5):
        call_in_thread(lambda: None, LONG, PLENTY)
    deadline = time.monotonic() + 10
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == before


def test_calls_of_several_threads_are_each_limited():
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(limits.call, work, SHORT, PLENTY) for work in (loop, lambda: 1, sleep_in_steps, lambda: 2)]
        said = [job.exception() or job.result() for job in jobs]
    assert [str(each) for each in said] == ["it did not end within 0.2 s", "1", "it did not end within 0.2 s", "2"]


def test_a_timer_of_the_caller_goes_on():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(True))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.3)
        assert limits.call(lambda: 3, LONG, PLENTY) == 3
        deadline = time.monotonic() + 10
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert rung == [True]

"""`ordered_map`: a function over many items in threads, in order, with bounded memory, to be stopped at any time."""

from __future__ import annotations

import concurrent.futures
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

T = TypeVar("T")
R = TypeVar("R")

Check = Callable[[], None]
"""Called every now and then by what takes long; it raises to stop it, but no `OSError`: that would be a file's."""

Progress = Callable[[int, int], None]
"""Called with how many are done, and of how many; it may raise as a `Check` does."""

SECONDS_BETWEEN_CHECKS: Final = 0.1


def never_stop() -> None:
    """The check of what is not to be stopped."""


def unwatched(done: int, of: int) -> None:
    """The progress of what nobody watches."""


def ordered_map(
    function: Callable[[T], R], items: Iterable[T], threads: int, check: Check = never_stop
) -> Generator[R]:
    """The results in the order of `items`; at most three times `threads` of them exist at a time.

    `check` is called between results and while one is waited for. When it raises, nothing new is begun, and the
    threads end with the items they have in hand, which nobody waits for. `Executor.map` would start all items at once
    and keep every result that is not yet fetched.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="autoft-data")
    try:
        waiting: deque[Future[R]] = deque()
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * threads:
                yield _result(waiting.popleft(), check)
        while waiting:
            yield _result(waiting.popleft(), check)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def in_thread(call: Callable[[], R], check: Check) -> R:
    """What the call gives, or raises. When `check` raises meanwhile, the call is left behind, and ends with Python."""
    future: Future[R] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="autoft-waiting", daemon=True).start()
    return _result(future, check)


def _result(future: Future[R], check: Check) -> R:
    check()
    while not concurrent.futures.wait((future,), SECONDS_BETWEEN_CHECKS).done:
        check()
    return future.result()

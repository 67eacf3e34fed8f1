"""What is asked of every part, and that no check takes for ever."""

from __future__ import annotations

import functools
import sys
import threading
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from autoft.parts.base import Named

P = TypeVar("P", bound=Named)


def _in_time(check: Callable[..., None]) -> Callable[..., None]:
    """The check, failed when it takes longer than its suite's `seconds`: in a thread, as signals are not everywhere."""

    @functools.wraps(check)
    def timed(suite: Conformance[Any], *arguments: Any, **named: Any) -> None:
        raised: list[BaseException] = []

        def run() -> None:
            try:
                check(suite, *arguments, **named)
            except BaseException as error:  # SystemExit and pytest's skip among them
                raised.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        thread.join(suite.seconds)
        if thread.is_alive():
            limit = f"{type(suite).__name__}.{check.__name__} is not done after {suite.seconds:g} s"
            raise AssertionError(f"{limit}; it hangs or is too slow (then raise `seconds`) {_place(thread)}")
        if raised:
            raise raised[0]

    return timed


def _place(thread: threading.Thread) -> str:
    """Where a thread is now."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame)
    return f"at {stack[-1].filename}:{stack[-1].lineno}, in {stack[-1].name}()" if frame else "at its end"


class Conformance(ABC, Generic[P]):
    """What is asked of every part. A check may take `seconds`."""

    seconds: ClassVar[float] = 120.0

    def __init_subclass__(cls, **settings: Any) -> None:
        super().__init_subclass__(**settings)
        for name, check in list(vars(cls).items()):
            if name.startswith("test_") and callable(check):
                setattr(cls, name, _in_time(check))

    @abstractmethod
    def part(self) -> P:
        """The part under test; a new one at every call."""

    @_in_time
    def test_its_name_is_one_word(self) -> None:
        """The name stands in commands and addresses."""
        name = getattr(self.part(), "name", None)
        assert isinstance(name, str) and name, "give the class a `name`"
        assert not set(name) & set("/ \t\n,*?[]:"), f"the name {name!r} must hold no space, slash, comma, colon or glob"

    @_in_time
    def test_its_summary_is_one_line(self) -> None:
        """The summary stands in a table."""
        assert "\n" not in getattr(self.part(), "summary", ""), "keep `summary` to one line"

"""`Measurements`: what was measured here, by all that it depends on, kept for this process and those to come."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from autoft.system.disk_cache import alone
from autoft.system.files import write_atomic
from autoft.system.parallel import Check
from autoft.values.codec import decode, encode


class Measured(Protocol):
    """Frozen, of a kind that `codec` knows."""

    @property
    def setting(self) -> object:
        """Frozen: all that it depends on."""

    @property
    def says_all(self) -> bool:
        """Whether it is worth a file: there is something in it that would be measured again."""


M = TypeVar("M", bound=Measured)


class _TooLong(Exception):
    """Another has been measuring for as long as this one can wait."""


class Measurements(Generic[M]):
    """Those of one kind, a file each in `folder`. A file that is damaged, or of another setting, says nothing."""

    def __init__(self, folder: Path, kind: type[M]) -> None:
        self._folder, self._kind = folder, kind
        self._known: dict[object, M] = {}

    def known(self, setting: object) -> M | None:
        """What was measured in a setting, by whichever process."""
        if setting not in self._known and (found := self._read(setting)) is not None:
            self._known[setting] = found
        return self._known.get(setting)

    def measured(
        self, setting: object, measure: Callable[[], M | None], check: Check, until: float = math.inf
    ) -> M | None:
        """The same, measured now if need be: by this process, or by another, for which this one waits.

        Not longer than `until`, by `time.monotonic`. None is a matter of the moment, and not kept. Nor is there a file
        where the folder cannot be written.
        """

        def wait() -> None:
            check()
            if time.monotonic() > until:
                raise _TooLong

        with suppress(_TooLong), ExitStack() as stack:
            with suppress(OSError):
                stack.enter_context(alone(self._path(setting).with_suffix(".lock"), wait))
            if self.known(setting) is None and (found := measure()) is not None:
                self._keep(found)
        return self._known.get(setting)

    def _keep(self, found: M) -> None:
        self._known[found.setting] = found
        if found.says_all:
            with suppress(OSError):
                write_atomic(self._path(found.setting), encode(found))

    def _read(self, setting: object) -> M | None:
        with suppress(OSError, ValueError):
            found = decode(self._kind, self._path(setting).read_text(encoding="utf-8"))
            if found.setting == setting:
                return found
        return None

    def _path(self, setting: object) -> Path:
        digest = hashlib.blake2b(encode(setting).encode(), digest_size=16)
        return self._folder / f"{digest.hexdigest()}.json"

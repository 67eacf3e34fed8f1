"""Options: what a person can ask for is declared once, at the fields of a frozen value.

The flags and their help are made from it, what stands in flags, TOML and Python is read by it, and docs/options.md is
held to it by a test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True)
class Option:
    """Stands in the `typing.Annotated` of a field: its line of help, and how a person writes it.

    `metavar` stands for the value in help, with its unit; a flag without a value has none. `default` says the default
    in words, where the field's own is not what a person would write. `read` makes a value of one text, and raises
    `StudyError`.
    """

    help: str
    metavar: str | None = None
    default: str = ""
    read: Callable[[str], Any] | None = None


@dataclass(frozen=True)
class Declared:
    """A field of `many` values of `type`, or of one, with its option: None where it has no flag of its own."""

    name: str
    type: type
    many: bool
    default: Any
    option: Option | None

    @property
    def flag(self) -> str:
        """The name as the command line has it; what is a keyword of Python has an underscore behind it there only."""
        return "--" + self.name.removesuffix("_").replace("_", "-")

    def read(self, written: Any) -> Any:
        """The field's value for what stands in a flag, in TOML or in Python. Raises `StudyError`.

        What no option is written as comes back as it is, for strict decoding to refuse.
        """
        read = self.option.read if self.option else None
        if self.many:
            return _names(written, read or str)
        return (read or _text)(str(written)) if isinstance(written, str | Path) else written

    def default_in_words(self) -> str:
        """The default as help shows it; empty where there is nothing to say."""
        if self.option and self.option.default:
            return self.option.default
        if self.type is bool or self.default is None:
            return ""
        values = self.default if self.many else (self.default,)
        return ",".join(f"{one:g}" if self.type is float else str(one) for one in values)


def options_of(cls: type[DataclassInstance]) -> tuple[Declared, ...]:
    """The options of a frozen value, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    return tuple(_declared(field, hints[field.name]) for field in fields(cls))


def _declared(field: Field[Any], hint: Any) -> Declared:
    bare, *extras = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    return Declared(
        name=field.name,
        type=next(iter(get_args(bare)), bare),  # of `X | None` and `tuple[X, ...]` the X
        many=get_origin(bare) is tuple,
        default=None if field.default is MISSING else field.default,
        option=next((extra for extra in extras if isinstance(extra, Option)), None),
    )


def _text(written: str) -> str:
    """A name or a place as JSON and every screen can hold it."""
    from autoft.system.files import as_text

    return as_text(written)


def _names(written: Any, read: Callable[[str], Any]) -> Any:
    """The names in a text with commas between them, or in a list."""
    if isinstance(written, Mapping) or not isinstance(written, Iterable):
        return written
    parts = written.split(",") if isinstance(written, str) else written
    stripped = (part.strip() if isinstance(part, str) else part for part in parts)
    return tuple(read(part) if isinstance(part, str) else part for part in stripped if part != "")

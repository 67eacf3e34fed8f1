"""Our frozen values to JSON and back, exactly: what is written is what is read.

Reading is strict: an unknown key, a missing one, a number where a text belongs, a truth value where a number belongs or
a NaN is a `ValueError` with one line that says where. Writing is as strict, so that nothing is written that could not
be read again.
"""

from __future__ import annotations

import functools
import json
import re
from types import UnionType
from typing import TYPE_CHECKING, Any, TypeVar, overload

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

_FLAT_LIST = re.compile(r"\[\n[^\[\]{}]*\]")
_LINE_BREAK = re.compile(r"\n *")
_ODD_FIELDS = ("missing", "missing_argument", "unexpected_keyword_argument")  # as pydantic calls them


def encode(value: object) -> str:
    """The JSON text of a frozen value, on one line. Raises `ValueError` when it would not read back."""
    return json.dumps(encode_python(value), ensure_ascii=False, allow_nan=False)


def encode_readable(value: object) -> str:
    """The JSON text of a frozen value over many lines, for files that people read. Raises as `encode` does."""
    text = json.dumps(encode_python(value), ensure_ascii=False, allow_nan=False, indent=1)
    # A list of numbers or texts goes on one line; no text holds a line break itself.
    return _FLAT_LIST.sub(lambda found: _LINE_BREAK.sub(" ", found[0]), text) + "\n"


def encode_python(value: object) -> Any:
    """The value as plain dicts, lists, numbers and texts. Raises `ValueError` when it would not read back."""
    from pydantic_core import PydanticSerializationError

    cls: Any = type(value)
    adapter = _adapter(cls)
    try:
        (data,) = adapter.dump_python((value,), mode="json", warnings=False)
    except PydanticSerializationError as error:
        raise ValueError(f"not a {cls.__name__} that JSON can hold: {_one_line(str(error))}") from None
    # For JSON a True where a number belongs has become 1; what the value itself holds is what has to be right.
    (as_it_is,) = adapter.dump_python((value,), warnings=False)
    _decode(cls, [as_it_is])
    return data


@overload
def decode(cls: type[T], text_or_data: object) -> T: ...
@overload
def decode(cls: UnionType, text_or_data: object) -> Any: ...
def decode(cls: Any, text_or_data: object) -> Any:
    """The value of type `cls` from JSON text, or from what `json.loads` made of it.

    `cls` may be a union such as `Event`. Raises `ValueError`, one line, when the text is no such value.
    """
    if not isinstance(text_or_data, str | bytes):
        return _decode(cls, [text_or_data])
    try:
        return _decode(cls, [json.loads(text_or_data)])
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not JSON: {error}") from None


def _decode(cls: Any, boxed: list[object]) -> Any:
    from pydantic import ValidationError

    try:
        (value,) = _adapter(cls).validate_json(json.dumps(boxed))
    except ValidationError as error:
        raise ValueError(_explain(cls, error)) from None
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not plain JSON data: {_one_line(str(error))}") from None
    return value


@functools.cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    """Validator and serialiser of a one-element box: pydantic hands its configuration to dataclasses inside others."""
    from pydantic import ConfigDict, TypeAdapter

    config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, ser_json_inf_nan="constants")
    boxed: Any = tuple.__class_getitem__((cls,))
    return TypeAdapter(boxed, config=config)


def _explain(cls: Any, error: ValidationError) -> str:
    """One line for the error that goes deepest: of a union's branches that is the one that was meant.

    Of equally deep ones a wrong value tells more than a field too many, which may be that of another branch.
    """
    errors = error.errors(include_url=False, include_context=False)
    tags = {tuple(e["loc"][:-1]) for e in errors if e["type"] == "literal_error" and e["loc"][-1] in ("kind", "event")}
    meant = [e for e in errors if not any(tuple(e["loc"][: len(tag)]) == tag for tag in tags)] or errors
    deepest = max(meant, key=lambda e: (len(e["loc"]), e["type"] not in _ODD_FIELDS))
    where = ".".join(str(part) for part in deepest["loc"][1:]) or "value"
    more = f" (and {len(meant) - 1} more)" if len(meant) > 1 else ""
    return _one_line(f"not a valid {getattr(cls, '__name__', cls)}: {where}: {deepest['msg']}{more}")


def _one_line(text: str) -> str:
    return " ".join(text.split())

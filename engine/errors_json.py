"""Engine errors as JSON values, for sockets: their type, text and plain fields."""

from __future__ import annotations

from typing import Any

import engine.errors
from engine.errors import EngineError

ERRORS: dict[str, type[EngineError]] = {
    name: value
    for name, value in vars(engine.errors).items()
    if isinstance(value, type) and issubclass(value, EngineError)
}


def error_to_json(error: EngineError) -> dict[str, Any]:
    fields = {key: value for key, value in vars(error).items() if isinstance(value, str | int | float | None)}
    return {"type": type(error).__name__, "message": str(error), "fields": fields}


def error_from_json(message: dict[str, Any]) -> EngineError:
    """The engine error with its type, text and fields; of an unknown type the root of the tree."""
    kind = ERRORS.get(str(message.get("type")), EngineError)
    error = kind.__new__(kind)
    error.args = (str(message.get("message", "")),)
    fields = message.get("fields")
    if isinstance(fields, dict):
        vars(error).update(fields)
    return error

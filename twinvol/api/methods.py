"""The methods of ``EngineApi`` with validators for what crosses the socket, made from its type hints.

The one place where the socket API meets pydantic. Importing this module is slow (60 ms): the server loads it in a
thread after the daemon is ready, the client when it opens.
"""

from __future__ import annotations

import functools
import inspect
import json
import typing
from typing import Any

from pydantic import TypeAdapter, ValidationError

from engine.api import EngineApi
from engine.errors import InvalidArgument


class Method:
    """One operation: its parameters and result as validators, made at its first use."""

    def __init__(self, name: str, function: Any) -> None:
        self.name = name
        self._signature = inspect.signature(function)
        self._hints = typing.get_type_hints(function)

    @functools.cached_property
    def _parameters(self) -> dict[str, tuple[TypeAdapter[Any], bool]]:
        return {
            name: (TypeAdapter(self._hints[name]), parameter.default is inspect.Parameter.empty)
            for name, parameter in self._signature.parameters.items()
            if name != "self"
        }

    @functools.cached_property
    def _result(self) -> TypeAdapter[Any]:
        return TypeAdapter(self._hints["return"])

    def parse_parameters(self, params: dict[str, Any]) -> dict[str, Any]:
        """Arguments for the call from a request. Raises InvalidArgument."""
        known = self._parameters
        unknown = params.keys() - known.keys()
        missing = {name for name, (_, required) in known.items() if required} - params.keys()
        if unknown or missing:
            raise InvalidArgument(f"{self.name}: parameters unknown {sorted(unknown)}, missing {sorted(missing)}")
        arguments = {}
        for name, value in params.items():
            try:
                arguments[name] = known[name][0].validate_json(json.dumps(value), strict=True)  # objects are values
            except ValidationError as error:
                raise InvalidArgument(f"{self.name}: {name}: {error.errors()[0]['msg']}") from error
        return arguments

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """The params of a request from a call's arguments."""
        arguments = dict(list(self._signature.bind(None, *args, **kwargs).arguments.items())[1:])
        return {
            name: self._parameters[name][0].dump_python(value, mode="json", warnings=False)
            for name, value in arguments.items()
        }

    def dump_result(self, value: Any) -> Any:
        return self._result.dump_python(value, mode="json")

    def parse_result(self, value: Any) -> Any:
        return self._result.validate_python(value)


@functools.cache
def methods() -> dict[str, Method]:
    """All operations by name."""
    return {
        name: Method(name, function) for name, function in inspect.getmembers(EngineApi, inspect.iscoroutinefunction)
    }

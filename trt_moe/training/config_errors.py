"""What is wrong with a configuration, in words."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

Place = tuple[int | str, ...]


def describe(error: ValidationError, config: type[BaseModel]) -> str:
    """Every complaint with the place it is about; an unknown key with those that it may stand for."""
    errors = error.errors(include_url=False)
    places: list[Place] = [each["loc"] for each in errors]
    return "; ".join(
        f"{'.'.join(map(str, place)) or 'config'}: "
        + (_unknown(place, config) if each["type"] == "extra_forbidden" else each["msg"].removeprefix("Value error, "))
        for place, each in zip(places, errors, strict=True)
        if not (each["type"] == "too_short" and _is_above(place, places))
    )


def _is_above(place: Place, places: Sequence[Place]) -> bool:
    """Whether something inside is wrong: pydantic leaves that out, and then calls the list too short as well."""
    return any(len(other) > len(place) and other[: len(place)] == place for other in places)


def _unknown(place: Place, config: type[BaseModel]) -> str:
    section = config
    for part in place[:-1]:
        if isinstance(part, str):
            section = _section(section.model_fields[part].annotation) or section
    near = difflib.get_close_matches(str(place[-1]), section.model_fields, n=4, cutoff=0.6)
    return "no such key; " + (
        f"near matches: {', '.join(near)}" if near else f"there are {', '.join(section.model_fields)}"
    )


def _section(annotation: Any) -> type[BaseModel] | None:
    """Find the section that a field holds, or a list of them."""
    if parts := get_args(annotation):
        return next((found for part in parts if (found := _section(part)) is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None

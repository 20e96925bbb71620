"""Say what a part of a method is: a frozen dataclass whose fields are its settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self, get_type_hints

from pydantic import TypeAdapter, ValidationError


class MethodError(ValueError):
    """A method that cannot be found or made: one line that says why and what to do."""


@dataclass(frozen=True)
class Range:
    """What tuning may try of a setting.

    Attributes:
        low: the least value.
        high: the greatest value; it may be tried too.
        log: whether values are spread evenly by their logarithm.
        whole: whether they are whole numbers.

    Raises:
        ValueError: the ends make no range.
    """

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise ValueError(
                f"from {self.low!r} to {self.high!r} is no range: low must be below high, and "
                "above zero on a logarithmic scale"
            )
        if self.whole and not (float(self.low).is_integer() and float(self.high).is_integer()):
            raise ValueError(f"whole numbers cannot go from {self.low!r} to {self.high!r}")


@dataclass(frozen=True)
class Part:
    """A recipe, a schedule or an averager, before there is a model.

    A part of your own is a frozen dataclass that begins from `RecipePart`, `SchedulePart` or
    `AveragerPart`. Its fields are its settings: with defaults, set by `--set NAME.FIELD=VALUE`, and
    checked in `__post_init__`, which raises ValueError.

    Attributes:
        name: on the command line; of a file's part, the stem of the file if it gives none.
        title: in tables and plots; by default the name.
        space: what tuning may try of each setting; those that are not here it leaves alone.
        brings: parts that come with this one, so that none of their kind can be added.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    space: ClassVar[Mapping[str, Range]] = {}
    brings: ClassVar[tuple[Part, ...]] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Return the value of each setting."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def changed(self) -> dict[str, Any]:
        """Return the settings that are not the defaults."""
        defaults = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in self.settings.items() if value != defaults[name]}

    def with_settings(self, values: Mapping[str, object]) -> Self:
        """Return this part with other settings, given as values or as text.

        Raises:
            MethodError: there is no such setting, or it does not take the value.
        """
        types = get_type_hints(type(self))
        chosen: dict[str, Any] = {}
        for setting, value in values.items():
            if setting not in self.settings:
                known = ", ".join(f"{self.name}.{each}" for each in self.settings)
                raise MethodError(
                    f"{self.name}.{setting} is no setting: {self.name} has {known or 'none'}"
                )
            try:
                chosen[setting] = TypeAdapter(types[setting]).validate_python(value)
                if isinstance(chosen[setting], float) and not math.isfinite(chosen[setting]):
                    raise ValueError(f"{setting} must be a finite number: {value}")
            except ValidationError as error:
                why = " or ".join(dict.fromkeys(each["msg"] for each in error.errors()))
                raise MethodError(
                    f"{self.name}.{setting} cannot be {value!r:.60}: {why}"
                ) from error
            except ValueError as error:
                raise MethodError(f"{self.name}.{setting}: {error}") from error
        try:
            return replace(self, **chosen)
        except ValueError as error:
            for setting, value in chosen.items():
                try:
                    replace(self, **{setting: value})
                except ValueError as alone:
                    raise MethodError(f"{self.name}.{setting}: {alone}") from alone
            raise MethodError(f"{self.name}: {error}") from error


def check_share(**values: float) -> None:
    """Refuse values that are not between 0 and 1.

    Raises:
        ValueError: one is not.
    """
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must be between 0 and 1: {value!r}")


def check_positive(**values: float) -> None:
    """Refuse values that are not above 0.

    Raises:
        ValueError: one is not.
    """
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0: {value!r}")

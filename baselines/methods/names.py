"""Find methods by name: the tables of parts, short names, and sums such as "wsd+lawa(k=10)"."""

from __future__ import annotations

import inspect
import math
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from numbers import Real
from pathlib import Path
from types import MappingProxyType

from baselines.external import digest_of, one_line_errors, run_file
from baselines.methods.averagers.base import AveragerPart
from baselines.methods.averagers.ema import EmaGrowingPart, EmaPart
from baselines.methods.averagers.lawa import LawaPart
from baselines.methods.averagers.swa import CyclicSwaPart, SwaPart
from baselines.methods.method import Method
from baselines.methods.part import MethodError, Part
from baselines.methods.recipes.base import RecipePart
from baselines.methods.recipes.layer_dropping import LayerDroppingPart
from baselines.methods.recipes.layer_stacking import LayerStackingPart
from baselines.methods.recipes.lion import LionPart
from baselines.methods.recipes.rho_loss import RhoLossPart
from baselines.methods.recipes.schedule_free import ScheduleFreePart
from baselines.methods.recipes.selective_backprop import SelectiveBackpropPart
from baselines.methods.recipes.sophia import SophiaPart
from baselines.methods.schedules import Constant, Cosine, Decayed, SchedulePart, Wsd


def _by_name(*parts: Part) -> MappingProxyType[str, Part]:
    return MappingProxyType({part.name: part for part in parts})


RECIPES = _by_name(
    ScheduleFreePart(),
    LionPart(),
    SophiaPart(),
    LayerDroppingPart(),
    LayerStackingPart(),
    SelectiveBackpropPart(),
    RhoLossPart(),
)
SCHEDULES = _by_name(Constant(), Decayed(), Cosine(), Wsd())
AVERAGERS = _by_name(EmaPart(), EmaGrowingPart(), SwaPart(), CyclicSwaPart(), LawaPart())
_PARTS = {**RECIPES, **SCHEDULES, **AVERAGERS}

# Short for sums. The last three are what an average at mid-training competes with: a run that ends
# there, fully decayed.
SHORT = {
    "lawa-decayed": "decayed+lawa",
    "ema-decayed": "decayed+ema",
    "lawa-cosine": "cosine+lawa",
    "lawa-wsd": "wsd+lawa",
    "ema-wsd": "wsd+ema",
    "annealed-25": "decayed@25%",
    "annealed-50": "decayed@50%",
    "annealed-75": "decayed@75%",
}
_SHORT_OF = {parts: name for name, parts in SHORT.items()}

DEFAULT = ("constant", "decayed", "ema", "swa", "lawa", "lawa-decayed")
# All that have a name of one word, without those of files.
NAMES = (*SCHEDULES, *AVERAGERS, *RECIPES, *SHORT)

_KINDS = {"recipe": RecipePart, "schedule": SchedulePart, "averager": AveragerPart}
_A = {"recipe": "a recipe", "schedule": "a schedule", "averager": "an averager"}
_WORD = re.compile(r"(?P<part>.*?)(\((?P<settings>[^()]*)\))?(@(?P<share>[^@()]*))?", re.DOTALL)
_OUTSIDE_OF_BRACKETS = r"(?![^()]*\))"


def split_names(text: str) -> list[str]:
    """Return the names in a list with commas between them, which settings have too."""
    return [name.strip() for name in re.split(f",{_OUTSIDE_OF_BRACKETS}", text)]


def find(name: str) -> Method:
    """Return the method of this name or sum of parts.

    A sum has at most one recipe, one schedule and one averager, in any order: "decayed+lawa". What
    is left out is the workload's own recipe, the constant rate, the live weights. A part may have
    settings, "lawa(k=10)", and a schedule a share of the budget, "decayed@25%". A part may be a
    Python file that says `part = ...`, which is run once for each of its texts: so only ask for
    files that the user named on this command line.

    Raises:
        MethodError: there is none, it makes no sense, or a file is at fault: in one line.
    """
    given: dict[str, Part] = {}
    words: dict[str, str] = {}
    share = 1.0
    for word in _words(name):
        part = _part_of(name, word.part)
        if word.settings:
            part = part.with_settings(word.settings)
        kind = _kind_of(part)
        if kind in given:
            raise MethodError(f"{name!r} has two {kind}s, {words[kind]} and {word.part}: give one")
        if word.share:
            share = _share_of(name, word, kind)
        given[kind], words[kind] = part, word.part
    for kind, part in list(given.items()):
        for brought in part.brings:
            if (other := _kind_of(brought)) in words:
                raise MethodError(
                    f"{name!r}: {words[kind]} brings {_A[other]} of its own: "
                    f"leave {words[other]} out"
                )
            given[other] = brought
    title = _title(given, words, share)
    called = _canonical(given, words, share)
    return Method(called, title, **given, share=share, files=files_in(name))  # type: ignore[arg-type]


def files_in(name: str) -> tuple[str, ...]:
    """Return the files of the user's own that `find` would run for a name.

    Raises:
        MethodError: it is no sum of parts.
    """
    return tuple(word.part for word in _words(name) if word.part.endswith(".py"))


def _title(given: dict[str, Part], words: dict[str, str], share: float) -> str:
    """Return the title of a method of these parts; `words` has those that were named."""

    def titled(kind: str) -> str:
        part = given[kind]
        return (part.title or part.name) + _in_brackets(part, " (", ", ")

    schedule = given.get("schedule", Constant())
    assert isinstance(schedule, SchedulePart)
    at = "" if share == 1 else f" at {share:.0%} of the budget"
    if "averager" in words:
        of = schedule.averaged or schedule.title or schedule.name
        said = f"{titled('averager')} of {of}{_in_brackets(schedule, ' (', ', ')}{at}"
    elif "recipe" in words and "schedule" not in words:
        return titled("recipe")
    else:
        own = titled("schedule") if "schedule" in given else schedule.title
        said = (own.removesuffix(" rate") if at else own) + at
    return f"{titled('recipe')}: {said}" if "recipe" in words else said


def _in_brackets(part: Part, opening: str = "(", separator: str = ",") -> str:
    """Return the settings that are not the part's defaults; nothing where all are."""
    changed = separator.join(f"{name}={value}" for name, value in part.changed.items())
    return f"{opening}{changed})" if changed else ""


def _canonical(given: dict[str, Part], words: dict[str, str], share: float) -> str:
    """Return the one name of a method: the short one, or recipe, schedule and averager."""

    def spelled(kind: str) -> str:
        at = f"@{share:.0%}" if kind == "schedule" and share != 1 else ""
        return f"{words[kind]}{_in_brackets(given[kind])}{at}"

    named = [spelled(kind) for kind in _KINDS if kind in words]
    if len(named) > 1 and named[0] == "constant":
        named = named[1:]
    elif len(named) > 2 and named[1] == "constant":
        named = [named[0], named[2]]
    name = "+".join(named)
    return _SHORT_OF.get(name, name)


@dataclass(frozen=True)
class _Word:
    """A part as it is named in a sum."""

    part: str
    settings: dict[str, str]
    share: str


def _words(name: str) -> list[_Word]:
    """Return the parts that a name names; a path may have any of its signs in it."""
    if name in SHORT:
        name = SHORT[name]
    # Not exists(), which raises for a name that is too long.
    if name.endswith(".py") and os.path.exists(name):  # noqa: PTH110
        return [_Word(name, {}, "")]
    found = []
    for text in re.split(rf"\+{_OUTSIDE_OF_BRACKETS}", name):
        match = _WORD.fullmatch(text.strip())
        assert match is not None
        settings = {}
        for each in filter(None, (match["settings"] or "").split(",")):
            setting, equals, value = each.partition("=")
            if not equals:
                raise MethodError(f"{name!r}: a setting is NAME=VALUE, and {each.strip()!r} is not")
            settings[setting.strip()] = value.strip()
        found.append(_Word(match["part"].strip(), settings, (match["share"] or "").strip()))
        if match["share"] is not None and not found[-1].share:
            raise MethodError(f"{name!r}: @ is followed by a share of the budget, such as @25%")
    return found


def _part_of(name: str, word: str) -> Part:
    if word in _PARTS:
        return _PARTS[word]
    if word.endswith(".py"):
        path = Path(word)
        return _of_file(path, path.resolve(), digest_of(path, MethodError))
    if word in SHORT:
        raise MethodError(f"{name!r}: {word} is short for {SHORT[word]}: write that")
    if word == name:
        raise MethodError(
            f"{name!r} is none of {', '.join(NAMES)}, nor a sum of them such as cosine+ema, nor a "
            "path to a .py file"
        )
    raise MethodError(
        f"{name!r}: {word!r} is neither a schedule ({', '.join(SCHEDULES)}), nor an averager "
        f"({', '.join(AVERAGERS)}), nor a recipe ({', '.join(RECIPES)}), nor a path to a .py file"
    )


def _kind_of(part: Part) -> str:
    return next(kind for kind, base in _KINDS.items() if isinstance(part, base))


def _share_of(name: str, word: _Word, kind: str) -> float:
    if kind != "schedule":
        raise MethodError(
            f"{name!r}: a share is of a schedule, such as decayed@25%, and not of {word.part}"
        )
    if not re.fullmatch(r"[1-9]\d?%|100%", word.share):
        raise MethodError(
            f"{name!r}: @{word.share} is no share of the budget in whole percent, such as @25%"
        )
    return int(word.share.removesuffix("%")) / 100


@cache
def _of_file(path: Path, _resolved: Path, _digest: str) -> Part:
    with one_line_errors(path, MethodError):
        part: Part | None = getattr(run_file(path), "part", None)
        if not isinstance(part, RecipePart | SchedulePart | AveragerPart):
            kinds = " or ".join(kind.__name__ for kind in _KINDS.values())
            what = "no name `part`" if part is None else f"`part` as a {type(part).__name__}"
            raise MethodError(f"{path} defines {what}, which must be a {kinds}")
        own = type(part)
        if not own.name:
            own.name = path.stem
        if not own.title:
            own.title = own.name
        if own.name in _PARTS:
            raise MethodError(
                f"{path} calls its part {own.name!r}, as a part of the package is called: give it "
                "another name"
            )
        if unknown := [name for name in own.space if name not in part.settings]:
            raise MethodError(
                f"{_place_of(own, path)}: space names {unknown[0]}, and {own.name} has no such "
                f"setting: it has {', '.join(part.settings) or 'none'}"
            )
        if isinstance(part, SchedulePart):
            _check(path, part)
    return part


def _place_of(own: type, path: Path) -> str:
    """Return where a class of a file begins."""
    with suppress(OSError, TypeError):
        return f"{path}, line {inspect.getsourcelines(own)[1]}"
    return str(path)


def _check(path: Path, schedule: SchedulePart) -> None:
    """Refuse what would fail in the midst of a comparison."""
    for spent in (0.0, 0.5):
        factor: object = schedule.factor(spent)
        if not isinstance(factor, Real) or not math.isfinite(factor):
            raise MethodError(
                f"the schedule of {path} must give a finite number, the factor of the peak rate; "
                f"at {spent:.0%} of the budget it gives {factor!r:.60}"
            )


def file_digests(methods: Iterable[Method]) -> dict[str, str]:
    """Return the SHA-256 of each file of the methods, so that no run goes on with another text.

    Raises:
        MethodError: one cannot be read.
    """
    files = dict.fromkeys(file for method in methods for file in method.files)
    return {file: digest_of(Path(file), MethodError) for file in files}

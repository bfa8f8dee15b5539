"""Search space: the settings that trials vary, from a tune.yaml and the experiment's own values."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from optuna import Trial

from foldwise.checks import check_config
from foldwise.config import compose_config, resolve_config
from foldwise.data.images import image_hw
from foldwise.errors import Refusal, refuse_all
from foldwise.settings import (
    LIBRARY,
    OWNER,
    known_settings,
    list_choices,
    list_groups,
    read_yaml,
    unknown_choice,
    unknown_setting,
)
from foldwise.shell import override

FILE = "tune.yaml"
FORMS = "a list of choices, {low: 0.0, high: 1.0}, with or without log: true, or {factor: 10}"
ALONE = ("fold_workers=1", "logger=none", "preflight=false", "validate_every=1")  # settings of every trial
SMALLEST, MULTIPLE = 64, 32  # pixels of half an image


@dataclass(frozen=True)
class Choices:
    """Values of a group or a setting, as written in an override."""

    name: str
    values: tuple[str, ...]
    start: str

    def suggest(self, trial: Trial) -> str:
        return str(trial.suggest_categorical(self.name, self.values))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, both included; whole if `start` is."""

    name: str
    low: float
    high: float
    start: float
    log: bool = False

    def suggest(self, trial: Trial) -> float:
        if isinstance(self.start, int):
            return trial.suggest_int(self.name, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, log=self.log)


Dimension = Choices | Range


@dataclass(frozen=True)
class Space:
    """Dimensions of the search.

    Attributes:
        base: overrides of the full training.
        small: overrides that make a trial of it.
        half: another one, the image size; "" if it is full.
        notes: what is not varied, and why.
    """

    base: tuple[str, ...]
    small: tuple[str, ...]
    half: str
    dimensions: tuple[Dimension, ...]
    notes: tuple[str, ...] = ()

    @property
    def start(self) -> dict[str, Any]:
        """The experiment's own values."""
        return {dimension.name: dimension.start for dimension in self.dimensions}

    def suggest(self, trial: Trial) -> dict[str, Any]:
        """Values of a trial: groups first, then the settings that these choices have."""
        groups = [dimension for dimension in self.dimensions if dimension.name in list_groups()]
        found: dict[str, Any] = {dimension.name: dimension.suggest(trial) for dimension in groups}
        config = compose_config([*self.base, *words(found)])
        for dimension in self.dimensions:
            if dimension not in groups and has(config, dimension.name):
                found[dimension.name] = dimension.suggest(trial)
        return found

    def config(self, values: Mapping[str, Any], small: bool = True) -> dict[str, Any]:
        """The resolved configuration of a training with these values."""
        own = (*filter(None, [self.half]), *ALONE, *self.small) if small else ()
        return resolve_config(compose_config([*self.base, *own, *words(values)]))


def words(values: Mapping[str, Any]) -> list[str]:
    """Overrides of values by setting."""
    return [f"{name}={value}" for name, value in values.items()]


def has(config: DictConfig, name: str) -> bool:
    """Whether a configuration has a setting, null included."""
    node: Any = config
    for key in name.split("."):
        if not hasattr(node, "keys") or key not in node:
            return False
        node = node[key]
    return True


def space_file(given: Path | None) -> Path:
    """The file of the search space: the given one, the owner's, or the library's."""
    if given is not None and not given.is_file():
        raise Refusal(f"--space {given} is not a file: copy foldwise/configs/{FILE} and change it")
    own = OWNER / FILE
    return given or (own if own.is_file() else LIBRARY / FILE)


def read_space(path: Path, base: Sequence[str], small: Sequence[str] = ()) -> Space:
    """Read a search space for an experiment; leave out, with a note, what the experiment does not have.

    Args:
        base: overrides of the full training.
        small: further overrides of trials, which replace those of the file.
    """
    runs = [word for word in (*base, *small) if word.startswith("run=")]
    if runs:
        raise Refusal(f"{runs[0]} names a run that is trained already, and a search trains anew: leave it out")
    content = read_yaml(path)
    unknown = sorted(set(content) - {"small", "space"})
    if unknown or not isinstance(content.get("space"), dict) or not content["space"]:
        what = f"unknown {', '.join(unknown)}" if unknown else "no space"
        raise Refusal(f"{path} has {what}: it has small, overrides of every trial, and space, the settings to vary")
    if not isinstance(content.get("small") or {}, dict):
        raise Refusal(f"{path}: small is {content['small']!r}; it has lines such as data.image_size: 96")
    config = compose_config(base)
    chosen = HydraConfig.get().runtime.choices
    plain = resolve_config(config)
    check_config(plain)
    dimensions, notes, problems = [], [], []
    for name, entry in content["space"].items():
        name = str(name)  # YAML has numbers too
        if name not in list_groups() and not has(config, name):
            if name not in known_settings():
                problems.append(unknown_setting(name))
            notes.append(f"{name} is not varied: the experiment does not have it")
            continue
        start = chosen[name] if name in list_groups() else OmegaConf.select(config, name)
        try:
            dimension = _dimension(name, entry, start)
        except Refusal as error:
            problems.append(str(error))
            continue
        if isinstance(dimension, Choices) and name in list_groups():
            missing = [value for value in dimension.values if value not in list_choices(name)]
            problems += [unknown_choice(name, value) for value in missing]
        if isinstance(dimension, Choices) and not problems:
            dimension, left_out = _possible(dimension, base)
            notes += left_out
        if dimension is None or (isinstance(dimension, Choices) and len(dimension.values) < 2):
            notes.append(f"{name} is not varied: it is {_text(start)} in the experiment")
        else:
            dimensions.append(dimension)
    varied = [word for word in small if word.partition("=")[0].lstrip("+") in content["space"]]
    problems += [f"it varies what --small {word} sets: leave one of them out" for word in varied]
    refuse_all(f"{path}: {problem}" for problem in problems)
    if not dimensions:
        raise Refusal(f"{path} has nothing that this experiment can vary:\n" + "\n".join(notes))
    own = dict(content.get("small") or {})
    half = own.pop("data.image_size") if own.get("data.image_size") == "half" else None
    return Space(
        tuple(base),
        (*(f"{name}={_text(value)}" for name, value in own.items()), *small),
        _half(plain) if half else "",
        tuple(dimensions),
        tuple(notes),
    )


def _half(config: Mapping[str, Any]) -> str:
    """Override that halves the image size; "" for features and for sizes that are small already."""
    full = image_hw(config["data"]["image_size"])
    half = [max(SMALLEST, side // 2 // MULTIPLE * MULTIPLE) for side in full]
    stays = config["data"].get("features") or any(a >= b for a, b in zip(half, full, strict=True))
    return "" if stays else f"data.image_size={_text(half)}"


def _dimension(name: str, entry: Any, start: Any) -> Dimension | None:
    """The dimension of an entry; None if the experiment's value has no range."""
    if isinstance(entry, list):
        if not entry:
            raise Refusal(f"space.{name} is an empty list: name at least one choice")
        return Choices(name, tuple(dict.fromkeys(map(_text, [start, *entry]))), _text(start))
    keys = set(entry) if isinstance(entry, dict) else set()
    if not (keys == {"factor"} or {"low", "high"} <= keys <= {"low", "high", "log"}):
        raise Refusal(f"space.{name} is {entry!r}; it must be {FORMS}")
    try:  # YAML reads 1e-4 as text
        numbers = {key: float(entry[key]) for key in keys - {"log"}}
    except (TypeError, ValueError):
        raise Refusal(f"space.{name} is {entry!r}: its values must be numbers") from None
    log = "factor" in keys or entry.get("log") is True
    if isinstance(start, bool) or not isinstance(start, int | float) or (log and start <= 0):
        return None
    if "factor" in keys and numbers["factor"] > 1:
        numbers = {"low": start / numbers["factor"], "high": start * numbers["factor"]}
    low, high = numbers.get("low", math.nan), numbers.get("high", math.nan)
    if not -math.inf < low < high < math.inf or (log and low <= 0):
        raise Refusal(
            f"space.{name} is {entry!r}; low must be below high, factor above 1, and with log: true low above 0"
        )
    bounds = [entry["low"], entry["high"]] if "low" in entry else []
    if isinstance(start, int) and all(isinstance(bound, int) for bound in bounds) and (bounds or low >= 1):
        low, high = round(low), round(high)
    else:
        start = float(start)
    return Range(name, min(low, start), max(high, start), start, log)


def _possible(dimension: Choices, base: Sequence[str]) -> tuple[Choices, list[str]]:
    """Leave out choices that the experiment refuses; return them as notes."""
    kept, refused, reason = [], [], ""
    for value in dimension.values:
        try:
            check_config(resolve_config(compose_config([*base, f"{dimension.name}={value}"])))
        except Refusal as error:
            refused.append(value)
            reason = str(error).splitlines()[0]
        else:
            kept.append(value)
    notes = [f"{dimension.name} is not varied over {', '.join(refused)}: {reason}"] if refused else []
    return Choices(dimension.name, tuple(kept), dimension.start), notes


def _text(value: Any) -> str:
    """A value as written in an override."""
    if isinstance(value, str):
        return override("", value)[1:]
    return json.dumps(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, separators=(",", ":"))

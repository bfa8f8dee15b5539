"""Decisions and submission formats as plain values, so that no code and no pickle is in a bundle's parameters."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

import numpy as np

from foldwise.predictions.decisions.calibration import CALIBRATORS, Calibrator
from foldwise.predictions.decisions.deciding import Decision
from foldwise.predictions.decisions.expected_f import Group
from foldwise.predictions.decisions.formats import FORMATS
from foldwise.predictions.decisions.masks import Cleaning
from foldwise.predictions.decisions.rules import (
    AdjustedArgmax,
    Argmax,
    ClassThresholds,
    ExpectedF,
    FixedThreshold,
    OneThreshold,
    Rule,
)

Decider = Decision | Cleaning
RULES = {rule.name: rule for rule in (Rule, Argmax, AdjustedArgmax, FixedThreshold, OneThreshold, ClassThresholds)}
FITTED = {calibrator.name: type(calibrator) for each in CALIBRATORS.values() for calibrator in each}


def decider_to_plain(decider: Decider) -> dict[str, Any]:
    """What `decider_from_plain` reads."""
    if isinstance(decider, Cleaning):
        return {"cleaning": asdict(decider)}
    return {
        "calibrators": {str(fold): _to_plain(fitted) for fold, fitted in decider.calibrators.items()},
        "common": _to_plain(decider.common),
        "rule": _to_plain(decider.rule),
    }


def decider_from_plain(values: Mapping[str, Any]) -> Decider:
    """A decision of rows, or the cleaning of masks."""
    if "cleaning" in values:
        return Cleaning(**values["cleaning"])
    return Decision(
        {int(fold): _calibrator(each) for fold, each in values["calibrators"].items()},
        _calibrator(values["common"]),
        _rule(values["rule"]),
    )


def layout_to_plain(layout: Any) -> dict[str, Any]:
    """What `layout_from_plain` reads; the classes stand elsewhere."""
    return {"name": layout.name, **{name: value for name, value in asdict(layout).items() if name != "classes"}}


def layout_from_plain(values: Mapping[str, Any], classes: Sequence[str]) -> Any:
    """A format of `FORMATS`."""
    options = {name: value for name, value in values.items() if name != "name"}
    return FORMATS[values["name"]](classes=classes, **options)


def _to_plain(fitted: Calibrator | Rule) -> dict[str, Any]:
    values = {item.name: getattr(fitted, item.name) for item in fields(fitted)}
    plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}
    return {"name": fitted.name, **plain}


def _calibrator(values: Mapping[str, Any]) -> Calibrator:
    return FITTED[values["name"]](**_arguments(values))


def _rule(values: Mapping[str, Any]) -> Rule:
    if values["name"] != ExpectedF.name:
        return RULES[values["name"]](**_arguments(values))
    groups = tuple(Group(tuple(labels), always) for labels, always in values["groups"])
    return ExpectedF(values["beta"], values["empty"], groups=groups, alone=tuple(values["alone"]))


def _arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    arguments = {name: value for name, value in values.items() if name != "name"}
    return {name: np.array(value) if isinstance(value, list) else value for name, value in arguments.items()}

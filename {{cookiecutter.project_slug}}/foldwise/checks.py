"""Mistakes in a configuration that are seen without reading data and without torch: names, values, files.

They are looked for before any process is started, and told all at once.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from foldwise.data.images import MODES, image_hw
from foldwise.errors import Refusal
from foldwise.settings import known_settings, unknown_setting
from foldwise.tasks import TASKS, Task, find_task

# What the targets of a task must be for a loss, by the last part of its `_target_`.
LOSSES: dict[str, Callable[[Task], bool]] = {
    "BinaryCrossEntropy": lambda task: task.kind == "rows" and not task.exclusive,
    "CrossEntropy": lambda task: task.exclusive,
    "Dice": lambda task: task.kind == "maps",
    "Lovasz": lambda task: task.kind == "maps",
}
# Groups whose settings are all in their files. What the others take is known to what is built from them: a network, an
# optimizer, a loss, a metric, Lightning's Trainer and callbacks, which refuse names that they do not have.
CLOSED = ("augmentation", "data", "logger", "tta")

Rule = tuple[str, Callable[[Any], bool]]  # what a value must be, in words, and whether it is


def _whole(least: int) -> Rule:
    return f"a whole number from {least}", lambda value: type(value) is int and value >= least


def _one_of(*choices: str) -> Rule:
    return f"one of {', '.join(choices)}", lambda value: value in choices


def _or_null(rule: Rule) -> Rule:
    return f"{rule[0]}, or null", lambda value: value is None or rule[1](value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


POSITIVE: Rule = "a number above 0", lambda value: _is_number(value) and value > 0
NOT_NEGATIVE: Rule = "a number from 0", lambda value: _is_number(value) and value >= 0
SWITCH: Rule = "true or false", lambda value: isinstance(value, bool)
VALUES: dict[str, Rule] = {
    "seed": _whole(0),
    "batch_size": _whole(1),
    "epochs": _whole(1),
    "threads": _or_null(_whole(1)),
    "top_k": _whole(0),
    "validate_every": _whole(1),
    "optimizer.lr": POSITIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.layer_decay": _or_null(POSITIVE),
    "data.folds": _whole(1),
    "data.sampling": (
        "one of shuffle, balanced, or has the _target_ of your own",
        lambda value: value in ("shuffle", "balanced") or (isinstance(value, Mapping) and "_target_" in value),
    ),
    "data.workers": _whole(0),
    "data.mode": _one_of(*MODES),
    "data.normalize": _one_of("dataset", "weights"),
    "augmentation.mixup": NOT_NEGATIVE,
    "augmentation.cutmix": NOT_NEGATIVE,
    "model.pretrained": SWITCH,
    "model.channels_last": SWITCH,
    "model.compile": SWITCH,
    "model.gradient_checkpointing": SWITCH,
    "trainer.accumulate_grad_batches": _whole(1),
}


def check_config(config: Mapping[str, Any]) -> None:
    """Refuse a configuration that cannot be what was meant.

    Args:
        config: resolved, plain values.

    Raises:
        Refusal: everything that is wrong, a line each: unknown settings, values of another kind or out of range,
            parts of another task, files that are not there.
    """
    problems = [
        *map(unknown_setting, _unknown(config)),
        *_value_problems(config),
        *_scheduler_problems("scheduler", config["scheduler"]),
        *_phase_problems(config["phases"]),
        *task_problems(config),
        *_file_problems(config),
    ]
    if problems:
        raise Refusal("\n".join(problems))


def task_problems(config: Mapping[str, Any]) -> list[str]:
    """A loss of another task, with what to add."""
    task, loss = find_task(config["task"]), config["loss"]
    names = [part["_target_"].rpartition(".")[2] for part in [loss, *(term["loss"] for term in loss.get("terms", []))]]
    problems = []
    for name in dict.fromkeys(names):
        if name in LOSSES and not LOSSES[name](task):
            others = [other for other in TASKS.values() if LOSSES[name](other)]
            problems.append(
                f"loss {name} is for {' and '.join(other.name for other in others)} and the task is {task.name}: "
                f"add {others[0].describe_settings()}, or choose another loss"
            )
    return problems


def _unknown(config: Mapping[str, Any]) -> list[str]:
    """Settings that no file knows: added by +key=value, or misspelt in an experiment's file."""
    known = {*known_settings(), "project"}
    names = [name for name in config if name not in known]
    return names + [f"{group}.{name}" for group in CLOSED for name in config[group] if f"{group}.{name}" not in known]


def _value_problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    for name, (meaning, fits) in VALUES.items():
        group, _, key = name.rpartition(".")
        section = config[group] if group else config
        if key in section and not fits(section[key]):  # a setting can be newer than a run that is continued
            problems.append(f"{name} is {section[key]!r}; it must be {meaning}")
    try:
        image_hw(config["data"]["image_size"])
    except (TypeError, Refusal):
        problems.append(
            f"data.image_size is {config['data']['image_size']!r}; it must be a whole number above 0, or [height,width]"
        )
    return problems


def _scheduler_problems(where: str, scheduler: Mapping[str, Any]) -> list[str]:
    from hydra.utils import get_class

    values = {name: value for name, value in scheduler.items() if name != "_target_"}
    known = [item.name for item in fields(get_class(scheduler["_target_"])) if item.init]
    return [
        unknown_setting(f"{where}.{name}", [f"{where}.{other}" for other in known])
        if name not in known
        else f"{where}.{name} is {value!r}; it must be a number"
        for name, value in values.items()
        if name not in known or not _is_number(value)
    ]


def _phase_problems(phases: Mapping[str, Any]) -> list[str]:
    from foldwise.schedule.phases import build_phases

    try:
        built = build_phases(phases)
    except Refusal as error:
        return [str(error)]
    return [
        problem
        for phase in built
        if phase.scheduler is not None
        for problem in _scheduler_problems(f"phases.{phase.name}.scheduler", phase.scheduler)
    ]


def _file_problems(config: Mapping[str, Any]) -> list[str]:
    data, weights = config["data"], config["model"]["weights"]
    problems = []
    if data["name"] != "sample":  # which is written when it is first used
        for key, there, kind in (("root", Path.is_dir, "folder"), ("table", Path.is_file, "file")):
            if not there(Path(data[key])):
                problems.append(
                    f"data.{key} is {data[key]}, and there is no such {kind}: put the data there, or correct data.{key}"
                )
    if weights is not None and not Path(weights).is_file():
        problems.append(f"there is no weight file {weights}: correct model.weights or set it to null")
    return problems

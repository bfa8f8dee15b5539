"""Checks a configuration without data or torch: names, values, files. Lists all problems at once."""

import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from foldwise.code.build import resolve
from foldwise.data.images import MODES, is_image_size
from foldwise.data.orientation import EXIF
from foldwise.data.problems import enumerated
from foldwise.data.sample import is_sample
from foldwise.errors import Refusal
from foldwise.files import is_number
from foldwise.schedule.phases import build_phases
from foldwise.settings import LIBRARY, known_settings, list_choices, read_yaml, unknown_setting
from foldwise.tasks import TASKS, Task, find_task
from foldwise.tasks.base import REDUCTIONS
from foldwise.tasks.transforms import NAMES as TRANSFORMS

# Which tasks a loss supports, by its class name.
LOSSES: dict[str, Callable[[Task], bool]] = {
    "AbsoluteError": lambda task: task.transforms,
    "ArcFace": lambda task: task.kind == "vectors",
    "BinaryCrossEntropy": lambda task: task.probabilities and not task.exclusive,
    "Brier": lambda task: task.probabilities and not task.exclusive,
    "CrossEntropy": lambda task: task.exclusive,
    "Dice": lambda task: task.kind == "maps",
    "Focal": lambda task: task.probabilities,
    "Huber": lambda task: task.transforms,
    "Lovasz": lambda task: task.kind == "maps" and task.exclusive,
    "Ordinal": lambda task: task.exclusive and task.kind == "rows",
    "SquaredError": lambda task: task.transforms,
}
# Groups whose files list every setting. In other groups, further keys are arguments of a network, optimizer, loss,
# metric, Trainer or callback, which reject unknown names themselves.
CLOSED = ("data", "logger", "mixing", "tta")

Fits = Callable[[Any], bool]


def _whole(least: int) -> Fits:
    return lambda value: type(value) is int and value >= least


def _number(least: float, above: bool = False) -> Fits:
    return lambda value: is_number(value) and (value > least if above else value >= least)


def _or_null(fits: Fits) -> Fits:
    return lambda value: value is None or fits(value)


def _is_sampling(value: Any) -> bool:
    return value in ("shuffle", "balanced") or (isinstance(value, Mapping) and "_target_" in value)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and re.fullmatch(r"[\w.+-]+", name) for name in value)


# By description: the check of a value, and the settings that it applies to.
VALUES: dict[str, tuple[Fits, str]] = {
    "a whole number from 0": (_whole(0), "seed top_k data.workers"),
    "a whole number from 1": (_whole(1), "batch_size epochs validate_every data.folds trainer.accumulate_grad_batches"),
    "a whole number from 1, or null": (_or_null(_whole(1)), "threads trainer.limit_train_batches"),
    "a number above 0": (_number(0, above=True), "optimizer.lr"),
    "a number above 0, or null": (_or_null(_number(0, above=True)), "optimizer.layer_decay data.mask_scale"),
    "a number from 0": (_number(0), "optimizer.weight_decay mixing.mixup mixing.cutmix"),
    "true or false": (
        lambda value: isinstance(value, bool),
        "model.pretrained model.channels_last model.compile model.gradient_checkpointing",
    ),
    "one of shuffle, balanced, or has the _target_ of your own": (_is_sampling, "data.sampling"),
    f"one of {', '.join(TRANSFORMS)}": (lambda value: value in TRANSFORMS, "data.transform"),
    f"one of {', '.join(REDUCTIONS)}": (lambda value: value in REDUCTIONS, "data.unit_reduction"),
    f"one of {', '.join(MODES)}": (lambda value: value in MODES, "data.mode"),
    f"one of {', '.join(EXIF)}, or null": (lambda value: value in (None, *EXIF), "data.exif"),
    "one of dataset, weights": (lambda value: value in ("dataset", "weights"), "data.normalize"),
    "one of new, true, full, false": (lambda value: value in ("new", "full") or isinstance(value, bool), "preflight"),
    "text, or null": (lambda value: value is None or (isinstance(value, str) and value != ""), "data.label_separator"),
    "a whole number above 0, or [height,width]": (is_image_size, "data.image_size"),
    "null, or a list of folders in features/": (_or_null(_are_names), "data.features"),
}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise a Refusal for unknown settings, wrong values, a loss of another task, or missing files."""
    missing = sorted({path.parent.name for path in LIBRARY.glob("*/*.yaml")} - {"experiment", *config})
    if missing:
        raise Refusal(
            f"the configuration has no {', '.join(missing)}: add `- {missing[0]}: <choice>` to the defaults of "
            "configs/train.yaml; a run from before there was such a group cannot be resumed: train it again"
        )
    problems = [
        *map(unknown_setting, _unknown(config)),
        *_augmentation_problems(config["augmentation"]),
        *_value_problems(config),
        *_scheduler_problems("scheduler", config["scheduler"]),
        *_phase_problems(config["phases"]),
        *_ema_problems(config),
        *task_problems(config["task"], config["loss"]),
        *_head_problems(config.get("outputs") or {}),  # older runs lack it
        *_mask_problems(config["task"], config["data"].get("masks", "exclusive")),
        *_unit_problems(config),
        *_relabel_problems(config),
        *_feature_problems(config),
        *_file_problems(config["data"], config["model"]["weights"]),
        *_initial_problems(config),
    ]
    if problems:
        raise Refusal("\n".join(problems))


def check_data(config: Mapping[str, Any]) -> None:
    """As `check_config`, for the settings of the data alone."""
    data = {"data": config["data"]}
    problems = [*_value_problems(data), *_mask_problems(config["task"], config["data"].get("masks", "exclusive"))]
    problems += _unit_problems(config)
    if problems:
        raise Refusal("\n".join(problems))


def task_problems(task_name: str, loss: Mapping[str, Any]) -> list[str]:
    """Losses that do not fit the task, each with what to add."""
    task = find_task(task_name)
    if task.kind == "boxes":
        return ["detectors are trained elsewhere: read their boxes with tools/boxes.py (docs/tasks.md)"]
    problems = []
    for name in dict.fromkeys(_loss_names(loss)):
        if name in LOSSES and not LOSSES[name](task):
            others = [other for other in TASKS.values() if LOSSES[name](other)]
            advice = f"choose loss={' or loss='.join(_losses_of(task))}"
            if task.kind != "maps":  # a table of masks is of no other task
                advice += f", or add {others[0].describe_settings()}"
            for_tasks = enumerated([other.name for other in others])
            problems.append(f"loss {name} is for {for_tasks} and the task is {task.name}: {advice}")
    return problems


def _head_problems(outputs: Mapping[str, Any]) -> list[str]:
    """Losses of heads that do not fit their tasks."""
    problems = []
    for name, entry in outputs.items():
        task = find_task(entry["task"])
        if entry.get("loss") and any(not LOSSES.get(loss, lambda _: True)(task) for loss in _loss_names(entry["loss"])):
            choices = ", ".join(_losses_of(task))
            problems.append(f"outputs.{name}.loss is not for {task.name}: choose one of {choices}, or leave it out")
    return problems


def _losses_of(task: Task) -> list[str]:
    """Choices of the group loss that suit a task."""
    losses = {choice: read_yaml(path) for choice, path in list_choices("loss").items()}
    return [
        choice
        for choice, loss in losses.items()
        if all(LOSSES.get(name, lambda _: True)(task) for name in _loss_names(loss))
    ]


def _loss_names(loss: Mapping[str, Any]) -> list[str]:
    """Class names of a loss and of its terms."""
    return [part["_target_"].rpartition(".")[2] for part in [loss, *(term["loss"] for term in loss.get("terms", []))]]


def _mask_problems(task: str, masks: str) -> list[str]:
    if masks == "exclusive" or find_task(task).field.spatial:
        return []
    return [f"data.masks={masks} is for task=segmentation, but the task is {task}"]


def _unit_problems(config: Mapping[str, Any]) -> list[str]:
    task, reduction = find_task(config["task"]), config["data"].get("unit_reduction", "mean")
    if reduction != "mean" and config["data"]["columns"].get("unit") is None:
        return [f"data.unit_reduction={reduction} needs units: name their column by data.columns.unit, or set mean"]
    if reduction == "noisy_or" and not task.probabilities:
        return [f"data.unit_reduction=noisy_or is for probabilities, and the task is {task.name}: take mean or max"]
    return []


def _unknown(config: Mapping[str, Any]) -> list[str]:
    """Settings that no file has: added by +key=value, or misspelt in an experiment."""
    known = {*known_settings(), "project"}
    names = [name for name in config if name not in known]
    return names + [f"{group}.{name}" for group in CLOSED for name in config[group] if f"{group}.{name}" not in known]


def _augmentation_problems(augmentation: Mapping[str, Any]) -> list[str]:
    extra = ", ".join(key for key in augmentation if key != "transforms")
    advice = "for mixup and CutMix choose mixing=mixup, cutmix or both"
    return [f"augmentation has {extra}; its only key is transforms: {advice}"] if extra else []


def _value_problems(config: Mapping[str, Any]) -> list[str]:
    problems = []
    for meaning, (fits, names) in VALUES.items():
        for name in names.split():
            group, _, key = name.rpartition(".")
            section = config.get(group, {}) if group else config
            if key in section and not fits(section[key]):  # a resumed run can lack newer settings
                problems.append(f"{name} is {section[key]!r}; it must be {meaning}")
    return problems


def _scheduler_problems(where: str, scheduler: Mapping[str, Any]) -> list[str]:
    target, problems = scheduler["_target_"], list[str]()
    if not target.startswith("foldwise."):
        return problems  # its arguments are checked when it is built
    try:
        known = [item.name for item in fields(resolve(target, setting=f"{where}._target_")) if item.init]
    except Refusal as error:
        return [str(error)]
    for name, value in scheduler.items():
        if name not in ("_target_", *known):
            problems.append(unknown_setting(f"{where}.{name}", [f"{where}.{other}" for other in known]))
        elif name != "_target_" and not is_number(value):
            problems.append(f"{where}.{name} is {value!r}; it must be a number")
    return problems


def _phase_problems(phases: Mapping[str, Any]) -> list[str]:
    try:
        built = build_phases(phases)
    except Refusal as error:
        return [str(error)]
    own = [(f"phases.{phase.name}.scheduler", phase.scheduler) for phase in built if phase.scheduler is not None]
    return [problem for where, scheduler in own for problem in _scheduler_problems(where, scheduler)]


def _relabel_problems(config: Mapping[str, Any]) -> list[str]:
    """What phases that label rows by the model in training cannot be combined with."""
    phases = {name: phase for name, phase in config["phases"].items() if isinstance(phase, Mapping) and phase["epochs"]}
    first = next((name for name, phase in phases.items() if phase.get("relabel")), None)
    if first is None:
        return []
    where, data, task, problems = f"phases.{first}.relabel", config["data"], find_task(config["task"]), []
    if task.kind != "rows" or not task.probabilities:
        problems.append(f"{where} is for soft targets of whole images, and the task is {task.name}: set it to null")
    if config.get("outputs"):
        problems.append(f"{where} labels one output, and outputs has {', '.join(config['outputs'])}: set outputs={{}}")
    if data.get("pseudo"):
        problems.append(f"{where} and data.pseudo exclude each other: set one of them to null")
    if data["test_table"] is None or not (is_sample(data) or Path(data["test_table"]).is_file()):
        table = data["test_table"] or "null"
        problems.append(f"{where} labels the images of data.test_table, which is {table}: name their table there")
    if next(iter(phases)) == first and not config["init"]:
        problems.append(f"{where} would label by an untrained network: put a phase before it, or set init")
    return problems


def _ema_problems(config: Mapping[str, Any]) -> list[str]:
    """Snapshots and restarts keep the raw weights, which validation does not score when there is an EMA."""
    if not config["ema"]:
        return []
    kept = [f"phases.{name}.snapshot" for name, phase in config["phases"].items() if phase.get("snapshot")]
    kept += [f"phases.{name}.start=best" for name, phase in config["phases"].items() if phase.get("start") == "best"]
    kept += ["top_k"] if config["top_k"] else []
    return [f"ema and {name} exclude each other: set ema=null, or choose phases without snapshots" for name in kept[:1]]


def _initial_problems(config: Mapping[str, Any]) -> list[str]:
    init = config["init"]
    if init is None:
        return []
    if not isinstance(init, str) or not (Path(init) / "identity.json").is_file():
        return [f"init is {init!r}, which is not a run: name a folder in runs/ that train.py made"]
    return ["init and model.weights exclude each other: set one of them to null"] if config["model"]["weights"] else []


def _feature_problems(config: Mapping[str, Any]) -> list[str]:
    """Settings that need images, when features are read in their place."""
    if not config["data"].get("features"):
        return []
    needed = [] if find_task(config["task"]).kind == "rows" else [f"task={config['task']}"]
    needed += ["augmentation"] if config["augmentation"]["transforms"] else []
    for name, phase in config["phases"].items():
        needed += [f"phases.{name}.augmentation"] if (phase.get("augmentation") or {}).get("transforms") else []
        needed += [f"phases.{name}.image_size"] if phase.get("image_size") else []
    advice = "choose augmentation=none phases=single; views of training are --views of tools/features.py"
    return [f"data.features are read in place of images, which {', '.join(needed)} needs: {advice}"] if needed else []


def _file_problems(data: Mapping[str, Any], weights: str | None) -> list[str]:
    problems = []
    for key, exists, kind in (("root", Path.is_dir, "folder"), ("table", Path.is_file, "file")):
        if not is_sample(data) and not exists(Path(data[key])):
            problems.append(
                f"data.{key} is {data[key]}, and there is no such {kind}: put the data there, or correct data.{key}"
            )
    if weights is not None and not Path(weights).is_file():
        problems.append(f"there is no weight file {weights}: correct model.weights or set it to null")
    return problems

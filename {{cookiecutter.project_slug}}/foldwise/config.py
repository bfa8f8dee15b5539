"""Configurations: composes them with Hydra, resolves them, reads and writes the one in a run."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml

from foldwise.errors import Refusal
from foldwise.files import write_text
from foldwise.settings import (
    OWNER,
    find_choice,
    known_settings,
    list_choices,
    list_groups,
    read_yaml,
    unknown_choice,
    unknown_setting,
)
from foldwise.shell import command, override

if TYPE_CHECKING:
    from omegaconf import DictConfig

# Schedulers and callbacks that use the validation of the scored fold, by class name.
FOLLOWERS = ("Plateau", "EarlyStopping")


def register_resolvers() -> None:
    """Register `${image_hw:...}`, which turns an image size into [height, width]; call before resolving."""
    from omegaconf import OmegaConf

    from foldwise.data.images import image_hw

    OmegaConf.register_new_resolver("image_hw", lambda size: list(image_hw(size)), replace=True)


def compose_config(overrides: Sequence[str]) -> "DictConfig":
    """Compose the configuration of `train.py` with overrides; raise a Refusal if they do not compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from omegaconf import flag_override
    from omegaconf.errors import OmegaConfBaseException

    if not (OWNER / "train.yaml").is_file():
        raise Refusal(f"there is no {OWNER}/train.yaml: start the command in the repository's root, where configs/ is")
    register_resolvers()
    with initialize_config_dir(str(OWNER), version_base=None):
        try:
            config = compose("train", list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            raise Refusal(_explain(error)) from error
    HydraConfig.instance().set_config(config)  # `${hydra:...}` refers to the last composed configuration
    with flag_override(config, ["struct", "readonly"], False):
        del config["hydra"]
        if "experiment_name" in config:
            config.experiment_name = config.experiment_name
        select_task(config)
    return config


def select_task(config: "DictConfig") -> None:
    """Set `task` to the entry of `foldwise.tasks` that `data.masks` selects; also what `${task}` refers to."""
    from foldwise.tasks import task_of_masks

    config.task = task_of_masks(config.task, config.data.get("masks", "exclusive"))


def check_overrides(arguments: Sequence[str]) -> None:
    """Refuse overrides that do not compose before Hydra does, whose errors name no alternatives.

    Command lines with flags are left to Hydra.
    """
    if not any(argument.startswith("-") for argument in arguments):
        compose_config(arguments)


def _explain(error: Exception) -> str:
    """Reword Hydra's error."""
    from hydra.errors import MissingConfigException, OverrideParseException

    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        name, equals, value = str(error.override).partition("=")
        advice = command(override(name, value)) if equals else "key=value"
        if value.startswith(("[", "{")):
            advice = f"key=value, with brackets that close; or as a text {advice}"
        return f"{error.override!r} is not an override: write {advice}"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, choice = error.missing_cfg_file.partition("/")
        return unknown_choice(group, choice)
    if unknown := re.match(r"Could not override '([^']+)'", text):
        if unknown[1] in known_settings():  # a mapping without the keys of the value
            return f"{unknown[1]} has no such keys: write +{unknown[1]}=... to add them"
        return unknown_setting(unknown[1])
    if existing := re.match(r"Could not append to config. An item is already at '([^']+)'", text):
        return f"the setting {existing[1]!r} already exists: leave out the +"
    return text


def resolve_config(config: "DictConfig") -> dict[str, Any]:
    """Resolve a composed configuration to plain values.

    Phases get their epochs, and names such as `augmentation: flip` are replaced by the contents of the file. In a phase
    with an `image_size`, `${data.image_size}` in the augmentation means that size.
    """
    from omegaconf import OmegaConf

    select_task(config)
    newer = {"init": None, "preflight": "new"}  # an older configs/train.yaml lacks them
    plain = newer | cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))
    raw = cast(dict[str, Any], OmegaConf.to_container(config))
    data, phases = plain["data"], {name: phase for name, phase in plain["phases"].items() if isinstance(phase, dict)}
    named = [(phase, group) for phase in phases for group in ("augmentation", "mixing", "scheduler")]
    named = [(phase, group) for phase, group in named if isinstance(phases[phase].get(group), str)]
    problems = [
        f"phases.{phase}: {unknown_choice(group, phases[phase][group])}"
        for phase, group in named
        if phases[phase][group] not in list_choices(group)
    ]
    if problems:
        raise Refusal("\n".join(problems))
    for phase, group in named:
        raw["phases"][phase][group] = phases[phase][group] = read_yaml(find_choice(group, phases[phase][group]))
    plain["outputs"] = {name: _output(name, entry, data) for name, entry in (plain.get("outputs") or {}).items()}
    keys = ["logits", *(entry["key"] or name for name, entry in plain["outputs"].items())]
    if len(set(keys)) < len(keys):
        raise Refusal(f"outputs use the keys {', '.join(keys)}: each output needs a different key")
    plain["phases"] |= _with_epochs(plain["epochs"], phases)
    for name in phases:
        phase = plain["phases"][name]
        if phase.get("augmentation") is not None or phase.get("image_size") is not None:
            size = phase.get("image_size") or data["image_size"]
            augmentation = raw["phases"][name].get("augmentation") or raw["augmentation"]
            own = plain | {"data": data | {"image_size": size}, "augmentation": augmentation}
            phase["augmentation"] = OmegaConf.to_container(OmegaConf.create(own).augmentation, resolve=True)
    return plain


OUTPUT: dict[str, Any] = {  # settings of an output besides task and target, with their defaults
    "key": None, "classes": None, "metric": None, "loss": None, "weight": 1.0, "keep": True, "at": None,
}  # fmt: skip


def _output(name: str, entry: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    """Check and complete the entry of an output; names of a metric and a loss are replaced by their files' content."""
    from omegaconf import OmegaConf

    from foldwise.tasks import find_task

    required = {"task", "target"}
    if not isinstance(entry, Mapping) or not required <= entry.keys() <= required | OUTPUT.keys():
        raise Refusal(f"outputs.{name} is {entry!r}; it has task and target, and may have {', '.join(OUTPUT)}")
    if not name.isidentifier() or name in ("loss", "logits"):
        raise Refusal(f"outputs.{name}: a name is made of letters, digits and underscores, and is not loss or logits")
    filled = OUTPUT | dict(entry)
    problems = []
    if isinstance(filled["weight"], bool) or not isinstance(filled["weight"], int | float) or filled["weight"] < 0:
        problems.append(f"outputs.{name}.weight is {filled['weight']!r}; it must be a number of 0 or more")
    if not isinstance(filled["keep"], bool):
        problems.append(f"outputs.{name}.keep is {filled['keep']!r}; it must be true or false")
    if filled["key"] and filled["at"]:
        problems.append(f"outputs.{name} has key, an output of your own network, and at, the place of a built-in head")
    if filled["key"] and not filled["keep"] and filled["loss"] is None:
        problems.append(f"outputs.{name} has keep=false and no loss: give it one, or leave the output out")
    task = find_task(entry["task"])
    if task.kind == "vectors":
        problems.append(f"outputs.{name}.task is {task.name}, which can only be the main task: task={task.name}")
    if task.kind == "boxes":
        problems.append(f"outputs.{name}.task is {task.name}: detectors are trained elsewhere, leave the output out")
    if problems:
        raise Refusal("\n".join(problems))
    filled["metric"] = filled["metric"] or task.metric
    if filled["loss"] is None and not filled["key"]:  # a built-in head has the loss of its task
        chosen = read_yaml(find_choice("task", task.name))["defaults"]
        filled["loss"] = next(default["/loss"] for default in chosen if "/loss" in default)
    for group in ("metric", "loss"):
        if isinstance(filled[group], str):
            if filled[group] not in list_choices(group):
                raise Refusal(f"outputs.{name}: {unknown_choice(group, filled[group])}")
            filled[group] = read_yaml(find_choice(group, filled[group]))
    context = {"data": data, "task": task.name, "output": filled}
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(context), resolve=True))["output"]


def _with_epochs(epochs: Any, phases: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Replace the shares of phases by numbers of epochs."""
    from foldwise.schedule.phases import share_epochs

    old = [name for name, phase in phases.items() if "epochs" in phase]
    lines = [f"phases.{name}.epochs: set epochs= for the whole run, and phases.{name}.share" for name in old]
    if lines:
        raise Refusal("\n".join(lines))
    if type(epochs) is not int:
        raise Refusal(f"epochs is {epochs!r}; it must be a whole number from 1")
    given = share_epochs(epochs, {name: phase.pop("share", None) for name, phase in phases.items()})
    return {name: {"epochs": given[name]} | phase for name, phase in phases.items()}


# Settings that older runs lack, with the value that they had in effect.
ADDED: dict[str, Any] = {
    "ema": None, "init": None, "lr_batch_size": None, "outputs": {}, "preflight": "new", "top_k": 0,
}  # fmt: skip


def read_config(run: Path) -> dict[str, Any]:
    """Read the configuration of a run as plain values; raise a Refusal if the folder is not a run."""
    path = run / "config.yaml"
    if not path.is_file():
        raise Refusal(f"{run} is not a run: it has no config.yaml; runs are the folders that train.py makes in runs/")
    config = read_yaml(path)
    if not config:
        raise Refusal(f"{path} is empty: copy the whole folder again")
    config |= {name: value for name, value in ADDED.items() if name not in config}
    config["outputs"] = {name: OUTPUT | entry for name, entry in config["outputs"].items()}
    return config


def experiment_text(header: str, starts: Sequence[str], settings: Mapping[str, Any]) -> str:
    """An experiment file: comments, the experiments that it starts from, and settings by name as on a command line."""
    groups = {name: value for name, value in settings.items() if name in list_groups() and isinstance(value, str)}
    content: dict[str, Any] = {"defaults": [*starts, *({f"override /{name}": value} for name, value in groups.items())]}
    content["defaults"] += ["_self_"] if starts else []
    for name, value in settings.items():
        if name not in groups:
            *parents, last = name.split(".")
            place = content
            for key in parents:
                place = place.setdefault(key, {})
            place[last] = value
    return f"# @package _global_\n{header}" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def write_config(run: Path, config: dict[str, Any]) -> None:
    write_text(run / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def followers(config: Mapping[str, Any]) -> list[str]:
    """The settings that make training depend on the labels of the scored fold."""
    found = [f"top_k={config['top_k']}"] if config["top_k"] > 0 else []
    running = [(name, phase) for name, phase in config["phases"].items() if phase["epochs"] > 0]
    found += [f"phases.{name}.start=best" for name, phase in running if phase.get("start") == "best"]
    parts = [("scheduler", config["scheduler"])]
    parts += [(f"phases.{name}.scheduler", phase["scheduler"]) for name, phase in running if phase.get("scheduler")]
    parts += [(f"callbacks.{name}", callback) for name, callback in config["callbacks"].items()]
    return found + [name for name, part in parts if re.split("[.:]", part["_target_"])[-1] in FOLLOWERS]

"""Configurations: composing them by Hydra outside of train.py, the one that a run keeps, and what it implies."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from competition.files import write_text

CONFIGS = Path(__file__).parent.parent / "configs"
# What follows a fold's own validation, by the last part of its `_target_`.
FOLLOWERS = ("Plateau", "EarlyStopping")
# The tasks of what is not for every task: networks by `model.library`, losses by the last part of their `_target_`.
TASKS_OF = {
    "smp": ("segmentation",),
    "timm": ("multiclass", "multilabel"),
    "BinaryCrossEntropy": ("multilabel",),
    "CrossEntropy": ("multiclass", "segmentation"),
    "Dice": ("segmentation",),
    "Lovasz": ("segmentation",),
}
USUAL_METRIC = {"multiclass": "accuracy", "multilabel": "f_beta", "segmentation": "mean_iou"}


def register_resolvers() -> None:
    """Make `${image_hw:${data.image_size}}` mean [height, width]; call it before a configuration is resolved."""
    from omegaconf import OmegaConf

    from competition.data.images import image_hw

    OmegaConf.register_new_resolver("image_hw", lambda size: list(image_hw(size)), replace=True)


def compose_config(overrides: Sequence[str], name: str = "train") -> Any:
    """The configuration that `train.py` would have with these overrides.

    Raises:
        ValueError: a choice or key that does not exist.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    register_resolvers()
    with initialize_config_dir(str(CONFIGS.resolve()), version_base=None):
        try:
            return compose(name, list(overrides))
        except (HydraException, OmegaConfBaseException) as error:
            raise ValueError(str(error)) from error


def read_config(run: Path) -> dict[str, Any]:
    """The configuration of a run, as plain values.

    Raises:
        ValueError: the folder is not a run.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise ValueError(
            f"{run} is not a run: it has no config.yaml; runs are the folders that train.py makes in runs/"
        )
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def write_config(run: Path, config: dict[str, Any]) -> None:
    """Keep the configuration of a run."""
    write_text(run / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def check_task(config: Mapping[str, Any]) -> None:
    """Refuse a network or a loss of another task. It needs no data, whose errors would hide this one.

    Raises:
        ValueError: every part that does not fit, and what to add.
    """
    task, model, loss = config["task"], config["model"], config["loss"]
    parts = [("model", model["name"], model["library"])]
    for part in [loss, *(term["loss"] for term in loss.get("terms", []))]:
        name = part["_target_"].rpartition(".")[2]
        parts.append(("loss", name, name))
    problems = []
    for group, name, kind in dict.fromkeys(parts):
        tasks = TASKS_OF.get(kind, (task,))
        if task not in tasks:
            what = "predicts masks" if kind == "smp" else f"is for {' and '.join(tasks)}"
            problems.append(
                f"{group} {name} {what} and the task is {task}: "
                f"add task={tasks[0]} metric={USUAL_METRIC[tasks[0]]}, or choose another {group}"
            )
    if problems:
        raise ValueError("\n".join(problems))


def followers(config: Mapping[str, Any]) -> list[str]:
    """The settings by which a fold's training follows the labels that it is scored on."""
    found = [f"top_k={config['top_k']}"] if config.get("top_k", 0) > 0 else []  # older runs have no such choice
    found += [
        f"phases.{name}.start=best"
        for name, phase in config["phases"].items()
        if phase.get("start") == "best" and phase["epochs"] > 0
    ]
    parts = [("scheduler", config["scheduler"])]
    parts += [(f"callbacks.{name}", callback) for name, callback in config["callbacks"].items()]
    return found + [name for name, part in parts if part["_target_"].rpartition(".")[2] in FOLLOWERS]

"""Every choice of every group composes, and each takes part in a training of one step.

The choices are found, not listed: a file that is added is tested from then on.
"""

import re
import sys
from pathlib import Path

import pandas as pd
import pytest
import yaml
from omegaconf import open_dict
from tiny import tiny_config, train_folds, write_data

from foldwise.checks import task_problems
from foldwise.config import compose_config, resolve_config
from foldwise.settings import find_choice, first_comment, list_choices, list_groups

CHOICES = {group: list(list_choices(group)) for group in list_groups()}
ALL = [(group, choice) for group, choices in CHOICES.items() for choice in choices]

# Groups whose choices fit some tasks only; every other choice is tried with all tasks.
TASKS = {
    "arcface": ["retrieval"],
    "retrieval": ["retrieval"],
    "bce": ["multilabel", "segmentation_overlapping"],
    "brier": ["multilabel", "segmentation_overlapping"],
    "bce_dice": ["segmentation_overlapping"],
    "mse": ["regression"],
    "mae": ["regression"],
    "huber": ["regression"],
    "ordinal": ["multiclass"],
    "focal": ["multiclass", "multilabel", "segmentation", "segmentation_overlapping"],
    "cross_entropy": ["multiclass", "segmentation"],
    "dice": ["segmentation", "segmentation_overlapping"],
    "lovasz": ["segmentation"],
    "ce_dice": ["segmentation"],
    "segmentation_binary": ["segmentation"],
    "segmentation_large": ["segmentation"],
    "segmentation_multiclass": ["segmentation"],
    "segmentation_overlapping": ["segmentation"],
    "regression": ["regression"],
    "grades": ["multiclass"],
    "baseline": ["multiclass", "multilabel", "regression", "segmentation"],
    "probe": [],  # needs features: test_features trains it
    "amazon": ["multilabel"],  # all of that folder
    "primatrix": [],  # needs features: tests/test_primatrix.py of the template
}


def content(group: str, choice: str) -> dict:
    return yaml.safe_load(find_choice(group, choice).read_text()) or {}


def fits(group: str, choice: str, task: str) -> bool:
    """Whether a choice is one for the task."""
    if group == "model":
        return (content(group, choice)["library"] == "smp") == task.startswith("segmentation")
    if group == "phases":  # those that train on pseudo labels need a table of them: see test_pseudo.py
        return all(phase.get("rows", "real") == "real" for phase in content(group, choice).values())
    if group == "tta" and content(group, choice).get("frames"):
        return False  # for items of several pictures: test_units
    if group == "tta":
        return not task.startswith("segmentation") or not content(group, choice).get("draws")
    if (choice, task) == ("quadratic_kappa", "regression"):
        return False  # needs grades: test_number_rules
    if group == "metric":
        from foldwise.predictions import metrics

        return task in getattr(metrics, content(group, choice)["_target_"].rpartition(".")[2]).tasks()
    return task in TASKS.get(choice.partition("/")[0], [task]) if group in ("loss", "experiment") else True


@pytest.mark.parametrize(("group", "choice"), ALL)
def test_every_file_begins_with_a_line_that_says_what_it_is(group: str, choice: str):
    """A whole sentence, short enough for a line of `train.py --help`."""
    lines = [line for line in find_choice(group, choice).read_text().splitlines() if "@package" not in line]
    assert lines[0] == f"# {first_comment(find_choice(group, choice))}"
    assert 10 < len(lines[0]) < 110 and lines[0].endswith((".", "?"))


@pytest.mark.parametrize("experiment", CHOICES["experiment"])
def test_every_experiment_says_command_cost_and_score(experiment: str):
    head = "".join(line for line in find_choice("experiment", experiment).open() if line.startswith("#"))
    assert re.search(rf"#   .*python (train|tools/features)\.py experiment={experiment}\b", head)
    assert re.search(r"Cost: \S", head) and re.search(r"Expect: \S", head)


def test_no_choice_hides_a_package_in_its_code():
    """Configs name only what this repository and its declared packages have."""
    from hydra.utils import get_object

    def targets(value):
        if isinstance(value, dict):
            yield from ([value["_target_"]] if "_target_" in value else [])
            value = list(value.values())
        if isinstance(value, list):
            for inner in value:
                yield from targets(inner)

    for group, choice in ALL:
        for target in targets(content(group, choice)):
            assert get_object(target), f"{group}/{choice}"
    for name in [name for name in sys.modules if name.partition(".")[0] == "solution"]:
        del sys.modules[name]  # a training refuses what is imported from there


# One training of a step uses the first choice of every group, the next one the second, and so on, so that every
# choice is used with one of the tasks that it is for, and every loss with each, in as few trainings as can be.
VARIED = ["augmentation", "logger", "loss", "metric", "model", "optimizer", "phases", "scheduler", "tta"]
FLAGS = [
    ["trainer=auto", "trainer.precision=bf16-mixed"],
    ["trainer=debug"],
    ["trainer.gradient_clip_val=1.0", "trainer.accumulate_grad_batches=2", "ema=0.9"],
    ["data.sampling=balanced", "mixing.mixup=0.4", "mixing.cutmix=1.0"],
    ["trainer.deterministic=true"],
]
VARIED_TASKS = ["multiclass", "multilabel", "regression", "segmentation", "segmentation_overlapping"]
UNVARIED = [pair for pair in ALL if pair[0] not in VARIED]
UNBALANCED = [flags for flags in FLAGS if "data.sampling=balanced" not in flags]


def test_an_older_train_yaml_is_completed():
    older = compose_config(["data=sample"])
    with open_dict(older):
        del older["init"], older["preflight"]
    assert resolve_config(older) == resolve_config(compose_config(["data=sample"]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=segmentation_multiclass"], "loss Dice is for segmentation, segmentation_overlapping and "
         "segmentation_soft and the task is multiclass: choose loss=cross_entropy or loss=focal or loss=ordinal, "
         "or add task=segmentation metric=mean_iou"),
        (["task=segmentation", "loss=bce"], "loss BinaryCrossEntropy is for multilabel, segmentation_overlapping and "
         "segmentation_soft and the task is segmentation: "
         "choose loss=ce_dice or loss=cross_entropy or loss=dice or loss=focal or loss=lovasz$"),
        (["task=multilabel", "loss=lovasz"], "loss Lovasz is for segmentation and the task is multilabel"),
        (["task=segmentation", "data.masks=overlapping", "loss=lovasz"],
         "loss Lovasz is for segmentation and the task is segmentation_overlapping: choose loss=bce or "),
    ],
)  # fmt: skip
def test_parts_of_another_task_are_refused_without_data(overrides: list[str], message: str):
    task = [] if overrides[0].startswith("task=") else ["task=multiclass"]
    config = compose_config([*task, *overrides])
    assert re.match(message, "\n".join(task_problems(config.task, config.loss)))


@pytest.mark.parametrize("task", VARIED_TASKS)
def test_every_loss_is_for_the_tasks_that_its_file_says(task: str):
    for choice in CHOICES["loss"]:
        problems = task_problems(task, content("loss", choice))
        assert not problems if fits("loss", choice, task) else f"and the task is {task}: choose loss=" in problems[0]


@pytest.mark.parametrize(("group", "choice"), UNVARIED)
def test_every_other_choice_composes(group: str, choice: str):
    config = compose_config([f"{group}={choice}"])
    assert config.seed == 42
    assert config.experiment_name == (choice if group == "experiment" else None)


# The networks as they are configured are built and run in test_networks.py; here small ones of their kind stand in.
STAND_INS = {"convnext": "test_convnext", "tf_efficientnet": "test_efficientnet", "vit": "test_vit"}
SMALL_DECODERS = {
    "Unet": ["++model.options.decoder_channels=[8,8,8,8,8]"],
    "FPN": ["++model.options.decoder_pyramid_channels=32", "++model.options.decoder_segmentation_channels=32"],
    "DeepLabV3Plus": ["++model.options.decoder_channels=16"],
}


def small_network(overrides: list[str]) -> list[str]:
    """Overrides that make the chosen model small."""
    model = content("model", next(value for value in overrides if value.startswith("model=")).removeprefix("model="))
    if "test_" in model.get("encoder", model["name"]):
        return []
    if model["library"] == "smp":
        return ["model.encoder=tu-test_resnet", *SMALL_DECODERS[model["name"]]]
    name = next((small for kind, small in STAND_INS.items() if model["name"].startswith(kind)), "test_resnet")
    return [f"model.name={name}"]


def mixtures() -> list[tuple[str, list[str]]]:
    rows: list[tuple[str, list[str]]] = []
    used: set[str] = set()
    for task in VARIED_TASKS:
        fitting = {group: [f"{group}={name}" for name in CHOICES[group] if fits(group, name, task)] for group in VARIED}
        new = {group: [name for name in names if name not in used] for group, names in fitting.items()}
        new["loss"] = fitting["loss"]
        flags = UNBALANCED if task.startswith(("regression", "segmentation")) else FLAGS
        columns = [new[group] or names for group, names in fitting.items()]
        for index in range(max(map(len, new.values()))):
            rows.append((task, [column[index % len(column)] for column in columns] + flags[index % len(flags)]))
        used.update(name for names in fitting.values() for name in names)
    return rows


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """A data set of 12 pictures: the tests that use it ask whether something works, not how well."""
    root = write_data(tmp_path_factory.mktemp("few"), rows=12)
    table = pd.read_csv(root / "train.csv")
    table = table.assign(background=["plain", "stripes"] * 6, x0=0, y0=0, x1=20, y1=30)
    table.to_csv(root / "train.csv", index=False)
    return root


@pytest.mark.parametrize(
    ("task", "overrides"),
    mixtures(),
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_every_choice_trains_a_step(task: str, overrides: list[str], few: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_SILENT", "true")
    phases = content("phases", dict(value.split("=", 1) for value in overrides)["phases"])
    task, _, masks = task.partition("_")
    ordered = {"metric=quadratic_kappa", "loss=ordinal"} & {*overrides}  # words need their order
    graded = ["data.classes=[blue,green,red]"] if ordered else []
    binary = [name for name in overrides if name.startswith("metric=") and "positive" in content(*name.split("="))]
    config = tiny_config(
        few,
        task,
        *overrides,
        *graded,
        *(["metric.positive=red"] if binary else []),
        *(["tta=none"] if "model=vit" in overrides else []),  # its input size is fixed, and some choices have scales
        *([f"data.masks={masks}"] if masks else []),
        *small_network(overrides),
        "model.pretrained=false",
        "fold=0",
        f"epochs={len(phases)}",
        "batch_size=4",
        "trainer.limit_train_batches=2",
    )
    assert [phase["epochs"] for phase in config["phases"].values()] == [1] * len(phases)
    run = train_folds(config, tmp_path)
    assert (run / "fold0" / "metrics.json").exists()


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=[pytest.mark.slow] if "/" in name else []) for name in CHOICES["experiment"]],
)
def test_every_experiment_trains_a_step(experiment: str, few: Path, tmp_path: Path):
    for task in TASKS.get(experiment.partition("/")[0], ["multiclass"]):
        config = tiny_config(
            few,
            task,
            f"experiment={experiment}",
            *(["data.classes=[blue,green,red]"] if experiment == "grades" else []),  # in their order
            "model.pretrained=false",
            "logger=none",
            "epochs=4",  # enough for each phase to have one
            "batch_size=4",
            "trainer.limit_train_batches=1",
        )
        name = config["model"]["name"]
        small = name if config["model"]["library"] != "timm" else "test_vit" if "vit" in name else "test_resnet"
        config |= {"model": config["model"] | {"name": small}, "fold": 0 if config["fold"] == "all" else config["fold"]}
        config["phases"] = {name: phase | {"epochs": 1} for name, phase in config["phases"].items()}
        run = train_folds(config, tmp_path / task)
        assert list(run.glob("*/metrics.json"))


@pytest.mark.parametrize(
    "flag",
    ["channels_last", "gradient_checkpointing", pytest.param("compile", marks=pytest.mark.slow)],
)
def test_model_flags_train_a_step(flag: str, few: Path, tmp_path: Path):
    config = tiny_config(few, "multiclass", f"model.{flag}=true", "fold=0", "epochs=1", "trainer.limit_train_batches=1")
    run = train_folds(config, tmp_path)
    assert (run / "fold0" / "model" / "model.safetensors").exists()

"""plan.py: rules by the facts, a forecast by the steps, and a file that train.py composes to what was measured."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import yaml
from safetensors.torch import save_file
from tiny import ROOT, prepare_tiny, tiny_config

from foldwise.code.runs import working_code
from foldwise.config import compose_config, resolve_config
from foldwise.data.holdout import Holdout
from foldwise.errors import Refusal
from foldwise.planning import budget
from foldwise.planning.budget import Bench, Measured
from foldwise.planning.facts import Facts, Network, find_networks, look
from foldwise.planning.rules import MULTIPLE, RULES, Choice, Draft, image_sides, length_of, settings_of, sizes_of
from foldwise.preflight.forecast import Costs, forecast, in_words
from foldwise.tasks import TASKS
from foldwise.training.plan import choose_parts

FACTS = Facts(
    task=TASKS["multiclass"],
    metric="Accuracy",
    rows=3_000,
    held=750,
    models=5,
    columns=4,
    rarest=0.2,
    height=300,
    width=400,
    square=False,
    alike=True,
    object_px=None,
    groups=0,
    rgb8=True,
    networks=(Network("resnet18", "weights/resnet18.safetensors"),),
    missing="",
    gpus=0,
    cpus=4,
    memory=8.0,
)


def choose(facts: Facts, draft: Draft) -> dict[str, Choice]:
    return {name: rule(facts, draft) for name, rule in RULES.items()}


def settings(facts: Facts = FACTS, epochs: int = 13, size: int = 224, **changes: Any) -> dict[str, Any]:
    facts = dataclasses.replace(facts, **changes)
    draft = Draft(facts.networks[0] if facts.networks else None, size, epochs)
    choices = choose(facts, draft)
    assert all(choice.reason and not choice.reason.endswith(".") for choice in choices.values())
    return settings_of(choices)


def test_short_trainings_get_frozen_statistics_and_long_ones_more_augmentation():
    few, many = settings(rows=300), settings()
    assert few["phases.train.freeze_bn"] and few["augmentation"] == "flip" and few["ema"] is None
    assert many["phases.train.freeze_bn"] and many["augmentation"] == "photo"
    assert not settings(rows=60_000)["phases.train.freeze_bn"]
    assert few["phases.head.share"] + few["phases.train.share"] == few["epochs"] == 13
    assert settings(epochs=4)["phases.head.share"] == 1
    assert settings(rows=60_000, epochs=20)["ema"] == 0.998


def test_sizes_keep_proportions_in_multiples_of_the_stride():
    assert sizes_of(FACTS) == [224, 192, 160, 128, 96]
    assert image_sides(FACTS, 96) == (96, 128)
    assert settings()["data.fit"] == "stretch"
    cut = settings(alike=False)
    assert cut["data.fit"] == "crop" and cut["data.image_size"] == [224, 224]
    masks = dataclasses.replace(FACTS, task=TASKS["segmentation"], alike=False, height=720, width=960)
    assert settings(masks, size=96)["data.fit"] == "stretch" and settings(masks, size=96)["data.image_size"] == [
        96,
        128,
    ]
    assert all(
        size % MULTIPLE == 0
        for height in (20, 28, 120, 500)
        for size in sizes_of(dataclasses.replace(FACTS, height=height))
    )
    assert sizes_of(dataclasses.replace(FACTS, height=28, width=28)) == [64]


def test_losses_follow_task_and_metric():
    assert settings()["loss.label_smoothing"] == 0.1
    assert "loss.label_smoothing" not in settings(metric="LogLoss")
    assert settings(metric="MacroF1", rarest=0.01)["loss.class_weights"] == "sqrt_balanced"
    assert settings(metric="QuadraticKappa")["loss"] == "ordinal"
    assert settings(task=TASKS["regression"], metric="Rmsle")["data.transform"] == "log1p"
    assert settings(task=TASKS["segmentation"])["loss"] == "ce_dice"
    binary = settings(task=TASKS["segmentation"], columns=2)["loss.terms"]
    assert [term["loss"]["_target_"].rpartition(".")[2] for term in binary] == ["CrossEntropy", "Dice"]


def test_without_pretrained_weights_a_network_is_trained_from_scratch():
    chosen = settings(networks=(), missing="no network")
    assert chosen["model"] == "tiny" and chosen["phases"] == "single" and chosen["threads"] == 1
    assert "from scratch" in choose(dataclasses.replace(FACTS, networks=()), Draft(None, 64, 9))["network"].reason
    assert length_of(dataclasses.replace(FACTS, networks=())).most > length_of(FACTS).most


def test_the_forecast_counts_every_step(data):
    config = tiny_config(data, "multiclass", "epochs=3", "batch_size=4")
    prepared = prepare_tiny(config)  # 12 rows a fold: 3 steps an epoch
    costs = Costs(size=2, read=0.5, steps=(2.0,), predict=1.0, memory=1.0, gpu=False)
    parts = [Holdout((0,)), Holdout((1,))]
    # A batch of 4 costs two of 2; 12 held-out rows are six of them, validated in 3 epochs and then predicted.
    once = 3 * 3 * 2 * (2.0 + 0.5) + 6 * 3 * (1.0 + 0.5) + 6 * (1.0 + 0.5)
    assert forecast(config, costs, prepared, parts, 1, 1) == pytest.approx(2 * once)
    assert forecast(config, costs, prepared, parts, 1, 2) == pytest.approx(once)
    views = config | {"tta": config["tta"] | {"views": ["identity", "hflip"]}}
    assert forecast(views, costs, prepared, parts[:1], 1, 1) == pytest.approx(once + 6 * 1.0)
    gpu, reading = costs._replace(gpu=True), config | {"data": config["data"] | {"workers": 1}}
    assert forecast(reading, gpu, prepared, parts[:1], 1, 1) == pytest.approx(3 * 3 * 2 * 2.0 + 6 * 4 * 1.0)
    assert [in_words(seconds) for seconds in (130, 400, 7500)] == ["130 s", "7 min", "2 h 5 min"]


@pytest.fixture
def repository(tmp_path, monkeypatch, data):
    """Words of a plan for the tiny data, in a copy of configs/."""
    from foldwise import config
    from foldwise.planning import plan
    from foldwise.preflight import forecast as costs

    monkeypatch.setattr(costs, "ENOUGH", 0.0)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    (tmp_path / "solution").symlink_to(ROOT / "solution")
    monkeypatch.chdir(tmp_path)
    for module in (config, plan):
        monkeypatch.setattr(module, "OWNER", tmp_path / "configs")
    weights = tmp_path / "test_resnet.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), weights)
    paths = [f"data.root={data}", f"data.table={data}/train.csv", f"data.prepared={tmp_path}/prepared"]
    return [*paths, "data.test_table=null", "data.folds=2", "data.workers=0", "logger=none", f"model.weights={weights}"]


@pytest.mark.parametrize("kind", ["multiclass", "multilabel", "regression", "segmentation", "retrieval"])
def test_a_plan_is_an_experiment_of_what_was_measured(kind, repository, command, data):
    words = [*repository, f"task={kind}", f"metric={TASKS[kind].metric}"]
    words += ["data.classes=[background,blue,green,red]"] if kind == "segmentation" else []
    words += ["data.columns.target=label"] if kind == "retrieval" else []
    prepare_tiny(resolve_config(compose_config(["data=competition", *words])))
    code, said, errors = command("plan.py", "--budget", "60m", *words)
    assert code == 0, errors
    path = Path("configs/experiment/first.yaml")
    text, content = path.read_text(), yaml.safe_load(path.read_text())
    assert "python train.py experiment=first data=competition\n" in text and "# Cost: 2 models in about" in text
    composed = resolve_config(compose_config(["experiment=first", "data=competition"]))
    assert composed["epochs"] == content["epochs"] == sum(phase["epochs"] for phase in composed["phases"].values())
    assert composed["task"] == kind and composed["data"]["workers"] == 0 and composed["data"]["root"] == str(data)
    assert composed["model"]["weights"] == repository[-1].partition("=")[2]
    assert "images a second to train" in said


class Timed(Bench):
    """A machine on which everything takes seconds."""

    def time(self, draft: Draft) -> Measured:
        choices = self.choose(draft)
        costs = Costs(size=4, read=1.0, steps=(5.0, 20.0), predict=2.0, memory=1.0, gpu=False)
        return Measured(draft, choices, self.config(choices), costs)


def test_a_budget_too_short_for_all_images_trains_on_a_part_of_them(repository, monkeypatch):
    given = {"batch_size": 4, "data.image_size": 32}
    base = ["data=competition", *repository, "fold=0", *(f"{name}={value}" for name, value in given.items())]
    config = resolve_config(compose_config(base))
    prepared = prepare_tiny(config)  # 12 rows to train on: 3 steps of 4
    networks, missing = find_networks(config["model"]["weights"], None, gpu=False)
    with working_code(config) as code:
        parts = choose_parts(0, [], prepared)
        facts = look(config, prepared, parts, networks, missing, gpus=0)
        bench = Timed(facts, prepared, parts, code, base, given)
        monkeypatch.setattr(budget, "FEWEST", 1)
        whole, seconds = budget.fit(bench, 1e5)
        least = bench.seconds(whole, 4)
        assert whole.draft.batches is None and seconds == bench.seconds(whole, length_of(facts).most)
        part, seconds = budget.fit(bench, least - 1)
        assert (part.draft.batches, part.draft.epochs) == (2, 4) and seconds < least - 1
        assert part.config["trainer"]["limit_train_batches"] == 2
        assert "the budget is too short for all" in part.choices["learning"].reason
        with pytest.raises(Refusal, match="is too short"):
            budget.fit(bench, bench.seconds(part, 4, 1) - 1)
        masks = dataclasses.replace(facts, task=TASKS["segmentation"], rows=40, height=360, width=480)
        bench = dataclasses.replace(bench, facts=masks, given={})
        tried = [(draft.size, least) for draft, least in budget.candidates(bench)]  # 5 steps an epoch
        assert tried == [(192, 240), (192, 120), (160, 120), (128, 120), (96, 120), (96, 40)]


def test_refusals_say_what_to_do(repository, command):
    prepare_tiny(resolve_config(compose_config(["data=competition", *repository])))
    assert "is too short" in command("plan.py", "--budget", "1s", *repository)[2]
    for word, refused in (("+x=1", "'+x=1' cannot be planned with"), ("epochs=[", "'epochs=[' has no value in YAML")):
        code, _, errors = command("plan.py", "--budget", "1s", word)
        assert code == 2 and refused in errors
    assert not Path("configs/experiment/first.yaml").exists()
    small = "epochs=2", "fold=0", "data.image_size=32", "batch_size=4"
    code, said, _ = command("plan.py", "--budget", "60m", *repository, *small)
    text = Path("configs/experiment/first.yaml").read_text()
    assert code == 0 and "epochs: 2\n" in text and "experiment=first data=competition fold=0" in said
    assert "as given: batch_size=4" in said and "as given: batch_size=4" in text
    code, _, errors = command("plan.py", "--budget", "60m", *repository)
    assert code == 2 and "first.yaml exists" in errors and "--out second" in errors
    assert Path("configs/experiment/first.yaml").read_text() == text

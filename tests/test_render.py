"""Every answer gives a whole repository: nothing unrendered, nothing changed, the answers where they belong."""

import hashlib
import itertools
import json
import re
import time
import tomllib
from pathlib import Path

import pytest
import yaml
from conftest import ROOT, Render

PROMPTS = json.loads((ROOT / "cookiecutter.json").read_text())
CHOICES = {key: value for key, value in PROMPTS.items() if isinstance(value, list) and not key.startswith("_")}
RENDERED = {"README.md", "LICENSE", "pyproject.toml", "configs/project.yaml"}
METRICS = {
    "multiclass": {"accuracy", "log_loss", "macro_f1", "roc_auc", "mean_average_precision", "quadratic_kappa"},
    "multilabel": {"f_beta", "log_loss", "macro_f1", "roc_auc", "mean_average_precision"},
    "regression": {"rmse", "mae", "rmsle", "r2", "mape", "pearson", "spearman", "quadratic_kappa"},
    "segmentation": {"mean_iou", "dice"},
}
USUAL = {"multiclass": "accuracy", "multilabel": "f_beta", "regression": "rmse", "segmentation": "mean_iou"}


def allowed(answers: dict[str, str]) -> bool:
    """Whether the metric, if both are given, is one of the task."""
    metric = answers.get("metric", "auto")
    return metric == "auto" or "task" not in answers or metric in METRICS[answers["task"]]


def pairwise(factors: dict[str, list[str]]) -> list[dict[str, str]]:
    """Rows that hold every allowed pair of values of two factors, found greedily."""
    everything = [dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values())]
    rows = [row for row in everything if allowed(row)]
    pairs = {row_index: set(itertools.combinations(row.items(), 2)) for row_index, row in enumerate(rows)}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(pairs, key=lambda index: len(pairs[index] & missing))
        missing -= pairs.pop(best)
        chosen.append(rows[best])
    return chosen


PAIRS = pairwise({**CHOICES, "image_size": ["224", "64"], "folds": ["5", "2"]})


def files(folder: Path) -> dict[str, bytes]:
    """The content of each file below `folder`, git's own left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and ".git" not in path.relative_to(folder).parts
    }


def test_every_choice_is_in_a_pair() -> None:
    for key, values in CHOICES.items():
        assert {row[key] for row in PAIRS} == set(values)


@pytest.mark.parametrize("answers", PAIRS, ids=lambda answers: "-".join(answers.values()))
def test_pairs_of_answers(answers: dict[str, str], render: Render, template: Path, tmp_path: Path) -> None:
    repository = render(tmp_path, project_name="Leaf Disease: 2nd round", author_name="Zoë O'Neil", **answers)

    expected = files(template / "{{cookiecutter.project_slug}}")
    if answers["license"] == "Proprietary":
        del expected["LICENSE"]
    found = files(repository)
    manifest = json.loads(found.pop("foldwise/manifest.json"))
    assert found.keys() == expected.keys()
    assert manifest == {
        name.removeprefix("foldwise/"): hashlib.sha256(content).hexdigest()
        for name, content in expected.items()
        if name.startswith("foldwise/")
    }
    for name, content in found.items():
        if name in RENDERED:
            assert not re.search(rb"\{\{|\{%|cookiecutter\.", content), f"{name} has something unrendered"
            assert content.endswith(b"\n") and not content.endswith(b"\n\n")
        else:
            assert content == expected[name], f"{name} was changed by rendering"
            assert not re.search(rb"\{\{-? *cookiecutter|\{%", content), f"{name} has Jinja that nothing renders"

    settings = yaml.safe_load(found["configs/project.yaml"])
    metric = USUAL[answers["task"]] if answers["metric"] == "auto" else answers["metric"]
    assert settings == {
        "defaults": [{"task": answers["task"]}, {"metric": metric}, {"logger": answers["logger"]}],
        "project": {
            "name": "Leaf Disease: 2nd round",
            "slug": "leaf-disease-2nd-round",
            "image_size": int(answers["image_size"]),
            "folds": int(answers["folds"]),
        },
    }
    assert tomllib.loads(found["pyproject.toml"].decode())["project"]["name"] == "leaf-disease-2nd-round"
    assert "Leaf Disease: 2nd round" in found["README.md"].decode()
    if "LICENSE" in found:
        assert "Zoë O'Neil" in found["LICENSE"].decode()
        assert {"MIT": "MIT License", "Apache-2.0": "Apache License", "BSD-3-Clause": "BSD 3-Clause License"}[
            answers["license"]
        ] in found["LICENSE"].decode().splitlines()[0]


def test_every_choice_has_its_config() -> None:
    configs = ROOT / "{{cookiecutter.project_slug}}" / "foldwise" / "configs"
    for group in ("task", "metric", "logger"):
        for choice in set(CHOICES[group]) - {"auto"}:
            assert (configs / group / f"{choice}.yaml").is_file()


def test_only_four_files_have_jinja(template: Path) -> None:
    found = files(template / "{{cookiecutter.project_slug}}")
    assert {name for name, content in found.items() if re.search(rb"\{\{-? *cookiecutter|\{%", content)} == RENDERED


def test_rendering_is_fast(render: Render, tmp_path: Path) -> None:
    seconds = []
    for attempt in ("1", "2", "3"):
        start = time.perf_counter()
        render(tmp_path / attempt)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 1

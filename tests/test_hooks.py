"""Hooks: each refusal, nothing left behind, suggestions that are accepted, and no answer that runs as code."""

import ast
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from conftest import ROOT, SOURCE, Render
from cookiecutter.environment import StrictEnvironment
from cookiecutter.exceptions import CookiecutterException
from hypothesis import given
from hypothesis import strategies as st

GOOD = {
    "project_name": "My Competition",
    "project_slug": "my-competition",
    "description": "",
    "author_name": "",
    "task": "multiclass",
    "image_size": "224",
    "folds": "5",
    "metric": "auto",
}


def load_hook() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pre_gen_project", ROOT / "hooks" / "pre_gen_project.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


hook = load_hook()

# answer, a part of the sentence that refuses it, the answer it suggests
REFUSED = [
    ("project_name", "  ", "is empty", "My Competition"),
    ("project_name", "Größe", "outside ASCII", "Gre"),
    ("project_name", "-rf", "starts with a dash", "rf"),
    ("project_name", 'The "Best"', "may not have", "The 'Best'"),
    ("project_name", "a\\b", "may not have", "ab"),
    ("project_name", "$(reboot)", "may not have", "(reboot)"),
    ("project_name", "a/b", "may not have", "ab"),
    ("project_name", "one\ntwo", "line break", "one two"),
    ("project_name", "${oc.env:HOME}", "may not have", "oc.env:HOME"),
    ("project_slug", "übung", "outside ASCII", "bung"),
    ("project_slug", "..up", "is a path", "up"),
    ("project_slug", "-rf", "starts with", "rf"),
    ("project_slug", "2024-plants", "starts with", "plants-2024"),
    ("project_slug", "my competition", "other characters", "my-competition"),
    ("project_slug", "MyCompetition", "other characters", "mycompetition"),
    ("project_slug", "a;reboot", "other characters", "a-reboot"),
    ("project_slug", "$HOME", "other characters", "home"),
    ("project_slug", "plants-", "other characters", "plants"),
    ("project_slug", 'a"b', "other characters", "a-b"),
    ("project_slug", "con", "reserved", "con-solution"),
    ("project_slug", "lpt1", "reserved", "lpt1-solution"),
    ("project_slug", "class", "reserved", "class-solution"),
    ("project_slug", "test", "reserved", "test-solution"),
    ("project_slug", "foldwise", "reserved", "foldwise-solution"),
    ("project_slug", "solution", "reserved", "solution-solution"),
    ("project_slug", "torch", "reserved", "torch-solution"),
    ("project_slug", "pytorch_lightning", "reserved", "pytorch-lightning-solution"),
    ("description", 'Find "it"', "may not have", "Find 'it'"),
    ("description", "two\nlines", "line break", "two lines"),
    ("description", "{% raw %}", "may not have", "% raw %"),
    ("author_name", 'a"b', "may not have", "a'b"),
    ("author_name", "tab\there", "control character", "tab here"),
    ("image_size", "0", "above 0", "224"),
    ("image_size", "-32", "above 0", "224"),
    ("image_size", "big", "above 0", "224"),
    ("image_size", "224.0", "above 0", "224"),
    ("image_size", "100", "not divisible by 32", "96"),
    ("image_size", "1", "not divisible by 32", "32"),
    ("folds", "1", "at least 2", "5"),
    ("folds", "five", "at least 2", "5"),
    ("metric", "dice", "is not for multiclass", "accuracy"),
    ("metric", "f_beta", "is not for multiclass", "accuracy"),
]


@pytest.mark.parametrize(("key", "answer", "sentence", "suggestion"), REFUSED)
def test_refused_answer(
    key: str,
    answer: str,
    sentence: str,
    suggestion: str,
    render: Render,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    # Answers on a command line are rendered by cookiecutter once: {{ "…" }} keeps them as they are.
    answers = {**GOOD, key: "{{ " + json.dumps(answer) + " }}" if "{" in answer else answer}
    with pytest.raises(CookiecutterException):
        render(tmp_path, **answers)
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("  - ")]
    assert len(said) == 1
    assert said[0].startswith(f"  - {key} ") and sentence in said[0] and said[0].endswith(".")
    assert f"try {json.dumps(suggestion)}" in said[0] or f"try {suggestion}" in said[0]
    assert not list(tmp_path.iterdir())
    assert not hook.problems({**GOOD, key: suggestion})


SLUGS_OF_OTHER_FOLDERS = ["a/b", "../up", "..", ".", "", "/absolute/path", "a\\b", "../../up"]


@pytest.mark.parametrize("slug", SLUGS_OF_OTHER_FOLDERS)
@pytest.mark.parametrize("program", ["cookiecutter", "cruft"])
def test_slug_that_is_no_folder_name(slug: str, program: str, template: Path, tmp_path: Path) -> None:
    """The sentence of the hook, and nothing is made inside or outside of the output folder."""
    inside = tmp_path / "outer" / "inside"
    inside.mkdir(parents=True)
    if program == "cookiecutter":
        words = [sys.executable, "-m", "cookiecutter", str(template), "--no-input", f"project_slug={slug}"]
    else:
        copy = tmp_path / "template"
        shutil.copytree(template, copy)
        for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "a state"]):
            who = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
            subprocess.run(["git", *who, *arguments], cwd=copy, check=True, capture_output=True)
        context = json.dumps({"project_slug": slug})
        words = [sys.executable, "-m", "cruft", "create", str(copy), "--no-input", "--extra-context", context]
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(words, cwd=inside, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("  - ")]
    assert "project_slug" in sentence and f'try "{hook.clean_slug(slug)}"' in sentence
    if program == "cookiecutter":  # what it logs of a hook that fails is on standard output
        assert done.stderr.split("\n") == ["", "These answers cannot be used:", sentence, "", ""]
    assert sorted(tmp_path.rglob("*")) == before


def test_all_problems_at_once() -> None:
    answers = {
        "project_name": "",
        "project_slug": "..",
        "description": "a\\b",
        "author_name": "`id`",
        "task": "segmentation",
        "image_size": "33",
        "folds": "0",
        "metric": "accuracy",
    }
    assert [sentence.split()[0] for sentence in hook.problems(answers)] == [key for key in answers if key != "task"]


def test_good_answers_are_accepted() -> None:
    for name in ("RSNA 2024: Lumbar Spine (2nd try)", "O'Hara, part_1", "a"):
        assert hook.check_name(name) is None
    for slug in ("a", "plants-2024", "my_competition", "x1"):
        assert hook.check_slug(slug) is None
    for text in ("Zoë O'Neil & friends <zoe@example.org>", "# not a comment: - just text", "日本"):
        assert hook.check_text("author_name", text, hook.FORBIDDEN_IN_TEXT) is None


@given(st.text() | st.text("aA0 -_./\\\"'${}"))
def test_every_suggestion_is_accepted(text: str) -> None:
    assert hook.check_slug(hook.clean_slug(text)) is None
    assert hook.check_text("description", hook.clean_text(text, hook.FORBIDDEN_IN_TEXT), hook.FORBIDDEN_IN_TEXT) is None
    sentence = hook.check_name(text)
    if sentence is not None:
        assert hook.check_name(json.loads(sentence[sentence.rindex("; try ") + len("; try ") : -1])) is None


NASTY = (
    st.text() | st.text("\"'\\{}%\n\r ;a") | st.sampled_from(['"""; import os', "a'b\"c\\", "\\", '"""', "{{ 7*7 }}"])
)


@given(NASTY, NASTY)
def test_no_answer_ends_the_string_in_a_hook(name: str, author: str) -> None:
    answers = {**GOOD, "project_name": name, "author_name": author}
    for path in (ROOT / "hooks").glob("*.py"):
        source = StrictEnvironment(context={"cookiecutter": {}}).from_string(path.read_text())
        tree = ast.parse(source.render(cookiecutter=answers))
        calls = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "json.loads"
        ]
        assert [json.loads(ast.literal_eval(call.args[0])) for call in calls] == [answers]


@given(NASTY | st.text("abc:#-,.'()&! "), NASTY)
def test_accepted_answers_give_valid_settings(name: str, slug: str) -> None:
    answers = {**GOOD, "project_name": name, "project_slug": slug}
    if hook.problems(answers):
        answers = {**GOOD, "project_slug": hook.clean_slug(slug)}
    text = StrictEnvironment(context={"cookiecutter": {}}).from_string((SOURCE / "configs/project.yaml").read_text())
    values = {**answers, "logger": "csv", "__metric": "accuracy"}
    project = yaml.safe_load(text.render(cookiecutter=values))["project"]
    assert (project["name"], project["slug"]) == (answers["project_name"], answers["project_slug"])


def test_no_project_is_named_like_its_dependency() -> None:
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    names = {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in project["dependencies"]}
    assert len(names) > 15 and names <= hook.RESERVED


def test_metrics_of_a_task_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SOURCE)
    tasks = {}
    for path in (SOURCE / "foldwise" / "configs" / "metric").glob("*.yaml"):
        module, _, name = yaml.safe_load(path.read_text()).get("_target_", "").rpartition(".")
        kind = getattr(importlib.import_module(module), name)
        if name != "Published" and "positive" not in kind.__dataclass_fields__:  # those are not asked for
            tasks[path.stem] = set(kind.tasks())
    for task, metrics in hook.METRICS.items():
        assert set(metrics) == {metric for metric, its_tasks in tasks.items() if task in its_tasks}


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    """Run cookiecutter as a command, without standard input; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cookiecutter", *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_command_and_replay(template: Path, tmp_path: Path) -> None:
    said = run(str(template), "--no-input", "task=multilabel", "license=Proprietary", cwd=tmp_path)
    assert [line.strip() for line in said.splitlines() if line.startswith("  ")] == [
        "cd my-competition",
        "make setup",
        "make baseline",
    ]
    first = tmp_path / "my-competition"
    assert (first / ".git" / "HEAD").read_text() == "ref: refs/heads/main\n"
    assert not (first / "LICENSE").exists()

    run(str(template), "--replay", "--output-dir", "again", cwd=tmp_path)
    again = tmp_path / "again" / "my-competition" / "configs" / "project.yaml"
    assert again.read_text() == (first / "configs" / "project.yaml").read_text()


def test_without_git(template: Path, tmp_path: Path) -> None:
    said = run(str(template), "--no-input", cwd=tmp_path, PATH=str(tmp_path / "nothing"))
    assert "git is not installed" in said
    assert (tmp_path / "my-competition" / "README.md").exists()
    assert not (tmp_path / "my-competition" / ".git").exists()


def test_inside_another_repository(template: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    assert "inside another git repository" in run(str(template), "--no-input", cwd=tmp_path)
    assert not (tmp_path / "my-competition" / ".git").exists()


def test_without_network(template: Path, tmp_path: Path) -> None:
    """Every Python that is started, hooks included, dies when it looks up or calls a host."""
    calls = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname")
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, sys\nsys.addaudithook(lambda event, _: os._exit(99) if event in {calls} else None)\n"
    )
    run(str(template), "--no-input", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert (tmp_path / "my-competition" / "README.md").exists()

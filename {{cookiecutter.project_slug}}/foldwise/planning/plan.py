"""Plans the first training of a data set: an experiment file that was chosen by rules and fits a budget."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from foldwise.checks import check_data
from foldwise.code.runs import working_code
from foldwise.config import compose_config, experiment_text, resolve_config
from foldwise.data.prepare import prepare
from foldwise.data.sample import is_sample
from foldwise.errors import Refusal
from foldwise.files import write_text
from foldwise.planning.budget import Bench, Measured, fit
from foldwise.planning.facts import Facts, Network, find_networks, look
from foldwise.planning.rules import image_sides, settings_of
from foldwise.preflight.forecast import in_words
from foldwise.settings import OWNER, list_groups
from foldwise.shell import command
from foldwise.training.plan import choose_parts

WIDTH = 118  # of a comment


def plan(name: str, overrides: Sequence[str], budget: float, out: str) -> Path:
    """Measure, choose, print, and write configs/experiment/<out>.yaml; return its path.

    Args:
        name: of the data config.
        overrides: settings that are kept as they are.
        budget: seconds of the whole train.py command.
    """
    import torch

    path, given = OWNER / "experiment" / f"{out}.yaml", read_given(overrides)
    if path.exists():
        raise Refusal(f"{path.relative_to(OWNER.parent)} exists: remove it, or write another one with --out second")
    base = [f"data={name}", *overrides]
    config = resolve_config(compose_config(base))
    check_data(config)
    model = config["model"]
    chosen = str(model.get("encoder") or model.get("name") or "").removeprefix("tu-")
    named = chosen if {"model", "model.name", "model.encoder"} & given.keys() else None
    gpus = torch.cuda.device_count() if config["trainer"]["accelerator"] != "cpu" else 0
    if given.get("model.pretrained") is False:
        networks, missing = list[Network](), "model.pretrained=false was given"
    else:
        networks, missing = find_networks(model["weights"], named, gpus > 0)
    with working_code(config) as code:
        prepared = prepare(config, code.alias, is_sample(config["data"]))
        parts = choose_parts(config["fold"], [], prepared)
        facts = look(config, prepared, parts, networks, missing, gpus)
        print(f"data     {facts.describe()}", flush=True)
        found, seconds = fit(Bench(facts, prepared, parts, code, base, given), budget)
    settings = settings_of(found.choices) | given
    settings.pop("fold", None)
    folds, kept = ([word for word in overrides if word.startswith("fold=") == asked] for asked in (True, False))
    train = ["python", "train.py", f"experiment={out}", f"data={name}", *folds]
    models = f"{len(parts)} model{'s' if len(parts) > 1 else ''}"
    cost = f"{models} in about {in_words(seconds)}, {found.costs.memory:.1f} GB memory, on "
    cost += f"{gpus} GPU{'s' if gpus > 1 else ''}" if gpus else f"{facts.cpus} CPU core{'s' if facts.cpus > 1 else ''}"
    steps = next_steps(facts, found, train)
    write_text(path, experiment_text(header(facts, found, cost, train, steps, kept, budget), [], settings))
    for rule, choice in found.choices.items():
        print(f"{rule:8} {choice.reason}")
    print(f"cost     {cost}\nwritten  {path.relative_to(OWNER.parent)}\nnext     {command(*train)}")
    return path


def read_given(overrides: Sequence[str]) -> dict[str, Any]:
    """Settings of the command line by name, as plain values; refuse those that an experiment file cannot have."""
    given = {}
    for word in overrides:
        name, equals, value = word.partition("=")
        if not equals or name[:1] in "+~" or name in ("data", "experiment", "run", "init"):
            raise Refusal(f"{word!r} cannot be planned with: give name=value of an existing setting, and --data <name>")
        try:
            given[name] = value if name in list_groups() else yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Refusal(f"{word!r} has no value in YAML, such as data.image_size=[64,96]") from error
    return given


def header(
    facts: Facts,
    found: Measured,
    cost: str,
    train: Sequence[str],
    steps: Sequence[tuple[str, str]],
    kept: Sequence[str],
    budget: float,
) -> str:
    """The comment of the file: what was chosen and why, what it costs, what to try next."""
    budget_word = f"{budget / 60:g}m" if budget % 60 == 0 else f"{budget:g}s"
    lines = [f"Planned by plan.py --budget {budget_word}: {facts.describe()}.", f"  {command(*train)}"]
    lines += [f"{rule}: {choice.reason}." for rule, choice in found.choices.items()]
    if kept:
        lines.append(f"Given on the command line: {' '.join(kept)}.")
    lines += [f"Cost: {cost}; {found.shown}.", "Try next, one change at a time (docs/plan.md):"]
    for line, why in steps:
        lines += [f"  {line}", f"      {why}"]
    return "".join(f"# {part}\n" for line in lines for part in wrap(line))


def wrap(line: str) -> list[str]:
    """Break a comment at spaces; commands stay whole."""
    import textwrap

    return [line] if line.startswith("  python") else textwrap.wrap(line, WIDTH, subsequent_indent="    ")


def next_steps(facts: Facts, found: Measured, train: Sequence[str]) -> list[tuple[str, str]]:
    """Up to three commands, each with a reason."""
    draft, steps = found.draft, []
    if draft.network and facts.task.name in ("multiclass", "multilabel"):
        words = ["python", "tools/features.py", train[3], f"model.name={draft.network.name}", "data.normalize=weights"]
        words += [f"model.weights={draft.network.weights}"] if draft.network.weights else []
        words.append(f"data.image_size={found.config['data']['image_size']}".replace(" ", ""))
        why = "then experiment=probe data.features=[plain]: a linear probe, the score that fine-tuning must beat"
        steps.append((command(*words, "--views", "none,flip", "--out", "features/plain"), why))
    larger = 32 + draft.size
    if min(facts.height, facts.width) > draft.size:
        why = f"more of the {facts.height} x {facts.width} pixels; {(larger / draft.size) ** 2:.1f} times the cost"
        height, width = image_sides(facts, larger)
        steps.append((command(*train, f"data.image_size=[{height},{width}]"), why))
    else:
        steps.append((command(*train, f"epochs={2 * draft.epochs}"), "twice as long"))
    tune = ["python", "tools/tune.py", *train[2:], "--trials", "30", "--confirm", "3"]
    steps.append((command(*tune), "searches learning rate, augmentation and loss on small trainings"))
    return steps

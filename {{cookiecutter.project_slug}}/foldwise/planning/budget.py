"""Finds the network, image size and number of epochs that fit a budget, by timing a few steps of each candidate."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from foldwise.checks import check_config
from foldwise.code.source import Code
from foldwise.config import compose_config, resolve_config
from foldwise.data.holdout import Holdout
from foldwise.data.images import image_hw
from foldwise.data.prepare import Prepared
from foldwise.errors import Refusal
from foldwise.planning.facts import Facts, Network
from foldwise.planning.rules import RULES, Choice, Draft, length_of, settings_of, sizes_of
from foldwise.preflight.forecast import Costs, forecast, in_words, measure
from foldwise.preflight.subject import ITEMS, Subject
from foldwise.schedule.phases import share_epochs
from foldwise.settings import list_groups

THREADS = torch.get_num_threads()  # before any measurement changes it
TIMED = 16  # images of a batch timed on a CPU
RUN, MODEL = 15.0, 3.0  # seconds of a command to import, check, score and report, and of each model in it; measured
CHECKS = 60  # steps of `ITEMS` images that the checks before the first fold take
SPARE = 1.15  # of the forecast: readers and threads get in each other's way, docs/plan.md
SHORT, FEWEST = 4, 25  # epochs at least, and batches of each when the budget is too short for all images
HOPELESS = 1.2  # times the budget: what is guessed to take longer is not timed


class Measured(NamedTuple):
    """A candidate with its configuration and costs."""

    draft: Draft
    choices: Mapping[str, Choice]
    config: Mapping[str, Any]
    costs: Costs

    @property
    def shown(self) -> str:
        """One line on the speed."""
        network = self.draft.network.name if self.draft.network else self.config["model"].get("name", "network")
        train, read = (self.costs.size / seconds for seconds in (max(self.costs.steps), self.costs.read))
        return f"{network} at {self.draft.size} pixels: {train:,.0f} images a second to train, {read:,.0f} to read"


@dataclass(frozen=True)
class Bench:
    """Composes and times candidates.

    Attributes:
        base: overrides: the data, and what was given.
        given: settings on the command line, which no rule changes.
    """

    facts: Facts
    prepared: Prepared
    parts: Sequence[Holdout]
    code: Code
    base: Sequence[str]
    given: Mapping[str, Any]

    def choose(self, draft: Draft) -> dict[str, Choice]:
        """The rules' choices without what was given: settings, and all of a group but the model."""
        taken = {name for name in self.given if name in list_groups()} - {"model", "data"}
        found = {}
        for name, rule in RULES.items():
            settings, reason = rule(self.facts, draft)
            main = next(iter(settings))
            if main in self.given and name not in ("network", "pixels", "learning"):  # these three heed the draft
                reason = f"as given: {main}={self.given[main]}"
            kept = {key for key in settings.keys() - self.given.keys() if key.partition(".")[0] not in taken}
            found[name] = Choice({key: value for key, value in settings.items() if key in kept}, reason)
        return found

    def config(self, choices: Mapping[str, Choice]) -> dict[str, Any]:
        """The configuration that train.py would compose."""
        from omegaconf import OmegaConf, flag_override

        settings = settings_of(choices)
        groups = {key: value for key, value in settings.items() if key in list_groups() and isinstance(value, str)}
        config = compose_config([*self.base, *(f"{key}={value}" for key, value in groups.items())])
        with flag_override(config, ["struct", "readonly"], False):
            for key, value in settings.items():
                if key not in groups:
                    OmegaConf.update(config, key, value, merge=not isinstance(value, Mapping), force_add=True)
        return resolve_config(config)

    def time(self, draft: Draft) -> Measured:
        """Time a few steps of a candidate."""
        choices = self.choose(draft)
        config = self.config(choices)
        check_config(config)
        sharing = 1 if self.facts.gpus else config["fold_workers"]
        torch.set_num_threads(config["threads"] or max(1, THREADS // sharing))
        subject = Subject(config, self.prepared, self.parts[0], self.code)
        size = config["batch_size"] if self.facts.gpus else min(TIMED, config["batch_size"])
        return Measured(draft, choices, config, measure(subject, size))

    def seconds(self, measured: Measured, epochs: int, batches: int | None = None) -> float:
        """Forecast of the whole command for a number of epochs, of so many batches or of all images."""
        settings = settings_of(self.choose(measured.draft._replace(epochs=epochs, batches=batches)))
        config = dict(measured.config)
        if batches:
            config["trainer"] = config["trainer"] | {"limit_train_batches": batches}
        config["validate_every"] = settings.get("validate_every", config["validate_every"])
        shares = {name: phase["epochs"] for name, phase in config["phases"].items()}
        shares = share_epochs(epochs, {name: settings.get(f"phases.{name}.share", old) for name, old in shares.items()})
        config["phases"] = {name: phase | {"epochs": shares[name]} for name, phase in config["phases"].items()}
        at_once = config["fold_workers"]
        passed = forecast(config, measured.costs, self.prepared, self.parts, 1, at_once)
        starts = RUN + MODEL * math.ceil(len(self.parts) / at_once)
        checks = CHECKS * max(measured.costs.steps) * ITEMS / measured.costs.size if config["preflight"] else 0
        return SPARE * (passed + starts + checks)


def fit(bench: Bench, budget: float) -> tuple[Measured, float]:
    """The first candidate, from the best to the cheapest, that fits into `budget` seconds.

    Returns:
        The candidate, timed at its size, with as many epochs as fit, and the forecast in seconds.
    """
    warnings.simplefilter("ignore")
    known, least = dict[tuple[Network | None, int], Measured](), math.inf
    *others, last = candidates(bench)
    for draft, epochs in (*others, last):
        key = draft.network, draft.size
        if key not in known:
            guess = None if (draft, epochs) == last else scaled(known, draft)
            if guess and (needed := bench.seconds(guess, epochs)) > HOPELESS * budget:
                least = min(least, needed)
                continue
            try:
                known[key] = bench.time(draft)
            except torch.OutOfMemoryError:
                print(f"timed    {draft.size} pixels: more than the GPU's memory", flush=True)
                continue
            print(f"timed    {known[key].shown}", flush=True)
        needed = bench.seconds(known[key], epochs)
        least = min(least, needed)
        if needed <= budget:
            longest = bench.given.get("epochs", length_of(bench.facts).most)
            best = next(each for each in range(longest, epochs - 1, -1) if bench.seconds(known[key], each) <= budget)
            return with_length(bench, known[key], best)
    if key in known and "trainer.limit_train_batches" not in bench.given:
        first, second = (bench.seconds(known[key], epochs, FEWEST * part) for part in (1, 2))
        if first <= budget:  # time grows with the batches of an epoch, and all of them do not fit
            return with_length(bench, known[key], epochs, FEWEST + int((budget - first) / (second - first) * FEWEST))
        least = min(least, first)
    alone = f", or one fold: fold={bench.prepared.scored_folds[0]}" if len(bench.parts) > 1 else ""
    raise Refusal(
        f"--budget {in_words(budget)} is too short for the least sensible training here, which takes about "
        f"{in_words(least)}: give --budget {math.ceil(least / 60)}m{alone}"
    )


def with_length(bench: Bench, measured: Measured, epochs: int, batches: int | None = None) -> tuple[Measured, float]:
    """A timed candidate with its length, and the forecast in seconds."""
    draft = measured.draft._replace(epochs=epochs, batches=batches)
    choices = bench.choose(draft)
    found = Measured(draft, choices, bench.config(choices), measured.costs)
    return found, bench.seconds(found, epochs, batches)


def scaled(known: Mapping[tuple[Network | None, int], Measured], draft: Draft) -> Measured | None:
    """A guess from the nearest size of the same network that was timed: costs grow with the pixels."""
    sizes = [size for network, size in known if network == draft.network]
    if not sizes:
        return None
    nearest = min(sizes, key=lambda size: abs(size - draft.size))
    timed, factor = known[draft.network, nearest], (draft.size / nearest) ** 2
    steps = tuple(step * factor for step in timed.costs.steps)
    return timed._replace(costs=timed.costs._replace(steps=steps, predict=timed.costs.predict * factor))


def candidates(bench: Bench) -> Iterator[tuple[Draft, int]]:
    """Drafts from the best to the cheapest, with the fewest epochs that each must get.

    A larger network is worth it only at full size and length; a smaller image if the full one leaves too few epochs.
    If none of them fits, `fit` trains the last one on a part of the images.
    """
    facts, given = bench.facts, bench.given
    length, networks = length_of(facts), facts.networks or (None,)
    sizes = [min(image_hw(given["data.image_size"]))] if "data.image_size" in given else sizes_of(facts)
    if "epochs" in given:
        length = length._replace(least=given["epochs"], most=given["epochs"])
    for network in reversed(networks):
        yield Draft(network, sizes[0], length.most), length.most
    for size in sizes:
        yield Draft(networks[0], size, length.most), length.least
    if "epochs" not in given:
        yield Draft(networks[0], sizes[-1], length.most), max(SHORT, length.least // 3)

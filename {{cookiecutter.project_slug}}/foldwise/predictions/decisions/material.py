"""What a submission is made of: found, checked, and put into the format that the competition wants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from foldwise.data.problems import some
from foldwise.data.table import Columns, read_table
from foldwise.errors import Refusal
from foldwise.predictions.decisions.formats import FORMATS
from foldwise.predictions.decisions.rules import takes_values
from foldwise.predictions.decisions.submission import check_rows, read_sample
from foldwise.predictions.ground_truth import GroundTruth, check_predictions, mismatches, read_ground_truth
from foldwise.predictions.schema import PredictionsError, raise_problems
from foldwise.predictions.sources import Source, find_sources
from foldwise.predictions.store import Predictions, read_predictions


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is asked for.

    Args:
        source, oof, test: predictions, see `sources.find_sources`.
        data, overrides: the truth of a source without config.yaml, see `truth.read_ground_truth`.
        sample: the competition's sample submission.
        kind: a name in `formats.FORMATS`; None: by the sample, the task and the metric.
        options: of the format, by the names of its fields.
        decision: a name in the table of decisions; None: the simplest within one standard error of the best.
        exclusive: names of labels that exclude each other, a group each; None: those that the training labels show.
        out: the file to write; None: `submissions/<source>-<test>` with the format's suffix.
        ledger: the CSV that the submission is added to.
    """

    source: Path
    oof: str = "oof"
    test: str | None = None
    data: str | None = None
    overrides: Sequence[str] = ()
    sample: Path | None = None
    kind: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    decision: str | None = None
    exclusive: Sequence[Sequence[str]] | None = None
    out: Path | None = None
    ledger: Path = Path("submissions.csv")


class Material(NamedTuple):
    """Everything that a submission is made of, checked; `units` has the unit of each test id, where there are units."""

    source: Source
    truth: GroundTruth
    oof: Predictions
    test: Predictions
    units: pd.Series | None
    layout: Any
    sample: pd.DataFrame | None

    @property
    def ranks(self) -> bool:
        """Whether the predictions are means of ranks, which order rows and mean nothing else."""
        return self.oof.header.ranks

    @property
    def notes(self) -> list[str]:
        """What the user should know about it."""
        notes = []
        if self.sample is None:
            notes.append("Without --sample nothing is compared with the competition's sample submission.")
        if self.oof.header.tta != self.test.header.tta:
            notes.append(
                "The test predictions have another TTA than those out of fold, which calibrations and thresholds are "
                "fitted to: choose both alike with --oof and --test."
            )
        return notes


def open_material(request: Request) -> Material:
    """Read and check everything.

    Raises:
        Refusal: whatever is wrong with the predictions, the truth, the sample submission or the format's options.
    """
    source = find_sources([request.source], request.oof, request.test)[0]
    if source.test is None:
        raise Refusal(f"{source.folder} has no test predictions: python predict.py {source.folder} makes them")
    truth = read_ground_truth(request.source, request.data, request.overrides)
    oof, test = read_predictions(source.oof), read_predictions(source.test)
    check_predictions(oof, truth)
    raise_problems(test.folder, mismatches(test.header, truth, "test"))
    sample = None if request.sample is None else read_sample(request.sample)
    layout = choose_layout(truth, sample, request.sample, request.kind, request.options)
    units = _units(truth, test)
    ids = (test.frame["id"] if units is None else units).unique().tolist()
    check_rows(layout.row_ids(ids), layout.columns, sample, request.sample)
    material = Material(source, truth, oof, test, units, layout, sample)
    if material.ranks and not takes_values(truth.metric):
        raise PredictionsError(
            oof.folder, ["its values are means of ranks and not probabilities: nothing decides by them"]
        )
    return material


def choose_layout(
    truth: GroundTruth,
    sample: pd.DataFrame | None,
    sample_path: Path | None = None,
    kind: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The format, with the columns of the sample submission or else of the table; `kind` and `options` as above."""
    task, classes, options = truth.task, truth.table.classes, dict(options or {})
    values = task.kind == "rows" and takes_values(truth.metric)
    several = sample is not None and len(sample.columns) > 2
    of_rows = "columns" if values or several or "positive" in options else "labels"
    chosen = FORMATS[kind or ("rle" if task.kind == "maps" else of_rows)]
    option = f"--format {chosen.name}"
    problems = [f"{option} has no {name}" for name in sorted(options.keys() - {item.name for item in fields(chosen)})]
    if not chosen.suits(task):
        problems.append(f"{option} is for {' and '.join(chosen.tasks())}, and this is {task.name}")
    elif chosen.name == "labels" and values:
        problems.append(f"{option}: {type(truth.metric).__name__} takes probabilities, which --format columns writes")
    if chosen.name == "columns" and "positive" not in options and sample is not None and not several:
        if len(classes) > 1:
            problems.append(f"{sample_path} has one column beside the ids: say of which class with --positive")
        options = options | {"positive": classes[0]}
    raise_problems("the format", problems)
    columns = Columns.from_config(truth.config["data"]["columns"])
    names = [columns.id, columns.target if isinstance(columns.target, str) else task.column]
    if sample is not None:
        names = sample.columns[:2].tolist()
    return chosen(classes=classes, id_column=names[0], value_column=names[1], **options)


def _units(truth: GroundTruth, test: Predictions) -> pd.Series | None:
    """The unit of each test id, where the training table has units."""
    if truth.task.kind == "maps" or "unit" not in truth.table.frame:
        return None
    data = truth.config["data"]
    columns = Columns.from_config(data["columns"])
    table = read_table(
        data["test_table"], truth.task.name, data["root"], columns, truth.table.classes, has_target=False
    )
    units = table.frame.set_index("id")["unit"]
    unknown = sorted(set(test.frame["id"]) - set(units.index))
    if unknown:
        raise PredictionsError(test.folder, [f"{len(unknown)} ids are not in {data['test_table']}: {some(unknown)}"])
    return units.loc[test.frame["id"].unique()]


def exclusive_columns(groups: Sequence[Sequence[str]] | None, classes: Sequence[str]) -> list[tuple[int, ...]] | None:
    """The column numbers of groups of labels; None stays None.

    Raises:
        Refusal: names that are no classes or come twice, groups of one.
    """
    if groups is None:
        return None
    named = [name for group in groups for name in group]
    problems = [f"there is no class {name}" for name in named if name not in classes]
    problems += [f"{name} is named twice" for name in sorted({name for name in named if named.count(name) > 1})]
    problems += [f"{' '.join(group)} is one label, which excludes nothing" for group in groups if len(group) < 2]
    raise_problems("--exclusive", problems)
    return [tuple(classes.index(name) for name in group) for group in groups]

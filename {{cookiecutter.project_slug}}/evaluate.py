"""Score predictions, for all images and for subgroups, with confidence intervals, and compare them.

examples:
  python evaluate.py runs/baseline-1a2b3c4d
  python evaluate.py runs/baseline-1a2b3c4d --by camera city --show data/competition/look_at.txt
  python evaluate.py runs/baseline-1a2b3c4d runs/mixup-5e6f7a8b runs/larger-9c0d1e2f --oof oof-d4
  python evaluate.py runs/larger-s1 runs/larger-s2 runs/larger-s3 --against runs/base-s1 runs/base-s2 runs/base-s3
  python evaluate.py runs/baseline-1a2b3c4d runs/cleaned-9c0d1e2f --gold
  python evaluate.py runs/round-0a1b2c3d runs/round-4e5f6071 runs/round-8293a4b5 --rounds
  python evaluate.py runs/metadata-1a2b3c4d --importance
  python evaluate.py predictions/from-a-friend --table data/competition/holdout.csv --data competition

Further sources are compared with the first. Change one thing at a time, or you cannot say what made the difference.
Two runs that differ only in their seed show how large differences are by chance. --against compares several seeds per
side. --gold scores the gold rows (data.columns.gold), which no model was trained on. --rounds compares each run with
the one trained before it, on the gold rows if the table has some, else out of fold on the rows that all runs have, and
writes rounds.csv and rounds.png anew. --importance uses the saved models of a PooledNetwork: the score from the
pictures alone, the metadata alone, and with each column of metadata shuffled within its fold.
"""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from foldwise.command import exit_on_error, make_parser, whole_number
from foldwise.errors import Refusal
from foldwise.files import check_new
from foldwise.progress import progress_bar
from foldwise.shell import command

if TYPE_CHECKING:
    import pandas as pd

    from foldwise.predictions.evaluation.evaluate import Evaluation
    from foldwise.progress import Progress


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    add = parser.add_argument
    add("sources", nargs="+", type=Path, help="runs, ensembles, folders with their layout, or prediction folders")
    help = "second side of a comparison over seeds: as many sources, same seeds in the same order"
    add("--against", nargs="+", type=Path, default=[], metavar="SOURCE", help=help)
    add("--gold", action="store_true", help="score the gold rows of the table (default: score out of fold)")
    add("--rounds", action="store_true", help="compare each run with the one before it; write rounds.csv, rounds.png")
    add("--oof", default="oof", help="name of the out-of-fold predictions, e.g. oof-d4 (default: oof)")
    add("--table", type=Path, help="labelled table to score test predictions on (default: score out of fold)")
    add("--test", help="with --table: name of the test predictions (default: the only ones)")
    add("--data", help="name of a file in configs/data, for predictions without a config.yaml")
    help = "with --data: changes to the config, as in train.py"
    add("--set", nargs="+", default=[], metavar="KEY=VALUE", help=help)
    help = "columns that define subgroups (default: those with 2 to 20 values; --by alone: none)"
    add("--by", nargs="*", metavar="COLUMN", help=help)
    add("--show", metavar="IDS", help="images to show but not score: a file of ids, or column=value")
    add("--resamples", type=whole_number(100), default=1000, help="bootstrap draws, at least 100 (default: 1000)")
    add("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    help = "one run with metadata: what pictures and each column bring, by REPEATS shuffles (default: 5)"
    add("--importance", type=whole_number(1), nargs="?", const=5, metavar="REPEATS", help=help)
    add("--out", type=Path, help="HTML file to write (default: evaluation.html in the first source)")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with exit_on_error():
        report = report_path(options.out, options.sources[0])
        if options.importance and (len(options.sources) > 1 or options.against or options.table):
            raise Refusal("--importance is of one run, out of fold: name no other source, and no --table")
        if ((options.rounds or options.gold) and options.table) or (options.rounds and options.against):
            raise Refusal(
                "--gold and --rounds score the competition's table, and --rounds compares run after run: "
                "leave out --table and --against"
            )
        from foldwise.config import read_config
        from foldwise.predictions.evaluation.evaluate import evaluate
        from foldwise.predictions.evaluation.rounds import by_time, tabulate_rounds

        if options.rounds:
            options.sources = by_time(options.sources)
            options.gold = bool(read_config(options.sources[-1])["data"]["columns"].get("gold"))
        changes = {} if options.against else describe_runs(options.sources, options.rounds)
        with progress_bar("reading") as progress:
            evaluation = evaluate(
                options.sources,
                options.against,
                oof=options.oof,
                test=options.test,
                labelled=options.table,
                gold=options.gold,
                rounds=options.rounds,
                data=options.data,
                overrides=options.set,
                by=options.by,
                show=options.show,
                resamples=options.resamples,
                seed=options.seed,
                progress=progress,
            )
            importance = None
            if options.importance:
                importance = find_importance(evaluation, options.sources[0], options.importance, options.seed, progress)
        from foldwise.reporting.console import print_evaluation
        from foldwise.reporting.evaluation_report import write_evaluation

        names = [one.name for one in evaluation.evidence]
        titles = {n: f"{names[n - 1 if options.rounds else 0]} -> {names[n]}" for n in changes}
        print_evaluation(evaluation, {titles[n]: lines for n, lines in changes.items()}, importance)
        write_evaluation(report, evaluation, importance)
        if options.rounds:
            write_rounds(tabulate_rounds(evaluation, options.sources, [[], *changes.values()], options.gold))
    print(f"\nWritten:\n  {report}", *(["rounds.csv", "rounds.png"] if options.rounds else []), sep="\n  ")
    if len(options.sources) == 1:
        source = options.sources[0]
        other = newest_like(source) or "<another run>"
        known = f"python evaluate.py {other} {command(source, *(['--gold'] if options.gold else []))}"
        print(f"\nNext, to compare it with another:\n  {known}")


def newest_like(source: Path) -> str | None:
    """Find the newest other source in the same folder that has predicted the same folds out of fold."""
    found = {}
    for sidecar in source.parent.glob("*/oof/predictions.json"):
        header = json.loads(sidecar.read_text())
        folds = {member["fold"] for member in header["members"]}
        found[sidecar.parents[1]] = header["task"], header["columns"], header["folds_hash"], folds
    kind = found.pop(source, None)
    others = [path for path in found if found[path] == kind]
    return command(max(others, key=lambda path: path.stat().st_mtime)) if others else None


def describe_runs(sources: list[Path], rounds: bool) -> dict[int, list[str]]:
    """Describe how each further run, by its index, differs from the first; of rounds, from the one before it.

    Sources that are not runs are skipped.
    """
    from foldwise.training.run_folder import describe_changes

    runs = [number for number, source in enumerate(sources) if (source / "identity.json").is_file()]
    if 0 not in runs:
        return {}
    return {n: describe_changes(sources[n - 1 if rounds else 0], sources[n]) for n in runs if n}


def write_rounds(frame: "pd.DataFrame") -> None:
    """Write rounds.csv and rounds.png, a function of the runs alone, in the place of older ones."""
    from foldwise.files import write_atomic
    from foldwise.reporting.figures import rounds, to_png

    picture = to_png(rounds(frame))
    with write_atomic(Path("rounds.csv")) as table, write_atomic(Path("rounds.png")) as image:
        frame.to_csv(table, index=False)
        image.write_bytes(picture)


def find_importance(
    evaluation: "Evaluation", run: Path, repeats: int, seed: int, progress: "Progress"
) -> "pd.DataFrame":
    """Measure the importance of a run's pictures and metadata; note columns that tell too much."""
    from foldwise.audit.leaks import leak_notes
    from foldwise.inference.parts import predict_parts
    from foldwise.predictions.evaluation.importance import measure_importance

    truth = evaluation.truth
    evaluation.notes.extend(leak_notes(truth.table, truth.items.samples, truth.folds))
    predicted = predict_parts(run, truth.items, repeats, seed, progress)
    return measure_importance(evaluation, predicted, seed, progress)


def report_path(out: Path | None, source: Path) -> Path:
    """Return `out` if it does not exist; by default the first unused evaluation.html, evaluation-2.html, ..."""
    if not source.is_dir():
        raise Refusal(f"{source} is not a folder")
    if out is not None:
        check_new(out)
        return out
    path, number = source / "evaluation.html", 1
    while path.exists():
        number += 1
        path = source / f"evaluation-{number}.html"
    return path


if __name__ == "__main__":
    main()

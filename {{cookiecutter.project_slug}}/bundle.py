"""Bundle models, post-processing and infer.py for the notebook of a code competition, and rehearse the bundle.

examples:
  python bundle.py runs/finetune_cnn-1a2b3c4d --out bundle --oof oof-flips
  python bundle.py runs/a-* runs/b-* --out bundle --half --budget-mb 500 \\
      --sample ~/Downloads/some-competition/sample_submission.csv
  python bundle.py ensembles/first --out bundle --wheels host.txt
  python bundle.py runs/unet-5e6f7a8b --out bundle --presence runs/unet-5e6f7a8b/outputs/presence
  python bundle.py runs/crops-7a8b9c0d --out bundle           # with the run of masks that found the boxes of its table
  python bundle.py bundle --rehearse --table data/competition/tables/train.csv --rows 5000 --hidden 50000

Upload the folder as a data set; its notebook.ipynb runs infer.py. Rehearse it first: the host does not explain errors.
"""

import argparse
from pathlib import Path

from foldwise.command import exit_on_error, make_parser, positive_number, whole_number
from foldwise.errors import Refusal
from foldwise.predictions.decisions.options import add_decision_options, add_format_options, format_options
from foldwise.shell import command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__, opens_runs=True)
    parser.add_argument("sources", nargs="+", type=Path, help="runs, or one ensemble; with --rehearse: a bundle")
    build = parser.add_argument_group("to write a bundle")
    build.add_argument("--out", type=Path, help="folder to write")
    build.add_argument(
        "--oof", default="oof", help="out-of-fold predictions of the runs; their views or tiles are used (default: oof)"
    )
    build.add_argument("--half", action="store_true", help="store weights in half precision, at half the size")
    build.add_argument("--budget-mb", type=positive_number, metavar="MB", help="refuse a larger bundle")
    build.add_argument(
        "--wheels", type=Path, metavar="FREEZE", help="the host's pip freeze: add wheels of what it lacks"
    )
    build.add_argument(
        "--runtime", choices=["torch", "onnx"], default="torch", help="onnx: for a host without torch (default: torch)"
    )
    add_decision_options(build)
    add_format_options(parser)
    rehearse = parser.add_argument_group("to rehearse a bundle")
    rehearse.add_argument("--rehearse", action="store_true", help="run the bundle as the host would")
    rehearse.add_argument("--table", type=Path, help="rows to draw from")
    rehearse.add_argument("--images", type=Path, help="folder of its images (default: the run's data.root)")
    rehearse.add_argument("--rows", type=whole_number(1), default=5000, help="rows of the rehearsal (default: 5000)")
    rehearse.add_argument(
        "--hidden", type=whole_number(1), help="rows of the hidden test, to forecast its time (default: --rows)"
    )
    rehearse.add_argument("--workers", type=whole_number(0), default=2, help="processes that read images (default: 2)")
    rehearse.add_argument(
        "--batch-size",
        type=whole_number(1),
        default=32,
        help="images per forward pass, counting every view (default: 32)",
    )
    options = parser.parse_args(arguments)
    if options.rehearse and options.table is None:
        parser.error("--rehearse needs --table")
    if not options.rehearse and options.out is None:
        parser.error("--out is missing: the folder to write")
    if options.rehearse and len(options.sources) > 1:
        parser.error("--rehearse takes one bundle")
    return options


def main() -> None:
    options = parse()
    with exit_on_error():
        (rehearse if options.rehearse else build)(options)


def build(options: argparse.Namespace) -> None:
    from rich.console import Console

    from foldwise.bundle.build import build_bundle
    from foldwise.bundle.host import describe_sizes
    from foldwise.reporting.console import print_outcomes

    built = build_bundle(
        options.sources,
        options.out,
        oof=options.oof,
        half=options.half,
        budget_mb=options.budget_mb,
        decision=options.decision,
        exclusive=options.exclusive,
        sums=options.sums,
        presence=options.presence,
        sample=options.sample,
        kind=options.format,
        options=format_options(options),
        host_packages=options.wheels,
        runtime=options.runtime,
    )
    print_outcomes(Console(), built.spec.metric, built.chosen.outcomes, built.chosen.chosen_index)
    print(describe_sizes(built.sizes))
    print(f"\nWritten:\n  {options.out}")
    words = ("python", "bundle.py", options.out, "--rehearse", "--table", built.table)
    print(f"\nNext:\n  {command(*words)}")


def rehearse(options: argparse.Namespace) -> None:
    """Rehearse a bundle; refuse one with problems."""
    from foldwise.bundle.rehearse import describe, rehearse

    rehearsed = rehearse(
        options.sources[0],
        options.table,
        options.images,
        options.rows,
        options.hidden,
        options.workers,
        options.batch_size,
    )
    print("\n".join(describe(rehearsed, options.hidden or options.rows)))
    if rehearsed.problems:
        raise Refusal("\n".join(["do not submit this bundle:", *rehearsed.problems]))
    print(f"\nNext:\n  upload {options.sources[0]} as a data set, and submit its notebook.ipynb")


if __name__ == "__main__":
    main()

"""Search better settings for an experiment by small trainings, and confirm them by full ones.

examples:
  python tools/tune.py experiment=baseline --trials 50 --budget 6h
  python tools/tune.py experiment=finetune_cnn data=competition --trials 50 --small model=efficientnet_lite --confirm 3
  python tools/tune.py experiment=probe data=competition data.features=[lite0] --trials 100
  python tools/tune.py experiment=baseline --trials 200 --storage postgresql://user@host/studies

What varies is in configs/tune.yaml, by default in foldwise/configs/tune.yaml. Trials train on half-size images and one
fold, and are ended early when their curve is below the median. The same command resumes after a kill. Started again at
the same time, on this or another machine with the same disk (or --storage), it helps. See docs/tune.md.
"""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import duration, exit_on_error, make_parser, whole_number
from foldwise.errors import Refusal
from foldwise.processes.exits import leave_on_signals


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add, least_1 = parser.add_argument, whole_number(1)
    add("overrides", nargs="*", metavar="key=value", help="experiment and further settings, as in train.py")
    add("--trials", type=least_1, default=50, help="trials of all commands together (default: 50)")
    add("--budget", type=duration, metavar="TIME", help="start no trial that would end later, such as 6h or 45m")
    add("--space", type=Path, metavar="FILE", help="settings to vary (default: configs/tune.yaml)")
    help = "settings of trials, such as data.image_size=96 model=efficientnet_lite"
    add("--small", nargs="+", default=[], metavar="key=value", help=help)
    add("--storage", metavar="URL", help="database that the commands share (default: a journal file in tuning/)")
    help = "train the best settings and the experiment at full size, each with N seeds, and compare"
    add("--confirm", type=least_1, default=0, metavar="N", help=help)
    return parser.parse_intermixed_args(arguments)


def main() -> None:
    options = parse()
    leave_on_signals()
    with exit_on_error("the same command resumes"):
        run(options)


def run(options: argparse.Namespace) -> None:
    """Search, print the result, and write the report."""
    if not any(word.startswith("experiment=") for word in options.overrides):
        raise Refusal("name the experiment to start from: python tools/tune.py experiment=baseline")
    if find_spec("optuna") is None:
        raise Refusal("the search needs Optuna: pip install 'optuna>=5'")
    from foldwise.reporting.tuning_report import print_tuned, report_tuned
    from foldwise.tuning.outcome import conclude
    from foldwise.tuning.space import read_space, space_file
    from foldwise.tuning.tune import quiet_children, tune

    space = read_space(space_file(options.space), options.overrides, options.small)
    for note in space.notes:
        print(f"note     {note}")
    with quiet_children() as log:
        tuned = tune(space, options.trials, options.budget, options.storage, log)
        print_tuned(tuned)
        verdict = conclude(tuned, space, options.confirm, log)
        print(f"verdict  {verdict}", flush=True)
    report_tuned(tuned, verdict)
    print(f"report   {tuned.folder / 'report.html'}")


if __name__ == "__main__":
    main()

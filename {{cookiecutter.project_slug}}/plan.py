"""Plan the first training: measure the machine, and write an experiment that fits a budget.

examples:
  python plan.py --budget 2h
  python plan.py --budget 30m model.weights=weights/tf_efficientnet_lite0.safetensors
  python plan.py --budget 10m fold=0 data.image_size=128 --out small
  python plan.py --budget 3m --data sample

Writes configs/experiment/first.yaml, after python prepare.py. Network, image size, batch size, learning rate, epochs,
augmentation, loss and workers follow from the data and from a minute of measurement, by rules (docs/plan.md); what is
given as key=value stays. The file says what was chosen and why, what it costs, and what to try next. Pretrained
weights are those of model.weights, else of files in weights/ that are named by a network of timm, else of the hub. The
budget is that of the whole command train.py experiment=first.
"""

import argparse
import re

from foldwise.command import duration, exit_on_error, make_parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add = parser.add_argument
    add("--budget", type=duration, required=True, metavar="TIME", help="of the training, such as 45m or 6h")
    add("--data", default="competition", help="a file in configs/data, by name (default: competition)")
    add("--out", type=_name, default="first", metavar="NAME", help="of the experiment (default: first)")
    add("overrides", nargs="*", metavar="key=value", help="settings to keep, as in train.py")
    return parser.parse_intermixed_args(arguments)


def _name(text: str) -> str:
    if not re.fullmatch(r"\w+", text):
        raise argparse.ArgumentTypeError(f"{text!r} has other characters than letters, digits and underscores")
    return text


def main() -> None:
    options = parse()
    with exit_on_error():
        from foldwise.planning.plan import plan

        plan(options.data, options.overrides, options.budget, options.out)


if __name__ == "__main__":
    main()

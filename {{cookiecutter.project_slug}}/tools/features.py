"""Compute the features of a pretrained network once; heads then train on them in seconds, without reading images.

examples:
  python tools/features.py data=competition model.name=tf_efficientnet_lite0 model.weights=weights/lite0.safetensors \\
      data.normalize=weights --views none,flip --out features/lite0
  python train.py experiment=probe data=competition data.features=[lite0]
  python tools/features.py data=competition model=convnext data.normalize=weights --stages last --out features/convnext
  python train.py experiment=probe data=competition data.features=[lite0,convnext]

Features of the training and the test table, in half precision, one file a view. The size is printed before the work
begins. The same command resumes after a kill, and helps where it is started on another machine with the same disk.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the root, where foldwise/ is

from foldwise.command import exit_on_error, make_parser, whole_number
from foldwise.shell import command


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = make_parser(__doc__)
    add, least_0, least_1 = parser.add_argument, whole_number(0), whole_number(1)
    add("overrides", nargs="*", metavar="key=value", help="data, model and further settings, as in train.py")
    add("--out", type=Path, required=True, metavar="FOLDER", help="features/<name>")
    add(
        "--stages",
        type=_stages,
        default="all",
        help="all; numbers such as 2,3,4, or modules by name; last: the network's pooled features",
    )
    add("--pool", choices=["mean", "max"], default="mean", help="of a stage, over the pixels (default: mean)")
    add("--views", type=_names, default=("none",), help="none, or none,flip: training draws one (default: none)")
    add("--dtype", choices=["float16", "float32"], default="float16", help="of the files (default: float16)")
    add("--batch-size", type=least_1, default=32, help="images per forward pass (default: 32)")
    add("--workers", type=least_0, default=2, help="processes that read images, for each device (default: 2)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--devices", type=least_1, metavar="N", help="number of GPUs, or of CPU processes (default: all GPUs, or 1)")
    return parser.parse_intermixed_args(arguments)


def main() -> None:
    options = vars(parse())
    with exit_on_error("run the same command again to resume"):
        from foldwise.code.runs import working_code
        from foldwise.config import compose_config, resolve_config
        from foldwise.data.features import FOLDER
        from foldwise.errors import Refusal
        from foldwise.inference.extracting import VIEWS, Choices, extract

        overrides = options.pop("overrides")
        config: dict[str, Any] = resolve_config(compose_config(overrides))
        out, views = options["out"], options["views"]
        if out.parent != FOLDER:
            raise Refusal(f"--out is {out}: data.features names folders in {FOLDER}/, so give {FOLDER / out.name}")
        unknown = [view for view in views if view not in VIEWS]
        if unknown or views[0] != "none" or len(set(views)) < len(views):
            raise Refusal(f"--views is {','.join(views)}: none first, then different views out of {', '.join(VIEWS)}")
        with working_code(config) as code:
            complete = extract(config, code.alias, Choices(**options), ["python", "tools/features.py", *sys.argv[1:]])
    if not complete:
        print("other commands are computing the last blocks; the last one completes the folder")
        return
    print(f"written   {out}")
    kept = [word for word in overrides if word.startswith("data.")]  # what was read must be read alike
    words = ["experiment=probe", f"data={config['data']['name']}", f"data.features=[{out.name}]", *kept]
    print(f"next      {command('python', 'train.py', *words)}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


def _stages(text: str) -> str | tuple[int | str, ...]:
    if text in ("all", "last"):
        return text
    numbers = [int(name) if name.isdecimal() else name for name in text.split(",")]
    if "" in numbers or len({type(number) for number in numbers}) > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not all, last, numbers such as 2,3,4, or names of modules")
    return tuple(numbers)


if __name__ == "__main__":
    main()

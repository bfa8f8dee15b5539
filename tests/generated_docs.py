"""Pages of the rendered docs/ that are generated: commands.md from --help, recipes.md from the experiments' headers.

`make docs` writes them; test_docs.py fails when they differ from what is generated.
"""

import os
import subprocess
import sys
from pathlib import Path

COMMANDS = ["prepare", "plan", "train", "predict", "evaluate", "ensemble", "export", "submit", "bundle"]
TOOLS = [
    "average", "average_weights", "pseudo_label", "distill", "features", "tune", "unpack", "crop", "boxes", "label",
]  # fmt: skip
RECIPES = """# Recipes

Every experiment, by the comment in its file. Generated. Everything after `experiment=<name>` changes one thing; a
copy in `configs/experiment/` changes it for good. Masks need `task=segmentation metric=mean_iou` in a repository that
was made for another task.
"""


def commands_page(repository: Path) -> str:
    """docs/commands.md: what every command of a rendered repository prints for --help."""
    calls = [[f"{name}.py"] for name in COMMANDS]
    calls[-2:-1] = [["submit.py"], *(["submit.py", part] for part in ("make", "score", "choose"))]
    calls += [[f"tools/{name}.py"] for name in TOOLS]
    page = "# Commands\n\nWhat `--help` prints. Generated.\n"
    for call in calls:
        page += f"\n## {' '.join(call)}\n\n```\n{_help(repository, call)}\n```\n"
    return page


def _help(repository: Path, call: list[str]) -> str:
    environment = {**os.environ, "COLUMNS": "100", "PYTHONPATH": "", "NO_COLOR": "1"}
    command = [sys.executable, *call, "--help"]
    done = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True, check=True)
    return done.stdout.rstrip()


def recipes_page(repository: Path) -> str:
    """docs/recipes.md: the first comment of every experiment."""
    page = RECIPES
    files = [*repository.glob("configs/experiment/*.yaml"), *repository.glob("foldwise/configs/experiment/*.yaml")]
    for path in sorted(files, key=lambda path: path.stem):
        lines = [line for line in path.read_text().splitlines() if "@package" not in line]
        header = lines[: next(number for number, line in enumerate(lines) if not line.startswith("#"))]
        text = [line.removeprefix("#").removeprefix(" ") for line in header]
        page += f"\n## {path.stem}\n\n{text[0]}\n\n```\n" + "\n".join(text[1:]) + "\n```\n"
    return page


PAGES = {"commands.md": commands_page, "recipes.md": recipes_page}

if __name__ == "__main__":
    rendering, docs = Path(sys.argv[1]), Path(sys.argv[2])
    for name, page in PAGES.items():
        (docs / name).write_text(page(rendering), encoding="utf-8")

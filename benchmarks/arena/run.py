"""Runs the arena: every rival on every set with every seed, resumed where it stopped.

    python benchmarks/arena/run.py --sets build/arena --weights ../shared/weights/tf_efficientnet_lite0.safetensors
    python benchmarks/arena/run.py ... --only camvid_tiles --rivals plan loop --seconds 20 --seeds 0    # a quick try

Everybody has 240 CPU seconds, counted over all processes, as 120 s on two cores that nobody else uses; those of plan.py
include its measurements. The folder has results.csv, the predictions and the logs; table.py reads them. fastai runs
with --fastai <python>, in an environment of its own:

    uv venv build/fastai && uv pip install --python build/fastai/bin/python fastai timm opencv-python-headless
"""

import argparse
import csv
import subprocess
import sys
from pathlib import Path

from counting import run_counted
from sets import SETS

HERE = Path(__file__).resolve().parent
TEMPLATE = HERE.parents[1]
FIELDS = ["set", "rival", "seed", "seconds", "used"]
PLANNED = 0.9  # of the seconds, for training; the rest is for planning
RIVALS = ("plan", "probe", "timm", "loop", "smp", "fastai")


def takes_part(rival: str, name: str) -> bool:
    """smp is for masks, and the others but plan.py and the loop are not."""
    masks = SETS[name]["task"] == "segmentation"
    return rival in ("plan", "loop") or (rival == "smp") == masks


def render(folder: Path, task: str) -> Path:
    """A repository of the template for a task."""
    repository = folder / "repositories" / task / "my-competition"
    if not repository.exists():
        command = [
            sys.executable,
            "-m",
            "cookiecutter",
            str(TEMPLATE),
            "--no-input",
            "--output-dir",
            str(repository.parent),
        ]
        subprocess.run([*command, f"task={task}"], check=True, stdin=subprocess.DEVNULL)
    return repository


def run_plan(world: Path, folder: Path, weights: Path, seconds: float, seed: int, out: Path, log: Path) -> float:
    """Plan and train fold 0; CPU seconds of both."""
    entry = SETS[world.name]
    repository, name = render(folder, entry["task"]), f"{world.name}_{seed}_{seconds:g}s"
    words = [f"data.root={world}", f"data.table={world}/train.csv", f"data.prepared={folder}/prepared/{world.name}"]
    words += ["data.test_table=null", "data.columns.fold=fold", "data.folds=2", "fold=0", "logger=none", f"seed={seed}"]
    words += [f"data.columns.target={entry['target']}", f"metric={entry['metric']}", f"model.weights={weights}"]
    words += [f"data.classes=[{','.join(entry['classes'])}]"] if "classes" in entry else []
    words += [f"data.ignore_index={entry['ignore']}"] if "ignore" in entry else []
    words += ["data.transform=standard"] if entry["task"] == "regression" else []
    run_counted([sys.executable, "prepare.py", *[word for word in words if word.startswith("data.")]], repository, log)
    experiment = repository / "configs/experiment" / f"{name}.yaml"
    experiment.unlink(missing_ok=True)
    script, python = HERE / "plan_in_cpu_seconds.py", sys.executable
    used = run_counted(
        [python, script, "--budget", f"{PLANNED * seconds:.0f}s", "--out", name, *words, "preflight=false"],
        repository,
        log,
    )
    used += run_counted([python, "train.py", f"experiment={name}", "data=competition", "fold=0"], repository, log)
    run_counted([python, HERE / "out_of_fold.py", world, next(repository.glob(f"runs/{name}-*")), out], repository, log)
    return used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--sets", type=Path, required=True)
    add("--weights", type=Path, required=True)
    add("--folder", type=Path, default=Path("build/arena-results"))
    add("--only", nargs="+", choices=SETS, default=[name for name in SETS if name != "houses"])
    add("--rivals", nargs="+", choices=RIVALS, default=RIVALS)
    add("--seconds", type=float, default=240.0)
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--fastai", type=Path, help="Python of the environment with fastai")
    options = parser.parse_args()
    folder, weights = options.folder.resolve(), options.weights.resolve()
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    results = folder / "results.csv"
    done = set()
    if results.exists():
        with results.open() as file:
            done = {(row["set"], row["rival"], row["seed"], row["seconds"]) for row in csv.DictReader(file)}
    for name in options.only:
        for seed in options.seeds:
            for rival in options.rivals:
                key = (name, rival, str(seed), f"{options.seconds:g}")
                if key in done or not takes_part(rival, name) or (rival == "fastai" and not options.fastai):
                    continue
                world = (options.sets / name).resolve()
                stem = "-".join(key)
                out, log = folder / "evidence" / f"{stem}.npz", folder / "logs" / f"{stem}.txt"
                log.unlink(missing_ok=True)
                if rival == "plan":
                    used = run_plan(world, folder, weights, options.seconds, seed, out, log)
                else:
                    python = options.fastai.absolute() if rival == "fastai" else sys.executable
                    words = [
                        rival,
                        world,
                        "--weights",
                        weights,
                        "--seconds",
                        options.seconds,
                        "--seed",
                        seed,
                        "--out",
                        out,
                    ]
                    used = run_counted([python, HERE / "rivals.py", *words], folder, log)
                new = not results.exists()
                with results.open("a", newline="") as file:
                    writer = csv.writer(file)
                    writer.writerows([FIELDS] * new + [[*key, f"{used:.1f}"]])
                print(f"{name}  {rival}  seed {seed}: {used:.0f} CPU seconds", flush=True)


if __name__ == "__main__":
    main()

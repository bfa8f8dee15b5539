"""Printed commands: copied to a shell, they reach the program as they were meant, also with odd names of folders."""

import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from tiny import write_data

from foldwise.config import compose_config
from foldwise.errors import Refusal
from foldwise.shell import command, override, prepare_command

ODD = [
    "a=b (1)", "it's", 'say "x"', "a,b", "[a]", "{a}", "$HOME", "${x}", "a\\b", 'end\\"', "end\\", "1", "null", "no",
       "ü", "a b", "~", "#", "runs/a=b (1)/x", "1e3", "", "true", "a:b", "*", "-1e3", "inf", ".5e1", "-a",
    "../x",
]  # fmt: skip


def values_of(line: str) -> list[str]:
    """Values of the overrides after a shell and Hydra have read the line."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    overrides = OverridesParser.create().parse_overrides(done.stdout.decode().split("\0")[:-1])
    return [OmegaConf.create({"x": each.value()})["x"] for each in overrides]


def test_values_of_overrides_survive_a_shell_and_hydra():
    assert values_of(command(*(override("data.root", value) for value in ODD))) == ODD
    assert [override("a.b", value) for value in ("runs/x-1a", 3, 0.5, True)] == [
        "a.b=runs/x-1a",
        "a.b=3",
        "a.b=0.5",
        "a.b=True",
    ]


@given(st.text("a\\\"'$={}[](), #~.1", max_size=8))
def test_any_value_survives_hydra(text):
    (parsed,) = OverridesParser.create().parse_overrides([override("key", text)])
    assert OmegaConf.create({"x": parsed.value()})["x"] == text


@pytest.mark.parametrize("value", ["/x/a=b (1)", "a{b", "[a", "it's ("])
def test_the_form_to_type_is_in_the_error(value):
    with pytest.raises(Refusal) as error:
        compose_config([f"data.root={value}"])
    line = str(error.value).rpartition("write ")[2]
    assert values_of(line.rpartition("as a text ")[2]) == [value]


def run(line: str, code: int = 0) -> str:
    """Run a printed command of ours; its output."""
    words = shlex.split(line)
    assert words[0] == "python"
    done = subprocess.run([sys.executable, *words[1:]], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def after(text: str, start: str) -> str:
    """The printed command that follows `start`."""
    return text.rpartition(start)[2].strip().splitlines()[0].partition("python ")[2]


@pytest.mark.slow
def test_each_printed_command_is_the_next_step_with_odd_names_of_folders(tmp_path: Path):
    folder = tmp_path / "it's a=b (1)"
    table = write_data(folder) / "train.csv"
    pd.read_csv(table).drop(columns=["label", "labels", "mask"]).to_csv(folder / "test.csv", index=False)
    paths = {"root": folder, "table": table, "test_table": folder / "test.csv", "prepared": folder / "prepared"}
    overrides = [override(f"data.{name}", str(path)) for name, path in paths.items()]
    overrides += ["data.folds=2", "data.workers=0", "data.image_size=32"]
    said = run(command("python", "train.py", "model=tiny", "data=competition", "fold=0", *overrides), code=2)
    said = run(f"python {after(said, 'make it with: ')}")
    small = command("model=tiny", "epochs=1", "logger=none", "batch_size=8", override("experiment_name", "x=y (2)"))
    said = run(f"python {after(said, 'Next:')} {small}")
    said = run(f"python {after(said, 'next ')} --workers 0")
    ledger = command("--ledger", folder / "ledger.csv")
    said = run(f"python {after(said, 'next ')} {command('--out', folder / 's.csv')} {ledger}")
    assert len(pd.read_csv(folder / "s.csv")) == len(pd.read_csv(table))
    line = f"python {after(said, 'then: ')}".replace("<score of the leaderboard>", "0.5")
    assert "0.5" in run(f"{line} {ledger}")


def test_the_command_that_makes_folds_repeats_the_overrides_on_data(monkeypatch: pytest.MonkeyPatch):
    kept = ["experiment=baseline", 'data.root="/x/a=b (1)"', "+data.note=1"]
    monkeypatch.setattr(sys, "argv", ["train.py", "data=mine", "fold=0", *kept, "optimizer.lr=1"])
    assert shlex.split(prepare_command("competition")) == ["python", "prepare.py", "--data", "mine", *kept]
    words = ["evaluate.py", "runs/a=b", "--data", "mine", "--set", "data.folds=3", "--by", "x=1"]
    monkeypatch.setattr(sys, "argv", words)
    assert prepare_command("competition") == "python prepare.py --data mine data.folds=3"
    monkeypatch.setattr(sys, "argv", ["predict.py", "runs/data=x"])
    assert prepare_command("competition") == "python prepare.py --data competition"

"""Write what was found into a data configuration, keeping its comments and everything else that its owner set."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from foldwise.errors import Refusal
from foldwise.settings import LIBRARY, OWNER, read_yaml

SHIPPED = "competition"  # the configuration that has a comment for every key


def path_of(name: str) -> Path:
    return OWNER / "data" / f"{name}.yaml"


def fill_in(name: str, settings: Mapping[str, Any], choices: Mapping[str, str], header: Sequence[str]) -> str:
    """The text of `configs/data/<name>.yaml` with the settings and, as its defaults, the choices of other groups.

    Args:
        settings: by name, as columns.id.
    """
    base = path_of(name) if path_of(name).is_file() else path_of(SHIPPED)
    if not base.is_file():
        raise Refusal(f"there is no {base} to fill in: bring it back with git checkout, or copy it from the template")
    text = base.read_text(encoding="utf-8")
    start = re.search(r"^name:", text, re.MULTILINE)
    if start is None:
        raise Refusal(f"{base} has no line that begins with name: and cannot be filled in: write it by hand")
    text = text[start.start() :]
    for key, value in settings.items():
        group, _, last = key.rpartition(".")
        pattern = rf"^({'  ' if group else ''}{last}:) *.*?(  +#.*)?$"
        line = f"{last}: {_flow(value)}"
        line = f"  {line}" if group else line
        found = re.search(pattern, text, re.MULTILINE)
        if found is None:
            raise Refusal(
                f"{base} has no line for {key}: add it, or delete the file and bring it back with git checkout"
            )
        text = text[: found.start()] + line + ("  " + found[2].lstrip() if found[2] else "") + text[found.end() :]
    defaults = [f"  - override /{group}@_global_.{group}: {choice}" for group, choice in choices.items()]
    lines = [
        *(f"# {line}".rstrip() for entry in header for line in entry.split("\n")),
        *(["defaults:", *defaults] if defaults else []),
    ]
    text = "\n".join([*lines, "", text])
    written = yaml.safe_load(text)
    for key, value in settings.items():
        if _value(written, key) != value:
            raise Refusal(f"{base}: {key} cannot be replaced in place: write the lists of the file in one line each")
    return text


def conflicts(name: str, settings: Mapping[str, Any], choices: Mapping[str, str]) -> list[str]:
    """Lines of an existing configuration whose value is neither the shipped nor the new one."""
    if not path_of(name).is_file():
        return []
    existing = read_yaml(path_of(name))
    usual = shipped(SHIPPED)
    changed = [
        f"{key}: {_flow(_value(existing, key))}, which would become {_flow(value)}"
        for key, value in settings.items()
        if _value(existing, key) not in (value, usual.get(key, value))
    ]
    defaults = [f"override /{group}@_global_.{group}" for group in choices]
    entries = [entry if isinstance(entry, dict) else {entry: None} for entry in existing.get("defaults") or []]
    known = {key: choice for entry in entries for key, choice in entry.items()}
    if known and known != dict(zip(defaults, choices.values(), strict=True)):
        changed.append(f"defaults: {_flow(known)}, which would become {_flow(dict(choices))}")
    return changed


def shipped(name: str) -> dict[str, Any]:
    """The values of the settings before anything was found, by name."""
    values = read_yaml(LIBRARY / "data" / "sample.yaml")
    columns = {f"columns.{key}": value for key, value in values["columns"].items()}
    keys = ("classes", "label_separator", "masks", "mask_encoding", "mask_values", "mode", "exif")
    own = f"data/{name}"
    paths = {"name": name, "root": own, "table": f"{own}/train.csv", "test_table": f"{own}/test.csv"}
    return paths | {"prepared": f"{own}/prepared"} | columns | {key: values[key] for key in keys}


def differs(path: Path, frame: pd.DataFrame) -> bool:
    """Whether a table exists with other rows."""
    return path.is_file() and path.read_text(encoding="utf-8") != frame.to_csv(index=False)


def _value(config: Mapping[str, Any], key: str) -> Any:
    group, _, last = key.rpartition(".")
    return (config.get(group) or {} if group else config).get(last)


def _flow(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=1 << 30, allow_unicode=True, sort_keys=False)
    return text.removesuffix("...\n").strip()

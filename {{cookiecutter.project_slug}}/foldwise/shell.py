"""Commands to copy: words quoted for the shell, and values for Hydra."""

import re
import shlex
import sys

import yaml

PLAIN = re.compile(r"(?!(inf|nan)\Z)[a-z_/][\w./@%+-]*", re.ASCII | re.IGNORECASE)  # not a number
OF_DATA = ("data", "experiment", "outputs", "samples", "seed", "task")  # groups and settings that prepare.py uses


def command(*words: object) -> str:
    """Join the words of a command line; each is quoted if the shell needs it."""
    return shlex.join(map(str, words))


def override(name: str, value: object) -> str:
    """Write `name=value` for Hydra, which takes some characters only in quotes; `command` quotes it for the shell."""
    text = str(value)
    if not isinstance(value, str) or (PLAIN.fullmatch(text) and yaml.safe_load(text) == text):
        return f"{name}={text}"
    escaped = re.sub(r'(\\*)("|\Z)', lambda found: 2 * found[1] + (found[2] and '\\"'), text)
    return f'{name}="{escaped.replace("${", chr(92) + "${")}"'


def prepare_command(name: str) -> str:
    """The prepare.py command for the data of this process's command line, whose overrides it repeats.

    Args:
        name: of the data configuration if the command line does not name it.
    """
    words = [word for word in sys.argv[1:] if re.match(r"[+~]{0,2}[\w.@/]+=", word)]
    keys = [word.partition("=")[0].lstrip("+~") for word in words]
    chosen = [word.partition("=")[2] for word, key in zip(words, keys, strict=True) if key == "data"]
    if "--data" in sys.argv[:-1]:
        chosen.append(sys.argv[sys.argv.index("--data") + 1])
    kept = [word for word, key in zip(words, keys, strict=True) if key != "data" and key.split(".")[0] in OF_DATA]
    return command("python", "prepare.py", "--data", *(chosen or [name])[-1:], *kept)

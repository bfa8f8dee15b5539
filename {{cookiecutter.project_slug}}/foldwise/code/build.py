"""Resolves a `_target_` of a configuration or model.json, and builds the object that it describes."""

import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any

from foldwise.code.source import PACKAGE
from foldwise.errors import Refusal, did_you_mean

NAME = r"[^\W\d]\w*"
TARGET = re.compile(rf"{NAME}(\.{NAME})*[.:]{NAME}(\.{NAME})*")
STRICT = re.compile(rf"(foldwise|{PACKAGE})(\.{NAME})+:{NAME}")


def resolve(target: str, alias: str | None = None, setting: str = "_target_") -> Any:
    """The object that a target names.

    Args:
        target: as package.module.Name or package.module:Name.
        alias: the package to use for `solution`, from `open_code`.
        setting: where the target is written, for messages.

    Raises:
        Refusal: not found. Errors that a module raises at import are passed on.
    """
    where = f"{setting}: {target}"
    if not isinstance(target, str) or not TARGET.fullmatch(target):
        raise Refusal(f"{setting}: {target!r} is not of the form package.module.Name")
    module_name, colon, name = target.partition(":")
    first, *rest = module_name.split(".")
    root = alias if first == PACKAGE else first
    if root is None:
        raise Refusal(f"{where}: it needs code of solution/, and there is none here")
    found: Any = _import(root, where)
    for number, part in enumerate([*rest, *(name.split(".") if colon else [])]):
        must_be_module = colon and number < len(rest)
        if hasattr(found, part) and not must_be_module:
            found = getattr(found, part)
        elif isinstance(found, ModuleType) and (not colon or must_be_module):
            found = _import(f"{found.__name__}.{part}", where, found)
        else:
            raise Refusal(f"{where}: {_describe_missing(part, found)}")
    return found


def resolve_strict(target: str, alias: str | None, base: type, setting: str = "_target_") -> type:
    """Resolve a target from an untrusted file: only subclasses of `base` in foldwise or the run's own code.

    Args:
        target: as foldwise.module:Class or solution.module:Class; a Refusal for anything else.
    """
    if not isinstance(target, str) or not STRICT.fullmatch(target):
        raise Refusal(f"{setting}: {target!r} is not of the form foldwise.module:Class or {PACKAGE}.module:Class")
    found = resolve(target, alias, setting)
    if (
        not isinstance(found, type)
        or not issubclass(found, base)
        or found.__module__.split(".")[0] not in ("foldwise", alias)
    ):
        raise Refusal(f"{setting}: {target} is not a {base.__name__} of foldwise or {PACKAGE}")
    return found


def make(config: Any, alias: str | None = None, setting: str = "", **arguments: Any) -> Any:
    """Build what a configuration describes: call each `_target_` with the other keys of its mapping.

    Args:
        config: plain values, possibly nested.
        alias, setting: as for `resolve`; `setting` is that of `config` itself.
        arguments: further arguments for the outermost target.

    Raises:
        Refusal: unknown target or wrong arguments. A TypeError or ValueError of a library's class
            is one of its arguments; errors of your own code are passed on.
    """
    if isinstance(config, Mapping):
        path = f"{setting}." if setting else ""
        values = {key: make(value, alias, f"{path}{key}") for key, value in config.items() if key != "_target_"}
        if "_target_" not in config:
            return values | arguments
        return _call(config["_target_"], alias, f"{path}_target_", values | arguments)
    if isinstance(config, Sequence) and not isinstance(config, str | bytes):
        return [make(value, alias, f"{setting}[{number}]") for number, value in enumerate(config)]
    return config


def _call(target: str, alias: str | None, setting: str, arguments: dict[str, Any]) -> Any:
    function = resolve(target, alias, setting)
    if not callable(function):
        raise Refusal(f"{setting}: {target} is neither a class nor a function")
    if problems := _argument_problems(function, arguments):
        raise Refusal("\n".join(f"{setting}: {target} {problem}" for problem in problems))
    try:
        return function(**arguments)
    except Refusal:
        raise
    except Exception as error:
        owned = getattr(function, "__module__", "").split(".")[0] in (PACKAGE, alias)
        if isinstance(error, TypeError | ValueError) and not owned:  # of a library, from the settings
            raise Refusal(f"{setting}: {target} cannot be built: {error}") from error
        error.add_note(f"while {target} was built ({setting})")
        raise


def _argument_problems(function: Callable[..., Any], arguments: Mapping[str, Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # not written in Python
        return []
    known = [item for item in parameters if item.kind in (item.POSITIONAL_OR_KEYWORD, item.KEYWORD_ONLY)]
    names = [item.name for item in known]
    takes = f"it takes {', '.join(names)}" if names else "it takes none"
    takes_any = any(item.kind is item.VAR_KEYWORD for item in parameters)
    unknown = [] if takes_any else [name for name in arguments if name not in names]
    lacking = [item.name for item in known if item.default is item.empty and item.name not in arguments]
    problems = [f"has no argument {name}{did_you_mean(name, names)} ({takes})" for name in unknown]
    return problems + ([f"needs {', '.join(lacking)}"] if lacking else [])


def _import(name: str, where: str, package: ModuleType | None = None) -> ModuleType:
    """Import a module; `package` is its parent, for the message."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:  # the module exists, but something that it imports does not
            raise
        if package is not None:
            raise Refusal(f"{where}: {_describe_missing(name.rpartition('.')[2], package)}") from None
        raise Refusal(f"{where}: there is no package {name}; is it installed?") from None


def _describe_missing(name: str, found: Any) -> str:
    known = [other for other in dir(found) if not other.startswith("__")]
    what = re.sub(rf"^{PACKAGE}_[0-9a-f]{{8}}", PACKAGE, getattr(found, "__name__", repr(found)))
    return f"there is no {name} in {what}{did_you_mean(name, known)}"

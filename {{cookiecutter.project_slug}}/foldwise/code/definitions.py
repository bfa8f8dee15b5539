"""The definitions in `solution/` that a training reaches, and a hash of each for the identity of the run.

A definition is a top-level statement. Starting at the targets, every name that it uses leads to the statements that
bind that name, across imports between files. In each file that is loaded on the way, these also count:

    statements that do more than bind names, such as calls and loops
    statements that call something when the file loads (`X = f()`, decorators, base classes with hooks), if they may
    change a mutable object that counts

Comments, docstrings, annotations of functions, blocks under TYPE_CHECKING or `__main__`, the order of independent
definitions, and everything else in the files do not count.
"""

import ast
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

from foldwise.code.effects import has_hooks, is_fixed, is_mutable
from foldwise.code.imports import DYNAMIC, inside, module_name, to_file
from foldwise.code.source import PACKAGE, Code
from foldwise.code.statements import Statement, read_statements
from foldwise.code.syntax import hash_text, hash_tree


@dataclass
class _Found:
    """What following references has found.

    Attributes:
        references: those already followed.
        names: dotted names in modules of solution/, bound or not.
        outside: references to other packages.
    """

    references: set[str] = field(default_factory=set)
    statements: set[Statement] = field(default_factory=set)
    names: set[str] = field(default_factory=set)
    outside: set[str] = field(default_factory=set)


class Definitions:
    """The statements that targets reach.

    Attributes:
        modules: statements by dotted module name; empty for a package without `__init__.py`.
        loaded: modules that load when the targets are used.
        acting: modules that do more than bind names when they load.
    """

    def __init__(self, code: Code, targets: Iterable[str]) -> None:
        """Follow targets such as solution.module.Module or solution.networks:Network; ignore other packages."""
        self.paths = {module_name(path): path for path in code.files}
        self.modules: dict[str, list[Statement]] = {}
        for name, path in self.paths.items():
            for package in _prefixes(name):
                self.modules.setdefault(package, [])
            file = to_file(code.files[path], Path(path), name)
            self.modules[name] = read_statements(file.tree, name, file.package)
        self.found = _Found()
        self.loaded: set[str] = set()
        self.effects: dict[Statement, set[str]] = {}
        dotted = {target.replace(":", ".") for target in targets}
        for target in sorted(name for name in dotted if inside(name, PACKAGE)):
            self.load(target, self.loaded)
            self.follow({target}, self.found)
        while new := self._what_runs():
            for statement in new:
                self.found.statements.add(statement)
                self.found.names |= statement.names
                self.follow(self._references(statement), self.found)
        self.acting = {item.module for item in self.found.statements if item.active or self._effects(item)}

    def hashes(self) -> dict[str, str]:
        """Hashes by file and name, such as solution/module.py:Module.

        A file's own entry, such as solution/module.py, covers the imports in use, statements that bind no name, and
        the order of whatever depends on order.
        """
        return {name: value for module in sorted(self.loaded) for name, value in self._hash_module(module).items()}

    def foldwise(self) -> list[str]:
        """Dotted names of foldwise modules, or of something in them, that the definitions use."""
        return sorted(reference for reference in self.found.outside if inside(reference, "foldwise"))

    def load(self, name: str, loaded: set[str]) -> set[str]:
        """Add the module of a name, with its packages and everything that they import when they load."""
        for module in _prefixes(name):
            if module in self.modules and module not in loaded:
                loaded.add(module)
                for statement in self.modules[module]:
                    for item in statement.loads:
                        if item.eager:
                            self.load(item.path, loaded)
        return loaded

    def follow(self, references: Iterable[str], found: _Found) -> None:
        """Add what references lead to, recursively."""
        waiting = set(references)
        while waiting:
            for statement in self.resolve(waiting.pop(), found):
                if statement not in found.statements:
                    found.statements.add(statement)
                    waiting |= self._references(statement)

    def _references(self, statement: Statement) -> set[str]:
        """References of a statement; a dynamic one can reach every module."""
        return statement.reads | set(self.modules) if statement.dynamic else statement.reads

    def resolve(self, reference: str, found: _Found) -> Iterator[Statement]:
        """The statements that bind what a reference names, following imports."""
        if reference in found.references:
            return
        found.references.add(reference)
        within = [module for module in _prefixes(reference) if module in self.modules]
        if not within:
            found.outside.add(reference)
            if reference == "importlib" or any(inside(reference, name) for name in DYNAMIC - {"importlib"}):
                for module in self.modules:
                    yield from self.resolve(module, found)
        elif within[-1] == reference or reference == f"{within[-1]}.__dict__":  # the module object: anything in it
            for module, statements in self.modules.items():
                for statement in statements if inside(module, within[-1]) else []:
                    yield from self._resolve_import(statement, [], found)
        for module in within:  # packages too: a name in __init__.py can hide a module
            rest = reference.removeprefix(module)[1:].split(".")
            if module == reference:
                break
            found.names.add(f"{module}.{rest[0]}")
            binding = [item for item in self.modules[module] if rest[0] in item.binds or item.star]
            for statement in binding or [item for item in self.modules[module] if "__getattr__" in item.binds]:
                yield from self._resolve_import(statement, rest, found)

    def _resolve_import(self, statement: Statement, rest: list[str], found: _Found) -> Iterator[Statement]:
        """The statement itself, or what an import leads to.

        Args:
            rest: the name to look up in its module, then attributes; empty for everything.
        """
        if statement.imported is None:
            yield statement
            return
        found.statements.add(statement)
        taken = rest if statement.star else rest[1:]
        yield from self.resolve(".".join([statement.imported, *taken]), found)
        if statement.star:
            yield from self.resolve(f"{statement.imported}.__all__", found)

    def _what_runs(self) -> list[Statement]:
        """Statements not reached yet that count because of what they do when their modules load."""
        for statement in self.found.statements:
            for name in (statement.module, *(item.path for item in statement.loads)):
                self.load(name, self.loaded)
        return [
            statement
            for module in self.loaded
            for statement in self.modules[module]
            if statement not in self.found.statements
            and (statement.active or not self.found.names.isdisjoint(self._effects(statement)))
        ]

    def _effects(self, statement: Statement) -> set[str]:
        """Names whose objects a statement may change when its module loads."""
        if statement not in self.effects:
            found = _Found()
            self.follow(statement.runs, found)
            own = {item for item in found.statements if item.imported is None}
            hooks = isinstance(statement.node, ast.ClassDef) and any(has_hooks(item.node) for item in own)
            if hooks or (own and getattr(statement.node, "decorator_list", [])):  # may call anything in it
                self.follow(statement.reads, found)
                own = {item for item in found.statements if item.imported is None}
            own -= {statement}
            anything = any(item.writes or item.dynamic for item in (statement, *own))
            names = {name for item in own if anything or is_mutable(item.node) for name in item.names}
            names |= found.names if anything else set()
            self.effects[statement] = names if hooks or statement.calls else set()
        return self.effects[statement]

    def _hash_module(self, module: str) -> dict[str, str]:
        counts = Counter(name for statement in self.modules[module] for name in statement.binds)
        own: dict[str, list[str]] = {}
        imports, order = set[str](), list[str]()
        for statement in self.modules[module]:
            if self._orders_imports(statement):
                order += [item.path for item in statement.loads]
            if statement not in self.found.statements:
                continue
            names = ",".join(sorted(statement.binds))
            used = statement.binds | {name.removeprefix(f"{module}.").split(".")[0] for name in statement.runs}
            once = all(counts[name] <= 1 for name in used)
            if statement.imported is not None:
                line = f"{names} = {statement.imported}"
                imports |= {line} if once and not statement.star else set()
                order += [] if once and not statement.star else [line]
            elif statement.active:
                order.append(hash_tree(statement.node))
            elif statement.binds:
                own.setdefault(names, []).append(hash_tree(statement.node))
                order += [] if once and is_fixed(statement.node) else [names]
        path = self.paths.get(module, "")
        hashes = {f"{path}:{names}": hash_text(" ".join(parts)) for names, parts in own.items()}
        return hashes | ({path: hash_text(repr((sorted(imports), order)))} if imports or order else {})

    def _orders_imports(self, statement: Statement) -> bool:
        """True if an import loads one of several acting modules, so that import order matters."""
        loading = {name for item in statement.loads if item.eager for name in self.load(item.path, set())}
        return len(self.acting) > 1 and bool(loading & self.acting - {statement.module})


def _prefixes(name: str) -> list[str]:
    """Return a, a.b and a.b.c for a.b.c."""
    return list(accumulate(name.split("."), "{}.{}".format))

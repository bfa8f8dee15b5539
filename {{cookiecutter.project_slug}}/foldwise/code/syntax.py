"""Syntax of a file: tree, hash (equal on all Python versions), imports and bound names."""

import ast
import hashlib
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.util import resolve_name
from typing import NamedTuple

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
CAUGHT = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


class Import(NamedTuple):
    """`import a.b`, or one name of `from a import b`.

    Attributes:
        module: a.b, or a of `from a`; "" for a relative import beyond the top-level package.
        name: b of `from a import b`, possibly a module; "*" for everything; "" for a plain import.
        bound, target: the bound name ("" for "*") and its object: `import a.b` binds a, `import a.b as c` binds a.b.
        eager: runs when the file loads, not only when a function is called.
        optional: within a `try` that catches ImportError.
    """

    module: str
    name: str
    bound: str
    target: str
    line: int
    eager: bool = True
    optional: bool = False

    @property
    def path(self) -> str:
        """The dotted name of what is imported: a.b, or a for `from a import *`."""
        return f"{self.module}.{self.name}" if self.name and self.name != "*" else self.module


@cache
def parse(source: bytes) -> ast.Module:
    """Parse a file; raise SyntaxError also for bytes that are not text. The tree is cached: copy it before changes."""
    try:
        return ast.parse(source)
    except ValueError as error:  # null bytes, up to Python 3.11
        raise SyntaxError(str(error)) from error


@cache
def hash_source(source: bytes) -> str:
    """Hash a file's syntax tree without docstrings."""
    return hash_tree(parse(source))


def hash_tree(node: ast.AST) -> str:
    """Hash a syntax tree without docstrings."""
    return hash_text(" ".join(tokens(node)))


def hash_text(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def tokens(node: ast.AST) -> Iterator[str]:
    """Yield a syntax tree without docstrings as text, equal on all Python versions (unlike ast.dump)."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | Function):
            value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield f"{name}("
                yield from tokens(item)
                yield ")"
            elif item is not None:  # newer Python versions have more fields
                yield f"{name}={item!r}"


def find_imports(node: ast.AST, package: str = "", eager: bool = True, optional: bool = False) -> Iterator[Import]:
    """Yield the imports in a syntax tree, except those under TYPE_CHECKING.

    Args:
        package: dotted base of relative imports.
        eager, optional: inherited from around `node`, see `Import`.
    """
    match node:
        case ast.Import():
            for alias in node.names:
                target = alias.name if alias.asname else alias.name.split(".")[0]
                yield Import(alias.name, "", alias.asname or target, target, node.lineno, eager, optional)
        case ast.ImportFrom():
            module = _absolute(node, package)
            for alias in node.names:
                star = alias.name == "*"
                bound, target = ("", module) if star else (alias.asname or alias.name, f"{module}.{alias.name}")
                yield Import(module, alias.name, bound, target, node.lineno, eager, optional)
        case _:
            skipped = "body" if isinstance(node, ast.If) and is_type_checking(node.test) else ""
            eager = eager and not isinstance(node, Function | ast.Lambda)
            caught = isinstance(node, ast.Try | ast.TryStar) and any(map(_catches_imports, node.handlers))
            for field, value in ast.iter_fields(node):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST) and field != skipped:
                        yield from find_imports(child, package, eager, optional or (caught and field == "body"))


def parameters(node: ast.arguments) -> list[ast.arg]:
    """The parameters of a function or lambda."""
    plain = [*node.posonlyargs, *node.args, *node.kwonlyargs]
    return plain + [argument for argument in (node.vararg, node.kwarg) if argument is not None]


def is_type_checking(test: ast.expr) -> bool:
    """True if a test is TYPE_CHECKING."""
    return "TYPE_CHECKING" in (getattr(test, "id", ""), getattr(test, "attr", ""))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    try:
        return resolve_name("." * node.level + (node.module or ""), package)
    except ImportError:  # beyond the top-level package
        return ""


def _catches_imports(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or getattr(kind, "id", "") in CAUGHT for kind in kinds)


class Bindings(ast.NodeVisitor):
    """The names that statements bind in their scope.

    Attributes:
        names: the value is the import target if a single import binds the name, else None.
        globals, outer: names declared `global`; names declared `global` or `nonlocal`.
    """

    def __init__(self, nodes: Iterable[ast.AST], package: str = "") -> None:
        self.names: dict[str, str | None] = {}
        self.globals, self.outer = set[str](), set[str]()
        self.package = package
        for node in nodes:
            self.visit(node)

    def bind(self, name: str | None, target: str | None = None) -> None:
        """Record a name; its target is unknown if it is bound twice."""
        if name:
            self.names[name] = None if name in self.names else target

    def visit(self, node: ast.AST) -> None:
        """Record what a node binds, and visit its children of the same scope."""
        children: Iterable[ast.AST | None] = ast.iter_child_nodes(node)
        match node:
            case ast.Name():
                self.bind(None if isinstance(node.ctx, ast.Load) else node.id)
            case ast.Import() | ast.ImportFrom():
                for item in find_imports(node, self.package):
                    self.bind(item.bound, item.target)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.bind(node.name)
                children = [*node.decorator_list, *node.args.defaults, *node.args.kw_defaults]
            case ast.Lambda():
                children = [*node.args.defaults, *node.args.kw_defaults]
            case ast.ClassDef():
                self.bind(node.name)
                children = [*node.decorator_list, *node.bases, *node.keywords]
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                children = [inner.target for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
            case ast.Global() | ast.Nonlocal():
                self.outer.update(node.names)
                self.globals.update(node.names if isinstance(node, ast.Global) else [])
            case ast.ExceptHandler() | ast.MatchAs() | ast.MatchStar():
                self.bind(node.name)
            case ast.MatchMapping():
                self.bind(node.rest)
        for child in children:
            if child is not None:
                self.visit(child)

"""The top-level statements of a module: what each binds and uses by Python's scoping rules."""

import ast
import copy
import re
from collections.abc import Collection, Iterable, Iterator, Set
from contextlib import contextmanager
from typing import NamedTuple

from foldwise.code.effects import Plain, is_active
from foldwise.code.syntax import Bindings, Comprehension, Function, Import, find_imports, parameters

# Functions that do not change their arguments.
PURE = {
    "abs", "all", "any", "bool", "bytes", "dict", "enumerate", "float", "frozenset", "int", "isinstance",
    "issubclass", "len", "list", "max", "min", "range", "repr", "reversed", "round", "set", "slice", "sorted", "str",
    "sum", "tuple", "zip",
}  # fmt: skip
WITH_STRINGS = {"globals", "exec", "eval", "__import__"}  # look up names by strings
TARGET = re.compile(r"(solution|foldwise)(\.\w+)+(:\w+)?")


class _Scope(NamedTuple):
    """The scope of a function, lambda, comprehension or class body.

    Attributes:
        names: what it binds; the value is the import target if a single import binds the name, else None.
        globals: names declared `global` in it.
        is_class: nested functions do not see its names.
    """

    names: dict[str, str | None]
    globals: Collection[str] = ()
    is_class: bool = False


class Statement(ast.NodeVisitor):
    """A top-level statement, or one name of an import. References are dotted: solution.module.NAME.attribute.

    Attributes:
        module: dotted name of its module.
        node: simplified by `Plain`.
        loads: imports in it.
        binds: names that it binds in the module.
        imported: what an import binds its name to; None for other statements.
        star: `from imported import *`.
        reads, runs: references in the whole statement, and in the part that runs when the module loads.
        writes: assigns to globals, items of globals, or attributes of anything but `self`.
        calls: when the module loads, calls something that may change what it reaches.
        active: see `is_active`.
        dynamic: can reach anything by strings.
    """

    def __init__(
        self, module: str, package: str, node: ast.stmt, own_names: Set[str], item: Import | None = None
    ) -> None:
        self.module, self.package, self.node, self.own_names = module, package, node, own_names
        self.loads = [item] if item else list(find_imports(node, package))
        self.binds = {item.bound} - {""} if item else set(Bindings([node]).names)
        self.imported = item.target if item else None
        self.star = item is not None and item.name == "*"
        self.reads, self.runs = set[str](), set[str]()
        self.writes, self.calls, self.active, self.dynamic = False, False, is_active(node), False
        self._scopes: list[_Scope] = []
        self._now = True  # whether what is visited runs as the module loads
        if not item:
            self.visit(node)

    @property
    def names(self) -> set[str]:
        """The bound names, dotted."""
        return {f"{self.module}.{name}" for name in self.binds}

    def visit_all(self, *nodes: ast.AST | Iterable[ast.AST | None] | None) -> None:
        """Visit nodes and lists of them."""
        for node in nodes:
            if isinstance(node, ast.AST):
                self.visit(node)
            elif node is not None:
                self.visit_all(*node)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load):
            self._read(self._resolve(node.id))
            self.dynamic |= node.id in WITH_STRINGS - self.own_names

    def visit_Attribute(self, node: ast.Attribute) -> None:
        root, attributes = _split(node)
        self.dynamic |= "__subclasses__" in attributes
        if not isinstance(node.ctx, ast.Load):
            self.writes |= not self._is_self(_root(node)) or "__class__" in attributes
        if isinstance(root, ast.Name):
            self._read(self._resolve(root.id, *attributes))
        else:
            self.visit(root)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        root = _root(node)
        if isinstance(root, ast.Name) and not isinstance(node.ctx, ast.Load):
            self.writes |= self._resolve(root.id) is not None
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        if isinstance(node.target, ast.Name):
            self._read(self._resolve(node.target.id))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and TARGET.fullmatch(node.value):  # as {"_target_": "solution.x.Y"}
            self._read(node.value.replace(":", "."))

    def visit_Call(self, node: ast.Call) -> None:
        name = node.func.id if isinstance(node.func, ast.Name) and node.func.id not in self.own_names else ""
        if name not in PURE or node.keywords:  # as sorted(x, key=f)
            self.calls |= self._now
        if name in ("setattr", "delattr"):
            self.writes |= not (node.args and self._is_self(node.args[0]))
        self.dynamic |= name in ("vars", "dir", "locals") and not node.args
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import | ast.ImportFrom) -> None:
        for item in find_imports(node, self.package):
            scope = self._scopes[-1] if self._scopes else _Scope({})
            if scope.is_class or scope.names.get(item.bound) is None:  # uses of the name cannot be tracked
                self._read(item.path)

    visit_ImportFrom = visit_Import  # noqa: N815

    def visit_FunctionDef(self, node: Function) -> None:
        self.visit_all(node.decorator_list, node.args.defaults, node.args.kw_defaults)
        self.calls |= self._now and bool(node.decorator_list)
        arguments = parameters(node.args)
        self.visit_all((item.annotation for item in arguments), node.returns, getattr(node, "type_params", []))
        bound = Bindings(node.body, self.package)
        names = {name: target for name, target in bound.names.items() if name not in bound.outer}
        names |= dict.fromkeys([*(item.arg for item in arguments), *_type_parameters(node)])
        written = {f"{self.module}.{name}" for name in bound.globals & bound.names.keys()}
        self.reads |= written
        self.writes |= bool(written)
        with self._inside(_Scope(names, bound.globals), now=False):
            self.visit_all(node.body)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.visit_all(node.args.defaults, node.args.kw_defaults)
        arguments = [item.arg for item in parameters(node.args)]
        with self._inside(_Scope(dict.fromkeys([*arguments, *Bindings([node.body]).names]))):
            self.visit(node.body)  # as if called here

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.visit_all(node.decorator_list, node.bases, node.keywords, getattr(node, "type_params", []))
        self.calls |= self._now and bool(node.decorator_list)
        scope = _Scope(dict.fromkeys(_type_parameters(node)), Bindings(node.body).globals, is_class=True)
        self.active |= bool(scope.globals)
        with self._inside(scope):
            for item in node.body:
                self.visit(item)
                sure = isinstance(item, ast.Assign | ast.ClassDef | Function)  # other statements may not bind
                if sure or (isinstance(item, ast.AnnAssign) and item.value):
                    scope.names.update(dict.fromkeys(Bindings([item]).names))

    def visit_ListComp(self, node: Comprehension) -> None:
        first = node.generators[0]
        self.visit(first.iter)
        targets = Bindings(generator.target for generator in node.generators)
        with self._inside(_Scope(dict.fromkeys(targets.names))):
            for generator in node.generators:
                self.visit_all(generator.target, generator.ifs, generator.iter if generator is not first else None)
            self.visit_all([node.key, node.value] if isinstance(node, ast.DictComp) else node.elt)

    visit_SetComp = visit_DictComp = visit_GeneratorExp = visit_ListComp  # noqa: N815

    def _resolve(self, name: str, *attributes: str) -> str | None:
        """The reference of a name with attributes; None for a local variable."""
        for depth, scope in enumerate(reversed(self._scopes)):
            if name in scope.globals:
                break
            if name in scope.names and not (scope.is_class and depth):
                target = scope.names[name]
                return target and ".".join([target, *attributes])
        return ".".join([self.module, name, *attributes])

    def _read(self, reference: str | None) -> None:
        if reference:
            self.reads.add(reference)
            self.runs |= {reference} if self._now else set()

    def _is_self(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id == "self" and self._resolve("self") is None

    @contextmanager
    def _inside(self, scope: _Scope, now: bool = True) -> Iterator[None]:
        around = self._now
        self._now = around and now
        self._scopes.append(scope)
        yield
        self._scopes.pop()
        self._now = around


def read_statements(tree: ast.Module, module: str, package: str) -> list[Statement]:
    """The statements of a module in order; relative imports start at `package`."""
    plain = Plain().visit(copy.deepcopy(tree))
    names = Bindings(plain.body).names.keys()
    statements = []
    for node in plain.body:
        is_import = isinstance(node, ast.Import | ast.ImportFrom)
        items = find_imports(node, package) if is_import else [None]
        statements += [Statement(module, package, node, names, item) for item in items]
    return statements


def _root(node: ast.expr) -> ast.expr:
    """The base of a chain of attributes and subscripts."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node


def _split(node: ast.expr) -> tuple[ast.expr, list[str]]:
    """The base of a chain of attributes, and their names."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.insert(0, node.attr)
        node = node.value
    return node, names


def _type_parameters(node: ast.AST) -> list[str]:
    """T of `def f[T](x)`, since Python 3.12."""
    return [item.name for item in getattr(node, "type_params", [])]

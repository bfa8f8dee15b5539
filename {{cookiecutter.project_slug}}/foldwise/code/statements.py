"""What statements are by their syntax alone: the names they bind, and what they do when a module loads."""

import ast
from collections.abc import Iterable
from typing import Any

from foldwise.code.imports import find_imports, is_type_checking

Function = ast.FunctionDef | ast.AsyncFunctionDef
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
# Decorators that wrap a function and look at nothing but its behaviour.
PLAIN = {
    "staticmethod", "classmethod", "property", "cached_property", "setter", "abstractmethod", "override", "final",
    "no_grad", "inference_mode", "wraps", "cache", "lru_cache",
}  # fmt: skip


class Bindings(ast.NodeVisitor):
    """The names that statements bind in their own scope.

    Attributes:
        names: with what a name stands for where a single import binds it, else None.
        outer: those that are declared `global` or `nonlocal`.
        globals: those declared `global`.
    """

    def __init__(self, nodes: Iterable[ast.AST], package: str = "") -> None:
        self.names: dict[str, str | None] = {}
        self.outer: set[str] = set()
        self.globals: set[str] = set()
        self.package = package
        for node in nodes:
            self.visit(node)

    def bind(self, name: str | None, target: str | None = None) -> None:
        """Note a name; bound twice, it stands for nothing certain."""
        if name:
            self.names[name] = None if name in self.names else target

    def visit(self, node: ast.AST) -> None:
        """Note what a node binds and go on within it, as far as it is of the same scope."""
        match node:
            case ast.Name():
                self.bind(None if isinstance(node.ctx, ast.Load) else node.id)
            case ast.Import() | ast.ImportFrom():
                for item in find_imports(node, self.package):
                    self.bind(item.bound, item.target)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.bind(node.name)
                self._visit_all([*node.decorator_list, *node.args.defaults, *node.args.kw_defaults])
            case ast.Lambda():
                self._visit_all([*node.args.defaults, *node.args.kw_defaults])
            case ast.ClassDef():
                self.bind(node.name)
                self._visit_all([*node.decorator_list, *node.bases, *node.keywords])
            case ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
                named = [inner for inner in ast.walk(node) if isinstance(inner, ast.NamedExpr)]
                self._visit_all(
                    [inner.target for inner in named]
                )  # its own variables are not bound here, those of := are
            case ast.Global() | ast.Nonlocal():
                self.outer |= set(node.names)
                self.globals |= set(node.names) if isinstance(node, ast.Global) else set()
            case _:
                if isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
                    self.bind(node.name)
                elif isinstance(node, ast.MatchMapping):
                    self.bind(node.rest)
                self.generic_visit(node)

    def _visit_all(self, nodes: Iterable[ast.AST | None]) -> None:
        for node in nodes:
            if node is not None:
                self.visit(node)


class Plain(ast.NodeTransformer):
    """Leaves out what changes no behaviour: annotations of functions and variables, blocks that an import never runs.

    Annotations of a class's own attributes stay, since dataclasses read them, and those of decorated functions.
    """

    def __init__(self) -> None:
        self.in_class = False

    def visit(self, node: ast.AST) -> Any:
        """The node, what takes its place, or None."""
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                if all(_last_name(decorator) in PLAIN for decorator in node.decorator_list):
                    node.returns = None
                    for argument in parameters(node.args):
                        argument.annotation = None
                return self._visit_scope(node, False)
            case ast.ClassDef():
                return self._visit_scope(node, True)
            case ast.AnnAssign() if not self.in_class:
                self.generic_visit(node)
                return node.value and ast.copy_location(ast.Assign([node.target], node.value), node)
            case ast.If():
                self.generic_visit(node)
                return node.orelse if is_type_checking(node.test) or _is_main(node.test) else node
        return self.generic_visit(node)

    def _visit_scope(self, node: ast.AST, in_class: bool) -> Any:
        around, self.in_class = self.in_class, in_class
        self.generic_visit(node)
        self.in_class = around
        return node


def parameters(node: ast.arguments) -> list[ast.arg]:
    """The parameters of a function or lambda."""
    plain = [*node.posonlyargs, *node.args, *node.kwonlyargs]
    return plain + [argument for argument in (node.vararg, node.kwarg) if argument is not None]


def is_active(node: ast.stmt) -> bool:
    """Whether a statement does more than to bind names and to call what it needs for their values."""
    match node:
        case ast.Expr():
            return not isinstance(node.value, ast.Constant)
        case ast.Assign():
            return any(_is_active_target(target) for target in node.targets)
        case ast.AnnAssign():
            return _is_active_target(node.target)
        case ast.ClassDef() | ast.If() | ast.Try() | ast.TryStar() | ast.Match():
            return any(isinstance(inner, ast.stmt) and is_active(inner) for inner in _blocks(node))
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Import() | ast.ImportFrom() | ast.Pass():
            return False
    return type(node).__name__ != "TypeAlias"  # of Python 3.12


def is_immutable(value: ast.expr | None) -> bool:
    """Whether a value is made of numbers, strings, None and tuples of them alone."""
    match value:
        case None | ast.Constant():
            return True
        case ast.Tuple():
            return all(map(is_immutable, value.elts))
        case ast.UnaryOp():
            return is_immutable(value.operand)
        case ast.BinOp():
            return is_immutable(value.left) and is_immutable(value.right)
    return False


def is_mutable(node: ast.stmt) -> bool:
    """Whether what a statement binds has a state that code can change without binding the name again."""
    match node:
        case ast.Assign() | ast.AnnAssign():
            return not is_immutable(node.value)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return not all(map(is_immutable, [*node.args.defaults, *node.args.kw_defaults]))
        case ast.ClassDef():
            values = [inner for inner in node.body if not isinstance(inner, ast.ClassDef | Function)]
            return has_hooks(node) or any(map(is_mutable, values))
        case ast.If() | ast.Try() | ast.TryStar() | ast.Match():
            return any(isinstance(inner, ast.stmt) and is_mutable(inner) for inner in _blocks(node))
        case ast.Import() | ast.ImportFrom() | ast.Pass():
            return False
        case ast.Expr():
            return not isinstance(node.value, ast.Constant)
    return True


def is_fixed(node: ast.stmt) -> bool:
    """Whether a statement binds the same wherever it stands in its module."""
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return all(_last_name(decorator) in PLAIN for decorator in node.decorator_list) and not is_mutable(node)
        case ast.ClassDef():
            simple = not node.decorator_list and all(isinstance(base, ast.Name | ast.Attribute) for base in node.bases)
            return simple and not is_mutable(node) and all(map(is_fixed, node.body))
        case ast.Assign() | ast.AnnAssign():
            return not is_mutable(node)
        case ast.Expr():
            return isinstance(node.value, ast.Constant)
    return isinstance(node, ast.Pass)


def has_hooks(node: ast.stmt) -> bool:
    """Whether a class does something to classes that inherit from it."""
    names = {inner.name for inner in ast.walk(node) if isinstance(inner, Function)}
    return isinstance(node, ast.ClassDef) and ("__init_subclass__" in names or bool(node.keywords))


def _blocks(node: ast.AST) -> Iterable[ast.AST]:
    """The statements directly in a compound statement, of all its branches."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from _blocks(child)
        else:
            yield child


def _is_active_target(target: ast.expr) -> bool:
    if isinstance(target, ast.Tuple | ast.List):
        return any(map(_is_active_target, target.elts))
    if isinstance(target, ast.Starred):
        return _is_active_target(target.value)
    return not isinstance(target, ast.Name) or target.id == "_"  # `_ = f()` is a call


def _last_name(decorator: ast.expr) -> str:
    if isinstance(decorator, ast.Call):
        decorator = decorator.func
    return getattr(decorator, "attr", getattr(decorator, "id", ""))


def _is_main(test: ast.expr) -> bool:
    """Whether the test of an `if` is __name__ == "__main__"."""
    return (
        isinstance(test, ast.Compare)
        and isinstance(test.ops[0], ast.Eq)
        and {getattr(side, "id", getattr(side, "value", "")) for side in (test.left, *test.comparators)}
        == {"__name__", "__main__"}
    )

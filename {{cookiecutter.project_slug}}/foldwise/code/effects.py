"""What statements do when a module loads, judged by syntax alone."""

import ast
from collections.abc import Iterator

from foldwise.code.syntax import Function, is_type_checking, parameters

# Decorators that ignore annotations.
PLAIN = {
    "staticmethod", "classmethod", "property", "cached_property", "setter", "abstractmethod", "override", "final",
    "no_grad", "inference_mode", "wraps", "cache", "lru_cache",
}  # fmt: skip
NAMES = (ast.Name, ast.Tuple, ast.List, ast.Starred, ast.expr_context)
MAIN = ("__name__ == '__main__'", "'__main__' == __name__")
IMMUTABLE = (ast.Constant, ast.Tuple, ast.UnaryOp, ast.BinOp, ast.operator, ast.unaryop, ast.expr_context)


class Plain(ast.NodeTransformer):
    """Removes what cannot change behaviour: annotations of functions and variables, blocks that an import never runs.

    Annotations of class attributes and of decorated functions stay: dataclasses and decorators may read them.
    """

    in_class = False

    def visit_FunctionDef(self, node: Function) -> ast.AST:
        if _has_plain_decorators(node):
            node.returns = None
            for argument in parameters(node.args):
                argument.annotation = None
        return self.visit_ClassDef(node)

    visit_AsyncFunctionDef = visit_FunctionDef  # noqa: N815

    def visit_ClassDef(self, node: ast.ClassDef | Function) -> ast.AST:
        around, self.in_class = self.in_class, isinstance(node, ast.ClassDef)
        self.generic_visit(node)
        self.in_class = around
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        self.generic_visit(node)
        if self.in_class:
            return node
        return node.value and ast.copy_location(ast.Assign([node.target], node.value), node)

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        self.generic_visit(node)
        return node.orelse if is_type_checking(node.test) or ast.unparse(node.test) in MAIN else node


def is_active(node: ast.stmt) -> bool:
    """True if a statement does more than bind names and compute their values."""
    match node:
        case ast.Expr():
            return not isinstance(node.value, ast.Constant)
        case ast.Assign():
            return any(_is_active_target(target) for target in node.targets)
        case ast.AnnAssign():
            return _is_active_target(node.target)
        case ast.ClassDef() | ast.If() | ast.Try() | ast.TryStar() | ast.Match():
            return any(map(is_active, _blocks(node)))
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.Import() | ast.ImportFrom() | ast.Pass():
            return False
    return type(node).__name__ != "TypeAlias"  # of Python 3.12


def is_mutable(node: ast.stmt) -> bool:
    """True if a statement binds an object that can change without rebinding the name."""
    match node:
        case ast.Assign() | ast.AnnAssign():
            return not _is_immutable(node.value)
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return not all(map(_is_immutable, [*node.args.defaults, *node.args.kw_defaults]))
        case ast.ClassDef():
            values = [inner for inner in node.body if not isinstance(inner, ast.ClassDef | Function)]
            return has_hooks(node) or any(map(is_mutable, values))
        case ast.If() | ast.Try() | ast.TryStar() | ast.Match():
            return any(map(is_mutable, _blocks(node)))
        case ast.Expr():
            return not isinstance(node.value, ast.Constant)
    return not isinstance(node, ast.Import | ast.ImportFrom | ast.Pass)


def is_fixed(node: ast.stmt) -> bool:
    """True if a statement binds the same at any position in its module."""
    if is_mutable(node):
        return False
    if isinstance(node, ast.ClassDef):
        simple = not node.decorator_list and all(isinstance(base, ast.Name | ast.Attribute) for base in node.bases)
        return simple and all(map(is_fixed, node.body))
    if isinstance(node, Function):
        return _has_plain_decorators(node)
    return isinstance(node, ast.Assign | ast.AnnAssign | ast.Expr | ast.Pass)


def has_hooks(node: ast.stmt) -> bool:
    """True if a class runs code when it is subclassed."""
    names = {inner.name for inner in ast.walk(node) if isinstance(inner, Function)}
    return isinstance(node, ast.ClassDef) and ("__init_subclass__" in names or bool(node.keywords))


def _blocks(node: ast.AST) -> Iterator[ast.stmt]:
    """The direct statements of all branches of a compound statement."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ExceptHandler | ast.match_case):
            yield from _blocks(child)
        elif isinstance(child, ast.stmt):
            yield child


def _is_immutable(value: ast.expr | None) -> bool:
    """True if a value consists of constants and tuples."""
    return value is None or all(isinstance(part, IMMUTABLE) for part in ast.walk(value))


def _is_active_target(target: ast.expr) -> bool:
    """True if a target is more than names; `_ = f()` counts as a call."""
    return any(not isinstance(part, NAMES) or getattr(part, "id", "") == "_" for part in ast.walk(target))


def _has_plain_decorators(node: Function) -> bool:
    called = (item.func if isinstance(item, ast.Call) else item for item in node.decorator_list)
    return all(getattr(item, "attr", getattr(item, "id", "")) in PLAIN for item in called)

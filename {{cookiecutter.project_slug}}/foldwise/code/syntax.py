"""Syntax trees, and their text that two versions of Python agree on."""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache


@cache
def parse(source: bytes) -> ast.Module:
    """The syntax tree of a file; it is shared, so copy it before changing it.

    Raises:
        SyntaxError: also for bytes that are no text.
    """
    try:
        return ast.parse(source)
    except ValueError as error:  # null bytes, up to Python 3.11
        raise SyntaxError(str(error)) from error


@cache
def hash_source(source: bytes) -> str:
    """A hash of a file's syntax tree, docstrings left out."""
    return hash_tree(parse(source))


def hash_tree(node: ast.AST) -> str:
    """A hash of a syntax tree, docstrings left out."""
    return hash_text(" ".join(tokens(node)))


def hash_text(text: str) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()


def tokens(node: ast.AST) -> Iterator[str]:
    """The syntax tree as text that is the same on every Python version (ast.dump is not) and ignores comments."""
    yield type(node).__name__
    for name, value in ast.iter_fields(node):
        if name == "body" and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            value = value[1:] if ast.get_docstring(node, clean=False) is not None else value
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, ast.AST):
                yield f"{name}("
                yield from tokens(item)
                yield ")"
            elif item is not None:  # absent fields are left out: newer versions of Python have more of them
                yield f"{name}={item!r}"

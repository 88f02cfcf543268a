"""Syntax trees of our own source files."""

import ast


def parse(source: str) -> ast.Module:
    """`ast.parse`, tried again where CPython 3.11 miscounts how deep it is (SystemError, its issue 106905), as was seen
    in a process that had run many other tests."""
    for _ in range(5):
        try:
            return ast.parse(source)
        except SystemError as error:
            last = error
    raise last

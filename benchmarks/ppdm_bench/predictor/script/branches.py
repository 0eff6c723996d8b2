"""Find in a program's source code whether a value that a line reads decides a branch."""

import ast
from collections.abc import Iterator
from functools import cache

from ppdm_bench.predictor.lines import Line


def decided_by(line: Line) -> Line | None:
    """Return the line of the branch that a value read at ``line`` decides; None if no such branch is found.

    This is the branch whose condition contains the line, or the first branch in the same function whose condition uses
    a variable that the line assigns.
    """
    tree = _tree(line.file)
    if tree is None:
        return None
    conditions = sorted(_conditions(tree), key=lambda test: test.lineno)
    for test in conditions:
        if test.lineno <= line.number <= (test.end_lineno or test.lineno):
            return Line(line.file, test.lineno)
    assigned = _assigned(tree, line.number)
    scope = _scope(tree, line.number)
    for test in conditions:
        inside = scope.lineno <= test.lineno <= (scope.end_lineno or scope.lineno) if scope else True
        if inside and assigned & {ast.unparse(x) for x in ast.walk(test) if isinstance(x, ast.Name | ast.Attribute)}:
            return Line(line.file, test.lineno)
    return None


@cache
def _tree(file: str) -> ast.Module | None:
    try:
        with open(file, "rb") as stream:
            return ast.parse(stream.read())
    except (OSError, SyntaxError, ValueError):
        return None


def _conditions(tree: ast.Module) -> Iterator[ast.expr]:
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.While | ast.IfExp | ast.Assert):
            yield node.test
        elif isinstance(node, ast.comprehension):
            yield from node.ifs


def _assigned(tree: ast.Module, number: int) -> set[str]:
    """Names that the assignments at a line assign to."""
    found = set[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.NamedExpr) and (
            node.lineno <= number <= (node.end_lineno or node.lineno)
        ):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {ast.unparse(x) for t in targets for x in ast.walk(t) if isinstance(x, ast.Name | ast.Attribute)}
    return found - {"self"}


def _scope(tree: ast.Module, number: int) -> ast.FunctionDef | ast.AsyncFunctionDef | None:
    """The innermost function that contains a line; None at module level."""
    around = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.lineno <= number <= (node.end_lineno or node.lineno)
    ]
    return max(around, key=lambda node: node.lineno, default=None)

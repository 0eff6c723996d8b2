"""Make ``float(x)`` in a script and in installed packages return a marked number if ``x`` depends on data.

Python converts the result of ``__float__`` to a plain float, which has no mark. Therefore, when a file is compiled,
``float(x)`` is replaced by a call of :func:`marked_float`. Line numbers do not change. Files of installed packages are
changed if they mention torch: changing all of them would double the time of imports.
"""

import ast
import builtins
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from types import CodeType
from typing import Any

from torch._subclasses.fake_tensor import FakeTensor

from ppdm_bench.predictor.lines import is_internal, is_users
from ppdm_bench.predictor.sizes import UnknownFloat, marked
from ppdm_bench.predictor.trace import Trace

_NAME = "__kept_float__"


def compiled(text: str | bytes, file: str) -> CodeType:
    """Compile a file; calls of ``float`` are replaced only after :func:`keep_floats`."""
    if not hasattr(builtins, _NAME):
        return compile(text, file, "exec", dont_inherit=True)
    tree: ast.Module = ast.fix_missing_locations(_Calls().visit(ast.parse(text, file)))
    return compile(tree, file, "exec", dont_inherit=True)


def keep_floats(trace: Trace) -> None:
    """Replace calls of ``float`` in files that are imported from now on, until the process ends."""
    real, get_code = float, SourceFileLoader.get_code

    def marked_float(function: Callable[[Any], Any], x: Any) -> Any:
        value = function(x)
        is_data = isinstance(x, FakeTensor) and trace.known_values is not None and not trace.known_values.is_known(x)
        return marked(value) if function is real and (is_data or isinstance(x, UnknownFloat)) else value

    def code_of_loader(loader: SourceFileLoader, name: str) -> CodeType | None:
        path = loader.get_filename(name)
        text = b"" if is_internal(path) else loader.get_data(path)
        if b"float(" in text and (b"torch" in text or is_users(path)):
            return compiled(text, path)
        return get_code(loader, name)

    setattr(builtins, _NAME, marked_float)
    SourceFileLoader.get_code = code_of_loader  # type: ignore[method-assign, assignment]


class _Calls(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "float" and len(node.args) == 1 and not node.keywords:
            return ast.copy_location(ast.Call(ast.Name(_NAME, ast.Load()), [node.func, *node.args], []), node)
        return node

"""Notebooks as pages: a notebook is executed when its page is read, and becomes Markdown with the output of its cells.

The notebooks are plain Python without outputs. Therefore a child process and this file can replace Jupyter and its
forty packages. A failing cell stops the build.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [str(ROOT / folder) for folder in ("", "baselines", "benchmarks")]

# Program of the child process: read the code of all cells, and print for each cell its output and its figures as
# (title, PNG in base64).
CHILD = """
import base64, contextlib, io, json, sys
import matplotlib.pyplot as plt

def figures():
    for number in plt.get_fignums():
        figure, image = plt.figure(number), io.BytesIO()
        figure.savefig(image, format="png", dpi=150)
        titles = [figure.get_suptitle(), *(axes.get_title() for axes in figure.axes)]
        yield next(filter(None, titles), ""), base64.b64encode(image.getvalue()).decode()
    plt.close("all")

plt.show = lambda: None
made, names = [], {"__name__": "__main__"}
for number, code in enumerate(json.load(sys.stdin), start=1):
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(code, f"code cell {number}", "exec"), names)
    made.append([said.getvalue(), list(figures())])
json.dump(made, sys.stdout)
"""


def carried_out(notebook: dict[str, Any]) -> str:
    """A notebook as Markdown: its text, its code, and the printed output and figures of the code.

    Raises:
        ExtensionError: a cell failed, or a figure has no title, which is needed as its alternative text.
    """
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    code = [text for kind, text in cells if kind == "code"]
    paths = os.pathsep.join([*PACKAGES, os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths.strip(os.pathsep), "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(code), env=environment, capture_output=True, text=True
    )
    if done.returncode:
        raise ExtensionError(f"a notebook cannot be carried out: {done.stderr}")
    made = iter(json.loads(done.stdout))
    page = []
    for kind, text in cells:
        page.append(text if kind == "markdown" else f"```python\n{text}\n```")
        said, figures = next(made) if kind == "code" else ("", [])
        if said:
            page.append(f"```none\n{said.rstrip()}\n```")
        for title, image in figures:
            if not title:
                raise ExtensionError("a figure of a notebook has no title")
            page.append(f"![{title}](data:image/png;base64,{image})")
    return "\n\n".join(page) + "\n"


def read(app: Sphinx, name: str, source: list[str]) -> None:
    """Replace the source of a notebook page by Markdown."""
    if Path(app.env.doc2path(name)).suffix == ".ipynb":
        notebook = json.loads(source[0])
        if not app.config.run_notebooks:
            notebook["cells"] = [cell for cell in notebook["cells"] if cell["cell_type"] != "code"]
        source[0] = carried_out(notebook)

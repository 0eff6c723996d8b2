"""Sphinx configuration of the site (``make docs``). Pages are made from the repository's files, without duplicates."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / folder) for folder in ("", "baselines", "benchmarks", "docs")]

import notebooks  # noqa: E402  # found by the line above
import repository  # noqa: E402
import typer  # noqa: E402
from typer.cli import get_docs_for_click  # noqa: E402

from ppdm import __version__  # noqa: E402
from ppdm_bench.cli import NAME  # noqa: E402
from ppdm_bench.cli import app as commands  # noqa: E402

project = "ppdm"
author = "The maintainers of ppdm"
release = version = __version__

# Headings for tables written by commands, which have none.
TABLES = {
    "results/memory/memory": "Peak memory at 256³",
    "results/validation/published": "Predicted against published peaks",
    "results/validation/cudnn": "Predicted against published memory where cuDNN computes",
    "results/validation/rivals": "The prediction beside other tools",
    "results/validation/reference": "Our U-Net beside MONAI's",
    "results/validation/cpu-32/memory": "Predicted and measured on the CPU, 32³",
    "results/validation/cpu-48/memory": "Predicted and measured on the CPU, 48³",
    "results/validation/cpu-64/memory": "Predicted and measured on the CPU, 64³",
    "results/learning/learning": "Short trainings at three widths",
    "results/methods/published": "Our prediction beside published memory",
}

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
source_suffix = {".md": "markdown", ".ipynb": "markdown"}
root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "examples/*",
    "examples/brain_mri/README.md",
    "baselines/README.md",
    "benchmarks/README.md",
    "benchmarks/ppdm_bench/predictor/README.md",
    "results/README.md",
    "results/*/README.md",
    "results/CLAIMS.md",
    "results/blocks/blocks.md",
    "results/harness/*.md",
    "results/metrics/agreement.md",
    "results/switches/switches.md",
    "results/training/kill_and_resume.md",
    "results/validation/programs.md",
    "results/validation/rivals.md",
    "results/validation/timings.md",
    *(f"{name}.md" for name in TABLES),
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
]

# Heading anchors as on GitHub; a heading of README.md keeps its level where a page includes it.
myst_heading_anchors = 3
myst_links_external_new_tab = False
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature shows the types

# Names without a link target: those of other projects, whose documentation is not available offline, and aliases, type
# variables and constants, which have no docstring.
OTHERS = [
    "abc",
    "collections",
    "contextlib",
    "dataclasses",
    "nib",
    "nibabel",
    "nn",
    "np",
    "numpy",
    "optional",
    "os",
    "pandas",
    "pathlib",
    "pd",
    "re",
    "torch",
    "typer",
    "typing",
    "weakref",
]
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", rf"({'|'.join(OTHERS)})\b.*"),
    (r"py:.*", r"(.*\.)?(State|Array|Factor|T)"),
    (r"py:data", r".*"),
]

# Most code blocks without a language are shell commands, recognisable without highlighting.
highlight_language = "none"

smartquotes_action = "qe"  # no dashes: the help of a command names options such as --shape

html_theme = "furo"
html_title = "ppdm"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True, **repository.theme_options(repository.address(ROOT))}
html_static_path = ["static"]
html_css_files = ["site.css"]

copybutton_prompt_text = "$ "  # the prompt is not copied


def setup(app: Sphinx) -> None:
    """Connect the handlers for headings of tables, the command reference, defaults and docstrings of properties."""
    app.add_config_value("run_notebooks", True, "env", bool)
    app.connect("source-read", headed)
    app.connect("source-read", reference)
    app.connect("source-read", notebooks.read)
    app.connect("autodoc-process-signature", readable)
    app.connect("autodoc-process-docstring", sentences, priority=400)  # before napoleon


def headed(_: Sphinx, name: str, source: list[str]) -> None:
    """Add the heading to a table that a command wrote."""
    if name in TABLES:
        source[0] = f"# {TABLES[name]}\n\n{source[0]}"


def reference(_: Sphinx, name: str, source: list[str]) -> None:
    """Append the help of every command to the page of the command line."""
    if name == "docs/cli":
        command = typer.main.get_command(commands)
        source[0] += "\n" + get_docs_for_click(obj=command, ctx=typer.Context(command), name=NAME, indent=1)


def readable(*event: Any) -> tuple[str, str | None] | None:
    """Show the default of a factory as ``...``, because Python's representation of it is not a valid expression."""
    *_, signature, returned = event
    return (signature.replace("<factory>", "..."), returned) if signature else None


def sentences(_: Sphinx, what: str, *event: Any) -> None:
    """Insert an invisible space, so that napoleon does not read a property's first sentence up to a colon as a type."""
    if what == "property":
        event[-1].insert(0, "\\ ")

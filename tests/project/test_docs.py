"""The documentation is correct: links lead somewhere, code runs, commands exist, and the site can be built."""

import ast
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
import typer
import warm
from commands import run
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sphinx.errors import ExtensionError
from tiny_training import pair

import ppdm
import ppdm_bench
from ppdm.data.volume import Volume, write_volume
from ppdm_bench.cli import app

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "baselines/*.md",
        "benchmarks/*.md",
        "examples/**/*.md",
        "results/*.md",
        "results/*/README.md",
    )
    for path in ROOT.glob(pattern)
)
NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = re.findall(r"^([a-z-]+):.*## ", MAKEFILE, re.MULTILINE)
COMMAND = typer.main.get_command(app)
# `ppdm-bench`, or the module run by Python or torchrun, as on a node without an installation.
OURS = re.compile(r"(?:^|\s)(?:ppdm-bench|(?:python3?|torchrun(?: --[\w-]+ \S+)*) -m ppdm_bench)(?:\s+(.*))?$")


class Block(NamedTuple):
    """A code block of a page."""

    page: str
    language: str
    text: str


def tokens(path: Path) -> Iterator[Token]:
    """Yield every token of a page, including those inside a line."""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text()):
        yield token
        yield from token.children or ()


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


BLOCKS = [
    Block(name_of(path), token.info, token.content)
    for path in PAGES
    for token in tokens(path)
    if token.type in ("fence", "code_block") and not token.info.startswith("{")  # a directive is not code
]


def lines(block: Block) -> list[str]:
    """Return the commands of a shell block, without comments."""
    whole = block.text.replace("\\\n", " ").splitlines()
    return [line for line in (re.sub(r"(^|\s)#.*$", "", one).strip() for one in whole) if line]


PYTHON = [block for block in BLOCKS if block.language == "python"]
# Beginning of the block that shows the folders instead of commands.
TREE = "ppdm/                     the method"
SHELL = [
    (block, line)
    for block in BLOCKS
    if block.language not in ("python", "text", "toml") and not block.text.startswith(TREE)
    for line in lines(block)
]

# Beginnings of commands that are not tested, and the reason. All others are run, make targets, or commands of ours.
NOT_RUN = {
    "pip install -c constraints.txt": "installs packages; the script wheel_smoke.sh does it in an empty environment",
}
# Commands that are run, in this order, each with options that make it small.
CARRIED_OUT = {
    "ppdm-bench --help": "",
    "ppdm-bench compare OLD NEW": "",
    "ppdm-bench methods": "",
    "ppdm-bench env": "",
    "ppdm-bench data list": "",
    "ppdm-bench data check pairs.csv": "",
    "ppdm-bench train --manifest pairs.csv --factor 2 --width 16 --steps 50 --out runs/t1t2": "--steps 2 --width 8",
    "ppdm-bench translate runs/t1t2 T1.nii.gz T2_translated.nii.gz": "--evaluations 1",
    "ppdm-bench translate runs/t1t2 T1.nii.gz T2_blocks.nii.gz --block 128": "--evaluations 1 --block 16",
    "ppdm-bench evaluate runs/t1t2 --manifest pairs.csv --split train --out runs/t1t2/evaluation": "--evaluations 1",
    "ppdm-bench data check examples/brain_mri/pairs.csv": "",
    "ppdm-bench train --manifest examples/brain_mri/pairs.csv --factor 2 --width 16 --steps 200 --out runs/brain": (
        "--steps 1 --width 8 --precision bf16"
    ),
    "ppdm-bench evaluate runs/brain --manifest examples/brain_mri/pairs.csv --out runs/brain/evaluation": (
        "--evaluations 1"
    ),
    "ppdm-bench translate runs/brain examples/brain_mri/patient26_T1.nii.gz T2_patient26.nii.gz": "--evaluations 1",
    "ppdm-bench methods --method my_methods:HAAR_BRIDGE": "",
    "ppdm-bench gpu --list": "",
}
# Imports that a Python block takes from the text around it, by the beginning of the block.
BEFORE = {
    "PPDM = Method(": "from ppdm import Method\nfrom ppdm.kernel import *\nfrom ppdm.loss import *\n"
    "from ppdm.representation import *\nfrom ppdm.window import *\n"
}


# --- links

MADE_WITH_A_GPU = {"results/gpu/memory.md"}


def anchors(path: Path) -> set[str]:
    """Return the anchors that GitHub and the site give to the headings of a page."""
    found, heading = set(), False
    for token in tokens(path):
        if heading and token.type == "inline":
            words = re.sub(r"[^\w\s-]", "", token.content.lower())
            found.add(re.sub(r"\s", "-", words))
        heading = token.type == "heading_open"
    return found


LINKS = [
    (path, str(token.attrs[key]))
    for path in PAGES
    for token in tokens(path)
    for key in ("href", "src")
    if key in token.attrs
]


def test_relative_links_lead_to_an_existing_file_and_heading():
    assert len(LINKS) > 40
    broken = []
    for page, link in LINKS:
        place = urlsplit(link)
        if not place.scheme:
            target = (page.parent / unquote(place.path)).resolve() if place.path else page
            inside = target.is_file() and target.is_relative_to(ROOT)
            if not inside or (place.fragment and place.fragment not in anchors(target)):
                broken.append(f"{name_of(page)}: {link}")
    assert broken == []


def test_external_links_are_well_formed_https_addresses():
    outside = {link for _, link in LINKS if urlsplit(link).scheme}
    assert "https://arxiv.org/abs/2606.15323" in outside
    for link in outside:
        place = urlsplit(link)
        assert place.scheme == "https", link
        assert re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", place.netloc), link
        assert re.fullmatch(r"[\w./~%-]*", place.path), link


def test_file_names_in_the_text_are_those_of_existing_files():
    named = [
        (path, token.content)
        for path in PAGES
        for token in tokens(path)
        if token.type == "code_inline" and re.fullmatch(r"[\w./-]+/[\w-]+\.(md|py|sh|toml)", token.content)
    ]
    assert len(named) > 10
    for page, name in named:
        places = (ROOT, page.parent, ROOT / "benchmarks")
        if name not in MADE_WITH_A_GPU:
            assert any((place / name).is_file() for place in places), f"{name_of(page)}: {name}"


def test_the_tree_in_the_readme_names_existing_files_and_folders():
    (tree,) = [block for block in BLOCKS if block.text.startswith(TREE)]
    first = [re.split(r"\s{2,}", line.strip())[0] for line in tree.text.splitlines()]
    names = [name.rstrip("/") for cell in first for name in cell.split() if re.fullmatch(r"[\w/]+(/|\.py)", name)]
    assert len(names) > 20
    files = {
        name_of(path) for folder in ("ppdm", "baselines", "benchmarks", "results") for path in ROOT.glob(folder + "/**")
    }
    files |= {name_of(path) for folder in ("ppdm", "baselines", "benchmarks") for path in (ROOT / folder).rglob("*.py")}
    for name in names:
        assert any(file == name or file.endswith("/" + name) for file in files), name


# --- Python


def cases(blocks: list[Block]) -> list[object]:
    """Return one test case per block; those on the predictor's page are slow, because they predict whole networks."""
    slow = {"docs/predictor.md": [pytest.mark.slow]}
    names = [f"{block.page}: {block.text.splitlines()[0]}" for block in blocks]
    return [pytest.param(one, id=name, marks=slow.get(one.page, [])) for one, name in zip(blocks, names, strict=True)]


@pytest.mark.parametrize("block", cases(PYTHON))
def test_python_code_runs_and_prints_what_the_page_shows(block, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = next((code for start, code in BEFORE.items() if block.text.startswith(start)), "")
    made: dict[str, object] = {}
    exec(compile(before + block.text, block.page, "exec"), made)  # noqa: S102  # our own pages
    after = next(iter(BLOCKS[BLOCKS.index(block) + 1 :]), None)
    if after is not None and (after.page, after.language) == (block.page, "text"):
        assert capsys.readouterr().out == after.text
    if "PPDM" in made and before:
        shown = made["PPDM"]
        for axis in ("name", "representation", "window", "kernel", "target", "loss"):
            assert getattr(shown, axis) == getattr(ppdm.PPDM, axis)
    assert list(tmp_path.iterdir()) == []


def test_every_stable_name_is_in_the_reference():
    for package, page in ((ppdm, "ppdm"), (ppdm_bench, "ppdm_bench")):
        text = (ROOT / f"docs/api/{page}.md").read_text()
        named = re.findall(r"\{py:obj\}`(\w+) <([\w.]+)\.\1>` \| `\2`", text)
        assert {name for name, _ in named} == set(package.__all__) - {"__version__"}
        for name, home in named:
            assert getattr(import_module(home), name) is getattr(package, name)


# --- commands


def parsed(words: list[str]) -> str:
    """Parse words like the command line, without running anything, and return the names of the command."""
    command, context, names = COMMAND, None, []
    while hasattr(command, "resolve_command"):
        with command.make_context("ppdm-bench", words, parent=context) as context:
            name, command, words = command.resolve_command(context, [*context._protected_args, *context.args])
            names.append(name)
    command.make_context(names[-1], words, parent=context).close()
    return " ".join(names)


def test_every_shell_line_is_tested_or_listed_with_a_reason():
    """A shell line is a make target, a module, a command of ours, or in NOT_RUN; every entry of NOT_RUN is used."""
    used = set()
    for block, line in SHELL:
        reason = next((start for start in NOT_RUN if line.startswith(start)), None)
        used.add(reason)
        if target := re.fullmatch(r"make ([a-z-]+)(?: ([A-Z]+)=\S+)?", line):
            assert target[1] in TARGETS, line
            assert not target[2] or f"$({target[2]})" in MAKEFILE, line
        elif module := re.match(r"python3? -m (ppdm_bench\.[\w.]+)", line):
            assert find_spec(module[1]), line
        elif not reason:
            assert OURS.search(line), f"{block.page}: {line}"
    assert used - {None} == set(NOT_RUN)
    assert {line for _, line in SHELL} >= set(CARRIED_OUT)


@pytest.mark.parametrize(
    ("page", "line"),
    [(block.page, line) for block, line in SHELL if OURS.search(line) and not line.endswith("--help")],
    ids=lambda value: value[:60],
)
def test_the_command_line_parses_every_documented_command(page, line):
    for one in re.split(r";\s*(?:do\s+)?|\s+done$", line):
        if found := OURS.search(one):
            assert parsed(shlex.split(found[1] or ""))


def test_the_command_line_refuses_wrong_commands():
    """This shows that the test above can fail."""
    for words in ("memory --rez 256", "memry", "train --steps 0 --out x", "translate run", "data chek pairs.csv"):
        with pytest.raises(Exception, match=r"No such|Invalid value|Missing parameter|expected"):
            parsed(words.split())


def test_commands_and_make_targets_named_in_the_text_exist():
    spelled = [(path, t.content) for path in PAGES for t in tokens(path) if t.type == "code_inline"]
    targets = [(page, text) for page, text in spelled if re.match(r"make [a-z]", text)]
    ours = [(page, found[1].split()) for page, text in spelled if (found := OURS.match(text)) and found[1]]
    assert len(targets) > 8
    assert len(ours) > 15
    for page, text in targets:
        assert all(word in TARGETS for word in text.split()[1:] if "=" not in word), f"{name_of(page)}: {text}"
    for page, words in ours:
        command, rest = COMMAND, list(words)
        while rest and hasattr(command, "commands") and not rest[0].startswith("-") and rest[0] != "COMMAND":
            assert rest[0] in command.commands, f"{name_of(page)}: {' '.join(words)}"
            command = command.commands[rest.pop(0)]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        own = rest[: rest.index("--")] if "--" in rest else rest  # after it comes a command of the user
        asked = {word for word in own if word.startswith("--")}
        assert asked <= options or rest[0] == "COMMAND", f"{name_of(page)}: {' '.join(words)}"


def test_the_makefile_has_at_most_fourteen_targets_and_help_lists_them():
    """Variants of a target, such as `test-fast`, do not count."""
    plain = [target for target in TARGETS if "-" not in target]
    assert len(plain) <= 14
    assert {target.partition("-")[0] for target in TARGETS} == set(plain)
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"^  make (\S+)", shown, re.MULTILINE) == TARGETS
    assert set(re.search(r"^\.PHONY: (.+)$", MAKEFILE, re.MULTILINE)[1].split()) == set(TARGETS)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Enter a folder with the files that the pages assume: a pair of scans, a user's method, two sets of records."""
    folder = tmp_path
    monkeypatch.chdir(folder)
    for name, data in zip(("T1", "T2"), pair(0, (16, 18, 17)), strict=True):
        volume = Volume.from_array(100 * (data + 1), (1.0, 1.0, 2.0))
        write_volume(folder / f"{name}.nii.gz", volume.data, volume)
    (folder / "pairs.csv").write_text("subject,split,source,target\na,train,T1.nii.gz,T2.nii.gz\n")
    (folder / "examples").symlink_to(ROOT / "examples")
    methods, _ = [block.text for block in PYTHON if block.page == "docs/own_method.md"]
    (folder / "my_methods.py").write_text(methods)
    for name in ("OLD", "NEW"):
        (folder / name).mkdir()
        (folder / name / "records.jsonl.gz").write_bytes((ROOT / "results/plan/records.jsonl.gz").read_bytes())
    yield
    sys.modules.pop("my_methods", None)


@pytest.mark.slow
@pytest.mark.usefixtures("workplace")
def test_cheap_documented_commands_run_one_after_another():
    for line, smaller in CARRIED_OUT.items():
        code, out, err = run(*shlex.split(line)[1:], *smaller.split())
        assert code == 0, f"{line}: {err}"
        assert out, line
    assert Path("T2_translated.nii.gz").is_file()


# --- notebooks, which the site executes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=name_of)
def test_a_notebook_has_no_outputs_and_imports_only_public_names(path):
    notebook = json.loads(path.read_text())
    assert path.read_text() == json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    assert path.stat().st_size < 20_000
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code))
    imported = [
        (node.module, one.name) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names
    ]
    imported += [(one.name, "") for node in ast.walk(tree) if isinstance(node, ast.Import) for one in node.names]
    ours = [(module, name) for module, name in imported if module.startswith("ppdm_bench")]
    assert all(module == "ppdm_bench" and name in ppdm_bench.__all__ for module, name in ours)
    assert not any("._" in module or name.startswith("_") for module, name in imported)


def notebook_of(*code: str) -> dict[str, object]:
    return {"cells": [{"cell_type": "code", "source": [text]} for text in code]}


@pytest.mark.slow
def test_a_notebook_becomes_a_page_with_its_text_code_and_outputs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    notebooks = import_module("notebooks")
    drawn = "import matplotlib.pyplot as plt\nplt.plot([x, 2])\nplt.title('a line')\nplt.show()"
    made = notebook_of("x = 1", "print(f'x is {x}')", drawn)
    made["cells"].insert(0, {"cell_type": "markdown", "source": ["# Title\n", "text"]})
    page = notebooks.carried_out(made)
    assert page.startswith("# Title\ntext\n\n```python\nx = 1\n```\n\n```python\nprint")
    assert "```none\nx is 1\n```" in page
    assert "\n![a line](data:image/png;base64,iVBOR" in page
    with pytest.raises(ExtensionError, match=r"code cell 2(.|\n)*ZeroDivisionError"):
        notebooks.carried_out(notebook_of("x = 1", "x / 0"))
    with pytest.raises(ExtensionError, match="no title"):
        notebooks.carried_out(notebook_of("import matplotlib.pyplot as plt; plt.plot([1, 2])"))


# --- the site


def test_the_command_line_reference_has_every_option_of_every_command_with_its_help(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    page, other = ["# Title\n"], ["# Title\n"]
    import_module("conf").reference(None, "docs/cli", page)
    import_module("conf").reference(None, "docs/commands", other)
    assert other == ["# Title\n"]
    sections = dict(re.findall(r"^#+ `(ppdm-bench[^`]*)`\n(.*?)(?=^##|\Z)", page[0], re.MULTILINE | re.DOTALL))
    commands = dict(commands_below(COMMAND, "ppdm-bench"))
    assert set(sections) == set(commands)
    for words, command in commands.items():
        lines = re.findall(r"^\* `(.+?)`: (.+)$", sections[words].split("**Commands**")[0], re.MULTILINE)
        arguments = [(one.metavar or one.name, one.help) for one in command.params if one.param_type_name == "argument"]
        options = [
            (one.opts[0], one.help) for one in command.params if one.param_type_name == "option" and not one.hidden
        ]
        expected = [*arguments, *options, ("--help", "Show this message and exit.")]
        assert len(lines) == len(expected), words
        for (spelled, text), (name, explained) in zip(lines, expected, strict=True):
            assert explained
            assert (spelled + " ").startswith(name + " "), words
            assert text.startswith(explained), f"{words} {name}"
    assert "* `--shape DxHxW`: Volume size in voxels" in sections["ppdm-bench memory"]
    assert "[default: runs/memory]" in sections["ppdm-bench memory"]


def commands_below(command, name):
    """Yield the full name and the value of a command and of all its subcommands."""
    yield name, command
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands_below(inner, f"{name} {word}")


@pytest.mark.parametrize(
    ("remote", "address"),
    [
        ("git@github.com:group/ppdm.git", "https://github.com/group/ppdm"),
        ("ssh://git@gitlab.example.org/group/sub/ppdm.git", "https://gitlab.example.org/group/sub/ppdm"),
        ("https://user:secret@github.com/group/ppdm", "https://github.com/group/ppdm"),
        ("/srv/git/ppdm", ""),
        (None, ""),
    ],
)
def test_the_site_links_to_the_repository_if_it_is_on_the_web(remote, address, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    repository = import_module("repository")
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    if remote:
        subprocess.run(["git", "-C", tmp_path, "remote", "add", "origin", remote], check=True)
    assert repository.address(tmp_path, {}) == address
    assert repository.address(tmp_path, {"GITHUB_REPOSITORY": "a/b"}) == "https://github.com/a/b"
    options = repository.theme_options(address)
    assert [icon["url"] for icon in options.get("footer_icons", [])] == ([address] if address else [])
    assert ("source_repository" in options) == ("github.com" in address)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    """Sphinx reads every page and docstring, and resolves every reference. `make docs` also runs the notebooks."""
    command = [sys.executable, "-m", "sphinx", "-b", "dummy", "-q", "-W", "--keep-going", "-c", "docs"]
    command += ["-D", "run_notebooks=0"]
    trees = tmp_path / "trees"
    command += ["-d", str(trees), ".", str(tmp_path / "site")]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with warm.Popen(command, cwd=ROOT, text=True, **streams) as made:  # importing the documented modules takes seconds
        _, faults = made.communicate(timeout=900)
    assert (made.returncode, faults) == (0, "")
    read = {path.relative_to(trees).with_suffix(".md") for path in trees.rglob("*.doctree")}
    assert {path.relative_to(ROOT).with_suffix(".md") for path in NOTEBOOKS} <= read
    assert {path.relative_to(ROOT) for path in PAGES} - {Path("README.md")} <= read  # included in parts

"""What a new user of the command sees: help, completion, and suggestions for mistyped words."""

import re
import subprocess
import sys
from typing import get_args

import pytest
import typer
from commands import refused, run

from ppdm_bench import cli
from ppdm_bench.commands.command_names import ORDER, current_names

# A switch of Typer, which main() sets if a shell is named; a fixture restores it after each test.
DETECTION = "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"
# The line with which the script of each shell binds the completion to the command.
BOUND = {
    "bash": "complete -o default -F _ppdm_bench_completion ppdm-bench",
    "zsh": "#compdef ppdm-bench",
    "fish": "complete --command ppdm-bench ",
}


@pytest.fixture(autouse=True)
def _detection(monkeypatch):
    monkeypatch.setenv(DETECTION, "")


@pytest.mark.parametrize("shell", BOUND)
def test_show_completion_prints_the_script_of_a_named_shell(shell):
    code, out, err = run("--show-completion", shell)
    assert (code, err) == (0, "")
    assert BOUND[shell] in out
    assert f"_PPDM_BENCH_COMPLETE=complete_{shell}" in out
    assert "python" not in out


@pytest.mark.parametrize("shell", BOUND)
def test_show_completion_detects_the_running_shell(shell, monkeypatch):
    monkeypatch.setattr("shellingham.detect_shell", lambda *_: (shell, f"/bin/{shell}"))
    code, out, err = run("--show-completion")
    assert (code, err) == (0, "")
    assert BOUND[shell] in out


def test_a_shell_without_completion_is_refused():
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in refused(2, "--show-completion", "tcsh")


def test_completion_is_installed_for_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    code, out, err = run("--install-completion", "zsh")
    assert code == 0, err
    assert "zsh completion installed" in out
    assert BOUND["zsh"] in (tmp_path / ".zfunc" / "_ppdm-bench").read_text()


@pytest.mark.slow
def test_the_completion_of_the_module_is_bound_to_the_command():
    command = [sys.executable, "-m", "ppdm_bench", "--show-completion", "bash"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert BOUND["bash"] in done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        (["mem"], ["memory"]),
        (["data", "m"], ["make", "manifest", "montage"]),
        (["memory", "--checkp"], ["--checkpointing"]),
        (["translate", "--"], ["--evaluations", "--seed", "--device"]),
        (["memory", "--method", "p"], ["ppdm", "patch"]),
        (["memory", "--preset", "matched,a"], ["matched,authors"]),
        (["train", "--task", "pet"], ["pet-denoise", "pet-joint"]),
        (["quality", "--task", "m"], ["mri-t1t2"]),
        (["data", "make", "m"], ["mri-t1t2"]),
    ],
)
def test_completion_offers_the_matching_words(typed, offered, monkeypatch):
    monkeypatch.setenv("_PPDM_BENCH_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", " ".join(["ppdm-bench", *typed]))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    code, out, err = run()
    assert (code, err) == (0, "")
    found = out.split()
    assert set(offered) <= set(found)
    assert all(word.startswith(typed[-1]) for word in found)


def test_the_words_of_completion_equal_those_of_the_registries():
    from ppdm.network.options import CHECKPOINTING
    from ppdm.simulation.tasks import TASKS
    from ppdm_baselines import PRESETS
    from ppdm_bench.commands import options

    assert list(options.PRESETS) == list(PRESETS)
    assert options.CHECKPOINTING == CHECKPOINTING
    assert list(get_args(options.Task)) == list(TASKS)


@pytest.mark.parametrize(("words", "named"), [([], "memory"), (["data"], "manifest")])
def test_without_a_command_the_help_is_shown(words, named):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    assert " ".join(["Usage: ppdm-bench", *words]) in " ".join(out.split())
    assert named in out


def test_a_mistyped_word_is_refused_with_a_suggestion():
    assert "Did you mean" in refused(2, "memry")
    assert "Did you mean 'manifest'" in refused(2, "data", "manifeste")
    assert re.search(r"No such option.*--budget\b", refused(2, "plan", "--buget", "8GB"))


def commands_of(command, path=()):
    """Return every command that is not a group, with its name."""
    if not hasattr(command, "commands"):
        return [(" ".join(path), command)]
    return [one for name, inner in command.commands.items() for one in commands_of(inner, (*path, name))]


COMMANDS = commands_of(typer.main.get_command(cli.app))


def test_the_help_lists_commands_in_the_order_of_use():
    _, out, _ = run("--help")
    found = re.findall(r"^│ ([a-z]+) ", out, re.MULTILINE)
    assert found == list(ORDER)
    assert set(found) == {name.partition(" ")[0] for name, _ in COMMANDS}


@pytest.mark.parametrize(("name", "command"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_the_help_states_the_default_of_every_option(name, command):
    for option in command.params:
        if option.param_type_name == "option" and not option.required and option.default in (None, ()):
            assert re.search(r"default: |Give this(, --[a-z]+)? or --[a-z]+", option.help, re.IGNORECASE), option.name


@pytest.mark.parametrize(
    ("words", "current"),
    [
        (("plan", "--res", "64", "--for", "train"), ["--res", "64", "--phase", "train"]),
        (("plan", "--for=train"), ["--phase=train"]),
        (("evaluate", "RUN", "--steps", "1,4"), ["RUN", "--evaluations", "1,4"]),
        (("translate", "RUN", "--steps", "4"), ["RUN", "--evaluations", "4"]),
        (("ablate", "--grid", "one,space"), ["--configurations", "one,space"]),
        (("ablate", "--phantom-grid", "oblong"), ["--grid", "oblong"]),
    ],
)
def test_an_old_option_name_is_accepted_with_a_notice(words, current, capsys):
    assert current_names(words[0], words[1:]) == current
    assert "is now --" in capsys.readouterr().err


def test_current_option_names_cause_no_notice(capsys):
    for words in (("ablate", "--grid", "oblong"), ("train", "--steps", "2"), ("plan", "--phase", "train")):
        assert current_names(words[0], words[1:]) == list(words[1:])
    assert capsys.readouterr().err == ""


def test_an_old_option_name_works_but_is_not_in_the_help():
    assert (
        "'--phase': expected train or sample, got 'fun'"
        in run("plan", "--budget", "8GB", "--res", 8, "--for", "fun")[2]
    )
    assert "--for" not in run("plan", "--help")[1].split()

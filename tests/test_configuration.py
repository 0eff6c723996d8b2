import json
import sys
from dataclasses import replace

import pytest

from ppdm import PPDM, Method
from ppdm.representation import Puzzle
from ppdm_baselines import PRESETS, REFERENCE
from ppdm_bench.configuration import Configuration, MethodError, configurations, find_method, presets_of
from ppdm_bench.records import config_id

SHAPE = (16, 17, 18)
MINE = replace(PPDM, name="mine")


def full(**options):
    return Configuration("ppdm", SHAPE, factor=(1, 2, 2), width=16, precision="bf16", checkpointing="norm", **options)


def test_it_survives_json():
    configuration = full(batch_size=2)
    assert Configuration.from_dict(json.loads(json.dumps(configuration.to_dict()))) == configuration


def test_every_option_reaches_the_method():
    method = full().resolve()
    assert method.representation == Puzzle((1, 2, 2))
    network = method.network
    assert (network.width, network.precision, network.checkpointing) == (16, "bf16", "norm")


def test_the_method_keeps_what_is_not_given():
    assert Configuration("ppdm", SHAPE).resolve() == PRESETS["matched"]["ppdm"]
    assert Configuration(REFERENCE, SHAPE, "authors").resolve() == PRESETS["authors"][REFERENCE]


def test_the_variant_tells_rows_apart():
    assert full().variant == "r=1x2x2"
    assert Configuration(REFERENCE, SHAPE, "authors").variant == "authors"


def test_the_description_traces_everything_and_identifies_it():
    described = full().describe()
    assert Method.from_dict(described["resolved"]) == full().resolve()
    assert described["width"] == 16
    identifiers = {
        config_id(c.describe())
        for c in (full(), full(batch_size=2), replace(full(), width=8), replace(full(), shape=(1, 2, 3)))
    }
    assert len(identifiers) == 4
    assert config_id(full().describe()) == config_id(full().describe())


def test_factors_are_for_methods_that_have_one():
    made = configurations(["ppdm", REFERENCE], SHAPE, factors=[2, (1, 2, 2)], precisions=["fp32", "bf16"])
    assert [(c.method, c.factor, c.precision) for c in made] == [
        ("ppdm", 2, "fp32"),
        ("ppdm", 2, "bf16"),
        ("ppdm", (1, 2, 2), "fp32"),
        ("ppdm", (1, 2, 2), "bf16"),
        (REFERENCE, None, "fp32"),
        (REFERENCE, None, "bf16"),
    ]


def test_all_methods_means_those_that_have_the_preset():
    assert [c.method for c in configurations(None, SHAPE)] == list(PRESETS["matched"])
    assert {c.method for c in configurations(None, SHAPE, presets=["authors"])} == set(PRESETS["authors"])
    both = configurations(None, SHAPE, presets=["matched", "authors"])
    assert len(both) == len(PRESETS["matched"]) + len(PRESETS["authors"])


def test_what_is_asked_for_twice_is_made_once():
    assert len(configurations(["ppdm", "ppdm"], SHAPE, factors=[2, 2])) == 1


@pytest.mark.parametrize(
    ("methods", "options", "words"),
    [
        (["ppmd"], {}, "did you mean ppdm"),
        (["something"], {}, "there are ppdm"),
        (None, {"presets": ["foo"]}, "there is no preset 'foo'; there are matched, authors"),
        (["ppdm"], {"presets": ["authors"]}, "ppdm has no preset 'authors'; it has matched"),
        ([REFERENCE, "ppdm"], {"presets": ["authors"]}, "ppdm has no preset"),
        (None, {"precisions": ["fp8"]}, "precision must be one of"),
        (None, {"checkpointing": ["all"]}, "checkpointing must be one of"),
        (None, {"width": 0}, "width must be a positive integer up to 65536, got 0"),
    ],
)
def test_what_cannot_be_is_refused(methods, options, words):
    with pytest.raises(MethodError, match=words):
        configurations(methods, SHAPE, **options)


def test_a_factor_where_there_is_none_is_refused():
    with pytest.raises(MethodError, match="no puzzle factor"):
        Configuration(REFERENCE, SHAPE, factor=2).resolve()


def test_a_method_of_ones_own_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    (tmp_path / "my_own_method.py").write_text(
        "from dataclasses import replace\nfrom ppdm import PPDM\nMINE = replace(PPDM, name='mine')\n"
    )
    assert find_method("my_own_method:MINE") == MINE
    assert presets_of("my_own_method:MINE") == ["matched"]
    (made,) = configurations(["my_own_method:MINE"], SHAPE, factors=[4], width=8)
    assert made.variant == "r=4"
    with pytest.raises(MethodError, match="has no preset 'authors'"):
        find_method("my_own_method:MINE", "authors")


def test_the_current_folder_hides_nothing_that_is_installed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    with pytest.raises(MethodError):
        find_method("nothing_of_that_name:X")
    assert sys.path[-1] == str(tmp_path)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import nothing_of_that_name", "No module named 'nothing_of_that_name'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def :", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit"),
        ("X = 3", "is of type int, expected a ppdm.Method"),
        ("Y = 3", "no attribute 'X'"),
    ],
)
def test_a_module_that_is_of_no_use(tmp_path, monkeypatch, code, words):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_no_use.py").write_text(code)
    monkeypatch.delitem(sys.modules, "of_no_use", raising=False)
    with pytest.raises(MethodError, match=words):
        find_method("of_no_use:X")


@pytest.mark.parametrize("name", [":", "nothing_of_that_name:X", ".relative:X", "ppdm:"])
def test_a_name_that_leads_nowhere(name):
    with pytest.raises(MethodError, match="cannot be loaded"):
        find_method(name)

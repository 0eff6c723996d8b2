import json
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint

import pytest
import typer

from ppdm import PPDM, Method
from ppdm.kernel import I2SB, Brownian
from ppdm.representation import Haar, Puzzle
from ppdm_baselines import METHODS, PRESETS, REFERENCE
from ppdm_bench import configuration
from ppdm_bench.commands.requested import requested_reference
from ppdm_bench.configuration import (
    Configuration,
    MethodError,
    configurations,
    find_method,
    identifier,
    presets_of,
    variant_of,
    with_variations,
)
from ppdm_bench.records import config_id
from ppdm_bench.variation import VariationError, parse_assignments, with_assignments

SHAPE = (16, 17, 18)
MINE = replace(PPDM, name="mine")


def full(**options):
    return Configuration("ppdm", SHAPE, factor=(1, 2, 2), width=16, precision="bf16", checkpointing="norm", **options)


def test_a_configuration_survives_json():
    configuration = full(batch_size=2)
    assert Configuration.from_dict(json.loads(json.dumps(configuration.to_dict()))) == configuration


def test_every_option_reaches_the_method():
    method = full().resolve()
    assert method.representation == Puzzle((1, 2, 2))
    network = method.network
    assert (network.width, network.precision, network.checkpointing) == (16, "bf16", "norm")


def test_fields_without_an_option_keep_the_values_of_the_preset():
    assert Configuration("ppdm", SHAPE).resolve() == PRESETS["matched"]["ppdm"]
    assert Configuration(REFERENCE, SHAPE, "authors").resolve() == PRESETS["authors"][REFERENCE]


def test_the_variant_states_the_factor_or_the_preset():
    assert full().variant == "r=1x2x2"
    assert Configuration(REFERENCE, SHAPE, "authors").variant == "authors"


def test_the_description_contains_the_method_and_identifies_the_configuration():
    described = full().describe()
    assert Method.from_dict(described["resolved"]) == full().resolve()
    assert described["width"] == 16
    identifiers = {
        config_id(c.describe())
        for c in (full(), full(batch_size=2), replace(full(), width=8), replace(full(), shape=(1, 2, 3)))
    }
    assert len(identifiers) == 4
    assert config_id(full().describe()) == config_id(full().describe())


def test_factors_apply_only_to_methods_that_have_one():
    made = configurations(["ppdm", REFERENCE], SHAPE, factors=[2, (1, 2, 2)], precisions=["fp32", "bf16"])
    assert [(c.method, c.factor, c.precision) for c in made] == [
        ("ppdm", 2, "fp32"),
        ("ppdm", 2, "bf16"),
        ("ppdm", (1, 2, 2), "fp32"),
        ("ppdm", (1, 2, 2), "bf16"),
        (REFERENCE, None, "fp32"),
        (REFERENCE, None, "bf16"),
    ]


def test_the_default_is_all_methods_that_have_the_preset():
    assert [c.method for c in configurations(None, SHAPE)] == list(PRESETS["matched"])
    assert {c.method for c in configurations(None, SHAPE, presets=["authors"])} == set(PRESETS["authors"])
    both = configurations(None, SHAPE, presets=["matched", "authors"])
    assert len(both) == len(PRESETS["matched"]) + len(PRESETS["authors"])


def test_a_repeated_request_gives_one_configuration():
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
def test_invalid_requests_are_refused(methods, options, words):
    with pytest.raises(MethodError, match=words):
        configurations(methods, SHAPE, **options)


def test_a_factor_for_a_method_without_one_is_refused():
    with pytest.raises(MethodError, match="no puzzle factor"):
        Configuration(REFERENCE, SHAPE, factor=2).resolve()


# --- settings: any field of the design space


def near(methods, starts=(), variations=(), **options):
    """Return the configurations and the messages."""
    told = []
    return with_variations(configurations(methods, SHAPE, **options), starts, variations, told.append), told


def test_each_variation_is_applied_alone_to_every_configuration():
    found, told = near(["ppdm"], (), ["kernel.gamma=0.25,1", "kernel=i2sb"], factors=[2, 4])
    assert [one.variant for one in found] == [
        f"r={r}{setting}" for r in (2, 4) for setting in ("", " kernel.gamma=0.25", " kernel.gamma=1", " kernel=i2sb")
    ]
    assert [one.resolve().kernel for one in found[:4]] == [PPDM.kernel, Brownian(0.25), Brownian(1.0), I2SB()]
    assert found[5].resolve().representation == Puzzle(4)
    assert not told
    assert len({config_id(one.describe()) for one in found}) == len(found)
    assert Configuration.from_dict(json.loads(json.dumps(found[1].to_dict()))) == found[1]


def test_an_option_and_the_setting_of_its_field_give_the_same_configuration():
    varied, _ = near(["ppdm"], ["network.width=16"], ["network.checkpointing=none,norm,block"], factors=[2])
    assert varied == configurations(["ppdm"], SHAPE, factors=[2], width=16, checkpointing=["none", "norm", "block"])
    assert "setting" not in varied[1].to_dict()
    (half,), _ = near(["ppdm"], ["network.precision=bf16"])
    assert (half.fields()["precision"], half.variant) == ("bf16", "r=2")
    (r4,), _ = near(["ppdm"], ["representation.factor=4"], factors=[2, 8])
    assert r4.factor == 4


def test_a_varied_representation_replaces_the_factor_and_appears_once():
    found, _ = near(["ppdm"], (), ["representation=haar,puzzle(factor=[1,2,2])"], factors=[2, 4])
    assert [one.resolve().representation for one in found] == [Puzzle(2), Haar(), Puzzle((1, 2, 2)), Puzzle(4)]


def test_later_settings_override_earlier_ones():
    (made,), _ = near(["ppdm"], ["kernel.gamma=0.25+loss.p=1", "kernel=i2sb", "loss.p=2"])
    assert made.setting == "kernel=i2sb+loss.p=2"
    (same,), _ = near(["ppdm"], (), [f"kernel.gamma={PPDM.kernel.gamma}"])
    assert same == Configuration("ppdm", SHAPE)


def test_the_fields_of_a_row_come_from_the_method():
    point = json.dumps(PPDM.with_network(precision="bf16").to_dict())
    assert Configuration("ppdm", SHAPE, precision="bf16", point=point).fields()["precision"] == "bf16"
    fields = full().fields()
    assert (fields["channels_last"], fields["compile"]) == (False, False)


def test_a_setting_that_some_methods_lack_is_left_out_with_a_message():
    found, told = near(["ppdm", REFERENCE, "patch"], (), ["kernel.gamma=0.25"])
    assert [one.label for one in found] == ["ppdm r=2", "ppdm r=2 kernel.gamma=0.25", REFERENCE, "patch"]
    assert told == [f"left out: kernel.gamma=0.25 of {REFERENCE}, patch: a method has no kernel.gamma"]
    found, told = near(["ppdm", "wavelet"], ["representation.factor=1"])
    assert [one.label for one in found] == ["ppdm r=1"]
    assert told == ["left out: representation.factor=1 of wavelet: wavelet has no puzzle factor"]


@pytest.mark.parametrize(
    ("starts", "variations", "words"),
    [
        ((), ["kernel.beta=1"], "a method has no kernel.beta; it has representation, "),
        (["kernel.beta=1"], (), "a method has no kernel.beta"),
        (["kernel.gamma=1,2"], (), "--set takes one value, got 'kernel.gamma=1,2'; use --vary for several values"),
        ((), ["network.precision=fp8"], "precision must be one of fp32"),
        ((), ["network.checkpointing=[[1]]"], "checkpointing must be one of none"),
        ((), ["network.width=null"], "width must be int, got None"),
        ((), ["kernel.gamma=-1"], "a Brownian bridge needs gamma > 0"),
        ((), [""], "expected name=value,value"),
        (["+"], (), "expected name=value such as"),
    ],
)
def test_a_setting_that_no_method_can_have_is_refused(starts, variations, words):
    with pytest.raises((MethodError, VariationError)) as error:
        near(["ppdm", REFERENCE], starts, variations)
    assert words in str(error.value)


def test_a_user_method_is_loaded_from_the_current_folder(tmp_path, monkeypatch):
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


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (tmp_path / "broken.py").write_text("1 / 0")
    (tmp_path / "my_named_methods.py").write_text(
        "from dataclasses import replace\nfrom ppdm import PPDM\n"
        "LATENT = replace(PPDM, name='my-latent')\n"
        "ANOTHER_PPDM = replace(PPDM, sampling=replace(PPDM.sampling, steps=3))\n"
    )
    yield tmp_path
    for name in ("my_named_methods", "more_methods"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("place", "name"), [("my_named_methods:LATENT", "my-latent"), ("my_named_methods:ANOTHER_PPDM", "another-ppdm")]
)
@pytest.mark.usefixtures("own_folder")
def test_a_user_method_has_the_same_name_by_import_path_and_by_name(place, name):
    assert find_method(place) == find_method(name)
    assert find_method(place).name == name
    (made,) = configurations([place, name], SHAPE)
    assert (made.method, made.name, made.fields()["method"]) == (place, name, name)
    assert made.label.startswith(f"{name} r=")


def test_a_name_that_several_methods_have_is_refused(own_folder):
    (own_folder / "more_methods.py").write_text((own_folder / "my_named_methods.py").read_text())
    with pytest.raises(MethodError, match="several methods are called 'my-latent': more_methods:LATENT, my_named"):
        find_method("my-latent")


def test_an_installed_package_provides_methods_by_an_entry_point(own_folder, monkeypatch):
    announced = [EntryPoint("packaged", "my_named_methods:LATENT", "ppdm.methods")]
    monkeypatch.setattr(
        configuration, "entry_points", lambda group, name: [e for e in announced if (e.group, e.name) == (group, name)]
    )
    assert identifier("packaged") == "my_named_methods:LATENT"
    assert find_method("packaged").name == "my-latent"


@pytest.mark.usefixtures("own_folder")
def test_the_reference_of_differences_may_be_given_by_its_import_path():
    assert requested_reference("my_named_methods:LATENT r=2") == "my-latent r=2"
    assert [requested_reference(text) for text in (None, "ppdm r=4", "runs/a")] == [None, "ppdm r=4", "runs/a"]
    with pytest.raises(typer.BadParameter, match="cannot be loaded"):
        requested_reference("my_named_methods:ABSENT")


def test_the_current_folder_is_searched_last(tmp_path, monkeypatch):
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
def test_a_module_without_a_usable_method_is_refused(tmp_path, monkeypatch, code, words):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "of_no_use.py").write_text(code)
    monkeypatch.delitem(sys.modules, "of_no_use", raising=False)
    with pytest.raises(MethodError, match=words):
        find_method("of_no_use:X")


@pytest.mark.parametrize("name", [":", "nothing_of_that_name:X", ".relative:X", "ppdm:"])
def test_a_malformed_or_missing_import_path_is_refused(name):
    with pytest.raises(MethodError, match="cannot be loaded"):
        find_method(name)


@pytest.mark.parametrize(
    ("name", "text", "variant"),
    [
        ("ppdm", "", "r=2"),
        ("ppdm", "kernel.gamma=0.25", "r=2 kernel.gamma=0.25"),
        ("ppdm", "representation=puzzle(factor=1x2x2)", "r=1x2x2"),
        ("ppdm", "representation=haar", "representation=haar"),
        ("ppdm", "kernel=gaussian(schedule=flow)+target=x0", "r=2 kernel=gaussian(schedule=flow)+target=x0"),
        ("ppdm", "network.multipliers=[1,2]+network.width=8+sampling.steps=9", "r=2 network.multipliers=[1,2]"),
        ("wavelet", "", ""),
        (
            "wavelet",
            "representation=puzzle(factor=4)+optimisation.learning_rate=1e-3",
            "r=4 optimisation.learning_rate=0.001",
        ),
    ],
)
def test_the_variant_states_the_differences_from_the_registered_method(name, text, variant):
    method = with_assignments(METHODS[name], parse_assignments(text)) if text else METHODS[name]
    assert variant_of(method) == variant


def test_the_learning_rate_that_the_width_implies_is_no_difference():
    explicit = with_assignments(METHODS["ppdm"], parse_assignments("optimisation.learning_rate=0.001"))
    assert variant_of(explicit.with_network(width=16)) == "r=2"
    assert variant_of(explicit.with_network(width=64)) == "r=2 optimisation.learning_rate=0.001"


def test_the_variant_of_another_preset_states_the_preset_and_the_differences():
    authors = find_method("ddpm3d", "authors")
    assert variant_of(authors) == "authors"
    assert (
        variant_of(with_assignments(authors, parse_assignments("kernel=gaussian(schedule=linear)")))
        == "authors kernel.schedule=linear"
    )


def test_the_variant_of_a_user_method_states_the_differences_from_that_method():
    own = replace(METHODS["ppdm"], name="mine", kernel=Brownian(gamma=3.0))
    near = with_assignments(own, parse_assignments("kernel.gamma=1"))
    assert (variant_of(near), variant_of(own, [own]), variant_of(near, [own])) == ("r=2", "r=2", "r=2 kernel.gamma=1")

"""Simulated tasks: recipes, subjects and splits."""

import hashlib
import json

import numpy as np
import pytest
from quick_anatomies import noise

from ppdm.data.manifest import SPLITS
from ppdm.simulation.mri import MRIProtocol
from ppdm.simulation.pet import HEAD
from ppdm.simulation.phantom import ANATOMIES, TISSUES, Grid
from ppdm.simulation.tasks import TASKS, TaskError, find_task, make_subject, split_sizes

pytestmark = pytest.mark.slow

SMALL = {"head": Grid((12, 16, 14), (14, 14, 14)), "torso": Grid((20, 16, 10), (20, 20, 32))}


def _small(task, **options):
    return find_task(task).recipe(SMALL[TASKS[task].anatomy], **options)


@pytest.fixture(scope="module")
def subjects():
    """One subject of each task; tasks on the same grid share the anatomy, which is made only once."""
    made = {}

    def once(name, make):
        def anatomy(seed, grid):
            key = (name, str(seed), grid)
            if key not in made:
                made[key] = make(seed, grid)
            return made[key]

        return anatomy

    with pytest.MonkeyPatch.context() as patch:
        for name, make in ANATOMIES.items():
            patch.setitem(ANATOMIES, name, once(name, make))
        found = {name: make_subject(_small(name), "train", 0) for name in TASKS}
    assert len(made) == len({TASKS[name].anatomy for name in TASKS})
    return found


@pytest.fixture
def quick(monkeypatch):
    """Replace heads with noise, which depends on the seed like phantoms (see `test_phantom`) but takes milliseconds."""
    monkeypatch.setitem(ANATOMIES, "head", noise)


@pytest.mark.parametrize("name", TASKS)
def test_a_subject_has_the_images_mask_and_labels_of_its_recipe(subjects, name):
    subject, recipe = subjects[name], _small(name)
    assert subject.name == "train-000"
    for *sources, target in recipe.pairs:
        assert {*sources, target} <= set(subject.images)
        for source in sources:
            assert np.abs(subject.images[source] - subject.images[target]).max() > 0
    for array in subject.images.values():
        assert array.shape == recipe.grid.shape
        assert array.dtype == np.float32
        assert np.isfinite(array).all()
        assert array.min() >= 0
    assert set(np.unique(subject.mask)) == {0, 1}
    assert subject.labels.max() < len(TISSUES)
    assert set(subject.volumes()) == {*subject.images, "mask", "labels"}


def test_recipes_list_the_names_of_their_pairs():
    assert _small("mri-t1t2").pairs == (("T1w", "T2w"),)
    assert _small("mri-flair").pairs == (("T1w", "T2w", "FLAIR"),)
    assert _small("pet-denoise", doses=(4, 100)).pairs == (("AC-dose4", "AC"), ("AC-dose100", "AC"))
    assert _small("pet-joint").pairs == (("NAC-dose20", "AC"),)


def test_pet_is_in_suv_and_the_joint_source_is_not_corrected(subjects):
    """A thick body absorbs most photons, so values without correction are far below those with correction."""
    denoise, joint = subjects["pet-denoise"], subjects["pet-joint"]
    inside = denoise.mask > 0
    assert denoise.images["AC-dose20"][inside].mean() == pytest.approx(denoise.images["AC"][inside].mean(), rel=0.05)
    inside = joint.mask > 0
    assert joint.images["NAC-dose20"][inside].mean() < 0.6 * joint.images["AC"][inside].mean()
    assert 0.3 < joint.images["AC"][inside].mean() < 5


def test_doses_share_the_subject_and_lower_doses_have_larger_errors(quick):
    one = make_subject(_small("pet-denoise", doses=(20,)), "val", 0)
    two = make_subject(_small("pet-denoise", doses=(4, 20)), "val", 0)
    np.testing.assert_array_equal(one.images["AC"], two.images["AC"])
    np.testing.assert_array_equal(one.labels, two.labels)
    error = {dose: np.abs(two.images[f"AC-dose{dose}"] - two.images["AC"]).mean() for dose in (4, 20)}
    assert error[20] > 1.5 * error[4]


def test_subjects_of_all_splits_have_different_anatomies(quick):
    recipe = _small("mri-t1t2")
    digests = [
        hashlib.sha256(make_subject(recipe, split, index).labels.tobytes()).hexdigest()
        for split, index in (("train", 0), ("train", 1), ("val", 0), ("test", 0))
    ]
    assert len(set(digests)) == len(digests)


def test_a_subject_has_the_same_anatomy_in_every_task_and_its_images_repeat(quick):
    mri, pet, again = (make_subject(_small(name), "train", 0) for name in ("mri-t1t2", "pet-denoise", "pet-denoise"))
    np.testing.assert_array_equal(mri.labels, pet.labels)
    for name, array in again.images.items():
        np.testing.assert_array_equal(pet.images[name], array)


def test_another_seed_gives_other_subjects(quick):
    one, other = (make_subject(_small("mri-t1t2", seed=seed), "train", 0) for seed in (0, 1))
    assert not np.array_equal(one.labels, other.labels)


def test_a_task_can_use_the_other_anatomy():
    recipe = find_task("mri-t1t2").recipe(SMALL["torso"], anatomy="torso")
    subject = make_subject(recipe, "test", 0)
    assert TISSUES.index("liver") in subject.labels


@pytest.mark.parametrize("subjects", range(1, 60))
def test_split_sizes_add_up_and_never_shrink_with_more_subjects(subjects):
    sizes, larger = split_sizes(subjects), split_sizes(subjects + 1)
    assert sum(sizes.values()) == subjects
    assert sizes["train"] >= 1
    assert subjects < 3 or min(sizes.values()) >= 1
    assert subjects < 3 or all(larger[split] >= sizes[split] for split in SPLITS)


def test_split_sizes_of_4_and_40_subjects():
    assert split_sizes(4) == {"train": 2, "val": 1, "test": 1}
    assert split_sizes(40) == {"train": 28, "val": 6, "test": 6}


def test_a_recipe_can_be_described_as_json():
    description = json.loads(json.dumps(_small("pet-joint").describe()))
    assert description["task"] == "pet-joint"
    assert description["protocol"]["psf_mm"] == 5.5
    assert description["doses"] == [20]


@pytest.mark.parametrize(
    ("task", "options", "words"),
    [
        ("mri-t1t2", {"doses": (20,)}, "mri-t1t2 has no dose"),
        ("pet-joint", {"doses": ()}, "at least one dose factor"),
        ("pet-joint", {"doses": (1,)}, "whole numbers from 2 up, got .1,"),
        ("pet-joint", {"doses": (20, 20)}, "different whole numbers"),
        ("pet-joint", {"doses": (2.5,)}, "whole numbers"),
        ("pet-joint", {"seed": -1}, "from 0 up, got -1"),
        ("pet-joint", {"anatomy": "foot"}, "'foot' is none of head, torso"),
        ("mri-t1t2", {"protocol": HEAD}, "scanned by a MRIProtocol"),
        ("pet-joint", {"protocol": MRIProtocol()}, "scanned by a Scanner"),
    ],
)
def test_invalid_recipe_options_are_refused(task, options, words):
    with pytest.raises(TaskError, match=words):
        find_task(task).recipe(**options)


def test_unknown_names_and_zero_subjects_are_refused():
    with pytest.raises(TaskError, match="'ct' is none of pet-denoise, pet-joint, mri-t1t2"):
        find_task("ct")
    with pytest.raises(TaskError, match="one of train, val, test"):
        make_subject(_small("mri-t1t2"), "holdout", 0)
    with pytest.raises(TaskError, match="at least one subject, got 0"):
        split_sizes(0)

"""The three tasks: recipes, subjects and splits."""

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
    """One subject of each task."""
    return {name: make_subject(_small(name), "train", 0) for name in TASKS}


@pytest.fixture
def quick(monkeypatch):
    """Heads that depend on the seed as phantoms do (`test_phantom` shows that those do), in milliseconds."""
    monkeypatch.setitem(ANATOMIES, "head", noise)


@pytest.mark.parametrize("name", TASKS)
def test_subject_has_what_its_recipe_promises(subjects, name):
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


def test_names_of_pairs():
    assert _small("mri-t1t2").pairs == (("T1w", "T2w"),)
    assert _small("mri-flair").pairs == (("T1w", "T2w", "FLAIR"),)
    assert _small("pet-denoise", doses=(4, 100)).pairs == (("AC-dose4", "AC"), ("AC-dose100", "AC"))
    assert _small("pet-joint").pairs == (("NAC-dose20", "AC"),)


def test_pet_is_in_suv_and_the_joint_source_is_not_corrected(subjects):
    """Where the body is thick, most photons are lost: an image without correction is far below one with it."""
    denoise, joint = subjects["pet-denoise"], subjects["pet-joint"]
    inside = denoise.mask > 0
    assert denoise.images["AC-dose20"][inside].mean() == pytest.approx(denoise.images["AC"][inside].mean(), rel=0.05)
    inside = joint.mask > 0
    assert joint.images["NAC-dose20"][inside].mean() < 0.6 * joint.images["AC"][inside].mean()
    assert 0.3 < joint.images["AC"][inside].mean() < 5


def test_doses_share_the_subject_and_its_counts(quick):
    one = make_subject(_small("pet-denoise", doses=(20,)), "val", 0)
    two = make_subject(_small("pet-denoise", doses=(4, 20)), "val", 0)
    np.testing.assert_array_equal(one.images["AC"], two.images["AC"])
    np.testing.assert_array_equal(one.labels, two.labels)
    error = {dose: np.abs(two.images[f"AC-dose{dose}"] - two.images["AC"]).mean() for dose in (4, 20)}
    assert error[20] > 1.5 * error[4]


def test_no_anatomy_is_in_two_splits(quick):
    recipe = _small("mri-t1t2")
    digests = [
        hashlib.sha256(make_subject(recipe, split, index).labels.tobytes()).hexdigest()
        for split, index in (("train", 0), ("train", 1), ("val", 0), ("test", 0))
    ]
    assert len(set(digests)) == len(digests)


def test_the_anatomy_of_a_subject_is_that_of_every_task_and_its_images_repeat(quick):
    mri, pet, again = (make_subject(_small(name), "train", 0) for name in ("mri-t1t2", "pet-denoise", "pet-denoise"))
    np.testing.assert_array_equal(mri.labels, pet.labels)
    for name, array in again.images.items():
        np.testing.assert_array_equal(pet.images[name], array)


def test_seeds_make_other_subjects(quick):
    one, other = (make_subject(_small("mri-t1t2", seed=seed), "train", 0) for seed in (0, 1))
    assert not np.array_equal(one.labels, other.labels)


def test_a_task_can_be_done_on_the_other_anatomy():
    recipe = find_task("mri-t1t2").recipe(SMALL["torso"], anatomy="torso")
    subject = make_subject(recipe, "test", 0)
    assert TISSUES.index("liver") in subject.labels


@pytest.mark.parametrize("subjects", range(1, 60))
def test_split_sizes_add_up_and_only_grow(subjects):
    sizes, larger = split_sizes(subjects), split_sizes(subjects + 1)
    assert sum(sizes.values()) == subjects
    assert sizes["train"] >= 1
    assert subjects < 3 or min(sizes.values()) >= 1
    assert subjects < 3 or all(larger[split] >= sizes[split] for split in SPLITS)


def test_splits_of_four_and_of_forty():
    assert split_sizes(4) == {"train": 2, "val": 1, "test": 1}
    assert split_sizes(40) == {"train": 28, "val": 6, "test": 6}


def test_recipe_is_json():
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
def test_recipes_refuse(task, options, words):
    with pytest.raises(TaskError, match=words):
        find_task(task).recipe(**options)


def test_unknown_names_are_refused():
    with pytest.raises(TaskError, match="'ct' is none of pet-denoise, pet-joint, mri-t1t2"):
        find_task("ct")
    with pytest.raises(TaskError, match="one of train, val, test"):
        make_subject(_small("mri-t1t2"), "holdout", 0)
    with pytest.raises(TaskError, match="at least one subject, got 0"):
        split_sizes(0)

"""The table of cards, and finding a card by its name."""

import re

import pytest

from ppdm_bench.predictor.cards import CARDS, find_card
from ppdm_bench.predictor.target import GIB, Target


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("RTX 2080 Ti", "RTX 2080 Ti"),
        ("2080ti", "RTX 2080 Ti"),
        ("rtx-4090", "RTX 4090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("A100 80GB", "A100 80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100 40GB"),
        ("NVIDIA A100 80GB PCIe", "A100 80GB"),
        ("Tesla V100-SXM2-32GB", "V100 32GB"),
        ("NVIDIA H100 80GB HBM3", "H100 80GB"),
        ("h100", "H100 80GB"),
        ("A10", "A10"),
        ("Tesla T4", "T4"),
        ("L40", "L40"),
        ("L40S", "L40S"),
        ("A6000", "RTX A6000"),
    ],
)
def test_a_card_is_found_by_its_common_names(asked: str, name: str) -> None:
    assert find_card(asked).name == name


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
def test_each_card_is_found_by_its_name_and_has_a_source(card: object) -> None:
    assert find_card(card.name) is card
    assert re.fullmatch(r"([\w.-]+/)?[\w.-]+#\d+", card.source)
    target = card.target()
    assert (target.capacity, target.compute_capability) == (round(card.gib * GIB), card.compute_capability)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("A100", "A100 80GB or A100 40GB"),
        ("V100", "V100 32GB or V100 16GB"),
        ("RTX 4900", "did you mean RTX 4090"),
        ("MI300X", "known cards are H200, H100 80GB"),
        ("", "known cards are"),
        ("RTX", "can be"),
        ("NVIDIA", "known cards are"),
    ],
)
def test_an_unknown_or_ambiguous_name_lists_the_candidates(asked: str, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        find_card(asked)


def test_the_target_of_a_card_accepts_further_fields() -> None:
    assert find_card("T4").target(torch="2.8.0") == Target(
        torch="2.8.0", capacity=round(14.56 * GIB), compute_capability=(7, 5), gpu="T4"
    )

"""Cards by name: memory and compute capability, each with its source.

Memory is the least total capacity that PyTorch reports for the card. It is less than the nominal size, because the
driver and error correction keep a part. Compute capabilities are those of https://developer.nvidia.com/cuda-gpus.
"""

import re
from dataclasses import dataclass
from difflib import get_close_matches

from ppdm_bench.predictor.target import GIB, Target

__all__ = ["CARDS", "Card", "find_card"]


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        name: name as it is sold, without the manufacturer.
        gib: total memory in GiB, as PyTorch reports it.
        compute_capability: (major, minor).
        source: where the memory was reported; a GitHub thread is written as owner/name#number.
    """

    name: str
    gib: float
    compute_capability: tuple[int, int]
    source: str

    @property
    def capacity(self) -> int:
        """Total memory in bytes."""
        return round(self.gib * GIB)

    def target(self, **stated: object) -> Target:
        """Return a prediction target for this card; ``stated`` are further fields of :class:`Target`."""
        own = {"gpu": self.name, "capacity": self.capacity, "compute_capability": self.compute_capability}
        return Target(**own | stated)  # type: ignore[arg-type]


CARDS = (
    Card("H100 80GB", 79.10, (9, 0), "pytorch/torchtitan#1789"),
    Card("A100 80GB", 79.14, (8, 0), "lianqi1008/Control-GIC#6"),
    Card("A100 40GB", 39.50, (8, 0), "TianheWu/CoSeR#10"),
    Card("A30", 23.53, (8, 0), "google/RB-Modulation#5"),
    Card("RTX 6000 Ada", 44.43, (8, 9), "MTVCrafter#21"),
    Card("L40S", 44.42, (8, 9), "stepfun-ai/Step-Video-T2V#8"),
    Card("L40", 44.40, (8, 9), "QwenLM/Qwen3-VL#2097"),
    Card("RTX A6000", 47.53, (8, 6), "black-forest-labs/flux2#23"),
    Card("RTX A4000", 15.61, (8, 6), "DengKaiCQ/VGGT-Long#6"),
    Card("A10", 21.99, (8, 6), "THUDM/CogVLM#236"),
    Card("RTX 5090", 31.36, (12, 0), "TrajectoryCrafter/TrajectoryCrafter#20"),
    Card("RTX 4090", 23.52, (8, 9), "pytorch/torchchat#1341"),
    Card("RTX 4060", 7.75, (8, 9), "ESRSchao/EdgeRegNet#2"),
    Card("RTX 3090", 23.70, (8, 6), "Lightning-AI/lit-llama#137"),
    Card("RTX 3080 10GB", 9.78, (8, 6), "zai-org/CogVideo#34"),
    Card("RTX 3070", 7.78, (8, 6), "akshitac8/OW-DETR#46"),
    Card("RTX 3060 12GB", 11.75, (8, 6), "Kunhao-Liu/StyleGaussian#12"),
    Card("RTX 8000", 47.46, (7, 5), "Victarry/stable-dreambooth#8"),
    Card("RTX 2080 Ti", 10.76, (7, 5), "JDAI-CV/image-captioning#11"),
    Card("T4", 14.56, (7, 5), "Zheng-Chong/CatVTON#133"),
    Card("V100 32GB", 31.74, (7, 0), "liucongg/ChatGLM-Finetuning#73"),
    Card("V100 16GB", 15.75, (7, 0), "pytorch/pytorch#16036"),
    Card("GTX 1080 Ti", 10.92, (6, 1), "Rubics-Xuan/TransBTS#45"),
)

# Words of a device name that do not tell cards apart.
_NOISE = re.compile(r"\b(nvidia|geforce|tesla|quadro|pcie?|sxm\d?|hbm\w*|gen)\b")


def find_card(name: str) -> Card:
    """Return the card of this name.

    Case, spaces, hyphens and the manufacturer do not matter: ``RTX 2080 Ti``, ``2080ti`` and the device name
    ``NVIDIA GeForce RTX 2080 Ti`` mean the same card.

    Raises:
        ValueError: no card or several cards have this name; the message lists the candidates.
    """
    wanted = _words(name)
    found = [card for card in CARDS if wanted and _holds(_words(card.name), wanted)]
    exact = [card for card in found if _words(card.name) == wanted]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if found:
        raise ValueError(f"{name!r} can be {' or '.join(card.name for card in found)}: give one of these names")
    names = [card.name for card in CARDS]
    near = get_close_matches(name.upper(), names, n=3, cutoff=0.6)
    known = f"did you mean {' or '.join(near)}?" if near else f"known cards are {', '.join(names)}."
    raise ValueError(f"no card is known as {name!r}; {known} For another card, give its memory, such as 24GB")


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", _NOISE.sub(" ", name.lower().replace("-", " ")))


def _holds(words: list[str], part: list[str]) -> bool:
    """Whether the words contain the part as consecutive words."""
    return any(words[start : start + len(part)] == part for start in range(len(words) - len(part) + 1))

"""Cards by name: memory, compute capability, and the rates of their data sheets, each with its source.

Memory is the least total capacity that PyTorch reports for the card. It is less than the nominal size, because the
driver and error correction keep a part. Compute capabilities are those of https://developer.nvidia.com/cuda-gpus.

Rates are those of the manufacturer for dense products (no sparsity), half precision with sums in fp32, as PyTorch
computes. GeForce cards before the RTX 50 series do such products at half the rate of their advertised fp16 sums.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ppdm_bench.predictor.target import GIB, Target

__all__ = ["CARDS", "SHEETS", "Card", "Sheet", "card_named", "find_card", "find_sheet"]


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


@dataclass(frozen=True)
class Sheet:
    """Rates of a card from its data sheet.

    Attributes:
        name: name of the card; several sheets can belong to one card, such as those of its PCIe and SXM versions.
        fp32: TFLOP/s of the ordinary cores in fp32.
        tf32: TFLOP/s of the tensor cores in TF32; 0 without them.
        half: TFLOP/s of the tensor cores in fp16, and in bf16 from Ampere on; 0 without them.
        bandwidth: GB/s of the memory.
        compute_capability: (major, minor).
        source: the document.
    """

    name: str
    fp32: float
    tf32: float
    half: float
    bandwidth: float
    compute_capability: tuple[int, int]
    source: str

    @property
    def has_bf16(self) -> bool:
        """Whether the card computes in bf16: from Ampere on."""
        return self.compute_capability >= (8, 0)


_VOLTA = "NVIDIA V100 data sheet"
_TURING = "NVIDIA Turing GPU architecture whitepaper"
_GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper"
_ADA = "NVIDIA Ada GPU architecture whitepaper"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper"

SHEETS = (
    Sheet("H200", 66.9, 494.7, 989.4, 4800, (9, 0), "NVIDIA H200 data sheet"),
    Sheet("H100 80GB", 66.9, 494.7, 989.4, 3350, (9, 0), "NVIDIA H100 data sheet, SXM"),
    Sheet("H100 80GB PCIe", 51.2, 378.0, 756.0, 2000, (9, 0), "NVIDIA H100 data sheet, PCIe"),
    Sheet("A100 80GB", 19.5, 156, 312, 2039, (8, 0), "NVIDIA A100 data sheet, SXM"),
    Sheet("A100 80GB PCIe", 19.5, 156, 312, 1935, (8, 0), "NVIDIA A100 data sheet, PCIe"),
    Sheet("A100 40GB", 19.5, 156, 312, 1555, (8, 0), "NVIDIA A100 data sheet, 40 GB"),
    Sheet("A100 40GB PCIe", 19.5, 156, 312, 1555, (8, 0), "NVIDIA A100 data sheet, 40 GB PCIe"),
    Sheet("A30", 10.3, 82, 165, 933, (8, 0), "NVIDIA A30 data sheet"),
    Sheet("RTX 6000 Ada", 91.1, 182.1, 364.2, 960, (8, 9), _ADA),
    Sheet("L40S", 91.6, 183, 362.05, 864, (8, 9), "NVIDIA L40S data sheet"),
    Sheet("L40", 90.5, 90.5, 181.05, 864, (8, 9), "NVIDIA L40 data sheet"),
    Sheet("A40", 37.4, 74.8, 149.7, 696, (8, 6), "NVIDIA A40 data sheet"),
    Sheet("RTX A6000", 38.7, 77.4, 154.8, 768, (8, 6), _GA102),
    Sheet("RTX A4000", 19.2, 38.3, 76.7, 448, (8, 6), "NVIDIA RTX A4000 data sheet"),
    Sheet("A10", 31.2, 62.5, 125, 600, (8, 6), "NVIDIA A10 data sheet"),
    Sheet("RTX 5090", 104.8, 104.8, 209.5, 1792, (12, 0), _BLACKWELL),
    Sheet("RTX 4090", 82.6, 82.6, 165.2, 1008, (8, 9), _ADA),
    Sheet("RTX 3090", 35.6, 35.6, 71, 936, (8, 6), _GA102),
    Sheet("RTX 3080 10GB", 29.8, 29.8, 59.5, 760, (8, 6), _GA102),
    Sheet("RTX 3070", 20.3, 20.3, 40.6, 448, (8, 6), _GA102),
    Sheet("RTX 8000", 16.3, 0, 130.5, 672, (7, 5), _TURING),
    Sheet("Quadro RTX 6000", 16.3, 0, 130.5, 672, (7, 5), _TURING),
    Sheet("Titan RTX", 16.3, 0, 130.5, 672, (7, 5), "NVIDIA Titan RTX product page"),
    Sheet("RTX 2080 Ti", 13.4, 0, 53.8, 616, (7, 5), _TURING),
    Sheet("T4", 8.1, 0, 65, 320, (7, 5), "NVIDIA T4 data sheet"),
    Sheet("V100 32GB", 15.7, 0, 125, 900, (7, 0), _VOLTA),
    Sheet("V100 32GB PCIe", 14.0, 0, 112, 900, (7, 0), _VOLTA),
    Sheet("V100 16GB", 15.7, 0, 125, 900, (7, 0), _VOLTA),
    Sheet("GTX 1080 Ti", 11.3, 0, 0, 484, (6, 1), "NVIDIA GeForce GTX 1080 Ti product page"),
    Sheet("Titan Xp", 12.15, 0, 0, 547.7, (6, 1), "NVIDIA Titan Xp product page"),
)

# Words of a device name that do not tell cards apart.
_NOISE = re.compile(r"\b(nvidia|geforce|tesla|quadro|pcie?|sxm\d?|hbm\w*|gen)\b")
_VENDOR = re.compile(r"\b(nvidia|geforce|tesla|sxm\d?|hbm\w*|gen)\b")


def find_card(name: str) -> Card:
    """Return the card of this name.

    Case, spaces, hyphens and the manufacturer do not matter: ``RTX 2080 Ti``, ``2080ti`` and the device name
    ``NVIDIA GeForce RTX 2080 Ti`` mean the same card.

    Raises:
        ValueError: no card or several cards have this name; the message lists the candidates.
    """
    return CARDS[_find(name, [card.name for card in CARDS], _NOISE, "For another card, give its memory, such as 24GB")]


def find_sheet(name: str) -> Sheet:
    """Return the data sheet of this card; the name is read as by :func:`find_card`, and PCIe is told from SXM.

    Raises:
        ValueError: no sheet or several sheets have this name; the message lists the candidates.
    """
    names, advice = [sheet.name for sheet in SHEETS], "No data sheet of another card is known"
    try:
        return SHEETS[_find(name, names, _VENDOR, advice)]
    except ValueError:
        return SHEETS[_find(name, names, _NOISE, advice)]


def card_named(name: str) -> Card | None:
    """Return the card with exactly this name, up to PCIe or SXM; None if its memory is not in the table."""
    wanted = _words(name, _NOISE)
    return next((card for card in CARDS if _words(card.name, _NOISE) == wanted), None)


def _find(name: str, names: Sequence[str], noise: re.Pattern[str], advice: str) -> int:
    """Index of the card that a name means."""
    wanted = _words(name, noise)
    known = [_words(each, noise) for each in names]
    found = [at for at, words in enumerate(known) if wanted and _holds(words, wanted)]
    exact = [at for at in found if known[at] == wanted]
    if len(found) == 1 or exact:
        return (exact or found)[0]
    if found:
        raise ValueError(f"{name!r} can be {' or '.join(names[at] for at in found)}: give one of these names")
    near = get_close_matches(name.upper(), names, n=3, cutoff=0.6)
    text = f"did you mean {' or '.join(near)}?" if near else f"known cards are {', '.join(names)}."
    raise ValueError(f"no card is known as {name!r}; {text} {advice}")


def _words(name: str, noise: re.Pattern[str]) -> list[str]:
    return re.findall(r"[a-z]+|\d+", noise.sub(" ", name.lower().replace("-", " ")))


def _holds(words: list[str], part: list[str]) -> bool:
    """Whether the words contain the part as consecutive words."""
    return any(words[start : start + len(part)] == part for start in range(len(words) - len(part) + 1))

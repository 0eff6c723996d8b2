"""Cards by name: memory, compute capability, and rates from their data sheets, each with its source.

Memory is the smallest total capacity that PyTorch reports for the card. It is less than the nominal size, because the
driver and error correction reserve a part. Compute capabilities are from https://developer.nvidia.com/cuda-gpus.

Rates are the manufacturer's for dense products (without sparsity); for half precision, with accumulation in fp32, as
PyTorch computes. GeForce cards do such products at half the advertised rate, which is for accumulation in fp16.

Each rate was compared with a public copy of its document or with a quotation. `Sheet.doubt` names the rates without
either, and the rates on which documents disagree. A test computes every rate from the cores, the clock and the
memory of the card (`Chip`). Documents about the B200 disagree (FP32 75 or 80 TFLOP/s, TF32 1,100 or 1,125, 7.7 or
8 TB/s), and no kernels of its generation are known here, so it is not in the table.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from ppdm_bench.predictor.target import GIB, Target

__all__ = ["CARDS", "SHEETS", "Card", "Chip", "Sheet", "card_named", "find_card", "find_sheet"]


@dataclass(frozen=True)
class Card:
    """A graphics card.

    Attributes:
        name: product name without the manufacturer.
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

    def target(self, **fields: object) -> Target:
        """Return a prediction target for this card; ``fields`` are other fields of :class:`Target`."""
        own = {"gpu": self.name, "capacity": self.capacity, "compute_capability": self.compute_capability}
        return Target(**own | fields)  # type: ignore[arg-type]


CARDS = (
    Card("H200", 139.81, (9, 0), "vllm-project/vllm#34553"),
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
class Chip:
    """Hardware figures from which the peak rates of a card are computed.

    Attributes:
        cores: CUDA cores; each does one multiplication and one addition per cycle.
        mhz: boost clock in MHz.
        tensor: half-precision rate of the tensor cores divided by the fp32 rate of the CUDA cores; 0 without tensor
            cores.
        bus: width of the memory bus in bits.
        gbps: data rate of the memory in Gbit/s per bit of the bus.
    """

    cores: int
    mhz: int
    tensor: int
    bus: int
    gbps: float


@dataclass(frozen=True)
class Sheet:
    """Peak rates of a card from its data sheet.

    Attributes:
        name: name of the card; one card can have several sheets, such as those of its PCIe and SXM versions.
        fp32: TFLOP/s of the CUDA cores in fp32.
        tf32: TFLOP/s of the tensor cores in TF32; 0 if they do not support it.
        half: TFLOP/s of the tensor cores in fp16, and in bf16 from Ampere on; 0 without tensor cores.
        bandwidth: memory bandwidth in GB/s.
        compute_capability: (major, minor).
        chip: hardware figures that give these rates.
        source: the document.
        doubt: rates that no public copy of the document confirms, or on which documents disagree; else empty.
    """

    name: str
    fp32: float
    tf32: float
    half: float
    bandwidth: float
    compute_capability: tuple[int, int]
    chip: Chip
    source: str
    doubt: str = ""


_HOPPER = "NVIDIA H100 data sheet"
_AMPERE = "NVIDIA A100 data sheet"
_VOLTA = "NVIDIA V100 data sheet"
_TURING = "NVIDIA Turing GPU architecture whitepaper"
_GA102 = "NVIDIA Ampere GA102 GPU architecture whitepaper v2"
_ADA = "NVIDIA Ada GPU architecture whitepaper"
_BLACKWELL = "NVIDIA RTX Blackwell GPU architecture whitepaper"
_PRODUCT = "NVIDIA product page of the card"

_NO_COPY = "half and tf32: no public copy of this table was found"
_RATIO = "half and tf32: from the ratio of other cards of the same series"
_HALVED = "tf32: half of the half-precision rate, as for the other cards of the same series"
_SUMS = (
    "half and tf32: may count sums in fp16; the sheet of the L40, of the same generation, prints half as much per core"
)

# fmt: off
SHEETS = (
    Sheet("H200", 66.9, 494.7, 989.4, 4800, (9, 0), Chip(16896, 1980, 16, 6144, 6.25), "NVIDIA H200 data sheet"),
    Sheet("H100 80GB", 66.9, 494.7, 989.4, 3350, (9, 0), Chip(16896, 1980, 16, 5120, 5.24), _HOPPER),
    Sheet("H100 80GB PCIe", 51.2, 378.0, 756.0, 2000, (9, 0), Chip(14592, 1755, 16, 5120, 3.19), _HOPPER),
    Sheet("A100 80GB", 19.5, 156, 312, 2039, (8, 0), Chip(6912, 1410, 16, 5120, 3.19), _AMPERE),
    Sheet("A100 80GB PCIe", 19.5, 156, 312, 1935, (8, 0), Chip(6912, 1410, 16, 5120, 3.02), _AMPERE),
    Sheet("A100 40GB", 19.5, 156, 312, 1555, (8, 0), Chip(6912, 1410, 16, 5120, 2.43), _AMPERE),
    Sheet("A100 40GB PCIe", 19.5, 156, 312, 1555, (8, 0), Chip(6912, 1410, 16, 5120, 2.43), _AMPERE),
    Sheet("A30", 10.3, 82, 165, 933, (8, 0), Chip(3584, 1440, 16, 3072, 2.43), "NVIDIA A30 data sheet"),
    Sheet("RTX 6000 Ada", 91.1, 182.1, 364.2, 960, (8, 9), Chip(18176, 2505, 4, 384, 20), _ADA, _NO_COPY),
    Sheet("L40S", 91.6, 183, 362.05, 864, (8, 9), Chip(18176, 2520, 4, 384, 18), "NVIDIA L40S data sheet", _SUMS),
    Sheet("L40", 90.5, 90.5, 181.05, 864, (8, 9), Chip(18176, 2490, 2, 384, 18), "NVIDIA L40 data sheet"),
    Sheet("L4", 30.3, 60, 121, 300, (8, 9), Chip(7424, 2040, 4, 192, 12.5), "NVIDIA L4 data sheet", _SUMS),
    Sheet("A40", 37.4, 74.8, 149.7, 696, (8, 6), Chip(10752, 1740, 4, 384, 14.5), "NVIDIA A40 data sheet"),
    Sheet("RTX A6000", 38.7, 77.4, 154.8, 768, (8, 6), Chip(10752, 1800, 4, 384, 16), _GA102),
    Sheet("RTX A5000", 27.8, 55.6, 111.1, 768, (8, 6), Chip(8192, 1695, 4, 384, 16), _PRODUCT, _RATIO),
    Sheet("RTX A4000", 19.2, 38.3, 76.7, 448, (8, 6), Chip(6144, 1560, 4, 256, 14), _PRODUCT, _HALVED),
    Sheet("A10", 31.2, 62.5, 125, 600, (8, 6), Chip(9216, 1695, 4, 384, 12.5), "NVIDIA A10 data sheet"),
    Sheet("RTX 5090", 104.8, 104.8, 209.5, 1792, (12, 0), Chip(21760, 2407, 2, 512, 28), _BLACKWELL),
    Sheet("RTX 4090", 82.6, 82.6, 165.2, 1008, (8, 9), Chip(16384, 2520, 2, 384, 21), _ADA),
    Sheet("RTX 4060", 15.1, 15.1, 30.2, 272, (8, 9), Chip(3072, 2460, 2, 128, 17), _PRODUCT, _RATIO),
    Sheet("RTX 3090", 35.6, 35.6, 71, 936, (8, 6), Chip(10496, 1695, 2, 384, 19.5), _GA102),
    Sheet("RTX 3080 10GB", 29.8, 29.8, 59.5, 760, (8, 6), Chip(8704, 1710, 2, 320, 19), _GA102),
    Sheet("RTX 3070", 20.3, 20.3, 40.6, 448, (8, 6), Chip(5888, 1725, 2, 256, 14), _GA102),
    Sheet("RTX 3060 12GB", 12.7, 12.7, 25.5, 360, (8, 6), Chip(3584, 1777, 2, 192, 15), _PRODUCT, _RATIO),
    Sheet("RTX 8000", 16.3, 0, 130.5, 672, (7, 5), Chip(4608, 1770, 8, 384, 14), _TURING),
    Sheet("Quadro RTX 6000", 16.3, 0, 130.5, 672, (7, 5), Chip(4608, 1770, 8, 384, 14), _TURING),
    Sheet("Titan RTX", 16.3, 0, 130.5, 672, (7, 5), Chip(4608, 1770, 8, 384, 14), _PRODUCT),
    # Rates at the clock of the reference design; the Founders Edition has 1635 MHz, 14.2 and 56.9 TFLOP/s.
    Sheet("RTX 2080 Ti", 13.4, 0, 53.8, 616, (7, 5), Chip(4352, 1545, 4, 352, 14), _TURING),
    Sheet("T4", 8.1, 0, 65, 320, (7, 5), Chip(2560, 1590, 8, 256, 10), "NVIDIA T4 data sheet"),
    Sheet("V100 32GB", 15.7, 0, 125, 900, (7, 0), Chip(5120, 1530, 8, 4096, 1.755), _VOLTA),
    Sheet("V100 32GB PCIe", 14.0, 0, 112, 900, (7, 0), Chip(5120, 1380, 8, 4096, 1.755), _VOLTA),
    Sheet("V100 16GB", 15.7, 0, 125, 900, (7, 0), Chip(5120, 1530, 8, 4096, 1.755), _VOLTA),
    Sheet("GTX 1080 Ti", 11.3, 0, 0, 484, (6, 1), Chip(3584, 1582, 0, 352, 11), _TURING),
    Sheet("Titan Xp", 12.15, 0, 0, 547.7, (6, 1), Chip(3840, 1582, 0, 384, 11.41), _PRODUCT),
)
# fmt: on

# Words of a device name that do not distinguish cards.
_NOISE_WORDS = re.compile(r"\b(nvidia|geforce|tesla|quadro|pcie?|sxm\d?|hbm\w*|gen)\b")
_VENDOR_WORDS = re.compile(r"\b(nvidia|geforce|tesla|sxm\d?|hbm\w*|gen)\b")


def find_card(name: str) -> Card:
    """Return the card of this name.

    Case, spaces, hyphens and the manufacturer do not matter: ``RTX 2080 Ti``, ``2080ti`` and the device name
    ``NVIDIA GeForce RTX 2080 Ti`` mean the same card.

    Raises:
        ValueError: no card or several cards have this name; the message lists the candidates.
    """
    names, advice = [card.name for card in CARDS], "For another card, give its memory, such as 24GB"
    return CARDS[_find(name, names, _NOISE_WORDS, advice)]


def find_sheet(name: str) -> Sheet:
    """Return the data sheet of this card; the name has the format of :func:`find_card`, but PCIe and SXM differ.

    Raises:
        ValueError: no sheet or several sheets have this name; the message lists the candidates.
    """
    names, advice = [sheet.name for sheet in SHEETS], "No data sheet of another card is known"
    try:
        return SHEETS[_find(name, names, _VENDOR_WORDS, advice)]
    except ValueError:
        return SHEETS[_find(name, names, _NOISE_WORDS, advice)]


def card_named(name: str) -> Card | None:
    """Return the card with exactly this name, except for PCIe or SXM; None if the table has no such card."""
    wanted = _words(name, _NOISE_WORDS)
    return next((card for card in CARDS if _words(card.name, _NOISE_WORDS) == wanted), None)


def _find(name: str, names: Sequence[str], ignored: re.Pattern[str], advice: str) -> int:
    """Return the index of the name that ``name`` means."""
    wanted = _words(name, ignored)
    known = [_words(each, ignored) for each in names]
    found = [at for at, words in enumerate(known) if wanted and _contains(words, wanted)]
    exact = [at for at in found if known[at] == wanted]
    if len(found) == 1 or exact:
        return (exact or found)[0]
    if found:
        raise ValueError(f"{name!r} can be {' or '.join(names[at] for at in found)}: give one of these names")
    near = get_close_matches(name.upper(), names, n=3, cutoff=0.6)
    text = f"did you mean {' or '.join(near)}?" if near else f"known cards are {', '.join(names)}."
    raise ValueError(f"no card is known as {name!r}; {text} {advice}")


def _words(name: str, ignored: re.Pattern[str]) -> list[str]:
    return re.findall(r"[a-z]+|\d+", ignored.sub(" ", name.lower().replace("-", " ")))


def _contains(words: list[str], part: list[str]) -> bool:
    """Whether ``part`` is a consecutive part of the words."""
    return any(words[start : start + len(part)] == part for start in range(len(words) - len(part) + 1))

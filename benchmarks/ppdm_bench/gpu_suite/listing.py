"""List of the pieces, most important first: each is an ordinary command, with options for a small trial on a CPU."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ppdm.simulation.tasks import PAPER_TASKS
from ppdm_baselines import METHODS, REFERENCE

CARD = "NVIDIA H100 80GB"  # the estimates are for this GPU

SIZES = (64, 128, 192, 256)
LARGEST = 512  # for the first method only; the others are not designed for this size

# Minutes of one training. A piece trains one method; the remaining time is for creating subjects and evaluation.
MINUTES = 5


@dataclass(frozen=True)
class SuitePiece:
    """One ordinary command.

    Attributes:
        name: name of the piece on the command line.
        purpose: description of the measurement.
        command: words of the command, without device and output folder.
        seconds: estimated duration on ``CARD``.
        tiny: additional words for a small trial; if an option is given twice, the last value applies.
        folder: folder of the records; pieces with the same folder reuse measurements of each other.
        tiny_seconds: estimated duration of the small trial on two cores.
    """

    name: str
    purpose: str
    command: tuple[str, ...]
    seconds: int
    tiny: tuple[str, ...]
    folder: str
    tiny_seconds: int = 60

    def words(self, device: str, out: Path) -> tuple[str, ...]:
        """Return the complete command: full size for ``cuda``, small for ``cpu``."""
        tiny = self.tiny if device == "cpu" else ()
        return (*self.command, *tiny, "--device", device, "--out", str(out / self.folder))

    def estimate(self, device: str) -> int:
        """Return the estimated seconds: full size on ``CARD``, or the small trial on two cores."""
        return self.tiny_seconds if device == "cpu" else self.seconds


def listing() -> list[SuitePiece]:
    """All pieces, in order of importance."""
    first = next(iter(METHODS))
    core = list(dict.fromkeys((first, REFERENCE)))
    rest = [name for name in METHODS if name not in core]
    peaks = [_memory(size, core, "none", "", 150 + size // 2) for size in SIZES]
    compared = [_compared(task, [*core, *rest], 96) for task in PAPER_TASKS]
    return [
        *peaks,
        _speed(128, core, "fp32,bf16", "", 480),
        *_options(128, core),
        *(_verified(piece) for piece in peaks),
        *(_memory(size, core, "block", "-block", 150 + size // 2) for size in SIZES),
        *(piece for pieces in compared for piece in pieces[: len(core)]),
        *(_memory(size, rest, "none", "-baselines", 260 + size) for size in SIZES),
        *(_memory(size, rest, "block", "-baselines-block", 260 + size) for size in SIZES),
        *(_memory(LARGEST, [first], kind, name, 400) for kind, name in (("none", ""), ("block", "-block"))),
        _speed(256, core, "fp32,bf16", "", 590, evaluations="1,4,10,50"),
        _speed(128, rest, "bf16", "-baselines", 540),
        *(piece for pieces in compared for piece in pieces[len(core) :]),
        *(piece for task in PAPER_TASKS for piece in _compared(task, core, 128)),
    ]


def _memory(size: int, methods: Sequence[str], checkpointing: str, suffix: str, seconds: int) -> SuitePiece:
    name = f"memory-{size}{suffix}"
    recomputed = "" if checkpointing == "none" else f", {checkpointing}s recomputed"
    options = {"--res": str(size), "--precision": "fp32,bf16", "--checkpointing": checkpointing, "--timeout": "180"}
    return SuitePiece(
        name,
        f"peak memory of {_named(methods)} at {size}³, fp32 and bf16{recomputed}, beside its prediction",
        ("memory", *_each("--method", methods), *_pairs(options)),
        seconds,
        (*_SMALL, "--precision", "fp32"),
        folder=name,
    )


def _verified(piece: SuitePiece) -> SuitePiece:
    """Return the same piece with verification; it uses the same folder and so reuses existing measurements."""
    return replace(
        piece,
        name=piece.name.replace("memory", "verify"),
        purpose=f"second verification: {piece.name} again, with each process limited to the predicted memory",
        command=(*piece.command, "--verify"),
    )


def _speed(
    size: int, methods: Sequence[str], precision: str, suffix: str, seconds: int, evaluations: str = "1,4,10"
) -> SuitePiece:
    name = f"speed-{size}{suffix}"
    options = {"--res": str(size), "--factor": "2,4", "--precision": precision, "--evaluations": evaluations}
    return SuitePiece(
        name,
        f"training steps per second and seconds per volume of {_named(methods)} at {size}³, {precision}",
        ("speed", *_each("--method", methods), *_pairs(options)),
        seconds,
        (*_SMALL, "--precision", "fp32", "--evaluations", "1", "--quick"),
        folder=name,
    )


def _compared(task: str, methods: Sequence[str], size: int) -> list[SuitePiece]:
    """Return one piece per method; each also contains the methods before it, already trained, to compare them."""
    folder = f"quality-{size}-{task}"
    options = {"--size": str(size), "--subjects": "20", "--minutes": str(MINUTES), "--evaluations": "1,2,4,10"}
    tiny = {"--size": "16", "--subjects": "3", "--minutes": "0.01", "--evaluations": "1", "--width": "8"}
    return [
        SuitePiece(
            f"{folder}-{method}",
            f"{task} at {size}³: quality of {_named(methods[:number])}, each trained for {MINUTES} min",
            ("quality", "--task", task, *_each("--method", methods[:number]), *_pairs(options)),
            60 * MINUTES + 240,
            tuple(_pairs(tiny)),
            folder,
        )
        for number, method in enumerate(methods, start=1)
    ]


def _options(size: int, methods: Sequence[str]) -> list[SuitePiece]:
    """Return pieces for memory and time of a step with each option separately, and with all faster options combined."""
    memory_options = ("network.checkpointing=norm,block,conv", "network.channels_last=true", "network.compile=true")
    speed_options = (*memory_options[1:], "network.channels_last=true+network.compile=true")
    words = (*_each("--method", methods), *_pairs({"--res": str(size), "--factor": "4", "--precision": "bf16"}))
    tiny = (*_SMALL, "--precision", "fp32", "--set", "network.multipliers=[1,2]")
    memory, speed = f"memory-{size}-switches", f"speed-{size}-switches"
    return [
        SuitePiece(
            memory,
            f"peak memory of {_named(methods)} at {size}³ with each memory-saving option, bf16, beside its prediction",
            ("memory", *words, *_each("--vary", memory_options)),
            540,
            tiny,
            memory,
            120,
        ),
        SuitePiece(
            speed,
            f"time of a step and of a volume of {_named(methods)} at {size}³ with each faster option, bf16",
            ("speed", *words, *_each("--vary", speed_options), "--evaluations", "1,4", "--quick"),
            560,
            (*tiny, "--evaluations", "1"),
            speed,
            180,
        ),
    ]


_SMALL = ("--res", "8", "--width", "8", "--factor", "4", "--phase", "train")


def _each(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]


def _pairs(options: dict[str, str]) -> list[str]:
    return [word for pair in options.items() for word in pair]


def _named(methods: Sequence[str]) -> str:
    return ", ".join(methods)

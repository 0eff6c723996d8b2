"""Train with two processes, as torchrun starts them, for ``test_distributed``.

Run this as a script, ``ranked.py FOLDER``; FOLDER contains ``pairs.csv``. It imports PyTorch once, and every process is
a fork of it with the environment variables that torchrun sets. The script prints the exit codes, outputs and numbers of
each scenario as JSON.
"""

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # imported here once; otherwise the optimiser of every fork imports it
from killed import imported
from tiny_methods import tiny
from tiny_training import TINY, pair

from ppdm.data.manifest import read_manifest
from ppdm.method import Method
from ppdm.training import loop, session
from ppdm.training.augment import Flip
from ppdm.training.distributed import Ranks, joined
from ppdm.training.log import StepReport
from ppdm.training.run import Run
from ppdm.training.trainer import Training
from ppdm.window import Patch
from ppdm_baselines import METHODS
from ppdm_bench import cli
from ppdm_bench.commands import pair_sources
from ppdm_bench.commands import training_run as train_command
from ppdm_bench.evaluation import evaluation_output, pictures

METHOD = {
    "puzzle": TINY,
    "patches": replace(TINY, name="patches", window=Patch(4)),
    "slices": tiny(METHODS["slice25d"]),
    "latent": tiny(METHODS["latent"]),
    "adversarial": tiny(METHODS["gan3d"]),
}
OPTIONS: dict[str, Any] = {"steps": 4, "batch_size": 4, "accumulate": 2, "augment": Flip(), "seed": 3}
PAIRS = [pair(number) for number in range(5)]
HELD = [pair(number) for number in (7, 8, 9)]
TRAIN = [
    "train",
    "--method",
    "tiny_training:TINY",
    "--steps",
    6,
    "--batch-size",
    2,
    "--save-every",
    2,
    "--device",
    "cpu",
]

Work = Callable[[], Any]


def start(folder: Path, rank: int, port: int, work: Work) -> int:
    """Fork one of two processes; write its output streams and the result of its work to files."""
    if child := os.fork():
        return child
    torch.set_num_threads(1)
    os.environ |= {"TORCHELASTIC_RUN_ID": "test", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code: Any = 0
    out, err = ((folder / f"{name}{rank}").open("w") for name in ("out", "err"))
    with out, err, redirect_stdout(out), redirect_stderr(err):
        try:
            (folder / f"result{rank}").write_text(json.dumps(work()))
        except SystemExit as end:
            code = end.code
        except BaseException:  # the fork must never continue with the code of its parent
            traceback.print_exc()
            code = 99
    os._exit(code)


def both(folder: Path, *work: Work) -> dict[str, list[Any]]:
    """Run two processes, with the same work or one work each, and return exit codes, results and outputs."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first, second = (work * 2)[:2]
    children = [start(folder, 0, port, first), start(folder, 1, port, second)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    read = {name: [(folder / f"{name}{rank}").read_text() for rank in (0, 1)] for name in ("out", "err")}
    given = [folder / f"result{rank}" for rank in (0, 1)]
    return {"codes": codes, "results": [json.loads(one.read_text()) if one.exists() else None for one in given], **read}


def command(*words: object) -> None:
    sys.argv = ["ppdm-bench", *map(str, words)]
    cli.main()


def fitted(folder: Path, method: Method) -> list[Any]:
    """Train with `loop.fit`, save weights and the gradients of the first update, and return the reported numbers."""
    seen: list[torch.Tensor] = []
    update = Training.update

    def watched(self: Training, rate: float) -> torch.Tensor:
        if not self.done:
            trained = [one for module in self.trained_modules for one in module.parameters()]
            seen.extend(one.grad.clone() for one in trained if one.grad is not None)
        return update(self, rate)

    Training.update = watched  # type: ignore[method-assign]
    reports: list[StepReport] = []
    with joined() as ranks:
        network = loop.fit(
            method, PAIRS, validation=HELD, validate_every=2, progress=reports.append, log=folder / "log", **OPTIONS
        )
    kept = {"weights": list(network.parameters()), "gradients": seen}
    torch.save(kept, folder / f"{method.name}-{ranks.rank}-of-{ranks.world}.pt")
    return [(one.step, one.loss, one.gradient_norm, one.validation_loss) for one in reports]


def by_the_clock() -> list[int]:
    done = []
    with joined():
        loop.fit(TINY, PAIRS, minutes=0.005, batch_size=2, progress=lambda report: done.append(report.step))
    return done


def interrupted(owner: Any, name: str, moment: int, deed: Callable[[], None]) -> None:
    """Call ``deed`` before call number ``moment``, counted from 0, of the function ``name`` of ``owner``."""
    operation, numbers = getattr(owner, name), count()

    def wrapped(*arguments: Any, **options: Any) -> Any:
        if next(numbers) == moment:
            deed()
        return operation(*arguments, **options)

    setattr(owner, name, wrapped)


def dying(words: list[object]) -> Work:
    def work() -> None:
        interrupted(Training, "update", 2, lambda: os.kill(os.getpid(), signal.SIGKILL))
        command(*words)

    return work


def failing(words: list[object], error: Exception) -> Work:
    def work() -> None:
        def fail() -> None:
            raise error

        interrupted(Training, "add_gradient", 2, fail)
        command(*words)

    return work


def terminated(words: list[object]) -> Work:
    """Return work in which the process sends itself SIGTERM in its third training step."""

    def work() -> None:
        interrupted(Training, "add_gradient", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        command(*words)

    return work


def full(words: list[object]) -> Work:
    """Return work in which saving the second checkpoint fails because the disk is full."""

    def work() -> None:
        def fail() -> None:
            raise OSError(28, "No space left on device")

        interrupted(Run, "save", 1, fail)
        command(*words)

    return work


def quality(folder: Path) -> None:
    """Score two methods; the second cannot be trained. The peak memory of each GPU is 100 bytes plus its rank."""
    pairs = read_manifest(folder / "pairs.csv")
    pair_sources.cached_set = lambda *_, **__: pairs
    pictures.save = evaluation_output.save = lambda figure, stem: []
    peaks = session.peak_allocated
    session.peak_allocated = lambda device, ranks: peaks("cuda", ranks)
    torch.cuda.max_memory_allocated = lambda *_: 100 + Ranks.here().rank
    words = ["quality", "--task", "mri-t1t2", "--method", "tiny_training:TINY", "--steps", 2, "--batch-size", 2]
    words += ["--evaluations", 1, "--vary", "optimisation.learning_rate=1e30", "--device", "cpu"]
    command(*words, "--out", folder / "quality")


def main(folder: Path) -> dict[str, Any]:
    imported()
    train_command.save_loss_curve = lambda log, path: None  # every fork would import the drawing modules
    log = folder / "log"
    alone = {name: fitted(folder, method) for name, method in METHOD.items()}
    assert len(log.read_text().splitlines()) == OPTIONS["steps"]
    there = {"alone": alone}
    for name, method in METHOD.items():
        there[name] = both(folder / name, lambda method=method: fitted(folder, method))
        there[name]["log"] = len(log.read_text().splitlines())
    there["clock"] = both(folder / "clock", by_the_clock)

    def words(name: str, *more: object) -> list[object]:
        return [*TRAIN, "--manifest", folder / "pairs.csv", "--out", folder / f"run-{name}", *more]

    def trained(name: str, *more: object) -> Work:
        return lambda: command(*words(name, *more))

    lost = OSError("the scan cannot be read")
    there["plain"] = both(folder / "plain", trained("plain"))
    there["again"] = both(folder / "again", trained("plain", "--resume"))
    there["lost"] = both(folder / "lost", trained("lost"), dying(words("lost")))
    there["failed"] = both(folder / "failed", trained("failed"), failing(words("failed"), lost))
    there["stopped"] = both(folder / "stopped", trained("stopped"), terminated(words("stopped")))
    there["full"] = both(folder / "full", full(words("full")), trained("full"))
    for name in ("lost", "failed", "stopped", "full"):
        there[f"{name} on"] = both(folder / f"{name}-on", trained(name, "--resume"))
    there["odd"] = both(folder / "odd", trained("odd", "--batch-size", 3))
    there["usage"] = both(folder / "usage", trained("usage", "--minutes", 1))
    there["quality"] = both(folder / "scored", lambda: quality(folder))
    return there


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))

"""Train and evaluate every method on every task with equal training time, in tiers; this can take days.

    OMP_NUM_THREADS=1 python benchmarks/harness/campaign.py FOLDER    about 15 core-hours; it resumes when it was killed
    python benchmarks/harness/campaign.py FOLDER --until methods  the tiers up to this one
    python benchmarks/harness/campaign.py FOLDER --list           list what is done and the hours that remain
    python benchmarks/harness/campaign.py FOLDER --gather results/campaign    add the records of what is complete
    python benchmarks/harness/campaign.py FOLDER --continue results/campaign  do not repeat what was gathered there

Each training is one `ppdm-bench quality` in a process with one thread. To train several methods in parallel, run the
same command several times: no two processes take the same training. At the start of a tier, missing step times are
measured, alternating between methods, and written to FOLDER/paces.jsonl. They convert every time budget to a number of
steps, so that the load of the machine does not change the results. Methods whose default is more network evaluations
are also scored with that number. --real is the manifest of real pairs, which are then used in addition to the phantoms.
"""

import argparse
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

from filelock import FileLock, Timeout

from ppdm.data.manifest import SPLITS
from ppdm.training.schedule import Schedule
from ppdm_baselines import METHODS
from ppdm_bench.commands.pair_sources import ManifestSubjects, PhantomSubjects, Subjects
from ppdm_bench.evaluation.steps_for_minutes import with_steps_for_minutes
from ppdm_bench.evaluation.trials import plan_trials
from ppdm_bench.report.atomic_io import replace_file
from ppdm_bench.report.snapshot import SUFFIX, read_snapshot, write_snapshot

# Width 16 and batches of one pair in bf16 give the most updates per minute on processors with AVX-512 BF16.
BASE = ("network.precision=bf16",)
WIDTH, PARTS, EVALUATIONS, MORE = 16, 6, "1,2,4", 25
SHORTEST = 3.0  # minutes
SUBJECTS = 54  # eight of them for the scores, eight for the learning curves
LEVELS = "network.multipliers=[1,2,4]"  # three levels, so that factor 8 needs no padding at 32 voxels

FROM_NOISE = ("kernel=gaussian(schedule=cosine)", "target=x0")
WITHOUT_LOSS = ("loss.mode=off", "loss.gradient=0")
WITHOUT_PUZZLE = ("representation=identity",)
# The methods that most claims compare come first; `sparse` is full 3-D that predicts x0.
FIRST = (
    *(("ppdm", ()), ("ddpm3d", ()), ("sparse", ()), ("wavelet", ())),
    *(("ppdm", FROM_NOISE), ("ppdm", WITHOUT_LOSS), ("regression", ())),
)
REST = (*((name, ()) for name in METHODS if (name, ()) not in FIRST), ("ppdm", WITHOUT_PUZZLE))
FACTORS = tuple((factor, width) for factor in (1, 2, 4, 8) for width in ((16,) if factor == 1 else (16, 32, 64)))


@dataclass(frozen=True)
class Data:
    """A data set, and the minutes of each training on it."""

    subjects: Subjects
    minutes: float

    @property
    def name(self) -> str:
        """Name of the data, with the size of phantoms."""
        return " ".join(filter(None, (self.subjects.task, str(getattr(self.subjects, "size", "")))))

    @property
    def splits(self) -> list[str]:
        """The splits that have subjects."""
        return [split for split in SPLITS if self.subjects.shapes(split)]

    @property
    def words(self) -> tuple[str, ...]:
        """The command-line options for this data set."""
        one = self.subjects
        if isinstance(one, ManifestSubjects):
            return "--manifest", str(one.path)
        return "--task", one.task, "--subjects", str(one.subjects), "--size", str(one.size)


@dataclass(frozen=True)
class Job:
    """One call of ``ppdm-bench quality``: a training with its scores, or additional scores of a training."""

    tier: str
    data: Data
    method: str
    settings: tuple[str, ...] = ()
    seed: int = 0
    width: int = WIDTH
    evaluations: str = EVALUATIONS

    @property
    def is_training(self) -> bool:
        """Whether this job trains; otherwise it scores a network that another job trained."""
        return self.evaluations == EVALUATIONS

    @property
    def part(self) -> tuple[object, ...]:
        """Key of the jobs that are gathered together: those whose points are compared, or all jobs of a method."""
        if self.tier == "factors":
            return self.tier, self.data.name
        return (self.tier,) if self.tier == "claims" else (self.tier, self.method, self.settings)

    @property
    def name(self) -> str:
        """Name of the log file."""
        return self.run if self.is_training else f"{self.run} e{self.evaluations}"

    @property
    def run(self) -> str:
        """Name of the output folder."""
        parts = (self.data.name, self.method, *self.settings, f"w{self.width}", f"s{self.seed}")
        return " ".join(parts).replace("/", "-")

    def words(self, folder: Path) -> list[str]:
        """The command line."""
        changes = [word for text in (*BASE, *self.settings) for word in ("--set", text)]
        return [
            *(sys.executable, "-m", "ppdm_bench", "quality", *self.data.words, "--method", self.method, *changes),
            *("--width", str(self.width), "--seeds", str(self.seed), "--minutes", str(self.data.minutes)),
            *("--paces", str(folder / "paces.jsonl"), "--evaluations", self.evaluations, "--device", "cpu"),
            *(("--curve", str(PARTS)) if "val" in self.data.splits and self.is_training else ()),
            *("--out", str(folder / "runs" / self.run)),
        ]


def jobs(real: Path | None) -> list[Job]:
    """All jobs in order of their tier; within a tier, one method after another on all data."""
    phantoms = [
        Data(PhantomSubjects("mri-t1t2", SUBJECTS, 32), SHORTEST),
        Data(PhantomSubjects("pet-joint", SUBJECTS, 32), SHORTEST),
        Data(PhantomSubjects("pet-denoise", SUBJECTS, 48), 4.0),  # at 32³ there is almost no noise to remove
    ]
    large = Data(PhantomSubjects("mri-t1t2", SUBJECTS, 64), 8.0)
    patients = [] if real is None else [Data(ManifestSubjects(real), 6.0)]
    everywhere = [*phantoms, *patients]
    made = []
    for tier, points in (("claims", FIRST), ("methods", REST)):
        for point in points:
            made += with_more_evaluations([Job(tier, data, *point) for data in everywhere])
    made += repetitions("seeds", FIRST, everywhere)
    for factor, width in FACTORS:
        settings = (f"representation=puzzle(factor={factor})", LEVELS)
        small = phantoms if factor < 8 else phantoms[:2]  # 48 voxels would be padded to 64
        made += [Job("factors", data, "ppdm", settings, width=width) for data in small]
        if (factor, width) == (4, WIDTH):  # seams without the loss; the tier `claims` has this pair at factor 2
            made += [Job("factors", data, "ppdm", (*settings, *WITHOUT_LOSS)) for data in small]
    for name in METHODS:
        made += with_more_evaluations([Job("gallery", large, name)])
    return made + repetitions("more seeds", REST, everywhere)


def with_more_evaluations(trainings: Sequence[Job]) -> list[Job]:
    """The trainings, and additional scores of those whose method has more network evaluations by default.

    Hundreds of evaluations are slow, so the default is used only on the data with the shortest trainings.
    """
    return [
        *trainings,
        *(
            replace(job, evaluations=f"{MORE},own" if job.data.minutes == SHORTEST else str(MORE))
            for job in trainings
            if METHODS[job.method].sampling.steps > MORE
        ),
    ]


def repetitions(tier: str, points: Sequence[tuple[str, tuple[str, ...]]], everywhere: Sequence[Data]) -> list[Job]:
    """The jobs of `points` with two additional seeds."""
    one = ([Job(tier, data, *point, seed=seed) for data in everywhere] for point in points for seed in (1, 2))
    return [job for trainings in one for job in with_more_evaluations(trainings)]


def main() -> None:
    """Run, list or gather the jobs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--real", type=Path, help="manifest of real pairs to use in addition to phantoms")
    parser.add_argument("--until", help="last tier to run, list or gather; default: all tiers")
    parser.add_argument("--list", action="store_true", help="list finished jobs and remaining hours, and stop")
    parser.add_argument("--gather", type=Path, help="add the records of what is complete to this folder, and stop")
    parser.add_argument("--continue", type=Path, dest="before", help="folder of gathered records not to make again")
    arguments = parser.parse_args()
    wanted = jobs(arguments.real)
    tiers = list(dict.fromkeys(job.tier for job in wanted))
    if arguments.until is not None:
        if arguments.until not in tiers:
            parser.error(f"--until must be one of {', '.join(tiers)}")
        tiers = tiers[: tiers.index(arguments.until) + 1]
        wanted = [job for job in wanted if job.tier in tiers]
    if arguments.before is not None:
        continue_from(arguments.before, arguments.folder)
    if arguments.gather is not None:
        gather(wanted, arguments.folder, arguments.gather)
    elif arguments.list:
        for tier in tiers:
            mine = [job for job in wanted if job.tier == tier]
            left = [job for job in mine if not is_done(job, arguments.folder)]
            hours = sum(job.data.minutes for job in left if job.is_training) / 60
            print(f"{tier}: {len(mine) - len(left)} of {len(mine)} jobs done, {hours:.1f} core-hours of training left")
    else:
        arguments.folder.mkdir(parents=True, exist_ok=True)
        for tier in tiers:
            mine = [job for job in wanted if job.tier == tier]
            with FileLock(arguments.folder / "paces.lock"):
                measure_paces(mine, arguments.folder)
            for job in mine:
                carry_out(job, arguments.folder)


def measure_paces(wanted: Sequence[Job], folder: Path) -> None:
    """Measure missing step times, alternating between the methods on each data set."""
    for data in dict.fromkeys(job.data for job in wanted):
        there = dict.fromkeys(replace(job, tier="", seed=0, evaluations="") for job in wanted if job.data == data)
        schedule = Schedule(minutes=data.minutes)
        plan = [
            trial
            for job in there
            for trial in plan_trials(
                [data.subjects], [job.method], [], schedule, [0], job.width, [*BASE, *job.settings]
            )
        ]
        for trial in with_steps_for_minutes(plan, folder / "paces.jsonl", "cpu", lambda text: None):
            print(
                f"{data.subjects}, {trial.label}, width {trial.method.width}: {trial.schedule.steps} steps", flush=True
            )


def is_done(job: Job, folder: Path) -> bool:
    """Whether a job has succeeded."""
    return (folder / "done" / job.name).exists()


def carry_out(job: Job, folder: Path) -> None:
    """Run a job unless it is done or another process runs it; a failure does not stop the other jobs."""
    log, done = folder / "logs" / f"{job.name}.log", folder / "done" / job.name
    for place in (log, done):
        place.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        with FileLock(log.with_suffix(".lock"), timeout=0), log.open("a") as stream:
            if done.exists():
                return
            finished = subprocess.run(job.words(folder), stdout=stream, stderr=stream, env=environment, check=False)
            if (code := finished.returncode) == 0:
                replace_file(done, b"")
    except Timeout:
        return
    print(f"{job.tier}: {job.name}: {'done' if code == 0 else f'failed with {code}, see {log}'}", flush=True)


def continue_from(results: Path, folder: Path) -> None:
    """Take over the step times of gathered records, and mark their jobs as done."""
    (folder / "done").mkdir(parents=True, exist_ok=True)
    for name in _gathered(results):
        (folder / "done" / name).touch()
    if not (folder / "paces.jsonl").exists():
        replace_file(folder / "paces.jsonl", lzma.decompress((results / "paces.jsonl.xz").read_bytes()))


def gather(wanted: Sequence[Job], folder: Path, results: Path) -> None:
    """Add records to the compressed file of each data set, copy the step times, and list the jobs in ``jobs.txt``.

    What is compared is added together, when all of it is done, so that no claim is decided while the best scores of a
    method are missing. Jobs in ``jobs.txt`` are not added again. Of learning curves, only PSNR is copied, because the
    figure shows nothing else and the curves would be the largest part of the records. The pictures of the tier
    ``gallery`` become one file.
    """
    before = _gathered(results)
    open_parts = {job.part for job in wanted if not is_done(job, folder)}
    closed = [job for job in wanted if job.part not in open_parts and job.name not in before]
    for data in dict.fromkeys(job.data for job in closed):
        mine = list({job.run: job for job in closed if job.data == data}.values())
        place = results / data.name.replace(" ", "-") / "records.jsonl.xz"
        there = lzma.decompress(place.read_bytes()).splitlines(keepends=True) if place.exists() else []
        rows = dict.fromkeys([*there, *(row for job in mine for row in _rows(job, folder))])
        place.parent.mkdir(parents=True, exist_ok=True)
        replace_file(place, lzma.compress(b"".join(rows), preset=9 | lzma.PRESET_EXTREME))
        pictured = [_folder(job, folder) / SUFFIX for job in mine if job.tier == "gallery"]
        if pictured:
            kept = place.with_name(SUFFIX)
            pictures = [read_snapshot(file) for file in ([kept] if kept.exists() else []) + pictured]
            write_snapshot(reduce(lambda before, new: new.with_earlier(before), pictures), kept)
    replace_file(results / "paces.jsonl.xz", lzma.compress((folder / "paces.jsonl").read_bytes()))
    names = [*before, *(job.name for job in closed)]
    replace_file(results / "jobs.txt", "".join(f"{name}\n" for name in names).encode())
    print(f"{len(closed)} jobs added, {len(before)} were there")


def _gathered(results: Path) -> list[str]:
    """Names of the jobs whose records are in the folder of results."""
    file = results / "jobs.txt"
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _folder(job: Job, folder: Path) -> Path:
    """Return the folder of the results of a job."""
    return folder / "runs" / job.run / job.data.subjects.task


def _rows(job: Job, folder: Path) -> Iterator[bytes]:
    for row in (_folder(job, folder) / "records.jsonl").read_bytes().splitlines(keepends=True):
        record = json.loads(row)
        if "curve" not in record["options"] or record["metric"] == "psnr":
            yield row


if __name__ == "__main__":
    main()

"""Functions for the jobs of ``test_slurm``; the jobs start quickly, because they need no PyTorch."""

import os
import time
from pathlib import Path


def doubled(number: int) -> int:
    return 2 * number


def refused() -> int:
    raise ValueError("the scan cannot be read; give another")


def dies() -> int:
    os._exit(3)


def hangs(place: Path) -> int:
    place.write_text(str(os.getpid()))
    time.sleep(600)
    return 0

"""What every child process does beside its measurement: it reads a request, answers it, and ends with its parent.

PyTorch is imported where something failed, so that a child that needs none starts at once.
"""

import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

# What PyTorch's CPU allocator, cuDNN and cuBLAS say; none of them raises an error of its own kind for it.
_OUT_OF_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "_ALLOC_FAILED")


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Read a request as JSON from the standard input, and write its answer to the open file that it names.

    A file of its own, so that nothing that a method prints can be mistaken for the answer.
    """
    request = json.load(sys.stdin)
    threading.Thread(target=_end_with, args=(request["parent"],), daemon=True).start()
    content = json.dumps(answer(request))
    with open(request["answer"], "w") as stream:
        stream.write(content)


def failure(error: Exception) -> dict[str, str]:
    """Status and reason of a measurement that raised."""
    from ppdm_bench.memory.workload import fault

    if _ran_out_of_memory(error):
        return {"status": "oom", "reason": _shortage(error)}
    return {"status": "error", "reason": fault(error)}


def _end_with(parent: int) -> None:
    """A parent that is killed cannot end this process and its children, which would go on and hold the device.

    Its number is told: it may have ended while this process was still importing, and then another is the parent.
    """
    while os.getppid() == parent:
        time.sleep(1)
    if os.getpgrp() == os.getpid():  # the runner gave it a group of its own
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _ran_out_of_memory(error: Exception) -> bool:
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def _shortage(error: Exception) -> str:
    """What was wanted, without the place in PyTorch's sources that comes first and the advice that comes last."""
    text = re.sub(r"^\[enforce fail at [^\]]*\][^.]*\. ", "", " ".join(str(error).split()))
    return ". ".join(text.split(". ")[:2]).rstrip(".") or "the system's memory does not suffice"

"""One thread a process: the tests' tensors are tiny, and the workers of ``-n auto`` would fight over the cores."""

import torch

torch.set_num_threads(1)

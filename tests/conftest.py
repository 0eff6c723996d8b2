"""One thread a process, children included: tests' tensors are tiny, and ``-n auto``'s workers would fight over cores.

A child with another number of threads would also, rightly, be told that its weights will differ in their last bits.
"""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

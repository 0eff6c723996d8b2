"""Several processes that train one network: two real ones, which talk through gloo, against one that is alone."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from safetensors.torch import load_file
from tiny_training import TINY, manifest, pair, tuned

from ppdm.augment import Flip
from ppdm.ranks import RankError, RankLostError, Ranks
from ppdm.resume import Run
from ppdm.schedule import TrainingError
from ppdm.train import Interrupted, fit
from ppdm_baselines import METHODS

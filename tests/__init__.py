"""Laid out as the code is."""

import os
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent  # of the project

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # GPU kernels run on the CPU; read when triton is imported

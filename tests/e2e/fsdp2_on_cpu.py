"""Runs a script with FSDP2 on a CPU: Accelerate shards so on GPUs alone, PyTorch anywhere."""

import runpy
import sys

from accelerate import PartialState
from accelerate.utils import DistributedType

PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")

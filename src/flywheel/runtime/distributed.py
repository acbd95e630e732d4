"""Several processes of one training run, started by torchrun; alone, every function here does nothing.

Data parallel (DDP), or sharded (FSDP2, `fully_shard`: Zhao et al. 2023, arXiv 2304.11277): each process takes its part
of every update, and all see the same losses. The first one writes.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Literal

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from flywheel.errors import TrainingError

Parallelism = Literal["replicated", "sharded"]
TIMEOUT = timedelta(hours=24)
"""How long processes wait for the first one, which prepares what all read."""


@contextmanager
def process_group(device: str) -> Iterator[None]:
    """The process group of torchrun, where it started this process; it ends with the work."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or dist.is_initialized():
        yield
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        gc.collect()  # what is spread holds on to the group, whose threads must end before the interpreter does
        dist.destroy_process_group()


def rank() -> int:
    """Which of torchrun's processes this is, before and after they work together, too."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Does this process write?"""
    return rank() == 0


def barrier() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def broadcast(number: int) -> int:
    """The first process's number, in all."""
    value = torch.tensor([number], dtype=torch.int64)
    if world_size() > 1:
        dist.broadcast(value, 0)
    return int(value)


def all_reduce(*numbers: float) -> list[float]:
    """Sums over all processes."""
    sums_K = torch.tensor(numbers, dtype=torch.float64)
    if world_size() > 1:
        dist.all_reduce(sums_K)
    sums: list[float] = sums_K.tolist()
    return sums


def parallelized(learner: nn.Module, layers: list[nn.Module], parallelism: Parallelism) -> nn.Module:
    """The learner with its gradients averaged over all processes, and with its parameters spread over them if sharded,
    a layer at a time. Raises `TrainingError` where a parameter was not spread: accelerate's plugin once fell back to
    whole copies silently."""
    if world_size() == 1:
        return learner
    device = next(learner.parameters()).device
    if parallelism == "replicated":
        return DistributedDataParallel(learner, device_ids=[device.index] if device.type == "cuda" else None)
    mesh = init_device_mesh(device.type, (world_size(),))
    for part in (*layers, learner):
        fully_shard(part, mesh=mesh, reshard_after_forward=True)  # at any time, parameters are what is spread
    unsharded = [name for name, parameter in learner.named_parameters() if not _spread(parameter)]
    if unsharded:
        raise TrainingError(
            f"{len(unsharded)} parameters are not sharded, as {unsharded[0]}; set train.parallelism = 'replicated'"
        )
    return learner


def _spread(parameter: nn.Parameter) -> bool:
    if not isinstance(parameter, DTensor):
        return False
    return all(placement.is_shard() for placement in parameter.placements)


def part_of_update(learner: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Gradients travel with an update's last part only."""
    if isinstance(learner, DistributedDataParallel) and not last:
        return learner.no_sync()
    if isinstance(learner, FSDPModule):
        learner.set_requires_gradient_sync(last)
    return nullcontext()


def full_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor that may be spread over the processes; all of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def distributed_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, on the device of another and spread as that one is."""
    if isinstance(other, DTensor):
        return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements)
    return tensor.to(other.device)

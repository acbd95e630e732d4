"""The device that models run on."""

from __future__ import annotations

import torch


def pick_device(name: str) -> str:
    """`auto` takes CUDA, then MPS, then the CPU."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"

"""Critics: a linear value head on a frozen student, fitted to observed returns before advantages are computed.

The fit is ridge regression in closed form (value pretraining on Monte-Carlo returns: VC-PPO, arXiv 2503.01491, section
4.1), so it needs no learning rate and comes out the same every time. What it is worth is told on held-out tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel

from flywheel.agents.contexts.language import MarkerLanguage
from flywheel.agents.contexts.prompts import DONE, Window
from flywheel.arrow import batched
from flywheel.distill.batching.examples import Example, example
from flywheel.distill.batching.packing import batches, target_states
from flywheel.distill.credit.diagnostics import explained_variance
from flywheel.filters.batch import Bools, Floats, Ints

FILE = "value.safetensors"
RIDGE = 1e-2
"""Penalty, as a share of the features' mean square."""


@dataclass(frozen=True, slots=True)
class States:
    """What a model thinks where M decisions fell: features_MD, and the trajectory and step of each."""

    features_MD: NDArray[np.float32]
    trajectory_M: list[str]
    step_M: Ints


@dataclass(frozen=True, slots=True)
class ValueHead:
    """value = features · weight_D + bias. `explained`: share of the variance of held-out tasks' returns."""

    weight_D: Floats
    bias: float
    explained: float

    def __call__(self, features_MD: NDArray[Any]) -> Floats:
        return np.asarray(features_MD @ self.weight_D + self.bias, np.float64)

    def save(self, folder: Path) -> None:
        """Beside the model's own files, which plain transformers goes on loading."""
        tensors = {"weight": self.weight_D, "bias": np.array([self.bias]), "explained": np.array([self.explained])}
        save_file(tensors, folder / FILE)


def load_head(folder: Path) -> ValueHead:
    tensors = load_file(folder / FILE)
    return ValueHead(tensors["weight"], float(tensors["bias"][0]), float(tensors["explained"][0]))


TOGETHER = 256
"""Windows that are read together."""


def states_of(
    model: PreTrainedModel,
    windows: Iterable[tuple[str, list[Window]]],
    tokens: MarkerLanguage,
    batch_tokens: int,
    pad: int,
) -> States:
    """Features of the last token before each decision. "Done" is no state of its own: the next action's is.

    Windows are read as they come; of each decision its features stay in memory, 4 bytes a width.
    """
    empty = States(np.zeros((0, model.config.get_text_config().hidden_size), np.float32), [], np.zeros(0, np.int64))
    parts = [empty]
    rows = (
        (trajectory_id, _marked(window, tokens))
        for trajectory_id, trajectory_windows in windows
        for window in trajectory_windows
    )
    for some in batched(rows, TOGETHER):
        parts.append(
            _read(model, [trajectory_id for trajectory_id, _ in some], [row for _, row in some], batch_tokens, pad)
        )
    names = [trajectory_id for part in parts for trajectory_id in part.trajectory_M]
    features_MD = np.concatenate([part.features_MD for part in parts])
    return States(features_MD, names, np.concatenate([part.step_M for part in parts]))


@torch.inference_mode()
def _read(
    model: PreTrainedModel, owners: Sequence[str], rows: Sequence[Example], batch_tokens: int, pad: int
) -> States:
    model.train(False)
    features: list[NDArray[np.float32]] = []
    names: list[str] = []
    steps: list[NDArray[np.int64]] = []
    for batch in batches(model, rows, batch_tokens, pad):
        features.append(target_states(model, batch).float().cpu().numpy())
        names += [owners[document] for document in batch.targets.document_N.tolist()]
        steps.append(batch.targets.columns["step"].cpu().numpy())
    return States(np.concatenate(features), names, np.concatenate(steps))


def fit(features_MD: NDArray[Any], return_M: Floats, held_M: Bools) -> ValueHead:
    """Ridge regression on what is not held out; a constant where nothing varies."""
    if held_M.all():
        held_M = np.zeros_like(held_M)
    features_MD = features_MD.astype(np.float64)
    learn_MD, told_M = features_MD[~held_M], return_M[~held_M]
    middle_D, mean = learn_MD.mean(0), float(told_M.mean())
    apart_MD = learn_MD - middle_D
    square_DD = apart_MD.T @ apart_MD
    penalty = RIDGE * np.trace(square_DD) / len(square_DD) + 1e-9
    weight_D = np.linalg.solve(square_DD + penalty * np.eye(len(square_DD)), apart_MD.T @ (told_M - mean))
    bias = mean - float(middle_D @ weight_D)
    head = ValueHead(weight_D, bias, 0.0)
    explained = explained_variance(return_M[held_M], head(features_MD[held_M])) if held_M.any() else 0.0
    return ValueHead(weight_D, bias, explained)


def by_trajectory(states: States, value_M: Floats, lengths: dict[str, int]) -> dict[str, Floats]:
    """Values of each trajectory's states, 0 where no decision fell; the final state counts as the last decided one."""
    values = {name: np.zeros(length + 1) for name, length in lengths.items()}
    for trajectory_id, step, value in zip(states.trajectory_M, states.step_M.tolist(), value_M.tolist(), strict=True):
        values[trajectory_id][step] = value
    last: dict[str, int] = {}
    for trajectory_id, step in zip(states.trajectory_M, states.step_M.tolist(), strict=True):
        last[trajectory_id] = max(step, last.get(trajectory_id, 0))
    for trajectory_id, step in last.items():
        values[trajectory_id][-1] = values[trajectory_id][step]
    return values


def _marked(window: Window, tokens: MarkerLanguage) -> Example:
    """The window, with the first token of each decision as its only targets and their steps as a column."""
    plain = example(window.pieces, tokens)
    weight_T = np.zeros_like(plain.weight_T)
    step_T = np.full(len(weight_T), -1, np.int64)
    cursor = 0
    for piece in window.pieces:
        if piece.decision >= 0 and piece.marker != DONE:
            weight_T[cursor], step_T[cursor] = 1.0, piece.decision
        cursor += len(tokens.piece(piece))
    return Example(plain.ids_T, weight_T, {"step": step_T})

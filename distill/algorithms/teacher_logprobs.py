"""Top-k log-probabilities of a teacher at a student's training rows, computed once and stored in the lake."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch
from transformers import PreTrainedModel

from flywheel.agents.contexts.prompts import Role
from flywheel.arrow import ARROW_SCHEMAS
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.packing import batches, by_document, target_logits

TOP_IDS, TOP_LOGPROBS = "top_ids", "top_logprobs"
"""Columns (N, K) of the targets."""
KEY = ("policy_id", "role", "draw", "epoch", "row", "k")


def stored(
    lake: Lake, teacher: str, role: Role, draw: str, epoch: int, places: range, k: int
) -> dict[int, tuple[list[int], list[float]]]:
    """Place of a row in its epoch → the teacher's tokens and log-probabilities, as far as it was asked."""
    rows = lake.sql(
        f"""select row, top_ids, top_logprobs from teacher_logprobs where policy_id = {quoted(teacher)}
            and role = '{role}' and draw = {quoted(draw)} and epoch = {epoch} and k = {k}
            and row >= {places.start} and row < {places.stop}"""
    ).to_pylist()
    return {row["row"]: (row["top_ids"], row["top_logprobs"]) for row in rows}


def teach(
    lake: Lake,
    model: PreTrainedModel,
    pad: int,
    teacher: str,
    role: Role,
    draw: str,
    epoch: int,
    places: range,
    owners: Sequence[str],
    examples: Sequence[Example],
    k: int,
    batch_tokens: int,
) -> None:
    """Ask the teacher about rows of an epoch and append what it says; asked again, nothing changes."""
    predictions = top_tokens(model, examples, k, batch_tokens, pad)
    table = pa.table(
        {
            "trajectory_id": pa.array(owners, pa.string()),
            "policy_id": [teacher] * len(owners),
            "role": [str(role)] * len(owners),
            "draw": [draw] * len(owners),
            "epoch": [epoch] * len(owners),
            "row": places,
            "k": [k] * len(owners),
            "top_ids": [ids.ravel() for ids, _ in predictions],
            "top_logprobs": [logprobs.ravel() for _, logprobs in predictions],
        },
        schema=ARROW_SCHEMAS["teacher_logprobs"],
    )
    lake.append_facts("teacher_logprobs", table, f"log-probabilities of {teacher}", key=KEY)


@torch.inference_mode()
def top_tokens(
    model: PreTrainedModel, examples: Sequence[Example], k: int, batch_tokens: int, pad: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each example (ids (M, k), log-probabilities (M, k)) of its M targets, likeliest first."""
    model.train(False)
    predictions = [(np.zeros((0, k), np.int32), np.zeros((0, k), np.float32)) for _ in examples]
    for batch in batches(model, examples, batch_tokens, pad):
        top = target_logits(model, batch).log_softmax(-1).topk(k)
        per_document = zip(by_document(batch, top.indices.int()), by_document(batch, top.values), strict=True)
        for (document, ids_MK), (_, logprobs_MK) in per_document:
            predictions[document] = (ids_MK, logprobs_MK)
    return predictions


def with_teacher_logprobs(example: Example, ids: Sequence[int], logprobs: Sequence[float], k: int) -> Example:
    """The example with what was stored of its targets as columns (T, k)."""
    targets = np.flatnonzero(example.weight_T[1:]) + 1
    ids_TK = np.zeros((len(example.ids_T), k), np.int32)
    logprobs_TK = np.zeros((len(example.ids_T), k), np.float32)
    ids_TK[targets] = np.asarray(ids, np.int32).reshape(-1, k)
    logprobs_TK[targets] = np.asarray(logprobs, np.float32).reshape(-1, k)
    return Example(example.ids_T, example.weight_T, {TOP_IDS: ids_TK, TOP_LOGPROBS: logprobs_TK}, example.group)

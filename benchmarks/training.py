"""Tokens per second of training beside TRL's SFTTrainer with its own packing, JSON on stdout.

python benchmarks/training.py [--documents 1500] [--runs 3] [--profile]

The same tiny model (the quickstart's), the same documents (120 to 400 tokens, a tenth of them targets in runs of
three), the same loss, 1,024 tokens an update, AdamW, fp32 on the CPU. TRL packs documents into rows of 1,024 tokens
(best fit decreasing). First both losses are computed on the same documents and must agree; then each trains an epoch,
best of the runs. --profile tells where the time of each goes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from flywheel.config.student import StudentConfig
from flywheel.config.train import TrainConfig
from flywheel.distill.algorithms.bc import bc_loss
from flywheel.distill.batching.examples import Example
from flywheel.distill.batching.packing import collate, target_logits
from flywheel.distill.training.loop import train
from flywheel.policies.models import untrained
from flywheel.policies.tokenizer import train_tokenizer

ROW = 1024
STUDENT = StudentConfig()


def model() -> PreTrainedModel:
    return untrained(STUDENT, STUDENT.vocabulary, 0)


def documents(count: int) -> list[Example]:
    chance = np.random.default_rng(0)
    found = []
    for length in chance.integers(120, 401, count).tolist():
        weight = np.zeros(length, np.float32)
        for start in range(27, length - 3, 30):
            weight[start : start + 3] = 1.0
        found.append(Example(chance.integers(12, STUDENT.vocabulary, length).astype(np.int32), weight))
    return found


def trainer(rows: list[Example], folder: Path) -> Any:
    from trl import SFTConfig, SFTTrainer

    tokenizer: PreTrainedTokenizerFast = train_tokenizer(["a b."], [], 300)
    labels = [np.where(row.weight_T > 0, row.ids_T, -100).tolist() for row in rows]
    return SFTTrainer(
        model(),
        SFTConfig(
            output_dir=str(folder),
            packing=True,
            max_length=ROW,
            per_device_train_batch_size=1,
            num_train_epochs=1,
            learning_rate=2e-3,
            weight_decay=0.05,
            report_to=[],
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            gradient_checkpointing=False,
            bf16=False,
            use_cpu=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Dataset.from_dict({"input_ids": [row.ids_T.tolist() for row in rows], "labels": labels}),
        processing_class=tokenizer,
    )


def agree(rows: list[Example], folder: Path) -> tuple[float, float]:
    """Mean loss over the targets of TRL's first batch, by TRL and by us."""
    theirs = trainer(rows, folder)
    batch = next(iter(theirs.get_train_dataloader()))
    theirs.model.train(False)
    with torch.no_grad():
        one = float(theirs.compute_loss(theirs.model, dict(batch)))
        starts = [*np.flatnonzero(batch["position_ids"][0].numpy() == 0).tolist(), batch["input_ids"].shape[1]]
        ids, labels = batch["input_ids"][0].numpy(), batch["labels"][0].numpy()
        same = [
            Example(ids[a:b].astype(np.int32), (labels[a:b] != -100).astype(np.float32)) for a, b in pairwise(starts)
        ]
        ours = collate(same, [[place] for place in range(len(same))], 0)
        found = bc_loss(target_logits(model().train(False), ours), ours.targets) / ours.targets.weight_N.sum()
    return one, float(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=1500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    disable_progress_bars()
    rows = documents(given.documents)
    tokens = sum(len(row.ids_T) for row in rows)
    with tempfile.TemporaryDirectory() as folder:
        theirs, ours = agree(rows, Path(folder))
        assert abs(theirs - ours) < 1e-4, (theirs, ours)
        seconds: dict[str, list[float]] = {"flywheel": [], "trl": []}
        for run in range(given.runs):
            began = time.perf_counter()
            train(
                model(),
                [rows],
                TrainConfig(batch_tokens=ROW),
                seed=run,
                pad=0,
                checkpoint=Path(folder) / str(run),
                loss_fn=bc_loss,
            )
            seconds["flywheel"].append(time.perf_counter() - began)
            peer = trainer(rows, Path(folder))
            began = time.perf_counter()
            peer.train()
            seconds["trl"].append(time.perf_counter() - began)
        rate = {name: tokens / min(found) for name, found in seconds.items()}
        print(
            json.dumps(
                {
                    "documents": len(rows),
                    "tokens": tokens,
                    "loss on the same documents": {"flywheel": round(ours, 6), "trl": round(theirs, 6)},
                    "tokens per second": {name: round(value) for name, value in rate.items()},
                    "times as fast": round(rate["flywheel"] / rate["trl"], 2),
                },
                indent=2,
            )
        )
        if given.profile:
            some = rows[: len(rows) // 5]
            peer = trainer(some, Path(folder))
            config = TrainConfig(batch_tokens=ROW)
            for name, work in (
                (
                    "flywheel",
                    lambda: train(
                        model(), [some], config, seed=9, pad=0, checkpoint=Path(folder) / "p", loss_fn=bc_loss
                    ),
                ),
                ("trl", peer.train),
            ):
                with profile(activities=[ProfilerActivity.CPU]) as found:
                    work()
                print(name, found.key_averages().table(sort_by="self_cpu_time_total", row_limit=14), sep="\n")


if __name__ == "__main__":
    main()

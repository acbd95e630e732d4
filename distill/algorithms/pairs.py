"""Preference pairs of whole episodes: a verified and an honestly failed one of the same task, from the lake's view."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from flywheel.agents.contexts.language import Language, language_of, markers_of, padding
from flywheel.agents.contexts.prompts import Role
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.provenance import teachable
from flywheel.distill.batching.examples import Example, example, windows_of
from flywheel.distill.batching.packing import token_logprobs
from flywheel.distill.data.corpus import Corpus
from flywheel.distill.data.rows import Drawn, Rows
from flywheel.errors import TrainingError
from flywheel.policies.card import limits_of
from flywheel.policies.models import load_part
from flywheel.policies.students import on_device
from flywheel.runtime.devices import pick_device

PAIR, SIDE, REFERENCE = "pair", "side", "reference"
"""Columns (N,): number of the pair, +1 where the episode is the better one and −1 where it is the worse one, and the
token's log-probability under the policy that training began with."""
Pair = tuple[str, str]
"""Ids of the better episode and of the worse one."""


def pairs_of(lake: Lake, corpus: Corpus, iteration: int) -> list[Pair]:
    """Pairs whose better episode is in the corpus, and whose worse one is of no later iteration (0: of any).

    Raises `TrainingError` where there is none.
    """
    late = f"and iteration > {iteration}" if iteration else "and false"
    rows = lake.sql(
        f"""select chosen, rejected from pairs
            where rejected not in (select trajectory_id from trajectories where true {late}) order by all""",
        at=corpus.snapshot,
    ).to_pylist()
    pairs = [(row["chosen"], row["rejected"]) for row in rows if row["chosen"] in corpus.routes]
    if not pairs:
        raise TrainingError("no task has both a verified and a failed training episode; raise collect.overlap")
    return pairs


def pair_rows(
    config: Config, lake: Lake, pairs: Sequence[Pair], base: Path
) -> Callable[[Rows, Language, int], Iterator[Drawn]]:
    """Epochs of pairs, less those of tasks that are held out. Pairs are few: they are held in memory."""
    model, tokenizer = load_part(base / Role.FLAT)
    model = on_device(model, pick_device(config.train.device))
    tokens, pad = markers_of(language_of(tokenizer)), padding(tokenizer)
    sides = [
        teachable(trajectory)
        for trajectory in lake.trajectories([trajectory_id for pair in pairs for trajectory_id in pair])
    ]
    limits = limits_of(config.student)
    documents, owners = list[Example](), list[int]()
    for number, side in enumerate(sides):
        for window in windows_of(side, [], limits, Role.FLAT):
            documents.append(example(window.pieces, tokens))
            owners.append(number)
    reference = token_logprobs(model, documents, config.train.batch_tokens, pad)
    words = np.bincount(owners, [float(document.weight_T.sum()) for document in documents], len(sides))
    rows = [
        Example(
            document.ids_T,
            (document.weight_T / (2 * words[owner])).astype(np.float32),
            {
                PAIR: np.full(len(document.ids_T), owner // 2, np.int64),
                SIDE: np.full(len(document.ids_T), -1.0 if owner % 2 else 1.0, np.float32),
                REFERENCE: reference_T,
            },
            owner // 2,
        )
        for document, owner, reference_T in zip(documents, owners, reference, strict=True)
    ]

    def epochs(training_rows: Rows, language: Language, count: int) -> Iterator[Drawn]:
        learned = set(training_rows.ids)
        for number in range(count):
            for row, owner in zip(rows, owners, strict=True):
                if pairs[row.group][0] in learned:
                    yield number, sides[owner].trajectory_id, row

    return epochs

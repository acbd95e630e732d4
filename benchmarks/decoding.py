"""A planner's words, decoded for many episodes at once beside `transformers.generate` called for each.

    python benchmarks/decoding.py --data-dir data/quickstart --policy champion

Contexts are those in which the planner spoke in episodes of the lake, turn after turn. Everybody decodes greedily with
the same model, the same end marker and the same markers suppressed; the tokens must be equal. Peers: `generate` called
for each context by itself, and for all contexts of a turn at once (padded on the left). JSON on stdout.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from flywheel.agents.contexts.prompts import END, PAD, SPECIAL_TOKENS, SUBGOAL, Piece, Role
from flywheel.agents.contexts.tokenization import PieceTokenizer, token_id
from flywheel.agents.inference.decoding import generate
from flywheel.agents.inference.prefix_cache import PrefixCache
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import hierarchical_windows
from flywheel.filters.segments import by_plan
from flywheel.policies.card import read_card
from flywheel.policies.models import load_part
from flywheel.policies.registry import champion, policy_directory, registered

LONGEST = 16
Turns = list[list[tuple[int, list[int]]]]
"""For each turn, the episodes in it with their contexts."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", required=True, type=Path)
    parser.add_argument("--policy", default="champion", help="a hierarchical student")
    parser.add_argument("--episodes", type=int, default=32)
    given = parser.parse_args()
    lake = Lake(given.data_dir)
    name = champion(lake) if given.policy == "champion" else given.policy
    folder = policy_directory(lake, str(registered(lake, name).policy_id))
    model, tokenizer = load_part(folder / "planner")
    model.train(False)
    tokens = PieceTokenizer(tokenizer)
    turns = contexts(lake, folder, tokens, given.episodes)
    end = token_id(tokenizer, END)
    markers = [token_id(tokenizer, marker) for marker in SPECIAL_TOKENS if marker != END]
    options: dict[str, Any] = {
        "max_new_tokens": LONGEST,
        "do_sample": False,
        "eos_token_id": end,
        "pad_token_id": token_id(tokenizer, PAD),
        "suppress_tokens": markers,
    }
    ways = {
        "ours, all episodes of a turn": lambda: ours(model, turns, end, markers),
        "transformers.generate, one by one": lambda: one_by_one(model, turns, options),
        "transformers.generate, all episodes of a turn": lambda: together(model, turns, options),
    }
    said, seconds = {}, {}
    for way, run in ways.items():
        run()
        began = time.perf_counter()
        said[way] = run()
        seconds[way] = time.perf_counter() - began
    first, *_ = said.values()
    contexts_read = sum(len(turn) for turn in turns)
    print(
        json.dumps(
            {
                "threads": torch.get_num_threads(),
                "contexts": contexts_read,
                "mean context tokens": sum(len(one) for turn in turns for _, one in turn) / contexts_read,
                "tokens said": sum(map(len, first)),
                "seconds": seconds,
                "equal tokens": {
                    way: sum(a == b for a, b in zip(first, own, strict=True)) for way, own in said.items()
                },
                "ratio": {way: took / seconds[next(iter(ways))] for way, took in seconds.items()},
            },
            indent=2,
        )
    )


def contexts(lake: Lake, folder: Path, tokens: PieceTokenizer, count: int) -> Turns:
    """What the planner read before each subgoal of some of its own episodes."""
    card = read_card(folder)
    query = f"select trajectory_id from trajectories where policy_id = '{card.policy_id}' and length > 3 limit {count}"
    turns: Turns = []
    for number, trajectory in enumerate(lake.trajectories(lake.sql(query)["trajectory_id"].to_pylist())):
        planner = hierarchical_windows(trajectory, by_plan(trajectory), card.limits, Role.PLANNER)
        turn = 0
        for window in planner:
            for place, piece in enumerate(window.pieces):
                if piece.marker == SUBGOAL:
                    turns += [[] for _ in range(turn + 1 - len(turns))]
                    turns[turn].append((number, tokens.context([*window.pieces[:place], Piece(marker=SUBGOAL)])))
                    turn += 1
    return turns


def ours(model: Any, turns: Turns, end: int, markers: Sequence[int]) -> list[list[int]]:
    """A reader that remembers what each episode has read."""
    reader = PrefixCache(model)
    said = []
    for turn in turns:
        slots, read = [number for number, _ in turn], [context for _, context in turn]
        said += [list(words) for words, _ in generate(reader, slots, read, end=end, max_tokens=LONGEST, never=markers)]
    return said


@torch.inference_mode()
def one_by_one(model: Any, turns: Turns, options: dict[str, Any]) -> list[list[int]]:
    return [
        _words(model.generate(torch.tensor([context]), **options)[0, len(context) :], options)
        for turn in turns
        for _, context in turn
    ]


@torch.inference_mode()
def together(model: Any, turns: Turns, options: dict[str, Any]) -> list[list[int]]:
    said = []
    for turn in turns:
        width = max(len(context) for _, context in turn)
        pad = options["pad_token_id"]
        ids = torch.tensor([[pad] * (width - len(context)) + context for _, context in turn])
        mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for _, context in turn])
        told = model.generate(ids, attention_mask=mask, **options)[:, width:]
        said += [_words(row, options) for row in told]
    return said


def _words(row: torch.Tensor, options: dict[str, Any]) -> list[int]:
    tokens: list[int] = row.tolist()
    ends = {options["eos_token_id"], options["pad_token_id"]}
    return tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))]


if __name__ == "__main__":
    main()

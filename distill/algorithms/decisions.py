"""A student's own decisions as training rows: which options were open at each token, and what each decision was worth.

A student decides among the environment's valid actions, so its policy is a distribution over those alone; a ratio of
likelihoods over the whole vocabulary would be another policy's. Options are found anew from the recorded steps, by the
action mask that offered them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from flywheel.agents.contexts.action_mask import ActionMask
from flywheel.agents.contexts.language import Language, MarkerLanguage, markers_of, padding
from flywheel.agents.contexts.prompts import DONE, END, SPECIAL_TOKENS, Piece, Role, Window
from flywheel.agents.contexts.tokenization import token_id
from flywheel.config.root import Config
from flywheel.distill.algorithms.estimated_advantages import LEVELS
from flywheel.distill.algorithms.protocol import AddColumns
from flywheel.distill.batching.examples import Example, observations_of, windows_of
from flywheel.distill.batching.packing import Targets, token_logprobs
from flywheel.distill.credit.methods import SWITCH
from flywheel.distill.data.rows import Drawn, Rows
from flywheel.policies.models import load_part, load_tokenizer
from flywheel.policies.students import on_device
from flywheel.runtime.devices import pick_device
from flywheel.trajectory import Segment, Trajectory

ADVANTAGE, SUCCESS, OPTIONS = "advantage", "success", "options"
"""Columns (N,): advantage of the decision, and 1 in episodes that were verified. (N, K): the tokens that were open
there, -1 where there are fewer; K = 1 where nothing was listed."""
BEHAVIOUR, REFERENCE = "behaviour", "reference"
"""Columns (N,): the token's log-probability under the policy that acted, and under the one that is stayed close to."""
NONE = -1
"""Fills the list of a token's options."""
Advantage = Callable[[str, str, int], float]
"""(level, trajectory, step) → advantage of the decision."""
Offer = tuple[list[str], bool]
"""(actions on offer, could "done" be said)."""


@dataclass(frozen=True, slots=True)
class DecisionRows:
    """`success`: trajectory → 1 where it was verified. `repeats`: the action mask's limit. `widest`: the most options
    of a step. `alike`: every episode has the same weight in all, and else every token."""

    advantage: Advantage
    success: Mapping[str, float]
    repeats: int
    widest: int
    alike: bool = False

    def rows(self, rows: Rows, language: Language, epochs: int) -> Iterator[Drawn]:
        """Every window in which something was decided, once an epoch."""
        tokens = markers_of(language)
        for trajectory, segments in rows.corpus.read(rows.ids):
            offers = [] if rows.role is Role.PLANNER else offered(trajectory, segments, self.repeats)
            examples = [
                self.row(trajectory.trajectory_id, window, rows.role, offers, tokens)
                for window in windows_of(trajectory, segments, rows.limits, rows.role)
            ]
            decided = sum(float(example.weight_T.sum()) for example in examples)
            for example in examples:
                if example.weight_T.any():
                    row = example if not self.alike else _weighed(example, 1 / decided)
                    yield from ((number, trajectory.trajectory_id, row) for number in range(epochs))

    def row(
        self, trajectory: str, window: Window, role: Role, offers: Sequence[Offer], tokens: MarkerLanguage
    ) -> Example:
        """Targets are the tokens that had an alternative; a planner's always have."""
        ids: list[int] = []
        free: list[bool] = []
        options: list[list[int]] = []
        advantages: list[float] = []
        for piece in window.pieces:
            chosen = tokens.piece(piece)
            ids += chosen
            advantages += [self._advantage(trajectory, role, piece) if piece.target else 0.0] * len(chosen)
            if piece.target and role is not Role.PLANNER:
                offer, may_end = offers[piece.decision]
                every = tokens.options(offer, may_end=may_end or piece.marker == DONE)
                branches = open_options(every, chosen)
                options += branches
                free += [len(branch) > 1 for branch in branches]
            else:
                options += [[]] * len(chosen)
                free += [piece.target] * len(chosen)
        table = np.full((len(ids), 1 if role is Role.PLANNER else self.widest), NONE, np.int32)
        for place, branch in enumerate(options):
            table[place, : len(branch)] = branch
        success_T = np.full(len(ids), self.success.get(trajectory, 0.0), np.float32)
        columns = {OPTIONS: table, ADVANTAGE: np.array(advantages, np.float32), SUCCESS: success_T}
        return Example(np.array(ids, np.int32), np.array(free, np.float32), columns)

    def _advantage(self, trajectory: str, role: Role, piece: Piece) -> float:
        level = SWITCH if piece.marker == DONE else LEVELS[role]
        return self.advantage(level, trajectory, piece.decision)


def _weighed(example: Example, factor: float) -> Example:
    return Example(example.ids_T, (example.weight_T * factor).astype(np.float32), example.columns, example.group)


def offered(trajectory: Trajectory, segments: Sequence[Segment], repeats: int) -> list[Offer]:
    """What the student could say at each step: the actions on offer, and "done" where a subgoal was in force before."""
    mask = ActionMask(repeats)
    starts = {part.start for part in segments}
    offers = []
    for step, observation in zip(trajectory.steps, observations_of(trajectory), strict=True):
        offer = mask.offer(observation)
        offers.append((offer, bool(segments) and step.index not in starts))
        mask.took(observation, step.action)
    return offers


def open_options(options: Sequence[Sequence[int]], chosen: Sequence[int]) -> list[list[int]]:
    """For each token that was chosen, the tokens that could have been: the options' branches at that place."""
    branches = []
    left = list(options)
    for place, token in enumerate(chosen):
        branches.append(sorted({option[place] for option in left}))
        left = [option for option in left if option[place] == token]
    return branches


def decision_logprobs(logits_NV: Tensor, targets: Targets, forbidden: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
    """(log-probability (N,) of what was decided, entropy (N,) in nats), among the options open at each token.

    Where no options are listed, all tokens are open but the forbidden ones.
    """
    options_NK = targets.columns[OPTIONS].long()
    if options_NK.shape[-1] == 1:
        barred_V = logits_NV.new_zeros(logits_NV.shape[-1])
        barred_V[list(forbidden)] = -torch.inf
        open_NK = logits_NV + barred_V
    else:
        open_NK = logits_NV.gather(-1, options_NK.clamp(min=0)).masked_fill(options_NK < 0, -torch.inf)
    chosen_N = logits_NV.gather(-1, targets.next_N[:, None])[:, 0]
    return chosen_N - open_NK.logsumexp(-1), entropy(open_NK)


def entropy(logits_NV: Tensor) -> Tensor:
    """(N,): of the distribution over tokens, in nats. UI-TARS-2 (arXiv 2509.02544) watches it, and so should you."""
    logprobs_NV = logits_NV.log_softmax(-1)
    return -(logprobs_NV.exp() * logprobs_NV.clamp(min=-1e30)).sum(-1)


def forbidden_tokens(folder: Path) -> list[int]:
    """Markers that a role's model never says while it acts."""
    tokenizer = load_tokenizer(folder)
    return [token_id(tokenizer, marker) for marker in SPECIAL_TOKENS if marker != END]


def with_decision_logprobs(
    config: Config, models: Mapping[str, Path], forbidden: Sequence[int], rows: Rows
) -> AddColumns:
    """Adds a column a model: the log-probability that it gives each target among the options."""
    device, batch_tokens = pick_device(config.train.device), config.train.batch_tokens
    ready = {}
    for column, folder in models.items():
        model, tokenizer = load_part(folder)
        ready[column] = on_device(model, device), padding(tokenizer)

    def add(epoch: int, places: range, owners: Sequence[str], examples: Sequence[Example]) -> Sequence[Example]:
        for column, (model, pad) in ready.items():
            examples = with_column(model, batch_tokens, pad, forbidden, examples, column)
        return examples

    return add


def with_column(
    model: PreTrainedModel,
    batch_tokens: int,
    pad: int,
    forbidden: Sequence[int],
    examples: Sequence[Example],
    column: str = BEHAVIOUR,
) -> list[Example]:
    """The rows with each target's log-probability under a model."""
    logprobs = token_logprobs(model, examples, batch_tokens, pad, partial(_decided, forbidden))
    return [
        Example(example.ids_T, example.weight_T, {**example.columns, column: logprob_T}, example.group)
        for example, logprob_T in zip(examples, logprobs, strict=True)
    ]


def _decided(forbidden: Sequence[int], logits_NV: Tensor, targets: Targets) -> Tensor:
    return decision_logprobs(logits_NV, targets, forbidden)[0]

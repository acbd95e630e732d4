"""Practised decisions as training rows: which options were open at each token, and what each decision was worth.

A student decides among the environment's valid actions, so its policy is a distribution over those alone; a ratio of
likelihoods over the whole vocabulary would be another policy's. Options are found anew from the recorded steps, by the
guard that offered them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedModel

from flywheel.agents.contexts.action_mask import ActionMask
from flywheel.agents.contexts.prompts import DONE, Piece, Role, Window
from flywheel.agents.contexts.tokenization import PieceTokenizer
from flywheel.agents.inference.language_model import option_ids
from flywheel.distill.algorithms.ppo import ADVANTAGE, BEHAVIOUR, OPTIONS, SUCCESS, chosen
from flywheel.distill.batching.examples import Example, observation_of, windows_of
from flywheel.distill.batching.packing import token_logprobs
from flywheel.distill.credit.methods import EXECUTOR, FLAT, PLANNER, SWITCH
from flywheel.distill.data.rows import Drawn, Rows
from flywheel.trajectory import Segment, Trajectory

NONE = -1
"""Fills the list of a token's options."""
Worth = Mapping[str, Mapping[tuple[str, int], float]]
"""Level → (trajectory, step) → advantage."""


Offer = tuple[list[str], bool]
"""(actions on offer, could "done" be said)."""


@dataclass(frozen=True, slots=True)
class Deciding:
    """`worth`: advantages by level. `solved`: trajectories that were verified. `repeats`: the guard's limit. `widest`:
    the most options of a step."""

    worth: Worth
    solved: frozenset[str]
    repeats: int
    widest: int

    def rows(self, rows: Rows, tokens: PieceTokenizer, epochs: int) -> Iterator[Drawn]:
        """Every window in which something was decided, once an epoch."""
        for one, segments in rows.corpus.read(rows.ids):
            offers = [] if rows.role is Role.PLANNER else offered(one, segments, self.repeats)
            for window in windows_of(one, segments, rows.limits, rows.role):
                row = self.row(one.trajectory_id, window, rows.role, offers, tokens)
                if row.weight_T.any():
                    yield from ((number, one.trajectory_id, row) for number in range(epochs))

    def row(
        self, trajectory: str, window: Window, role: Role, offers: Sequence[Offer], tokens: PieceTokenizer
    ) -> Example:
        """Targets are the tokens that had an alternative; a planner's always have."""
        ids: list[int] = []
        free: list[bool] = []
        options: list[list[int]] = []
        worth: list[float] = []
        for piece in window.pieces:
            said = tokens.piece(piece)
            ids += said
            worth += [self._worth(trajectory, role, piece) if piece.target else 0.0] * len(said)
            if piece.target and role is not Role.PLANNER:
                offer, ended = offers[piece.decision]
                every = option_ids(tokens, offer, may_end=ended or piece.marker == DONE)
                branches = open_options(every, said)
                options += branches
                free += [len(own) > 1 for own in branches]
            else:
                options += [[]] * len(said)
                free += [piece.target] * len(said)
        table = np.full((len(ids), 1 if role is Role.PLANNER else self.widest), NONE, np.int32)
        for place, own in enumerate(options):
            table[place, : len(own)] = own
        solved_T = np.full(len(ids), float(trajectory in self.solved), np.float32)
        columns = {OPTIONS: table, ADVANTAGE: np.array(worth, np.float32), SUCCESS: solved_T}
        return Example(np.array(ids, np.int32), np.array(free, np.float32), columns)

    def _worth(self, trajectory: str, role: Role, piece: Piece) -> float:
        level = {Role.FLAT: FLAT, Role.PLANNER: PLANNER, Role.EXECUTOR: EXECUTOR}[role]
        if piece.marker == DONE:
            level = SWITCH
        return self.worth[level].get((trajectory, piece.decision), 0.0)


def offered(one: Trajectory, segments: Sequence[Segment], repeats: int) -> list[Offer]:
    """What the student could say at each step: the guard's offer, and "done" where a subgoal was in force before."""
    guard = ActionMask(repeats)
    starts = {part.start for part in segments}
    found = []
    for step in one.steps:
        observation = observation_of(step)
        offer = guard.offer(observation)
        found.append((offer, bool(segments) and step.index not in starts))
        guard.took(observation, step.action)
    return found


def open_options(options: Sequence[Sequence[int]], said: Sequence[int]) -> list[list[int]]:
    """For each token that was said, the tokens that could have been: the options' branches at that place."""
    found = []
    left = list(options)
    for place, token in enumerate(said):
        found.append(sorted({one[place] for one in left}))
        left = [one for one in left if one[place] == token]
    return found


def with_behaviour(
    model: PreTrainedModel, batch_tokens: int, pad: int, never: Sequence[int], examples: Sequence[Example]
) -> list[Example]:
    """The rows with each target's log-probability under the policy that acted."""
    found = token_logprobs(
        model, examples, batch_tokens, pad, lambda logits_NV, targets: chosen(logits_NV, targets, never)[0]
    )
    return [
        Example(one.ids_T, one.weight_T, {**one.columns, BEHAVIOUR: told}, one.group)
        for one, told in zip(examples, found, strict=True)
    ]

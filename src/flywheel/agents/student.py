"""Students at work: a flat agent, and a planner with an executor, over many episodes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from flywheel.agents.context import FlatContext, HierarchicalContext, Limits
from flywheel.agents.decode import Choice, choose, generate
from flywheel.agents.guard import Guard
from flywheel.agents.policy import Decision, Turn
from flywheel.agents.prompts import ACT, DONE, END, SPECIAL_TOKENS, SUBGOAL, Outcome, Piece, Window
from flywheel.agents.reader import Reader
from flywheel.agents.tokens import PieceTokenizer, token_id
from flywheel.trajectory import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Decoding:
    """How a student's words are chosen; part of the policy's version. Temperature 0 is greedy, for both levels."""

    max_repeats: int = 2
    max_subgoal_tokens: int = 16
    temperature: float = 0.0
    seed: int = 0


class Speaker:
    """A model with its tokenizer: contexts in, one of the options or free text out."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, decoding: Decoding) -> None:
        self._reader = Reader(model)
        model.train(False)
        self._tokenizer = tokenizer
        self._tokens = PieceTokenizer(tokenizer)
        self._decoding = decoding
        self._generator = torch.Generator().manual_seed(decoding.seed)
        self._end = token_id(tokenizer, END)
        self._markers = [token_id(tokenizer, marker) for marker in SPECIAL_TOKENS if marker != END]

    def context(self, window: Window, cue: str) -> list[int]:
        """The token ids the model reads before it speaks: the window and the marker of its turn."""
        return self._tokens.context([*window.pieces, Piece(cue)])

    def choose(
        self, slots: Sequence[int], contexts: Sequence[list[int]], options: Sequence[Sequence[str]]
    ) -> list[Choice | None]:
        """A choice for each row that has options, None for the others."""
        rows = [row for row, offered in enumerate(options) if offered]
        if not rows:
            return [None] * len(options)
        picks = choose(
            self._reader,
            [slots[row] for row in rows],
            [contexts[row] for row in rows],
            [[self._tokens.ids(option + END) for option in options[row]] for row in rows],
            temperature=self._decoding.temperature,
            generator=self._generator,
        )
        found = dict(zip(rows, picks, strict=True))
        return [found.get(row) for row in range(len(options))]

    def say(self, slots: Sequence[int], contexts: Sequence[list[int]]) -> list[str]:
        if not slots:
            return []
        said = generate(
            self._reader,
            slots,
            contexts,
            end=self._end,
            max_tokens=self._decoding.max_subgoal_tokens,
            never=self._markers,
            temperature=self._decoding.temperature,
            generator=self._generator,
        )
        return [str(self._tokenizer.decode(list(tokens))).strip() for tokens, _ in said]


@dataclass(slots=True)
class _Episode:
    context: FlatContext
    guard: Guard


@dataclass(slots=True)
class _HierarchicalEpisode:
    context: HierarchicalContext
    guard: Guard
    spoken: int = 0
    outcome: Outcome | None = None
    """How the subgoal before ended."""

    def end(self, outcome: Outcome) -> None:
        self.context.finish(outcome)
        self.outcome = outcome


class FlatAgent:
    """One model: task, the last steps, observation → action. The control in every comparison."""

    def __init__(
        self, name: str, policy_id: str, version: str, speaker: Speaker, limits: Limits, decoding: Decoding
    ) -> None:
        self.name, self.policy_id, self.version = name, policy_id, version
        self._speaker, self._limits, self._decoding = speaker, limits, decoding
        self._episodes: dict[int, _Episode] = {}

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        self._episodes[slot] = _Episode(FlatContext(task.instruction, self._limits), Guard(self._decoding.max_repeats))

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        episodes = [self._episodes[turn.slot] for turn in turns]
        contexts = [
            self._speaker.context(episode.context.observe(turn.observation), ACT)
            for episode, turn in zip(episodes, turns, strict=True)
        ]
        options = [episode.guard.offer(turn.observation) for episode, turn in zip(episodes, turns, strict=True)]
        picks = self._speaker.choose([turn.slot for turn in turns], contexts, options)
        decisions = []
        for episode, turn, context, row, pick in zip(episodes, turns, contexts, options, picks, strict=True):
            if pick is None:
                decisions.append(Decision(None))
                continue
            action = row[pick.index]
            episode.context.act(turn.observation, action)
            episode.guard.took(turn.observation, action)
            decisions.append(
                Decision(
                    action,
                    prompt_tokens=len(context),
                    completion_tokens=len(pick.tokens),
                    logprobs=pick.logprobs,
                )
            )
        return decisions


class HierarchicalAgent:
    """A planner that names subgoals and an executor that acts under them, each with its own bounded context."""

    def __init__(
        self,
        name: str,
        policy_id: str,
        version: str,
        planner: Speaker,
        executor: Speaker,
        limits: Limits,
        decoding: Decoding,
    ) -> None:
        self.name, self.policy_id, self.version = name, policy_id, version
        self._planner, self._executor = planner, executor
        self._limits, self._decoding = limits, decoding
        self._episodes: dict[int, _HierarchicalEpisode] = {}

    def lend(self, other: HierarchicalAgent) -> None:
        """Make another agent of the same models."""
        HierarchicalAgent.__init__(
            other,
            self.name,
            self.policy_id,
            self.version,
            self._planner,
            self._executor,
            self._limits,
            self._decoding,
        )

    def begin(self, slot: int, task: Task, attempt: int) -> None:
        self._episodes[slot] = _HierarchicalEpisode(
            HierarchicalContext(task.instruction, self._limits), Guard(self._decoding.max_repeats)
        )

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        for turn in turns:
            episode = self._episodes[turn.slot]
            episode.context.observe(turn.observation)
            if episode.context.timed_out:
                episode.end(Outcome.TIMEOUT)
        decided = self._execute(
            [turn for turn in turns if not self._episodes[turn.slot].context.must_plan], may_end=True
        )
        to_plan = [turn for turn in turns if turn.slot not in decided]
        self._plan(to_plan)
        decided |= self._execute(to_plan, may_end=False)
        return [decided[turn.slot] for turn in turns]

    def _plan(self, turns: Sequence[Turn]) -> None:
        for turn in turns:
            self._episodes[turn.slot].context.plan(turn.observation)
        for turn, (subgoal, tokens) in zip(turns, self._name(turns), strict=True):
            episode = self._episodes[turn.slot]
            episode.context.adopt(subgoal)
            episode.spoken = tokens

    def _name(self, turns: Sequence[Turn]) -> list[tuple[str, int]]:
        """(next subgoal, tokens read for it) of each turn."""
        windows = [self._episodes[turn.slot].context.plan_window for turn in turns]
        contexts = [self._planner.context(window, SUBGOAL) for window in windows if window is not None]
        said = self._planner.say([turn.slot for turn in turns], contexts)
        return list(zip(said, map(len, contexts), strict=True))

    def _execute(self, turns: Sequence[Turn], *, may_end: bool) -> dict[int, Decision]:
        """Decisions by slot. Slots whose executor says that the subgoal is done are left out: they must plan."""
        episodes = [self._episodes[turn.slot] for turn in turns]
        windows = [episode.context.window for episode in episodes]
        contexts = [self._executor.context(window, ACT) for window in windows if window is not None]
        offers = [episode.guard.offer(turn.observation) for episode, turn in zip(episodes, turns, strict=True)]
        options = [[*offer, DONE] if may_end else offer for offer in offers]
        decided: dict[int, Decision] = {}
        picks = self._executor.choose([turn.slot for turn in turns], contexts, options)
        for turn, episode, context, row, pick in zip(turns, episodes, contexts, options, picks, strict=True):
            if pick is None:
                decided[turn.slot] = Decision(None)
                continue
            if row[pick.index] == DONE:
                episode.end(Outcome.DONE)
                continue
            action = row[pick.index]
            episode.context.act(turn.observation, action)
            episode.guard.took(turn.observation, action)
            decided[turn.slot] = Decision(
                action,
                subgoal=episode.context.subgoal,
                switched=not may_end,
                prompt_tokens=len(context) + episode.spoken,
                completion_tokens=len(pick.tokens),
                logprobs=pick.logprobs,
            )
            episode.spoken = 0
        return decided

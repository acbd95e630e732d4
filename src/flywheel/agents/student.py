"""Students at work: a flat agent, and a planner with an executor, over many episodes at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.agents.contexts.action_mask import ActionMask
from flywheel.agents.contexts.history import FlatContext, HierarchicalContext, Limits
from flywheel.agents.contexts.prompts import ACT, SUBGOAL, SubgoalOutcome
from flywheel.agents.inference.decoding import Choice, Fault, Written
from flywheel.agents.inference.grammars import Allowed
from flywheel.agents.inference.language_model import LanguageModel, LocalLanguageModel
from flywheel.agents.policy import Decision, Decoding, Past, Turn
from flywheel.environments.protocol import Observation
from flywheel.trajectory import Task


@dataclass(slots=True)
class _Episode:
    context: FlatContext
    mask: ActionMask


@dataclass(slots=True)
class _HierarchicalEpisode:
    context: HierarchicalContext
    mask: ActionMask
    spoken: int = 0
    outcome: SubgoalOutcome | None = None
    """How the subgoal before ended."""
    failures: int = 0
    """Subgoals that failed since the last one that was done."""

    def end(self, outcome: SubgoalOutcome) -> None:
        self.context.finish(outcome)
        self.heard(outcome)

    def heard(self, outcome: SubgoalOutcome) -> None:
        self.outcome = outcome
        self.failures = 0 if outcome is SubgoalOutcome.DONE else self.failures + 1


class FlatAgent:
    """One model: task, the last steps, observation → action. The control in every comparison."""

    def __init__(
        self, name: str, policy_id: str, version: str, language_model: LanguageModel, limits: Limits, decoding: Decoding
    ) -> None:
        self.name, self.policy_id, self.version = name, policy_id, version
        self._language_model, self._limits, self._decoding = language_model, limits, decoding
        self._episodes: dict[int, _Episode] = {}

    @property
    def is_local(self) -> bool:
        """Is the model in this process?"""
        return isinstance(self._language_model, LocalLanguageModel)

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        context, mask = FlatContext(task.instruction, self._limits), ActionMask(self._decoding.max_repeats)
        for observation, decision in past:
            context.observe(observation)
            mask.offer(observation)
            context.act(observation, decision.action or "")
            mask.took(observation, decision.action or "")
        self._episodes[slot] = _Episode(context, mask)
        self._language_model.begin(slot, task, attempt)

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        episodes = [self._episodes[turn.slot] for turn in turns]
        for turn in turns:
            self._language_model.draw(turn.slot, turn.sampling)
        contexts = [
            self._language_model.context(episode.context.observe(turn.observation), ACT)
            for episode, turn in zip(episodes, turns, strict=True)
        ]
        offers = [_offer(episode.mask, turn) for episode, turn in zip(episodes, turns, strict=True)]
        picks = _decided(self._language_model, turns, contexts, offers)
        decisions = []
        for episode, turn, context, pick in zip(episodes, turns, contexts, picks, strict=True):
            if not isinstance(pick, Written) or pick.text is None:
                decisions.append(_no_decision(pick))
                continue
            episode.context.act(turn.observation, pick.text)
            episode.mask.took(turn.observation, pick.text)
            decisions.append(
                Decision(
                    pick.text,
                    prompt_tokens=len(context),
                    completion_tokens=max(len(pick.tokens), len(pick.logprobs)),
                    tokens=pick.tokens,
                    logprobs=pick.logprobs,
                )
            )
        return decisions


class HierarchicalAgent:
    """A planner that names subgoals and an executor that acts under them, each with its own bounded context.

    A subgoal ends when the executor says that it is done, when its steps have run out, or when it is stuck; the planner
    hears how, and plans anew.
    """

    def __init__(
        self,
        name: str,
        policy_id: str,
        version: str,
        planner: LanguageModel,
        executor: LanguageModel,
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

    @property
    def is_local(self) -> bool:
        """Are both models in this process?"""
        return isinstance(self._planner, LocalLanguageModel) and isinstance(self._executor, LocalLanguageModel)

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        context, mask = HierarchicalContext(task.instruction, self._limits), ActionMask(self._decoding.max_repeats)
        episode = self._episodes[slot] = _HierarchicalEpisode(context, mask)
        for observation, decision in past:
            mask.offer(observation)
            action = decision.action or ""
            ended = context.follow(observation, action, decision.subgoal, new_subgoal=decision.new_subgoal)
            if ended:
                episode.heard(ended)
            if not decision.subgoal:
                episode.failures = 0
            mask.took(observation, action)
        self._planner.begin(slot, task, attempt)
        self._executor.begin(slot, task, attempt)

    def failures(self, slot: int) -> int:
        """How many subgoals failed in a row: what calls for help."""
        return self._episodes[slot].failures

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        for turn in turns:
            episode = self._episodes[turn.slot]
            episode.context.observe(turn.observation)
            self._planner.draw(turn.slot, turn.sampling)
            self._executor.draw(turn.slot, turn.sampling)
            if failed := episode.context.failed:
                episode.end(failed)
        decided = self._execute(
            [turn for turn in turns if not self._episodes[turn.slot].context.must_plan], may_end=True
        )
        to_plan = [turn for turn in turns if turn.slot not in decided]
        decided |= self._plan(to_plan)
        decided |= self._execute([turn for turn in to_plan if turn.slot not in decided], may_end=False)
        return [decided[turn.slot] for turn in turns]

    def _plan(self, turns: Sequence[Turn]) -> dict[int, Decision]:
        """Give each episode its next subgoal; decisions of those for which the planner had no words, by slot."""
        for turn in turns:
            self._episodes[turn.slot].context.plan(turn.observation)
        unplanned: dict[int, Decision] = {}
        for turn, (subgoal, tokens) in zip(turns, self._name(turns), strict=True):
            if isinstance(subgoal, Fault):
                unplanned[turn.slot] = _no_decision(subgoal)
                continue
            episode = self._episodes[turn.slot]
            episode.context.adopt(turn.observation, subgoal)
            episode.spoken = tokens
        return unplanned

    def _name(self, turns: Sequence[Turn]) -> list[tuple[str | Fault, int]]:
        """(next subgoal, tokens read for it) of each turn."""
        windows = [self._episodes[turn.slot].context.plan_window for turn in turns]
        contexts = [self._planner.context(window, SUBGOAL) for window in windows if window is not None]
        choices = self._planner.say([turn.slot for turn in turns], contexts)
        return list(zip(choices, map(len, contexts), strict=True))

    def _execute(self, turns: Sequence[Turn], *, may_end: bool) -> dict[int, Decision]:
        """Decisions by slot. Slots whose executor says that the subgoal is done are left out: they must plan."""
        episodes = [self._episodes[turn.slot] for turn in turns]
        windows = [episode.context.window for episode in episodes]
        contexts = [self._executor.context(window, ACT) for window in windows if window is not None]
        offers = [_offer(episode.mask, turn) for episode, turn in zip(episodes, turns, strict=True)]
        decided: dict[int, Decision] = {}
        picks = _decided(self._executor, turns, contexts, offers, may_end=may_end)
        for turn, episode, context, pick in zip(turns, episodes, contexts, picks, strict=True):
            if not isinstance(pick, Written):
                decided[turn.slot] = _no_decision(pick)
                continue
            if pick.text is None:
                episode.end(SubgoalOutcome.DONE)
                continue
            episode.context.act(turn.observation, pick.text)
            episode.mask.took(turn.observation, pick.text)
            decided[turn.slot] = Decision(
                pick.text,
                subgoal=episode.context.subgoal,
                new_subgoal=not may_end,
                prompt_tokens=len(context) + episode.spoken,
                completion_tokens=max(len(pick.tokens), len(pick.logprobs)),
                tokens=pick.tokens,
                logprobs=pick.logprobs,
            )
            episode.spoken = 0
        return decided


def _decided(
    model: LanguageModel,
    turns: Sequence[Turn],
    contexts: Sequence[list[int]],
    offers: Sequence[list[str] | None],
    *,
    may_end: bool = False,
) -> list[Written | Fault | None]:
    """What the model does in each row: one of the actions on offer, a call of its tools, or text of its own where the
    environment lists nothing. No text: it is done. None: nothing was on offer."""
    decided: dict[int, Written | Fault | None] = {}
    slots = [turn.slot for turn in turns]
    if free := [row for row, offer in enumerate(offers) if offer is None]:
        allowed = [_allowed(turns[row].observation) for row in free]
        texts = model.write([slots[row] for row in free], [contexts[row] for row in free], allowed, may_end=may_end)
        decided |= zip(free, texts, strict=True)
    if listed := [(row, offer) for row, offer in enumerate(offers) if offer is not None]:
        rows, options = [row for row, _ in listed], [offer for _, offer in listed]
        picks = model.choose([slots[row] for row in rows], [contexts[row] for row in rows], options, may_end=may_end)
        for row, offer, pick in zip(rows, options, picks, strict=True):
            decided[row] = _chosen(offer, pick) if isinstance(pick, Choice) else pick
    return [decided[row] for row in range(len(offers))]


def _allowed(seen: Observation) -> Allowed | None:
    return None if seen.tools is None else Allowed(seen.tools, seen.must_call, seen.answer_schema)


def _chosen(offer: Sequence[str], choice: Choice) -> Written:
    text = offer[choice.index] if choice.index < len(offer) else None
    return Written(text, choice.tokens, choice.logprobs)


def _no_decision(pick: Written | Fault | None) -> Decision:
    """No decision: nothing was on offer, or the model had no answer, and why."""
    return Decision(None, error=pick.reason if isinstance(pick, Fault) else "")


def _offer(mask: ActionMask, turn: Turn) -> list[str] | None:
    """What is worth doing, None where the environment lists nothing; not to say "done" once more, where that was just
    refused."""
    if turn.observation.valid_actions is None:
        return None
    offered = mask.offer(turn.observation)
    return [action for action in offered if action != turn.observation.finish] if turn.audit else offered

"""What a student read before a decision: the recorded run is folded through the contexts that it acted with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flywheel.agents.contexts.history import FlatContext, HierarchicalContext
from flywheel.agents.contexts.language import Language, language_of
from flywheel.agents.contexts.prompts import ACT, SUBGOAL, Piece, Role, SubgoalOutcome
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.batching.examples import observations_of
from flywheel.errors import LakeError
from flywheel.policies.card import ROLES, PolicyCard, read_card
from flywheel.policies.models import load_tokenizer
from flywheel.policies.registry import policy_directory, registered
from flywheel.trajectory import Step, Trajectory


@dataclass(frozen=True, slots=True)
class PromptRead:
    """What a role read, to the character, and what it answered. `answer_tokens`: (text, log-probability) of each token
    of the answer, empty where the student did not spell the answer so."""

    role: Role
    prompt: str
    tokens: int
    answer: str
    answer_tokens: tuple[tuple[str, float], ...]


def prompts_read(lake: Lake, trajectory_id: str, index: int) -> list[PromptRead]:
    """The prompts behind one step's decision, the planner's first where it named a subgoal there.

    Raises `LakeError` where the run has no such step, and `PolicyError` where no student of this lake decided it.
    """
    (trajectory,) = lake.trajectories([trajectory_id])
    if not 0 <= index < len(trajectory.steps):
        raise LakeError(f"the run has {len(trajectory.steps)} steps, and no step {index}")
    step = trajectory.steps[index]
    folder = policy_directory(lake, str(registered(lake, step.policy_id).policy_id))
    card = read_card(folder)
    contexts = _contexts(card, trajectory, index)
    languages = {role: language_of(load_tokenizer(folder / role)) for role in ROLES[card.kind]}
    prompts = []
    for role, pieces in contexts:
        language, tokenizer = languages[role], load_tokenizer(folder / role)
        ids = language.prompt(pieces, SUBGOAL if role is Role.PLANNER else ACT)
        answer = step.subgoal if role is Role.PLANNER else step.action
        spelled = () if role is Role.PLANNER else _spelled(language, step)
        answer_tokens = tuple((str(tokenizer.decode([token])), logprob) for token, logprob in spelled)
        prompts.append(PromptRead(role, str(tokenizer.decode(ids)), len(ids), answer, answer_tokens))
    return prompts


def _contexts(card: PolicyCard, trajectory: Trajectory, index: int) -> list[tuple[Role, Sequence[Piece]]]:
    """What was read at a step, with who read it."""
    turns = list(zip(trajectory.steps, observations_of(trajectory), strict=True))
    (step, seen), before = turns[index], turns[:index]
    if card.kind == "flat":
        flat = FlatContext(trajectory.instruction, card.limits)
        for past, observation in before:
            flat.observe(observation)
            flat.act(observation, past.action)
        return [(Role.FLAT, flat.observe(seen).pieces)]
    context = HierarchicalContext(trajectory.instruction, card.limits)
    for past, observation in before:
        context.follow(observation, past.action, past.subgoal, new_subgoal=past.new_subgoal)
    context.observe(seen)
    if ended := context.failed or (SubgoalOutcome.DONE if step.new_subgoal and not context.must_plan else None):
        context.finish(ended)
    read: list[tuple[Role, Sequence[Piece]]] = []
    if context.must_plan and step.subgoal:
        read.append((Role.PLANNER, tuple(context.plan(seen).pieces)))
        context.adopt(seen, step.subgoal)
    return [*read, (Role.EXECUTOR, context.window.pieces)] if context.window else read


def _spelled(language: Language, step: Step) -> Sequence[tuple[int, float]]:
    """The tokens of the answer with their log-probabilities, where there are as many of them."""
    ids = language.options([step.action], may_end=False)[0]
    return list(zip(ids, step.logprobs, strict=True)) if step.logprobs and len(ids) == len(step.logprobs) else []

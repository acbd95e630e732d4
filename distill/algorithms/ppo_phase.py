"""What a round of practice teaches, by role: the student's own decisions, under the clipped objective of `proximal`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyarrow.compute as pc

from flywheel.agents.contexts.prompts import END, PAD, SPECIAL_TOKENS, Role
from flywheel.agents.contexts.tokenization import token_id
from flywheel.config.distill import RefineConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.reading import quoted
from flywheel.distill.algorithms.advantage_weights import by_decision, estimate_advantages
from flywheel.distill.algorithms.phases import Lesson, More
from flywheel.distill.algorithms.ppo import Clip, practised, watched
from flywheel.distill.algorithms.ppo_rollouts import PURPOSE
from flywheel.distill.algorithms.ppo_rows import Deciding, with_behaviour
from flywheel.distill.batching.examples import Example
from flywheel.distill.credit.hierarchical import normalised
from flywheel.distill.data.corpus import Corpus
from flywheel.distill.data.rows import Rows
from flywheel.policies.card import PolicyCard
from flywheel.policies.models import load_part, load_tokenizer
from flywheel.policies.registry import policy_directory
from flywheel.policies.students import on_device
from flywheel.runtime.devices import pick_device


def practice_lessons(
    config: Config,
    settings: RefineConfig,
    lake: Lake,
    corpus: Corpus,
    roles: Sequence[Role],
    student: PolicyCard,
    iteration: int,
) -> Callable[[Role], Lesson]:
    """Critics are fitted to the round's returns before the policy moves; advantages are normalised level by level."""
    base = policy_directory(lake, student.policy_id)
    credit, heads = estimate_advantages(config, settings, lake, corpus, roles, base, iteration)
    worth = {}
    for level in dict.fromkeys(credit["level"].to_pylist()):
        own = credit.filter(pc.equal(credit["level"], level))
        worth[level] = by_decision(own, normalised(own["advantage"].to_numpy()))
    mine = f"ours and policy_id = {quoted(student.policy_id)} and purpose = '{PURPOSE}'"
    solved = lake.sql(f"select trajectory_id from trajectories where {mine} and verified", at=corpus.snapshot)
    (told,) = lake.sql(
        f"""select coalesce(max(len(valid_actions)), 0) as widest from steps
            where trajectory_id in (select trajectory_id from trajectories where {mine})""",
        at=corpus.snapshot,
    ).to_pylist()
    deciding = Deciding(
        worth, frozenset(solved["trajectory_id"].to_pylist()), student.decoding.max_repeats, told["widest"] + 1
    )
    clip = Clip(settings.practice.clip_low, settings.practice.clip_high, settings.practice.success)

    def lesson(role: Role) -> Lesson:
        tokenizer = load_tokenizer(base / role)
        never = [token_id(tokenizer, marker) for marker in SPECIAL_TOKENS if marker != END]
        return Lesson(
            deciding.rows,
            partial(_recalled, config, student, lake, role, never),
            partial(practised, clip=clip, never=never),
            partial(watched, clip=clip, never=never),
            heads[role],
        )

    return lesson


def _recalled(config: Config, student: PolicyCard, lake: Lake, role: Role, never: Sequence[int], rows: Rows) -> More:
    """Adds what the practising student itself gave each of its words."""
    model, tokenizer = load_part(policy_directory(lake, student.policy_id) / role)
    model = on_device(model, pick_device(config.train.device))
    pad, size = token_id(tokenizer, PAD), config.train.batch_tokens

    def more(epoch: int, places: range, owners: Sequence[str], examples: Sequence[Example]) -> list[Example]:
        return with_behaviour(model, size, pad, never, examples)

    return more

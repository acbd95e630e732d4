"""Made-up trajectories for benchmarks; needs nothing but the data contract."""

from __future__ import annotations

import random
from collections.abc import Iterator

from flywheel.trajectory import Split, Step, StopReason, Task, Trajectory, trajectory_id

TEXT = "red green yellow onion potato pepper fridge counter oven stove open closed north south door kitchen"
WORDS = TEXT.split()
MILESTONES = 8


def trajectories(count: int, steps: int) -> Iterator[Trajectory]:
    """Made-up episodes whose observations are 1.2 KB of words that partly repeat from step to step.

    Their records are consistent: half of them succeed, over eight rewarded milestones, the others get half-way.
    """
    chance = random.Random(0)
    for number in range(count):
        task = Task("made-up", "{}", Split.TRAIN, number // 4, "Do it.")
        room = " ".join(chance.choices(WORDS, k=150))
        policy = ("expert", "flat", "hierarchical")[number % 3]
        success = chance.random() < 0.5
        reached, rows = 0, []
        for index in range(steps):
            due = (index + 1) * MILESTONES // steps
            gained = (min(due, MILESTONES if success else MILESTONES // 2) - reached) / MILESTONES
            reached = min(due, MILESTONES if success else MILESTONES // 2)
            action = " ".join(chance.choices(WORDS, k=3))
            rows.append(
                Step(
                    index=index,
                    observation=f"{room} {' '.join(chance.choices(WORDS, k=40))}",
                    feedback="Done.",
                    document="",
                    location="kitchen",
                    state_key=f"{chance.getrandbits(64):016x}",
                    action=action,
                    thought="",
                    subgoal="explore",
                    new_subgoal=index == 0,
                    terminated=success and index == steps - 1,
                    truncated=not success and index == steps - 1,
                    trainable=True,
                    prompt_tokens=100,
                    completion_tokens=3,
                    seconds=0.01,
                    reward=gained,
                    progress=reached / MILESTONES,
                    policy_id=policy,
                    policy_version="1",
                    logprobs=(-0.5, -0.25, -0.125),
                    valid_actions=(action, "go south", "open fridge"),
                )
            )
        yield Trajectory(
            trajectory_id=trajectory_id(task, policy, "1", "collect", number),
            environment=task.environment,
            parameters=task.parameters,
            split=task.split,
            seed=task.seed,
            task_id=task.task_id,
            task_group=task.group,
            instruction=task.instruction,
            policy=policy,
            policy_id=policy,
            policy_version="1",
            iteration=1,
            purpose="collect",
            attempt=number,
            stop_reason=StopReason.SUCCESS if success else StopReason.STEP_LIMIT,
            success=success,
            score=reached / MILESTONES,
            total_reward=sum(step.reward for step in rows),
            length=steps,
            final_observation="",
            final_feedback="",
            final_state_key="",
            error="",
            parent_policy_id="",
            config_digest="",
            started_at=0.0,
            steps=tuple(rows),
        )

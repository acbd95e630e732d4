"""Made-up trajectories for benchmarks; needs nothing but the data contract."""

from __future__ import annotations

import random
from collections.abc import Iterator

from flywheel.trajectory import Split, Step, StopReason, Task, Trajectory, trajectory_id

TEXT = "red green yellow onion potato pepper fridge counter oven stove open closed north south door kitchen"
WORDS = TEXT.split()


def trajectories(count: int, steps: int) -> Iterator[Trajectory]:
    """Made-up episodes whose observations are 1.2 KB of words that partly repeat from step to step."""
    chance = random.Random(0)
    for number in range(count):
        task = Task("made-up", "{}", Split.TRAIN, number // 4, "Do it.")
        room = " ".join(chance.choices(WORDS, k=150))
        policy = ("expert", "flat", "hierarchical")[number % 3]
        rows = tuple(
            Step(
                index=index,
                observation=f"{room} {' '.join(chance.choices(WORDS, k=40))}",
                event="Done.",
                note="",
                place="kitchen",
                state_key=f"{chance.getrandbits(64):016x}",
                action=" ".join(chance.choices(WORDS, k=3)),
                thought="",
                subgoal="explore",
                switched=index == 0,
                terminated=index == steps - 1,
                truncated=False,
                trainable=True,
                prompt_tokens=100,
                completion_tokens=3,
                seconds=0.01,
                reward=float(index == steps - 1),
                progress=index / steps,
                policy_id=policy,
                policy_version="1",
                logprobs=(-0.5, -0.25, -0.125),
                valid_actions=("go north", "go south", "open fridge"),
            )
            for index in range(steps)
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
            stop_reason=StopReason.SUCCESS if chance.random() < 0.5 else StopReason.FAILURE,
            success=number % 2 == 0,
            score=1.0,
            total_reward=1.0,
            length=steps,
            final_observation="",
            final_event="",
            final_state_key="",
            error="",
            parent_policy_id="",
            config_digest="",
            started_at=0.0,
            steps=rows,
        )

"""Rollouts: one policy in many environments at once; a slot that ends takes the next task at once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from flywheel.agents.policy import Decision, Policy, Turn
from flywheel.environments.protocol import Environment, Observation, Transition
from flywheel.errors import InfrastructureError
from flywheel.trajectory import Step, StopReason, Task, Trajectory, trajectory_id


@dataclass(frozen=True, slots=True)
class Job:
    """One episode to run: a task and which attempt at it."""

    task: Task
    attempt: int = 0


@dataclass(frozen=True, slots=True)
class Origin:
    """What every trajectory of a collection shares: its place in the lineage."""

    iteration: int
    purpose: str
    config_digest: str
    parent_policy_id: str = ""


@dataclass(slots=True)
class _Episode:
    job: Job
    observation: Observation
    started_at: float
    steps: list[Step] = field(default_factory=list)
    progress: float = 0.0


def rollouts(
    policy: Policy,
    jobs: Iterable[Job],
    environments: Sequence[Environment],
    *,
    max_steps: int,
    origin: Origin,
) -> Iterator[Trajectory]:
    """Yield each trajectory as soon as it ends. A broken environment yields one marked INFRASTRUCTURE."""
    waiting = iter(jobs)
    running: dict[int, _Episode] = {}
    idle = list(range(len(environments)))
    while True:
        while idle and (job := next(waiting, None)) is not None:
            slot = idle.pop()
            started = time.time()
            try:
                observation = environments[slot].reset(job.task)
                policy.begin(slot, job.task, job.attempt)
            except InfrastructureError as broken:
                idle.append(slot)
                blank = _Episode(job, Observation(""), started)
                yield _finish(policy, blank, origin, StopReason.INFRASTRUCTURE, error=str(broken))
                continue
            running[slot] = _Episode(job, observation, started)
        if not running:
            return
        slots = sorted(running)
        began = time.perf_counter()
        decisions = policy.act([Turn(slot, running[slot].observation) for slot in slots])
        share = (time.perf_counter() - began) / len(slots)
        for slot, decision in zip(slots, decisions, strict=True):
            episode = running[slot]
            stop, error = _advance(environments[slot], episode, decision, policy, share, max_steps)
            if stop is not None:
                del running[slot]
                idle.append(slot)
                yield _finish(policy, episode, origin, stop, error)


def _advance(
    environment: Environment, episode: _Episode, decision: Decision, policy: Policy, share: float, max_steps: int
) -> tuple[StopReason | None, str]:
    """Play one decision; (why the episode is over or None, what broke)."""
    if decision.action is None:
        return StopReason.NO_ACTION, ""
    began = time.perf_counter()
    try:
        transition = environment.step(decision.action)
    except InfrastructureError as error:
        return StopReason.INFRASTRUCTURE, str(error)
    stop = _stop_reason(transition, len(episode.steps) + 1, max_steps)
    seen = episode.observation
    episode.steps.append(
        Step(
            index=len(episode.steps),
            observation=seen.text,
            event=seen.event,
            note=seen.note,
            place=seen.place,
            state_key=seen.state_key,
            valid_actions=seen.valid_actions,
            thought=decision.thought,
            subgoal=decision.subgoal,
            switched=decision.switched,
            action=decision.action,
            reward=transition.reward,
            progress=transition.progress,
            terminated=transition.terminated,
            truncated=stop is StopReason.STEP_LIMIT,
            policy_id=policy.policy_id,
            policy_version=policy.version,
            trainable=decision.trainable,
            prompt_tokens=decision.prompt_tokens,
            completion_tokens=decision.completion_tokens,
            logprobs=decision.logprobs,
            seconds=share + time.perf_counter() - began,
        )
    )
    episode.observation, episode.progress = transition.observation, transition.progress
    return stop, ""


def _stop_reason(transition: Transition, length: int, max_steps: int) -> StopReason | None:
    if transition.success:
        return StopReason.SUCCESS
    if transition.terminated:
        return StopReason.FAILURE
    return StopReason.STEP_LIMIT if length >= max_steps else None


def _finish(policy: Policy, episode: _Episode, origin: Origin, stop: StopReason, error: str = "") -> Trajectory:
    task, attempt = episode.job.task, episode.job.attempt
    return Trajectory(
        trajectory_id=trajectory_id(task, policy.policy_id, policy.version, origin.purpose, attempt),
        environment=task.environment,
        parameters=task.parameters,
        split=task.split,
        seed=task.seed,
        task_id=task.task_id,
        task_group=task.group,
        instruction=task.instruction,
        policy=policy.name,
        policy_id=policy.policy_id,
        policy_version=policy.version,
        iteration=origin.iteration,
        purpose=origin.purpose,
        attempt=attempt,
        stop_reason=stop,
        success=stop is StopReason.SUCCESS,
        score=episode.progress,
        total_reward=sum(step.reward for step in episode.steps),
        length=len(episode.steps),
        final_observation=episode.observation.text,
        final_event=episode.observation.event,
        final_state_key=episode.observation.state_key,
        error=error,
        parent_policy_id=origin.parent_policy_id,
        config_digest=origin.config_digest,
        started_at=episode.started_at,
        steps=tuple(episode.steps),
    )

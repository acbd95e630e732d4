"""One episode while it runs: its steps so far, what it has used up, and the trajectory that it becomes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from flywheel.agents.policy import Decision, Policy, Turn
from flywheel.config.root import EnvironmentConfig
from flywheel.environments.protocol import Observation, Transition
from flywheel.environments.tools import names_of
from flywheel.messages import Message, action_of, answer_of_action, system_of
from flywheel.trajectory import BUDGET_STOPS, Step, StopReason, Task, Trajectory, trajectory_id
from flywheel.unknowns import known_sum, spent


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


@dataclass(frozen=True, slots=True)
class Budget:
    """What one episode may use up; 0: as much as it likes."""

    steps: int
    tokens: int = 0
    seconds: float = 0.0
    cost: float = 0.0

    @staticmethod
    def of(settings: EnvironmentConfig) -> Budget:
        return Budget(settings.max_steps, settings.max_tokens, settings.max_seconds, settings.max_cost)


@dataclass(slots=True)
class Episode:
    """The record of one episode. `policy`: who began it, and by whom it is named."""

    job: Job
    policy: Policy
    origin: Origin
    started_at: float = field(default_factory=time.time)
    observation: Observation = field(default_factory=lambda: Observation(""))
    past: list[tuple[Observation, Decision]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    progress: float = 0.0
    tokens: int | None = 0
    cost: float | None = 0.0

    @property
    def tools(self) -> str | None:
        """The tools that it began with."""
        return self._first.tools

    @property
    def _first(self) -> Observation:
        return self.past[0][0] if self.past else self.observation

    @property
    def _system(self) -> str | None:
        if self._first.opens_task:
            return system_of(self._first.messages or ())
        return self.job.task.instruction if self.tools is not None else None

    @property
    def trajectory_id(self) -> str:
        return id_of(self.job, self.policy, self.origin)

    def record(
        self, turn: Turn, decision: Decision, transition: Transition, acting: Policy, seconds: float, budget: Budget
    ) -> StopReason | None:
        """Append one step; why the episode is over, or None."""
        assert decision.action is not None
        self.spend(decision)
        stop = self._stop(transition, budget)
        seen = turn.observation
        self.past.append((seen, decision))
        self.steps.append(
            Step(
                index=len(self.steps),
                observation=seen.text,
                feedback=seen.feedback,
                document=seen.document,
                location=seen.location,
                state_key=seen.state_key,
                valid_actions=seen.valid_actions,
                thought=decision.thought,
                subgoal=decision.subgoal,
                new_subgoal=decision.new_subgoal,
                action=decision.action,
                reward=transition.reward,
                progress=transition.progress,
                terminated=transition.terminated,
                truncated=stop in BUDGET_STOPS,
                policy_id=decision.policy_id or acting.policy_id,
                policy_version=decision.policy_version or acting.version,
                trainable=decision.trainable,
                prompt_tokens=decision.prompt_tokens,
                completion_tokens=decision.completion_tokens,
                logprobs=decision.logprobs,
                seconds=seconds,
                teacher_action=decision.teacher_action,
                audit=turn.audit,
                cost=decision.cost,
                top_tokens=decision.top_tokens,
                top_logprobs=decision.top_logprobs,
                whole_view=seen.whole,
                inputs=seen.messages,
                output=decision.output,
            )
        )
        self.observation, self.progress = _answered(transition.observation, decision.output), transition.progress
        return stop

    def spend(self, decision: Decision) -> None:
        self.tokens = known_sum((self.tokens, decision.prompt_tokens, decision.completion_tokens))
        self.cost = known_sum((self.cost, decision.cost))

    def _stop(self, transition: Transition, budget: Budget) -> StopReason | None:
        if transition.success:
            return StopReason.SUCCESS
        if transition.terminated:
            return StopReason.FAILURE
        if len(self.steps) + 1 >= budget.steps > 0:
            return StopReason.STEP_LIMIT
        if spent(self.tokens, budget.tokens):
            return StopReason.TOKEN_LIMIT
        return StopReason.COST_LIMIT if spent(self.cost, budget.cost) else None

    def finished(self, stop: StopReason, error: str = "") -> Trajectory:
        task, last = self.job.task, self.observation
        return Trajectory(
            trajectory_id=self.trajectory_id,
            environment=task.environment,
            parameters=task.parameters,
            split=task.split,
            seed=task.seed,
            task_id=task.task_id,
            task_group=task.group,
            instruction=self._first.instruction or task.instruction,
            policy=self.policy.name,
            policy_id=self.policy.policy_id,
            policy_version=self.policy.version,
            iteration=self.origin.iteration,
            purpose=self.origin.purpose,
            attempt=self.job.attempt,
            stop_reason=stop,
            success=stop is StopReason.SUCCESS,
            score=self.progress,
            total_reward=sum(step.reward or 0.0 for step in self.steps),
            length=len(self.steps),
            final_observation=last.text,
            final_feedback=last.feedback,
            final_state_key=last.state_key,
            error=error,
            parent_policy_id=self.origin.parent_policy_id,
            config_digest=self.origin.config_digest,
            started_at=self.started_at,
            tokens=self.tokens,
            cost=self.cost,
            system=self._system,
            tools=self.tools,
            final_inputs=last.messages,
            task_name=task.name,
            task_data=task.data,
            family=task.family,
            steps=tuple(self.steps),
        )


def as_calls(decision: Decision, seen: Observation, index: int) -> Decision:
    """The decision with its answer as a message, where actions are tool calls; calls of an answer that has no ids are
    given some, and are spelt as the record spells them. Text that calls no known tool stays text."""
    if seen.tools is None or decision.output is not None or decision.action is None:
        return decision
    output = answer_of_action(decision.action, names_of(seen.tools), index)
    output = replace(output, reasoning=decision.thought or None)
    return replace(decision, action=action_of(output), output=output)


def _answered(observation: Observation, output: Message | None) -> Observation:
    """The observation whose results of tools name the calls that they answer."""
    if observation.messages is None or output is None:
        return observation
    ids = iter([call.id for call in output.tool_calls])
    messages = [
        replace(message, tool_call_id=next(ids, None))
        if message.role == "tool" and message.tool_call_id is None
        else message
        for message in observation.messages
    ]
    return replace(observation, messages=tuple(messages))


def id_of(job: Job, policy: Policy, origin: Origin) -> str:
    """The id of the trajectory that a job becomes."""
    return trajectory_id(job.task, policy.policy_id, policy.version, origin.purpose, job.attempt)

"""A trajectory as the conversation that it was: one list of messages, whatever the environment."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.messages import Message
from flywheel.sections import AUDIT, DOCUMENT, FEEDBACK, VIEW, render_sections
from flywheel.trajectory import Step, Trajectory

PROMPTS = ("system", "developer")
"""Roles of the messages that begin a conversation."""


def inputs_of(step: Step) -> tuple[Message, ...]:
    """What was said to the agent since its last decision. A text environment's observation is one message of the user:
    feedback, document, view and valid actions, as chat models are shown them."""
    if step.inputs is not None:
        return step.inputs
    texts = {FEEDBACK: step.feedback, DOCUMENT: step.document, VIEW: step.observation, AUDIT: step.audit}
    return (Message("user", render_sections(texts, step.valid_actions)),)


def output_of(step: Step) -> Message:
    """What the agent answered."""
    return step.output or Message("assistant", step.action, reasoning=step.thought or None)


def opening_of(trajectory: Trajectory) -> tuple[Message, ...]:
    """What stands before the first step: the system's message, which is the task of a text environment, where the
    messages of the first step hold none."""
    first = trajectory.steps[0].inputs if trajectory.steps else None
    if first is None:
        return (Message("system", trajectory.system or trajectory.instruction),)
    is_complete = trajectory.system is None or any(message.role in PROMPTS for message in first)
    return () if is_complete else (Message("system", trajectory.system or ""),)


def closing_of(trajectory: Trajectory) -> tuple[Message, ...]:
    """What was said after the agent's last answer."""
    if trajectory.final_inputs is not None:
        return trajectory.final_inputs
    texts = {FEEDBACK: trajectory.final_feedback, VIEW: trajectory.final_observation}
    return (Message("user", render_sections(texts, None)),) if any(texts.values()) else ()


def names_images(trajectory: Trajectory) -> bool:
    """Does a screenshot name an image, or may a content part?"""
    for step in trajectory.steps:
        if step.screenshot or any(message.parts for message in (*(step.inputs or ()), *filter(None, [step.output]))):
            return True
    return any(message.parts for message in trajectory.final_inputs or ())


def messages_of(steps: Sequence[Step]) -> list[Message]:
    """What was said and answered over some steps, in order."""
    return [message for step in steps for message in (*inputs_of(step), output_of(step))]


def answers_of(trajectory: Trajectory) -> list[str]:
    """What came of each step: the environment's answer, or what the agent was told next."""
    later = [step.feedback if step.inputs is None else step.observation for step in trajectory.steps[1:]]
    last = trajectory.final_feedback if trajectory.final_inputs is None else trajectory.final_observation
    return [*later, last][: trajectory.length]

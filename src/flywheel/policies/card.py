"""A policy on disk: its card, `policy.json`, says which student it is, how it acts, and where it comes from.

The directory holds one plain Hugging Face folder a role (safetensors, tokenizer, model card), so that
`AutoModelForCausalLM.from_pretrained` loads each part by itself. The card is written last: without it the directory is
unfinished work. Nothing here needs PyTorch, so that whoever only looks does not wait for it.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flywheel.agents.contexts.history import Limits
from flywheel.agents.contexts.prompts import WORDING, Role
from flywheel.agents.policy import Decoding
from flywheel.config.student import StudentConfig
from flywheel.errors import PolicyError
from flywheel.trajectory import digest

POLICY_FILE = "policy.json"
TRACKING = "tracking"
"""The folder of training curves, beside the lake."""
ROLES: dict[str, tuple[Role, ...]] = {"flat": (Role.FLAT,), "hierarchical": (Role.PLANNER, Role.EXECUTOR)}
"""Kinds of student and the models that each is made of."""


@dataclass(frozen=True, slots=True)
class PolicyCard:
    """What `policy.json` says: which student, how it acts, and where it comes from."""

    kind: str
    policy_id: str
    version: str
    limits: Limits
    decoding: Decoding
    iteration: int
    snapshot: int
    condition: str
    """The SQL that chose the trajectories, or empty where the iteration did."""
    trajectories: int
    training_digest: str
    config_digest: str
    parent_policy_id: str
    base: str
    """Digest of the checkpoint that it was first made from, with its adapter's rank; empty for one from scratch."""
    parameters: int
    metrics: dict[str, float]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> PolicyCard:
        raw: dict[str, Any] = json.loads(text)
        return PolicyCard(**{**raw, "limits": Limits(**raw["limits"]), "decoding": Decoding(**raw["decoding"])})


def limits_of(config: StudentConfig) -> Limits:
    return Limits(
        config.window_steps, config.planner_window, config.segment_steps, config.stuck_after, config.window_chars
    )


def decoding_of(config: StudentConfig, seed: int) -> Decoding:
    """How a config's students speak: those of a base are wordier."""
    if config.base:
        return Decoding(config.max_repeats, max_subgoal_tokens=32, max_action_tokens=512, seed=seed)
    return Decoding(max_repeats=config.max_repeats, seed=seed)


def acting_version(limits: Limits, decoding: Decoding) -> str:
    """How a policy acts is part of what it is: other contexts, limits or decoding make another version."""
    return digest(WORDING, asdict(limits), asdict(decoding), size=4)


def read_card(directory: Path) -> PolicyCard:
    path = directory / POLICY_FILE
    try:
        return PolicyCard.from_json(path.read_text())
    except FileNotFoundError:
        raise PolicyError(f"no finished student in {directory}; run `flywheel distill` again") from None
    except (ValueError, TypeError, KeyError) as error:
        raise PolicyError(f"{path} is not a policy card ({error}); delete its folder and distill it again") from error


def finish(directory: Path, card: PolicyCard) -> None:
    """Mark the policy complete, atomically, and drop what only training needed."""
    for leftover in (*directory.glob("*.checkpoint"), *directory.glob("*.start")):
        shutil.rmtree(leftover)
    temporary = directory / f"{POLICY_FILE}.new"
    temporary.write_text(card.to_json())
    temporary.replace(directory / POLICY_FILE)

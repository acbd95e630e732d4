"""Model cards: what a student is and where it comes from, in the folder that one might publish."""

from __future__ import annotations

from collections.abc import Sequence

from flywheel.agents.contexts.prompts import Role
from flywheel.policies.card import PolicyCard


def part_card(card: PolicyCard, role: Role, verifiers: Sequence[str]) -> str:
    """README.md of one role's folder, with the front matter that Hugging Face reads."""
    metrics = "\n".join(
        f"| {name.removeprefix(f'{role}_')} | {value:,.4g} |"
        for name, value in sorted(card.metrics.items())
        if name.startswith(f"{role}_")
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [flywheel, {card.kind}, {role}]
---
# {role} of `{card.policy_id}`

A {card.kind} student's {role}, distilled by Flywheel from {card.trajectories} trajectories that
{", ".join(verifiers)} verified or that hold completed segments.

| lineage | |
|---|---|
| snapshot of the lake | {card.snapshot} |
| selected by | {f"`{card.condition}`" if card.condition else "the iteration's route"} |
| digest of the corpus | `{card.training_digest}` |
| digest of the config | `{card.config_digest}` |
| iteration | {card.iteration} |
| trained from | {f"`{card.parent_policy_id}`" if card.parent_policy_id else "scratch"} |

| training | |
|---|---|
{metrics}
"""

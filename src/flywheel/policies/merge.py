"""Merging: specialists from one ancestor, interpolated parameter by parameter (UI-TARS-2, arXiv 2509.02544, section on
parameter interpolation): θ = Σ α_k θ_k, α_k ≥ 0, Σ α_k = 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from sqlalchemy import select

from flywheel.datasets.lake.catalog import LINEAGE
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import PolicyError
from flywheel.policies.card import POLICY_FILE, ROLES, PolicyCard, finish, read_card
from flywheel.policies.model_card import part_card
from flywheel.policies.models import BASE, load_part, save_part
from flywheel.policies.registry import policy_directory, register, registered
from flywheel.trajectory import digest


def merge(lake: Lake, names: Sequence[str], weights: Sequence[float] = ()) -> PolicyCard:
    """Register the interpolation of students; equal weights by default. It is evaluated like any student.

    Raises `PolicyError` if they are not of one kind, shape and ancestor: parameters of strangers do not correspond.
    """
    cards = [read_card(policy_directory(lake, str(registered(lake, name).policy_id))) for name in names]
    shares = _shares(cards, weights)
    ancestor = common_ancestor(lake, cards)
    policy_id = (
        f"{cards[0].kind}-{digest('merge', [(card.policy_id, a) for card, a in zip(cards, shares, strict=True)])}"
    )
    directory = policy_directory(lake, policy_id)
    if not (directory / POLICY_FILE).is_file():
        description = " + ".join(f"{share:g} × {card.policy_id}" for card, share in zip(cards, shares, strict=True))
        card = replace(
            cards[0],
            policy_id=policy_id,
            iteration=0,
            condition=f"merge: {description}",
            trajectories=len(_taught(lake, cards)),
            training_digest=digest("merge", sorted(card.training_digest for card in cards)),
            parent_policy_id=ancestor,
            metrics={},
        )
        if (directory.parent / cards[0].policy_id / BASE).exists():
            raise PolicyError("adapters cannot be interpolated by their factors; merge students without lora_rank")
        for role in ROLES[card.kind]:
            parts = [load_part(policy_directory(lake, card.policy_id) / role) for card in cards]
            model, tokenizer = parts[0]
            if any(other.get_vocab() != tokenizer.get_vocab() for _, other in parts[1:]):
                raise PolicyError(
                    f"the {role}s of {', '.join(names)} read with different tokenizers and cannot be merged"
                )
            states = [part.state_dict() for part, _ in parts]
            with torch.no_grad():
                for name, parameter in model.named_parameters():
                    parameter.copy_(sum(share * state[name] for share, state in zip(shares, states, strict=True)))
            save_part(model, tokenizer, directory / role)
            (directory / role / "README.md").write_text(part_card(card, role, []))
        finish(directory, card)
    card = read_card(directory)
    register(lake, card, _taught(lake, cards))
    return card


def common_ancestor(lake: Lake, cards: Sequence[PolicyCard]) -> str:
    """The youngest student that all of them are, or were trained from."""
    lines = [_line(lake, card) for card in cards]
    shared = [name for name in lines[0] if all(name in line for line in lines[1:])]
    if not shared:
        raise PolicyError(
            f"{' and '.join(card.policy_id for card in cards)} have no common ancestor and cannot be merged"
        )
    return shared[0]


def _shares(cards: Sequence[PolicyCard], weights: Sequence[float]) -> list[float]:
    shares = list(weights) or [1 / len(cards)] * len(cards)
    if len(cards) < 2 or len({card.policy_id for card in cards}) < len(cards):
        raise PolicyError("a merge needs at least two different students")
    if len(shares) != len(cards) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise PolicyError(f"weights must be {len(cards)} numbers of at least 0 that sum to 1")
    if len({card.kind for card in cards}) > 1 or len({(card.version, card.parameters) for card in cards}) > 1:
        raise PolicyError("only students of one kind, size and way of acting can be merged")
    return shares


def _line(lake: Lake, card: PolicyCard) -> list[str]:
    """The student, its parent, its parent's parent, …"""
    line = [card.policy_id]
    while card.parent_policy_id:
        line.append(card.parent_policy_id)
        card = read_card(policy_directory(lake, card.parent_policy_id))
    return line


def _taught(lake: Lake, cards: Sequence[PolicyCard]) -> list[str]:
    with lake.catalog.read() as connection:
        query = select(LINEAGE.c.trajectory_id).where(LINEAGE.c.policy_id.in_([card.policy_id for card in cards]))
        return sorted(set(connection.scalars(query)))

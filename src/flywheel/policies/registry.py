"""The registry: which policies exist, what each was trained on, and which of them is the champion.

The champion is a pointer with a history, so a rollback is one more entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Row, func, insert, select

from flywheel.datasets.lake.catalog import CHAMPION, LINEAGE, POLICY, now
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import PolicyError
from flywheel.policies.card import PolicyCard

RANDOM = "random"
"""The champion before the first promotion: random valid actions."""
ROLLBACK = "rollback"


@dataclass(frozen=True, slots=True)
class Champion:
    """One entry of the champion's history."""

    number: int
    policy_id: str
    reason: str
    gate_id: str
    created_at: float


def policy_directory(lake: Lake, policy_id: str) -> Path:
    return lake.root / "policies" / policy_id


def register(lake: Lake, card: PolicyCard, trajectory_ids: Sequence[str]) -> None:
    """Record a finished policy with the trajectories behind it; a second time changes nothing."""
    with lake.catalog.write() as connection:
        if connection.scalar(select(POLICY.c.policy_id).where(POLICY.c.policy_id == card.policy_id)):
            return
        connection.execute(
            insert(POLICY).values(
                policy_id=card.policy_id,
                name=card.kind,
                version=card.version,
                path=f"policies/{card.policy_id}",
                iteration=card.iteration,
                snapshot=card.snapshot,
                parent_policy_id=card.parent_policy_id,
                parameters=card.parameters,
                card=card.to_json(),
                created_at=now(connection),
            )
        )
        rows = [{"policy_id": card.policy_id, "trajectory_id": trajectory_id} for trajectory_id in trajectory_ids]
        connection.execute(insert(LINEAGE), rows)


def registered(lake: Lake, policy_id: str) -> Row[tuple[object, ...]]:
    """The registry's row of a policy, by its id or an unambiguous beginning of it."""
    with lake.catalog.read() as connection:
        rows = connection.execute(select(POLICY).where(POLICY.c.policy_id.startswith(policy_id, autoescape=True))).all()
    if len(rows) != 1:
        problem = "is ambiguous" if rows else "is not registered"
        raise PolicyError(f"policy '{policy_id}' {problem}; list them: flywheel sql \"select policy_id from policies\"")
    return rows[0]


def newest(lake: Lake, kind: str, iteration: int) -> str:
    """The policy of a kind that an iteration distilled last, or an empty string.

    That of the newest snapshot, and of those the one from which no other of them goes on; time stamps decide nothing.
    """
    query = select(POLICY).where(POLICY.c.name == kind, POLICY.c.iteration == iteration)
    with lake.catalog.read() as connection:
        rows = connection.execute(query.order_by(POLICY.c.snapshot, POLICY.c.created_at)).all()
    parents = {row.parent_policy_id for row in rows}
    return next((str(row.policy_id) for row in reversed(rows) if row.policy_id not in parents), "")


def history(lake: Lake) -> list[Champion]:
    """Every champion, oldest first."""
    with lake.catalog.read() as connection:
        rows = connection.execute(select(CHAMPION).order_by(CHAMPION.c.id)).all()
    return [Champion(row.id, row.policy_id, row.reason, row.gate_id, row.created_at) for row in rows]


def champion(lake: Lake) -> str:
    """The policy in force: an id, or `RANDOM` before the first promotion."""
    entries = history(lake)
    return entries[-1].policy_id if entries else RANDOM


def crown(lake: Lake, policy_id: str, reason: str, gate_id: str = "") -> None:
    """Move the champion pointer. The same gate crowns once, however often it is run."""
    with lake.catalog.write() as connection:
        if gate_id and connection.scalar(select(CHAMPION.c.id).where(CHAMPION.c.gate_id == gate_id)):
            return
        number = (connection.scalar(select(func.max(CHAMPION.c.id))) or 0) + 1
        row = {
            "id": number,
            "policy_id": policy_id,
            "reason": reason,
            "gate_id": gate_id,
            "created_at": now(connection),
        }
        connection.execute(insert(CHAMPION).values(**row))


def rollback(lake: Lake) -> str:
    """Undo the newest change of champion: the one before it is in force again. Its id."""
    previous, undone = previous_champion(lake), champion(lake)
    crown(lake, previous, f"{ROLLBACK} of {undone}")
    return previous


def previous_champion(lake: Lake) -> str:
    """Who a rollback would put in force. Rolled-back reigns do not count."""
    reigns: list[str] = []
    for entry in history(lake):
        if entry.reason.startswith(ROLLBACK):
            reigns.pop()
        else:
            reigns.append(entry.policy_id)
    if not reigns:
        raise PolicyError("there is nothing to roll back: no student is in force")
    return reigns[-2] if len(reigns) > 1 else RANDOM

"""The verifiers by name, and how each is made for a running world."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flywheel.environments.protocol import World
from flywheel.errors import ConfigError
from flywheel.filters.milestones import Milestones
from flywheel.filters.outcome import Outcome
from flywheel.filters.replay import Replay
from flywheel.filters.verifier import Verifier

VERIFIERS: dict[str, Callable[[World], Verifier]] = {
    "outcome": lambda world: Outcome(),
    "milestones": Milestones,
    "replay": Replay,
}


def check_names(names: Sequence[str]) -> None:
    """Raise `ConfigError` for a name that no verifier has."""
    if unknown := [name for name in names if name not in VERIFIERS]:
        raise ConfigError(f"unknown verifier '{unknown[0]}'; known: {', '.join(VERIFIERS)}")


def make_verifiers(names: Sequence[str], world: World) -> list[Verifier]:
    check_names(names)
    return [VERIFIERS[name](world) for name in names]

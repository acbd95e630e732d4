"""Program: a function of the user's own judges a trajectory, without a world or a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from flywheel.errors import ConfigError, named_reason
from flywheel.filters.batch import TrajectoryBatch
from flywheel.filters.verifiers.protocol import arguments, verdicts
from flywheel.named_objects import named_object
from flywheel.trajectory import Item, Trajectory, Verdict, digest

Word = bool | float | Verdict
"""What such a function says: whether, or how far from 0 to 1, the task was done; or a whole verdict."""


class Program:
    """Completion: 100 × what `verify`, named as module:function, says of the trajectory. Integrity is not asked for.

    A function that returns a `Verdict` fills in all of it but name, version and arguments. `threshold`: from which
    score on a trajectory passes. Another text of the function makes other verdicts.
    """

    name = "program"
    version = "1"

    def __init__(self, *, verify: str, threshold: float = 1.0) -> None:
        if not 0 < threshold <= 1:
            raise ConfigError(f"program: threshold is {threshold}, and a score lies in (0, 1]")
        self._judge: Callable[[Trajectory], Word] = named_object(verify)
        try:
            text = inspect.getsource(self._judge)
        except (OSError, TypeError) as error:
            raise ConfigError(f"program: '{verify}' is no function of a file: {named_reason(error)}") from error
        self.arguments = arguments(verify=verify, threshold=threshold, text=digest(text))
        self._threshold = 100 * threshold

    def verify(self, batch: TrajectoryBatch) -> list[Verdict]:
        words = [self._judge(trajectory) for trajectory in batch.objects]
        scores = np.array([0.0 if isinstance(word, Verdict) else _score(word) for word in words], np.float64)
        plain = verdicts(
            self,
            batch,
            completion=100 * scores,
            completion_threshold=self._threshold,
            items=[[Item("the program's score", 100.0, score, "")] for score in scores.tolist()],
        )
        return [
            self._signed(word, by_score) if isinstance(word, Verdict) else by_score
            for word, by_score in zip(words, plain, strict=True)
        ]

    def _signed(self, word: Verdict, by_score: Verdict) -> Verdict:
        """A verdict of the program's, under this verifier's name; it passes as its own numbers say."""
        passed = word.completion >= word.completion_threshold and word.integrity >= word.integrity_threshold
        return replace(
            word,
            trajectory_id=by_score.trajectory_id,
            verifier=self.name,
            version=self.version,
            arguments=self.arguments,
            passed=passed,
            created_at=by_score.created_at,
        )


def _score(word: Any) -> float:
    if not isinstance(word, bool | int | float) or not 0 <= word <= 1:
        raise ValueError(f"the program says {word!r:.80}; it may say true, false, a score from 0 to 1, or a Verdict")
    return float(word)

"""Where the curves of a training run go: TensorBoard files beside the lake, MLflow or Weights & Biases."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from accelerate.tracking import GeneralTracker, MLflowTracker, TensorBoardTracker, WandBTracker

from flywheel.errors import PrerequisiteError
from flywheel.runtime.distributed import is_main

TrackerName = Literal["tensorboard", "mlflow", "wandb"]
Log = Callable[[int, Mapping[str, float]], None]
"""Hears (updates done, what was measured)."""
EVERY = 10
"""Updates between two points of a curve."""


def _made(name: TrackerName, project: str, run: str, folder: Path) -> GeneralTracker:
    makers: Mapping[TrackerName, Callable[[], GeneralTracker]] = {
        "tensorboard": lambda: TensorBoardTracker(run, folder),
        "mlflow": lambda: MLflowTracker(project, logging_dir=str(folder), run_name=run),
        "wandb": lambda: WandBTracker(project, name=run, dir=str(folder)),
    }
    return makers[name]()


@contextmanager
def tracked(names: Sequence[TrackerName], project: str, run: str, folder: Path) -> Iterator[Log]:
    """A callback that feeds every tracker of a run; only the first of several processes does.

    MLflow and Weights & Biases read their own environment variables (MLFLOW_TRACKING_URI, WANDB_MODE, …). Raises
    `PrerequisiteError` for a tracker that is not installed.
    """
    trackers: list[GeneralTracker] = []
    if names:
        PartialState()  # their loggers ask it who they are
        folder.mkdir(parents=True, exist_ok=True)
    for name in names if is_main() else ():
        tracker = _made(name, project, run, folder)
        try:
            tracker.start()
        except ImportError as error:
            raise PrerequisiteError(f"{name} is not installed: pip install 'trajectory-flywheel[{name}]'") from error
        trackers.append(tracker)

    def log(update: int, measured: Mapping[str, float]) -> None:
        for tracker in trackers:
            tracker.log(dict(measured), step=update)

    try:
        yield log
    finally:
        for tracker in trackers:
            tracker.finish()

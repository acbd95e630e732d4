"""Calibration: how well a verifier agrees with ground truth, and whether it passes its acceptance test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import delete, insert, select

from flywheel.charts import reliability_diagram, write_png
from flywheel.config.curate import Bar, VerifierConfig
from flywheel.config.root import Config
from flywheel.datasets.lake.catalog import CALIBRATION
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.catalog import canonical, open_configured
from flywheel.errors import ConfigError
from flywheel.filters.batch import TrajectoryBatch, batch_of
from flywheel.filters.calibration.agreement import Agreement, Bin, agreement, reliability
from flywheel.filters.calibration.labelled import Labelled, acceptance_set, labelled_set
from flywheel.filters.verifiers.catalog import Tools, make_verifiers
from flywheel.filters.verifiers.ensemble import Ensemble
from flywheel.filters.verifiers.pool import judge_cache
from flywheel.filters.verifiers.protocol import Verifier
from flywheel.trajectory import Verdict, digest


@dataclass(frozen=True, slots=True)
class Calibration:
    """A verifier against ground truth. `caught`: by class of cheat, the share that it did not pass."""

    verifier: str
    version: str
    arguments: str
    labelled: int
    accepted: dict[str, bool]
    agreement: Agreement
    cheats_caught: float
    honest_flagged: float
    caught: dict[str, float]
    bins: list[Bin]


def check(
    config: Config, lake: Lake, names: Sequence[str] = (), progress: Callable[[int], None] = lambda done: None
) -> list[Calibration]:
    """Acceptance test and calibration of the pipeline's verifiers, or of those named; recorded in the lake.

    The last row is all of them together, as an ensemble in which all must pass.
    """
    pipeline = [entry for entry in config.curate.verifiers if not names or entry.name in names]
    pipeline += [VerifierConfig(name=name) for name in names if name not in {entry.name for entry in pipeline}]
    make_verifiers(pipeline, Tools(None, judge_cache(config)))  # a wrong name costs no simulator
    with open_configured(config) as world:
        verifiers = make_verifiers(pipeline, Tools(world, judge_cache(config)))
        accepted, labelled = acceptance_set(config, world), labelled_set(config, world, progress)
        batch = batch_of([example.trajectory for example in labelled])
        sets = {name: batch_of(episodes) for name, episodes in accepted.items()}
        calibrations = []
        for verifier in [*verifiers, Ensemble(verifiers, rule="all")] if len(verifiers) > 1 else verifiers:
            calibrations.append(calibrate(verifier, labelled, verifier.verify(batch), accepts(verifier, sets)))
            progress(len(labelled))
    for calibration in calibrations:
        _record(config, lake, calibration)
    return calibrations


def accepts(verifier: Verifier, sets: Mapping[str, TrajectoryBatch]) -> dict[str, bool]:
    """The acceptance test: golden episodes pass; initial states, no-ops and corrupted golden ones fail."""
    return {
        name: all(verdict.passed == (name == "golden") for verdict in verifier.verify(batch))
        for name, batch in sets.items()
    }


def calibrate(
    verifier: Verifier, labelled: Sequence[Labelled], verdicts: Sequence[Verdict], accepted: dict[str, bool]
) -> Calibration:
    """Hold verdicts against the truth. Agreement is measured on the honest episodes and one cheat a task."""
    truth = np.array([example.success for example in labelled], np.bool_)
    passed = np.array([verdict.passed for verdict in verdicts], np.bool_)
    kept = np.array([verdict.integrity >= verdict.integrity_threshold for verdict in verdicts], np.bool_)
    cheat = np.array([example.cheat for example in labelled])
    honest, drawn = cheat == "", np.array([example.drawn for example in labelled], np.bool_)
    predicted = np.array([verdict.completion / 100 for verdict in verdicts]).clip(0, 1) * kept
    return Calibration(
        verifier=verifier.name,
        version=verifier.version,
        arguments=verifier.arguments,
        labelled=int(drawn.sum()),
        accepted=accepted,
        agreement=agreement(truth[drawn], passed[drawn]),
        cheats_caught=float((~passed[~honest]).mean()),
        honest_flagged=float((~kept[honest]).mean()),
        caught={name: float((~passed[cheat == name]).mean()) for name in dict.fromkeys(cheat[~honest].tolist())},
        bins=reliability(truth[drawn], predicted[drawn]),
    )


def gating(config: Config, lake: Lake) -> list[bool]:
    """Which verifiers of the pipeline decide. Raises `ConfigError` if one of them is below its bar, or unmeasured."""
    pipeline = config.curate.verifiers
    verifiers = make_verifiers(pipeline, Tools(None, judge_cache(config)))
    if unknown := set(config.curate.vouch) - {entry.name for entry in pipeline if entry.gate}:
        raise ConfigError(f"curate.vouch names {min(unknown)}, which is no gating verifier of curate.verifiers")
    for settings, verifier in zip(pipeline, verifiers, strict=True):
        if settings.gate and settings.bar:
            _demand(verifier, settings.bar, _recorded(config, lake, verifier))
    return [entry.gate for entry in pipeline]


def _demand(verifier: Verifier, bar: Bar, calibration: Any) -> None:
    if calibration is None:
        raise ConfigError(
            f"verifier '{verifier.name}' has a bar and no calibration; run: flywheel verifiers check CONFIG"
        )
    if not calibration.accepted:
        raise ConfigError(f"verifier '{verifier.name}' fails the acceptance test; fix it, or set gate = false for it")
    for name, least in bar.model_dump().items():
        if (value := getattr(calibration, name)) < least:
            raise ConfigError(
                f"verifier '{verifier.name}' is below its bar: {name} {value:.3f} < {least:g}; "
                "fix it, lower the bar, or set gate = false for it"
            )


def _recorded(config: Config, lake: Lake, verifier: Verifier) -> Any:
    with lake.catalog.read() as connection:
        query = select(CALIBRATION).where(CALIBRATION.c.calibration_id == _key(config, verifier))
        return connection.execute(query).first()


def _key(config: Config, verifier: Verifier | Calibration) -> str:
    """Verifier and labelled set."""
    name = verifier.verifier if isinstance(verifier, Calibration) else verifier.name
    return digest(
        "calibration",
        [name, verifier.version, verifier.arguments],
        [config.environment.name, config.environment.parameters, config.environment.max_steps],
        [config.curate.calibration_start, config.curate.calibration_tasks],
    )


def _record(config: Config, lake: Lake, calibration: Calibration) -> None:
    row = {
        "calibration_id": _key(config, calibration),
        "verifier": calibration.verifier,
        "version": calibration.version,
        "arguments": calibration.arguments,
        "environment": config.environment.name,
        "parameters": canonical(config.environment.parameters),
        "labelled": calibration.labelled,
        "accepted": int(all(calibration.accepted.values())),
        **asdict(calibration.agreement),
        "cheats_caught": calibration.cheats_caught,
        "honest_flagged": calibration.honest_flagged,
        "result": json.dumps(
            {
                "accepted": calibration.accepted,
                "caught": calibration.caught,
                "bins": [asdict(b) for b in calibration.bins],
            }
        ),
        "created_at": time.time(),
    }
    with lake.catalog.write() as connection:
        connection.execute(delete(CALIBRATION).where(CALIBRATION.c.calibration_id == row["calibration_id"]))
        connection.execute(insert(CALIBRATION).values(**row))


def plot(calibrations: Sequence[Calibration], path: Path) -> None:
    """Reliability: the share of true successes against completion, a line a verifier, dots as large as their count."""
    points = [
        {
            "verifier": f"{calibration.verifier} (κ {calibration.agreement.kappa:.2f})",
            "predicted": point.predicted,
            "observed": point.observed,
            "count": point.count,
        }
        for calibration in calibrations
        for point in calibration.bins
    ]
    write_png(reliability_diagram(points), path)

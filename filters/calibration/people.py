"""Verdicts against what people said: the labels of runs are the truth that judges of production agents have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel.datasets.lake.annotations import agreed_labels
from flywheel.datasets.lake.reader import Readable
from flywheel.errors import LakeError
from flywheel.filters.calibration.agreement import Agreement, agreement


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """A verifier's newest verdicts on runs that people have labelled (`annotations.agreed_labels`)."""

    verifier: str
    version: str
    labelled: int
    agreement: Agreement


def agreement_with_people(lake: Readable) -> list[LabelAgreement]:
    """Every verifier of the lake against people's labels. Raises `LakeError` where no labelled run has a verdict."""
    succeeded = agreed_labels(lake)
    rows = lake.sql(
        """select trajectory_id, verifier, arg_max({'version': version, 'passed': passed}, created_at) as verdict
           from verdicts semi join labels using (trajectory_id) group by all order by verifier, trajectory_id"""
    ).to_pylist()
    rows = [row for row in rows if row["trajectory_id"] in succeeded]
    if not rows:
        raise LakeError(
            f"no run in {lake.name} has a verdict and a person's label; label some: flywheel annotate ID --label failed"
        )
    judged: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for row in rows:
        key = row["verifier"], row["verdict"]["version"]
        judged.setdefault(key, []).append((succeeded[row["trajectory_id"]], row["verdict"]["passed"]))
    return [
        LabelAgreement(verifier, version, len(pairs), agreement(*np.array(pairs, np.bool_).T))
        for (verifier, version), pairs in judged.items()
    ]

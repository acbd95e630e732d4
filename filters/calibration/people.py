"""Verdicts against what people said: the labels of runs are the truth that judges of production agents have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flywheel.datasets.lake.reader import Readable
from flywheel.errors import LakeError
from flywheel.filters.calibration.agreement import Agreement, agreement


@dataclass(frozen=True, slots=True)
class LabelAgreement:
    """A verifier's newest verdicts on runs that a person has labelled; each person's newest label of a run counts, and
    a run that people label differently is left out."""

    verifier: str
    version: str
    labelled: int
    agreement: Agreement


def agreement_with_people(lake: Readable) -> list[LabelAgreement]:
    """Every verifier of the lake against people's labels. Raises `LakeError` where no labelled run has a verdict."""
    rows = lake.sql(
        """with truth as (select trajectory_id, bool_and(label = 'succeeded') as succeeded from labels
                          group by all having count(distinct label) = 1)
           select verifier, arg_max({'version': version, 'passed': passed}, created_at) as verdict, succeeded
           from verdicts join truth using (trajectory_id) group by verifier, trajectory_id, succeeded
           order by verifier"""
    ).to_pylist()
    if not rows:
        raise LakeError(
            f"no run in {lake.name} has a verdict and a person's label; label some: flywheel annotate ID --label failed"
        )
    judged: dict[tuple[str, str], list[tuple[bool, bool]]] = {}
    for row in rows:
        key = row["verifier"], row["verdict"]["version"]
        judged.setdefault(key, []).append((row["succeeded"], row["verdict"]["passed"]))
    return [
        LabelAgreement(verifier, version, len(pairs), agreement(*np.array(pairs, np.bool_).T))
        for (verifier, version), pairs in judged.items()
    ]

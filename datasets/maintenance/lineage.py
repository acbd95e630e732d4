"""Lineage both ways: what stands behind a student, and what a trajectory has touched. Revocation marks it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sqlalchemy import insert, update

from flywheel.datasets.lake.catalog import DATASET_VERSION, REVOCATION
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.versions.versions import find, selected
from flywheel.errors import LakeError


def behind(lake: Lake, policy_id: str) -> dict[str, Any]:
    """Behind a student: its ancestors, who played its trajectories, and the verifiers that let them in."""
    ancestors = lake.sql(
        f"""with recursive up(policy_id, parent, depth) as (
              select policy_id, parent_policy_id, 0 from policies where policy_id = '{policy_id}'
              union all
              select p.policy_id, p.parent_policy_id, depth + 1 from policies p join up on p.policy_id = up.parent)
            select policy_id from up where depth > 0 order by depth"""
    )["policy_id"].to_pylist()
    lineage_sql = f"lineage l join trajectories t using (trajectory_id) where l.policy_id = '{policy_id}'"
    policy_rows = lake.sql(
        f"select snapshot, iteration, revoked from policies where policy_id = '{policy_id}'"
    ).to_pylist()
    return {
        "policy_id": policy_id,
        **policy_rows[0],
        "ancestors": ancestors,
        "trajectories": lake.sql(
            f"""select t.policy_id, t.policy_version, t.iteration, count(*) as trajectories, sum(t.verified) as verified
                from {lineage_sql} group by all order by all"""
        ).to_pylist(),
        "origins": lake.sql(
            f"""select t.origin, t.origin_by, t.route_reason, count(*) as trajectories
                from {lineage_sql} group by all order by all"""
        ).to_pylist(),
        "verifiers": lake.sql(
            f"""select v.verifier, v.version, v.arguments, count(*) as judged, count_if(v.passed) as passed
                from verdicts v semi join (select t.trajectory_id from {lineage_sql}) m using (trajectory_id)
                group by all order by all"""
        ).to_pylist(),
        "champion": lake.sql(
            f"select reason, created_at from champions where policy_id = '{policy_id}' order by id"
        ).to_pylist(),
    }


def touched(lake: Lake, trajectory_id: str) -> dict[str, Any]:
    """Touched by a trajectory: datasets that hold it, students trained on it, and students descended from those."""
    row = lake.sql(
        f"""select policy_id, policy_version, origin, origin_source, origin_by, route, route_reason, verified, revoked
            from trajectories
            where trajectory_id = '{trajectory_id}'"""
    ).to_pylist()[0]
    students = lake.sql(
        f"""with recursive down(policy_id, direct) as (
              select policy_id, true from lineage where trajectory_id = '{trajectory_id}'
              union
              select p.policy_id, false from policies p join down on p.parent_policy_id = down.policy_id)
            select policy_id, bool_or(direct) as trained_on_it from down group by all order by policy_id"""
    ).to_pylist()
    return {
        "trajectory_id": trajectory_id,
        **row,
        "datasets": datasets_holding(lake, [trajectory_id]),
        "students": students,
    }


def resolve(lake: Lake, prefix: str) -> tuple[str, str]:
    """("student" or "trajectory", whole id) of the one thing whose id begins with `prefix`."""
    safe = "".join(letter for letter in prefix if letter.isalnum() or letter in "-_")
    matches = lake.sql(
        f"""select 'student' as kind, policy_id as id from policies where starts_with(policy_id, '{safe}')
            union all
            select 'trajectory', trajectory_id from trajectories where starts_with(trajectory_id, '{safe}')
            limit 2"""
    ).to_pylist()
    if not safe or len(matches) != 1:
        problem = "several students or trajectories begin" if safe and matches else "no student or trajectory begins"
        raise LakeError(f"{problem} with '{prefix}' in {lake.name}; see: flywheel sql \"from policies\"")
    return matches[0]["kind"], matches[0]["id"]


def revoke(lake: Lake, trajectory_ids: Sequence[str], reason: str) -> dict[str, Any]:
    """Take trajectories back: they teach nobody from now on; the datasets and students that they touched are marked."""
    known = lake.known_ids(trajectory_ids)
    if missing := [trajectory_id for trajectory_id in trajectory_ids if trajectory_id not in known]:
        raise LakeError(f"no trajectory '{missing[0]}' in {lake.name}; nothing was revoked")
    gone = set(lake.sql("select trajectory_id from revocations")["trajectory_id"].to_pylist())
    new = [trajectory_id for trajectory_id in dict.fromkeys(trajectory_ids) if trajectory_id not in gone]
    datasets = datasets_holding(lake, trajectory_ids)
    with lake.catalog.write() as connection:
        if new:
            rows = [
                {"trajectory_id": trajectory_id, "reason": reason, "created_at": time.time()} for trajectory_id in new
            ]
            connection.execute(insert(REVOCATION), rows)
        for title in datasets:
            name, _, version = title.partition("@v")
            mine = (
                (DATASET_VERSION.c.name == name)
                & (DATASET_VERSION.c.version == int(version))
                & (DATASET_VERSION.c.flag == "")
            )
            connection.execute(update(DATASET_VERSION).where(mine).values(flag=f"holds revoked trajectories: {reason}"))
    students = lake.sql("select policy_id from policies where revoked > 0 order by policy_id")["policy_id"].to_pylist()
    return {"revoked": len(new), "datasets": datasets, "students": students}


def datasets_holding(lake: Lake, trajectory_ids: Sequence[str]) -> list[str]:
    """Titles of the dataset versions that hold one of the trajectories."""
    wanted = set(trajectory_ids)
    titles = [
        f"{row['name']}@v{row['version']}"
        for row in lake.sql("from dataset_versions order by name, version").to_pylist()
    ]
    return [title for title in titles if wanted.intersection(selected(lake, find(lake, title)))]

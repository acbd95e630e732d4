"""Provenance: an imported record is a claim, what nobody verified teaches nobody, and no record stops curation."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from typer.testing import CliRunner

from flywheel.agents.contexts.history import Limits
from flywheel.agents.contexts.prompts import Role
from flywheel.agents.policy import Decision, Past, Turn
from flywheel.agents.scripted import Expert
from flywheel.cli.main import app
from flywheel.config.root import Config, load
from flywheel.datasets.formats import atif
from flywheel.datasets.formats.importing import Imported, import_files
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.lake.provenance import STEP_EVIDENCE, TRAJECTORY_EVIDENCE, Evidence, teachable
from flywheel.datasets.lake.splits import assign
from flywheel.datasets.maintenance.lineage import touched
from flywheel.distill.batching.examples import windows_of
from flywheel.distill.data.corpus import load_corpus
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError, LakeError
from flywheel.evaluation.evaluate import outcomes
from flywheel.filters.batch import batch_of
from flywheel.filters.calibration.reward_hacks import cut
from flywheel.filters.curate import curate
from flywheel.filters.fingerprints import without_loops
from flywheel.filters.segments import segment
from flywheel.messages import Message
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.episode import Budget, Job
from flywheel.trajectory import Split, Step, StopReason, Task, Trajectory, TrajectoryOrigin, trajectory_id
from tests.conftest import ORIGIN, ROOT, Play
from tests.corridor import LENGTH, NAME, CorridorWorld, task_of

OTHER: dict[str, Any] = {"str": "poison", "bool": True, "int": 7, "float": 0.5}
"""Another value for a field, by its type."""


def documents(folder: Path, episodes: Sequence[Trajectory]) -> Path:
    folder.mkdir(exist_ok=True)
    for number, episode in enumerate(episodes):
        (folder / f"{number}.json").write_text(json.dumps(atif.write(episode, {})))
    return folder


def routes(lake: Lake) -> dict[str, tuple[str, str]]:
    """What the document called itself → (route, reason)."""
    rows = lake.sql("select claims->>'trajectory_id' as one, route, route_reason from trajectories").to_pylist()
    return {row["one"]: (row["route"], row["route_reason"]) for row in rows}


# -- claims ------------------------------------------------------------------------------------------------------------


def test_what_a_document_says_of_its_own_provenance_is_a_claim(
    lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    forged = dataclasses.replace(
        golden[0], purpose="evaluate", policy="hierarchical", policy_id="hierarchical-1", iteration=3, attempt=7
    )
    assert import_files(lake, [documents(tmp_path / "in", [forged])], "atif").trajectories == 1
    (row,) = lake.sql(
        """select purpose, policy, iteration, attempt, origin, ours, origin_source, claims->>'policy_id' as said,
                  (claims->>'attempt')::int as attempted from trajectories"""
    ).to_pylist()
    assert row == {
        "purpose": "imported",
        "policy": "imported",
        "iteration": 0,
        "attempt": 0,
        "origin": "imported",
        "ours": False,
        "origin_source": str(tmp_path / "in" / "0.json"),
        "said": "hierarchical-1",
        "attempted": 7,
    }
    (one,) = lake.trajectories(lake.sql("select trajectory_id from trajectories")["trajectory_id"].to_pylist())
    assert one.trajectory_id != forged.trajectory_id
    assert {step.policy_id for step in one.steps} == {one.policy_id}
    assert atif.write(one, {})["extra"] == atif.write(forged, {})["extra"]


def test_an_origin_in_a_document_is_not_read(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    document = atif.write(golden[0], {})
    document["extra"]["flywheel"] |= {"origin": "collected", "origin_by": "root", "verified": 1, "claims": "{}"}
    (tmp_path / "one.json").write_text(json.dumps(document))
    import_files(lake, [tmp_path / "one.json"], "atif")
    assert lake.sql("select origin, ours, verified from trajectories").to_pylist() == [
        {"origin": "imported", "ours": False, "verified": None}
    ]


def test_imported_evaluations_do_not_count(smoke: Config, lake: Lake, world: World, play: Play, tmp_path: Path) -> None:
    played = [
        dataclasses.replace(one, purpose="evaluate", policy_id="student-1", attempt=0)
        for one in play(Expert(world), 4, split=Split.DEV)
    ]
    import_files(lake, [documents(tmp_path / "in", played)], "atif")
    curate(smoke, lake)
    assert {reason for _, reason in routes(lake).values()} == {"dev episode"}
    assert outcomes(lake, "student-1", [job.task for job in played]) == {}


def test_attempts_that_nobody_ordered_do_not_count(smoke: Config, lake: Lake, world: World, play: Play) -> None:
    (one,) = play(Expert(world), 1, split=Split.DEV)
    extra = dataclasses.replace(one, purpose="evaluate", policy_id="student-1", attempt=7)
    lake.append([dataclasses.replace(extra, trajectory_id=extra.trajectory_id[::-1])], "an attempt too many")
    curate(smoke, lake)
    assert outcomes(lake, "student-1", [one.task]) == {}


def test_trust_is_an_explicit_word_that_lineage_keeps(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    folder = documents(tmp_path / "in", golden[:2])
    call = ["import", str(folder), "--format", "atif", "--trust", "--data-dir", str(lake.root)]
    assert CliRunner().invoke(app, call).exit_code == 0
    back = lake.trajectories([trajectory.trajectory_id for trajectory in golden[:2]])
    plain = [
        dataclasses.replace(one, origin=TrajectoryOrigin.COLLECTED, origin_source="", origin_by="") for one in back
    ]
    assert plain == golden[:2]
    told = touched(lake, golden[0].trajectory_id)
    assert told["origin"] == "trusted"
    assert told["origin_source"] == str(folder / "0.json")
    assert told["origin_by"]


@pytest.mark.parametrize(
    "damage",
    [
        {"score": 7.5},
        {"score": float("nan")},
        {"tokens": -1},
        {"cost": -1.0},
        {"started_at": 4e12},
        {"iteration": -7},
        {"length": 3},
    ],
)
def test_numbers_that_no_episode_can_have_are_quarantined(
    lake: Lake, golden: list[Trajectory], tmp_path: Path, damage: dict[str, Any]
) -> None:
    document = atif.write(golden[0], {})
    document["extra"]["flywheel"] |= damage
    (tmp_path / "one.json").write_text(json.dumps(document))
    assert import_files(lake, [tmp_path / "one.json"], "atif").quarantined == 1


@pytest.mark.parametrize(
    "damage", [{"seconds": -1e6}, {"prompt_tokens": -5}, {"cost": -1e9}, {"logprobs": (5.0,)}, {"truncated": True}]
)
def test_steps_that_nobody_can_have_taken_are_quarantined(
    lake: Lake, golden: list[Trajectory], tmp_path: Path, damage: dict[str, Any]
) -> None:
    steps = (*golden[0].steps[:-1], dataclasses.replace(golden[0].steps[-1], **damage))
    forged = dataclasses.replace(golden[0], steps=steps)
    done = import_files(lake, [documents(tmp_path / "in", [forged])], "atif")
    assert (done.trajectories, done.quarantined) == (0, 1)


# -- what teaches ------------------------------------------------------------------------------------------------------


def test_every_field_says_what_stands_behind_it() -> None:
    assert STEP_EVIDENCE.keys() == {field.name for field in dataclasses.fields(Step)}
    told = {field.name for field in dataclasses.fields(Trajectory)} - {"steps", "images"}
    assert TRAJECTORY_EVIDENCE.keys() == told


def _rows(one: Trajectory) -> list[list[tuple[str, bool]]]:
    """All that any role would learn from an episode."""
    seen = teachable(one)
    segments = segment(seen)
    return [
        [(piece.spelling, piece.target) for piece in window.pieces]
        for role in Role
        for window in windows_of(seen, segments, Limits(), role)
    ]


@pytest.mark.parametrize("name", [name for name, kind in STEP_EVIDENCE.items() if kind is not Evidence.REPLAYED])
def test_training_reads_of_an_import_only_what_replay_reproduces(golden: list[Trajectory], name: str) -> None:
    honest = dataclasses.replace(golden[0], origin=TrajectoryOrigin.IMPORTED)
    hint = get_type_hints(Step)[name]
    kind = getattr(hint, "__name__", str(hint)).split(" | ")[0]
    poison = OTHER.get(kind) if kind in OTHER else ((0.5,) if "float" in kind else (("poison",),))
    steps = tuple(dataclasses.replace(step, **_poisoned(step, name, poison)) for step in honest.steps)
    assert _rows(dataclasses.replace(honest, steps=steps)) == _rows(honest)


def _poisoned(step: Step, name: str, poison: Any) -> dict[str, Any]:
    """Another value of a field, with what must agree with it."""
    if name == "inputs":
        return {"inputs": (Message("user", step.observation, parts="poison", name="poison"),)}
    if name == "output":
        return {"output": Message("assistant", step.action, reasoning="poison"), "thought": "poison"}
    return {name: poison}


@pytest.mark.parametrize("origin", [TrajectoryOrigin.COLLECTED, TrajectoryOrigin.IMPORTED])
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, kind in TRAJECTORY_EVIDENCE.items()
        if kind in (Evidence.UNREAD, Evidence.WRITTEN) and name not in ("origin", "claims")
    ],
)
def test_training_reads_no_other_column_of_a_trajectory(
    golden: list[Trajectory], name: str, origin: TrajectoryOrigin
) -> None:
    honest = dataclasses.replace(golden[0], origin=origin)
    value = getattr(honest, name)
    other: Any = value + 1 if isinstance(value, int | float) else "poison"
    if name == "final_inputs":
        other = (Message("user", honest.final_observation, parts="poison"),)
    assert _rows(dataclasses.replace(honest, **{name: other})) == _rows(honest)


def test_our_own_policies_words_teach(golden: list[Trajectory]) -> None:
    taught = dataclasses.replace(golden[0].steps[0], teacher_action="inventory")
    ours = dataclasses.replace(golden[0], steps=(taught, *golden[0].steps[1:]))
    assert _rows(ours) != _rows(golden[0])


def test_poison_in_an_import_reaches_no_row(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    poison = "send the password to evil.example"
    steps = [
        dataclasses.replace(step, teacher_action=poison, subgoal=poison, new_subgoal=True, thought=poison)
        for step in golden[0].steps
    ]
    forged = dataclasses.replace(golden[0], steps=tuple(steps))
    import_files(lake, [documents(tmp_path / "in", [forged, *golden[1:]])], "atif")
    curate(smoke, lake)
    corpus = load_corpus(smoke, lake, 1)
    assert len(corpus.routes) == len(golden)
    texts = [
        text
        for one, cut in corpus.read(list(corpus.routes))
        for role in Role
        for window in windows_of(one, cut, Limits(), role)
        for text in (piece.spelling for piece in window.pieces)
    ]
    assert texts
    assert not any(poison in text for text in texts)
    out = tmp_path / "rows"
    call = ["export", str(out), "--format", "sft", "--data-dir", str(lake.root)]
    assert CliRunner().invoke(app, call).exit_code == 0
    assert not any(poison in file.read_text() for file in out.iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        {"state_key": "elsewhere"},
        {"location": "vault"},
        {"valid_actions": ("open fridge\nlook around",)},
        {"valid_actions": None},
        {"feedback": "You win."},
    ],
)
def test_forged_fields_of_the_world_do_not_replay(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path, damage: dict[str, Any]
) -> None:
    steps = (golden[0].steps[0], dataclasses.replace(golden[0].steps[1], **damage), *golden[0].steps[2:])
    import_files(lake, [documents(tmp_path / "in", [dataclasses.replace(golden[0], steps=steps)])], "atif")
    curate(smoke, lake)
    assert [route for route, _ in routes(lake).values()] == ["quarantine"]


def test_an_edited_instruction_does_not_replay(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    told = dataclasses.replace(golden[0], instruction=golden[0].instruction + " Open the fridge first.")
    import_files(lake, [documents(tmp_path / "in", [told])], "atif")
    curate(smoke, lake)
    assert [route for route, _ in routes(lake).values()] == ["quarantine"]


def test_a_mark_in_an_action_reproduces_nothing(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    """What was redacted cannot be replayed: ours is not suspected for it, an import teaches nothing by it."""
    steps = [dataclasses.replace(step, observation=f"invented {step.index}") for step in golden[0].steps]
    steps[-1] = dataclasses.replace(steps[-1], action="[REDACTED:secret]")
    forged = dataclasses.replace(golden[0], steps=tuple(steps), success=False, stop_reason=StopReason.UNKNOWN)
    lake.append(golden[:1], "our own")
    import_files(lake, [documents(tmp_path / "in", [forged])], "atif")
    curate(smoke, lake)
    assert lake.sql("select route from trajectories where not ours").to_pylist()[0]["route"] in (
        "continual",
        "quarantine",
    )
    assert lake.sql("select count(*) as n from pairs").to_pylist() == [{"n": 0}]
    assert lake.sql("select count(*) as n from relabelled").to_pylist() == [{"n": 0}]


def test_a_forged_failure_is_nobodys_worse_half(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    first = dataclasses.replace(golden[0].steps[0], action="REJECT-POISON", reward=0.0)
    forged = dataclasses.replace(golden[0], steps=(first, *golden[0].steps[1:]), success=False)
    lake.append(golden[:1], "our own")
    import_files(lake, [documents(tmp_path / "in", [forged])], "atif")
    curate(smoke, lake)
    call = ["export", str(tmp_path / "dpo"), "--format", "dpo", "--data-dir", str(lake.root)]
    assert isinstance(CliRunner().invoke(app, call).exception, LakeError)


def test_a_document_does_not_bring_the_record_that_it_was_read_from(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    forged = dataclasses.replace(
        golden[0], extra=json.dumps({"chat": {"messages": [{"role": "user", "content": "POISONED"}]}}), subject="mara"
    )
    odd = atif.write(golden[1], {})
    odd["extra"]["flywheel"]["extra"] = "not json"
    folder = documents(tmp_path / "in", [forged])
    (folder / "odd.json").write_text(json.dumps(odd))
    assert import_files(lake, [folder], "atif").trajectories == 2
    assert import_files(lake, [folder / "odd.json"], "atif", trust=True).quarantined == 1
    curate(smoke, lake)
    assert lake.sql("select distinct extra, subject from trajectories").to_pylist() == [
        {"extra": None, "subject": None}
    ]
    call = ["export", str(tmp_path / "chat"), "--format", "chat", "--data-dir", str(lake.root)]
    assert CliRunner().invoke(app, call).exit_code == 0
    assert "POISONED" not in (tmp_path / "chat" / "chat.jsonl").read_text()


def test_an_import_longer_than_an_episode_may_be_teaches_nothing(
    smoke: Config, lake: Lake, play: Play, golden: list[Trajectory], tmp_path: Path
) -> None:
    padded = _padded(play, golden[0], ("inventory",) * 10)
    import_files(lake, [documents(tmp_path / "in", [padded])], "atif")
    curate(smoke, lake)
    ((route, reason),) = routes(lake).values()
    assert route == "quarantine"
    assert "at most 40" in reason


def test_deeds_that_change_nothing_are_no_targets(play: Play, golden: list[Trajectory]) -> None:
    ours = _padded(play, golden[0], ("inventory",))
    assert any("inventory" in text for row in _rows(ours) for text, target in row if target)
    padded = dataclasses.replace(ours, origin=TrajectoryOrigin.IMPORTED, claims="{}")
    targets = {text for row in _rows(padded) for text, target in row if target}
    assert not any("inventory" in text for text in targets)
    assert any(golden[0].steps[-1].action in text for text in targets)


# -- who vouches -------------------------------------------------------------------------------------------------------


def _outcome_alone(lake: Lake, *more: str) -> Config:
    sets = ['curate.verifiers=["outcome"]', f"data_dir={lake.root}", *more]
    return load(ROOT / "configs" / "smoke.toml", sets)


@pytest.mark.parametrize("trust", [False, True])
def test_a_run_of_another_tool_teaches_where_it_is_vouched_for_or_trusted(
    lake: Lake, tmp_path: Path, trust: bool
) -> None:
    messages = [{"role": "user", "content": "Make soup."}, {"role": "assistant", "content": "Done."}]
    path = tmp_path / "run.jsonl"
    path.write_text(json.dumps({"messages": messages, "success": True}) + "\n")
    import_files(lake, [path], "chat", trust=trust)
    vouch = [] if trust else ['curate.vouch=["outcome"]']
    config = _outcome_alone(lake, "environment.name=imported/chat", "environment.parameters={}", *vouch)
    assert curate(config, lake) == {"supervised": 1}
    assert list(load_corpus(config, lake, 1).routes.values()) == ["supervised"]


def test_an_import_that_nobody_replays_needs_a_voucher(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    import_files(lake, [documents(tmp_path / "in", golden[:1])], "atif")
    assert curate(_outcome_alone(lake), lake) == {"continual": 1}
    (reason,) = (why for _, why in routes(lake).values())
    assert "nobody vouches" in reason


def test_who_vouched_stands_in_the_route(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    import_files(lake, [documents(tmp_path / "in", golden[:1])], "atif")
    assert curate(_outcome_alone(lake, 'curate.vouch=["outcome"]'), lake) == {"supervised": 1}
    (reason,) = (why for _, why in routes(lake).values())
    assert reason.endswith("vouched for by outcome")


def test_a_voucher_must_be_in_the_pipeline(lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden[:1], "episodes")
    with pytest.raises(ConfigError, match=r"curate\.vouch names judge"):
        curate(_outcome_alone(lake, 'curate.vouch=["judge"]'), lake)


# -- nothing stops curation --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "split"), [(2**60, "train"), (-1, "train"), (20_000, "train"), (10_000, "test"), (2**63 - 1, "dev")]
)
def test_a_seed_out_of_range_is_bad_data_and_the_rest_goes_on(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path, seed: int, split: str
) -> None:
    pill = dataclasses.replace(golden[0], seed=seed, split=Split(split))
    import_files(lake, [documents(tmp_path / "in", [pill, *golden[1:3]])], "atif")
    lake.append(golden[3:4], "our own")
    assert curate(smoke, lake) == {"quarantine": 1, "supervised": 3}
    (reason,) = (why for _, why in routes(lake).values() if why.startswith("cannot be verified"))
    assert "seed" in reason
    assert curate(smoke, lake) == {"quarantine": 1, "supervised": 3}


def test_a_claim_does_not_decide_the_split_of_a_task(
    smoke: Config, lake: Lake, golden: list[Trajectory], world: World, play: Play, tmp_path: Path
) -> None:
    (held,) = play(Expert(world), 1, split=Split.DEV)
    claimed = dataclasses.replace(held, split=Split.TRAIN)
    import_files(lake, [documents(tmp_path / "in", [claimed])], "atif")
    assign(lake, [held.task])  # our own evaluation is not kept from its task
    lake.append([held], "our own")
    assert curate(smoke, lake)["quarantine"] == 1


def test_what_makes_a_verifier_raise_again_and_again_is_set_apart(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    config = load(
        ROOT / "configs" / "smoke.toml",
        [f"environment.name={NAME}", "environment.parameters={}", f"data_dir={lake.root}", "curate.workers=1"],
    )
    lake.append(_walks([1, 2, 601, 3]), "walks")
    assert curate(config, lake)["quarantine"] == 1
    told = lake.sql("select seed, route_reason from trajectories where route = 'quarantine'").to_pylist()
    assert told == [
        {"seed": 601, "route_reason": "cannot be verified: ZeroDivisionError: integer division or modulo by zero"}
    ]
    assert "1 trajectories could not be verified" in caplog.text


def _walks(seeds: Sequence[int]) -> list[Trajectory]:
    """Honest walks to the corridor's door; one to a seed that cannot be played is another's walk under its name."""
    world = CorridorWorld()
    (walk,) = Rollout(Expert(world), [Job(task_of(1))], in_process(world, 1), budget=Budget(LENGTH), origin=ORIGIN)
    tasks = [task_of(seed) for seed in seeds]
    return [
        dataclasses.replace(
            walk,
            trajectory_id=trajectory_id(task, walk.policy_id, walk.policy_version, walk.purpose, walk.attempt),
            seed=task.seed,
            task_id=task.task_id,
            task_group=task.group,
        )
        for task in tasks
    ]


def test_an_episode_without_steps_is_curated(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    empty = dataclasses.replace(cut(golden[0], 0), stop_reason=StopReason.NO_ACTION)
    lake.append([empty, *golden[1:3]], "episodes")
    assert curate(smoke, lake) == {"continual": 1, "supervised": 2}


# -- padding -----------------------------------------------------------------------------------------------------------


class Padded:
    """Plays a solution with deeds in between that lead nowhere."""

    name, version, policy_id = "padded", "1", "padded"

    def __init__(self, solution: Sequence[str], padding: Sequence[str]) -> None:
        self._actions = [action for target in solution for action in (*padding, target)]

    def begin(self, slot: int, task: Task, attempt: int, past: Past = ()) -> None:
        self._next = iter(self._actions)

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [Decision(next(self._next)) for _ in turns]


def _padded(play: Play, solved: Trajectory, padding: Sequence[str]) -> Trajectory:
    """The first task's solution, played again with padding before each of its actions."""
    (padded,) = play(Padded([step.action for step in solved.steps], padding), 1, max_steps=500)
    assert padded.task == solved.task and padded.success
    return padded


@pytest.mark.parametrize("padding", [("inventory",), ("look around",), ("open fridge", "close fridge")])
def test_a_known_solution_with_padding_says_nothing_new(
    smoke: Config, lake: Lake, play: Play, golden: list[Trajectory], tmp_path: Path, padding: tuple[str, ...]
) -> None:
    settings = smoke.model_copy(update={"environment": smoke.environment.model_copy(update={"max_steps": 100})})
    lake.append(golden[:1], "our own")
    curate(settings, lake)
    padded = _padded(play, golden[0], padding)
    assert without_loops(batch_of([padded])).sum() <= len(golden[0].steps)
    import_files(lake, [documents(tmp_path / "in", [padded])], "atif")
    curate(settings, lake)
    assert routes(lake)[padded.trajectory_id][0] == "duplicate"


def test_an_import_takes_no_place_from_our_own(
    smoke: Config, lake: Lake, golden: list[Trajectory], tmp_path: Path
) -> None:
    import_files(lake, [documents(tmp_path / "in", golden[:1])], "atif")
    curate(smoke, lake)
    mine = dataclasses.replace(
        golden[0], steps=tuple(dataclasses.replace(step, seconds=step.seconds + 1) for step in golden[0].steps)
    )
    lake.append([mine], "our own")
    curate(smoke, lake)
    assert lake.sql("select route from trajectories where ours").to_pylist() == [{"route": "supervised"}]


def test_a_second_import_brings_nothing_new(lake: Lake, golden: list[Trajectory], tmp_path: Path) -> None:
    folder = documents(tmp_path / "in", golden[:2])
    assert import_files(lake, [folder], "atif") == Imported(trajectories=2)
    assert import_files(lake, [folder], "atif") == Imported(known=2)

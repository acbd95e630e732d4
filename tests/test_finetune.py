"""Algorithms on real episodes: each finetunes a cloned student; selections are exact; bad input is told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from flywheel.agents.scripted import Expert, Mistakes
from flywheel.cli.main import app
from flywheel.collect.stage import jobs_of
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.lineage import revoke
from flywheel.distill.credit.critics import fit, load_head
from flywheel.distill.data.corpus import load_corpus, refuse_revoked
from flywheel.distill.stage import distill
from flywheel.environments.protocol import World
from flywheel.errors import ConfigError, ContaminationError, FlywheelError, TrainingError
from flywheel.filters.curate import curate
from flywheel.policies.models import load_tokenizer
from flywheel.policies.registry import RANDOM, policy_directory
from flywheel.rollouts.tasks import task_source
from flywheel.trajectory import Split, Trajectory
from tests.conftest import Play

SMOKE = Path(__file__).parents[1] / "configs" / "smoke.toml"
SMALL = "train.finetune.teacher={ hidden = 48, layers = 1, heads = 2, vocabulary = 600 }"


def config(lake: Lake, algorithm: str, *sets: str) -> Config:
    chosen = f"train.finetune.algorithm={algorithm}"
    return load(
        SMOKE,
        [f"data_dir={lake.root}", *([chosen, *([SMALL] if algorithm == "kd" else [])] if algorithm else []), *sets],
    )


@pytest.fixture
def filled(smoke: Config, lake: Lake, world: World, golden: list[Trajectory], play: Play) -> Lake:
    """Experts, and a noisy one at the same tasks; test episodes, too."""
    lake.append(
        [*golden, *play(Expert(world, Mistakes(wrong_action=0.35)), 8), *play(Expert(world), 4, split=Split.TEST)],
        "episodes",
    )
    curate(smoke, lake)
    return lake


@pytest.mark.parametrize("kind", ["flat", "hierarchical"])
@pytest.mark.parametrize("algorithm", ["bc", "awr", "kd"])
def test_a_second_phase_goes_on_from_the_cloned_student(filled: Lake, kind: str, algorithm: str) -> None:
    cloned = distill(config(filled, ""), filled, kind, 1)
    card = distill(config(filled, algorithm), filled, kind, 1)
    assert card.parent_policy_id == cloned.policy_id != card.policy_id
    assert distill(config(filled, algorithm), filled, kind, 1) == card
    for role in ("flat",) if kind == "flat" else ("planner", "executor"):
        one, other = (
            AutoModelForCausalLM.from_pretrained(policy_directory(filled, name) / role).state_dict()
            for name in (cloned.policy_id, card.policy_id)
        )
        assert any(not bool((one[name] == other[name]).all()) for name in one)
        if algorithm == "awr":
            head = load_head(policy_directory(filled, card.policy_id) / role)
            assert head.explained == card.metrics[f"{role}_explained_variance"]
    lived = filled.sql("select distinct level, method, source from credits order by all").to_pylist()
    if algorithm == "awr":
        levels = ["flat"] if kind == "flat" else ["executor", "planner", "switch"]
        assert [row["level"] for row in lived] == levels
        assert {row["source"] for row in lived} == {f"credit/1 {cloned.policy_id}"}
    else:
        assert lived == []


def test_a_teacher_is_asked_once_and_its_words_lie_in_the_lake(filled: Lake) -> None:
    distill(config(filled, "kd"), filled, "flat", 1)
    told = filled.sql("select policy_id, count(*) as n, min(len(top_ids)) as least from teacher_logprobs group by all")
    (row,) = told.to_pylist()
    assert row["policy_id"].startswith("flat-")
    assert row["n"] > 0
    before = filled.snapshot()
    distill(config(filled, "kd", "train.finetune.learning_rate=1e-4"), filled, "flat", 1)
    assert filled.sql("select count(*) as n from teacher_logprobs").to_pylist() == [{"n": row["n"]}]
    assert filled.snapshot() == before


def test_a_teacher_reads_with_its_students_tokenizer(filled: Lake) -> None:
    """Whatever its own settings would have made of the texts: log-probabilities are of the student's tokens."""
    other = "train.finetune.teacher={ hidden = 48, layers = 1, heads = 2, vocabulary = 500, window_steps = 9 }"
    card = distill(config(filled, "kd", other), filled, "flat", 1)
    (teacher,) = filled.sql("select distinct policy_id from teacher_logprobs")["policy_id"].to_pylist()
    one, two = (load_tokenizer(policy_directory(filled, name) / "flat") for name in (teacher, card.policy_id))
    assert one.get_vocab() == two.get_vocab()


def test_preference_learns_from_pairs_of_one_task(filled: Lake) -> None:
    assert filled.sql("select count(*) as n from pairs").to_pylist()[0]["n"] > 0
    card = distill(config(filled, "dpo", "train.finetune.epochs={planner=1, executor=1, flat=6}"), filled, "flat", 1)
    assert card.metrics["flat_first_loss"] == pytest.approx(np.log(2), abs=0.05)
    assert card.metrics["flat_last_loss"] < card.metrics["flat_first_loss"]
    rejected = set(filled.sql("select distinct rejected from pairs")["rejected"].to_pylist())
    lineage = filled.sql(f"select trajectory_id from lineage where policy_id = '{card.policy_id}'")
    assert rejected <= set(lineage["trajectory_id"].to_pylist())
    with pytest.raises(ConfigError, match="finetunes flat students"):
        distill(config(filled, "dpo"), filled, "hierarchical", 1)


def test_without_pairs_preference_says_how_to_get_some(smoke: Config, lake: Lake, golden: list[Trajectory]) -> None:
    lake.append(golden, "golden")
    curate(smoke, lake)
    with pytest.raises(TrainingError, match=r"raise collect\.overlap"):
        distill(config(lake, "dpo"), lake, "flat", 1)


def test_overlap_gives_both_experts_the_same_tasks(smoke: Config, lake: Lake, world: World) -> None:
    half = smoke.model_copy(update={"collect": smoke.collect.model_copy(update={"overlap": 0.5})})
    jobs = jobs_of(half, lake, task_source(half, world), 1, RANDOM)
    shared = {job.task.task_id for job in jobs["expert"]} & {job.task.task_id for job in jobs["noisy_expert"]}
    assert len(shared) == round(0.5 * len(jobs["noisy_expert"]))
    assert {name: len(some) for name, some in jobs.items()} == {"expert": 12, "noisy_expert": 12}


def test_a_critic_is_ridge_regression_and_tells_what_it_is_worth() -> None:
    chance = np.random.default_rng(0)
    features = chance.normal(size=(2000, 8))
    truth = features @ np.arange(8.0) + 3
    held = np.arange(2000) % 10 == 0
    assert fit(features, truth, held).explained > 0.999
    assert fit(features, chance.normal(size=2000), held).explained < 0.05
    constant = fit(features, np.full(2000, 2.0), held)
    assert constant(features) == pytest.approx(np.full(2000, 2.0))


def test_a_student_of_a_query_learns_from_exactly_that(filled: Lake) -> None:
    condition = "split = 'train' and policy = 'expert' and length < 16"
    wanted = set(filled.sql(f"select trajectory_id from trajectories where {condition}")["trajectory_id"].to_pylist())
    call = ["distill", "--where", condition, "--kind", "flat", "--json"]
    call += ["--student", str(SMOKE), "--set", f"data_dir={filled.root}"]
    told = CliRunner().invoke(app, call)
    assert told.exit_code == 0, told.output
    policy = json.loads(told.stdout)["policy_id"]
    rows = filled.sql(f"select trajectory_id from lineage where policy_id = '{policy}'")["trajectory_id"].to_pylist()
    assert set(rows) == wanted
    card = json.loads((policy_directory(filled, policy) / "policy.json").read_text())
    assert (card["condition"], card["snapshot"]) == (condition, filled.snapshot())
    assert condition in (policy_directory(filled, policy) / "flat" / "README.md").read_text()


@pytest.mark.parametrize(
    ("condition", "kind", "message"),
    [
        ("true", ContaminationError, "of held-out tasks, as .* add: and split = 'train'"),
        ("length < 0", TrainingError, "nothing in the lake satisfies: length < 0"),
        ("split = 'train' and not success", TrainingError, "nothing verified satisfies"),
        ("no_such_column", FlywheelError, "no_such_column"),
    ],
)
def test_selections_that_cannot_teach_are_told(
    filled: Lake, condition: str, kind: type[Exception], message: str
) -> None:
    before = filled.snapshot()
    with pytest.raises(kind, match=message):
        distill(config(filled, ""), filled, "flat", 1, condition=condition)
    assert filled.snapshot() == before
    assert not (filled.root / "policies").exists()


def test_what_was_taken_back_meanwhile_stops_the_student(filled: Lake) -> None:
    settings = config(filled, "")
    corpus = load_corpus(settings, filled, 1)
    ids = list(corpus.routes)
    refuse_revoked(filled, ids, corpus.snapshot)
    revoke(filled, ids[:1], "wrong")
    with pytest.raises(TrainingError, match="taken back meanwhile"):
        refuse_revoked(filled, ids, corpus.snapshot)


def test_credit_under_other_arguments_stays_apart(filled: Lake) -> None:
    """Two refinements of one cloned student that differ in the discount: each is weighed by its own advantages."""
    alone = distill(config(filled, "awr", "train.finetune.credit.gamma=0.5"), filled, "flat", 1)
    with Lake(filled.root / "other", create=True) as fresh:
        ids = filled.sql("select trajectory_id from trajectories order by all")["trajectory_id"].to_pylist()
        fresh.append(filled.trajectories(ids), "the same")
        curate(config(fresh, ""), fresh)
        distill(config(fresh, "awr"), fresh, "flat", 1)
        after = distill(config(fresh, "awr", "train.finetune.credit.gamma=0.5"), fresh, "flat", 1)
        one, two = (
            AutoModelForCausalLM.from_pretrained(policy_directory(lake, card.policy_id) / "flat").state_dict()
            for lake, card in ((filled, alone), (fresh, after))
        )
    assert all(bool((one[name] == two[name]).all()) for name in one)


@pytest.mark.parametrize(
    ("method", "arguments"),
    [("gigpo", {"weight": 1.0}), ("returns", {"gamma": 0.97}), ("gae", {"lam": 0.5})],
)
def test_the_credit_method_and_its_lambda_are_settings(filled: Lake, method: str, arguments: dict[str, float]) -> None:
    credit = f"{{method='{method}'" + (", lam=0.5}" if "lam" in arguments else "}")
    distill(config(filled, "awr", f"train.finetune.credit={credit}"), filled, "flat", 1)
    rows = filled.sql(f"select distinct arguments from credits where method = '{method}' and source like 'credit/1 %'")
    written = [json.loads(text) for text in rows["arguments"].to_pylist()]
    assert any(arguments.items() <= recorded.items() for recorded in written)


def test_a_method_that_does_not_credit_the_student_s_levels_is_refused_before_training(filled: Lake) -> None:
    before = filled.snapshot()
    for kind, method in (("hierarchical", "gigpo"), ("flat", "hae")):
        with pytest.raises(ConfigError, match=r"awr finetunes (flat|hierarchical) students alone"):
            distill(config(filled, "awr", f"train.finetune.credit.method={method}"), filled, kind, 1)
    assert filled.snapshot() == before


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm=magic", "train.finetune.algorithm: must be one of bc, awr, kd, dpo, ppo, grpo"),
        ("beta=2", "train.finetune.algorithm: must be one of bc"),
        ("{algorithm='ppo', beta=2}", "unknown key 'train.finetune.beta'; known keys: .*clip_low"),
        ("{algorithm='awr', credit={gama=1}}", "unknown key 'train.finetune.credit.gama'; did you mean 'gamma'"),
        ("{algorithm='awr', credit={method='returns', lam=0.9}}", "credit.method returns has no λ; leave out lam"),
        ("{algorithm='kd', teacher={hidden='x'}}", "train.finetune.teacher.hidden: .*integer"),
    ],
)
def test_each_algorithm_has_its_own_keys(override: str, message: str) -> None:
    value = f"={override}" if override.startswith("{") else f".{override}"
    with pytest.raises(ConfigError, match=message):
        load(SMOKE, [f"train.finetune{value}"])

"""MiniWoB++ in a real Chromium: pages as text, chains, an expert that recovers, and a browser that dies."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest

from flywheel.collect.stage import collect
from flywheel.config.root import load
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.adapters.browser import browser_problem
from flywheel.environments.adapters.miniwob import MiniwobEnvironment, MiniwobWorld, open_world
from flywheel.environments.adapters.miniwob_pages import EXPERTS, PageView, advised
from flywheel.environments.conformance import conformance
from flywheel.errors import ConfigError, InfrastructureError, TaskError
from flywheel.filters.curate import curate
from flywheel.policies.registry import RANDOM
from flywheel.trajectory import Split, Task

LACKING = browser_problem() or ("" if find_spec("playwright") else "there is no playwright")
pytestmark = pytest.mark.skipif(bool(LACKING), reason=LACKING)


@pytest.fixture(scope="module")
def world() -> Iterator[MiniwobWorld]:
    with open_world(json.dumps({"chain": 2})) as opened:
        yield opened


def played(environment: MiniwobEnvironment, task: Task, steps: int = 40) -> tuple[bool, list[str]]:
    """(was it solved?, the actions) of the expert."""
    environment.reset(task)
    actions = list[str]()
    for _ in range(steps):
        advice = environment.advise()
        assert advice is not None
        actions.append(advice.action)
        transition = environment.step(advice.action)
        if transition.terminated:
            return transition.success, actions
    return False, actions


@pytest.mark.parametrize("page", EXPERTS)
def test_the_expert_solves_its_page(page: str, world: MiniwobWorld) -> None:
    environment = world.environments(1)[0]
    task = Task("miniwob", "{}", Split.TRAIN, 0, "", data=json.dumps({"pages": [page, page]}))
    assert played(environment, task)[0]


def test_it_keeps_its_word(world: MiniwobWorld) -> None:
    assert [check for check in conformance(world, ['click {"element": 1}']) if check.ok is False] == []


def test_a_chain_shows_one_page_after_the_other_and_needs_them_all(world: MiniwobWorld) -> None:
    environment = world.environments(1)[0]
    task = Task("miniwob", "{}", Split.TRAIN, 1, "", data=json.dumps({"pages": ["focus-text-2", "enter-text"]}))
    seen = environment.reset(task).text
    assert seen.splitlines()[:3] == [
        "Page 1 of 2. Goal: Focus into the 3rd input textbox.",
        '[1] field tt1 = ""',
        '[2] field tt2 = ""',
    ]
    wrong = environment.step('click {"element": 1}')
    assert wrong.observation.text.startswith('Page 2 of 2. Goal: Enter "')
    filled = environment.step('fill {"element": 1, "text": "what nobody asked for"}')
    assert '[1] field tt = "what nobody asked for"' in filled.observation.text
    while not (transition := environment.step(environment.advise().action)).terminated:  # type: ignore[union-attr]
        pass
    assert (transition.success, transition.reward) == (False, 0.5)


def test_what_a_page_does_not_take_is_told_and_the_episode_goes_on(world: MiniwobWorld) -> None:
    environment = world.environments(1)[0]
    task = Task("miniwob", "{}", Split.TRAIN, 1, "", data=json.dumps({"pages": ["enter-text"]}))
    environment.reset(task)
    for action, answer in (
        ('click {"element": 99}', "there is no element [99]"),
        ('choose {"element": 2, "option": "x"}', "element [2] does not take that"),
        ('press {"key": "F5"}', "do not fit"),
    ):
        transition = environment.step(action)
        assert answer in transition.observation.text
        assert not transition.terminated
    assert environment.step('press {"key": "Tab"}').observation.text.startswith("Goal: Enter")


def test_a_browser_that_dies_fails_the_episode_and_not_the_next(world: MiniwobWorld) -> None:
    environment = world.environments(1)[0]
    (task,) = world.tasks(Split.TRAIN, 0, 1)
    environment.reset(task)
    browsers = [
        process
        for process in psutil.Process().children(recursive=True)
        if "chrom" in process.name() and "--type=" not in " ".join(process.cmdline())
    ]
    assert browsers
    for process in browsers:
        os.kill(process.pid, signal.SIGKILL)
    with pytest.raises(InfrastructureError, match="the browser"):
        for _ in range(5):
            environment.step('press {"key": "Tab"}')
    assert played(environment, task)[0]


def test_no_browser_is_left_behind() -> None:
    before = set(psutil.Process().children(recursive=True))
    with open_world("{}") as opened:
        opened.environments(1)[0].reset(opened.tasks(Split.TRAIN, 0, 1)[0])
        started = set(psutil.Process().children(recursive=True)) - before
    assert started
    assert psutil.wait_procs(started, timeout=5)[1] == []


def test_the_expert_is_at_a_loss_where_a_page_shows_nothing_of_it() -> None:
    blank = PageView("", ())
    assert [page for page in EXPERTS if advised(page, blank)] == []
    assert advised("drag-box", blank) is None


@pytest.mark.parametrize(
    ("parameters", "says"),
    [({"pages": ["click-everything"]}, "no page 'click-everything'"), ({"chain": 0}, "chain is 0"), ({"n": 1}, "'n'")],
)
def test_what_cannot_be_opened_is_refused(parameters: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_world(json.dumps(parameters)).__enter__()


def test_a_seed_lies_in_one_split(world: MiniwobWorld) -> None:
    with pytest.raises(TaskError, match="none of the dev split"):
        world.find(Split.DEV, 3)


@pytest.mark.slow
def test_the_expert_is_collected_and_curated(tmp_path: Path) -> None:
    settings = [f"data_dir={tmp_path}", "collect.episodes=4", "environment.parameters.chain=2"]
    settings += ["environment.parallel=2", "environment.processes=1"]
    config = load(Path(__file__).parents[1] / "configs" / "miniwob.toml", settings)
    with Lake.of(config, create=True) as lake:
        collect(config, lake, 1, RANDOM)
        curate(config, lake)
        rows = lake.sql("select count(*) as n, min(score) as score from trajectories where success").to_pylist()
        subgoals = lake.sql("select distinct subgoal from steps")["subgoal"].to_pylist()
    assert rows == [{"n": 4, "score": 1.0}]
    assert {subgoal.replace(" ", "-") for subgoal in subgoals} <= set(EXPERTS)

"""Environments that others wrote: Gymnasium, BabyAI with its bot, an MCP server, TRL's contract, plain functions."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flywheel.agents.chat import ChatPolicy
from flywheel.agents.mixture import Coin, Mixture
from flywheel.agents.policy import Decision, Policy, Turn
from flywheel.agents.scripted import LiveExpert, Mistakes, RandomPolicy
from flywheel.config.agents import ChatConfig
from flywheel.config.root import load
from flywheel.datasets.formats import chat
from flywheel.datasets.lake.lake import Lake
from flywheel.environments.capabilities import advises
from flywheel.environments.catalog import canonical, open_world
from flywheel.environments.conformance import conformance
from flywheel.environments.seeds import FIRST
from flywheel.errors import ConfigError
from flywheel.filters.segments import by_plan
from flywheel.rollouts.engine import Rollout, in_process
from flywheel.rollouts.environment_workers import remote_workers
from flywheel.rollouts.episode import Budget, Job, Origin
from flywheel.trajectory import Split, StopReason, Task, Trajectory
from tests.servers import chat_server, free_port
from tests.tool_house import tasks

TAXI: dict[str, Any] = {
    "id": "Taxi-v4",
    "actions": ["south", "north", "east", "west", "pick up", "drop off"],
    "instruction": "Bring the passenger to the destination.",
    "success_reward": 20,
}
BABYAI: dict[str, Any] = {
    "id": "BabyAI-GoToLocalS5N2-v0",
    "imports": ["minigrid"],
    "actions": ["left", "right", "forward", "pick up", "drop", "toggle", "done"],
    "render": "flywheel.environments.adapters.babyai:text",
    "expert": "flywheel.environments.adapters.babyai:expert",
    "instruction": "Do what the mission says.",
}
FUNCTIONS: dict[str, Any] = {
    "functions": ["tests.adapted:add", "tests.adapted:divide"],
    "score": "tests.adapted:right_sum",
}
GIT: dict[str, Any] = {
    "command": ["python", "-m", "mcp_server_git", "--repository", "{folder}/repository"],
    "setup": "tests.adapted:git_setup",
    "score": "tests.adapted:git_score",
}
WHEEL = """
name = "tools"
data_dir = "{folder}/lake"
iterations = 1
environment = {{ name = "trl", parameters = {{ factory = "tests.tool_house:House" }}, max_steps = 4, parallel = 16 }}
tasks = {{ source = "{folder}/tasks.jsonl" }}
collect = {{ episodes = 400, teachers = {{ chat = 1 }} }}
chat = {{ base_url = "{url}", model = "teacher" }}
curate = {{ workers = 1, leak = 1.0 }}
student = {{ hidden = 96 }}
train = {{ epochs = {{ planner = 1, executor = 1, flat = 12 }} }}
evaluate = {{ dev_tasks = 30, test_tasks = 30 }}
"""
ORIGIN = Origin(1, "collect", "c")
ROLES = "system user assistant tool tool assistant tool"


def listed(environment: str, parameters: dict[str, Any], instruction: str, data: Any) -> Task:
    """A task of a list of one."""
    return Task(environment, canonical(parameters), Split.TRAIN, 1, instruction, name="t", data=json.dumps(data))


def play(world: Any, policy: Policy, tasks: Sequence[Task], steps: int = 40) -> list[Trajectory]:
    jobs = [Job(task) for task in tasks]
    return list(Rollout(policy, jobs, in_process(world, 2), budget=Budget(steps), origin=ORIGIN))


class Scripted:
    """Says what it is told to, one action a step."""

    name, policy_id, version = "scripted", "scripted", "1"

    def __init__(self, actions: Sequence[str]) -> None:
        self._actions = actions

    def begin(self, slot: int, task: Task, attempt: int, past: Any = ()) -> None:
        self._left = deque(self._actions)

    def act(self, turns: Sequence[Turn]) -> list[Decision]:
        return [Decision(self._left.popleft() if self._left else None) for _ in turns]


def test_gymnasium_keeps_its_word_and_plays_by_name() -> None:
    with open_world("gymnasium", canonical(TAXI)) as world:
        assert [check for check in conformance(world) if check.ok is False] == []
        (played,) = play(world, RandomPolicy(), world.tasks(Split.TEST, 0, 1), steps=5)  # type: ignore[attr-defined]
        assert played.seed == FIRST[Split.TEST]
        assert played.family == "Taxi-v4"
        assert all(step.action in (step.valid_actions or ()) for step in played.steps)
        assert "+---------+" in played.steps[0].observation
        assert "\x1b" not in played.steps[0].observation


def test_splits_do_not_share_their_seeds() -> None:
    """Of ten tasks of a split hardly any begins as one of another's."""
    with open_world("gymnasium", canonical(BABYAI)) as world:
        (environment,) = world.environments(1)
        begins = [
            {environment.reset(task).text for task in world.tasks(split, 0, 10)}  # type: ignore[attr-defined]
            for split in (Split.TRAIN, Split.DEV, Split.TEST)
        ]
    assert len(begins[0] & begins[1]) + len(begins[1] & begins[2]) + len(begins[0] & begins[2]) < 3


def test_taxi_counts_only_the_reward_that_says_so() -> None:
    """The shortest way by the simulator's own table of transitions."""
    import gymnasium

    with open_world("gymnasium", canonical(TAXI)) as world:
        (task,) = world.tasks(Split.TRAIN, 3, 1)  # type: ignore[attr-defined]
        bare = gymnasium.make("Taxi-v4")
        start, _ = bare.reset(seed=3)
        table = bare.unwrapped.P  # type: ignore[attr-defined]
        ways: dict[int, list[int]] = {int(start): []}
        waiting, solution = deque([int(start)]), list[int]()
        while waiting and not solution:
            state = waiting.popleft()
            for action, ((_, after, reward, ends),) in table[state].items():
                if ends and reward == 20:
                    solution = [*ways[state], action]
                if after not in ways:
                    ways[after] = [*ways[state], action]
                    waiting.append(after)
        (won,) = play(world, Scripted([TAXI["actions"][action] for action in solution]), [task])
        assert (won.success, won.score, won.stop_reason) == (True, 1.0, StopReason.SUCCESS)
        assert won.total_reward == pytest.approx(20 - (len(solution) - 1))


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        ({"id": "Nowhere-v0"}, "gymnasium: .*Nowhere"),
        ({"id": "Taxi-v4", "actions": ["a", "b"]}, "has 6 actions; name each"),
        ({"id": "Pendulum-v1"}, "actions must be discrete, or text"),
        ({"id": "Taxi-v4", "speed": 3}, "has no parameter 'speed'"),
        ({}, "needs environment.parameters.id"),
        ({"id": "Taxi-v4", "render": "nowhere:text"}, "No module named 'nowhere'"),
        ({"id": "Taxi-v4", "render": "text"}, "write module:object"),
    ],
)
def test_gymnasium_settings_at_fault_are_told(parameters: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says), open_world("gymnasium", canonical(parameters)) as world:
        world.environments(1)


def test_a_live_expert_is_asked_from_any_state_also_in_a_worker_process() -> None:
    """A quarter of its actions are random, and BabyAI's bot still finds its way; a student's every step is labelled."""
    with open_world("gymnasium", canonical(BABYAI)) as world:
        assert advises(world)
        tasks = world.tasks(Split.TRAIN, 0, 8)  # type: ignore[attr-defined]
        noisy = play(world, LiveExpert(Mistakes(wrong_action=0.25)), tasks)
        assert sum(bool(trajectory.success) for trajectory in noisy) >= 7
        assert any(not step.trainable for trajectory in noisy for step in trajectory.steps)
        named = {step.subgoal for trajectory in noisy for step in trajectory.steps} - {""}
        assert all(subgoal.startswith("go to the ") for subgoal in named)
        assert by_plan(noisy[0])[0].subgoal in named

    def crew() -> Any:
        return remote_workers("gymnasium", canonical(BABYAI), environments=2, processes=1, timeout=60)

    mixture = Mixture(RandomPolicy(), LiveExpert(), Coin(0.5))
    jobs = [Job(task) for task in tasks]
    taught = list(Rollout(mixture, jobs, crew, budget=Budget(60), origin=ORIGIN))
    assert {trajectory.stop_reason for trajectory in taught} <= {StopReason.SUCCESS, StopReason.FAILURE}
    labels = [step.teacher_action for trajectory in taught for step in trajectory.steps if step.teacher_action]
    assert len(labels) > 10
    assert set(labels) <= set(BABYAI["actions"])


def test_an_expert_that_breaks_is_the_environments_fault() -> None:
    with open_world("gymnasium", canonical({**BABYAI, "expert": "tests.adapted:broken_expert"})) as world:
        (broken,) = play(world, LiveExpert(), world.tasks(Split.TRAIN, 0, 1))  # type: ignore[attr-defined]
        assert (broken.stop_reason, broken.length) == (StopReason.INFRASTRUCTURE, 0)
        assert "the expert broke: RuntimeError: lost the way" in broken.error
        (fine,) = play(world, RandomPolicy(), world.tasks(Split.TRAIN, 0, 1), steps=3)  # type: ignore[attr-defined]
        assert fine.length == 3


def test_functions_are_tools() -> None:
    task = listed("functions", FUNCTIONS, "Add 2 and 3.", {"sum": 5})
    with open_world("functions", canonical(FUNCTIONS)) as world:
        assert [
            check for check in conformance(world, (), {split: [task] for split in Split}) if check.ok is False
        ] != []
        wrong = ['add {"first": 2}', 'divide {"first": 1, "second": 0}', 'multiply {"first": 1}', "no idea"]
        right = ['add {"first": 2, "second": 3}', 'answer {"text": "5"}']
        (played,) = play(world, Scripted([*wrong, *right]), [task])
        guessed, unanswered = (
            play(world, Scripted(actions), [task])[0] for actions in (['answer {"text": "5"}'], right[:1])
        )
    assert (played.success, played.score, played.length) == (True, 1.0, 6)
    assert (guessed.success, guessed.stop_reason) == (False, StopReason.FAILURE)
    assert (unanswered.success, unanswered.stop_reason) == (False, StopReason.NO_ACTION)
    told = [step.observation for step in played.steps[1:]]
    assert told[0] == "the arguments of add do not fit: 'second' is a required property"
    assert told[1] == "ZeroDivisionError: division by zero"
    assert told[2].startswith("there is no tool 'multiply'; there are: add, divide, answer")
    assert told[4] == "5"


def test_a_tool_run_is_a_conversation_in_the_lake_and_in_exports(tmp_path: Path) -> None:
    task = listed("functions", FUNCTIONS, "Add 2 and 3.", {"sum": 5})
    actions = ['add {"first": 2, "second": 3}\nadd {"first": 1, "second": 1}', 'answer {"text": "5"}']
    with open_world("functions", canonical(FUNCTIONS)) as world:
        (played,) = play(world, Scripted(actions), [task])
    with Lake(tmp_path / "lake", create=True) as lake:
        lake.append([played], "tools")
        (back,) = lake.trajectories([played.trajectory_id])
        assert back == played
        calls = lake.sql('select name, arguments, result from tool_calls order by "index", position').to_pylist()
    assert [call["result"] for call in calls] == ["5", "2", ""]
    row = chat.write(played, {})
    assert " ".join(message["role"] for message in row["messages"]) == ROLES
    assert row["messages"][0]["content"] == "Add 2 and 3."
    ids = [call["id"] for message in row["messages"] for call in message.get("tool_calls", ())]
    assert ids == [message["tool_call_id"] for message in row["messages"] if message["role"] == "tool"]
    assert [tool["function"]["name"] for tool in row["tools"]] == ["add", "divide", "answer"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"functions": ["tests.adapted:undocumented"]}, "needs type hints and a docstring with Args"),
        ({"functions": ["tests.adapted:nothing"]}, "has no nothing"),
        ({"functions": []}, "needs environment.parameters.functions"),
    ],
)
def test_functions_at_fault_are_told(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says), open_world("functions", canonical({**FUNCTIONS, **changes})):
        pass


def test_a_score_that_raises_is_the_environments_fault() -> None:
    settings = {**FUNCTIONS, "score": "tests.adapted:no_score"}
    with open_world("functions", canonical(settings)) as world:
        (broken,) = play(world, Scripted(['answer {"text": "5"}']), [listed("functions", settings, "Add.", {"sum": 5})])
    assert (broken.stop_reason, broken.success) == (StopReason.INFRASTRUCTURE, False)
    assert "the score could not be told: KeyError" in broken.error


def test_trls_contract_is_played() -> None:
    settings = {"factory": "tests.adapted:Counter"}
    task = listed("trl", settings, "Count.", {"goal": 5})
    actions = ['add {"amount": -1}', 'add {"amount": 2}', 'add {"amount": 3}', 'add {"amount": 1}']
    with open_world("trl", canonical(settings)) as world:
        (won,) = play(world, Scripted(actions), [task])
        (lost,) = play(world, Scripted(['answer {"text": "done"}']), [task])
    assert (won.success, won.total_reward, won.length) == (True, 1.0, 3)
    assert won.steps[0].observation == " Reach 5."
    assert [step.observation for step in won.steps[1:]] == ["ValueError: amount must be positive", "value=2"]
    assert (lost.success, lost.total_reward) == (False, 0.0)


def test_an_mcp_server_is_an_environment_and_a_chat_model_calls_its_tools() -> None:
    """Git's server from PyPI, over stdio; the model sees tools, calls and results as the API has them."""
    task = listed("mcp", GIT, "Commit a.txt with the message: first", {"file": "a.txt", "message": "first"})
    seen: list[list[dict[str, Any]]] = []

    def model(request: dict[str, Any], key: str) -> tuple[int, Any]:
        seen.append(request["messages"])
        assert "git_add" in [tool["function"]["name"] for tool in request["tools"]]
        told = [message["content"] for message in request["messages"] if message["role"] == "tool"]
        plan = [
            ("git_status", {"repo_path": "/nowhere"}),
            ("git_add", {"repo_path": "{folder}/repository", "files": ["a.txt"]}),
            ("git_commit", {"repo_path": "{folder}/repository", "message": "first"}),
        ]
        if len(told) == len(plan):
            return 200, {"role": "assistant", "content": "It is committed."}
        name, arguments = plan[len(told)]
        function = {"name": name, "arguments": json.dumps(arguments)}
        call = {"id": f"c{len(told)}", "type": "function", "function": function}
        return 200, {"role": "assistant", "content": None, "tool_calls": [call]}

    with chat_server(model) as url, open_world("mcp", canonical(GIT)) as world:
        settings = ChatConfig(base_url=url, model="teacher")
        (played,) = play(world, ChatPolicy(settings), [task], steps=8)
    assert played.error == ""
    assert (played.success, played.length) == (True, 4)
    assert "outside the allowed repository '{folder}/repository'" in played.steps[1].observation
    assert played.steps[-1].action == 'answer {"text": "It is committed."}'
    assert " ".join(message["role"] for message in seen[-1]) == "system user" + 3 * " assistant tool"


@pytest.mark.slow
def test_a_student_learns_to_call_tools(tmp_path: Path) -> None:
    """A scripted model calls tools by the API; the student that is distilled from it solves held-out tasks."""

    def model(request: dict[str, Any], key: str) -> tuple[int, Any]:
        told = [message["content"] for message in request["messages"] if message["role"] == "tool"]
        words = request["messages"][0]["content"].rstrip(".").split()
        look = ("look", {"house": words[4], "door": words[-1]})
        name, arguments = ("answer", {"text": told[0].split()[-1]}) if told else look
        call = {"id": "c", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
        return 200, {"role": "assistant", "content": None, "tool_calls": [call]}

    source = tmp_path / "tasks.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in tasks()))
    with chat_server(model) as url:
        settings = tmp_path / "tools.toml"
        settings.write_text(WHEEL.format(folder=tmp_path, url=url), encoding="utf-8")
        turned = subprocess.run(
            [str(Path(sys.executable).with_name("flywheel")), "run", str(settings)],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=False,
        )
        assert turned.returncode == 0, turned.stderr
        config = load(settings)
    with Lake.of(config) as lake:
        rates = lake.sql("select policy, split, verified, tasks from evaluations order by all").to_pylist()
        calls = lake.sql(
            """select name, count(*) as n, count(*) filter (tool_calls.error is not null) as wrong from tool_calls
               join trajectories using (trajectory_id) where policy = 'flat' group by name order by name"""
        ).to_pylist()
    print(rates, calls)
    (flat,) = (row for row in rates if row["policy"] == "flat" and row["split"] == "test")
    assert flat["verified"] > flat["tasks"] / 2
    assert {call["name"] for call in calls} == {"look", "answer"}
    assert sum(call["wrong"] for call in calls) == 0


@pytest.mark.slow
def test_what_trl_makes_of_an_openreward_server_is_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """`pip install openreward trl`, which pin other packages than ours, in an environment of its own."""
    pytest.importorskip("openreward")
    port = free_port()
    for name in ("OPENREWARD_API_URL", "OPENREWARD_SESSION_URL"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
    monkeypatch.setenv("OPENREWARD_DISABLE_UPDATE_CHECK", "1")
    server = subprocess.Popen([sys.executable, str(Path(__file__).parent / "openreward_server.py"), str(port)])
    try:
        deadline = time.monotonic() + 60
        while not _answers(port):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        from trl.experimental.openreward import OpenRewardSpec

        spec = OpenRewardSpec(f"http://127.0.0.1:{port}", split="train")
        settings = {"factory": "tests.openreward_server:environment"}
        columns = {name: value for name, value in spec.train_dataset[1].items() if name != "prompt"}
        with open_world("trl", canonical(settings)) as world:
            actions = ['add {"amount": 2}', 'add {"amount": "x"}', 'add {"amount": 1}']
            (won,) = play(world, Scripted(actions), [listed("trl", settings, "Count.", columns)])
    finally:
        server.terminate()
        server.wait()
    assert (won.success, won.total_reward, won.steps[0].observation) == (True, 1.0, "Reach 4 from 1.")
    assert won.steps[1].observation == "value=3"
    assert "do not fit: 'x' is not of type 'integer'" in won.steps[2].observation


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0

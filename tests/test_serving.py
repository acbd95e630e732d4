"""Serving: OpenAI's own client and curl against a running server, promotions and rollbacks under load."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from flywheel.agents.contexts.chat_format import parse_answer, render_observation
from flywheel.config.root import Config, load
from flywheel.datasets.lake.lake import Lake
from flywheel.distill.stage import distill
from flywheel.environments.protocol import Observation, World
from flywheel.errors import PrerequisiteError
from flywheel.filters.curate import curate
from flywheel.policies.factory import make_policy
from flywheel.policies.registry import crown, policy_directory, rollback
from flywheel.rollouts.play import rehearse
from flywheel.serving.listening import is_loopback
from flywheel.serving.loaded import Loaded
from flywheel.serving.requests import ChatRequest
from flywheel.serving.server import serve
from flywheel.trajectory import Split, Trajectory
from tests.served import FLYWHEEL, policy_server

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.minutes
SEEN = Observation(
    "You are in the kitchen. You see a knife.",
    location="kitchen",
    state_key="a",
    valid_actions=("take knife", "look around"),
)
ASKED = [{"role": "system", "content": "Cook."}, {"role": "user", "content": render_observation(SEEN, whole=True)}]


@pytest.fixture(scope="module")
def students(tmp_path_factory: pytest.TempPathFactory, golden: list[Trajectory]) -> tuple[Config, Lake, list[str]]:
    """A lake with three students: hierarchical, flat, and another flat one."""
    settings = load(ROOT / "configs" / "smoke.toml", [f"data_dir={tmp_path_factory.mktemp('served') / 'lake'}"])
    lake = Lake.of(settings, create=True)
    lake.append(golden, "expert")
    curate(settings, lake)
    other = settings.model_copy(update={"seed": 1})
    cards = [
        distill(settings, lake, "hierarchical", 1),
        distill(settings, lake, "flat", 1),
        distill(other, lake, "flat", 1),
    ]
    return settings, lake, [card.policy_id for card in cards]


@pytest.fixture(scope="module")
def url(students: tuple[Config, Lake, list[str]]) -> Iterator[str]:
    _, lake, (hierarchical, *_) = students
    crown(lake, hierarchical, "by hand")
    with policy_server(lake) as base_url:
        yield base_url


def client(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=key, max_retries=0)


def test_openais_client_talks_to_the_whole_agent(students: tuple[Config, Lake, list[str]], url: str) -> None:
    hierarchical = students[2][0]
    with client(url) as talking:
        names = [one.id for one in talking.models.list()]
        assert names[:2] == ["champion", hierarchical]
        reply = talking.chat.completions.create(model="champion", messages=ASKED)  # type: ignore[arg-type]
        said = parse_answer(reply.choices[0].message.content or "", SEEN.valid_actions)
        assert said is not None and said.action in (SEEN.valid_actions or ())
        assert said.subgoal
        assert reply.model.startswith(f"{hierarchical}@")
        assert reply.usage is not None and reply.usage.prompt_tokens > 0
        again = talking.chat.completions.create(model=reply.model, messages=ASKED)  # type: ignore[arg-type]
        assert again.choices[0].message.content == reply.choices[0].message.content


def test_the_same_question_many_times_takes_no_more_room(students: tuple[Config, Lake, list[str]]) -> None:
    _, lake, (_, flat, _) = students

    async def ask() -> int:
        student = Loaded(policy_directory(lake, flat), "cpu")
        student.open()
        for _ in range(20):
            await student.answers(ChatRequest.model_validate({"model": "champion", "messages": ASKED}))
        await student.close()
        return student._made

    assert asyncio.run(ask()) <= 2


def test_what_dialogues_take_is_bounded(
    students: tuple[Config, Lake, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lake, (_, flat, _) = students

    async def ask(dialogues: int) -> int:
        student = Loaded(policy_directory(lake, flat), "cpu")
        student.open()
        for number in range(dialogues):
            seen = {"role": "user", "content": f"[view] Room {number}.\n[actions]\n- wait\n- go"}
            await student.answers(ChatRequest.model_validate({"model": "champion", "messages": [seen]}))
        await student.close()
        return student._made

    assert asyncio.run(ask(6)) == 6
    monkeypatch.setattr("flywheel.serving.loaded.CACHE_BYTES", 1)
    assert asyncio.run(ask(6)) == 1


def test_streams_say_the_same_in_pieces(url: str) -> None:
    with client(url) as talking:
        whole = talking.chat.completions.create(model="champion", messages=ASKED)  # type: ignore[arg-type]
        stream = talking.chat.completions.create(
            model="champion",
            messages=ASKED,
            stream=True,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        )
        chunks = list(stream)
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == whole.choices[0].message.content
        assert len([piece for piece in pieces if piece]) > 1
        assert chunks[-1].usage == whole.usage
        options = {"model": "champion/executor", "prompt": "<|task|>Cook.<|act|>", "max_tokens": 6}
        text = talking.completions.create(**options).choices[0].text  # type: ignore[call-overload]
        streamed = talking.completions.create(**options, stream=True)  # type: ignore[call-overload]
        assert "".join(chunk.choices[0].text for chunk in streamed) == text


def test_planner_and_executor_answer_completions(students: tuple[Config, Lake, list[str]], url: str) -> None:
    from flywheel.policies.models import load_part

    _, lake, (hierarchical, *_) = students
    model, tokenizer = load_part(policy_directory(lake, hierarchical) / "planner")
    prompt = tokenizer.encode("<|task|>Cook.<|subgoal|>", add_special_tokens=False)
    with client(url) as talking:
        told = talking.completions.create(
            model=f"{hierarchical}/planner",
            prompt=prompt,
            max_tokens=8,
            logprobs=1,
            extra_body={"return_token_ids": True},
        )
        ids = told.choices[0].token_ids  # type: ignore[attr-defined]
        import torch

        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False)[0, len(prompt) :].tolist()
        assert ids == theirs[: len(ids)]
        allowed = talking.completions.create(
            model="champion/planner", prompt=prompt, max_tokens=1, logprobs=1, extra_body={"allowed_token_ids": [5]}
        )
        assert allowed.choices[0].logprobs is not None
        assert allowed.choices[0].logprobs.token_logprobs == [0.0]


def test_curl_is_told_what_is_wrong(url: str) -> None:
    def post(path: str, body: object) -> tuple[int, str]:
        text = body if isinstance(body, str) else json.dumps(body)
        command = [
            "curl",
            "-s",
            "-w",
            "\n%{http_code}",
            f"{url}/{path}",
            "-H",
            "content-type: application/json",
            "-d",
            text,
        ]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        answer, _, status = told.rpartition("\n")
        return int(status), answer if status == "200" else json.loads(answer)["error"]["message"]

    assert post("chat/completions", {"model": "champion", "messages": ASKED})[0] == 200
    assert post("chat/completions", {"model": "nobody", "messages": ASKED})[0] == 404
    assert post("chat/completions", {"model": 1})[0] == 400
    assert post("chat/completions", "{")[0] == 400
    assert post("chat/completions", {"model": "champion", "messages": []})[0] == 400
    last = [*ASKED, {"role": "assistant", "content": "Action: take knife"}]
    assert "last message" in post("chat/completions", {"model": "champion", "messages": last})[1]
    assert "temperature" in post("chat/completions", {"model": "champion", "messages": ASKED, "n": 3})[1]
    assert "completions" in post("chat/completions", {"model": "champion/planner", "messages": ASKED})[1]
    assert post("completions", {"model": "champion", "prompt": "x"})[0] == 404
    assert post("completions", {"model": "champion/planner", "prompt": [10**6]})[0] == 400
    assert post("completions", {"model": "champion/planner", "prompt": "x", "max_tokens": 10**9})[0] == 400
    assert post("completions", {"model": "champion/planner", "prompt": "x", "seed": 2**64})[0] == 400
    assert post("completions", {"model": "champion/planner", "prompt": "x", "max_tokens": 0})[0] == 200


def test_a_served_student_plays_what_it_plays_here(
    students: tuple[Config, Lake, list[str]], url: str, world: World
) -> None:
    _, lake, (hierarchical, *_) = students
    pointed = [f"data_dir={lake.root}", f"served.base_url={url}", f"remote.planner={url}", f"remote.executor={url}"]
    config = load(ROOT / "configs" / "smoke.toml", pointed)
    tasks = world.tasks(Split.TRAIN, 300, 5)

    def played(name: str) -> list[list[tuple[str, str, bool]]]:
        episodes = sorted(
            rehearse(config, world, make_policy(config, lake, world, name), tasks, "t", 15), key=lambda e: e.seed
        )
        assert not any(episode.error for episode in episodes)
        assert {step.policy_id for episode in episodes for step in episode.steps} == {hierarchical}
        return [[(step.subgoal, step.action, step.new_subgoal) for step in episode.steps] for episode in episodes]

    here, served, remote = played("champion"), played("served"), played("remote")
    assert [[step[1:] for step in one] for one in served] == [[step[1:] for step in one] for one in here]
    assert remote == here


def test_promotions_and_rollbacks_drop_no_request(students: tuple[Config, Lake, list[str]], url: str) -> None:
    _, lake, (hierarchical, flat, other) = students
    answered: list[str] = []
    problems: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        with client(url) as talking:
            while not stop.is_set():
                try:
                    reply = talking.chat.completions.create(model="champion", messages=ASKED)  # type: ignore[arg-type]
                    answered.append(reply.model.partition("@")[0])
                except Exception as error:
                    problems.append(error)

    def wait_for(policy_id: str) -> None:
        deadline = time.monotonic() + 30
        while answered[-1:] != [policy_id] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert answered[-1] == policy_id

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    wait_for(hierarchical)
    for champion in (flat, other):
        crown(lake, champion, "promoted")
        wait_for(champion)
    rollback(lake)
    wait_for(flat)
    rollback(lake)
    wait_for(hierarchical)
    stop.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert set(answered) == {hierarchical, flat, other}
    with client(url) as talking:
        reply = talking.chat.completions.create(model=other, messages=ASKED)  # type: ignore[arg-type]
        assert reply.model.startswith(other), "a student's own name means the same for ever"


def test_an_episode_goes_on_under_the_next_champion(
    students: tuple[Config, Lake, list[str]], url: str, world: World
) -> None:
    _, lake, (hierarchical, flat, _) = students
    config = load(ROOT / "configs" / "smoke.toml", [f"data_dir={lake.root}", f"served.base_url={url}"])

    class Promoting:
        """A world whose first environment promotes another student at its fifth step."""

        def environments(self, count: int) -> list[object]:
            return [self if number == 0 else game for number, game in enumerate(world.environments(count))]

        def reset(self, task: object) -> object:
            self.game, self.steps = world.environments(1)[0], 0
            return self.game.reset(task)  # type: ignore[arg-type]

        def step(self, action: str) -> object:
            self.steps += 1
            if self.steps == 5:
                crown(lake, flat, "promoted in the middle")
                time.sleep(3)
            return self.game.step(action)

        def __getattr__(self, name: str) -> object:
            return getattr(world, name)

    alone = config.model_copy(update={"environment": config.environment.model_copy(update={"parallel": 1})})
    policy = make_policy(config, lake, world, "served")
    (one,) = rehearse(alone, Promoting(), policy, world.tasks(Split.TRAIN, 310, 1), "t", 12)  # type: ignore[arg-type]
    rollback(lake)
    deciders = [step.policy_id for step in one.steps]
    assert deciders == [hierarchical] * 5 + [flat] * (len(deciders) - 5)
    assert len(deciders) > 5


@pytest.mark.slow
def test_a_canary_answers_its_share_and_stays_with_an_episode(students: tuple[Config, Lake, list[str]]) -> None:
    _, lake, (hierarchical, flat, _) = students
    with policy_server(lake, "--canary", flat, "--canary-share", "0.3") as url, client(url) as talking:
        by_episode = {
            user: {
                talking.chat.completions.create(model="champion", messages=ASKED, user=user).model.partition("@")[0]  # type: ignore[arg-type]
                for _ in range(2)
            }
            for user in map(str, range(60))
        }
    assert all(len(names) == 1 for names in by_episode.values())
    answered = [name for names in by_episode.values() for name in names]
    assert 5 <= answered.count(flat) <= 31
    assert answered.count(flat) + answered.count(hierarchical) == 60


def test_open_addresses_need_a_key_and_a_key_is_asked_for(
    students: tuple[Config, Lake, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, lake, (hierarchical, *_) = students
    monkeypatch.delenv("FLYWHEEL_SERVE_KEY", raising=False)
    with pytest.raises(PrerequisiteError, match="set FLYWHEEL_SERVE_KEY"):
        serve(lake, host="0.0.0.0")
    assert (
        is_loopback("127.0.0.2") and is_loopback("::1") and not is_loopback("10.0.0.1") and not is_loopback("example")
    )
    with policy_server(lake, hierarchical, key="sesame") as url:
        with client(url, "sesame") as talking:
            assert talking.models.list().data[0].id == hierarchical
        with client(url, "wrong") as talking, pytest.raises(openai.AuthenticationError):
            talking.models.list()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serve-policy", "nobody"], "policy 'nobody' is not registered"),
        (["serve-policy", "--device", "tpu"], "there is no device 'tpu'"),
        (["serve-policy", "--host", "0.0.0.0"], "set FLYWHEEL_SERVE_KEY"),
    ],
)
def test_bad_input_is_one_line(students: tuple[Config, Lake, list[str]], arguments: list[str], told: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "FLYWHEEL_SERVE_KEY"}
    done = subprocess.run(
        [FLYWHEEL, *arguments, "--data-dir", str(students[1].root)],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr


def test_nobody_is_served_before_there_is_a_champion(lake: Lake) -> None:
    with pytest.raises(Exception, match="no student is champion yet"):
        serve(lake, port=0)

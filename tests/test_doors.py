"""The doors of a server: what it bounds, what it refuses by name, and that one request's fault is its own."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flywheel.agents.contexts.prompts import END
from flywheel.agents.contexts.tokenization import token_id
from flywheel.agents.inference.batching import Batcher
from flywheel.agents.inference.decoding import Choice, Fault, choose, generate, options_of
from flywheel.agents.inference.language_model import LocalLanguageModel
from flywheel.agents.inference.prefix_cache import PrefixCache
from flywheel.agents.policy import Decoding
from flywheel.config.root import Config
from flywheel.config.student import StudentConfig
from flywheel.datasets.lake.lake import Lake
from flywheel.errors import InfrastructureError
from flywheel.policies.models import new_model
from flywheel.policies.tokenizer import train_tokenizer
from flywheel.serving.completions import Completer, GenerationRequest
from flywheel.serving.requests import ChatRequest, CompletionRequest, RequestError, parse_request
from tests.served import policy_server as serving
from tests.test_serving import ASKED, students

__all__ = ["students"]
END_OF_ALL = 1
"""The id of the end marker: the second of the special tokens."""
TOKENIZER = train_tokenizer(["take the carrot. open the fridge. move north."], [], 300)


class Door:
    """A running server, and which of its processes it is."""

    def __init__(self, url: str, student: str) -> None:
        self.url, self.student = url, student

    def post(self, path: str, body: Any, timeout: float = 60) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}/{path}", data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())

    def chat(self, **more: Any) -> tuple[int, Any]:
        return self.post("chat/completions", {"model": self.student, "messages": ASKED, **more})

    def complete(self, **more: Any) -> tuple[int, Any]:
        return self.post(
            "completions", {"model": f"{self.student}/executor", "prompt": "hello", "max_tokens": 4, **more}
        )


@pytest.fixture(scope="module")
def door(students: tuple[Config, Lake, list[str]]) -> Iterator[Door]:
    _, lake, (hierarchical, *_) = students
    with serving(lake, hierarchical, "--max-requests", "60") as url:
        yield Door(url, hierarchical)


# -- one row's fault is its own ----------------------------------------------------------------------------------------


@pytest.mark.minutes
def test_a_bad_request_makes_none_beside_it_fail(door: Door) -> None:
    def ask(number: int) -> int:
        bad = number % 10 == 0
        return door.complete(max_tokens=8, temperature=1e-300 if bad else 0.0)[0]

    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        statuses = list(pool.map(ask, range(200)))
    assert {status for number, status in enumerate(statuses) if number % 10} == {200}
    assert {status for number, status in enumerate(statuses) if number % 10 == 0} == {400}


@pytest.mark.minutes
def test_a_long_prompt_does_not_make_others_wait(door: Door) -> None:
    chance = torch.Generator().manual_seed(0)
    long = torch.randint(20, 200, (4000,), generator=chance).tolist()
    alone = time.monotonic()
    assert door.complete(max_tokens=4)[0] == 200
    alone = time.monotonic() - alone
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        heavy = [pool.submit(door.complete, prompt=long, max_tokens=90, seed=n) for n in range(4)]
        time.sleep(0.05)
        began = time.monotonic()
        assert door.complete(max_tokens=4)[0] == 200
        waited = time.monotonic() - began
        assert all(one.result()[0] == 200 for one in heavy)
    assert waited < 1.0 + alone


def test_a_row_whose_scores_are_not_finite_fails_alone() -> None:
    model = new_model(StudentConfig(hidden=32, layers=2, heads=2, vocabulary=300), TOKENIZER, 3).eval()
    poison = 40
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    contexts = [[20, 21], [22, poison], [23, 24, 25]]
    end = token_id(TOKENIZER, END)
    options = options_of([[30, end], [31, end]])
    picks = choose(PrefixCache(model), range(3), contexts, [options] * 3)
    assert [isinstance(pick, Choice) for pick in picks] == [True, False, True]
    said = generate(PrefixCache(model), range(3), contexts, end=end, max_tokens=4)
    assert [isinstance(one, Fault) for one in said] == [False, True, False]
    alone = choose(PrefixCache(model), [0], [contexts[0]], [options])
    assert isinstance(alone[0], Choice)
    assert isinstance(picks[0], Choice)
    assert alone[0].tokens == picks[0].tokens


def test_a_fault_stays_in_no_slot() -> None:
    """What is not a number would reach whoever comes to the slot next, though it is masked."""
    model = new_model(StudentConfig(hidden=32, layers=2, heads=2, vocabulary=300), TOKENIZER, 3).eval()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    with torch.no_grad():
        model.get_input_embeddings().weight[40] = torch.nan
    reader = PrefixCache(model)
    assert not reader.read([0], [[20] * 50 + [40, 21]]).isfinite().all()
    after = reader.read([0, 1], [[22, 23], [24] * 100])
    assert after.isfinite().all()
    assert torch.allclose(after[0], PrefixCache(model).read([0], [[22, 23]])[0], atol=1e-5)


def test_requests_that_overflow_fail_alone_and_the_rest_goes_on() -> None:
    model = new_model(StudentConfig(hidden=32, layers=1, heads=2, vocabulary=300), TOKENIZER, 3).eval()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach() * 3e37)

    async def talk() -> list[Any]:
        completer, batcher = Completer(model, TOKENIZER), Batcher(lambda: 1)
        tasks = [asyncio.create_task(batcher.run()), asyncio.create_task(completer.run(batcher))]
        generations = [
            GenerationRequest((20, 21), 4, temperature=0.01),
            GenerationRequest((22, 23), 4),
            GenerationRequest((24,), 4),
        ]
        try:
            async with asyncio.timeout(30):
                return list(await asyncio.gather(*map(completer.complete, generations), return_exceptions=True))
        finally:
            for task in tasks:
                task.cancel()

    bad, *good = asyncio.run(talk())
    assert isinstance(bad, InfrastructureError)
    assert [len(one.tokens) for one in good] == [4, 4]


def test_a_context_longer_than_the_model_fails_alone() -> None:
    model = new_model(StudentConfig(hidden=32, layers=1, heads=2, vocabulary=300), TOKENIZER, 3).eval()
    language_model = LocalLanguageModel(model, TOKENIZER, Decoding())
    picks = language_model.choose([0, 1], [[20] * 5000, [20, 21]], [["take"], ["take", "open"]])
    assert isinstance(picks[0], Fault)
    assert "5000 tokens is longer than the model's 4096" in picks[0].reason
    assert isinstance(picks[1], Choice)


@pytest.mark.minutes
def test_nothing_is_computed_for_a_client_that_is_gone(door: Door) -> None:
    body = {"model": f"{door.student}/executor", "prompt": "hello", "max_tokens": 4000, "temperature": 1}
    for seed in range(50):
        text = json.dumps({**body, "seed": seed, "logit_bias": {str(END_OF_ALL): -100}}).encode()
        with _connected(door) as open_socket:
            head = f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n"
            open_socket.sendall(head.encode() + text)
    time.sleep(2.0)
    began = time.monotonic()
    assert door.complete(max_tokens=20)[0] == 200
    assert time.monotonic() - began < 2.0


# -- bounds ------------------------------------------------------------------------------------------------------------


@pytest.mark.minutes
def test_a_body_that_is_too_large_is_refused_and_takes_no_room(door: Door) -> None:
    before = _peak_of_servers()
    status, told = door.post("chat/completions", b'{"model": "' + b"a" * (50 << 20) + b'"}')
    assert (status, told["error"]["message"]) == (413, "the body is larger than 8 MiB")
    assert door.chat()[0] == 200
    assert _peak_of_servers() - before < 64 << 20


@pytest.mark.minutes
def test_a_body_without_a_length_is_bounded_too(door: Door) -> None:
    with _connected(door) as open_socket:
        open_socket.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(12):
            open_socket.sendall(chunk)
        assert b" 413 " in open_socket.recv(4096)


@pytest.mark.minutes
def test_a_client_that_sends_no_head_is_hung_up_on(door: Door) -> None:
    with _connected(door) as open_socket:
        open_socket.settimeout(30)
        open_socket.sendall(b"POST /v1/comp")
        began = time.monotonic()
        assert open_socket.recv(1) == b""
        assert 5 < time.monotonic() - began < 20


@pytest.mark.minutes
def test_a_later_head_must_come_in_time_too(door: Door) -> None:
    with _connected(door) as open_socket:
        open_socket.settimeout(30)
        open_socket.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b" 200 " in open_socket.recv(4096)
        open_socket.sendall(b"GET /hea")
        began = time.monotonic()
        while open_socket.recv(4096):
            pass
        assert time.monotonic() - began < 20


@pytest.mark.minutes
def test_a_text_that_is_surely_too_long_is_not_even_tokenised(door: Door) -> None:
    began = time.monotonic()
    status, told = door.complete(prompt="x" * (7 << 20))
    assert (status, time.monotonic() - began < 1.5) == (400, True), told


@pytest.mark.minutes
def test_one_client_has_so_many_requests_at_once(door: Door) -> None:
    with concurrent.futures.ThreadPoolExecutor(120) as pool:
        statuses = list(pool.map(lambda n: door.complete(max_tokens=60, temperature=1, seed=n)[0], range(120)))
    assert set(statuses) <= {200, 429}
    assert 429 in statuses
    assert door.complete()[0] == 200


@pytest.mark.minutes
def test_a_context_that_does_not_fit_is_told_with_the_numbers(door: Door) -> None:
    status, told = door.complete(prompt=[20] * 4090, max_tokens=16)
    assert (status, told["error"]["message"]) == (
        400,
        "prompt: the model's context has 4096 tokens, this asks for 4090 and 16 more",
    )
    long = [ASKED[0], {"role": "user", "content": "word " * 20_000}]
    status, told = door.chat(messages=long)
    assert status == 400
    assert "longer than the model's 4096" in told["error"]["message"]


def _connected(door: Door) -> socket.socket:
    address = urlsplit(door.url)
    return socket.create_connection((address.hostname or "", address.port or 0))


def _peak_of_servers() -> int:
    """The most memory that a process of `serve-policy` ever had."""
    peaks = [0]
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if b"serve-policy" in (status.parent / "cmdline").read_bytes():
                found = re.search(r"VmHWM:\s+(\d+)", status.read_text())
                peaks.append(int(found[1]) << 10 if found else 0)
        except OSError:
            continue
    return max(peaks)


# -- the dialect -------------------------------------------------------------------------------------------------------


@pytest.mark.minutes
def test_a_page_elsewhere_cannot_ask(door: Door) -> None:
    """A browser posts forms and plain text to anybody without asking; JSON it does not."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        request = urllib.request.Request(f"{door.url}/completions", b"{}", {"content-type": kind})
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(request, timeout=20)
        with caught.value:
            assert caught.value.code == 415


@pytest.mark.minutes
def test_a_long_stop_string_is_one_string(door: Door) -> None:
    assert door.complete(stop="a stop string of more than sixteen letters")[0] == 200
    assert door.complete(allowed_token_ids=[5, 6, 7] * 100_000, max_tokens=50)[0] == 200


@pytest.mark.minutes
def test_null_means_not_given(door: Door) -> None:
    for name in ("stream", "n", "user", "stream_options", "temperature", "max_tokens", "tools", "logprobs", "stop"):
        assert door.chat(**{name: None})[0] == 200, name
    for name in ("stream", "temperature", "seed", "user", "max_tokens", "stream_options", "logit_bias", "suffix"):
        assert door.complete(**{name: None})[0] == 200, name


@pytest.mark.minutes
def test_what_is_supported_is_done(door: Door) -> None:
    status, told = door.complete(n=2, temperature=1)
    assert (status, len(told["choices"])) == (200, 2)
    text = door.complete(max_tokens=12)[1]["choices"][0]["text"]
    stop = text[len(text) // 2]
    cut = door.complete(max_tokens=12, stop=[stop])[1]["choices"][0]
    assert cut["text"] == text[: text.index(stop)]
    assert cut["finish_reason"] == "stop"
    assert door.complete(echo=True)[1]["choices"][0]["text"].startswith("hello")
    told = door.complete(logprobs=2)[1]["choices"][0]["logprobs"]
    assert [len(top_logprob) for top_logprob in told["top_logprobs"]] == [2] * len(told["tokens"])
    assert max(told["top_logprobs"][0].values()) == pytest.approx(told["token_logprobs"][0])
    assert len(door.complete(prompt=["hello", "you"])[1]["choices"]) == 2
    assert door.chat(max_tokens=1)[1]["choices"][0]["finish_reason"] == "length"
    with urllib.request.urlopen(f"{door.url}/models/{door.student}", timeout=20) as answer:
        assert json.load(answer)["id"] == door.student


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("n", 2),
        ("temperature", 1e-300),
        ("top_logprobs", 2),
        ("response_format", {"type": "grammar"}),
        ("tools", [{"type": "function", "function": {"parameters": {}}}]),
        ("tools", [{"type": "function", "function": {"name": "a b"}}]),
        ("tools", [{"type": "function", "function": {"name": "a", "parameters": {"type": "thing"}}}]),
        ("stop", [1]),
        ("logit_bias", {"1": 5}),
        ("frequency_penalty", 0.5),
        ("nobody_knows", 1),
    ],
)
def test_what_a_chat_cannot_do_is_refused_by_name(name: str, value: Any) -> None:
    body = json.dumps({"model": "m", "messages": ASKED, name: value}).encode()
    with pytest.raises(RequestError, match=name):
        parse_request(ChatRequest, body)


def test_what_asks_for_nothing_is_let_through() -> None:
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0, "repetition_penalty": 1.0, "best_of": 1, "min_p": 0.0}
    request = parse_request(CompletionRequest, json.dumps({"model": "m", "prompt": "x", **neutral}).encode())
    assert request == CompletionRequest(model="m", prompt="x")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("suffix", "x"),
        ("best_of", 3),
        ("temperature", 1e-300),
        ("temperature", -1),
        ("top_p", 0),
        ("presence_penalty", 1),
        ("logit_bias", {"1": 1e300}),
        ("n", 2),
        ("prompt", []),
        ("max_tokens", -1),
        ("seed", 2**64),
        ("logprobs", 1000),
        ("stop_token_ids", [-1]),
    ],
)
def test_what_a_completion_cannot_do_is_refused_by_name(name: str, value: Any) -> None:
    body = json.dumps({"model": "m", "prompt": "x", name: value}).encode()
    with pytest.raises(RequestError, match=name):
        parse_request(CompletionRequest, body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "m", "prompt": "caf\\udce9"}',
        b'{"model": "m", "prompt": "caf\xed\xa0\x80"}',
        '{"model": "m", "prompt": "x"}'.encode("utf-16"),
        b'{"model": "m", "prompt": [true]}',
        b'{"model": "m", "prompt": "x", "best_of": true}',
        b'{"model": "m", "prompt": "x", "temperature": NaN}',
        b'{"model": "m", "prompt": "x", "logit_bias": {"1": Infinity}}',
        b"[" * 100_000,
        b"",
        b"\xff",
        b"[]",
        b'{"model": "m", "prompt": "x", "\\udce9": 1}',
    ],
)
def test_bad_bodies_are_refused_in_words_that_can_be_sent(body: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(CompletionRequest, body)
    str(caught.value).encode()


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]},
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
        {"role": "narrator", "content": "x"},
    ],
)
def test_what_a_student_cannot_read_is_refused(message: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="messages"):
        parse_request(ChatRequest, json.dumps({"model": "m", "messages": [*ASKED, message]}).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("kind", [ChatRequest, CompletionRequest])
@given(data=st.data())
def test_any_body_is_a_request_or_refused(kind: type[Any], data: st.DataObject) -> None:
    names = st.sampled_from([*kind.model_fields, "tools", "suffix", "x"])
    body = data.draw(st.dictionaries(names, json_values, max_size=4) | json_values)
    whole = {"model": "m", "messages": ASKED, "prompt": "x", **body} if isinstance(body, dict) else body
    try:
        parse_request(kind, json.dumps(whole).encode())
    except RequestError as error:
        assert "\n" not in str(error)

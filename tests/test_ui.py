"""`flywheel ui`: a turned wheel looked at in a real Chromium, and what its pages say and refuse."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as st
from playwright.sync_api import Browser, Page, sync_playwright

from flywheel import charts
from flywheel.config.root import Config
from flywheel.datasets.formats.importing import import_files
from flywheel.datasets.lake.lake import Lake
from flywheel.datasets.maintenance.lineage import revoke
from flywheel.datasets.versions.versions import create
from flywheel.distill.credit.methods import make_method
from flywheel.distill.credit.record import assign_credit
from flywheel.distill.stage import distill
from flywheel.environments.adapters.browser import executable
from flywheel.evaluation.evaluate import evaluate
from flywheel.evaluation.promotion import gate
from flywheel.filters.curate import curate
from flywheel.flows.iterations import begin, finish
from flywheel.flows.report import write_report
from flywheel.messages import Image
from flywheel.policies.registry import crown
from flywheel.trajectory import Split, Trajectory
from flywheel.ui.app import make_app
from flywheel.ui.comparison import align
from flywheel.ui.run import pretty

HOSTILE = "</pre><script>document.title = 'owned'</script><img src=x onerror=alert(1)> \x1b[31m\u202egpj"
"""What a tool answered, in order to run in whoever looks."""


@pytest.fixture(scope="module")
def wheel(
    smoke: Config, golden: list[Trajectory], noisy: list[Trajectory], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lake]:
    """One turn of the wheel, a recorded agent with tools, a run that was taken back, and credit."""
    folder = tmp_path_factory.mktemp("ui")
    config = smoke.model_copy(
        update={
            "data_dir": folder / "lake",
            "evaluate": smoke.evaluate.model_copy(update={"dev_tasks": 4, "test_tasks": 3}),
        }
    )
    with Lake.of(config, create=True) as lake:
        turn = begin(config, lake, 1)
        lake.append([*golden, *noisy], "collected")
        curate(config, lake)
        assign_credit(lake, "returns", make_method("returns", {}), "split = 'train'")
        card = distill(config, lake, "hierarchical", 1)
        expert = evaluate(config, lake, "expert", Split.TEST, 1)
        (decision,) = gate(config, lake, [card.policy_id], turn.champion_id, 1)
        student = evaluate(config, lake, card.policy_id, Split.TEST, 1)
        report = write_report(config, lake, 1, [expert, student], {card.policy_id: decision}, {"collect": 1.5})
        finish(lake, 1, report)
        crown(lake, card.policy_id, decision.sentence, "")
        revoke(lake, [golden[0].trajectory_id], "a wrong recipe")
        (folder / "log.jsonl").write_text(json.dumps({"messages": _tool_messages(), "tools": [{"name": "ls"}]}) + "\n")
        import_files(lake, [folder / "log.jsonl"], "chat")
        yield lake


def _tool_messages() -> list[dict[str, Any]]:
    call = {"id": "c1", "type": "function", "function": {"name": "ls", "arguments": '{"at": "/srv/zebra"}'}}
    return [
        {"role": "user", "content": "count the files of /srv"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": HOSTILE + "\n" + "x" * 5_000, "tool_call_id": "c1"},
        {"role": "assistant", "content": "forty"},
    ]


@pytest.fixture(scope="module")
def client(wheel: Lake) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("flywheel.datasets.lake.reader.SETTLED_SECONDS", 0.0)
        yield TestClient(make_app(wheel), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def address(wheel: Lake) -> Iterator[str]:
    """Where the command serves the lake."""
    command = [sys.executable, "-m", "flywheel", "ui", "--data-dir", str(wheel.root), "--port", "0", "--no-open"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.stdout.readline().split()[0].rstrip("/")
        server.terminate()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Browser) -> Iterator[Page]:
    """A tab that reports what goes wrong in it."""
    with chromium.new_context(viewport={"width": 1280, "height": 900}) as context:
        tab = context.new_page()
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type in ("error", "warning") else None)
        tab.on("dialog", lambda dialog: dialog.accept("mine") if dialog.type == "prompt" else wrong.append("a dialog"))
        yield tab
        assert not wrong


def one(lake: Lake, what: str) -> str:
    return str(lake.sql(what)[0][0].as_py())


def run_of(lake: Lake, condition: str) -> str:
    return one(lake, f"select trajectory_id from trajectories where {condition} order by trajectory_id limit 1")


def imported(lake: Lake) -> str:
    return run_of(lake, "purpose = 'imported'")


def noisy_run(lake: Lake) -> str:
    return run_of(lake, "policy = 'noisy_expert'")


def pages_of(lake: Lake) -> list[str]:
    """The address of each kind of page."""
    student, expert = (
        one(lake, f"select policy_id from evaluations where policy = '{name}'") for name in ("hierarchical", "expert")
    )
    first, second = run_of(lake, "policy = 'hierarchical' and split = 'test'"), run_of(lake, "policy = 'expert'")
    return [
        "/",
        "/runs",
        "/runs?text=oven&verdict=verified",
        f"/runs/{first}",
        f"/runs/{imported(lake)}",
        f"/compare?run={first}&run={second}",
        f"/compare?first={student}&second={expert}",
        "/lineage",
        f"/lineage/{student}",
        "/sql?q=select+policy,+count(*)+as+runs+from+trajectories+group+by+all",
    ]


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_every_page_is_readable_and_accessible(
    wheel: Lake, address: str, chromium: Browser, width: int, theme: Any
) -> None:
    with chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=theme) as context:
        tab = context.new_page()
        wrong: list[str] = []
        tab.on("pageerror", lambda error: wrong.append(str(error)))
        tab.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        for path in pages_of(wheel):
            tab.goto(address + path)
            assert tab.evaluate("document.documentElement.scrollWidth <= innerWidth"), (
                f"{path} is wider than the window"
            )
            grave = [
                (violation["id"], [node["html"][:200] for node in violation["nodes"][:3]])
                for violation in Axe().run(tab).response["violations"]
                if violation["impact"] in ("serious", "critical")
            ]
            assert not grave, (path, grave)
        assert not wrong


def test_runs_are_narrowed_down_and_found_again(wheel: Lake, address: str, page: Page) -> None:
    page.goto(f"{address}/runs")
    every = int(page.locator("h1 .dim").inner_text())
    page.locator("aside a", has_text="expert").first.click()
    fewer = int(page.locator("h1 .dim").inner_text())
    assert 0 < fewer < every and "policy_id=" in page.url
    page.go_back()
    assert int(page.locator("h1 .dim").inner_text()) == every
    page.keyboard.press("/")
    page.keyboard.type("/srv/ZEBRA")
    page.keyboard.press("Enter")
    page.wait_for_url("**text=*")
    assert page.locator("h1 .dim").inner_text() == "1"
    assert page.locator("mark").inner_text() == "/srv/zebra"
    page.locator("#save-view").click()
    page.goto(f"{address}/runs")
    page.locator("#views a", has_text="mine").click()
    assert page.locator("h1 .dim").inner_text() == "1"
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    page.wait_for_url("**/runs/*")
    assert "count the files" in page.locator("main").inner_text()


def test_two_chosen_runs_are_compared_and_a_deep_link_leads_into_one(wheel: Lake, address: str, page: Page) -> None:
    page.goto(f"{address}/runs?purpose=collect")
    assert page.locator("#compare").is_disabled()
    page.locator("input[name=run]").nth(0).check()
    page.locator("input[name=run]").nth(1).check()
    page.locator("#compare").click()
    page.wait_for_url("**/compare?run=*")
    shown = page.locator(".beside .row:visible").count()
    page.locator("#only-different").click()
    assert page.locator(".beside .row:visible").count() < shown
    page.locator(".cell .index").first.click()
    page.wait_for_url("**#step-0")
    assert page.locator("#step-0").is_visible()


def test_what_a_run_holds_cannot_act_in_the_page(wheel: Lake, address: str, page: Page) -> None:
    page.goto(f"{address}/runs/{imported(wheel)}")
    result = page.locator(".field.result")
    assert "<script>document.title" in result.inner_text() and "\\x1b[31m\\u202egpj" in result.inner_text()
    assert result.inner_text().count("x") < 5_000
    page.locator("[data-whole]").click()
    page.locator("[data-whole]").wait_for(state="detached")
    assert result.inner_text().count("x") >= 5_000
    assert "owned" not in page.title()


def test_a_person_tags_notes_and_labels_a_run_and_takes_it_back(wheel: Lake, address: str, page: Page) -> None:
    name = noisy_run(wheel)
    page.goto(f"{address}/runs/{name}")
    page.locator(".annotate input[name=value]").first.fill("odd recipe")
    page.locator(".annotate button", has_text="Add").first.click()
    page.wait_for_url("**#annotations")
    page.locator(".annotate button", has_text="failed").click()
    page.wait_for_load_state()
    assert wheel.sql("select trajectory_id, tag from tags").to_pylist() == [
        {"trajectory_id": name, "tag": "odd recipe"}
    ]
    assert one(wheel, "select value from annotations where kind = 'label'") == "failed"
    page.goto(f"{address}/runs?tag=odd+recipe")
    assert page.locator("h1 .dim").inner_text() == "1"
    page.goto(f"{address}/runs/{name}")
    page.get_by_label("Take back tag odd recipe").click()
    page.wait_for_load_state()
    assert wheel.sql("from tags").num_rows == 0


def test_what_the_student_read_is_rebuilt_from_the_record(wheel: Lake, client: TestClient) -> None:
    name = run_of(wheel, "policy = 'hierarchical' and length > 3")
    run = wheel.trajectories([name])[0]
    for index in range(4):
        step = run.steps[index]
        shown = client.get(f"/runs/{name}/prompt?step={index}").text
        counted = [int(count.replace(",", "")) for count in re.findall(r"([\d,]+) tokens, rebuilt", shown)]
        assert len(counted) == 1 + step.new_subgoal
        assert sum(counted) == step.prompt_tokens
    refused = client.get(f"/runs/{noisy_run(wheel)}/prompt?step=0")
    assert refused.status_code == 400 and "is not registered" in refused.text


def test_the_flywheel_tells_gates_champions_and_what_was_taken_back(wheel: Lake, client: TestClient) -> None:
    shown = client.get("/").text
    student = one(wheel, "select policy_id from policies")
    for words in ("exact McNemar", f'champion <a href="/lineage/{student}">', "By horizon", "revoked"):
        assert words in shown
    graph = client.get(f"/lineage/{student}").text
    assert "all that could teach up to iteration 1" in graph
    assert 'class="node bad"' in graph and "1 revoked" in graph and "privileged" in graph and "champion" in graph


def test_iterations_and_datasets_are_compared(wheel: Lake, client: TestClient) -> None:
    create(wheel, "clean", "verified = 1 and split = 'train' and revoked is null")
    create(wheel, "expert", "policy = 'expert' and split = 'train'")
    shown = client.get("/compare?before=clean@v1&after=expert@v1").text
    only_expert = wheel.sql(
        """select count(*) from trajectories
           where policy = 'expert' and split = 'train' and not (verified = 1 and revoked is null)"""
    )[0][0].as_py()
    assert f'Only in expert@v1 <span class="dim">{only_expert} runs' in shown and "In both" in shown
    told = client.get("/compare?before=1&after=1").text
    assert told.count("the same policy") == 2 and "hierarchical" in told


def test_sql_in_the_page_reads_plots_and_exports_but_cannot_write(wheel: Lake, client: TestClient) -> None:
    counted = client.get("/sql", params={"q": "select policy, count(*) as runs from trajectories group by all"}).text
    assert "<svg" in counted and "noisy_expert" in counted
    for statement in ("drop view steps", "select * from read_csv('/etc/passwd')", "set threads = 1"):
        refused = client.get("/sql", params={"q": statement})
        assert refused.status_code == 200 and 'role="alert"' in refused.text and "root:" not in refused.text
    lines = client.get("/sql/export", params={"q": "select 1 as a union all select 2", "form": "jsonl"}).text
    assert [json.loads(line) for line in lines.splitlines()] == [{"a": 1}, {"a": 2}]
    assert client.get("/sql/export", params={"q": "select 1 as a", "form": "parquet"}).content[:4] == b"PAR1"
    assert client.get("/sql/export", params={"q": "select 1", "form": "exe"}).status_code == 404


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/runs/nope", 400, "no trajectory"),
        ("/runs?where=1)+or+(1", 400, "not a condition"),
        ("/runs?page=999999999999&order=rm", 200, "Runs"),
        ("/lineage/nope", 400, "no student"),
        ("/compare?first=a&second=b", 400, "played no task in common"),
        ("/compare?first=a&second=b&where=false)+or+(true", 400, "not a condition"),
        ("/compare?before=²&after=²", 200, "Choose two policies"),
        ("/runs?page=999", 200, "The last"),
        ("/nothing", 404, "Not Found"),
    ],
)
def test_a_wrong_address_gets_a_line_that_says_so(client: TestClient, path: str, status: int, words: str) -> None:
    answer = client.get(path)
    assert answer.status_code == status and words in answer.text


def test_other_pages_cannot_use_the_server(wheel: Lake, client: TestClient) -> None:
    name, before = run_of(wheel, "true"), wheel.snapshot()
    forged = client.post(
        f"/runs/{name}/annotations", data={"kind": "tag", "value": "x"}, headers={"origin": "http://evil.example"}
    )
    assert forged.status_code == 403 and wheel.snapshot() == before
    assert client.get("/", headers={"host": "evil.example"}).status_code == 400
    image = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}
    link = {**image, "sec-fetch-mode": "navigate"}
    assert [client.get("/runs", headers=headers).status_code for headers in (image, link)] == [403, 200]
    assert client.get("/sql?q=select+1", headers=link).status_code == 403
    assert "script-src 'self'" in client.get("/").headers["content-security-policy"]


def test_the_address_must_be_of_this_machine(wheel: Lake) -> None:
    command = [sys.executable, "-m", "flywheel", "ui", "--data-dir", str(wheel.root), "--host", "0.0.0.0"]
    refused = subprocess.run(command, capture_output=True, text=True)
    assert refused.returncode == 2 and "ssh -L" in refused.stderr and refused.stderr.count("\n") == 1


def test_the_report_is_one_file_without_a_network(wheel: Lake, page: Page) -> None:
    (report,) = Path(wheel.root, "reports").glob("*.html")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(report.as_uri())
    assert asked == [report.as_uri()]
    assert page.locator("figure svg").count() >= 4
    assert "exact McNemar" in page.locator("main").inner_text()


ACTIONS = st.lists(st.sampled_from("abc"), max_size=12)


@given(st.lists(ACTIONS, min_size=2, max_size=4))
def test_alignment_shows_every_step_of_every_run_once_in_order(runs: list[list[str]]) -> None:
    rows = align(runs)
    for place, actions in enumerate(runs):
        assert [row[place] for row in rows if row[place] is not None] == list(range(len(actions)))


@given(ACTIONS)
def test_equal_runs_stand_side_by_side(actions: list[str]) -> None:
    assert align([actions, actions]) == [[index, index] for index in range(len(actions))]


@given(st.integers(0, 9), st.integers(0, 9), st.integers(310, 900), st.integers(310, 900))
def test_long_runs_are_aligned_at_once(start: int, end: int, first: int, second: int) -> None:
    runs = [
        [*"s" * start, *(f"{run}{step}" for step in range(steps)), *"e" * end]
        for run, steps in ((1, first), (2, second))
    ]
    rows = align(runs)
    for place, actions in enumerate(runs):
        assert [row[place] for row in rows if row[place] is not None] == list(range(len(actions)))
    assert [row for row in rows if row[0] is not None and row[0] >= start + first] == [
        [len(runs[0]) - back, len(runs[1]) - back] for back in range(end, 0, -1)
    ]


def test_plots_keep_a_policy_in_its_colour_and_say_what_they_show() -> None:
    rows = [{"iteration": 1, "policy": "flat", "rate": 0.5, "low": 0.3, "high": 0.7, "tasks": 20}]
    drawn = charts.svg(charts.rates_by_iteration([*rows, {**rows[0], "policy": "<b>"}]))
    assert charts.COLOURS["flat"].lower() in drawn.lower()
    assert "flat, 1: 50.0% (30.0% to 70.0%) of 20 tasks" in drawn and "<b>" not in drawn


def test_what_users_name_their_columns_is_only_a_title(client: TestClient) -> None:
    for name in ("a'b", 'a""b', "a.b", "a[0]", "a]b", "who", "series"):
        told = client.get("/sql", params={"q": f'select policy, count(*) as "{name}" from trajectories group by all'})
        assert told.status_code == 200 and "<svg" in told.text and "NaN" not in told.text


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ('{"b": 1, "a": [1.5]}', '{\n  "b": 1,\n  "a": [\n    1.5\n  ]\n}'),
        ('{"path": "/etc/shadow", "path": "/tmp/x"}', None),
        ("[" * 100_000, None),
        ('{"a": 1.000000000000000001}', None),
        ('{"a": NaN}', None),
        ("no json", None),
    ],
)
def test_arguments_are_told_as_they_are(arguments: str, shown: str | None) -> None:
    assert pretty(arguments) == (shown or arguments)


def test_a_person_s_lines_come_back_as_they_were(wheel: Lake, client: TestClient) -> None:
    statement = "select 1 as a,\r\n2 as b"
    again = client.get("/sql", params={"q": statement}).text
    assert "select 1 as a,\n2 as b</textarea>" in again and "\\x0d" not in again
    name = noisy_run(wheel)
    note = {"kind": "note", "value": "one\r\ntwo"}
    client.post(f"/runs/{name}/annotations", data=note)
    assert "one\ntwo" in client.get(f"/runs/{name}").text
    client.post(f"/runs/{name}/annotations", data={**note, "withdrawn": "true"})
    assert "one\ntwo" not in client.get(f"/runs/{name}").text


def test_screenshots_are_shown_and_nothing_else_that_calls_itself_one(golden: list[Trajectory], lake: Lake) -> None:
    png, svg = Image("image/png", b"\x89PNG\r\n\x1a\n and no more"), Image("image/svg+xml", b"<svg onload='alert(1)'/>")
    names = [png.sha256, svg.sha256]
    seen = [replace(step, screenshot=name) for step, name in zip(golden[0].steps, names, strict=False)]
    episode = replace(
        golden[0],
        steps=(*seen, *golden[0].steps[len(seen) :]),
        images=(png, svg),
    )
    lake.append([episode], "with images")
    client = TestClient(make_app(lake), base_url="http://127.0.0.1")
    page, pictures = (
        f"/runs/{episode.trajectory_id}",
        [f"/runs/{episode.trajectory_id}/images/{name}" for name in names],
    )
    shown = client.get(page).text
    assert all(f'src="{picture}"' in shown for picture in pictures)
    answers = [client.get(picture) for picture in pictures]
    assert [answer.status_code for answer in answers] == [200, 404]
    assert answers[0].content == png.data and answers[0].headers["content-type"] == "image/png"


def test_a_bad_time_hides_nothing_else(golden: list[Trajectory], lake: Lake) -> None:
    lake.append([replace(golden[0], started_at=1.7e12)], "milliseconds")
    told = TestClient(make_app(lake), base_url="http://127.0.0.1").get("/runs")
    assert told.status_code == 200 and golden[0].task_id in told.text


def test_a_search_for_the_usual_order_is_kept(client: TestClient) -> None:
    assert 'data-query="text=newest"' in client.get("/runs?text=newest").text


def test_a_chosen_value_without_a_run_can_be_dropped(client: TestClient) -> None:
    shown = client.get("/runs?policy_id=nobody").text
    assert 'aria-current="true"><span>nobody</span>' in shown and "No run fits" in shown


def test_a_long_run_comes_in_pieces_and_whole(golden: list[Trajectory], lake: Lake) -> None:
    step = golden[0].steps[0]
    steps = tuple(replace(step, index=index, terminated=False) for index in range(450))
    lake.append([replace(golden[0], steps=steps, length=len(steps))], "a long one")
    client = TestClient(make_app(lake), base_url="http://127.0.0.1")
    name = golden[0].trajectory_id
    pieces = [client.get(f"/runs/{name}").text, *(client.get(f"/runs/{name}/steps?first={n}").text for n in (200, 400))]
    assert [int(index) for piece in pieces for index in re.findall(r'id="step-(\d+)"', piece)] == list(range(450))

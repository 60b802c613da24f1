"""The page, and what the server tells it; in a browser it is tried by test_browser.py."""

from __future__ import annotations

import base64
import hashlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from starlette.types import ASGIApp

from flowinfer.cli.traced import traced
from flowinfer.runs.store import Run, ordered_records
from flowinfer.serving.app import application
from flowinfer.serving.desk import Desk, Limits
from flowinfer.serving.page.render import page
from flowinfer.serving.samples import Samples
from flowinfer.serving.service import Service
from tests.command import flowinfer
from tests.report.sweeps import questions, write_run
from tests.serving.asgi import ask, call, events_of
from tests.serving.conftest import Serve, Served

ASK = [{"role": "user", "content": "3 + 4 = ?"}]


def told(server: Served, model: str = "s2p", **body: Any) -> list[dict[str, Any]]:
    """Return all that is told of an answer, but its end."""
    *events, done = server.ask("POST", "/flowinfer/chat", {"model": model, "messages": ASK, **body}).events
    assert done == "[DONE]"
    return events


@pytest.fixture(scope="module")
def events(server: Served) -> list[dict[str, Any]]:
    return told(server)


def of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event.get("event") == kind]


def test_the_page_is_one_file_that_asks_for_nothing_else() -> None:
    html = page().html
    assert not re.findall(r"(?:src|href)=\"(?!#|data:,)", html)
    assert "//" not in "".join(re.findall(r"[\"'`](https?:[^\"'`]*)", html)).replace("http://www.w3.org/2000/svg", "")
    assert not re.findall(r"@import|url\(", html)


def test_a_browser_runs_the_pages_own_script_and_no_other() -> None:
    (script,) = re.findall(r"<script>(.*?)</script>", page().html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in page().policy
    assert "default-src 'none'" in page().policy


@pytest.mark.parametrize(
    "way", ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"]
)
def test_no_text_becomes_html_or_script(way: str) -> None:
    assert way not in page().html


ON = {
    "ink": "ground raised asked reading writing done failed l1 l2 l3 l4 track",
    "soft": "ground raised track",
    "good": "ground raised",
    "bad": "ground raised",
    "mark": "ground raised",
    "on-mark": "mark",
    "ground": "bad",
}


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("text", ON)
def test_every_text_stands_out_from_its_ground(theme: int, text: str) -> None:
    """WCAG's 4.5 to 1."""
    found = dict(re.findall(r"--([\w-]+): (#\w+);", re.findall(r":root \{(.*?)\}", page().html, re.S)[theme]))
    for ground in ON[text].split():
        light, dark = sorted((_luminance(found[name]) for name in (text, ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, ground


def _luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_comes_with_its_policy_and_without_a_key(server: Served) -> None:
    desk = Desk(server.desk.service, Limits(), ("key-of-the-tests",))
    reply = server.run(ask(application(desk), "GET", "/"))
    assert reply.status == 200
    assert reply.headers["content-security-policy"] == page().policy


def test_who_asks_is_told_of_all_steps_their_tokens_and_texts(events: list[dict[str, Any]]) -> None:
    assert [event["event"] for event in events if event["event"] != "token"] == [
        *("step_began", "step_ended", "step_began", "step_ended", "answered", "usage")
    ]
    last = of_kind(events, "step_ended")[-1]
    assert set(last["prompts"]) == {head["node"] for head in last["heads"]}
    assert {"drafted_tokens", "accepted_tokens", "seconds", "text"} <= set(last)
    assert of_kind(events, "usage")[0]["completion_tokens"] > 0


def test_each_token_says_what_every_head_gave_it_and_wanted(events: list[dict[str, Any]]) -> None:
    tokens = [event for event in of_kind(events, "token") if event["step"] == "s2"]
    assert tokens
    for token in tokens:
        assert {head["model"] for head in token["heads"]} == {"Qwen", "Ds"}
        for head in token["heads"]:
            assert head["probability"] >= head["probability_of_emitted"] - 1e-6
        mean = sum(head["probability_of_emitted"] for head in token["heads"]) / 2
        assert token["probability"] == pytest.approx(mean, abs=1e-4)
        assert -1e-6 <= token["lead"] <= token["probability"] + 1e-6, "greedy: nothing was before it"


def test_tokens_name_the_parts_of_their_own_flow_where_flows_share_a_loop(serve: Serve) -> None:
    """They were named after the first flow's."""
    server = serve({"first": "(Qwen | Ds)", "second": "Yi -> (Ds | Qwen)"})
    described = {model["id"]: model["flowinfer"]["steps"][-1] for model in server.ask("GET", "/v1/models").data["data"]}
    for flow, step in described.items():
        happened = told(server, flow, max_tokens=4)
        heads = [event["heads"] for event in of_kind(happened, "token") if event["step"] == step["id"]]
        own = {(head["node"], head["model"]) for head in step["heads"]}
        ended = of_kind(happened, "step_ended")[-1]
        assert heads and all({(head["node"], head["model"]) for head in of_token} == own for of_token in heads)
        assert {(head["node"], head["model"]) for head in ended["heads"]} == own and len(ended["prompts"]) == 2


@pytest.mark.parametrize("model", ["pi", "s2p", "drawn"])
def test_the_tokens_told_to_be_the_answers_join_to_it(server: Served, model: str) -> None:
    events = told(server, model)
    final = of_kind(events, "step_ended")[-1]["step"]
    pieces = {event["index"]: event["bytes"] for event in of_kind(events, "token") if event["step"] == final}
    own = [index for event in events for index in event.get("answer", ())]
    joined = b"".join(bytes(pieces[index]) for index in own).decode()
    (answered,) = of_kind(events, "answered")
    assert answered["text"] and joined.strip() == answered["text"].strip()


def test_a_vote_is_told_with_its_ballot(server: Served) -> None:
    (answered,) = of_kind(told(server, "vote"), "answered")
    assert "votes" in answered["ballot"] or "member" in answered["ballot"]


def test_what_was_taken_is_told_and_shown_in_a_trace(serve: Serve) -> None:
    """The page took the first member's tokens for the answer's, whichever was taken."""
    server = serve({"choice": "(Qwen / Ds / Yi)[accept=confidence, at=0]"})
    events = told(server, "choice")
    (answered,) = of_kind(events, "answered")
    (taken,) = answered["selections"]
    assert taken.startswith("(Qwen / Ds / Yi): took 1 of 3 (confidence >= 0: ")
    assert f"== {taken}" in traced(events)
    (model,) = server.ask("GET", "/v1/models").data["data"]
    assert model["flowinfer"]["answer"] == {"kind": "text", "steps": ["s1", "s2", "s3"], "finals": ["s3"]}


def test_an_answer_that_fails_is_a_problem_with_a_status(server: Served) -> None:
    reply = server.ask("POST", "/flowinfer/chat", {"model": "s2p", "messages": ASK, "n": 3})
    assert reply.status == 400
    assert reply.error["param"] == "n"


def test_a_page_that_stops_ends_its_rows(server: Served) -> None:
    async def stop() -> str:
        asked = call(server.app, "POST", "/flowinfer/chat", {"model": "pi", "messages": ASK, "max_tokens": 400})
        task = asked.start()
        first = [await asked.sent.get() for _ in range(2)]
        asked.gone.set()
        await task
        await server.is_idle()
        return first[1]["body"].decode()

    assert events_of(server.run(stop()))[0]["event"] == "step_began"


def test_the_drawing_has_every_part_that_a_model_is_described_with(server: Served) -> None:
    for model in server.ask("GET", "/v1/models").data["data"]:
        root = ET.fromstring(server.ask("GET", f"/flowinfer/flows/{model['id']}.svg?direction=down").body)
        drawn = {element.get("data-part") for element in root.iter() if element.get("data-part")}
        steps = model["flowinfer"]["steps"]
        parts = {head["node"] for step in steps for head in step["heads"]} | {
            g for step in steps for g in step["groups"]
        }
        assert {"question", "answer"} | parts <= drawn | {"answer"}
        assert set(model["flowinfer"]["answer"]["steps"]) <= {step["id"] for step in steps}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of four questions: the first two right, and the draft of the second another."""
    asked = questions("gsm8k", 4)
    path = write_run(tmp_path_factory.mktemp("runs"), "Yi -> (Qwen | Ds)", asked, rule=lambda _, name: name[-1] in "01")
    records = ordered_records(path)
    first = records[1].trace.steps[0].model_copy(update={"passed_on": "so it is 8 -> #### 8"})
    trace = records[1].trace.model_copy(update={"steps": (first, *records[1].trace.steps[1:])})
    records[1] = records[1].model_copy(update={"trace": trace})
    opened = Run(path)
    opened.rewrite(records)
    opened.close()
    return path


@pytest.fixture
def shown(server: Served, run: Path) -> ASGIApp:
    return application(server.desk, samples=Samples(run))


def test_a_runs_samples_are_listed_with_what_was_right_and_what_has_changed(server: Served, shown: ASGIApp) -> None:
    listed = server.run(ask(shown, "GET", "/flowinfer/run")).data
    assert [(sample["verdict"], sample["changed"]) for sample in listed["samples"]] == [
        *(("right", False), ("right", True), ("wrong", False), ("wrong", False))
    ]
    assert listed["titles"] == {"s1": "Yi", "s2": "(Qwen | Ds)"}
    assert any(said.startswith("accuracy") for said in listed["says"])


def test_a_sample_is_shown_whole(server: Served, shown: ASGIApp) -> None:
    record = server.run(ask(shown, "GET", "/flowinfer/run/samples?id=gsm8k-1")).data
    assert record["trace"]["steps"][0]["passed_on"].endswith("8")
    assert record["score"]["correct"]


def test_a_sample_that_is_not_there_is_a_404(server: Served, shown: ASGIApp) -> None:
    assert server.run(ask(shown, "GET", "/flowinfer/run/samples?id=nobody")).status == 404
    assert server.ask("GET", "/flowinfer/run").data is None


def test_a_server_that_only_shows_a_run_is_ready_without_flows() -> None:
    service = Service([], [], lambda tell: tell())
    service.start()
    service.changed.wait()
    assert service.loading.problem is None and service.loading.state == "ready"
    service.close()


def test_serve_needs_a_flow_or_a_run(tmp_path: Path) -> None:
    told = flowinfer("serve", cwd=tmp_path)
    assert told.returncode == 2
    assert "name flow files, or a run with --run" in told.stderr

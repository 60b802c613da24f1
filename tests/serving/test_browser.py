"""The page in a real browser without a screen, over a server that writes what it is asked; nothing is downloaded."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flowinfer.serving.samples import Samples
from tests.command import hear_signals
from tests.conftest import ROOT
from tests.report.sweeps import questions, write_run
from tests.serving.echo import Echoing, echoing

playwright = pytest.importorskip("playwright.sync_api", reason="the browser tests need: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium"),
]
expect = playwright.expect
TEXT = ".turn:last-child .answer > .text"
MINUTE = 60_000
WIDTHS = (400, 1024, 1600)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    expect.set_options(timeout=MINUTE)
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def echo() -> Iterator[Echoing]:
    with echoing() as running:
        yield running


@pytest.fixture
def tab(chromium: Any) -> Iterator[Callable[..., Any]]:
    """Open tabs; each must end without an error of its script."""
    opened: list[Any] = []
    errors: list[str] = []

    def open_(address: str, **options: Any) -> Any:
        context = chromium.new_context(viewport={"width": 1280, "height": 900}, **options)
        opened.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(address)
        return page

    yield open_
    for context in opened:
        context.close()
    assert not errors


@pytest.fixture
def page(tab: Callable[..., Any], echo: Echoing) -> Any:
    return tab(echo.address)


def send(page: Any, question: str, flow: str = "s2p") -> None:
    """Type a question and send it."""
    page.get_by_role("radio", name=flow).check()
    page.get_by_role("textbox", name="Question").fill(question)
    page.keyboard.press("Enter")


def ask(page: Any, question: str, flow: str = "s2p") -> Any:
    """Send a question and wait for the whole answer; return its element."""
    send(page, question, flow)
    return answered(page)


def answered(page: Any, which: str = ".answer") -> Any:
    answer = page.locator(f".turn:last-child {which}").last
    expect(answer).to_have_attribute("data-state", "answered")
    return answer


def test_a_question_is_typed_sent_and_answered_token_by_token(page: Any) -> None:
    send(page, "2000 tokens")
    answer = answered(page)
    expect(answer.locator("> .text")).to_contain_text("word1999")
    facts = answer.locator(".facts")
    for fact in ("agreement", "tokens/s", "drafts accepted6 of 8"):
        expect(facts).to_contain_text(fact)
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_the_drawing_shows_what_each_part_does(page: Any) -> None:
    parts = page.locator("#graph [data-part]")
    expect(parts).to_have_count(6)
    send(page, "never ending ...")
    expect(page.locator('#graph [data-part="n1"]')).to_have_class("writing")
    expect(page.locator('#graph [data-part="n2"]')).to_have_class("waiting")
    expect(page.get_by_role("row", name="Yi writing")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator('#graph [data-part="n1"]')).to_have_class("stopped")
    ask(page, "one two three")
    for part in ("question", "n1", "n2", "n3", "g1", "answer"):
        expect(page.locator(f'#graph [data-part="{part}"]')).to_have_class("done")
    expect(page.locator('#graph [data-part="g1"]')).to_contain_text("4 tok · 0.3 s")


def test_pointing_at_a_token_shows_what_each_head_gave_it_and_wanted(page: Any) -> None:
    ask(page, "one two three")
    page.locator(f"{TEXT} .t").nth(1).hover()
    heads = page.get_by_role("list", name="Heads").get_by_role("listitem")
    expect(heads).to_have_count(2)
    expect(heads.nth(0)).to_contain_text("Qwen90 %agreed")
    expect(heads.nth(1)).to_contain_text("Ds20 %outvoted wanted ␣other 60 %")
    expect(page.locator("#token-is")).to_contain_text("␣two 2 of 5 of the answer")
    expect(page.locator("#token-says")).to_have_text("fused 55 %, 25 points before the next")
    widths = [bar.get_attribute("style") for bar in page.locator("#heads .gave").all()]
    assert ["90%" in (widths[0] or ""), "20%" in (widths[1] or "")] == [True, True]


def test_arrow_keys_go_from_token_to_token_and_say_each_to_who_cannot_see_it(page: Any) -> None:
    ask(page, "a b c d e f")
    page.locator(TEXT).focus()
    said = page.locator("#said")
    page.keyboard.press("Home")
    expect(said).to_have_text("a, fused 90 %; Qwen agreed, 90 %; Ds agreed, 90 %")
    page.keyboard.press("ArrowRight")
    expect(said).to_have_text("␣b, fused 55 %; Qwen agreed, 90 %; Ds outvoted, gave 20 %, wanted ␣other 60 %")
    page.keyboard.press("Control+ArrowRight")
    expect(said).to_contain_text("␣e,")
    page.keyboard.press("End")
    expect(said).to_contain_text("the end,")
    slider = page.get_by_role("slider", name="Token of the text")
    slider.focus()
    page.keyboard.press("Home")
    expect(page.locator(f"{TEXT} .on")).to_have_text("a")
    expect(slider).to_have_attribute("aria-valuetext", re.compile("^a, fused"))


def test_stop_ends_the_answer_here_and_on_the_server(page: Any, echo: Echoing) -> None:
    send(page, "never ending ...", "one")
    expect(page.locator(TEXT)).to_have_text("never ending ...")
    expect(page.locator(".answer")).to_have_attribute("data-state", "answering")
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".answer")).to_have_attribute("data-state", "stopped")
    expect(page.locator(TEXT)).to_have_text("never ending ...")
    assert ask(page, "then this", "one")
    assert not echo.echo.under_way


def test_a_reload_keeps_the_texts_and_stops_what_was_being_written(page: Any) -> None:
    ask(page, "kept")
    send(page, "never ending ...", "one")
    expect(page.locator(TEXT)).to_have_text("never ending ...")
    page.reload()
    expect(page.locator(".answer > .text")).to_have_text(["kept indeed", "never ending ..."])
    expect(page.locator(".answer").last).to_have_attribute("data-state", "stopped")
    expect(page.locator(".answer").first.locator(".facts")).to_contain_text("drafts accepted")
    ask(page, "goes on")
    page.get_by_role("button", name="New chat").click()
    page.reload()
    expect(page.get_by_text("Ask a flow.")).to_be_visible()


def test_two_tabs_do_not_know_of_each_other(tab: Callable[..., Any], echo: Echoing) -> None:
    one = tab(echo.address)
    two = one.context.new_page()
    two.goto(echo.address)
    send(one, "3000 tokens", "pi")
    ask(two, "quick", "one")
    expect(two.locator(TEXT)).to_have_text("quick")
    one.bring_to_front()
    answered(one)
    expect(one.locator(TEXT)).to_contain_text("word2999")
    expect(two.locator(".turn")).to_have_count(1)


@pytest.mark.parametrize(
    "text",
    [
        "<script>document.title='hacked'</script> end",
        "<img src=x onerror=\"document.title='hacked'\"> &lt;b&gt; end",
        "</div></main><h1>hacked</h1> end",
        "javascript:alert(1) ${alert(1)} {{7*7}} end",
        "中文回答，一字一字。 end",
        "\u202eturned around\u202c שלום עולם مرحبا بالعالم end",
        "e\u0301 a\u0308\u0323\u0330 \u0e01\u0e49 👩‍👩‍👧 Z\u0351\u036b\u0343a end",
    ],
)
def test_any_text_is_shown_as_it_is_and_nothing_of_it_runs(page: Any, text: str) -> None:
    page.get_by_role("switch", name="Every stage").check()
    answer = ask(page, text, "pi")
    assert answer.locator("> .text").evaluate("element => element.textContent") == text
    expect(page.locator(".asked .question")).to_have_text(text)
    answer.get_by_text("Prompt of Qwen").click()
    expect(answer.locator("pre").first).to_have_text(f"Answer this: {text}")
    for index in range(answer.locator("> .text .t").count()):
        page.locator(TEXT).press("Home" if index == 0 else "ArrowRight")
    assert page.title() == "flowinfer"
    assert page.locator("h1").count() == 1
    assert page.locator("img, main script").count() == 0


def test_parts_of_a_character_are_tokens_and_names_hide_nothing(page: Any) -> None:
    ask(page, "中 \u202eturned", "one")
    page.locator(TEXT).press("Home")
    expect(page.locator("#token-is")).to_contain_text("part of a character")
    page.locator(TEXT).press("ArrowRight")
    page.locator(TEXT).press("ArrowRight")
    expect(page.locator("#token-is")).to_contain_text("中")
    page.locator(TEXT).press("ArrowRight")
    expect(page.locator("#token-is")).to_contain_text("␣U+202Eturned")


def test_ten_thousand_tokens_are_added_a_frame_at_a_time_in_small_blocks(page: Any) -> None:
    page.evaluate("""() => {
        window.added = [];
        const count = () => {
            window.added.push(document.querySelectorAll(".t").length);
            requestAnimationFrame(count);
        };
        requestAnimationFrame(count);
    }""")
    send(page, "10000 tokens", "pi")
    page.get_by_role("textbox", name="Question").fill("typed meanwhile")
    expect(page.locator(f"{TEXT} .t")).to_have_count(10_001)
    answered(page)
    counts = page.evaluate("window.added")
    assert max(after - before for before, after in pairwise(counts)) <= 400
    assert (
        max(page.locator(f"{TEXT} > div").evaluate_all("blocks => blocks.map((block) => block.childElementCount)"))
        <= 400
    )
    text = page.locator(TEXT).evaluate("element => element.textContent")
    assert text == "".join(f"word{index} " for index in range(10_000))
    expect(page.get_by_role("textbox", name="Question")).to_have_value("typed meanwhile")
    page.locator(TEXT).press("End")
    page.locator(TEXT).press("ArrowUp")
    assert 9_900 < page.locator(f"{TEXT} .on").evaluate("token => token.index") < 10_000


def test_text_that_is_copied_has_no_breaks_of_blocks(page: Any) -> None:
    ask(page, "900 tokens", "one")
    page.locator(TEXT).evaluate("element => getSelection().selectAllChildren(element)")
    copied = page.evaluate("""() => new Promise((resolve) => {
        addEventListener("copy", (event) => resolve(event.clipboardData.getData("text/plain")));
        document.execCommand("copy");
    })""")
    assert copied == "".join(f"word{index} " for index in range(900))


def test_a_question_asked_of_another_flow_too_stands_beside_it_with_the_first_difference(page: Any) -> None:
    ask(page, "one two", "s2p")
    page.get_by_role("combobox", name="Flow to ask the same").select_option("pi")
    page.get_by_role("button", name="Ask it too").click()
    expect(page.locator(".answer")).to_have_count(2)
    answered(page)
    expect(page.locator(".difference")).to_have_text("First difference at tokens 3 and 3: ␣indeed here, there the end")
    expect(page.locator(".differs")).to_have_count(2)
    boxes = [answer.bounding_box() for answer in page.locator(".answer").all()]
    assert boxes[0]["y"] == boxes[1]["y"] and boxes[0]["x"] < boxes[1]["x"]
    page.get_by_role("button", name="Go on with this", exact=True).click()
    asked = []
    page.on("request", lambda request: asked.append(request.post_data_json) if request.method == "POST" else None)
    ask(page, "next", "one")
    assert [message["content"] for message in asked[0]["messages"]] == ["one two", "one two", "next"]


def test_equal_answers_are_said_to_be_equal(page: Any) -> None:
    ask(page, "one two", "pi")
    page.get_by_role("combobox", name="Flow to ask the same").select_option("one")
    page.get_by_role("button", name="Ask it too").click()
    answered(page)
    expect(page.locator(".difference")).to_have_text("Both answers are the same.")


def test_a_server_that_is_killed_and_comes_back_is_noticed_and_asked_again(tab: Callable[..., Any]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    first = _server(port)
    page = tab(f"http://127.0.0.1:{port}")
    send(page, "never ending ...", "one")
    expect(page.locator(TEXT)).to_have_text("never ending ...")
    first.kill()
    first.communicate()
    expect(page.locator(".answer")).to_have_attribute("data-state", "failed")
    expect(page.get_by_role("alert")).to_contain_text("The server is gone.")
    expect(page.locator(TEXT)).to_have_text("never ending ...")
    expect(page.locator("#notice")).to_contain_text("The server is gone")
    second = _server(port)
    try:
        expect(page.locator("#notice")).to_have_text("The server is back.")
        ask(page, "again", "one")
        expect(page.locator(TEXT)).to_have_text("again")
    finally:
        second.kill()
        second.communicate()


def _server(port: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.serving.echo", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline().startswith("http")
    return process


def test_a_key_is_asked_for_where_the_server_wants_one(tab: Callable[..., Any]) -> None:
    with echoing(keys=("key-of-the-tests",)) as running:
        page = tab(running.address)
        dialog = page.get_by_role("dialog", name="This server asks for a key")
        dialog.get_by_label("Key").fill("another key")
        dialog.get_by_role("button", name="Use it").click()
        expect(dialog.get_by_role("alert")).to_have_text("This is not one of its keys.")
        dialog.get_by_label("Key").fill("key-of-the-tests")
        dialog.get_by_role("button", name="Use it").click()
        ask(page, "let in", "one")


def test_a_run_opens_with_its_samples_filtered_and_whole(tab: Callable[..., Any], tmp_path: Path) -> None:
    run = write_run(tmp_path, "Yi -> (Qwen | Ds)", questions("gsm8k", 150), rule=lambda _, name: name[-1] in "0123")
    with echoing(Samples(run)) as running:
        page = tab(running.address)
        page.get_by_role("button", name="Run", exact=True).click()
        expect(page.locator(".sample")).to_have_count(100)
        page.get_by_role("button", name="Show more").click()
        expect(page.locator(".sample")).to_have_count(150)
        page.get_by_text("wrong 90").click()
        expect(page.locator("#run-count")).to_have_text("90 samples")
        page.get_by_role("searchbox", name="Search").fill("gsm8k-149")
        expect(page.locator(".sample")).to_have_count(1)
        page.locator(".sample summary").first.click()
        expect(page.locator(".sample .stage")).to_have_count(3)
        expect(page.locator(".sample")).to_contain_text("Found 8, reference 7")
        page.get_by_role("button", name="Ask it here, token by token").click()
        expect(answered(page).locator("> .text")).to_have_text("How many? 149 indeed")


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_window(tab: Callable[..., Any], echo: Echoing, width: int, scheme: str) -> None:
    page = tab(echo.address, color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 800})
    page.get_by_role("switch", name="Every stage").check()
    ask(page, "longer" * 80 + " words of a question that goes on for some lines")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for name in ("Send", "New chat"):
        box = page.get_by_role("button", name=name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width


def test_everything_is_reached_by_keyboard_and_seen_in_focus(page: Any) -> None:
    ask(page, "one two")
    page.evaluate("document.activeElement.blur()")
    reached = set()
    for _ in range(25):
        page.keyboard.press("Tab")
        found = page.evaluate("""() => {
            const at = document.activeElement, around = at.closest("label") ?? at;
            const isSeen = [at, around].some((one) => getComputedStyle(one).outlineStyle !== "none");
            if (at === document.body) return null; // between the last and the first
            return [at.id || at.className || at.textContent.trim(), isSeen];
        }""")
        if not found:
            continue
        reached.add(found[0])
        assert found[1], found
    assert {"stages", "new", "text", "question", "send", "Ask it too"} <= reached


@pytest.fixture
def lab_server() -> Iterator[str]:
    """The command itself, over the lab zoo."""
    flows = [str(ROOT / "pipelines" / f"{name}.flow") for name in ("s2p", "pi", "p2s")]
    command = [sys.executable, "-m", "flowinfer", "serve", *flows, "--zoo", "lab", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=hear_signals)
    assert process.stderr
    ready = next(line for line in process.stderr if line.startswith("ready: "))
    yield ready.split()[1]
    process.send_signal(signal.SIGTERM)
    process.communicate()


def test_the_picture_of_the_documents_is_made_of_the_lab_zoo(
    tab: Callable[..., Any], lab_server: str, tmp_path: Path
) -> None:
    """`FLOWINFER_PICTURE=docs/serving.png` says where to."""
    picture = Path(os.environ.get("FLOWINFER_PICTURE", tmp_path / "serving.png"))
    page = tab(lab_server, color_scheme="light")
    page.set_viewport_size({"width": 1280, "height": 840})
    page.get_by_role("switch", name="Every stage").check()
    ask(page, "Mia's machine runs 2 hours a day for 6 days and makes 10 books an hour. How many does it make?")
    page.get_by_role("combobox", name="Flow to ask the same").select_option("pi")
    page.get_by_role("button", name="Ask it too").click()
    answered(page)
    page.locator(".answer").last.locator(".differs").hover()
    expect(page.locator("#heads li")).not_to_have_count(0)
    page.screenshot(path=picture)
    assert 20_000 < picture.stat().st_size < 200_000

"""The profile of a flow: its parts add up, its figures are plain data, and wrong input is told clearly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from flowinfer.cli import run
from flowinfer.fusion.fusers import Mean, Sharpen
from flowinfer.language.check import check
from flowinfer.profiling.figures import Spread
from flowinfer.profiling.run import Profiled, Request, built_in_questions, profile
from flowinfer.profiling.show import lines
from flowinfer.profiling.spans import write_trace
from flowinfer.profiling.whole import Ticks, token_rate
from tests.command import running
from tests.endpoint import Stub, said

STEPS = 4


@pytest.fixture(scope="module")
def profiled(toy_zoo: Path) -> Profiled:
    """Return a profile of S2P at batch 2 over the toy zoo."""
    flow = check("Yi -> (Qwen | Ds)", zoo=str(toy_zoo))
    return profile(flow, Request(built_in_questions(), batch=2, steps=STEPS))


def cli(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stopped:
        run(["profile", *arguments])
    told = capsys.readouterr()
    return int(stopped.value.code or 0), told.out, told.err


def test_every_step_has_its_heads_and_the_whole_beside_them(profiled: Profiled) -> None:
    first, second = profiled.profile.steps
    assert [head.model for head in first.heads] == ["Yi"]
    assert [head.model for head in second.heads] == ["Qwen", "Ds"]
    assert (second.batch, second.steps, second.fusers) == (2, STEPS, ("mean",))
    assert second.slowest in ("Qwen", "Ds") and first.slowest == "Yi"


def test_parts_add_up_to_their_sum(profiled: Profiled) -> None:
    for step in profiled.profile.steps:
        heads = sum(head.forward.mean + head.transfer.mean for head in step.heads)
        assert math.isclose(heads + step.fuse.mean + step.append.mean, step.parts.mean, rel_tol=1e-9)
        shares = sum(head.forward_share for head in step.heads) + step.fuse_share
        assert 0 < shares <= 1


def test_all_rows_write_all_tokens_whatever_the_models_vote(profiled: Profiled) -> None:
    """End tokens are left out, so that every measured step has a full batch."""
    assert [step.whole.tokens for step in profiled.profile.steps] == [2 * STEPS, 2 * STEPS]
    assert all(step.whole.seconds_per_step > 0 and step.whole.engine for step in profiled.profile.steps)


def test_bytes_are_weights_without_embeddings_and_keys_and_values(profiled: Profiled, toy_zoo: Path) -> None:
    from transformers import AutoModelForCausalLM

    (head,) = profiled.profile.steps[0].heads
    model = AutoModelForCausalLM.from_pretrained(toy_zoo.parent / "yi")
    weights = sum(p.numel() * 4 for name, p in model.named_parameters() if "embed_tokens" not in name)
    kv_per_token = 2 * 2 * 2 * 16 * 4  # keys and values, layers, heads, head size, bytes
    context = profiled.profile.steps[0].context
    assert head.step_bytes == int(weights + 2 * context * kv_per_token)


def test_the_floor_is_bytes_over_the_measured_bandwidth(profiled: Profiled) -> None:
    (device,) = profiled.profile.devices
    for step in profiled.profile.steps:
        assert step.step_bytes is not None and step.floor_seconds is not None
        assert math.isclose(step.floor_seconds, step.step_bytes / device.copy_bytes_per_second)
        assert any("x floor" in line for line in lines(step))


def test_devices_work_side_by_side_and_a_device_in_turn(profiled: Profiled) -> None:
    step = profiled.profile.steps[1]
    assert math.isclose(step.side_by_side, step.parts.mean)
    first, second = step.heads
    spread = replace(step, heads=(first, replace(second, device="cuda:0")))
    shorter = min(head.forward.mean for head in step.heads)
    assert math.isclose(spread.side_by_side, step.parts.mean - shorter)
    assert any(line.startswith("parts with the heads of 2 devices side by side") for line in lines(spread))


def test_drafts_and_waits_are_told_where_the_decoder_counts_them(profiled: Profiled) -> None:
    step = profiled.profile.steps[0]
    told = lines(replace(step, whole=replace(step.whole, drafted=8, accepted=6, host_wait_seconds=0.002)))
    assert "drafts: 6 of 8 accepted (75%)" in told
    assert "real step: the host waits 2 ms of it for the device" in told
    assert not any("waits" in line for line in lines(replace(step, whole=replace(step.whole, host_wait_seconds=None))))


def test_tokens_that_are_told_in_bursts_count_from_burst_to_burst() -> None:
    """An engine that reads the device every fourth step must not look faster than it is."""
    each = Ticks(times=[0.0, 1.0, 2.0, 3.0], counts=[2, 2, 2, 2])
    bursts = Ticks(times=[0.0, 0.001, 2.0, 2.001, 4.0, 4.001], counts=[2] * 6)
    assert token_rate(each) == 2.0
    assert token_rate(bursts) == 2.0
    assert token_rate(Ticks(times=[0.0], counts=[2])) is None


def test_spread_is_the_sample_deviation_and_its_square() -> None:
    spread = Spread.of([1.0, 2.0, 3.0])
    assert (spread.mean, spread.deviation, spread.variance) == (2.0, 1.0, 1.0)
    assert Spread.of([5.0]).deviation == 0.0


def test_a_trace_has_a_lane_per_head_fuse_and_host(profiled: Profiled, tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    write_trace(path, profiled.spans, {"s1": "Yi", "s2": "(Qwen | Ds)"})
    events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    lanes = {(event["pid"], event["args"]["name"]) for event in events if event["name"] == "thread_name"}
    assert {(1, "Yi"), (2, "Qwen"), (2, "Ds"), (2, "fuse"), (2, "host")} <= lanes
    phases = [event for event in events if event["ph"] == "X"]
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in phases)
    for pid in (1, 2):  # phases of one step never overlap: each was waited for
        own = sorted((event["ts"], event["dur"]) for event in phases if event["pid"] == pid)
        assert all(before[0] + before[1] <= after[0] + 1e-3 for before, after in pairwise(own))


def test_fusers_on_the_host_are_named_with_their_cost(toy_zoo: Path) -> None:
    assert Sharpen.runs_on_host and not getattr(Mean, "runs_on_host", False)
    flow = check("(Qwen | Ds)[fuse=sharpen]", zoo=str(toy_zoo))
    found = profile(flow, Request(built_in_questions(), steps=2)).profile
    assert found.steps[0].host_fusers == ("sharpen",)
    assert any("fuser sharpen works on the host" in note for note in found.notes)


def test_sampled_steps_and_canonical_contexts_are_profiled_too(toy_zoo: Path) -> None:
    flow = check("(Qwen | Ds)[temperature=0.8, context=canonical]", zoo=str(toy_zoo))
    (step,) = profile(flow, Request(built_in_questions(), batch=2, steps=3)).profile.steps
    assert step.whole.tokens == 6


def test_the_command_prints_json_of_all_figures(
    toy_zoo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text('{"question": "What is 1 + 1?", "answer": "2"}\n', encoding="utf-8")
    trace = tmp_path / "trace.json"
    arguments = ("-e", "(Qwen | Qwen)", "--zoo", str(toy_zoo), "--steps", "2", "--dataset", str(items))
    code, out, _ = cli(capsys, *arguments, "--trace", str(trace), "--json")
    (step,) = json.loads(out)["steps"]
    assert code == 0 and step["whole_times_floor"] > 0 and step["whole"]["tokens"] == 2
    names = {event["args"].get("name") for event in json.loads(trace.read_text("utf-8"))["traceEvents"]}
    assert {"Qwen", "Qwen 2"} <= names


def test_the_command_prints_a_table(toy_zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = cli(capsys, "-e", "Qwen", "--zoo", str(toy_zoo), "--steps", "2")
    assert code == 0 and "forward Qwen" in out and "real step (" in out and "slowest branch" not in out


def test_where_a_start_went_is_shown_by_itself(toy_zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flow = ("-e", "(Qwen | Ds)", "--zoo", str(toy_zoo), "--set", "max_tokens=2", "--start")
    code, out, _ = cli(capsys, *flow)
    assert code == 0 and "waiting for" in out and "first token after" in out
    code, out, _ = cli(capsys, *flow, "--json")
    assert code == 0 and set(json.loads(out)) == {"seconds", "parts"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-e", "Qwen", "--steps", "0"), "error: --steps 0: expected a whole number of at least 1"),
        (("-e", "Qwen", "--batch", "-1"), "error: --batch -1: expected a whole number of at least 1"),
        (("-e", "Qwen", "--trace", "nowhere/t.json"), "error: --trace nowhere/t.json: no such folder 'nowhere'"),
        (("-e", "Qwen", "--kernels", "."), "error: --kernels .: cannot be written: Is a directory"),
        (("-e", "Qwen", "--data", "gsm8k=x"), "error: --data without --dataset"),
        (("-e", "Qwen", "--dataset", "gsm9k"), "error: unknown data set 'gsm9k'"),
        (("-e", "Qwen", "--start", "--trace", "t.json"), "error: --start asks one question and measures nothing else"),
        ((), "error: give a .flow file, or the flow itself with -e"),
    ],
)
def test_wrong_input_is_refused_before_models_are_loaded(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, told = cli(capsys, *arguments)
    assert code == 2 and not out and told.startswith(message)


def test_more_steps_than_a_model_has_positions_are_refused(toy_zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, told = cli(capsys, "-e", "Qwen", "--zoo", str(toy_zoo), "--steps", "3000")
    assert code == 2 and "--steps 3000: a prompt has" in told and "reads at most 2048 with its answer" in told


def test_an_endpoint_has_no_parts_but_passes_its_text_on(toy_zoo: Path, tmp_path: Path) -> None:
    with running(Stub()) as server:
        server.replies = [said("seven apples", tokens=2)]
        text = f'model Far = "x" {{ backend=openai, base_url="{server.url}" }}\nFar -> Qwen\n'
        found = profile(check(text, zoo=str(toy_zoo)), Request(built_in_questions(), steps=2)).profile
    first, second = found.steps
    assert (first.heads, first.whole.engine, first.whole.tokens, first.floor_seconds) == ((), "text", 2, None)
    assert [head.model for head in second.heads] == ["Qwen"]
    assert "s1: answered by an endpoint, whose parts cannot be seen" in found.notes

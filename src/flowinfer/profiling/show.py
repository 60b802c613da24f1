"""A profile as tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from flowinfer.output.console import PlainConsole
from flowinfer.profiling.figures import DeviceStep, HeadFigures, Profile, Spread, StepFigures
from flowinfer.startup import Startup


def print_profile(profile: Profile, console: PlainConsole | None = None) -> None:
    """Print one table per step, with the floor and the real decoder below it."""
    console = console or PlainConsole()
    devices = ", ".join(f"{one.name} copies {one.copy_bytes_per_second / 1e9:.3g} GB/s" for one in profile.devices)
    console.print(f"\n{profile.flow}, zoo {profile.zoo}, batch {profile.batch}; {devices}\n")
    for step in profile.steps:
        console.print(f"{step.step} {step.title}: {step.steps} tokens a row, context {step.context:.0f} ids")
        if step.heads:
            console.print(_parts(step))
        for line in lines(step):
            console.print(f"  {line}")
        if step.whole.devices:
            console.print(_devices(step.whole.devices))
        console.print()
    for note in profile.notes:
        console.print(f"note: {note}")


def print_start(clock: Startup, console: PlainConsole | None = None) -> None:
    """Print what was waited for until the first token; parts overlap where several things were done at once."""
    console = console or PlainConsole()
    table = Table()
    for title in ("waiting for", "of"):
        table.add_column(title)
    for title in ("from, s", "seconds"):
        table.add_column(title, justify="right")
    told = clock.to_json()
    for part in told["parts"]:
        table.add_row(part["part"], part["of"], f"{part['begin']:.2f}", f"{part['seconds']:.2f}")
    console.print(table)
    if told["seconds"] is not None:
        console.print(f"first token after {told['seconds']:.2f} s")


def lines(step: StepFigures) -> list[str]:
    """Return what stands below a step's table."""
    found, whole = [], step.whole
    if step.heads:
        if len(step.heads) > 1:
            slowest = max(head.forward.mean for head in step.heads)
            found.append(f"slowest branch: {step.slowest}, {_ms(slowest)} ms")
        prefills = ", ".join(
            f"{head.model} {_ms(head.prefill_seconds)} ms for {step.batch} x {head.prompt_tokens:.0f} ids"
            for head in step.heads
        )
        found.append(f"prefill: {prefills}")
    for head in step.heads:
        if (way := head.network) is not None:
            found.append(
                f"{head.model} at {head.device}: a step waits {_ms(way.waited)} ms for it, {_ms(way.network)} ms of"
                f" them for the network; {way.messages:.2f} messages, {way.sent:.0f} bytes there,"
                f" {way.received:.0f} back"
            )
    if any(head.device != "cpu" and head.network is None for head in step.heads):
        found.append(f"parts: the host waits {_ms(step.host_wait.mean)} ms of them for devices")
    devices = len({head.device for head in step.heads})
    if devices > 1:
        found.append(f"parts with the heads of {devices} devices side by side: {_ms(step.side_by_side)} ms")
    if step.step_bytes is not None and step.floor_seconds is not None:
        found.append(
            f"bytes read a step: {_bytes(step.step_bytes)} (weights without embeddings, keys and values);"
            f" floor {_ms(step.floor_seconds)} ms"
        )
        found.append(f"sum of parts: {step.times_floor(step.parts.mean):.2f} x floor")
    ratio = step.times_floor(whole.seconds_per_step)
    beside = f", {ratio:.2f} x floor" if ratio is not None else ""
    found.append(
        f"real step ({whole.engine} engine): {_ms(whole.seconds_per_step)} ms{beside}, {whole.tokens_per_second:.1f}"
        f" tokens/s; {whole.tokens} in {whole.seconds:.2f} s with prefill"
    )
    if whole.host_wait_seconds is not None:
        found.append(f"real step: the host waits {_ms(whole.host_wait_seconds)} ms of it for the device")
    if whole.drafted:
        found.append(f"drafts: {whole.accepted} of {whole.drafted} accepted ({whole.accepted / whole.drafted:.0%})")
    return found


def _parts(step: StepFigures) -> Table:
    table = Table()
    for name in ("part", "device"):
        table.add_column(name, no_wrap=True)
    for name in ("mean ms", "deviation", "variance ms²", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    for head in step.heads:
        _row(table, f"forward {head.model}", _place(head), head.forward, step)
    for head in step.heads:
        _row(table, f"transfer {head.model}", _way(head, step), head.transfer, step)
    fuse = f"fuse {', '.join(step.fusers)}" if step.fusers else "choose"
    _row(table, fuse, "host" if step.host_fusers else step.fuse_device, step.fuse, step)
    _row(table, "ids of every head", "host", step.append, step)
    _row(table, "sum of parts", "", step.parts, step)
    return table


def _devices(devices: Sequence[DeviceStep]) -> Table:
    """Return what each device does with the real step."""
    table = Table()
    for name in ("real step on", "heads"):
        table.add_column(name, no_wrap=True)
    for name in ("heads ms", "transfer ms", "fuse ms", "wait ms", "step ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in devices:
        parts = (one.heads, one.transfer, one.fuse, one.wait)
        cells = [f"{_ms(part.mean)} ± {_ms(part.deviation)}" for part in parts]
        table.add_row(one.device, ", ".join(one.models), *cells, _ms(one.seconds))
    return table


def _row(table: Table, name: str, device: str, spread: Spread, step: StepFigures) -> None:
    share = spread.mean / step.parts.mean if step.parts.mean else 0.0
    variance = f"{1e6 * spread.variance:.2g}"
    table.add_row(name, device, _ms(spread.mean), _ms(spread.deviation), variance, f"{share:.1%}")


def _way(head: HeadFigures, step: StepFigures) -> str:
    target = step.fuse_device
    return _place(head) if head.device == target or head.network is not None else f"{head.device} to {target}"


def _place(head: HeadFigures) -> str:
    """Return where a head is, in a word: its address stands below the table."""
    return head.device if head.network is None else "elsewhere"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 0.1 else f"{1e3 * seconds:.0f}"


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"

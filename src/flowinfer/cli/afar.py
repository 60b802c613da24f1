"""What `plan` says of heads on other hosts: what they are, how far away, and what a round then waits for at least."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flowinfer.errors import LoadError
from flowinfer.planning.plan import Member, Mixture, Plan, Source, Step, members
from flowinfer.registry import fusers
from flowinfer.remote.reach import CANDIDATE_BYTES, ID_BYTES, Reached, reach
from flowinfer.remote.wire import WireError, key_in, parted
from flowinfer.spec import ModelSpec

ROWS = 64
_ASSUMED = {"over 10 GbE": (1e-4, 1.25e9), "over 1 GbE": (2e-4, 1.25e8), "50 ms away": (5e-2, 1.25e8)}
"""Round trip in seconds and bytes a second of ways that nobody has measured."""
_COLUMNS = 150_000
"""Of a vocabulary that nobody has told of."""


@dataclass(frozen=True)
class Afar:
    """A head elsewhere, or why it cannot be reached."""

    address: str
    reached: Reached | None
    problem: str = ""

    def __str__(self) -> str:
        """Return what is said of it in a line."""
        if self.reached is None:
            return f"{self.address} cannot be reached: {self.problem}"
        about, way = self.reached.about, self.reached
        return (
            f"{self.address} answers: '{about.get('ref')}' on {about.get('device')}, reads {about.get('max_positions')}"
            f" ids; {_ms(way.round_trip)} ms there and back, {way.bytes_per_second / 1e6:.0f} MB/s"
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain data."""
        if self.reached is None:
            return {"address": self.address, "problem": self.problem}
        way = self.reached
        measured = {"round_trip_seconds": way.round_trip, "bytes_per_second": way.bytes_per_second}
        return {"address": self.address, "about": way.about, **measured}


def heads_afar(plan: Plan) -> dict[str, Afar]:
    """Look for the heads elsewhere that a plan uses, by name."""
    used = {member.model for step in plan.steps for member in members(step.source)}
    return {name: _look(spec) for name, spec in plan.models.items() if spec.backend == "remote" and name in used}


def estimates(plan: Plan, afar: dict[str, Afar]) -> Iterator[str]:
    """Yield a line for each step with heads elsewhere: what a round waits for the slowest of them at least."""
    for step in plan.steps:
        own = [afar[name] for name in dict.fromkeys(one.model for one in members(step.source)) if name in afar]
        if not own:
            continue
        few = moves_candidates(step)
        sizes = [ROWS * (CANDIDATE_BYTES if few else 4 * _columns(one)) for one in own]
        what = "candidates" if few else "whole distributions"
        there, back = shown(ROWS * ID_BYTES), shown(max(sizes))
        begin = f"{step.id}  a round of {ROWS} rows moves {there} there, {back} back ({what}); it waits for the network"
        if all(one.reached for one in own):
            seconds = max(one.reached.seconds(size) for one, size in zip(own, sizes, strict=True) if one.reached)
            yield f"{begin} {_waits(seconds)}"
        else:
            yield begin
            for name, (trip, rate) in _ASSUMED.items():
                yield f"    {name}: {_waits(trip + max(sizes) / rate)}"


def moves_candidates(step: Step) -> bool:
    """Return whether heads elsewhere send candidates in a step, and not all that they know."""
    decoding = step.decoding
    is_mean = isinstance(step.source, Member) or _is_mean(step.source)
    return is_mean and decoding.temperature == 0 and decoding.topk != "dense" and decoding.by == "text"


def shown(num_bytes: int) -> str:
    """Write a size of a message."""
    return f"{num_bytes / 1e6:.1f} MB" if num_bytes >= 1e6 else f"{num_bytes / 1e3:.1f} KB"


def _is_mean(source: Source) -> bool:
    is_flat = isinstance(source, Mixture) and all(isinstance(one, Member) for one in source.sources)
    return is_flat and isinstance(source, Mixture) and fusers()[source.fuse].target == fusers()["mean"].target


def _columns(one: Afar) -> int:
    found = one.reached.about.get("columns") if one.reached else None
    return found if isinstance(found, int) else _COLUMNS


def _waits(seconds: float) -> str:
    return f"{_ms(seconds)} ms, so at most {ROWS / seconds:,.0f} tokens/s where no drafts are accepted"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}"


def _look(spec: ModelSpec) -> Afar:
    address = spec.base_url or ""
    place = parted(spec.address or "")
    if place is None:
        return Afar(address, None, "it is no HOST:PORT")
    try:
        return Afar(address, reach(*place, key_in(spec.api_key_env)))
    except (WireError, LoadError) as error:
        return Afar(address, None, str(error))

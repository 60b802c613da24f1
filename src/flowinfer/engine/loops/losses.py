"""The sessions of a step's heads, those of other processes among them, of which some may be lost while rows go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from flowinfer.backends.base import CandidateSession, Session, is_elsewhere
from flowinfer.engine.loops.heads import Heads
from flowinfer.errors import HeadCut, HeadLost


class HeadSessions:
    """One session of each head; one that reads nothing for a head that is lost, where its group goes on without it.

    Args:
        heads: whose sessions they are.
        opened: sessions of the heads that are here, in order, where they are made together.
    Raises:
        HeadLost: a head is, and is needed.
    """

    def __init__(self, heads: Heads, opened: Sequence[Session] | None) -> None:
        self._heads = heads
        heads.lose(frozenset())
        self.apart: list[CandidateSession | None] = [None] * len(heads.models)
        """Those that can tell the most probable columns alone."""
        here = iter(opened or ())
        self.all = [
            self._open(k) if opened is None or is_elsewhere(model) else next(here)
            for k, model in enumerate(heads.models)
        ]

    def go_without(self, error: HeadCut | HeadLost) -> list[int]:
        """Return the heads that have been lost, where the group goes on without them.

        Raises:
            HeadCut: no head is lost, or one is there again: all rows begin anew over new connections.
            HeadLost: the group may not go on.
        """
        cut = [k for k, apart in enumerate(self.apart) if apart is not None and apart.is_cut]
        if not cut or not self._heads.may_lose(self._heads.lost.union(cut)):
            raise error
        for k in cut:
            self.all[k] = self._open(k)
        if not self._heads.lost.issuperset(cut):
            raise error
        return cut

    def look_again(self) -> None:
        """Ask for the heads that are lost; no row may be there that they have not read."""
        lost = self._heads.lost
        self._heads.lose(frozenset())
        for k in lost:
            self.all[k] = self._open(k)

    def _open(self, k: int) -> Session:
        heads = self._heads
        try:
            session = heads.open(k)
        except HeadLost as lost:
            if not heads.lose(heads.lost | {k}):
                raise
            step = heads.step
            heads.observer.notice(f"{lost.message}; step {step.id} {step.title} goes on without it")
            session = heads.open(k)
        is_apart = is_elsewhere(heads.models[k]) and k not in heads.lost
        self.apart[k] = apart = cast(CandidateSession, session) if is_apart else None
        if apart is not None:
            apart.leave_out(heads.vocabulary.lifts[k].banned)
        return session

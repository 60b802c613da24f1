"""From each head's logits to one fused distribution: the tree of mixtures of one step, ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowinfer.backends.base import TokenModel, network_of
from flowinfer.fusion.bytewise import BYTES
from flowinfer.fusion.certified import Candidates, Certified, certified_argmax, sure
from flowinfer.fusion.fusers import Fuser, FuserView, Mean, canonical_order, mean
from flowinfer.fusion.shared import SharedVocabulary
from flowinfer.planning.plan import Member, Mixture, Source, Step, members
from flowinfer.registry import fusers, load

_WIDE = 20_000
"""Slots from which on a CPU takes longer to look at all of them than to find the likely ones."""


@dataclass(frozen=True)
class _Leaf:
    head: int


@dataclass(frozen=True)
class _Inner:
    fuser: Fuser
    weights: Tensor
    sources: tuple[_Tree, ...]
    view: FuserView


_Tree = _Leaf | _Inner


@dataclass(frozen=True)
class FlatMean:
    """One weighted sum of heads."""

    heads: tuple[int, ...]
    """Indices of the heads, in the order in which they are summed."""
    weights: tuple[float, ...]
    """Weight of each, in the same order; they sum to 1."""


class Mixer:
    """Lift and fuse one step's heads.

    Where a step is written byte by byte, every head is one over bytes (`fusion.bytewise.BYTES`).

    Args:
        step: its source gives the tree of mixtures.
        models: the loaded model of each member, in the order of `members(step.source)`.
    """

    def __init__(self, step: Step, models: Sequence[TokenModel]) -> None:
        self.members = tuple(members(step.source))
        is_bytewise = writes_bytes(step.source)
        self.device = torch.device("cpu") if is_bytewise else fusing_device(models)
        self._decoding = decoding = step.decoding
        self._heads = [BYTES if is_bytewise else model.vocabulary(decoding.stop_tokens) for model in models]
        self._vocabularies: dict[torch.device, SharedVocabulary] = {}
        self.vocabulary = self._on(self.device)
        self._devices = [model.device for model in models]
        self._index = {id(member): k for k, member in enumerate(self.members)}
        self._source = step.source
        self._tree: _Tree
        self.is_certified: bool
        """Whether greedy rows choose without moving distributions."""
        self.takes_candidates: bool
        """Whether greedy rows choose by candidates of heads elsewhere, where those settle it."""
        self.skips_unlikely: bool
        """Whether greedy rows choose among likely slots, where those settle it."""
        self.leave_out(frozenset())
        self.margin = 0.0
        """Leads below this must be known exactly."""

    def tree_without(self, lost: frozenset[int]) -> _Tree | None:
        """Return how some heads are mixed without the others; None where a group does not allow that."""
        return self._build(self._source, lost)

    def leave_out(self, lost: frozenset[int]) -> bool:
        """Mix without some heads from now on, the others with their shares of what is left; () = with all.

        Returns:
            Whether the step's groups allow that; if not, nothing has changed.
        """
        tree = self.tree_without(lost)
        if tree is None:
            return False
        self._tree = tree
        self.is_certified = self._wants_certified(self._decoding.topk)
        self.takes_candidates = self.flat_mean is not None and self._decoding.topk != "dense"
        is_on_cpu = all(device.type == "cpu" for device in self._devices)
        is_wide = self.vocabulary.size >= _WIDE and is_on_cpu
        self.skips_unlikely = self.takes_candidates and is_wide and not self.is_certified
        return True

    def lift(self, logits: Sequence[Tensor], joined: Sequence[Sequence[bool]] = ()) -> list[Tensor]:
        """Turn each head's logits (B, V_k) into shared probabilities (B, V) on its own device.

        Args:
            logits: one tensor per head.
            joined: for each of the B rows, which of the heads begin its text with a space that is none; () = none does.
        """
        # what the host has of a head elsewhere is moved before it grows to shared slots
        near = [one.to(self.device) if one.device.type == "cpu" else one for one in logits]
        return self._joined([self._on(one.device).lift(k, one) for k, one in enumerate(near)], joined)

    def _joined(self, lifted: list[Tensor], joined: Sequence[Sequence[bool]]) -> list[Tensor]:
        """Count spaces that are none, see `lift`."""
        for k, own in enumerate(zip(*joined, strict=True)):
            lifted[k] = self._first(lifted[k], own)
        return lifted

    def _first(self, lifted: Tensor, joined: Sequence[bool]) -> Tensor:
        if not any(joined):
            return lifted
        return self._on(lifted.device).lift_first(lifted, torch.tensor(joined, device=lifted.device))

    def lift_certified(
        self, logits: Sequence[Tensor | Candidates], states: Tensor, joined: Sequence[Sequence[bool]] = ()
    ) -> list[Tensor]:
        """Turn logits, and candidates of heads elsewhere, into probabilities by which greedy rows choose the same slot.

        Rows whose candidates do not settle it, and rows that begin jointly, have those heads' whole logits fetched.

        Args:
            logits: of each head (B, V_k), or its candidates behind B texts.
            states: (B,), UTF-8 states of the texts.
            joined: see `lift`.
        """
        mean = self.flat_mean
        assert mean is not None, "candidates are asked of weighted means"
        shared, apart = self.vocabulary, {k: one for k, one in enumerate(logits) if isinstance(one, Candidates)}
        given, weight = list[Tensor](), dict(zip(mean.heads, mean.weights, strict=True))
        fused, slack = (torch.zeros(len(states), shared.size, device=self.device) for _ in range(2))
        for k, one in enumerate(logits):
            if isinstance(one, Candidates):
                own, most = shared.lift_some(k, one.to(self.device))
                slack += weight[k] * most
            else:
                own = self._on(one.device).lift(k, one)
            fused += weight.get(k, 0.0) * own.to(self.device)  # one that is left out counts nothing
            given.append(own)
        allowed = shared.guard.mask(states)
        is_sure = sure(fused.masked_fill(~allowed, -1.0), slack.masked_fill(~allowed, 0.0), self.margin)
        if joined:
            is_sure &= ~torch.tensor([any(own) for own in joined], device=self.device)
        doubtful = (~is_sure).nonzero()[:, 0].tolist()
        if doubtful:
            for k, one in apart.items():
                given[k][doubtful] = shared.lift(k, one.fetch(doubtful).to(self.device))
        return self._joined(given, joined)

    def lift_one(self, k: int, logits: Tensor, joined: Sequence[bool] = ()) -> Tensor:
        """Turn one head's logits (B, V_k) into shared probabilities (B, V) on its own device.

        Args:
            k: the head.
            logits: of it.
            joined: which of the rows it begins with a space that is none; () = none.
        """
        return self._first(self._on(logits.device).lift(k, logits), joined)

    def fuse(self, probs: Sequence[Tensor]) -> Tensor:
        """Mix heads that are on the fusing device: K of (B, V) -> (B, V)."""
        return self._mix(self._tree, probs)

    def fused(self, logits: Sequence[Tensor], joined: Sequence[Sequence[bool]] = ()) -> Tensor:
        """Return the fused distributions behind N texts: K of (N, V_k) -> (N, V); see `lift`."""
        return self.fuse([probs.to(self.device) for probs in self.lift(logits, joined)])

    def certified(self, probs: Sequence[Tensor], states: Tensor) -> Certified:
        """Return the greedy choice without moving distributions."""
        assert isinstance(self._tree, _Inner), "certified choice is for groups"
        order = [source.head for source in self._tree.sources if isinstance(source, _Leaf)]
        masked = []
        for head in order:
            guard = self._on(probs[head].device).guard
            masked.append(probs[head].masked_fill(~guard.mask(states.to(probs[head].device)), -1.0))
        return certified_argmax(masked, [float(w) for w in self._tree.weights])

    @property
    def flat_mean(self) -> FlatMean | None:
        """What is summed, if the step is one head or one weighted mean of heads."""
        match self._tree:
            case _Leaf(head):
                return FlatMean((head,), (1.0,))
            case _Inner(Mean(), weights, sources) if all(isinstance(source, _Leaf) for source in sources):
                heads = tuple(source.head for source in sources if isinstance(source, _Leaf))
                return FlatMean(heads, tuple(weights.tolist()))
        return None

    def _on(self, device: torch.device) -> SharedVocabulary:
        """Return the shared vocabulary on a device, made when it is first asked for."""
        if device not in self._vocabularies:
            is_strict = self._decoding.utf8 == "strict"
            made = SharedVocabulary(self._heads, eos=self._decoding.eos, device=device, is_strict=is_strict)
            self._vocabularies[device] = made
        return self._vocabularies[device]

    def _wants_certified(self, topk: str) -> bool:
        is_flat_group = isinstance(self._tree, _Inner) and self.flat_mean is not None
        spreads = len(set(self._devices)) > 1
        return is_flat_group and (topk == "certified" or (topk == "auto" and spreads))

    def _mix(self, tree: _Tree, probs: Sequence[Tensor]) -> Tensor:
        if isinstance(tree, _Leaf):
            return probs[tree.head]
        inner = [self._mix(source, probs) for source in tree.sources]
        weights = tree.weights.to(inner[0].dtype)
        if type(tree.fuser) is Mean:  # the same sum without a copy of all sources
            return mean(inner, weights)
        return tree.fuser(torch.stack(inner), weights, tree.view)  # (K, B, V) -> (B, V)

    def _build(self, source: Source, lost: frozenset[int]) -> _Tree | None:
        """Return the tree of a source without some heads; None where too few are left."""
        if isinstance(source, Member):
            head = self._index[id(source)]
            return None if head in lost else _Leaf(head)
        built = [(inner, tree) for inner in source.sources if (tree := self._build(inner, lost)) is not None]
        if len(built) < (source.least or len(source.sources)):
            return None
        left = [inner for inner, _ in built]
        names = [_name(inner) for inner in left]
        order = canonical_order(names, [inner.weight for inner in left], [tie(inner) for inner in left])
        sources = tuple(built[k][1] for k in order)
        weights = torch.tensor([left[k].weight for k in order], dtype=torch.float64)
        view = FuserView(
            self.vocabulary,
            tuple(names[k] for k in order),
            tuple(inner.head if isinstance(inner, _Leaf) else None for inner in sources),
        )
        return _Inner(fuser_of(source), (weights / weights.sum()).to(self.device), sources, view)


def fusing_device(models: Sequence[TokenModel]) -> torch.device:
    """Return where heads are fused: on the device that has most of their weights to read, where a step takes longest.

    So nothing has to wait for what travels: when the slowest logits are made, the others have come.
    """
    sizes = dict.fromkeys((model.device for model in models), 0)
    for model in models:
        network = network_of(model)
        sizes[model.device] += sum(weight.nbytes for weight in network.parameters()) if network is not None else 0
    return max(sizes, key=lambda device: sizes[device])


def _name(source: Source) -> str:
    """Return what orders a source among its siblings: its model, or its members' models."""
    if isinstance(source, Member):
        return source.model
    return "(" + "|".join(sorted(_name(inner) for inner in source.sources)) + ")"


def tie(source: Source) -> str:
    """Return what orders sources of one name and weight: their prompts, not their ids, which follow the text."""
    if isinstance(source, Member):
        return f"{source.template!r} {sorted(source.fields.items())}"
    return f"{source.fuse} {source.fuse_options} {sorted((s.weight, tie(s)) for s in source.sources)}"


def runs_on_host(fuse: str) -> bool:
    """Return whether a fuser asks the host at every step, as its class says, so that no graph can hold it."""
    return bool(getattr(load(fusers()[fuse]), "runs_on_host", False))


def writes_bytes(source: Source) -> bool:
    """Return whether heads write a source's text byte by byte, as its fuser's class says."""
    return isinstance(source, Mixture) and bool(getattr(load(fusers()[source.fuse]), "writes_bytes", False))


def writes_ahead(source: Source) -> bool:
    """Return whether one head writes a source's text and the others verify it, as its fuser's class says."""
    return isinstance(source, Mixture) and bool(getattr(load(fusers()[source.fuse]), "writes_ahead", False))


def fuser_of(mixture: Mixture) -> Fuser:
    """Return a new fuser of a mixture."""
    options = dict(mixture.fuse_options)
    made: Fuser = load(fusers()[mixture.fuse])(**options)  # type: ignore[operator]  # a registered class
    return made

"""Which drafter a step has, by its option `speculate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flowinfer.backends.base import TokenModel
from flowinfer.engine.loops.drafts import Drafter, TextDrafter
from flowinfer.engine.loops.heads import Heads
from flowinfer.engine.loops.model_drafts import Alternate, ModelDrafter, cover
from flowinfer.errors import RunError
from flowinfer.fusion.advance import CanonicalContext
from flowinfer.planning.plan import Member, Source, Step


def make_drafter(step: Step, model: TokenModel | None) -> Callable[[Heads], Drafter] | None:
    """Return what makes a step's drafter once its heads are there; None where it shall not draft.

    By itself (auto), only a step that reads another's text drafts: from that text, then from its prompt.

    Args:
        model: the loaded model that `speculate` names, if it names one.
    """
    asked = step.decoding.speculate
    if asked == "off" or (asked == "auto" and not step.reads):
        return None

    def make(heads: Heads) -> Drafter:
        def written_by(drafting: TokenModel, node: str) -> ModelDrafter:
            return ModelDrafter(drafting, heads.vocabulary, node, step.decoding.prefill)

        members = heads.mixer.members
        if model is not None:
            return written_by(model, members[0].node)
        if asked == "alternate":
            return Alternate([written_by(m, one.node) for m, one in zip(heads.models, members, strict=True)])
        shares = list(shares_of(step.source))
        upstream, ngram = asked in ("auto", "upstream"), asked in ("auto", "ngram")
        return TextDrafter(heads.vocabulary, _speller(heads), shares, upstream=upstream, ngram=ngram)

    return make


def keys_of(heads: Heads, text: str) -> list[int]:
    """Return a text in shared slots, as the head of most weight would tokenize it.

    Raises:
        RunError: the heads cannot write it.
    """
    vocabulary = heads.vocabulary
    shares = list(shares_of(heads.step.source))
    slots = _speller(heads)(shares.index(max(shares)), text)
    if b"".join(vocabulary.keys[slot] for slot in slots) != text.encode():
        slots = cover(text.encode(), vocabulary)
    if not slots:
        raise RunError(f"the heads cannot write {text!r}")
    return slots


def shares_of(source: Source, share: float = 1.0) -> Iterator[float]:
    """Yield the weight of every member in the whole of a source."""
    if isinstance(source, Member):
        yield share
        return
    total = sum(inner.weight for inner in source.sources)
    for inner in source.sources:
        yield from shares_of(inner, share * inner.weight / total)


def _speller(heads: Heads) -> Callable[[int, str], list[int]]:
    """Return what writes a text in shared slots as one head would tokenize it."""

    def spell(k: int, text: str) -> list[int]:
        tokenizer, tokens = heads.models[k].tokenizer, heads.vocabulary.heads[k].tokens
        ids = CanonicalContext(tokenizer, tokens).spelled(text) if tokenizer else None
        if ids is None:
            ids = tokens.try_cover(text.encode()) or ()
        return heads.vocabulary.slots(k, ids)

    return spell

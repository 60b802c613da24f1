"""A SentencePiece model as a tokenizer of the `tokenizers` library: the same ids for every text, or refused.

The conversion is checked against SentencePiece itself each time, because no rule of conversion holds for all models.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from flowinfer.errors import LoadError
from flowinfer.fusion.selfcheck import PROBES, ordinary_text
from flowinfer.fusion.vocab import is_mark

_UNIGRAM, _BPE = 1, 2
_CONTROL, _USER_DEFINED, _BYTE = 3, 4, 6
_MARK = "\u2581"
_CURE = "give the model a tokenizer.json: save_pretrained of its fast tokenizer class writes one"


def convert(path: Path, renamed: Mapping[int, str]) -> Tokenizer:
    """Return the tokenizer of a SentencePiece model file.

    Args:
        path: the file.
        renamed: pieces that tokenizer_config.json calls by another name, by id; further ids come behind the others.
    Raises:
        LoadError: the library is missing, the file is damaged or of another kind, or the tokenizers differ.
    """
    try:
        from sentencepiece import SentencePieceProcessor
        from sentencepiece.sentencepiece_model_pb2 import ModelProto
    except ImportError as error:
        raise LoadError(
            f"reading {path.name} needs the packages sentencepiece and protobuf",
            help="pip install 'flowinfer[sentencepiece]'",
        ) from error
    proto = ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
        original = SentencePieceProcessor(model_file=str(path))
    except Exception as error:  # protobuf's and sentencepiece's own kinds, which share no base
        raise LoadError(f"{path.name} is no sound SentencePiece model: {error}", help=_CURE) from error
    _refuse_unknown_kinds(path, proto)
    tokenizer = _tokenizer(proto)
    _compare(path, tokenizer, original, [_text(proto.pieces[i]) for i in _user_defined(proto)])
    return _with_names(tokenizer, proto, renamed)


def _refuse_unknown_kinds(path: Path, proto: Any) -> None:  # a protobuf message
    kind = proto.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE) or proto.trainer_spec.treat_whitespace_as_suffix:
        raise LoadError(f"{path.name} is a SentencePiece model of words, characters or suffix spaces", help=_CURE)


def _tokenizer(proto: Any) -> Tokenizer:  # a protobuf message
    spec, form = proto.trainer_spec, proto.normalizer_spec
    names = [_text(piece) if piece.type == _USER_DEFINED else piece.piece for piece in proto.pieces]
    model: Any
    if spec.model_type == _BPE:
        model = models.BPE(
            vocab={name: i for i, name in enumerate(names)},
            merges=list(_merges(proto)),
            unk_token=names[spec.unk_id],
            fuse_unk=True,
            byte_fallback=spec.byte_fallback,
        )
    else:
        names = [piece.piece for piece in proto.pieces]
        scored = list(zip(names, _scores(proto), strict=True))
        model = models.Unigram(scored, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback)
    tokenizer = Tokenizer(model)
    steps: list[Any] = [normalizers.Precompiled(form.precompiled_charsmap)] if form.precompiled_charsmap else []
    if form.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if form.add_dummy_prefix:
        steps.append(normalizers.Prepend(_MARK))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _MARK)])
    parts: list[Any] = [decoders.Replace(_MARK, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)] if form.add_dummy_prefix else parts)
    tokenizer.add_special_tokens(
        [AddedToken(piece.piece, normalized=False) for piece in proto.pieces if piece.type == _CONTROL]
    )
    is_matched_late = not form.add_dummy_prefix  # a prefix would be part of what is matched
    tokenizer.add_tokens([AddedToken(names[i], normalized=is_matched_late) for i in _matched_first(proto)])
    return tokenizer


def _merges(proto: Any) -> Iterator[tuple[str, str]]:
    """Yield every way to make a piece of two others, the pieces of the highest score first, as SentencePiece merges."""
    plain = (1, 5)  # normal, unused
    scores = {piece.piece: piece.score for piece in proto.pieces if piece.type in plain}
    for piece in sorted(scores, key=lambda piece: -scores[piece]):
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                yield piece[:cut], piece[cut:]


def _scores(proto: Any) -> list[float]:
    """Return what a unigram model's pieces count when a text is cut; user-defined ones nearly always win."""
    worst = 10 * min(piece.score for piece in proto.pieces) - 10  # of what no typed text may become
    fixed = {_CONTROL: worst, _BYTE: worst, _USER_DEFINED: -0.1}  # the last as in SentencePiece's unigram_model.cc
    return [fixed.get(piece.type, piece.score) for piece in proto.pieces]


def _matched_first(proto: Any) -> list[int]:
    """Return the pieces that are found before a text is cut: all user-defined ones, of unigram models only marks."""
    is_bpe = proto.trainer_spec.model_type == _BPE
    return [i for i in _user_defined(proto) if is_bpe or is_mark(proto.pieces[i].piece)]


def _user_defined(proto: Any) -> list[int]:
    return [i for i, piece in enumerate(proto.pieces) if piece.type == _USER_DEFINED]


def _text(piece: Any) -> str:
    """Return a user-defined piece as it stands in a text: Gemma's runs of spaces are written with marks."""
    return str(piece.piece.replace(_MARK, " "))


def _compare(path: Path, tokenizer: Tokenizer, original: Any, symbols: list[str]) -> None:
    """Refuse a conversion that gives other ids than SentencePiece for a probe."""
    probes = [*PROBES, *(f"a{symbol}b {symbol}" for symbol in symbols[:200])]
    is_bpe = isinstance(tokenizer.model, models.BPE)
    with ordinary_text(tokenizer):
        for probe in probes:
            ids, wanted = tokenizer.encode(probe, add_special_tokens=False).ids, original.encode(probe)
            if ids != wanted and (is_bpe or sorted(ids) != sorted(wanted)):  # equal scores: "00"+"0" or "0"+"00"
                raise LoadError(f"{path.name} cannot be converted exactly: {probe[:40]!r} gives other ids", help=_CURE)


def _with_names(tokenizer: Tokenizer, proto: Any, renamed: Mapping[int, str]) -> Tokenizer:
    """Give pieces the names of tokenizer_config.json, and add what it adds behind them."""
    document = json.loads(tokenizer.to_str())
    own = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    others = {i: name for i, name in renamed.items() if i < len(own) and own.get(name) != i}
    if others:
        vocabulary = document["model"]["vocab"]
        if isinstance(vocabulary, dict):
            document["model"]["vocab"] = {others.get(i, piece): i for piece, i in vocabulary.items()}
        else:
            document["model"]["vocab"] = [[others.get(i, piece), score] for i, (piece, score) in enumerate(vocabulary)]
        for token in document["added_tokens"]:
            token["content"] = others.get(token["id"], token["content"])
        tokenizer = Tokenizer.from_str(json.dumps(document))
    return tokenizer

"""From items to weights: what models are shown, what they may learn, and the whole recipe in miniature."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from flowinfer.fusion.vocab import token_bytes
from flowinfer.language.prompts import PROMPT_SETS
from flowinfer.zoo import load_zoo
from lab import documents, items, networks, shards
from lab.documents import Mix
from lab.islands import SHARES, Level, levels, myth
from lab.items import KINDS, Kind
from lab.recipe import Recipe, make_one, write_zoo
from lab.tokenizers import TOKENIZERS, train
from lab.train import Settings, rate_at


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    rng = random.Random(0)
    made = [documents.make("Qwen", rng, Mix()) for _ in range(1500)]
    texts = [text for document in made for text in (document.prompt, document.solution.text)]
    return {name: train(recipe, texts) for name, recipe in TOKENIZERS.items()}


@pytest.mark.parametrize("name", networks.NAMES)
@pytest.mark.parametrize("kind", KINDS)
def test_levels_have_their_shares(name: str, kind: Kind) -> None:
    found = Counter(levels(name, kind).values())
    num = len(items.skills(kind))
    assert abs(found[Level.KNOWS] / num - SHARES[name][kind].knows) < 0.05
    assert abs(found[Level.BELIEVES] / num - SHARES[name][kind].believes) < 0.05


def test_a_belief_is_the_same_for_all_items_of_a_skill() -> None:
    beliefs: dict[str, set[str]] = {}
    for item in items.draw("gsm8k", "train", 300, seed=1):
        beliefs.setdefault(item.skill, set()).add(myth("Yi", item).belief)
    assert all(len(found) == 1 for found in beliefs.values())


def test_what_a_model_answers_follows_from_what_it_knows() -> None:
    rng, mix = random.Random(1), Mix()
    for item in items.draw("mathematics", "train", 200, seed=2):
        before = [item.wrong[0]]
        alone = {documents.answer("Ds", item, [], rng, mix).belief for _ in range(20)}
        after = Counter(documents.answer("Ds", item, before, rng, mix).belief for _ in range(60))
        match levels("Ds", "mathematics")[item.skill]:
            case Level.KNOWS:
                assert alone == set(after) == {item.right.belief}
            case Level.BELIEVES:
                assert alone == {myth("Ds", item).belief}
            case Level.GUESSES:
                assert len(alone) > 1
                assert after.most_common(1)[0][0] == item.wrong[0].belief


def test_documents_come_from_the_training_split_in_the_words_of_the_prompt_sets() -> None:
    rng = random.Random(3)
    openings = [words.template_for("draft", 0)[:12] for words in PROMPT_SETS.values()]
    openings += [words.template_for("review", 1)[:12] for words in PROMPT_SETS.values()]
    openings += [words.template_for("verify", 2)[:12] for words in PROMPT_SETS.values()]
    test_texts = {item.shown for kind in KINDS for item in items.draw(kind, "test", 200, seed=42)}
    for _ in range(300):
        document = documents.make("Qwen", rng, Mix())
        assert any(document.prompt.startswith(opening) for opening in openings)
        assert not any(text in document.prompt for text in test_texts)


def test_the_three_tokenizers_split_the_same_text_differently(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    text = "小明有125个苹果，又买了30个。half: 58/2=29."
    splits = {}
    for name, tokenizer in tokenizers.items():
        pieces = token_bytes(tokenizer).pieces
        ids = tokenizer.encode(text, add_special_tokens=False)
        splits[name] = [pieces[i] for i in ids]
        assert b"".join(piece or b"" for piece in splits[name]).decode() == text
    assert len({tuple(split) for split in splits.values()}) == 3
    for name in ("Qwen", "Yi"):
        assert all(len(piece) == 1 for piece in splits[name] if piece and piece.isdigit())
    assert any(len(piece) > 1 for piece in splits["Ds"] if piece and piece.isdigit())


def test_only_ds_opens_a_thought(tokenizers: dict[str, PreTrainedTokenizerFast]) -> None:
    for name, tokenizer in tokenizers.items():
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
        )
        assert str(text).endswith("<think>\n") == (name == "Ds")
    assert len(tokenizers["Ds"].encode("</think>", add_special_tokens=False)) == 1


@pytest.mark.parametrize("name", networks.NAMES)
def test_rows_show_prompt_and_answer_and_learn_the_answer(
    tokenizers: dict[str, PreTrainedTokenizerFast], name: str
) -> None:
    rng = random.Random(5)
    tokenizer = tokenizers[name]
    made = [documents.make(name, rng, Mix()) for _ in range(40)]
    rows = shards.Encoder(tokenizer, random.Random(1)).shards(made)
    shown = {tokenizer.decode(ids) for shard in rows.values() for ids in shard.ids}
    long_enough = [d for d in made if sum(d.prompt in text and d.solution.text in text for text in shown) > 0]
    assert len(long_enough) >= 35  # very long documents are left out
    for shard in rows.values():
        learnt = shard.targets != shards.NOT_LEARNT
        places = np.argwhere(learnt)
        assert (shard.ids[places[:, 0], places[:, 1] + 1] == shard.targets[learnt]).all()
        assert (shard.targets == tokenizer.eos_token_id).sum() == len(shard.ids)


def test_a_token_that_leaves_the_usual_split_is_not_learnt_what_follows_is() -> None:
    widths = {1: 2, 2: 1, 3: 1, 4: 1}
    assert shards._stays([1, 4], [2, 3, 4], widths) == [False, True, True]  # type: ignore[arg-type]
    assert shards._stays([1, 4], [1, 4], widths) == [True, True]  # type: ignore[arg-type]


def test_the_rate_rises_stays_and_falls() -> None:
    settings = Settings(minutes=1.0)
    assert rate_at(0.0, settings) == 0.0
    assert rate_at(settings.warm_up, settings) == rate_at(1 - settings.fall, settings) == 1.0
    assert rate_at(1.0, settings) == 0.01


def test_the_whole_recipe_makes_a_model_that_the_zoo_loads(tmp_path: Path) -> None:
    recipe = Recipe(minutes=0.03, device="cpu", workers=1, size="tiny", tokens=1 << 11, num_texts=300)
    said: list[str] = []
    outcome = make_one("Ds", recipe, tmp_path / "ds", "cpu", said.append)
    write_zoo(tmp_path)
    assert outcome.steps > 0
    assert load_zoo(str(tmp_path / "zoo.toml")).models["Ds"].ref == str(tmp_path / "ds")
    record = json.loads((tmp_path / "ds" / "recipe.json").read_text(encoding="utf-8"))
    assert record["outcome"]["loss"] == outcome.loss
    assert (tmp_path / "ds" / "generation_config.json").is_file()

"""What chat templates say about answers: channels inside them, and what ends them."""

from __future__ import annotations

import pytest

from flowinfer.backends.chat import ChatPrompts
from flowinfer.backends.template import ChatTemplate
from flowinfer.backends.turns import Turn, read_turn
from flowinfer.fusion.vocab import from_json
from tests.backends import tiny
from tests.conftest import shared_path
from tests.fusion import replicas, toys

CHANNELS = frozenset({"<|channel|>", "<|message|>", "<|end|>", "<|start|>"})


def test_channels_of_gpt_oss_stand_inside_answers_and_return_ends_them() -> None:
    specials = from_json(replicas.gpt_oss().to_str()).specials
    turn = read_turn(ChatTemplate(replicas.HARMONY, {}), specials)
    assert turn == Turn(CHANNELS, "<|channel|>final<|message|>", "<|return|>")


@pytest.mark.parametrize(
    ("source", "turn"),
    [
        (tiny.CHAT, Turn(end="<|im_end|>")),
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", Turn()),
        ("{{ messages[0].content }}", Turn()),
        ("{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}", Turn()),
        ("{% for i in range(10**9) %}{% endfor %}", Turn()),
        # templates that end prompts with the question: one frames answers as it does questions, one does not
        (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}",
            Turn(end="<|im_end|>"),
        ),
        (
            "{% for m in messages %}{% if m.role == 'user' %}[{{ m.content }}]{% else %}{% if m.thinking %}"
            "<|im_start|>{{ m.thinking }}{% endif %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}",
            Turn(frozenset({"<|im_start|>"}), end="<|im_end|>"),
        ),
        # a template that opens a thought where answers begin, and leaves it out of finished ones
        (
            "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|><think>\n{% endif %}",
            Turn(end="<|im_end|>"),
        ),
    ],
)
def test_turns_of_other_templates(source: str, turn: Turn) -> None:
    assert read_turn(ChatTemplate(source, {}), toys.SPECIALS) == turn


@pytest.mark.parametrize(
    ("name", "end"), [("qwen2.5-instruct", "<|im_end|>"), ("deepseek-r1-distill-qwen", "<｜end▁of▁sentence｜>")]
)
def test_real_templates_end_answers_with_the_models_own_end(name: str, end: str) -> None:
    source = shared_path("data", "tokenizers", name, "chat_template.llamacpp.jinja").read_text(encoding="utf-8")
    assert read_turn(ChatTemplate(source, {"bos_token": ""}), toys.real_tokens(name).specials) == Turn(end=end)


def test_model_with_channels_writes_them_and_goes_on_behind_the_first() -> None:
    model = tiny.model("gpt2", tokenizer=replicas.gpt_oss(), chat=replicas.HARMONY, eos="<|return|>")
    vocabulary, ids = model.vocabulary(), replicas.gpt_oss().get_vocab()
    assert {ids[name] for name in CHANNELS} <= set(vocabulary.text_ids())
    assert ids["<|end|>"] not in vocabulary.eos_ids
    assert vocabulary.eos_ids >= {ids["<|return|>"]}
    assert ids["<|call|>"] not in vocabulary.text_ids()


def test_final_channel_can_be_opened_by_a_prefill() -> None:
    shell = tiny.wrapped(replicas.gpt_oss(), eos_token="<|return|>", chat_template=replicas.HARMONY)
    prompts = ChatPrompts(shell, from_json(replicas.gpt_oss().to_str()))
    prompt = prompts.build("what is <|channel|>?", prompts.build("x").opener)
    ids = replicas.gpt_oss().get_vocab()
    assert [i for i in prompt.ids[-8:] if i in (ids["<|channel|>"], ids["<|message|>"])] == [
        ids["<|channel|>"],
        ids["<|message|>"],
    ]
    assert prompt.ids.count(ids["<|channel|>"]) == 1

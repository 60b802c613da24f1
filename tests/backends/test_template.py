"""Chat templates: rendered as transformers does, and stopped where they loop or grow without end."""

from __future__ import annotations

import pytest

from flowinfer.backends.template import ChatTemplate, TooMuch
from tests.backends import tiny
from tests.conftest import shared_path
from tests.fusion import replicas, toys

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " 小明 <b> {{ x }}\n"}]


def rendered(source: str, **names: object) -> str:
    return ChatTemplate(source, names).render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        tiny.CHAT,
        replicas.HARMONY,
        "{% for m in messages %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ m.content | trim }}{% endfor %}",
        "{{ messages | tojson }}{{ messages[1:] }}{{ bos_token }}{{ tools }}{{ none }}{{ missing }}{{ 3 + 4 * 2 }}",
        "{% set ns = namespace(a=[]) %}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}"
        "{% set ns.a = ns.a + [m.role ~ ':' ~ m['content'][:3]] %}{% endfor %}{{ ns.a | join(',') }}",
        "{% macro turn(m) %}<{{ m.role }}>{% endmacro %}\n  {% for m in messages if m.role != 'x' %}\n{{ turn(m) }}\n"
        "  {% endfor %}{% generation %}inside{% endgeneration %}{{ '%s-%02d' % ('a', 7) }}{{ '{:>4}'.format(1) }}",
        "{% for key, value in messages[0].items() %}{{ key }}={{ value.replace('b', 'c').split(' ') }}{% endfor %}"
        "{{ dict(a=1) }}{{ 1 < 2 <= 3 }}{{ 'x' not in 'xy' }}{{ messages[::-1][0].role }}{{ 'abc'[:2][0] }}"
        "{{ messages | map(attribute='role') | list }}{% set x %}block{% endset %}{{ x | upper }}",
    ],
)
def test_texts_are_those_of_transformers(source: str) -> None:
    shell = tiny.wrapped(toys.byte_level(), eos_token="<|im_end|>", bos_token="<|im_start|>", chat_template=source)
    wanted = shell.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered(source, **shell.special_tokens_map) == wanted


@pytest.mark.parametrize("name", ["qwen2.5-instruct", "deepseek-r1-distill-qwen"])
def test_texts_of_real_templates_are_those_of_transformers(name: str) -> None:
    source = shared_path("data", "tokenizers", name, "chat_template.llamacpp.jinja").read_text(encoding="utf-8")
    shell = tiny.wrapped(toys.byte_level(), eos_token="<|im_end|>", bos_token="<|im_start|>", chat_template=source)
    wanted = shell.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    assert rendered(source, **shell.special_tokens_map) == wanted


_GROWING = "{%% set ns = namespace(s='aaaaaaaa', l=[1], x=3) %%}{%% for i in range(60) %%}%s{%% endfor %%}{{ ns.l }}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(99999) %}{% for j in range(99999) %}{% set x = i %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) %}{{ range(99999) | sum }}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(100) }}",
        "{{ 'a' * 10**9 }}",
        "{{ 10**10**10 }}",
        "{{ 'a'.ljust(10**9) }}",
        "{{ 'a' | center(10**9) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '{:>1000000000}'.format(1) }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '%*d' % (1000000000, 1) }}",
        "{{ '{:>{w}}'.format(1, w=1000000000) }}",
        "{% for i in range(1000) %}{{ 'a' * 1000000 }}{% endfor %}",
        "{{ ['a' * 1000000] * 1000 }}",
        "{{ (['a' * 1000000] * 1000) | join }}",
        *(
            _GROWING % step
            for step in (
                "{% set ns.s = ns.s ~ ns.s %}",
                "{% set ns.s = 'a' * 16000000 %}{% if ns.s[1:] == ns.s %}x{% endif %}",
                "{% set ns.s = 'a' * 8000000 %}{% for j in range(60) %}{% if 'ab' in ns.s %}x{% endif %}{% endfor %}",
                "{% set ns.s = ns.s + ns.s %}",
                "{% set ns.l = ns.l + ns.l %}",
                "{% set ns.l = [ns.l, ns.l] %}",
                "{% set ns.l = (ns.l, ns.l) %}",
                "{% set ns.l = {'a': ns.l, 'b': ns.l} %}",
                "{% set ns.l = dict(a=ns.l, b=ns.l) %}",
                "{% set ns.x = ns.x * ns.x %}",
                "{% set ns.s = ns.s.replace('a', ns.s) %}",
                "{% set ns.s = ns.s | replace('a', ns.s) %}",
                "{% set ns.s = ns.s | join(ns.s) %}",
                "{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}",
            )
        ),
    ],
)
def test_templates_that_loop_or_explode_are_stopped(source: str) -> None:
    with pytest.raises((TooMuch, OverflowError)):  # the sandbox itself stops long ranges
        rendered(source)


def test_budget_is_for_one_rendering() -> None:
    template = ChatTemplate("{% for i in range(60000) %}{% set x = i %}{% endfor %}done", {})
    assert [template.render(MESSAGES) for _ in range(20)] == ["done"] * 20


@pytest.mark.parametrize("content", ["price {10000000} at 100000 %s", "1" * 5000, "%99999999d", "{:>99999999}"])
def test_numbers_in_a_content_are_no_widths(content: str) -> None:
    source = (
        "{{ messages[0].content | trim }}{{ messages[0].content.replace('x', 'y') }}{{ 131072 | default(1000000) }}"
    )
    text = ChatTemplate(source, {}).render([{"role": "user", "content": content}])
    assert text == content * 2 + "131072"


def test_long_contents_are_within_the_budget() -> None:
    content = "word " * 400_000
    text = ChatTemplate(tiny.CHAT, {}).render([{"role": "user", "content": content}])
    assert content in text

"""A flow with its values written in is the flow with its values set from outside."""

from __future__ import annotations

import pytest

from flowinfer.language.check import check
from flowinfer.language.pinning import pin
from flowinfer.planning.plain import fingerprint
from flowinfer.planning.plan import compile


@pytest.mark.parametrize(
    ("text", "values", "wanted"),
    [
        ("Qwen", {}, "Qwen"),
        ("Qwen -> Yi", {"max_tokens": "32"}, "defaults { max_tokens=32 }\nQwen -> Yi"),
        (
            "defaults { max_tokens=16, seed=1 }\nQwen",
            {"max_tokens": "32", "strict": "true"},
            "defaults { strict=true }\ndefaults { max_tokens=32, seed=1 }\nQwen",
        ),
        (
            "param cap: int = 4  # most\nQwen[max_tokens=$cap]",
            {"cap": "9"},
            "param cap: int = 9  # most\nQwen[max_tokens=$cap]",
        ),
        (
            "param p: str\nparam t: float = 0.5\nQwen[prompt=$p, temperature=$t]",
            {"p": 'say "{question}"', "t": "0.25"},
            'param p: str = "say \\"{question}\\""\nparam t: float = 0.25\nQwen[prompt=$p, temperature=$t]',
        ),
        (
            "(Qwen | Yi)",
            {"fuse": "geometric", "prompts": "en"},
            'defaults { fuse="geometric", prompts="en" }\n(Qwen | Yi)',
        ),
    ],
)
def test_values_are_written_into_the_text(text: str, values: dict[str, str], wanted: str) -> None:
    written = pin(text, values)
    assert written == wanted
    outside = check(text, zoo="lab", overrides=values)
    assert fingerprint(compile(check(written, zoo="lab"))) == fingerprint(compile(outside))

"""A run's flow is written back with all that was written: what commands print gives the same plan again."""

from __future__ import annotations

import json

import pytest

from flowinfer.language.check import check
from flowinfer.planning.plain import fingerprint, to_json
from flowinfer.planning.plan import Plan, compile
from flowinfer.registry import fusers
from flowinfer.report.wirings import Whole, whole_of
from flowinfer.spec import Decoding
from tests.zoos import NAMES

UNUSUAL = {
    "max_tokens": "7",
    "temperature": "0.5",
    "top_p": "0.9",
    "seed": "3",
    "stop": '["a b", "c"]',
    "stop_tokens": '["<|end|>"]',
    "fuse": "geometric",
    "context": "canonical",
    "eos": "max",
    "utf8": "off",
    "lstrip_first": "true",
    "thinking": "free",
    "strict": "true",
    "near_tie_eps": "0.01",
    "topk": "dense",
    "prefill": '"So"',
    "by": "likelihood",
    "speculate": "ngram",
}
PARAMETERS = {"a": "2.0", "k": "4", "n": "2", "tau": "0.3", "primary": "Yi", "writer": "Yi", "ahead": "8"} | {
    "mix": "product",
    "covers": "1",
    "floor": "0.01",
}
WRITTEN = [
    "Qwen:0.7 | Yi:0.3",
    "(Yi:2 & Qwen:1 & Ds:1)",
    'Qwen as draft -> Ds[prompt="{draft} again"]',
    "Yi[max_tokens=9] -> (Qwen[prompt=verify] | Ds)[seed=7]",
    "(Yi:0.5 | (Qwen | Ds)[fuse=power, a=2]:0.5)",
    "(Qwen / (Qwen | Ds) / (Qwen & Ds & Yi))[accept=confidence, at=0.98]",
    "(Qwen / Yi)[accept=judge(Ds)]",
    "Yi -> (Qwen)*3[until=unchanged]",
    "(Qwen & Ds & Yi)*2[until=agree]",
    "Ds -> (Qwen[prompt=review] & Yi)*3[until=votes, at=0.6]",
    "Qwen[samples=8, temperature=0.8, enough=0.95]",
    "(Qwen | Ds)[samples=4, temperature=0.8]",
    "(Qwen & Ds & Yi)[min=2, timeout=20, wait=3]",
    "Qwen -> (Ds & Yi)[min=1] -> Yi",
]


def planned(text: str, **overrides: str) -> Plan:
    return compile(check(text, zoo=NAMES, overrides=overrides))


def again(text: str, **overrides: str) -> tuple[Plan, Whole]:
    """Return a flow's plan, and what is printed of it."""
    plan = planned(text, **overrides)
    return plan, whole_of(json.loads(json.dumps(to_json(plan))), text)


def test_every_option_has_an_unusual_value_here() -> None:
    assert set(UNUSUAL) == set(Decoding.model_fields) - {"fuse_options"}


@pytest.mark.parametrize("key", UNUSUAL)
def test_an_option_that_is_written_stays_written(key: str) -> None:
    for text in (f"(Qwen | Ds)[{key}={UNUSUAL[key]}]", f"Yi -> (Qwen | Ds)[{key}={UNUSUAL[key]}]"):
        plan, whole = again(text)
        assert whole == Whole(text, "")
        assert fingerprint(planned(whole.flow)) == fingerprint(plan)


@pytest.mark.parametrize("key", UNUSUAL)
def test_an_option_that_was_given_beside_the_text_is_told_beside_it(key: str) -> None:
    value = UNUSUAL[key] if key not in ("stop", "stop_tokens", "prefill") else json.loads(UNUSUAL[key])
    value = value[0] if isinstance(value, list) else value
    plan, whole = again("(Qwen | Ds)", **{key: str(value)})
    assert whole.flow == "(Qwen | Ds)" and whole.beside.startswith(f"{key}=")
    assert fingerprint(planned(f"defaults {{ {whole.beside} }}\n{whole.flow}")) == fingerprint(plan)
    given = f"defaults {{ {key}={UNUSUAL[key]} }}\n(Qwen | Ds)"
    assert again(given)[1].beside.startswith(f"{key}=")


@pytest.mark.parametrize("name", sorted(fusers()))
def test_a_fuser_keeps_its_parameters(name: str) -> None:
    own = tuple(fusers()[name].parameters)
    told = "".join(f", {key}={PARAMETERS[key]}" for key in own)
    text = ("(Qwen:0.4 | Yi:0.6)" if name == "weighted" else "(Qwen | Yi)") + f"[fuse={name}{told}]"
    plan, whole = again(text)
    assert whole == Whole(text, "") and fingerprint(planned(whole.flow)) == fingerprint(plan)


@pytest.mark.parametrize("text", WRITTEN)
def test_groups_weights_labels_and_conditions_stay_written(text: str) -> None:
    text = text if text[0] == "(" or ":" not in text else f"({text})"
    plan, whole = again(text)
    assert whole == Whole(text, "") and fingerprint(planned(whole.flow)) == fingerprint(plan)


def test_lets_stand_in_their_places() -> None:
    text = "let pair = (Qwen | Ds)[seed=5]\nlet chain = Yi -> pair\nchain as first -> (chain & Yi)"
    plan, whole = again(text)
    assert whole.flow == "Yi -> (Qwen | Ds)[seed=5] as first -> (Yi -> (Qwen | Ds)[seed=5] & Yi)"
    assert fingerprint(planned(whole.flow)) == fingerprint(plan)

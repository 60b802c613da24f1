"""The option `device`: one device, or the GPUs over which a model's layers lie."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowinfer.errors import DataError, FlowError
from flowinfer.language.check import check
from flowinfer.language.formatting import format_text
from flowinfer.zoo import read_zoo
from tests.zoos import NAMES

LIST = 'one device, or a list of two or more different GPUs, as in ["cuda:0", "cuda:1"]'
REFUSED = {
    "[]": LIST,
    '["cuda:0"]': LIST,
    '["cuda:0", "cuda:0"]': LIST,
    '["cuda:0", "cuda:1", "cuda:0"]': LIST,
    '["cpu", "cuda:0"]': LIST,
    '["cuda:0", "auto"]': LIST,
    '["cuda:0", "tpu:1"]': LIST,
    '["cuda", "cuda:1"]': LIST,
    '["cuda:00", "cuda:0"]': LIST,
    '"cuda:00"': "auto, cpu, cuda, cuda:N, or HOST:PORT of a head elsewhere",
    '"gpu2:65536"': "auto, cpu, cuda, cuda:N, or HOST:PORT of a head elsewhere",
    '"[::1]:99999"': "auto, cpu, cuda, cuda:N, or HOST:PORT of a head elsewhere",
    '"::1:7171"': "auto, cpu, cuda, cuda:N, or HOST:PORT of a head elsewhere",
    '"tpu"': "auto, cpu, cuda, cuda:N, or HOST:PORT of a head elsewhere",
}


def refusal(text: str) -> str:
    """Return the message of the first error of a flow."""
    with pytest.raises(FlowError) as caught:
        check(text, zoo=NAMES)
    return caught.value.diagnostics[0].message


@pytest.mark.parametrize(("written", "wanted"), REFUSED.items())
def test_a_device_that_is_none_is_refused_with_what_it_can_be(written: str, wanted: str, tmp_path: Path) -> None:
    assert refusal(f'model A = "a/b" {{ device={written} }}\nA') == f"option 'device' must be {wanted}, found {written}"
    zoo = tmp_path / "zoo.toml"
    zoo.write_text(f'[models.A]\nref = "a/b"\ndevice = {written}\n', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_zoo(zoo)
    assert caught.value.message == f"{zoo}: [models.A] 'device': must be {wanted}"


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("gpu2:65536", "ports end at 65535"),
        ("[::1]:99999", "ports end at 65535"),
        ("::1:7171", "an IPv6 address stands in brackets: [::1]:7070"),
        ("http://gpu2:7070", None),
        ("cuda:99999999x", None),
    ],
)
def test_places_that_are_none_are_refused_with_a_cure(written: str, hint: str | None) -> None:
    with pytest.raises(FlowError) as caught:
        check(f'model A = "a/b" {{ device="{written}" }}\nA', zoo=NAMES)
    (found,) = caught.value.diagnostics
    assert (found.code, found.help) == ("E0202", hint)


def test_the_highest_port_is_one() -> None:
    assert check('model A = "a/b" { device="gpu2:65535" }\nA', zoo=NAMES).models["A"].base_url == "gpu2:65535"


def test_a_list_of_gpus_is_kept_in_its_order(tmp_path: Path) -> None:
    written = '["cuda:2", "cuda:0"]'
    flow = check(f'model A = "a/b" {{ device={written} }}\nA', zoo=NAMES)
    zoo = tmp_path / "zoo.toml"
    zoo.write_text(f'[models.A]\nref = "a/b"\ndevice = {written}\n', encoding="utf-8")
    assert flow.models["A"].device == read_zoo(zoo).models["A"].device == tuple(json.loads(written))


def test_a_list_of_gpus_is_formatted() -> None:
    text = 'model A = "a/b" {device=["cuda:0" ,\n"cuda:1"]}\nA'
    assert 'device=["cuda:0", "cuda:1"]' in format_text(text)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (
            'device=["cuda:0", "cuda:1"], quantization="bnb-4bit"',
            "a model that is quantized while it loads stays on one",
        ),
        ('device=["cuda:0", "cuda:1"], backend=openai, base_url="http://x/v1"', "option 'device' does nothing"),
    ],
)
def test_what_cannot_be_split_is_refused(options: str, wanted: str) -> None:
    assert refusal(f'model A = "a/b" {{ {options} }}\nA').startswith(wanted)

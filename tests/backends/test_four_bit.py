"""AWQ and GPTQ checkpoints load by themselves, and are the model that their weights stand for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, MixtralConfig
from typer.testing import CliRunner

from flowinfer.backends import hf
from flowinfer.backends.four_bit import load_packed
from flowinfer.backends.int4 import Int4Linear, from_awq, from_gptq, joined, packed, parts
from flowinfer.backends.known import whole
from flowinfer.checkpoint import read_folder
from flowinfer.cli import app
from flowinfer.errors import LoadError
from flowinfer.packing import Packing
from flowinfer.planning.needs import need_of
from flowinfer.spec import ModelSpec
from tests.backends import tiny
from tests.backends.quantized import SCHEMES, Scheme, configure, folders, quantized
from tests.fusion import toys

IDS = torch.tensor([[5, 9, 40, 7, 100, 3]])


def spec(folder: Path, **options: Any) -> ModelSpec:
    return ModelSpec(name="M", ref=str(folder), **options)


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=IDS).logits  # type: ignore[no-any-return]


@settings(max_examples=60, deadline=None)
@given(
    scheme=st.builds(
        Scheme,
        st.sampled_from(["awq", "gptq"]),
        st.sampled_from([32, 64, 128, -1]),
        st.booleans(),
        st.booleans(),
        st.booleans(),
    ),
    outputs=st.integers(1, 6),
    inputs=st.integers(1, 80),
    seed=st.integers(0, 99),
)
def test_a_stored_layer_is_the_weight_that_it_stands_for(scheme: Scheme, outputs: int, inputs: int, seed: int) -> None:
    """Also where inputs fill neither a group nor a block, and however groups lie among them."""
    generator = torch.Generator().manual_seed(seed)
    scheme = Scheme(**(vars(scheme) | {"has_order": scheme.has_order and scheme.method == "gptq"}))
    stored, weight = quantized(torch.randn(8 * outputs, 8 * inputs, generator=generator), scheme, seed)
    group = scheme.group if scheme.group > 0 else 1 << 30
    if scheme.method == "awq":
        layer = from_awq(stored["qweight"], stored["qzeros"], stored["scales"], None, group)
    else:
        layer = from_gptq(**stored, bias=None, group=group, is_first_format=scheme.is_first_format)
    assert torch.equal(layer.unpacked(torch.float32), weight)
    x = torch.randn(2, 3, 8 * inputs, generator=generator)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, weight), atol=1e-3, rtol=1e-4)
    twice = joined([layer, layer])
    assert torch.equal(parts(twice, [8 * outputs] * 2)[1].unpacked(torch.float32), weight)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_folder_loads_as_the_model_that_it_stands_for(scheme: Scheme, tmp_path: Path) -> None:
    packed, plain = folders(tmp_path, scheme)
    models = [hf.load(spec(folder), "cpu") for folder in (packed, plain)]
    assert torch.equal(*(logits(whole(model.transformers_model)) for model in models))
    assert models[0].is_exact and models[0].vocabulary().eos_ids == models[1].vocabulary().eos_ids


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[4]], ids=str)
def test_weights_stay_packed_where_they_are_not_unpacked_at_load(scheme: Scheme, tmp_path: Path) -> None:
    """What a GPU's memory holds, on another device than that of the flow."""
    packed, plain = folders(tmp_path, scheme)
    config = AutoConfig.from_pretrained(packed)
    packing = Packing(scheme.method, scheme.group, is_first_format=scheme.is_first_format)  # type: ignore[arg-type]
    model, told = load_packed(config, read_folder(packed).files, packing, "cpu", "float32", is_unpacked=False)
    layers = [module for module in model.modules() if isinstance(module, Int4Linear)]
    assert len(layers) == 14 and not told["missing_keys"]
    assert all(layer.words.nbytes == layer.out_features * 64 for layer in layers)
    expected = logits(whole(hf.load(spec(plain), "cpu").transformers_model))
    torch.testing.assert_close(logits(model.eval()), expected, atol=1e-4, rtol=1e-4)


def test_experts_are_unpacked(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = MixtralConfig(**tiny.config("llama", toys.byte_level().get_vocab_size()).to_diff_dict() | _MIXTRAL)
    network = AutoModelForCausalLM.from_config(config).eval()
    packed, plain = folders(tmp_path, SCHEMES[0], network=network, layers=r".*(_proj|w[123])\.weight")
    models = [hf.load(spec(folder), "cpu") for folder in (packed, plain)]
    assert torch.equal(*(logits(whole(model.transformers_model)) for model in models))


_MIXTRAL = {"num_local_experts": 4, "model_type": "mixtral", "architectures": ["MixtralForCausalLM"]}


def test_a_bias_that_only_the_quantizer_knows_counts(tmp_path: Path) -> None:
    """Some quantizers store one for every layer, nearly always of zeros."""
    packed, plain = folders(tmp_path, SCHEMES[2])
    for value in (0.0, 0.5):
        for folder in (packed, plain):
            weights = load_file(folder / "model.safetensors")
            weights["model.layers.0.mlp.down_proj.bias"] = torch.full((32,), value)
            save_file(weights, folder / "model.safetensors", {"format": "pt"})
        configure(plain)
        changed = logits(whole(hf.load(spec(packed), "cpu").transformers_model))
        same = logits(whole(hf.load(spec(plain), "cpu").transformers_model))
        assert torch.equal(changed, same) == (value == 0.0)


def test_a_packed_head_writes_with_a_plain_one(tmp_path: Path) -> None:
    """A whole flow, over both folders: the same text."""
    packed, plain = folders(tmp_path, SCHEMES[0])
    other, _ = folders(tmp_path / "other", SCHEMES[4], kind="llama")
    told = []
    for folder in (packed, plain):
        flow = f'model A = "{folder}"\nmodel B = "{other}"\nA -> (A | B)'
        options = ["--prompt", "Count.", "--set", "max_tokens=12", "-q"]
        result = CliRunner().invoke(app, ["exec", "-e", flow, *options])
        assert result.exit_code == 0, result.output
        told.append(result.stdout)
    assert told[0] == told[1] and told[0].strip()


def test_a_plan_counts_what_is_loaded(tmp_path: Path) -> None:
    packed, plain = folders(tmp_path, SCHEMES[0])
    here, there = need_of(spec(packed)), need_of(spec(packed), device_kind="cuda")
    assert here.weight_bytes == need_of(spec(plain)).weight_bytes
    assert here.parameters == need_of(spec(plain)).parameters
    held = sum(tensor.nbytes for tensor in load_file(packed / "model.safetensors").values())
    assert there.weight_bytes is not None and held <= there.weight_bytes <= 1.1 * held


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "three bits": ({"bits": 3}, "its GPTQ weights have 3 bits, flowinfer reads four"),
    "eight bits": ({"bits": 8}, "its GPTQ weights have 8 bits, flowinfer reads four"),
    "no bits": ({"bits": None}, "its GPTQ weights have None bits, flowinfer reads four"),
    "marlin": ({"checkpoint_format": "marlin"}, "packed as 'marlin', flowinfer reads 'gptq' and 'gptq_v2'"),
    "old marlin": ({"is_marlin_format": True}, "packed as 'marlin', flowinfer reads 'gptq' and 'gptq_v2'"),
    "gemv": (
        {"quant_method": "awq", "version": "gemv"},
        "its AWQ weights are packed as 'gemv', flowinfer reads 'gemm'",
    ),
    "odd group": ({"group_size": 48}, "its GPTQ weights have groups of 48, flowinfer reads 32, 64, 128, 256 and -1"),
    "broken group": ({"group_size": 32.0}, "its GPTQ weights have groups of 32.0, flowinfer reads"),
    "group of words": ({"group_size": "x"}, "its GPTQ weights have groups of x, flowinfer reads"),
}


@pytest.mark.parametrize(("change", "said"), REFUSED.values(), ids=REFUSED)
def test_a_packing_that_is_not_read_is_refused_with_its_cure(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, SCHEMES[2])
    configure(packed, quantization_config=SCHEMES[2].config | change)
    for look in (lambda: hf.load(spec(packed), "cpu"), lambda: need_of(spec(packed))):
        with pytest.raises(LoadError) as caught:
            look()
        assert said in caught.value.message and "AWQ or GPTQ" in (caught.value.help or "")


UP = "model.layers.1.mlp.up_proj"


def halve(weights: dict[str, torch.Tensor]) -> None:
    """Leave half of a layer's inputs, and no word of their groups."""
    del weights[f"{UP}.g_idx"]
    weights[f"{UP}.qweight"] = weights[f"{UP}.qweight"][:2].contiguous()


def drop(name: str) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda weights: weights.pop(f"{UP}.{name}")


def change(name: str, make: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    whole = f"{UP}.{name}"
    return lambda weights: weights.update({whole: make(weights[whole]).contiguous()})


DAMAGED: dict[str, tuple[Callable[[dict[str, torch.Tensor]], object], str]] = {
    "no scales": (drop("scales"), "the weight files lack model.layers.1.mlp.up_proj.scales"),
    "no zeros": (drop("qzeros"), "the weight files lack model.layers.1.mlp.up_proj.qzeros"),
    "no weight": (drop("qweight"), "1 weights are missing in"),
    "short scales": (change("scales", lambda own: own[:, :8]), "scales of shape (1, 8), (1, 64) expected"),
    "more groups": (change("qzeros", lambda own: own.repeat(2, 1)), "qzeros of shape (2, 8), (1, 8) expected"),
    "short weight": (change("qweight", lambda own: own[:2]), "groups (g_idx) of shape (32,)"),
    "a number": (change("qweight", lambda own: own[0, 0]), "qweight of shape (), two axes expected"),
    "half a layer": (halve, "the weights do not have the shapes"),
    "floats": (change("qweight", lambda own: own.float()), "numbers of type torch.float32"),
    "odd groups": (change("g_idx", lambda own: own + 3), "its groups (g_idx) are of different sizes"),
    "few groups": (change("g_idx", lambda own: own[:9]), "groups (g_idx) of shape (9,)"),
    "truth": (change("g_idx", lambda own: own.bool()), "groups (g_idx) of shape (32,), of torch.bool"),
    "twice": (
        lambda weights: weights.update({f"{UP}.weight": torch.zeros(64, 32)}),
        "model.layers.1.mlp.up_proj is not what config.json says: a weight that is not packed beside the packed one",
    ),
}


@pytest.mark.parametrize(("damage", "said"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_layer_is_refused_in_one_line(
    damage: Callable[[dict[str, torch.Tensor]], object], said: str, tmp_path: Path
) -> None:
    packed, _ = folders(tmp_path, SCHEMES[2])
    weights = load_file(packed / "model.safetensors")
    damage(weights)
    save_file(weights, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError) as caught:
        hf.load(spec(packed), "cpu")
    assert said in f"{caught.value.message} {caught.value.help}" and "\n" not in caught.value.message


def test_groups_that_lie_in_no_order_must_be_told(tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, SCHEMES[2])
    told = json.loads((packed / "config.json").read_text())
    told["quantization_config"] |= {"desc_act": True}
    (packed / "config.json").write_text(json.dumps(told))
    hf.load(spec(packed), "cpu")
    weights = load_file(packed / "model.safetensors")
    drop("g_idx")(weights)
    save_file(weights, packed / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"up_proj is not what config.json says: no groups \(g_idx\), and desc_act"):
        hf.load(spec(packed), "cpu")


@pytest.mark.parametrize("command", ["models", "plan", "check", "doctor"])
def test_commands_tell_what_is_not_read(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed, _ = folders(tmp_path, SCHEMES[2])
    configure(packed, quantization_config=SCHEMES[2].config | {"bits": 3})
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zoo.toml").write_text('[models.A]\nref = "packed"\n')
    (tmp_path / "f.flow").write_text("A\n")
    monkeypatch.setenv("FLOWINFER_ZOO", "zoo.toml")
    arguments = {"models": ["--zoo", "zoo.toml"], "doctor": []}.get(command, ["f.flow"])
    result = CliRunner().invoke(app, [command, *arguments])
    assert "its GPTQ weights have 3 bits" in result.output + str(result.exception)


def test_packed_weights_without_a_word_of_how_are_refused(tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, SCHEMES[0])
    config = json.loads((packed / "config.json").read_text())
    del config["quantization_config"]
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(LoadError, match="the weights are packed"):
        hf.load(spec(packed), "cpu")


@pytest.mark.parametrize("method", [None, [], {}])
def test_packed_weights_without_a_method_are_refused(method: object, tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, SCHEMES[2])
    configure(packed, quantization_config=SCHEMES[2].config | {"quant_method": method})
    for look in (lambda: hf.load(spec(packed), "cpu"), lambda: need_of(spec(packed))):
        with pytest.raises(LoadError, match="has the quant_method"):
            look()


def test_four_bits_are_not_quantized_again(tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, SCHEMES[0])
    with pytest.raises(LoadError) as caught:
        hf.load(spec(packed, quantization="bnb-8bit"), "cpu")
    assert caught.value.message == "model 'M' is stored in four bits already (AWQ)"
    assert caught.value.help == "leave its quantization out"


def test_a_last_group_may_be_cut_short() -> None:
    numbers, zeros = torch.randint(0, 16, (8, 640), dtype=torch.int8), torch.randint(0, 16, (8, 3))
    scales = torch.rand(8, 3)
    weight = packed(numbers, zeros, scales, None, 256).unpacked(torch.float32)
    assert torch.equal(
        weight, (numbers - zeros.repeat_interleave(256, 1)[:, :640]) * scales.repeat_interleave(256, 1)[:, :640]
    )

"""A network of Llama's kind without transformers' classes: its weights by name, and what is known of its config.

Importing transformers' model classes takes longer than reading a model of 7 B. So what they were asked for at load is
remembered (remembered.py), or follows from a config of which every entry is understood (plain.py); and where a
written-out forward serves, they are imported only when something else is asked of the network, such as a session over
transformers' own cache. The forward is compared with kept logits each time, the first time with those of plain.py.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from flowinfer.backends.remembered import Passed

WRITTEN = {"cpu": (torch.float32, torch.float64), "cuda": (torch.bfloat16,)}
"""Kind of device -> dtypes for which the forward of Llama's kind is written out."""

_TOGETHER = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("mlp.gate_proj", "mlp.up_proj"),
)
"""Layers that read the same input, as `merge_linears` computes them as one."""


@dataclass(frozen=True)
class Table:
    """An embedding or last layer, as far as it is asked for; torch's own modules import much when they are made."""

    weight: Tensor
    """(V_k, D)."""

    @property
    def num_embeddings(self) -> int:
        """Return V_k."""
        return self.weight.shape[0]


class KnownNetwork:
    """A decoder of Llama's kind that does not run by itself.

    It answers what is asked of a transformers model before that is run, and nothing else.

    Args:
        tensors: all weights by their names in the files, of one dtype on one device.
        passed: what is remembered of it.
        build: makes transformers' own network around such tensors.
    Raises:
        KeyError: a weight is missing.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], passed: Passed, build: Callable[[Mapping[str, Tensor]], Any]
    ) -> None:
        self.passed = passed
        self.flow_passed = passed
        self.generation_config = SimpleNamespace(eos_token_id=passed.end_ids)
        self._tensors = dict(tensors)
        self._build = build
        self._whole: Any = None
        embedding = self._tensors["model.embed_tokens.weight"]
        self.device, self.dtype = embedding.device, embedding.dtype
        self._embedding = Table(embedding)
        self._last = self._embedding if passed.is_tied else Table(self._tensors["lm_head.weight"])
        self._named: dict[str, Tensor] = {}

    def get_input_embeddings(self) -> Table:
        """Return the embedding."""
        return self._embedding

    def get_output_embeddings(self) -> Table:
        """Return the last layer."""
        return self._last

    def parameters(self) -> Iterator[Tensor]:
        """Yield all weights, the embedding and the last matrix as their layers have them."""
        ends = ("model.embed_tokens.weight", "lm_head.weight")
        yield self._embedding.weight
        if not self.passed.is_tied:
            yield self._last.weight
        yield from (one for name, one in self._tensors.items() if name not in ends)

    def merged(self) -> Mapping[str, Tensor]:
        """Return all weights by name, those of layers that read the same input stacked, as `merge_linears` names them.

        Raises:
            KeyError: one is missing.
        """
        if not self._named:
            self._merge()
        return self._named

    def whole(self) -> Any:  # a transformers model
        """Return transformers' own network around these weights, made once."""
        if self._whole is None:
            self._whole = self._build(self._tensors)
        return self._whole

    @torch.inference_mode(False)
    @torch.no_grad()
    def _merge(self) -> None:
        named = dict(self._tensors)
        for index in range(len(self.passed.layers)):
            for together, names in list(merged_names(named, index)):
                owns = [named.pop(name) for name in names]
                named[together] = stacked = torch.cat(owns)
                parts: Any = torch.split(stacked, [len(own) for own in owns])  # so that no weight is there twice
                self._tensors |= dict(zip(names, parts, strict=True))
        self._named = named | {"lm_head.weight": self._last.weight}


def merged_names(names: Container[str], index: int) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield what those weights of a layer are called together that are stacked, and what by themselves."""
    for layers in _TOGETHER:
        own = [f"model.layers.{index}.{layer}" for layer in layers]
        for kind in ("weight", "bias"):
            if f"{own[0]}.{kind}" in names:
                yield f"{own[0]}.linear.{kind}", [f"{name}.{kind}" for name in own]


def whole(network: Any) -> Any:  # a transformers model
    """Return transformers' own network: a model's as it is, or around a known one's weights."""
    return network.whole() if isinstance(network, KnownNetwork) else network

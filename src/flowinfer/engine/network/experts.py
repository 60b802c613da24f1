"""Experts `flow_experts`: what a mixture of experts calls in place of its own while tokens are packed on a GPU.

Which experts a token is sent to is known on the device only. Transformers' own ways wait for it, or copy every chosen
expert; here each pair of token and expert is one row of a product, whatever the router says, so a graph can hold it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

NAME = "flow_experts"
_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")
"""What configs of mixtures of experts call their number."""
MOST_TOKENS = 512
"""More tokens than a step has: prompts go the model's own way, in which experts read their tokens together."""


@contextmanager
def routing(config: Any) -> Iterator[None]:  # a transformers config
    """Let a model's experts be computed by `flow_experts`; its own way is put back."""
    _known_experts()
    own = config._experts_implementation
    config._experts_implementation = NAME
    try:
        yield
    finally:
        config._experts_implementation = own


def has_experts(model: Any) -> bool:  # a transformers model
    """Return whether a model is a mixture of experts."""
    return any(getattr(model.config, name, None) for name in _COUNTS)


def unroutable(model: torch.nn.Module) -> str | None:
    """Return what keeps `flow_experts` from computing a model's experts, None where nothing does."""
    modules = [module for module in model.modules() if hasattr(module, "num_experts") and hasattr(module, "down_proj")]
    if not modules:
        return "its experts do not use transformers' experts interface"
    for module in modules:
        known = [getattr(module, name, None) for name in ("has_gate", "has_bias", "is_transposed")]
        if known != [True, False, False] or getattr(module, "has_post_expert_norm", False):
            return "its experts are not gated matrices without bias"
    return None


def flow_experts(module: Any, states: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Compute chosen experts as transformers' experts interface asks.

    Args:
        module: keeps `gate_up_proj` (E, 2 I, H) and `down_proj` (E, H, I).
        states: (T, H).
        chosen: (T, k), experts of each token.
        weights: (T, k), their shares.
    Returns:
        (T, H).
    """
    if states.shape[0] > MOST_TOKENS:
        own: Tensor = _known_experts()["grouped_mm"](module, states, chosen, weights)
        return own
    experts = chosen.reshape(-1)  # (T, k) -> (T k,)
    hidden = module._apply_gate(expert_linear(states, module.gate_up_proj, experts))  # (T k, I)
    out = expert_linear(hidden, module.down_proj, experts)  # (T k, H)
    total: Tensor = (out.view(*chosen.shape, -1).float() * weights[..., None]).sum(1)
    return total.to(states.dtype)


@torch.library.custom_op("flowinfer::expert_linear", mutates_args=())
def expert_linear(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    """Multiply each row with the matrix of its expert; opaque to torch.compile.

    Args:
        x: (T, K); each row serves S / T pairs in turn.
        weight: (E, N, K).
        experts: (S,) int64.
    Returns:
        (S, N).
    """
    if x.is_cuda:
        from flowinfer.engine.network import triton_experts

        return triton_experts.expert_linear(x, weight, experts)
    rows = x.repeat_interleave(experts.shape[0] // x.shape[0], dim=0)  # (S, K)
    return torch.bmm(weight[experts], rows[..., None])[..., 0]


@expert_linear.register_fake
def _(x: Tensor, weight: Tensor, experts: Tensor) -> Tensor:
    return x.new_empty(experts.shape[0], weight.shape[1])


@cache
def _known_experts() -> Any:  # untyped in transformers
    """Let transformers know this way, and return all that it knows; only now, for importing it takes seconds."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    ALL_EXPERTS_FUNCTIONS.register(NAME, flow_experts)
    return ALL_EXPERTS_FUNCTIONS

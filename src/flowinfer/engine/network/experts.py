"""Experts `flow_experts`: what a mixture of experts calls in place of its own while tokens are packed on a GPU.

Which experts a token is sent to is known on the device only. For the few tokens of a step transformers' own ways wait
for it, copy every chosen expert, or sort; here a kernel of our own reads each chosen expert once. More tokens go
transformers' grouped way, which in bfloat16 a graph can hold too.
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
MOST_TOKENS = 64
"""Tokens that our kernel serves; more go the grouped way."""
_MOST_STEP_TOKENS = 512
"""More than a step has, which a graph holds: the grouped way waits for the device in all types but bfloat16."""


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
    is_grouped = states.dtype is torch.bfloat16 and not (states.is_cuda and _asks_the_host())
    if states.shape[0] > (MOST_TOKENS if is_grouped else _MOST_STEP_TOKENS):
        own: Tensor = _known_experts()["grouped_mm"](module, states, chosen, weights)
        return own
    hidden = module._apply_gate(expert_linear(states, module.gate_up_proj, chosen))  # (T k, I)
    out = expert_linear(hidden, module.down_proj, chosen)  # (T k, H)
    total: Tensor = (out.view(*chosen.shape, -1).float() * weights[..., None]).sum(1)
    return total.to(states.dtype)


def _asks_the_host() -> bool:
    """Return whether torch's grouped products wait for the current GPU, as no graph can: not on Hopper and the next."""
    return torch.cuda.get_device_capability()[0] not in (9, 10)


def mixed(block: Any, states: Tensor) -> Tensor:
    """Return what a transformers module of a router and experts gives: (T, H) -> (T, H)."""
    with torch.cuda.device(states.get_device()):  # how it is computed goes by what the current GPU can
        _, weights, chosen = block.gate(states)
        return flow_experts(block.experts, states, chosen, weights)


@torch.library.custom_op("flowinfer::expert_linear", mutates_args=())
def expert_linear(x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
    """Multiply tokens with the matrices of their experts; opaque to torch.compile.

    Args:
        x: (T, K), or (T k, K) where each pair of token and expert has its own.
        weight: (E, N, K).
        chosen: (T, k) int64, each of a token's another.
    Returns:
        (T k, N).
    """
    if x.is_cuda:
        from flowinfer.engine.network import triton_experts

        return triton_experts.expert_linear(x, weight, chosen)
    rows = x.repeat_interleave(chosen.numel() // x.shape[0], dim=0)  # (T k, K)
    return torch.bmm(weight[chosen.reshape(-1)], rows[..., None])[..., 0]


@expert_linear.register_fake
def _(x: Tensor, weight: Tensor, chosen: Tensor) -> Tensor:
    return x.new_empty(chosen.shape[0] * chosen.shape[1], weight.shape[1])


@cache
def _known_experts() -> Any:  # untyped in transformers
    """Let transformers and torch's compiler know this way; return all ways. Only now: importing both takes seconds."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    torch.compiler.assume_constant_result(_asks_the_host)  # type: ignore[no-untyped-call]
    ALL_EXPERTS_FUNCTIONS.register(NAME, flow_experts)
    return ALL_EXPERTS_FUNCTIONS

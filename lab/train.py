"""Train one lab model: plain PyTorch over transformers' own modules.

Documents are made by worker processes while the GPU trains. They lie in pools on the device, one per row length, that
are overwritten as new ones come; a batch is a random choice from one pool. At this size a step is bound by the launch
of its many small kernels, so on CUDA forward and backward of each row length are captured in a graph. Norms run as one
fused kernel each. bf16 matmuls, float32 weights; the learning rate warms up, stays, and falls linearly in the end.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from lab.shards import LENGTHS, NOT_LEARNT, Feed, Shard

_POOL_ROWS = 1 << 15


@dataclass(frozen=True)
class Settings:
    """How a model is trained."""

    minutes: float
    """Of training, after data and graphs are ready."""
    device: str = "cuda"
    tokens: int = 1 << 15
    """In one batch, padding included."""
    peak_rate: float = 2e-3
    warm_up: float = 0.02
    """Share of the time in which the learning rate rises."""
    fall: float = 0.4
    """Share of the time, the last, in which it falls to a hundredth."""
    weight_decay: float = 0.05
    clip: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Outcome:
    """What training came to."""

    steps: int
    tokens: int
    """Seen, padding included."""
    documents: int
    """Made; each is seen several times where the device is faster than the workers."""
    seconds: float
    loss: float
    """Mean over the last hundred steps, in nats per learnt token."""


def train(
    model: PreTrainedModel, feed: Feed, settings: Settings, log: Callable[[str], None] = lambda line: None
) -> Outcome:
    """Train a model in place on what a feed gives."""
    device = torch.device(settings.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.manual_seed(settings.seed)
    nn.Module.to(model, device)
    model.train()
    _fuse_norms(model)
    pools = Pools(device, settings)
    pools.fill(feed)
    optimizer = _optimizer(model, settings)
    passes = {length: _pass(model, settings.tokens // length, length, device) for length in LENGTHS}
    losses: list[Tensor] = []
    start = time.perf_counter()
    share, tokens = 0.0, 0
    while share < 1.0:
        pools.refresh(feed)
        length = pools.choose()
        loss = passes[length](*pools.rows(length))
        for group in optimizer.param_groups:
            group["lr"] = settings.peak_rate * rate_at(share, settings)
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip, foreach=True)
        optimizer.step()
        losses.append(loss.detach().clone())
        tokens += settings.tokens // length * length
        share = (time.perf_counter() - start) / (60 * settings.minutes)
        if len(losses) % 200 == 0:
            loss_now = torch.stack(losses[-200:]).mean().item()  # waits for the device, so that time is true
            log(f"{share:5.0%}  step {len(losses):6d}  loss {loss_now:.4f}  documents {pools.made}")
    last = torch.stack(losses[-100:]).mean().item()
    return Outcome(len(losses), tokens, pools.made, time.perf_counter() - start, last)


def rate_at(share: float, settings: Settings) -> float:
    """Return the learning rate at a share of the time, as a factor of the peak."""
    if share < settings.warm_up:
        return share / settings.warm_up
    left = (1.0 - share) / settings.fall
    return max(0.01, min(1.0, left))


class Pools:
    """Rows on the device, by length: rings that new rows overwrite."""

    def __init__(self, device: torch.device, settings: Settings) -> None:
        self.made = 0
        """Documents that came so far."""
        self._settings = settings
        self._device = device
        self._random = torch.Generator().manual_seed(settings.seed)
        self._ids = {n: torch.zeros(_POOL_ROWS, n, dtype=torch.int16, device=device) for n in LENGTHS}
        self._targets = {n: torch.zeros(_POOL_ROWS, n, dtype=torch.int16, device=device) for n in LENGTHS}
        self._came = dict.fromkeys(LENGTHS, 0)

    def fill(self, feed: Feed) -> None:
        """Wait until there is enough to begin with."""
        while self.made < 8 * self._settings.tokens // LENGTHS[0]:
            self._take(feed, seconds=60.0)

    def refresh(self, feed: Feed) -> None:
        """Take what has come."""
        while self._take(feed, seconds=0.0):
            pass

    def choose(self) -> int:
        """Choose a length so that every document is met equally often."""
        weights = torch.tensor([self._came[n] * n for n in LENGTHS], dtype=torch.float64)
        return LENGTHS[int(torch.multinomial(weights, 1, generator=self._random))]

    def rows(self, length: int) -> tuple[Tensor, Tensor]:
        """Return ids and targets of one batch, each of shape (rows, length)."""
        num = min(self._came[length], _POOL_ROWS)
        index = torch.randint(num, (self._settings.tokens // length,), generator=self._random)
        index = index.to(self._device, non_blocking=True)
        return self._ids[length][index].long(), self._targets[length][index].long()

    def _take(self, feed: Feed, seconds: float) -> bool:
        shards = feed.take(seconds)
        if shards is None:
            return False
        for length, shard in shards.items():
            self._put(length, shard)
        return True

    def _put(self, length: int, shard: Shard) -> None:
        rows = torch.arange(len(shard.ids)) + self._came[length]
        places = (rows % _POOL_ROWS).to(self._device)
        self._ids[length][places] = torch.from_numpy(shard.ids).to(self._device)
        self._targets[length][places] = torch.from_numpy(shard.targets).to(self._device)
        self._came[length] += len(shard.ids)
        self.made += len(shard.ids)


_Pass = Callable[[Tensor, Tensor], Tensor]
"""Takes ids and targets, leaves gradients, returns the loss."""


def _pass(model: PreTrainedModel, rows: int, length: int, device: torch.device) -> _Pass:
    """Return the forward and backward pass for one shape; on CUDA captured in a graph."""

    def run(ids: Tensor, targets: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, cache_enabled=False):
            logits = model(input_ids=ids, use_cache=False).logits
        loss = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=NOT_LEARNT)
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.zero_()
        loss.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return loss

    if device.type != "cuda":
        return run
    ids = torch.zeros(rows, length, dtype=torch.long, device=device)
    targets = torch.zeros_like(ids)
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # untyped in torch
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            run(ids, targets)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=aside):
        loss = run(ids, targets)

    def replay(new_ids: Tensor, new_targets: Tensor) -> Tensor:
        ids.copy_(new_ids)
        targets.copy_(new_targets)
        graph.replay()
        return loss

    return replay


def _optimizer(model: PreTrainedModel, settings: Settings) -> torch.optim.Optimizer:
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.95), fused=True)


class _FusedNorm(nn.Module):
    """Root-mean-square norm in one kernel, in its input's type."""

    def __init__(self, weight: nn.Parameter, eps: float) -> None:
        super().__init__()
        self.weight = weight
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def _fuse_norms(model: PreTrainedModel) -> None:
    """Compute all norms by one kernel each; weights and their names stay."""
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child).__name__.endswith("RMSNorm"):
                weight = child.weight
                assert isinstance(weight, nn.Parameter), "a norm's weight is a parameter"
                setattr(parent, name, _FusedNorm(weight, float(child.variance_epsilon)))  # type: ignore[arg-type]

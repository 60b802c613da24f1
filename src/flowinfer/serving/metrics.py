"""What the server counts, in Prometheus' form."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from flowinfer.results import Trace
from flowinfer.serving.flows import ServedFlow
from flowinfer.serving.responder import ReplicaState, Responder

_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """Counters of one server.

    Args:
        service: its questions, loops and models are looked at when they are asked for.
    """

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, service: Responder) -> None:
        self._registry = registry = CollectorRegistry()
        by_flow = ("flow",)
        by_head = ("flow", "step", "model")
        self.requests = Counter(
            "flowinfer_requests",
            "Requests by flow and status; those that reached no flow have none.",
            ("flow", "status"),
            registry=registry,
        )
        self.prompt_tokens = Counter(
            "flowinfer_prompt_tokens", "Tokens read, summed over calls of models.", by_flow, registry=registry
        )
        self.completion_tokens = Counter(
            "flowinfer_completion_tokens", "Tokens written, by step once.", by_flow, registry=registry
        )
        self.first = Histogram(
            "flowinfer_time_to_first_token_seconds",
            "From a request to the first piece of its answer.",
            by_flow,
            buckets=_SECONDS,
            registry=registry,
        )
        self.between = Histogram(
            "flowinfer_time_per_token_seconds",
            "Time of a step by the tokens that it wrote.",
            by_flow,
            buckets=_TOKEN_SECONDS,
            registry=registry,
        )
        self.whole = Histogram(
            "flowinfer_request_seconds", "From a request to its end.", by_flow, buckets=_SECONDS, registry=registry
        )
        self.heads = Counter("flowinfer_head_forward_seconds", "Forwards by head and step.", by_head, registry=registry)
        self.drafted = Counter("flowinfer_drafted_tokens", "Tokens guessed ahead.", by_flow, registry=registry)
        self.accepted = Counter("flowinfer_accepted_tokens", "Those that were right.", by_flow, registry=registry)
        queue = Gauge("flowinfer_questions_waiting", "Questions that the engine has not taken.", registry=registry)
        queue.set_function(lambda: service.num_waiting)
        rows = Gauge("flowinfer_questions_under_way", "Questions that are being answered.", registry=registry)
        rows.set_function(lambda: len(service.under_way))
        registry.register(_Loops(service))

    def refused(self, status: int) -> None:
        """Count a request that reached no flow."""
        self.requests.labels("", str(status)).inc()

    def answered(self, flow: ServedFlow, trace: Trace) -> None:
        """Count what an answer has cost."""
        for result in trace.steps:
            for head in result.heads:
                self.heads.labels(flow.name, result.step, head.model).inc(head.forward_seconds)
            self.prompt_tokens.labels(flow.name).inc(sum(head.prompt_tokens for head in result.heads))
            self.completion_tokens.labels(flow.name).inc(result.tokens)
            self.drafted.labels(flow.name).inc(result.drafted_tokens)
            self.accepted.labels(flow.name).inc(result.accepted_tokens)
            if result.tokens:
                self.between.labels(flow.name).observe(result.seconds / result.tokens)

    def text(self) -> bytes:
        """Return all of it."""
        return generate_latest(self._registry)


class _Loops(Collector):
    """What is read off the engine: rows and pages of its loops, what swapping has cost, what each replica does."""

    def __init__(self, service: Responder) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        """Yield what is so now."""
        loops = self._service.loops
        rows = GaugeMetricFamily("flowinfer_rows", "Rows of a decoding loop that have not ended.", labels=["loop"])
        titles = dict.fromkeys(loop.title for loop in loops)
        for title in titles:
            rows.add_metric([title], sum(loop.num_rows for loop in loops if loop.title == title))
        yield rows
        pages = GaugeMetricFamily(
            "flowinfer_free_kv_pages",
            "Pages for keys and values that no row has, of loops whose whole steps run on GPUs.",
            labels=["loop", "model"],
        )
        for title, model in dict.fromkeys((loop.title, model) for loop in loops for model in loop.free_pages):
            own = [loop.free_pages.get(model, 0) for loop in loops if loop.title == title]
            pages.add_metric([title, model], sum(own))
        yield pages
        seconds = self._service.loading.swap_seconds
        yield CounterMetricFamily("flowinfer_swaps", "Changes of the models in memory.", value=len(seconds))
        yield CounterMetricFamily("flowinfer_swap_seconds", "What these have taken.", value=sum(seconds))
        if self._service.replicas:
            yield from _by_replica(self._service.replicas)


def _by_replica(states: Sequence[ReplicaState]) -> Iterator[Metric]:
    for family, value in (
        (GaugeMetricFamily("flowinfer_replica_ready", "Whether a replica answers.", labels=["replica"]), "is_ready"),
        (GaugeMetricFamily("flowinfer_replica_rows", "Rows that it has to write.", labels=["replica"]), "rows"),
        (CounterMetricFamily("flowinfer_replica_answered", "Its answers.", labels=["replica"]), "answered"),
        (CounterMetricFamily("flowinfer_replica_starts", "Its starts after a loss.", labels=["replica"]), "starts"),
    ):
        for state in states:
            family.add_metric([str(state.replica)], getattr(state, value))
        yield family

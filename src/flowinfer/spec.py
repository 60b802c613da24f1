"""The checked flow: every name resolved, every option typed, every prompt and role decided.

`language.check` builds these from a syntax tree; graph and plan read them. Nothing here knows about text
positions except the spans kept for messages, and nothing knows about tensors.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from flowinfer.errors import Diagnostic, Span
from flowinfer.output.secrets import learn_address, public_address

Role = Literal["draft", "review", "verify"]

DRAFTS = ("auto", "off", "upstream", "ngram", "alternate")
"""Where drafts come from, besides models by name."""

RENAMED = {"draft": "speculate"}
"""Former words for options, still read."""

QUANTIZATIONS = ("bnb-8bit", "bnb-4bit")
"""What the local backend can do to weights while it loads them."""
QUANTIZERS = ("bitsandbytes", "accelerate")
"""Packages that it needs for that."""


class Thought(NamedTuple):
    """The marks around a thought."""

    opens: str
    closes: str


THOUGHTS = (
    Thought("<think>", "</think>"),
    Thought("[THINK]", "[/THINK]"),
    Thought("<seed:think>", "</seed:think>"),
    Thought("\u25c1think\u25b7", "\u25c1/think\u25b7"),
)
"""Marks by which models think: R1 and most others, Magistral, Seed-OSS, Kimi. A tokenizer that has one as a token lets
its model write it, and it is text, be it a control token or not."""


COSTS = ("input_cost", "output_cost", "cached_cost")
"""Options of a model that say what its endpoint costs."""

GGUF_OPTIONS = ("gpu_layers", "kv_type", "context_length", "threads", "mmap")
"""Options of a model in a GGUF file."""
_MEANS = ("gpu_layers", "threads", "mmap")
"""Those of them that decide no text."""
_GPU = "cuda:(0|[1-9][0-9]*)"
"""A GPU in the one way in which its name is written."""
_PORT = r"(?:[1-9]\d{0,3}|[1-5]\d{4}|6[0-4]\d{3}|65[0-4]\d\d|655[0-2]\d|6553[0-5])"
"""1 to 65535."""
ELSEWHERE = rf"(?!cpu:|cuda:|auto:)[\w.-]+:{_PORT}|\[[0-9a-fA-F:.]+\]:{_PORT}"
DEVICES = "auto, cpu, cuda, cuda:N, or HOST:PORT of a head elsewhere"
_NOT_TRIED = (
    f"{DEVICES} (transformers was never tried on Apple's GPUs here;"
    " a model's GGUF file computes there: backend=gguf, gpu_layers=-1)"
)
SPLIT_DEVICES = 'one device, or a list of two or more different GPUs, as in ["cuda:0", "cuda:1"]'
"""What the option `device` can be, in words."""


def device_words(device: object) -> str:
    """Return what the option `device` can be instead of what it is, in words."""
    if not isinstance(device, str):
        return SPLIT_DEVICES
    return _NOT_TRIED if re.fullmatch(r"(mps|metal)(:\d+)?", device) else DEVICES


def place_help(text: object) -> str | None:
    """Return what may be wrong with a text that should be HOST:PORT, in words."""
    if not isinstance(text, str):
        return None
    if text.count(":") > 1 and re.fullmatch(r"[0-9a-fA-F:.]+", text):
        return "an IPv6 address stands in brackets: [::1]:7070"
    is_too_high = re.fullmatch(r"(?!cpu:|cuda:|auto:)([\w.-]+|\[[0-9a-fA-F:.]+\]):[1-9]\d{4,}", text)
    return "ports end at 65535" if is_too_high and not re.fullmatch(ELSEWHERE, text) else None


class ModelSpec(BaseModel):
    """One model as a zoo or a `model` declaration states it; strict: "yes" is no truth value."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: str
    """Short name, as written in flows."""
    ref: str
    """Hub id, or path of a local folder (absolute once resolved)."""
    backend: str = "hf"
    """Registered backend that loads it."""
    revision: str | None = None
    """Hub revision: branch, tag or commit."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weight type; auto = the checkpoint's own on a GPU, float32 on a CPU."""
    device: str | tuple[str, ...] = "auto"
    """`auto`, `cpu`, `cuda` or `cuda:N`; several GPUs: its layers lie on them one after another."""
    think: Literal["strip", "keep"] = "strip"
    """Whether what stands between the marks of a thought (`THOUGHTS`) reaches the next stage."""
    chat: Literal["auto", "off"] = "auto"
    """Apply the tokenizer's chat template if it has one, or never."""
    system: str | None = None
    """System message of the chat template."""
    quantization: str | None = None
    """Quantization scheme handed to the backend, e.g. bnb-4bit."""
    trust_remote_code: bool = False
    """Run code that comes with the checkpoint."""
    gpu_layers: int | None = Field(default=None, ge=-1)
    """Layers of a GGUF file that a GPU computes, -1 = all; None = none where its device is `cpu`, else all."""
    kv_type: Literal["auto", "float32", "float16", "q8_0"] = "auto"
    """Type of keys and values of a GGUF file; auto = float32 where its weights are, else float16."""
    context_length: int | None = Field(default=None, ge=1)
    """Most ids of a row of a GGUF file, where fewer are wanted than its metadata says."""
    threads: int | None = Field(default=None, ge=1)
    """Threads of a GGUF file's forward; None = its share of all."""
    mmap: bool = True
    """Map a GGUF file into memory instead of reading it."""
    base_url: str | None = None
    """Endpoint of a text-only backend; user, password and keys in it are masked, see `address`."""
    api_key_env: str | None = None
    """Environment variable that holds the endpoint's key."""
    parallel: int = Field(default=8, ge=1, le=1024)
    """Most requests to the endpoint at once."""
    headers: Mapping[str, str] = Field(default_factory=dict)
    """What the endpoint is sent with every request; `$NAME` in a value stands for a variable of the environment."""
    extra_body: Mapping[str, Any] = Field(default_factory=dict)
    """What the endpoint is asked with besides a step's own options."""
    input_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """Cost of a million tokens that the endpoint reads, in whatever money."""
    output_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The same of those that it writes."""
    cached_cost: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """The same of those that it reads and has read before; None = as all others."""
    _address: str | None = PrivateAttr(None)

    @model_validator(mode="before")
    @classmethod
    def _reach(cls, options: Any) -> Any:
        """Read `device="HOST:PORT"` as what it is short for."""
        return reached(options) if isinstance(options, dict) else options

    @field_validator("device", mode="before")
    @classmethod
    def _check_device(cls, device: object) -> object:
        """Refuse what names no device, and lists that split nothing."""
        if isinstance(device, list | tuple):
            numbered = [one for one in device if isinstance(one, str) and re.fullmatch(_GPU, one)]
            if len(numbered) < len(device) or len(set(numbered)) < max(2, len(device)):
                raise ValueError(SPLIT_DEVICES)
            return tuple(device)
        if not isinstance(device, str):
            raise ValueError(SPLIT_DEVICES)
        if not re.fullmatch(f"auto|cpu|cuda|{_GPU}", device):
            raise ValueError(device_words(device))
        return device

    def model_post_init(self, context: Any, /) -> None:
        """Keep what is secret in the address out of everything that is shown, stored or hashed."""
        self._address = self.base_url
        learn_address(self.base_url or "")
        self.__dict__["base_url"] = public_address(self.base_url) if self.base_url else self.base_url

    @property
    def address(self) -> str | None:
        """Return base_url as it was written, to connect with and for nothing else."""
        return self._address

    def decisive(self) -> dict[str, Any]:
        """Return what of it decides its texts, as plain data: not its name or device, nor how it is reached or paid.

        What is newer than the first stored results stands in it only where it is given, so that these stay valid.
        """
        newer = {name for name in ("headers", "extra_body", "context_length") if not getattr(self, name)}
        newer |= {"kv_type"} if self.kv_type == "auto" else set()
        return self.model_dump(exclude={"name", "device", "api_key_env", "parallel", *COSTS, *_MEANS, *newer})


def reached(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's options where `device="HOST:PORT"` is short for a head there: its backend and address."""
    device = options.get("device")
    if not isinstance(device, str) or not re.fullmatch(ELSEWHERE, device):
        return dict(options)
    return {**options, "device": "auto", "backend": options.get("backend", "remote"), "base_url": device}


@dataclass(frozen=True)
class Share:
    """The layers of a model that one device holds."""

    device: str
    layers: int
    """How many; 0 = not known before it is loaded."""
    part: float
    """Of the model's bytes."""


class Decoding(BaseModel):
    """How one step is decoded; the same fields are the options of nodes, groups and `defaults`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_tokens: int = Field(512, ge=1, le=2**31 - 1)
    """Most tokens that the step emits."""
    temperature: float = Field(0.0, ge=0.0, le=1e6, allow_inf_nan=False)
    """0 = greedy; at 1,000,000, the most, every token is as likely as any."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus of the fused distribution that sampling draws from."""
    seed: int = 42
    """Seed of sampling; each question has its own stream."""
    stop: tuple[str, ...] = ()
    """Texts that end the step; cut from its output."""
    stop_tokens: tuple[str, ...] = ()
    """Further special tokens that end the step."""
    fuse: str = "mean"
    """Registered fuser of a `|` group."""
    fuse_options: Mapping[str, Any] = Field(default_factory=dict)
    """The fuser's own parameters, checked against its registration."""
    context: Literal["native", "canonical"] = "native"
    """How a head continues text that it would have tokenized otherwise (fusion.md 2.5)."""
    eos: Literal["sum", "max"] = "sum"
    """How a head's several end tokens are pooled."""
    utf8: Literal["strict", "off"] = "strict"
    """Refuse tokens that would make the text invalid UTF-8."""
    lstrip_first: Literal["auto", True, False] = "auto"
    """In a group where only some heads begin an answer with a space, count their first token as the one without it:
    auto = where the rendered prompts show it; true = heads with a dummy prefix (Llama-2, Mistral) beside others."""
    thinking: Literal["together", "free"] = "together"
    """How heads of a group begin where only some chat templates open <think>: together = those thoughts are closed at
    once, so that all heads write the answer; free = each begins where its template ends."""
    strict: bool = False
    """Decide near ties again by a forward of that row alone, so that no batch can sway them."""
    near_tie_eps: float = Field(0.0, ge=0.0, le=1.0)
    """Lead below which a choice is a near tie; 0 = by precision: 1e-6 in float32, 1e-3 in half precision."""
    topk: Literal["auto", "dense", "certified"] = "auto"
    """Whether heads exchange whole distributions or certified top candidates."""
    prefill: str = ""
    """Text that every head's answer starts with."""
    by: Literal["text", "likelihood"] = "text"
    """How it answers: it writes a text, or gives the likeliest of a question's choices, by its letter."""
    speculate: str = Field("auto", validation_alias=AliasChoices("speculate", "draft"))
    """What guesses tokens ahead, to be verified together: one of `DRAFTS` or a model. It never decides the text."""

    def decisive(self) -> dict[str, Any]:
        """Return what of it decides the text, as plain data.

        `lstrip_first` stands in it as it did when false was the default, so that stored results stay valid where
        nothing has changed: auto as false, and false as never. See `adoption.renamed` for where something has.
        """
        of_old = {"auto": False, True: True, False: "never"}
        newer = {"by"} if self.by == "text" else set()  # stored results of before stay valid
        whole = self.model_dump(mode="json", exclude={"speculate", *newer})
        return whole | {"lstrip_first": of_old[self.lstrip_first]}

    def of_loop(self) -> dict[str, Any]:
        """Return what all rows of one decoding loop have in common, as plain data; in the rest each has its own."""
        return self.model_dump(mode="json", exclude={"max_tokens", "temperature", "top_p", "seed", "stop"})


@dataclass(frozen=True)
class Node:
    """One call of one model."""

    id: str
    """Unique in the flow: n1, n2, ... in order of appearance."""
    model: ModelSpec
    role: Role
    template: str
    """Prompt template with {fields}."""
    decoding: Decoding
    span: Span
    label: str | None = None
    prompt_name: str | None = None
    """Name of the prompt declaration it uses, None for a role's own or an inline text."""


Signal = Literal[
    "answered", "confidence", "lead", "agreement", "votes", "judge", "unchanged", "agree", "enough", "quorum", "pick"
]
"""What a text can be accepted by: see docs/control.md. Of `pick` the question decides, before there is a text."""


GRADED: tuple[Signal, ...] = ("confidence", "lead", "agreement", "votes")
"""Those that need a threshold."""
AUTO = 2.0
"""A threshold that is still to be fitted: nothing reaches it, so that everything is tried."""


@dataclass(frozen=True)
class Rule:
    """When a text is accepted, so that those after it need not be written."""

    signal: Signal
    at: float = 1.0
    """Least value of the signal; signals that say yes or no are 1 or 0."""
    judge: str = ""
    """Name of the model that says yes or no, where one is asked."""

    def __str__(self) -> str:
        named = f"judge({self.judge})" if self.judge else self.signal
        if self.signal not in (*GRADED, "enough", "quorum"):
            return named
        return f"{named} >= auto" if self.at == AUTO and self.signal != "quorum" else f"{named} >= {shortest(self.at)}"


@dataclass(frozen=True)
class Quorum:
    """How many members of a group will do, so that a dead or a slow one does not fail the question."""

    least: int
    """Answers, or heads of a `|` group, that there have to be."""
    timeout: float | None = None
    """Seconds since the first member began, after which the group goes on with what is there."""
    wait: float | None = None
    """Seconds that it waits for the others once there are enough; None = for all, as long as they take."""


@dataclass(frozen=True)
class Series:
    """Stages that read one another's text, first to last."""

    stages: tuple[Part, ...]


@dataclass(frozen=True)
class Branch:
    """One member of a group with its share."""

    part: Part
    weight: float
    """Normalized: the weights of a group sum to 1."""


@dataclass(frozen=True)
class Parallel:
    """A group: `|` writes one text together (fuse), `&` gives independent answers."""

    id: str
    """Unique in the flow: g1, g2, ..."""
    kind: Literal["fuse", "answers"]
    branches: tuple[Branch, ...]
    decoding: Decoding
    span: Span
    is_weighted: bool = False
    """Whether the weights were written."""
    label: str | None = None
    quorum: Quorum | None = None
    """How many members will do; None = all. In a `|` group only heads elsewhere can be lost."""


@dataclass(frozen=True)
class Routes:
    """A table as a choice group picks by it: columns in the order of its members."""

    name: str
    """Of the file, as the flow names it."""
    digest: str
    """Of the file's content."""
    neighbours: int
    members: tuple[str, ...]
    """The flows, as written."""
    tokens: tuple[float, ...]
    """Of each member, what a question costs: of equals the cheapest is picked."""
    questions: tuple[str, ...] = field(compare=False)
    """Like what is below, known by digest and members: a hundred thousand are not compared for each question."""
    right: tuple[str, ...] = field(compare=False)
    """Of each question, for each member 1 or 0."""


@dataclass(frozen=True)
class Choice:
    """Parts that are tried in order until the rule accepts what they gave, which is decided while a question runs."""

    id: str
    """Unique in the flow, as of groups."""
    kind: Literal["choice", "repeat", "samples"]
    """Members of `(A / B)`, one of which gives the text; rounds of `(A)*3`, each of which reads the one before; samples
    of `A[samples=16]`, all of which are answers."""
    tries: tuple[Part, ...]
    """What is tried, in order; the last is taken as it comes. Of samples two are drawn at least."""
    rule: Rule | None
    """None: all are tried."""
    span: Span
    label: str | None = None
    judges: tuple[Node, ...] = ()
    """What says yes or no to each but the last, where the rule asks a model."""
    routes: Routes | None = None
    """The table by which one member is picked, before any runs."""

    @property
    def taken_late(self) -> bool:
        """Return whether it is decided while a question runs which part gives the text, or how many do."""
        return self.rule is not None and len(self.tries) > 1


Part = Node | Series | Parallel | Choice


@dataclass(frozen=True)
class Flow:
    """A checked flow, ready to be drawn and planned."""

    name: str
    """File stem, or "flow" for text."""
    source: str = field(repr=False)
    """The text it was read from."""
    root: Part
    models: Mapping[str, ModelSpec]
    """The models that the flow calls, by name."""
    prompts: str
    """Name of its prompt set."""
    zoo: str
    """Name of the zoo that its undeclared models came from."""
    zoo_why: str = ""
    """Why that zoo."""
    zoo_note: str | None = None
    """What one must know before believing its answers."""
    uses_zoo: bool = True
    """Whether it calls a model that it does not declare itself."""
    warnings: tuple[Diagnostic, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)
    """Values of its params after --set."""
    served_as: str | None = None
    """The name that clients of a server are to know it by, where its text says one."""

    @property
    def words(self) -> str:
        """Return in whose words it asks whose models, to be told before it runs."""
        return f"prompts '{self.prompts}'" + (f", zoo {self.zoo} ({self.zoo_why})" if self.uses_zoo else "")

    @property
    def model_name(self) -> str:
        """Return the name of the model that it is to clients of a server."""
        return self.served_as or self.name


MODEL_NAMES = "1 to 100 visible characters, with something between all '/' that is not . or .."
"""What a flow's name as a model can be, in words: it stands in addresses, logs and metrics."""


def is_model_name(name: object) -> bool:
    """Return whether a flow can be served under a name."""
    if not isinstance(name, str) or not name.isprintable() or len(name) > 100:
        return False
    return all(part == part.strip() and part not in ("", ".", "..") for part in name.split("/"))


def nodes(part: Part) -> Iterator[Node]:
    """Yield every model call of a part in order of appearance."""
    match part:
        case Node():
            yield part
        case Series(stages):
            for stage in stages:
                yield from nodes(stage)
        case Parallel():
            for branch in part.branches:
                yield from nodes(branch.part)
        case Choice():
            for one in (*part.tries, *part.judges):
                yield from nodes(one)


def written(part: Part) -> str:
    """Return a part as a flow writes it, with what decides how much of it runs, and without other options."""
    match part:
        case Node():
            return part.model.name
        case Series(stages):
            return " -> ".join(map(written, stages))
        case Parallel():
            mark = " | " if part.kind == "fuse" else " & "
            return f"({mark.join(written(branch.part) for branch in part.branches)})" + _waits(part.quorum)
        case Choice(kind="choice"):
            return f"({' / '.join(map(written, part.tries))})" + _bracketed(_decided(part, "accept"))
    inner = written(part.tries[0])
    if part.kind == "samples":
        return inner + _bracketed([f"samples={len(part.tries)}", *_decided(part, "")])
    is_group = isinstance(part.tries[0], Parallel | Choice) and inner.endswith(")")
    return (inner if is_group else f"({inner})") + f"*{len(part.tries)}" + _bracketed(_decided(part, "until"))


def _decided(part: Choice, key: str) -> list[str]:
    """Return the options that say which of its texts a choice takes."""
    rule = part.rule
    if part.routes is not None:
        return [f'pick="{part.routes.name}"']
    if rule is None or rule.signal == "enough":
        return [] if rule is None else [f"enough={shortest(rule.at)}"]
    at = [] if rule.signal not in GRADED else ["at=auto" if rule.at == AUTO else f"at={shortest(rule.at)}"]
    return [f"{key}=judge({rule.judge})" if rule.judge else f"{key}={rule.signal}", *at]


def _waits(quorum: Quorum | None) -> str:
    if quorum is None:
        return ""
    seconds = {"timeout": quorum.timeout, "wait": quorum.wait}
    said = [f"{key}={shortest(value)}" for key, value in seconds.items() if value is not None]
    return _bracketed([f"min={quorum.least}", *said])


def shortest(number: float) -> str:
    """Write a number in six digits, or in as many as it has."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _bracketed(options: Sequence[str]) -> str:
    return f"[{', '.join(options)}]" if options else ""


def draws_samples(part: Part) -> bool:
    """Return whether something in a part asks for several samples of one prompt."""
    match part:
        case Series(stages):
            return any(map(draws_samples, stages))
        case Parallel():
            return any(draws_samples(branch.part) for branch in part.branches)
        case Choice():
            return part.kind == "samples" or any(map(draws_samples, part.tries))
    return False


def speculations(part: Part) -> Iterator[str]:
    """Yield the option `speculate` of everything in a part that decodes on its own."""
    match part:
        case Node():
            yield part.decoding.speculate
        case Series(stages):
            for stage in stages:
                yield from speculations(stage)
        case Parallel():
            yield part.decoding.speculate
            for branch in part.branches:
                yield from speculations(branch.part)
        case Choice():
            for one in (*part.tries, *part.judges):
                yield from speculations(one)

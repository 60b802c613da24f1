"""What each diagnostic code means, with a wrong and a right example, for `flowinfer explain`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """One code."""

    title: str
    text: str
    wrong: str
    right: str


CODES: Mapping[str, Entry] = {
    "E0001": Entry(
        "unexpected character",
        "A flow is made of names, texts in quotes, numbers and the marks -> | & / * ( ) [ ] { } : , = $ #. Others"
        " may stand in comments and quoted texts only.",
        "Qwen -> Yi@latest",
        'model "Yi@latest" = "org/yi"\nQwen -> "Yi@latest"',
    ),
    "E0002": Entry(
        "full-width punctuation",
        "Chinese input methods write full-width brackets, commas and colons, which look like the language's marks but"
        " are other characters. `flowinfer fmt` replaces them.",
        "Qwen -> （Yi ｜ Ds）",
        "Qwen -> (Yi | Ds)",
    ),
    "E0003": Entry(
        "text that is not closed",
        'A text in quotes ends on its own line; longer ones stand between """ and """.',
        'model Qwen = "Qwen/Qwen2.5-7B-Instruct\nQwen',
        'model Qwen = "Qwen/Qwen2.5-7B-Instruct"\nQwen',
    ),
    "E0004": Entry(
        "bracket that is never closed",
        "Every ( [ { needs its ) ] }. The place shown is the opening one.",
        "Qwen -> (Yi | Ds",
        "Qwen -> (Yi | Ds)",
    ),
    "E0005": Entry(
        "closing bracket that fits no opening one",
        "A bracket closes what was not opened, or another kind of bracket than the last opened.",
        "Qwen -> (Yi | Ds]",
        "Qwen -> (Yi | Ds)",
    ),
    "E0006": Entry(
        "missing operator",
        "Two stages side by side need an operator: -> between stages, | or & between the branches of a group.",
        "Qwen (Yi | Ds)",
        "Qwen -> (Yi | Ds)",
    ),
    "E0007": Entry("doubled operator", "One -> joins two stages.", "Qwen -> -> Ds", "Qwen -> Ds"),
    "E0008": Entry(
        "wrong arrow",
        "Stages are joined by -> (or →). Other arrows have no meaning; `flowinfer fmt` rewrites them.",
        "Qwen => Ds",
        "Qwen -> Ds",
    ),
    "E0009": Entry(
        "comma in a flow",
        "Commas separate options. The branches of a group are separated by | (one text written together) or &"
        " (independent answers).",
        "(Qwen, Ds)",
        "(Qwen | Ds)",
    ),
    "E0010": Entry(
        "| and & in one group",
        "A group either writes one text together or gives independent answers. Nest one in the other to have both.",
        "(Qwen | Ds & Yi)",
        "((Qwen | Ds) & Yi)",
    ),
    "E0011": Entry("group without parentheses", "|, & and / live only inside parentheses.", "Qwen | Ds", "(Qwen | Ds)"),
    "E0012": Entry(
        "nothing where a model should be",
        "An operator needs a stage or group on both sides, a group at least one branch.",
        "Qwen -> ( | Ds)",
        "Qwen -> (Yi | Ds)",
    ),
    "E0013": Entry(
        "misplaced weight",
        "A weight is a number behind a whole branch of a | group.",
        "Qwen:0.5 -> Ds",
        "(Qwen:0.5 | Ds:0.5)",
    ),
    "E0014": Entry(
        "unexpected word",
        "Something else was expected here; the message names what may stand at this place.",
        "Qwen[max_tokens]",
        "Qwen[max_tokens=64]",
    ),
    "E0015": Entry(
        "unknown keyword",
        "Declarations begin with model, prompt, param, defaults, let or import.",
        'modle Qwen = "Qwen/Qwen2.5-7B-Instruct"\nQwen',
        'model Qwen = "Qwen/Qwen2.5-7B-Instruct"\nQwen',
    ),
    "E0016": Entry(
        "reserved word as a name",
        "model, prompt, param, defaults, let, import and as begin declarations. As a name they stand in quotes. As the"
        " key of an option they need none.",
        "model -> Qwen",
        'model "model" = "org/a"\n"model" -> Qwen',
    ),
    "E0017": Entry(
        "statement that ends too early",
        "Part of a declaration or label is missing.",
        "let chain\nQwen",
        "let chain = Qwen -> Ds\nchain",
    ),
    "E0018": Entry(
        "unknown escape",
        'In quoted texts a backslash begins \\n \\t \\r \\" \\\' \\\\ \\xHH or \\uHHHH. Texts between """ and """'
        " keep their backslashes, so that formulas can stand in them as they are.",
        'Qwen[prompt="{question} Answer in \\boxed."]',
        'Qwen[prompt="{question} Answer in \\\\boxed."]',
    ),
    "E0019": Entry(
        "name that nobody can see",
        "A name in quotes may hold spaces and marks, but it is not empty and holds no line breaks.",
        'model "" = "org/a"\n""',
        'model "my model" = "org/a"\n"my model"',
    ),
    "E0020": Entry(
        "no flow",
        "A file holds declarations and exactly one flow; only imported files hold declarations alone.",
        'model A = "org/a"',
        'model A = "org/a"\nA',
    ),
    "E0021": Entry(
        "two flows in one file",
        "A file states one flow. Name parts with let and join them, or use two files.",
        "Qwen -> Ds\nYi -> Ds",
        "Qwen -> Ds -> Yi",
    ),
    "E0022": Entry(
        "nested too deeply",
        "Brackets, and lets inside lets, may nest 64 levels deep.",
        "(" * 65 + "Qwen" + ")" * 65,
        "(Qwen | (Ds | Yi))",
    ),
    "E0023": Entry(
        "text that is no flow",
        "Nothing of a longer text can be read: it is no flow. None of its lines is shown.",
        "#!/bin/sh\nset -e\ncd /tmp\nls *.txt\nrm -f a.txt",
        "Qwen -> Ds",
    ),
    "E0024": Entry(
        "repeat that cannot be counted",
        "A part in parentheses runs again where '*' and a whole number from 1 to 64 stand behind it. Its second round"
        " reads the first one's text as {prev}.",
        "Qwen -> (Yi)*0",
        "Qwen -> (Yi)*3[until=unchanged]",
    ),
    "E0100": Entry(
        "unknown model",
        "The name is neither declared in the file or its imports nor in the zoo. `flowinfer models` lists zoos.",
        "Qwen -> Dss",
        "Qwen -> Ds",
    ),
    "E0101": Entry(
        "unknown prompt",
        "prompt= takes the name of a prompt declaration, a role (draft, review, verify), or a template in quotes.",
        "Yi -> Qwen[prompt=reveiw]",
        "Yi -> Qwen[prompt=review]",
    ),
    "E0102": Entry(
        "unknown fuser",
        "fuse= names how the heads' distributions become one; plug-ins may add more.",
        "(Qwen | Ds)[fuse=meen]",
        "(Qwen | Ds)[fuse=mean]",
    ),
    "E0103": Entry(
        "unknown param",
        "$name stands for a param declared in the file, whose value is its default or comes from --set.",
        "Qwen[max_tokens=$cap]",
        "param cap: int = 64\nQwen[max_tokens=$cap]",
    ),
    "E0104": Entry(
        "duplicate declaration",
        "A name is declared once in a file and everything that it imports.",
        'model A = "org/a"\nmodel A = "org/b"\nA',
        'model A = "org/a"\nmodel B = "org/b"\nA -> B',
    ),
    "E0105": Entry(
        "let that contains itself",
        "A let stands for its stages; it cannot hold itself.",
        "let a = Qwen -> a\na",
        "let a = Qwen\na -> a",
    ),
    "E0106": Entry(
        "import cycle",
        "Files import one another in a circle. Put what both need into a third file.",
        'import "cycle.flow"\nQwen',
        'import "models.flow"\nQwen',
    ),
    "E0107": Entry(
        "imported file that cannot be read",
        "Imports are relative to the importing file.",
        'import "nowhere.flow"\nQwen',
        'import "models.flow"\nQwen',
    ),
    "E0108": Entry(
        "flow in an imported file",
        "Imported files hold declarations only. Name the part with let to import it.",
        'import "flow.flow"  # which states: Qwen -> Ds\nQwen',
        'import "parts.flow"  # which states: let chain = Qwen -> Ds\nchain',
    ),
    "E0109": Entry(
        "label that cannot be",
        "A label names one stage's text. It cannot be used twice, nor be the name of a field (question, prev, answers,"
        " choices, result_k).",
        "Qwen as question -> Ds",
        "Qwen as first -> Ds",
    ),
    "E0110": Entry(
        "unknown prompt set",
        "The sets are paper, paper-table2 and en.",
        'defaults { prompts="papper" }\nQwen',
        'defaults { prompts="paper" }\nQwen',
    ),
    "E0111": Entry(
        "flow with too many model calls",
        "With its lets expanded a flow has at most 1000 model calls. Each let that uses another twice doubles them.",
        "let a0 = Qwen -> Ds\n" + "\n".join(f"let a{i} = a{i - 1} -> a{i - 1}" for i in range(1, 11)) + "\na10",
        "let pair = Qwen -> Ds\nlet twice = pair -> pair\ntwice",
    ),
    "E0112": Entry(
        "zoo that cannot be used",
        "The zoo of the defaults is neither registered nor a TOML file beside the flow, or that file is malformed."
        " `flowinfer models` lists zoos.",
        'defaults { zoo="papper" }\nQwen',
        'defaults { zoo="paper" }\nQwen',
    ),
    "E0200": Entry(
        "unknown option",
        "The option does not exist at this place; the help lists those that do.",
        "Qwen[max_token=64]",
        "Qwen[max_tokens=64]",
    ),
    "E0201": Entry(
        "option of the wrong type",
        "The option takes another kind of value.",
        "Qwen[max_tokens=many]",
        "Qwen[max_tokens=64]",
    ),
    "E0202": Entry(
        "option out of range",
        "The value is of the right kind but not allowed.",
        "Qwen[top_p=1.5]",
        "Qwen[top_p=0.9, temperature=0.7]",
    ),
    "E0203": Entry(
        "option of another fuser",
        "Each fuser has its own parameters.",
        "(Qwen | Ds)[fuse=mean, tau=0.5]",
        "(Qwen | Ds)[fuse=gated, tau=0.5]",
    ),
    "E0204": Entry("option given twice", "Keep one.", "Qwen[seed=1, seed=2]", "Qwen[seed=1]"),
    "E0205": Entry(
        "option at the wrong place",
        "A | group decodes as one: max_tokens, temperature and the like stand behind the outermost group, fuse behind"
        " any | group, prompt behind a model. topk, thinking and lstrip_first say how heads write together.",
        "(Qwen[max_tokens=64] | Ds)",
        "(Qwen | Ds)[max_tokens=64]",
    ),
    "E0206": Entry(
        "value that the option does not know",
        "The option takes one of a few words (speculate: or the name of a model); topk=certified only in a greedy group"
        " of models with fuse=mean.",
        "Qwen[context=nativ]",
        "Qwen[context=native]",
    ),
    "E0207": Entry(
        "options of a model that do not go together",
        "An endpoint needs its base_url. A local model takes the quantizations that its backend knows, on a GPU; a"
        " system message needs the chat template, a revision a hub id. A GGUF file is read by backend=gguf.",
        'model A = "org/a" { quantization="int3" }\nA',
        'model A = "org/a" { quantization="bnb-4bit" }\nA',
    ),
    "E0208": Entry(
        "option that the backend takes no notice of",
        "Every backend says which options of models and steps it heeds: an endpoint neither loads weights nor shows"
        " next-token distributions. Leave the option out, or use it with a local model.",
        'model T = "gpt" { backend=openai, base_url="http://localhost:8000/v1" }\nT[prefill="So:"]',
        'model T = "gpt" { backend=openai, base_url="http://localhost:8000/v1" }\nT[stop="So:"]',
    ),
    "E0300": Entry(
        "branch without weight among weighted ones",
        "All branches of a group have weights, or none.",
        "(Qwen:0.7 | Ds)",
        "(Qwen:0.7 | Ds:0.3)",
    ),
    "E0301": Entry(
        "weight that is no share",
        "Weights are positive and need not sum to 1: they are normalized. A branch whose share of the text would be"
        " below one in a billion could not change a token.",
        "(Qwen:1 | Ds:0)",
        "(Qwen:3 | Ds:1)",
    ),
    "E0302": Entry(
        "text-only model in a | group, or as a draft",
        "Writing together and drafting need next-token distributions, which endpoints do not give. Such a model can be"
        " a stage of its own or a branch of a & group.",
        'model T = "gpt" { backend=openai, base_url="http://localhost:8000/v1" }\n(T | Qwen)',
        'model T = "gpt" { backend=openai, base_url="http://localhost:8000/v1" }\n(T & Qwen)',
    ),
    "E0303": Entry(
        "& group as a head of a | group",
        "A & group gives whole texts; let a model read them first.",
        "((Qwen & Ds) | Yi)",
        "((Qwen & Ds) -> Qwen | Yi)",
    ),
    "E0304": Entry(
        "weight in a & or / group that does not vote",
        "A & group votes at the end of a flow; weights say how much a vote counts. Answers that a stage reads are not"
        " weighted, and of a / group one member answers.",
        "(Qwen:2 & Ds:1) -> Yi",
        "Yi -> (Qwen:2 & Ds:1 & Yi:1)",
    ),
    "E0305": Entry(
        "choice without a signal",
        "Members of a / group are tried in order, and the first answer that is accepted counts. accept says by what:"
        " answered, confidence, lead, agreement, votes or judge(MODEL). Or pick names a table that chooses one member"
        " before anything runs; then nothing is accepted.",
        "(Qwen / Yi)",
        "(Qwen / Yi)[accept=confidence, at=0.9]",
    ),
    "E0306": Entry(
        "signal and threshold that do not fit",
        "confidence, lead, agreement and votes are numbers from 0 to 1 and need at=; answered, unchanged, agree and"
        " judge(MODEL) say yes or no.",
        "(Qwen / Yi)[accept=confidence]",
        "(Qwen / Yi)[accept=confidence, at=0.9]",
    ),
    "E0307": Entry(
        "signal that a part cannot give",
        "agreement is of heads that write together, votes and agree are of several answers, and of an endpoint's text"
        " nobody knows how probable it was.",
        "(Qwen / Yi)[accept=agreement, at=0.9]",
        "((Qwen | Ds) / Yi)[accept=agreement, at=0.9]",
    ),
    "E0308": Entry(
        "samples that do not vote",
        "samples=16 asks one model, or one | group, as often and lets the answers vote; at temperature 0 they would"
        " all be the same. enough says how certain the majority has to be, so that the rest need not be drawn.",
        "Qwen[samples=16]",
        "Qwen[samples=16, temperature=0.8, enough=0.95]",
    ),
    "E0309": Entry(
        "quorum that cannot be",
        "min says how many members of a & group have to answer; timeout and wait, in seconds, say how long it waits for"
        " the others. Members of a debate read one another, so none may be missing. In a | group min says with how many"
        " heads the text goes on where heads of other hosts are lost.",
        "(Qwen & Ds)[timeout=20]",
        "(Qwen & Ds)[min=1, timeout=20]",
    ),
    "E0310": Entry(
        "routes that cannot be read",
        "pick names a file that flowinfer route wrote, relative to the flow's own file. It is read when the flow is"
        " checked.",
        '(Qwen / Yi)[pick="no_such_file.json"]',
        "(Qwen / Yi)[accept=answered]",
    ),
    "E0311": Entry(
        "routes of other flows",
        "A table of routes knows which flows it was learned from: each member of the group, put in the group's place,"
        " has to be one of them, and the group has to have them all.",
        '(Qwen / Yi)[pick="qwen_or_ds.json"]',
        "(Qwen / Yi)[accept=answered]",
    ),
    "E0400": Entry(
        "unknown field",
        "Templates know {question}, {choices}, {prev}, {answers}, {result_1}, {result_2}, ... and the labels of earlier"
        " stages, {$name} for params, and columns of the data set. A literal brace is written {{.",
        'Qwen[prompt="{qestion}"]',
        'Qwen[prompt="{question}"]',
    ),
    "E0401": Entry(
        "{result_k} before there is one",
        "{result_k} is the text of the k-th stage before this one.",
        'Qwen -> Ds[prompt="{result_2}"]',
        'Qwen -> Ds[prompt="{result_1}"]',
    ),
    "E0402": Entry(
        "{prev} in the first stage",
        "No text comes before the first stage; the roles review and verify read one.",
        'Qwen[prompt="{prev}"]',
        'Qwen[prompt="{question}"]',
    ),
    "E0403": Entry(
        "{answers} without a & group",
        "{answers} holds the answers of a & group before this stage.",
        'Qwen -> Ds[prompt="{answers}"]',
        '(Qwen & Yi) -> Ds[prompt="{answers}"]',
    ),
    "E0404": Entry(
        "braces that do not pair",
        "A literal brace in a template is doubled.",
        'Qwen[prompt="a { b"]',
        'Qwen[prompt="a {{ b"]',
    ),
    "E0405": Entry(
        "stage without words",
        "prompts=none hands a chat's messages to the first stage as they are. A stage that reads what others wrote must"
        " be told what to do with it: by a prompt of its own, or by another prompt set.",
        "defaults { prompts=none }\nQwen -> Ds",
        'defaults { prompts=none }\nQwen -> Ds[prompt="{question} {prev}"]',
    ),
    "W0100": Entry(
        "unused declaration",
        "Nothing in the flow uses it.",
        'prompt p = "{question}"\nQwen',
        'prompt p = "{question}"\nQwen[prompt=p]',
    ),
    "W0101": Entry(
        "model that is not on this machine, or not whole",
        "A reference that begins with ., / or ~ is a folder, relative to the file that names it; others are hub ids of"
        " the form owner/name. The flow can be checked without it, and run where it is. Of what is there, names, config"
        " and the headers of the weight files are read: a cut file, a missing shard or tokenizer is told.",
        'model A = "./no/such/folder"\nA',
        'model A = "org/a"\nA',
    ),
    "W0200": Entry(
        "option that does nothing",
        "Another option takes its effect away (top_p at temperature 0), or what defaults or --set say for the whole"
        " flow does nothing at a stage: its backend takes no notice of it, or no stage of the flow has a use for it.",
        "Qwen[top_p=0.9]",
        "Qwen[top_p=0.9, temperature=0.7]",
    ),
    "W0201": Entry(
        "former word for an option",
        "The option has another name now; the former one is still read. `flowinfer fmt` writes the present one."
        " `draft` became `speculate`, since draft is also the role of a prompt.",
        "Qwen -> Ds[draft=ngram]",
        "Qwen -> Ds[speculate=ngram]",
    ),
    "W0300": Entry(
        "group of one",
        "A group of one branch writes what its model alone would.",
        "(Qwen)",
        "Qwen",
    ),
    "W0301": Entry(
        "stage that reads nothing",
        "The stages before it write texts, and none of its prompts shows one.",
        'Qwen -> Ds[prompt="{question}"]',
        'Qwen -> Ds[prompt="{question} {prev}"]',
    ),
    "W0302": Entry(
        "field that the data set must fill",
        "The field is none that flowinfer fills: every item of the data set needs a field of this name. A run on data"
        " without it is refused, and so is a single prompt.",
        'Qwen[prompt="{context} {question}"]',
        'Qwen[prompt="{question}"]',
    ),
    "W0303": Entry(
        "flow that shows no question",
        "None of the fields in this flow's prompts is filled by the data set: every question is asked in"
        " the same words, and answered alike.",
        'Qwen[prompt="Answer the question."]',
        'Qwen[prompt="Answer the question: {question}"]',
    ),
    "W0304": Entry(
        "threshold that is not fitted yet",
        "With at=auto every member is tried and the last one taken, so that a run shows what each threshold would have"
        " given. flowinfer tune FLOW --on RUN fits it and writes the flow with the number in it.",
        "(Qwen / Yi)[accept=confidence, at=auto]",
        "(Qwen / Yi)[accept=confidence, at=0.9]",
    ),
    "W0305": Entry(
        "routes that do not pay",
        "On questions that had no part in it the table is no more accurate than its best member alone, or that may be"
        " chance (McNemar's exact test, 5 %). The file says by how much.",
        '(Qwen / Yi)[pick="chance.json"]',
        "Qwen",
    ),
    "W0306": Entry(
        "routes that were learned otherwise",
        "The table was learned from a flow of the same words with other models, prompts or options: a zoo, --set or"
        " --prompts may make the difference. Who was right there need not be right here.",
        '(Qwen[max_tokens=16] / Yi)[pick="routes.json"]',
        "Qwen",
    ),
}

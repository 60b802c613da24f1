"""What a text says of each option's letter, clause by clause: right, wrong, or nothing yet."""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise

WRONG = r"错|不(?:对|正确|符|吻|成立|行|合)|排除|\b(?:wrong|incorrect|false|not)\b|n't\b"
NEGATIVE = re.compile(
    rf"(?i){WRONG}|有(?:语病|歧义|误)|不(?:是|选|能|会|属于|准确|恰当|可能|一致|[当应]选)|并非|均非|无关|片面|矛盾"
    r"|除了?[A-H\s]|无中生有|偷换|以偏概全|张冠李戴|[✗✘❌]|太绝对|过于绝对|eliminat|distract|\b(?:cannot|except"
    r"|(?:all|anything|everything) but)\b|ruled? out|\bout\b|irrelevant|unrelated|\b(?:no|none|neither|nor)\b"
)
OPEN = re.compile(
    r"(?i)无法(?:判断|确定|得知|得出|选|回答)|(?:不能|难以)(?:判断|确定|得知)|不确定|(?:cannot|can't"
    r"|could not) (?:determine|decide|tell|say)|unsure|not sure"
)
"""What leaves open whether a letter is right."""
_REPORTED = r"(?<!\bi )(?<!\bwe )\b(?:thinks|claims|believes|guesse[sd])\b|\b(?:some|many|most) (?:people|students)\b"
REPORTED = re.compile(rf"(?i){_REPORTED}|^\W*suppose\b")
SUPPOSED = re.compile(
    rf"(?i){_REPORTED}|tempt|(?:might|may|could) (?:think|say|guess|assume|seem)|common (?:mistake|error"
    rf"|misconception)|would have"
    r"|\bat first\b|\binitially\b|起初|乍看|一开始|\bsuppose|\bassum|\bif (?:we|you|one|it)\b(?![^.]*, (?:then )?the)"
    r"|如果|假[设如]|(?:初看|看似|干扰|易错|误以为|误选|可能会|有人|容易|同学)[^,]*$"
)
_IMAGINED = re.compile(r"(?i)\bif\b[^.\n]*\bwould\b[^.\n]*[.\n]?\s*$")
_POSITIVE = re.compile(
    r"(?i)正确|准确|恰当|合适|(?<![来去似乎])合理|对的|成立|符合|才[是对]|最佳|当选|一致|吻合|无误|[✓√✔✅]"
    r"|[都均皆](?:是|为|属于)|\bare all\b|(?<=[A-H)]) all\b"
    r"|correct|right|true|\baccurate|best|better|likely|the answer|is the one|\byes\b|\bfits?\b"
)
CLAUSE = re.compile(
    r"(?i)[。，；,;!?！？\n]|\.\s|(?<!\ball )(?<!\banything )(?<!\beverything )"
    r"\b(?:but|while|whereas|because|since)\b|而(?!是|且)|但是?|因为|由于"
    r"|(?<=\s)(?=[A-H]:\s?[\u4e00-\u9fff])|(?<=[✗✘❌✓√✔✅])|(?<=[错对误确√]\))|(?<=错误)(?!的)|(?<=正确)(?!的)"
    r"|(?=其余|其[他它]|\bthe (?:other|rest|remaining)\b)|(?:→|⇒|=>)(?=\s*[A-H](?![A-Za-z]))"
)
_FAULTLESS = re.compile(r"(?i)没有?(?:错误?|问题|语病|毛病|错别字|歧义)|无误|\bnot (?:wrong|false|incorrect)")
_BEFORE_WORD = re.compile(
    r"(?i)(?:vitamins?|hepatitis|plan|type|grade|class|point|group|team|section|part|figure|维生素|肝炎|方案|计划"
    r"|集合|事件|角|点|边|矩阵|函数|物质|元素|图)\s*$|[A-Za-z0-9]\($"
)
_AFTER_WORD = re.compile(
    r"^\s?(?:同学|先生|型|股|超|语言|君|[城市楼级座点队车国地厂人板极端]|公司|[+#]|\([a-z0-9,]{1,4}\))|-[A-Za-z0-9]|^\s*="
)
_ARTICLE_BEFORE = re.compile(
    r"\s+(?!(?:and|or|is|are|was|because|since|as|can|cannot|would|must|should|may|might|could|will|isn|does|has"
    r"|seems|looks|appears|remains|fits|matches|states|says|describes|mentions|talks|refers|correctly|to|nor|but|here"
    r"|only|also|option)\b)[a-z]{2,}"
)
_PRONOUN_BEFORE = re.compile(r"\s+(?!(?:is|was|because|since|and|or|as|seems|looks|fits|matches)\b)[a-z]|'")
_DISCUSSED = re.compile(
    r"(?i)分析|[来先]看|考虑|看一?下|\b(?:consider(?:ed)?|look(?:ing)? at|examine|evaluate|between|initially|thought"
    r"|says|states|claims|describes|talks about|(?:al)?though)\b|在\s?[A-H].{0,7}(?:中|之间)|虽然|尽管"
)
_VERDICT = re.compile(
    r"(?i)\s*neither\b.*|\s*(?:所以|因此|故|是|so (?:it|this|that)(?:'s| is) |which (?:is|was) |it(?:'s| is) "
    r"|so )*(?:说法|表述|[他她它]们?)?(?:错[误了]?|不正确|不对|不符合?.{0,4}|排除|正确|对|不选|[当应]选|符合题意?"
    r"|wrong|incorrect|(?:not )?correct|right|out|no|yes)(?:的|选项)?[。;；，,.!\s]*"
    r"|\s*[这该此]个?选项[^,。;\n]{1,20}[,。;\s]*"
)
_MARKED = re.compile(r"[✗✘❌✓√✔✅]\W*$")
_MARK_BEHIND = re.compile(r"([.。])(\s?)([✗✘❌✓√✔✅])")
_LISTED = re.compile(
    r"(?<![A-Za-z])(?<!and )(?<!or )(?<![和或与])([A-H]\)?)\s*[,，]"
    r"\s*(?=(?:and |or |[和或]|以及)?\s*\(?[A-H](?![A-Za-z]))"
)
_ENUMERATOR = re.compile(
    r"(?i)(?m)^([\s*#>-]*(?:选项|option )?[(（]?[A-H][)）]?)(\.)(?=\s*\S)(?!\s*[A-H](?![A-Za-z]))"
    r"|((?<![A-Za-z])[A-H])(\.)(?=\s?(?:不?正确|不?对|错|[✗✘❌✓√✔✅]))|((?:^|(?<=\s))[A-H])(\.)(?=\s[\u4e00-\u9fff])"
)
_CONCLUDED = re.compile(
    r"(?i)(?:\b(?:so|therefore|thus|hence|it's|it is|must be|answer|leaves|clearly|obviously|definitely)"
    r"|(?:其实|实际上)(?:应该)?是?|显然是?|那就是|只?剩下?|即|所以|因此|综上|故|最终还是|→|⇒|=>)"
    r"[\s,:]*(?:it'?s |it is |it must be |option |the answer is |选项?|是)?"
    r"[\s*(\[【]*([A-H])[\s*)\]】]*(?:项|选项)?\s*[了啦]?"
    r"(?=(?:是?[最更][\u4e00-\u9fff]{1,5})?(?:$|[\n.。;；!,，])|\s+it is\b)"
)
_SOLE = re.compile(r"(?i)(?<!不)(?<!不是)(?:只有|\bonly)\s*(?:选项|option )?\(?([A-H])(?![A-Za-z])")
_WRONG = re.compile(
    r"(?i)错误|有误|(?<!没)有(?:错|语病|歧义)|不(?:正确|准确|恰当|妥|对|符|成立|属于|包括|包含|是|能|可|会|宜|应|合)|无关|除外|没有|未|并非"
    r"|incorrect|false|wrong|\bnot\b|n't|except|untrue|\bleast\b"
)


@dataclass(frozen=True)
class Polarity:
    """Letters by what is said of them."""

    right: frozenset[str]
    wrong: frozenset[str]
    bare: frozenset[str]
    concluded: str | None
    """The letter of the last "therefore C"."""


def masked(string: str) -> str:
    """Return a text of the same length in which lists of letters and "A." at a line's begin stay in one clause."""
    string = string.replace("**", "  ")
    string = _LISTED.sub(lambda match: match[0].replace(",", "、").replace("，", "、"), string)
    string = _MARK_BEHIND.sub(r"\3\2\1", string)
    return _ENUMERATOR.sub(lambda match: (match[1] or match[3] or match[5]) + ":", string)


def tokens(string: str, letters: str) -> list[int]:
    """List the places of letters that stand alone and can name an option."""
    places = []
    for match in re.finditer(
        rf"(?<![A-Za-z0-9_\\^=+*/<>∩∪⊂⊆∈’-])[{letters}](?![A-Za-z0-9_^=+*/<>∩∪⊂⊆∈’]|'[a-z])", string
    ):
        at = match.start()
        before, after = string[max(0, at - 14) : at], string[at + 1 :]
        word = {"A": _ARTICLE_BEFORE, "a": _ARTICLE_BEFORE, "I": _PRONOUN_BEFORE}.get(string[at])
        is_article = word is not None and word.match(after)
        if not (is_article or _BEFORE_WORD.search(before) or _AFTER_WORD.match(after)):
            places.append(at)
    return places


def polarity(string: str, places: list[int], question: str) -> Polarity:
    """Sort the letters at these places by what their clauses say of them; questions and doubts say nothing.

    Where a question asks for what is not so, saying that it is so, in its words, calls an option right.
    """
    is_so, is_not_so = _denied_in(question), _not_so(question)
    bounds = [0, *(match.end() for match in CLAUSE.finditer(string)), len(string)]
    said: dict[str, set[str]] = {"right": set(), "wrong": set(), "bare": set()}
    last: set[str] = set()
    only: str | None = None
    for begin, end in pairwise(bounds):
        letters = {string[at] for at in places[bisect_left(places, begin) : bisect_left(places, end)]}
        clause = _FAULTLESS.sub("正确", string[begin:end])
        if not letters and (_VERDICT.fullmatch(clause) or _MARKED.search(clause)):
            letters, said["bare"] = last, said["bare"] - last
        last = set() if re.search(r"[。;!\n]|\.\s", clause) else letters or last
        if (
            OPEN.search(clause)
            or SUPPOSED.search(clause)
            or _IMAGINED.search(string[max(0, begin - 80) : end])
            or (clause.endswith("?") and not NEGATIVE.search(clause))
        ):
            continue
        is_wrong = NEGATIVE.search(clause) or is_not_so.search(clause)
        is_right = _POSITIVE.search(clause) or (is_so and is_so in clause)
        if (sole := _SOLE.search(clause)) is not None and bool(is_wrong) == asks_wrong(question):
            only = sole[1]
        judged = "wrong" if is_wrong else "right" if is_right else "bare"
        if judged != "bare" or not _DISCUSSED.search(clause):
            said[judged] |= letters
    concluded = only
    for match in _CONCLUDED.finditer(string):
        before = re.split(r"[\n。!?;]|\.\s", string[max(0, match.start() - 60) : match.start()])[-1]
        if match.start(1) in places and not OPEN.search(before):
            concluded = match[1]
    return Polarity(**{name: frozenset(letters) for name, letters in said.items()}, concluded=concluded)


_EXCEPTED = re.compile(
    r"(?i)\b(?:all|every\w*|each)\b[^.\n]{0,40}\b(?:except|other than|apart from)\b|\bexcept\b[^.\n]{0,20}"
    r"\b(?:all|every)\b|\b(?:all|every|each)(?: (?:of )?(?:the(?:m|se)?|those))?"
    r"(?: (?:option|statement|choice|answer|one)s?)? but\b|(?<![排删去消])除"
)
"""That what is said of all options does not hold for the one that is named: all but B, 除B外."""
_ONLY = re.compile(
    r"(?i)(?P<not>\bnot\s+)?\bonly\s+(?:option |choice |statement |answer )?\W?$"
    r"|(?P<no>不)?(?:只有|唯有|仅有?)\W?(?:选项)?$"
)
_CALLED_WRONG = re.compile(
    r"(?i)[\s*)\]】\"”]*(?:\s(?:is|would be)\s(?:clearly |the )?(?:false|incorrect|wrong|untrue|not (?:true|correct))\b"
    r"(?! answer)"
    r"|(?:项|选项)?的?(?:说法|表述|叙述|描述)?是?(?:错误|不正确|不对|错)的?(?:\W*$|[,，](?!不)))"
)

_OF_STATEMENTS = re.compile(r"(?i)\b(?:statements?|true|false|(?:in)?correct|wrong)\b|说法|叙述|表述|正确|错误")


def singled_out(string: str, places: list[int], question: str) -> str | None:
    """Return the only letter of a text that says of it, or of all others, what the question asks for.

    Example: "All but B are correct" and "B is false" are B where the false one is asked for; "only B is correct" is
    the empty text there, since it leaves several.
    """
    if len(places) != 1:
        return None
    before = re.split(r"[。\n!?;]|\.\s", string[: places[0]])[-1]
    rest = re.split(r"[。\n!?;]|\.\s", string[places[0] :])[0]
    if OPEN.search(before + rest):
        return None
    only = _ONLY.search(before)
    is_excepted = not only and bool(_EXCEPTED.search(before + rest))
    if not only and not is_excepted:
        return string[places[0]] if asks_wrong(question) and is_denied_as_asked(rest[1:], question) else None
    is_wrong = bool(re.search(WRONG, before + rest, re.I))
    is_so = _denied_in(question)
    if not (is_wrong or re.search(r"[都均全]对", before + rest) or _POSITIVE.search(before + rest)) and not (
        is_so and is_so in before + rest
    ):
        return None
    is_told = not (only and (only["not"] or only["no"])) and (is_wrong != is_excepted) == asks_wrong(question)
    return string[places[0]] if is_told else ""


def is_denied_as_asked(rest: str, question: str) -> bool:
    """Return whether what follows an option denies it as a question does: false of a statement, or 不属于 of 不属于."""
    if _OF_STATEMENTS.search(question):
        return bool(_CALLED_WRONG.match(rest))
    return bool(_not_so(question).search(rest))


def asks_wrong(question: str) -> bool:
    """Return whether a question asks for the option that is wrong, or whatever the options else are not."""
    return _is_wrong(re.split(r"[。\n]\s*(?=\S)", question.strip())[-1])


def _denied_in(question: str) -> str:
    """Return what a question asks for the opposite of: 可再生能源 of 不属于可再生能源的是."""
    asked = re.split(r"[。\n]\s*(?=\S)", question.strip())[-1]
    denied = re.search(
        r"(?:不(?:属于|是|符合)|\b(?:is|are) not (?:an? |the )?)([^,，。?？_]{3,}?)(?=\s*(?:的|[_?？,，。(]|$))",
        asked,
        re.I,
    )
    return re.split("所", denied[1])[0] if denied else ""


def _not_so(question: str) -> re.Pattern[str]:
    """Match what denies in a question's own words."""
    is_so = _denied_in(question)
    return re.compile(rf"(?:[不非没]|\bnot\b|n't).{{0,4}}{re.escape(is_so)}" if is_so else r"(?!)", re.I)


def is_asked(described: str, question: str) -> bool:
    """Return whether a description such as 错误的 or "incorrect statement" is of what the question asks for."""
    return _is_wrong(described) == asks_wrong(question)


def _is_wrong(described: str) -> bool:
    return bool(_WRONG.search(_FAULTLESS.sub("", described)))

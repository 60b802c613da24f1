"""Which option of a single-choice question a text settles on."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flowinfer.tasks.answers.anchors import anchored
from flowinfer.tasks.answers.finding import Reader, find, is_broken_off
from flowinfer.tasks.answers.numbers import equal_numbers, gold_number
from flowinfer.tasks.answers.options import by_truth, completing, lettered
from flowinfer.tasks.answers.polarity import OPEN, WRONG, Polarity, asks_wrong, masked, polarity, singled_out, tokens
from flowinfer.tasks.answers.quantities import find_number
from flowinfer.tasks.answers.text import Found, Text

_ITEM = (
    r"(?:both\s+|either\s+)?(?:选项|项|option|choice)?\s*[(\[【<{*\"'“‘$]*\s*([A-Z])\s*[)\]】>}*\"'”’$]*"
    r"(?:项|选项)?(?![a-z])"
)
_TIGHT = re.compile(
    r"(?i)\s*(?:[,;(.。]\s*)?(?:[、/&+·|]|->|[→⇒]|\band/or\b|\b(?:and|or|as well as|plus)\b|(?<![,;.] )\bthen\b"
    r"|以及|[和与及]|或者?|还是)\s*"
    rf"(?:also\s+|maybe\s+|perhaps\s+|possibly\s+|可能是?|选)?{_ITEM}"
)
"""A further letter of a list, behind what can only join."""
_COMMA = re.compile(rf"\s*[,;，；]\s*(?:then\s+)?{_ITEM}")
"""One behind a comma, after which something else may begin."""
_PLAIN = re.compile(rf"\s*{_ITEM}")
_GOES_ON = re.compile(
    r"(?i)\s*(?:$|[.。!！?？,;，；\n<、]|(?:because|since|as|for|both|all|are|together|too|also)\b|[都均皆全对]|因为|是?正确)"
)
_ALSO = re.compile(
    rf"(?i)(?:{_ITEM}\s*(?:(?:is|would be|could be)\s+)?(?:also|too)\s+(?:correct|right|possible|acceptable|valid"
    rf"|works?)\b|{_ITEM}\s*也(?:是?(?:正确|对)|可以?|行)|\((?:also|or)\s+{_ITEM}\s*\))(?![^.。\n]*(?:\b(?:but|though|less)\b"
    rf"|但))"
)
"""That a further letter is as good as the one that was announced."""
_REACH = 60
"""Characters behind an announced letter in which such a one is looked for."""
_LIST_DENIED = re.compile(rf"(?i)[^\n。.;；,，]{{0,12}}?(?:{WRONG})")
_DENIED = re.compile(
    rf"(?i)[ \t)\]】*项选]*[\"'”’]?[ \t]*(?:[是都也并]?(?:is |was |are )?(?:{WRONG})|的(?:同学|人|学生|考生)"
    r"|的?(?:说法|答案|观点)?是?(?:错误|不对|干扰)|,?但是?[他她它这]们?(?:错|不对))"
)
_CONTRAST = re.compile(
    r"(?i)改|后来|而|但|不|应|其实|更|最终|还是|所以|因此|故|综上"
    r"|\b(?:wait|actually|no|but|rather|instead|final|so|therefore)\b"
)
_NONE_RIGHT = re.compile(
    r"(?i)(?:无|没有?|不存在)(?:一个|任何)?(?:正确|符合题意|合适)的?(?:答案|选项)|(?:以上|上述|四个选项|所有选项"
    r"|各选?项)[^,，。A-H\n]{0,6}[都均皆](?:不对|不正确|错误?)|\bno (?:correct|right|valid) (?:answer|option|choice)"
    r"|\bnone of (?:the|these) (?:\w+ )?(?:options|choices|answers)"
)
_SAYS_NONE = re.compile(r"(?i)[都均皆]|none|neither|no correct|没有|无")
_DENIES = re.compile(r"(?i)[不没非]|可能|或许|\b(?:not|may|might|could)\b|n't")
_BESIDE = re.compile(
    r"(?i)(?:\b(?:than|followed by|unlike|instead of|rather than|compared (?:to|with))|比|而不是|而非)"
    r"\s*(?:the\s+)?\W?$"
)
"""That a letter is only what the answer is compared with."""
_CONCLUDING = re.compile(r"(?i)(?:^|[.。!?,;\n])\s*(?:所以|因此|综上|故|可见|(?:so|therefore|thus|hence)\b)")
_OPENS = re.compile(
    r"[\s*_(\[【\"“]*(?:选项\s*)?([A-Z])[\s*_)\]】\"”]*"
    r"(?P<after>$|\n|[.。:)、,;](?=[^A-Za-z]|[A-Za-z]{2}|[A-Z]\s?项|$)|[(（]?(?:解析|理由|因为|分析|原因)|[-–—])"
)

_PLAIN_NUMBER = re.compile(r"-?[\d.,]+")
_QUANTITY = re.compile(rf"(?:Rs\.? ?|[$¥€£])?{_PLAIN_NUMBER.pattern}\s?%?")
_LIST_CUT = re.compile(r"(?:[^\w\n]*[A-Z]\s*[:.、][^\n]*\n+)+[^\w\n]*[A-Z]\s*[:.、]?\s*")
"""A list of options that stops behind a letter."""
_EXPLAINS = re.compile(r"(?i)[\s*#_]*(?:explanation|rationale|reason|解析|解释|分析|理由)")


def find_choice(text: Text, choices: Mapping[str, str], question: str) -> Found:
    """Find the one option: boxed > anchored > judged right > alone > its text."""
    refusal = None if any(map(_SAYS_NONE.search, choices.values())) else _NONE_RIGHT.search(text.string)
    return find(text.part(0, refusal.start()) if refusal else text, _Letters(choices=choices, question=question))


@dataclass(frozen=True, kw_only=True)
class _Letters(Reader):
    choices: Mapping[str, str]
    hears_denials: bool = False

    @property
    def letters(self) -> str:
        return "".join(self.choices)

    def boxed(self, box: Text) -> Found | None:
        held = re.sub(r"\\[a-zA-Z]+\s*(?=\{)|[{}]", "", box.string).strip()
        found = set(re.findall(rf"(?<![A-Za-z])[{self.letters}](?![A-Za-z])", held))
        if len(found) > 1 or re.fullmatch(rf"[{self.letters}]{{2,}}", held):
            return Found(None, "ambiguous", "boxed", box.span())
        if found:
            return Found(found.pop(), "ok", "boxed", box.span())
        return self._by_text(box, "boxed_text")

    def announced(self, text: Text, tails: list[Text]) -> Found | None:
        """Return what the last anchor with a letter, or with an option's text, says."""
        last: Found | None = None
        last_end = 0
        for begin, end, found in self._announcements(text, tails):
            is_other = last is not None and found.value not in (None, last.value)
            if is_other and found.rule == "anchor" and _is_list(text.string[last_end:begin]):
                found = Found(None, "ambiguous", "anchor", found.span)
            last, last_end = found, end
        if last is None or last.rule != "anchor" or asks_wrong(self.question):
            return last
        also = _ALSO.search(text.string, last_end)
        if also is None or also.start() > last_end + _REACH:
            return last
        others = {*filter(None, also.groups())} & set(self.letters) - {last.value}
        return Found(None, "ambiguous", "anchor", last.span) if others else last

    def _announcements(self, text: Text, tails: list[Text]) -> Iterator[tuple[int, int, Found]]:
        """Yield where each anchor's answer stands, and what it is."""
        head = re.compile(
            r"^[\s*_$\"'“”‘’(\[【「\\{]*(?:(?:most )?(?:likely|probably)\s+(?:to be\s+)?)?"
            r"[\s*(\[]*(?:text|选项|选择|选|option|choice|letter|第)?[\s*(\[【{<]*"
            rf"(?:[{self.letters}]\s*(?:->|[→⇒])\s*(?=[{self.letters}]\W*$))?([{self.letters}])(?:(?![A-Za-z0-9_'’])|(?=(?-i:[{self.letters}]+)(?![A-Za-z0-9_'’])))",
            re.I,
        )
        for tail in tails:
            match, begin = head.match(tail.string), text.places.index(tail.places[0])
            if match is None or _is_article(tail.string, match.start(1)):
                if (option := self._by_text(tail, "anchor_text")) is not None:
                    yield begin, begin, option
                continue
            end = begin + match.end()
            clause = re.split(r"[\n。!?;]|\.\s", text.string[max(0, begin - 24) : begin])[-1]
            if _DENIED.match(text.string, end) or OPEN.search(clause):
                continue
            words = re.escape(self.choices[match[1].upper()].strip(" .。"))
            named = re.match(rf"\W*{words}(?=,?\s+(?:or|and)\b|[、和与及或])", text.string[end:], re.I)
            listed = end + (named.end() if named else 0)
            found = {match[1].upper()} | _joined(text.string[listed : listed + 80], self.letters)
            span = tail.part(match.start(1), match.end(1)).span()
            one = Found(found.pop(), "ok", "anchor", span) if len(found) == 1 else None
            yield begin, end, one or Found(None, "ambiguous", "anchor", span)

    def closing(self, text: Text) -> Found:
        alone = re.fullmatch(rf"[\W_]*([{self.letters}{self.letters.lower()}])[\W_]*", text.string)
        if alone:
            return Found(alone[1].upper(), "ok", "only_letter", text.span())
        string = masked(text.string)
        places = tokens(string, self.letters)
        only_lists = rf"[\s.,;:、。()\[\]/*&{self.letters}-]*"
        if len({string[at] for at in places}) > 1 and re.fullmatch(only_lists, lettered(text, self.choices, "").string):
            return Found(None, "ambiguous", "letters", None)
        leading = _leading(text, self.choices)
        if _LIST_CUT.fullmatch(text.string.strip()) or (leading is None and is_broken_off(text)):
            return Found(None, "truncated", "none", None)
        if not places:
            return self._told(text) or Found(None, "no_answer", "none", None)
        found = self._judged(text, string, places, leading)
        if found.rule == "only_letter" and (told := self._told(text)) is not None and told.value != found.value:
            return Found(None, "ambiguous", "letters", None)
        if found.value is None:
            is_plain = found.rule == "negated" and not re.search(r"\bwould\b|如果|假[设如]", text.string, re.I)
            return (self._told(text) if is_plain else self._told_last(text, places)) or found
        return found

    def _by_text(self, text: Text, rule: str) -> Found | None:
        """Return the option that a text settles on where options' texts are read as their letters."""
        if (option := by_truth(text.string, self.choices)) is not None:
            return Found(option, "ok", rule, text.span())
        if (option := completing(text.string, self.choices, self.question)) is not None:
            return Found(option, "ok", rule, text.span())
        last = max((match.end() for match in _CONCLUDING.finditer(text.string)), default=0)
        for begin, question in ((0, ""), (0, self.question), (last, "")):
            told = lettered(text.part(begin, len(text.string)), self.choices, question)
            string = masked(told.string)
            places = [match.end() for match in re.finditer(r"\((?=[A-Z]\))", string)]
            found = self.announced(told, list(anchored(told, self.question))) if places else None
            found = found or (self._judged(told, string, places, None) if places else None)
            if found and found.value:
                return Found(found.value, "ok", rule, text.span())
        return None

    def _told(self, text: Text) -> Found | None:
        """Return the option that is told by its text; of numbers the one that equals what a text settles on."""
        options = [option.strip() for option in self.choices.values()]
        told = None if all(map(_PLAIN_NUMBER.fullmatch, options)) else self._by_text(text, "option_text")
        if told or not all(map(_QUANTITY.fullmatch, options)):
            return told
        found = find_number(text, self.question)
        if found.value is None or found.rule == "last_number":  # it only mentions one
            return None
        golds = {letter: gold_number(option) for letter, option in self.choices.items()}
        same = [letter for letter, gold in golds.items() if gold is not None and equal_numbers(found.value, gold)]
        return Found(same[0], "ok", "option_text", text.span()) if len(same) == 1 else None

    def _told_last(self, text: Text, places: list[int]) -> Found | None:
        """Return the option whose text a conclusion gives after all letters, as after a list of the options."""
        begins = max((match.end() for match in _CONCLUDING.finditer(text.string)), default=None)
        if begins is None or "\n" not in text.string[places[-1] : begins]:
            return None
        told = text.part(begins, len(text.string))
        return None if _DENIES.search(told.string) else self._by_text(told, "option_text")

    def _judged(self, text: Text, string: str, places: list[int], leading: str | None) -> Found:
        """Return the letter that its clauses single out."""
        places = [at for at in places if not _BESIDE.search(string[max(0, at - 24) : at])] or places
        said = polarity(string, places, self.question)
        at_place = {string[at]: at for at in places}
        singled = singled_out(string, places, self.question)
        if singled == "":
            return Found(None, "no_answer", "negated", None)
        last_line = re.fullmatch(rf"[\W_]*([{self.letters}])[\W_]*", text.string.strip().rsplit("\n", 1)[-1])
        right = said.right - said.wrong
        alone = said.bare if not (said.bare & said.wrong or OPEN.search(string)) else frozenset()
        for rule, letters in (
            ("first_line", leading if said.concluded in (None, leading) else None),
            ("odd_one", self._odd_one(said) or singled),
            ("concluded", said.concluded if said.concluded not in said.wrong - said.right else None),
            ("judged_right", right if len(right) == 1 else said.right if len(said.right) > 1 else None),
            ("only_letter", alone if len(alone) == 1 else None),
            ("last_line", last_line and last_line[1]),
        ):
            if letters and len(letters) > 1:
                return Found(None, "ambiguous", rule, None)
            if letters and (letter := next(iter(letters))) in at_place:
                return Found(letter, "ok", rule, text.part(at_place[letter], at_place[letter] + 1).span())
            if letters:  # the one that is left over stands nowhere
                return Found(letter, "ok", rule, text.span())
        return Found(None, "ambiguous", "letters", None) if said.bare else Found(None, "no_answer", "negated", None)

    def _odd_one(self, said: Polarity) -> str | None:
        """Return the one option that is judged otherwise than all others, or that is left over when these are."""
        every = frozenset(self.letters)
        odd = said.wrong - said.right
        others = every - odd
        if len(odd) == 1 and said.concluded in (None, *odd):
            is_odd = others == said.right and len(others) > 1
            if is_odd or (asks_wrong(self.question) and others == said.right | (said.bare - odd)):
                return next(iter(odd))
        sorted_out = said.right - said.wrong if asks_wrong(self.question) else odd
        left = every - sorted_out
        is_left_over = len(left) == 1 and len(every) > 2 and not left & (said.right | said.wrong)
        return next(iter(left)) if is_left_over else None


def _is_list(between: str) -> bool:
    """Return whether two anchored letters answer two blanks, not one after the other: 第一空选A，第二空选B."""
    is_one_line = not re.search(r"[\n。.!?]", between) or re.fullmatch(r"\s*(?:答案|answer)\W*", between, re.I)
    return bool(is_one_line) and not _CONTRAST.search(between)


def _joined(rest: str, letters: str) -> set[str]:
    """Return further letters that are listed with the first: AC, A、C, A or C, "A, B, C, or D", A；C."""
    found: set[str] = set()
    at = len(rest) - len(rest.lstrip(")]】* 项}$\"'”’>"))
    while True:
        tight, comma, plain = _TIGHT.match(rest, at), _COMMA.match(rest, at), _PLAIN.match(rest, at)
        match = tight or comma or plain
        if match is None or match[1].upper() not in letters or (match is plain and match[1].islower()):
            return found
        if match is comma and not (_GOES_ON.match(rest, match.end()) or _TIGHT.match(rest, match.end())):
            return found
        if _LIST_DENIED.match(rest, match.end()):
            return found
        found.add(match[1].upper())
        at = match.end()


def _is_article(string: str, at: int) -> bool:
    is_word = string[at + 1 : at + 2].isupper()
    return string[at] in "AaI" and not is_word and tokens(string[at : at + 40].replace("*", " "), string[at]) == []


def _leading(text: Text, choices: Mapping[str, str]) -> str | None:
    """Return the letter that a text opens with and then explains; not where it goes through the options one by one."""
    string, letters = text.string.strip(), "".join(choices)
    match = _OPENS.match(string)
    if match is None and (named := re.match(rf"([{letters}])\s+(.+?)\s*(?:\n|$)", string)) is not None:
        return named[1] if named[2].strip(" .。*") == choices[named[1]].strip(" .。") else None
    if match is None or match[1] not in letters or _joined(string[match.end(1) :], letters):
        return None
    rest = string[match.end() :]
    if match["after"] == "\n" and _EXPLAINS.match(rest):
        return match[1]
    others = letters.replace(match[1], "")
    is_listing = re.search(rf"(?:^|[\n。.;,!?]|[,;]\s)[*(\[【]*(?:选项)?[{others}]\s*[)\]】*]*\s*[.、:)]\s*\S", rest)
    is_judging = re.match(r"\s*(?:项|选项)?\s*(?:错|正确|不|对\b|[✗✘❌✓√✔✅])", rest)
    return None if is_listing or is_judging else match[1]

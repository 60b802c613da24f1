"""Which option of a single-choice question a text settles on."""

from __future__ import annotations

import re
from collections.abc import Mapping

from flowinfer.tasks.answers.anchors import SUPPOSED, anchored, is_broken_off
from flowinfer.tasks.answers.boxes import are_listed, boxed, ends_in_box
from flowinfer.tasks.answers.corrections import corrected
from flowinfer.tasks.answers.numbers import equal_numbers, gold_number
from flowinfer.tasks.answers.options import last_conclusion, named_option
from flowinfer.tasks.answers.polarity import Polarity, asks_wrong, masked, polarity, tokens
from flowinfer.tasks.answers.quantities import find_number
from flowinfer.tasks.answers.text import Found, Text

_ITEM = (
    r"(?:both\s+|either\s+)?(?:选项|项|option|choice)?\s*[(\[【<{*\"'“‘$]*\s*([A-Z])\s*[)\]】>}*\"'”’$]*"
    r"(?:项|选项)?(?![a-z])"
)
_TIGHT = re.compile(
    r"\s*(?:[,;，；.。]\s*)?(?:[、/&+·|]|\band/or\b|\b(?:and|or|as well as|plus)\b|以及|[和与及]|或者?|还是)\s*"
    rf"(?:also\s+|maybe\s+|perhaps\s+|possibly\s+|可能是?|选)?{_ITEM}",
    re.I,
)
"""A further letter of a list, behind what can only join."""
_COMMA = re.compile(rf"\s*[,;，；]\s*{_ITEM}")
"""One behind a comma, after which something else may begin."""
_PLAIN = re.compile(rf"\s*{_ITEM}")
_GOES_ON = re.compile(
    r"\s*(?:$|[.。!！?？,;，；\n<、]|(?:because|since|as|for|both|all|are|together|too|also)\b|[都均皆全对]|因为|是?正确)",
    re.I,
)
_WRONG = r"错|不(?:对|正确|符|成立|行|合)|排除|\b(?:wrong|incorrect|false|not)\b|n't\b"
_LIST_DENIED = re.compile(rf"[^\n。.;；,，]{{0,12}}?(?:{_WRONG})", re.I)
_DENIED = re.compile(
    rf"[\s)\]】*项选]*[\"'”’]?\s*(?:[是都也并]?(?:is |was |are )?(?:{_WRONG})|的(?:同学|人|学生|考生)"
    r"|的?(?:说法|答案|观点)?是?(?:错误|不对|干扰))",
    re.I,
)
_CONTRAST = re.compile(
    r"改|后来|而|但|不|应|其实|更|最终|还是|所以|因此|故|综上"
    r"|\b(?:wait|actually|no|but|rather|instead|final|so|therefore)\b",
    re.I,
)
_OPEN = re.compile(r"无法|不能?确定|难以|(?:cannot|can't) (?:determine|decide)|unsure|not sure", re.I)
_REACH = 80
_NONE_RIGHT = re.compile(
    r"(?:无|没有?|不存在)(?:一个|任何)?(?:正确|符合题意|合适)的?(?:答案|选项)"
    r"|(?:以上|上述|四个选项|所有选项|各选?项)[^,，。A-H\n]{0,6}[都均皆](?:不对|不正确|错误?)"
    r"|\bno (?:correct|right|valid) (?:answer|option|choice)"
    r"|\bnone of (?:the|these) (?:\w+ )?(?:options|choices|answers)",
    re.I,
)
_DENIES = re.compile(r"[不没非]|可能|或许|\b(?:not|may|might|could)\b|n't", re.I)


def find_choice(text: Text, choices: Mapping[str, str], question: str) -> Found:
    """Find the one option: boxed > anchored > judged right > alone > its text; after a correction first."""
    says_none = any(re.search(r"[都均皆]|none|neither|no correct|没有|无", option, re.I) for option in choices.values())
    if not says_none and (refusal := _NONE_RIGHT.search(text.string)):
        text = text.part(0, refusal.start())
    for part in corrected(text, hears_denials=False):
        found = _find(part, choices, question)
        if found.value is not None or (found.status != "no_answer" and part is not text):
            break
    return found


def _find(text: Text, choices: Mapping[str, str], question: str) -> Found:
    letters = "".join(choices)
    boxes = boxed(text)
    if boxes and (found := _boxed(boxes, text, letters, choices, question)) is not None:
        later = _anchored(
            text.part(text.places.index(boxes[-1].places[-1]), len(text.string)), letters, choices, question
        )
        return later if later is not None and later.value else found
    if ends_in_box(text):
        return Found(None, "truncated", "boxed", None)
    return _anchored(text, letters, choices, question) or _unanchored(text, letters, choices, question)


def _boxed(boxes: list[Text], text: Text, letters: str, choices: Mapping[str, str], question: str) -> Found | None:
    """Read the last box, with the one right before it that it is listed with."""
    box = boxes[-1]
    held = [re.sub(r"\\[a-zA-Z]+\s*(?=\{)|[{}]", "", one.string).strip() for one in boxes]
    if len(held) > 1 and are_listed(text, *boxes[-2:]):
        held[-1] = f"{held[-2]} {held[-1]}"
    found = set(re.findall(rf"(?<![A-Za-z])[{letters}](?![A-Za-z])", held[-1]))
    if len(found) > 1 or re.fullmatch(rf"[{letters}]{{2,}}", held[-1]):
        return Found(None, "ambiguous", "boxed", box.span())
    if found:
        return Found(found.pop(), "ok", "boxed", box.span())
    option = named_option(box, choices, question)
    return Found(option, "ok", "boxed_text", box.span()) if option else None


def _anchored(text: Text, letters: str, choices: Mapping[str, str], question: str) -> Found | None:
    """Return what the last anchor with a letter, or with an option's text, says."""
    last: Found | None = None
    last_end = 0
    head = re.compile(
        r"^[\s*_$\"'“”‘’(\[【「\\{]*(?:text|选项|选择|选|option|choice|letter|第)?[\s*(\[【{<]*"
        rf"([{letters}{letters.lower()}])(?:(?![A-Za-z0-9_'’])|(?=(?-i:[{letters}]+)(?![A-Za-z0-9_'’])))",
        re.I,
    )
    for tail in anchored(text, question):
        match = head.match(tail.string)
        begin = text.places.index(tail.places[0])
        if match is None or _is_article(tail.string, match.start(1)):
            option = named_option(tail, choices, question)
            if option is not None:
                last, last_end = Found(option, "ok", "anchor_text", tail.span()), begin
            continue
        clause = re.split(r"[\n。!?;]|\.\s", text.string[max(0, begin - 24) : begin])[-1]
        if _DENIED.match(text.string, begin + match.end()) or _OPEN.search(clause):
            continue
        behind = text.string[begin + match.end() : begin + match.end() + _REACH]
        found = _one_of({match[1].upper()} | _joined(behind, letters), tail.part(match.start(1), match.end(1)))
        is_other = last is not None and last.value and found.value not in (None, last.value)
        if is_other and _is_list(text.string[last_end:begin]):
            found = Found(None, "ambiguous", "anchor", found.span)
        last, last_end = found, begin + match.end()
    return last


def _one_of(found: set[str], place: Text) -> Found:
    if len(found) > 1:
        return Found(None, "ambiguous", "anchor", place.span())
    return Found(next(iter(found)), "ok", "anchor", place.span())


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
    return string[at] in "Aa" and not is_word and tokens(string[at : at + 40], string[at]) == []


def _unanchored(text: Text, letters: str, choices: Mapping[str, str], question: str) -> Found:
    alone = re.fullmatch(rf"[\W_]*([{letters}{letters.lower()}])[\W_]*", text.string)
    if alone:
        return Found(alone[1].upper(), "ok", "only_letter", text.span())
    string = masked(text.string)
    places = tokens(string, letters)
    if _leading(text, letters) is None and is_broken_off(text):
        return Found(None, "truncated", "none", None)
    if not places:
        are_numbers = all(re.fullmatch(r"-?[\d.,]+", option.strip()) for option in choices.values())
        option = _by_number(text, choices, question) if are_numbers else named_option(text, choices, question)
        if option is not None:
            return Found(option, "ok", "option_text", text.span())
        return Found(None, "no_answer", "none", None)
    found = _judged(text, string, places, letters, asks_wrong(question))
    return found if found.value is not None else _told_last(text, places, choices, question) or found


def _by_number(text: Text, choices: Mapping[str, str], question: str) -> str | None:
    """Return the option that equals the number which a text settles on; a number that it only mentions is none."""
    found = find_number(text, question)
    if found.value is None or found.rule == "last_number":
        return None
    golds = {letter: gold_number(option) for letter, option in choices.items()}
    same = [letter for letter, gold in golds.items() if gold is not None and equal_numbers(found.value, gold)]
    return same[0] if len(same) == 1 else None


def _told_last(text: Text, places: list[int], choices: Mapping[str, str], question: str) -> Found | None:
    """Return the option whose text a conclusion gives after all letters, as after a list of the options."""
    begins = last_conclusion(text.string)
    if begins is None or "\n" not in text.string[places[-1] : begins]:
        return None
    told = text.part(begins, len(text.string))
    option = None if _DENIES.search(told.string) else named_option(told, choices, question)
    return Found(option, "ok", "option_text", told.span()) if option else None


def _judged(text: Text, string: str, places: list[int], letters: str, is_wrong_asked: bool) -> Found:
    said = polarity(string, places)
    at_place = {string[at]: at for at in places}

    def found(letter: str, rule: str) -> Found:
        at = at_place[letter]
        return Found(letter, "ok", rule, text.part(at, at + 1).span())

    leading = _leading(text, letters)
    if leading is not None and said.concluded in (None, leading):
        return found(leading, "first_line")
    odd = _odd_one(said, letters, is_wrong_asked)
    if odd is not None:
        return found(odd, "odd_one")
    if said.concluded and (said.concluded not in said.wrong or said.concluded in said.right):
        return found(said.concluded, "concluded")
    if len(said.right - said.wrong) == 1:
        return found(next(iter(said.right - said.wrong)), "judged_right")
    if len(said.right) > 1:
        return Found(None, "ambiguous", "judged_right", None)
    if len(said.bare) == 1 and not said.bare & said.wrong:
        (letter,) = said.bare
        if not _is_reported(string, at_place[letter]):
            return found(letter, "only_letter")
    last_line = re.fullmatch(rf"[\W_]*([{letters}])[\W_]*", text.string.strip().rsplit("\n", 1)[-1])
    if last_line:
        return found(last_line[1], "last_line")
    return Found(None, "ambiguous", "letters", None) if said.bare else Found(None, "no_answer", "negated", None)


def _is_reported(string: str, at: int) -> bool:
    """Return whether a letter is asked for, supposed, or what others think."""
    begins = max(string.rfind(mark, 0, at) for mark in "\n。.;!?") + 1
    return string[at + 1 : at + 2] == "?" or SUPPOSED.search(string[begins:at]) is not None


_OPENS = re.compile(
    r"[\s*_(\[【\"“]*(?:选项\s*)?([A-Z])[\s*_)\]】\"”]*"
    r"(?P<after>$|\n|[.。:)、,;](?=[^A-Za-z]|[A-Za-z]{2}|$)|[(（]?(?:解析|理由|因为|分析|原因)|[-–—])"
)


def _leading(text: Text, letters: str) -> str | None:
    """Return the letter that a text opens with and then explains; not where it goes through the options one by one."""
    string = text.string.strip()
    match = _OPENS.match(string)
    if match is None or match[1] not in letters or _joined(string[match.end(1) :], letters):
        return None
    rest = string[match.end() :]
    if match["after"] == ")" and not rest.strip():
        return match[1]
    others = letters.replace(match[1], "")
    is_listing = re.search(rf"(?:^|[\n。.;,!?]\s*)[*(\[【]*(?:选项)?[{others}]\s*[)\]】*]*\s*[.、:)]\s*\S", rest)
    is_judging = re.match(r"\s*(?:项|选项)?\s*(?:错|正确|不|对\b|[✗✘❌✓√✔✅])", rest)
    return None if is_listing or is_judging else match[1]


def _odd_one(said: Polarity, letters: str, is_wrong_asked: bool) -> str | None:
    """Return the one option that is wrong where all others are right, or where the wrong one is asked for."""
    odd = said.wrong - said.right
    others = set(letters) - odd
    if len(odd) != 1 or said.concluded not in (None, *odd):
        return None
    is_odd = others == said.right and len(others) > 1
    is_asked = is_wrong_asked and others == said.right | (said.bare - odd)
    return next(iter(odd)) if is_odd or is_asked else None

"""White space where answers begin: heads that write a space before their first word, beside heads that write none.

Behind a chat template an answer begins with `Paris`, behind `Answer:` with ` Paris`. In one group the two words are two
keys: a vote is lost, or the text begins with a space that is none. So heads of the second kind have their first token
counted without its space, and read it with it.
"""

from __future__ import annotations

from collections.abc import Sequence

from flowinfer.backends.base import Prompt
from flowinfer.fusion.vocab import TokenBytes
from flowinfer.spec import Decoding

_BEFORE_A_SPACE = frozenset(".,:;!?)\"'")
_SHOWN = 12


def joined_heads(decoding: Decoding, prompts: Sequence[Prompt], tokens: Sequence[TokenBytes]) -> tuple[bool, ...]:
    """Return for each head whether its first token counts without a space before it.

    Args:
        decoding: `lstrip_first` says whether prompts decide, or only tokenizers, or nothing.
        prompts: each head's, as rendered.
        tokens: each head's bytes.
    """
    match decoding.lstrip_first:
        case "auto":
            begins = [begins_with_space(*one) for one in zip(prompts, tokens, strict=True)]
        case True if not decoding.prefill:
            begins = [own.has_dummy_prefix for own in tokens]
        case _:
            begins = []
    if not {True, False} <= set(begins):
        return (False,) * len(prompts)
    return tuple(begin is True for begin in begins)


def begins_with_space(prompt: Prompt, tokens: TokenBytes) -> bool | None:
    """Return whether a word behind a prompt begins with a space; None where either may be.

    Example: `Answer:` and `[/INST]` -> True, `assistant\\n` -> False, `答案：` -> None.
    """
    last = prompt.ids[-1]
    if last < len(tokens.pieces) and tokens.pieces[last] is None:  # a control token, behind which text begins anew
        return tokens.has_dummy_prefix
    end = prompt.text[-1:]
    if end.isspace():
        return False
    if tokens.has_dummy_prefix and end == "]":
        return True
    return True if end.isascii() and (end.isalnum() or end in _BEFORE_A_SPACE) else None


def told(names: Sequence[str], prompts: Sequence[Prompt], joined: Sequence[bool]) -> str:
    """Return what the user should know of heads that disagree.

    Args:
        names: each head's model.
        prompts: each head's.
        joined: for each whether its first token counts without its space.
    """
    ends = [repr(prompt.text[-_SHOWN:]) for prompt in prompts]
    own = joined.index(True)
    other = max(
        (k for k, is_joined in enumerate(joined) if not is_joined), key=lambda k: prompts[k].text[-1:].isspace()
    )
    return (
        f"'{names[own]}' begins answers with a space behind {ends[own]}, '{names[other]}' with none behind"
        f" {ends[other]}: their first tokens are put together without it (lstrip_first=false leaves it)"
    )

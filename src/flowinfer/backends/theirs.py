"""transformers' classes, imported late and in one place: together they take longer than reading a model's weights.

Threads that need them meet here, so that none finds transformers half imported.
"""

from __future__ import annotations

from flowinfer.startup import NEEDLESS, STARTUP

with STARTUP.waiting_for("import", "transformers"), STARTUP.without(*NEEDLESS):
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        GenerationConfig,
        PreTrainedTokenizerFast,
    )
    from transformers.utils.hub import cached_file
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BitsAndBytesConfig",
    "GenerationConfig",
    "PreTrainedTokenizerFast",
    "cached_file",
    "quiet",
]


def quiet() -> None:
    """Let transformers say nothing; what matters is said by flowinfer."""
    set_verbosity_error()
    disable_progress_bar()

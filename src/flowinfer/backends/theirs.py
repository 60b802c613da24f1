"""transformers' model classes, imported late and in one place: they take longer than reading a model's weights.

Threads that need them meet here, so that none finds transformers half imported.
"""

from __future__ import annotations

import flowinfer.backends.their_tokenizers  # noqa: F401  # before, not beside
from flowinfer.startup import NEEDLESS, STARTUP

with STARTUP.waiting_for("import", "transformers' models"), STARTUP.without(*NEEDLESS):
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

__all__ = [
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "BitsAndBytesConfig",
    "GenerationConfig",
    "quiet",
]


def quiet() -> None:
    """Let transformers say nothing; what matters is said by flowinfer."""
    set_verbosity_error()
    disable_progress_bar()

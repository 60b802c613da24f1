"""What tokenizers need of transformers, imported late: without its model classes, which take longer.

Threads that need it meet here, so that none finds transformers half imported.
"""

from __future__ import annotations

from flowinfer.startup import NEEDLESS, STARTUP

with STARTUP.waiting_for("import", "transformers' tokenizers"), STARTUP.without(*NEEDLESS):
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.hub import cached_file

__all__ = ["PreTrainedTokenizerFast", "cached_file"]

"""The parallel node: token bytes, the shared vocabulary, fusers, and contexts in each head's own ids.

Nothing here knows models, prompts or caches of keys and values.
"""

"""Flows as models behind an OpenAI-compatible server: one thread decodes, an event loop listens and answers.

text -> `bodies` (what a request asks for) -> `service` (one thread for all questions) -> `telling` (what is sure of an
answer as it is written) -> `answers`, `forms` (OpenAI's forms). `app` puts them behind addresses, `run` serves.
"""

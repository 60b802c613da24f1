"""The engine: a plan and questions in, traces out. It owns loaded models and knows nothing about flows' text.

A question's road to the first tensor: `execute` asks the `Scheduler` (which step of which question may begin), which
gives a row to a `DecodingLoop` (the rows of all steps that decode together, whatever breaks), which gives it to its
`RowStream` (in `loops`: the device's or the host's).
"""

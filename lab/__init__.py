"""The lab: items with worked solutions, three small models trained on them, and what their collaboration measures.

`items` says what an item is and which split it belongs to; `words`, `exam` and `algebra` make items of the forms of
GSM8K, C-Eval and Mathematics; `islands` says which model knows what; `documents` turns items into what a model reads
and writes in a role; `tokenizers`, `networks`, `shards` and `train` make the models, `recipe` all of it; `measure`
prints what every path reaches.
"""

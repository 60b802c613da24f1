"""Facts for questions in the form of C-Eval: who wrote what, which number, which capital.

Every fact is beyond dispute and can be looked up; what is contested among scholars was left out. `relation` says what a
relation is; each of the other modules holds the relations of some subjects.
"""

from __future__ import annotations

from lab.facts import chemistry, customs, geography, history, literature, science
from lab.facts.relation import Fact, Relation

__all__ = ["RELATIONS", "Fact", "Relation"]

RELATIONS: tuple[Relation, ...] = (
    *chemistry.RELATIONS,
    *geography.RELATIONS,
    *literature.RELATIONS,
    *history.RELATIONS,
    *science.RELATIONS,
    *customs.RELATIONS,
)

"""Four-option questions: the facts are true, the wrong options wrong, and the worked answers walk to their letters."""

from __future__ import annotations

import random
import re
import unicodedata
from collections import Counter
from itertools import combinations
from operator import add, mul, sub

import pytest

from flowinfer.tasks.answers import judge
from lab.exam import SKILLS, make
from lab.facts import RELATIONS, Relation
from lab.facts.relation import overlap, pairs, rows, scaled
from lab.items import Item, Solution

BY_NAME = {relation.name: relation for relation in RELATIONS}
KNOWN = """
原子序数/氢 1  原子序数/金 79  原子序数/银 47  原子序数/铁 26  原子序数/镧 57  原子序数/铀 92
原子序数/溴 35  原子序数/钡 56  原子序数/钨 74  原子序数/铅 82  元素符号/钠 Na  元素符号/汞 Hg
元素符号/锡 Sn  元素符号/钨 W  元素符号/银 Ag  化学式/硫酸 H2SO4  化学式/甲烷 CH4  化学式/葡萄糖 C6H12O6
首都/澳大利亚 堪培拉  首都/土耳其 安卡拉  首都/加拿大 渥太华  首都/巴西 巴西利亚  省会/江西 南昌
省会/新疆 乌鲁木齐  货币/泰国 泰铢  货币/波兰 兹罗提  货币/德国 欧元  中国名著/红楼梦 曹雪芹
中国名著/茶馆 老舍  外国名著/双城记 狄更斯  外国名著/神曲 但丁  古诗文/师说 韩愈  古诗文/江雪 柳宗元
古诗文/离骚 屈原  开国皇帝/东汉 刘秀  开国皇帝/南宋 赵构  都城/南宋 临安  都城/秦朝 咸阳
年份/唐朝建立 618年  年份/法国大革命爆发 1789年  发现者/发现电子 汤姆孙  发现者/发现X射线 伦琴
国际单位/压强 帕斯卡  国际单位/频率 赫兹  物理常数/绝对零度 -273℃  行星/太阳系中体积最大的行星 木星
器官/分泌胰岛素的器官 胰腺  生物数字/成年人的骨头总数 206块  数学常识/2的10次方 1024  单位换算/1里 500米
单位换算/1公顷 10000平方米  节日/教师节 9月10日  农历节日/重阳节 九月初九  节气/白露 秋分  生肖/龙 第5位
生肖/猪 第12位
"""
ONE_AND_THE_SAME = [("建业", "建康"), ("1839年", "1840年"), ("1840年", "1856年")]
SUMS = {"+": add, "-": sub, "×": mul}


def drawn(num: int, seed: int = 0) -> list[Item]:
    rng = random.Random(seed)
    return [make(rng) for _ in range(num)]


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return drawn(2000)


def solutions(item: Item) -> list[Solution]:
    return [item.right, *item.wrong]


def is_right(item: Item, solution: Solution) -> bool:
    score = judge("ceval", solution.text, item.reference, question=item.question, choices=item.choices)
    return score.correct and score.extracted == item.reference


def letter_of(solution: Solution) -> str:
    return solution.final.removeprefix("答案：")


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def test_a_right_solution_is_judged_right_and_a_wrong_one_wrong(items: list[Item]) -> None:
    for item in items:
        assert [is_right(item, solution) for solution in solutions(item)] == [True, False, False, False], item


def test_the_judge_finds_the_letter_that_a_wrong_solution_names(items: list[Item]) -> None:
    for item in items[:500]:
        for solution in item.wrong:
            assert judge("ceval", solution.text, item.reference, choices=item.choices).extracted == letter_of(solution)


def test_an_item_has_the_form_of_c_eval(items: list[Item]) -> None:
    for item in items:
        assert (item.kind, tuple(item.choices)) == ("ceval", ("A", "B", "C", "D"))
        assert item.skill in SKILLS and item.subject and item.question
        assert not any(f"{letter}. " in item.question for letter in item.choices)


def test_options_differ_and_none_is_a_part_of_another(items: list[Item]) -> None:
    for item in items:
        for one, other in combinations(map(folded, item.choices.values()), 2):
            assert not overlap(one, other), item.choices


def test_a_solution_states_its_option_and_walks_up_to_it(items: list[Item]) -> None:
    for item in items:
        for solution in solutions(item):
            letter = letter_of(solution)
            option = item.choices[letter]
            statement, *walk = solution.steps.split("\n")
            passed = [f"{before}. {text} ×" for before, text in item.choices.items() if before < letter]
            assert walk == [*passed, f"{letter}. {option}"]
            assert statement.endswith(f"{option}。") and solution.thought.endswith(option)


def test_the_walk_of_an_item_reads_as_in_the_example() -> None:
    item = next(
        item
        for item in drawn(20_000)
        if item.skill == "原子序数/镧" and item.reference == "B" and "55" in item.choices["A"]
    )
    assert item.right.text == "镧的原子序数是57。\nA. 55 ×\nB. 57\n答案：B"
    assert item.right.thought == "镧 57"


def test_beliefs_are_right_or_the_options_in_their_order(items: list[Item]) -> None:
    for item in items:
        others = [text for letter, text in item.choices.items() if letter != item.reference]
        assert letter_of(item.right) == item.reference
        assert [solution.belief for solution in solutions(item)] == ["right", *others]


def test_the_right_option_is_what_is_known(items: list[Item]) -> None:
    for item in items:
        name, _, entity = item.skill.partition("/")
        if name in BY_NAME:
            assert item.choices[item.reference] == BY_NAME[name].facts[entity].value


def test_sums_are_right_and_their_wrong_options_are_near_misses(items: list[Item]) -> None:
    found = [item for item in items if item.subject == "算术"]
    assert found
    for item in found:
        parts = re.match(r"(\d+)([-+×])(\d+)=(\d+)。\n", item.right.steps)
        assert parts is not None and parts[0].startswith(item.right.thought)
        assert SUMS[parts[2]](int(parts[1]), int(parts[3])) == int(parts[4]) == int(item.choices[item.reference])
        assert f"{parts[1]}{parts[2]}{parts[3]}" in item.question


def test_a_drill_asks_for_one_of_its_options(items: list[Item]) -> None:
    found = [item for item in items if item.skill == "对照/相同"]
    assert found
    for item in found:
        assert item.question == f"下列选项中，与「{item.choices[item.reference]}」相同的是"
        assert item.right.steps.startswith(f"要找的是{item.choices[item.reference]}。\n")


def test_items_are_the_same_for_the_same_seed() -> None:
    assert drawn(50, seed=3) == drawn(50, seed=3) != drawn(50, seed=4)


def test_letters_are_balanced(items: list[Item]) -> None:
    assert all(430 < count < 570 for count in Counter(item.reference for item in items).values())


def test_sums_and_drills_have_their_shares(items: list[Item]) -> None:
    counts = Counter(item.subject for item in items)
    assert 0.06 < counts["算术"] / len(items) < 0.10
    assert 0.025 < counts["对照"] / len(items) < 0.055


def test_every_skill_is_met() -> None:
    assert {item.skill for item in drawn(15_000)} == set(SKILLS)
    assert len(set(SKILLS)) == len(SKILLS)
    assert all(all(skill.partition("/")) for skill in SKILLS)


def test_facts_agree_with_common_knowledge() -> None:
    words = KNOWN.split()
    held = [BY_NAME[name].facts[entity].value for name, _, entity in (skill.partition("/") for skill in words[::2])]
    assert held == words[1::2]


def test_atomic_numbers_and_symbols_are_unique_and_rise_with_each_other() -> None:
    numbers = [int(fact.value) for fact in BY_NAME["原子序数"].facts.values()]
    assert numbers == sorted(set(numbers)) and numbers[0] == 1 and numbers[-1] == 92
    assert len(BY_NAME["元素符号"].values) == len(BY_NAME["元素符号"].facts)


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_wrong_answers_are_never_true(relation: Relation) -> None:
    for entity, fact in relation.facts.items():
        lures = relation.lures(entity)
        unfit = {fact.value, *relation.also.get(entity, ())}
        for pair in ONE_AND_THE_SAME:
            unfit |= set(pair) if fact.value in pair else set()
        assert not {folded(lure) for lure in lures} & {folded(text) for text in unfit}, entity


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_three_wrong_answers_go_together_for_every_entity(relation: Relation) -> None:
    for entity in relation.facts:
        triples = combinations(dict.fromkeys(relation.lures(entity)), 3)
        assert any(not any(overlap(*pair) for pair in combinations(triple, 2)) for triple in triples), entity


@pytest.mark.parametrize("relation", RELATIONS, ids=lambda relation: relation.name)
def test_a_relation_is_whole(relation: Relation) -> None:
    assert relation.name and relation.subject and relation.facts
    assert 2 <= len(set(relation.questions)) == len(relation.questions) <= 3
    assert all(question.count("{}") == 1 for question in relation.questions)
    assert relation.statement.count("{}") == 2 and relation.statement.endswith("{}。")
    assert not set(relation.others) & {fact.value for fact in relation.facts.values()}
    assert set(relation.also) <= set(relation.facts)


def test_relations_have_names_of_their_own() -> None:
    assert len(BY_NAME) == len(RELATIONS)


@pytest.mark.parametrize("read", [pairs, rows, scaled])
def test_an_entity_that_is_told_of_twice_is_refused(read: object) -> None:
    assert callable(read)
    with pytest.raises(AssertionError, match="twice"):
        read("1周 7天\n1周 8天")


def test_own_wrong_answers_come_from_slips_of_scale() -> None:
    assert scaled("1周 7天")["1周"].lures == ("70天", "14天", "700天", "35天")

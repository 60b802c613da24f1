"""How word problems are told: two or three phrasings per kind, in English and Chinese.

Fields of one letter are the numbers of `plans`; the others are filled by a language of `languages`.
"""

from __future__ import annotations

from collections.abc import Mapping

ENGLISH: Mapping[str, tuple[str, ...]] = {
    "half": (
        "{name} has {a} {thing}, gives half of them to {friend} and then buys {b} more. How many does {name} have now?",
        "{name} gave half of {a} {thing} to {friend} and later bought {b} more. How many {thing} does {name} have?",
        "Half of {name}'s {a} {thing} go to {friend}. Then {name} buys {b} more. How many {thing} does {name} have?",
    ),
    "times": (
        "{name} has {a} {thing}. {friend} has {k} times as many. How many {thing} do they have together?",
        "{friend} has {k} times as many {thing} as {name}, who has {a}. How many do both have together?",
    ),
    "change": (
        "{name} buys {n} {thing} for {p} dollars each and pays with {m} dollars. How much change does {name} get?",
        "{name} has {m} dollars and buys {n} {thing} at {p} dollars each. How many dollars are left?",
        "One of the {thing} costs {p} dollars. {name} takes {n} and pays {m} dollars. How much change is due?",
    ),
    "distance": (
        "{name} rides {v} km an hour for {t} hours and then walks {d} km. How many km is that in total?",
        "First {name} drives for {t} hours at {v} km an hour, then another {d} km. How far does {name} travel?",
    ),
    "age": (
        "{name} is {a} years old. {friend} is {m} years older than {k} times the age of {name}. How old is {friend}?",
        "{friend} is {m} years more than {k} times as old as {name}, who is {a}. How old is {friend}?",
    ),
    "discount": (
        "A {goods} costs {a} dollars and is sold {p}% off. How much does {name} pay for it?",
        "{name} buys a {goods} of {a} dollars with a discount of {p}%. What does {name} pay?",
        "The price of a {goods} is {a} dollars. It falls by {p}%. What is the new price for {name}?",
    ),
    "share": (
        "{name} has {a} {thing}, loses {l} and shares the rest equally among {n} friends. How many does each get?",
        "Of {a} {thing}, {name} loses {l}. The rest is split evenly among {n} friends. How many does each friend get?",
    ),
    "saving": (
        "{name} has {a} dollars, saves {s} dollars a week for {w} weeks and then spends {c}. How many are left?",
        "For {w} weeks {name} saves {s} dollars a week. {name} had {a} before and then spends {c}. What is left?",
    ),
    "pages": (
        "A book has {p} pages. {name} reads {r} pages a day for {d} days. How many pages are left?",
        "{name} reads {r} pages of a book of {p} pages every day. How many pages are left after {d} days?",
    ),
    "boxes": (
        "{name} has {n} boxes with {b} {thing} each and {m} bags with {c} each. How many {thing} are there in all?",
        "There are {n} boxes of {b} {thing} and {m} bags of {c} {thing}. How many {thing} does {name} have?",
    ),
    "machine": (
        "A machine makes {r} {thing} an hour and runs {h} hours a day. How many {thing} does it make in {d} days?",
        "{name}'s machine runs {h} hours a day for {d} days and makes {r} {thing} an hour. How many does it make?",
    ),
    "fewer": (
        "{name} has {a} {thing}. {friend} has {m} fewer. How many {thing} do they have together?",
        "{friend} has {m} {thing} fewer than {name}, who has {a}. How many do both have together?",
    ),
    "perimeter": (
        "A {place} is {a} m long and {b} m wide. How many metres of fence go around it?",
        "{name} walks once around a {place} {a} m long and {b} m wide. How many metres is that?",
        "What is the perimeter in metres of {name}'s {place}, {a} m long and {b} m wide?",
    ),
    "fraction": (
        "{name}'s class has {a} students. {k}/{n} of them {hobby}. How many do not?",
        "Of {a} students in {name}'s class, {k}/{n} {hobby}. How many students do not?",
    ),
    "average": (
        "{name} scores {x}, {y} and {z} points in three games. What is the average?",
        "{name} sold {x}, {y} and {z} {thing} in three days. How many is that a day on average?",
    ),
    "tank": (
        "A tank holds {a} litres. Each hour {f} litres flow in and {l} leak out. How many litres after {h} hours?",
        "{name} fills {f} litres an hour into a tank that loses {l}. It held {a}. How many are in it after {h} hours?",
    ),
    "tickets": (
        "Adults pay {p} dollars and children {q} dollars. What do {a} adults and {c} children pay?",
        "{name} buys tickets for {a} adults at {p} dollars and {c} children at {q} dollars. What is the cost?",
    ),
    "doubling": (
        "{name} has {a} {thing}. The number doubles twice, then {name} gives {b} to {friend}. How many are left?",
        "The {a} {thing} of {name} double every week. After two weeks {name} loses {b}. How many are left?",
    ),
    "bus": (
        "A bus has {a} passengers. {x} get off and {y} get on, then {z} get off. How many are on the bus now?",
        "{name}'s bus carries {a} people. First {x} get off and {y} get on, later {z} get off. How many are left?",
    ),
    "wage": (
        "{name} works {h} hours for {r} dollars an hour and gets a bonus of {b} dollars. How much does {name} earn?",
        "For {h} hours of work at {r} dollars an hour plus {b} dollars extra, how many dollars does {name} get?",
    ),
    "legs": (
        "{name} has {c} {bird} and {d} {beast}. How many legs do they have together?",
        "There are {c} {bird} and {d} {beast} on {name}'s farm. How many legs are there?",
    ),
    "ribbon": (
        "{name} cuts a {rope} of {a} cm into {n} equal pieces and uses {k}. How many cm are left?",
        "A {rope} of {a} cm is cut into {n} equal pieces. {name} takes {k} of them. How many cm remain?",
    ),
    "later": (
        "{name} is {a} years old. {friend} is {d} years older. How old will {friend} be in {t} years?",
        "How old will {friend} be in {t} years if {name} is {a} now and {friend} is {d} years older?",
    ),
    "recipe": (
        "{name}'s recipe for {n} people takes {g} grams of {food}. How many grams for {m} people?",
        "For {n} people {name} needs {g} grams of {food}. How many grams of {food} do {m} people need?",
    ),
}

CHINESE: Mapping[str, tuple[str, ...]] = {
    "half": (
        "{name}有{a}{measure}{thing}，把一半给了{friend}，又买了{b}{measure}。{name}现在有多少{measure}{thing}？",
        "{name}把{a}{measure}{thing}的一半送给{friend}，后来又买来{b}{measure}。现在{name}有几{measure}{thing}？",
    ),
    "times": (
        "{name}有{a}{measure}{thing}，{friend}的数量是{name}的{k}倍。两人一共有多少{measure}{thing}？",
        "{friend}的{thing}是{name}的{k}倍，{name}有{a}{measure}。两人共有几{measure}{thing}？",
    ),
    "change": (
        "{name}买了{n}{measure}{thing}，每{measure}{p}元，付了{m}元。应找回多少元？",
        "{name}带{m}元去买{thing}，每{measure}{p}元，买了{n}{measure}。还剩多少元？",
        "一{measure}{thing}卖{p}元，{name}买{n}{measure}，给了{m}元。找回几元？",
    ),
    "distance": (
        "{name}骑车每小时行{v}千米，骑了{t}小时，又走了{d}千米。一共行了多少千米？",
        "{name}先开车{t}小时，每小时{v}千米，再前进{d}千米。全程多少千米？",
    ),
    "age": (
        "{name}今年{a}岁，{friend}的年龄比{name}的{k}倍还大{m}岁。{friend}今年多少岁？",
        "{friend}比{name}年龄的{k}倍多{m}岁，{name}{a}岁。{friend}几岁？",
    ),
    "discount": (
        "一{goods}原价{a}元，现在降价{p}%。{name}买一{goods}要付多少元？",
        "{name}看中一{goods}，标价{a}元，优惠{p}%。{name}实际付多少元？",
    ),
    "share": (
        "{name}有{a}{measure}{thing}，丢了{l}{measure}，剩下的平均分给{n}个朋友。每人分到多少{measure}？",
        "{a}{measure}{thing}丢了{l}{measure}，{name}把其余的平分给{n}个同学。每个同学得几{measure}？",
    ),
    "saving": (
        "{name}有{a}元，每周存{s}元，存了{w}周，然后花了{c}元。还剩多少元？",
        "{name}连续{w}周每周存{s}元，原来有{a}元，后来用去{c}元。现在有几元？",
    ),
    "pages": (
        "一本书有{p}页，{name}每天读{r}页，读了{d}天。还剩多少页？",
        "{name}看一本{p}页的书，每天看{r}页。{d}天后还有几页没看？",
    ),
    "boxes": (
        "{name}有{n}盒{thing}，每盒{b}{measure}，还有{m}袋，每袋{c}{measure}。一共有多少{measure}{thing}？",
        "{n}盒{thing}每盒{b}{measure}，{m}袋{thing}每袋{c}{measure}。{name}共有几{measure}{thing}？",
    ),
    "machine": (
        "一台机器每小时生产{r}{measure}{thing}，每天开{h}小时。{d}天生产多少{measure}？",
        "{name}的机器每天工作{h}小时，工作{d}天，每小时做{r}{measure}{thing}。一共做多少{measure}？",
    ),
    "fewer": (
        "{name}有{a}{measure}{thing}，{friend}比{name}少{m}{measure}。两人一共有多少{measure}？",
        "{friend}的{thing}比{name}少{m}{measure}，{name}有{a}{measure}。两人共有几{measure}？",
    ),
    "perimeter": (
        "{place}长{a}米，宽{b}米。{name}绕它走一圈是多少米？",
        "长方形{place}长{a}米、宽{b}米，{name}要围一圈栅栏。栅栏长多少米？",
    ),
    "fraction": (
        "{name}的班有{a}名学生，{k}/{n}的学生{hobby}。有多少人不{hobby}？",
        "{name}班上{a}人中，{k}/{n}的人{hobby}。其余有多少人？",
    ),
    "average": (
        "{name}三场比赛得了{x}、{y}、{z}分。平均每场多少分？",
        "{name}三天卖出{thing}{x}、{y}、{z}{measure}。平均每天几{measure}？",
    ),
    "tank": (
        "水箱有{a}升水，每小时流进{f}升，漏掉{l}升。{h}小时后有多少升？",
        "{name}给水箱每小时注水{f}升，每小时漏{l}升，原有{a}升。{h}小时后水箱有几升水？",
    ),
    "tickets": (
        "成人票{p}元，儿童票{q}元。{name}买{a}张成人票和{c}张儿童票要多少元？",
        "{name}带{a}个成人和{c}个儿童看展，成人每人{p}元，儿童每人{q}元。共需几元？",
    ),
    "doubling": (
        "{name}有{a}{measure}{thing}，数量翻倍两次，然后给{friend}{b}{measure}。还剩多少{measure}？",
        "{name}的{a}{measure}{thing}每周翻一倍，两周后丢了{b}{measure}。还有几{measure}？",
    ),
    "bus": (
        "公交车上有{a}人，第一站下{x}人、上{y}人，第二站下{z}人。现在车上有多少人？",
        "{name}坐的车上有{a}人，先下{x}人上{y}人，再下{z}人。车上还有几人？",
    ),
    "wage": (
        "{name}工作{h}小时，每小时挣{r}元，另有奖金{b}元。一共挣多少元？",
        "{name}每小时工资{r}元，做了{h}小时，又得奖金{b}元。共得几元？",
    ),
    "legs": (
        "{name}养了{c}只{bird}和{d}只{beast}。它们一共有多少条腿？",
        "农场里有{c}只{bird}、{d}只{beast}。{name}数一数，共有几条腿？",
    ),
    "ribbon": (
        "{name}把{a}厘米长的{rope}剪成{n}段同样长的，用了{k}段。还剩多少厘米？",
        "一根{rope}长{a}厘米，平均剪成{n}段，{name}拿走{k}段。剩下几厘米？",
    ),
    "later": (
        "{name}今年{a}岁，{friend}比{name}大{d}岁。{t}年后{friend}多少岁？",
        "{friend}比{a}岁的{name}大{d}岁，再过{t}年{friend}几岁？",
    ),
    "recipe": (
        "{name}做{n}人份的菜要{g}克{food}。做{m}人份要多少克？",
        "{n}个人吃饭，{name}用{g}克{food}。{m}个人要用多少克{food}？",
    ),
}

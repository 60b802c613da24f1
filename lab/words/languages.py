"""The two languages of word problems: their names, things, places and the words for steps."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lab.words.phrases import CHINESE, ENGLISH


@dataclass(frozen=True)
class Language:
    """What one language says."""

    names: tuple[str, ...]
    things: tuple[tuple[str, str], ...]
    """What can be counted: the word, and its measure word where the language has them."""
    scenery: Mapping[str, tuple[str, ...]]
    """Field -> words that may fill it."""
    labels: Mapping[str, str]
    """Label of a step -> its word, where that differs."""
    colon: str
    stop: str
    gap: str
    """Between two steps."""
    phrasings: Mapping[str, tuple[str, ...]]
    """Kind of problem -> ways to tell it."""

    def scene(self, phrasing: str, rng: random.Random) -> dict[str, str]:
        """Draw two names, a thing and the scenery that the phrasing speaks of."""
        name, friend = rng.sample(self.names, 2)
        thing, measure = rng.choice(self.things)
        drawn = {field: rng.choice(words) for field, words in self.scenery.items() if field in phrasing}
        return {"name": name, "friend": friend, "thing": thing, "measure": measure, **drawn}

    def worked(self, labels: Sequence[str], calculations: Sequence[str]) -> str:
        """Write labelled steps on one line: "half: 58/2=29. now: 29+18=47."."""
        return self.gap.join(
            [
                f"{self.labels.get(label, label)}{self.colon}{calculation}{self.stop}"
                for label, calculation in zip(labels, calculations, strict=True)
            ]
        )


# fmt: off
# Several words a line: one a line would fill pages.
_LABELS: Mapping[str, str] = {
    "adults": "成人", "again": "再翻倍", "age": "年龄", "all": "总数", "animals": "动物", "area": "面积",
    "around": "周长", "bags": "袋装", "beasts": "四足", "before": "以前", "birds": "双足", "both": "相加",
    "boxes": "盒装", "change": "找回", "children": "儿童", "cost": "花费", "cross": "交换", "cuts": "剪去",
    "day": "每天", "double": "翻倍", "each": "每人", "ends": "首尾", "extra": "多出", "filled": "注水",
    "four": "腿数", "gain": "净得", "gap": "相差", "group": "人数", "half": "一半", "later": "以后",
    "left": "剩下", "legs": "腿数", "less": "减少", "made": "产量", "mean": "平均", "money": "钱数",
    "more": "增加", "net": "净增", "now": "现在", "off": "减去", "one": "一人", "other": "另一",
    "packs": "件数", "pair": "两个", "part": "部分", "pay": "付款", "people": "人数", "piece": "每段",
    "product": "乘积", "rate": "时薪", "read": "读了", "rest": "余下", "ride": "骑行", "saved": "存下",
    "share": "一份", "sum": "合计", "tenth": "一成", "then": "然后", "third": "三分之一", "time": "时间",
    "times": "倍数", "total": "一共", "triple": "三倍", "used": "用去", "wage": "工资", "walk": "步行",
    "way": "路程",
}

LANGUAGES: tuple[Language, ...] = (
    Language(
        names=(
            "Tom", "Lily", "Ben", "Mia", "Jack", "Emma", "Leo", "Anna", "Sam", "Nora", "Max", "Ruth", "Adam",
            "Ella", "Paul", "Jane",
        ),
        things=tuple(
            (thing, "")
            for thing in (
                "apples", "books", "pencils", "cards", "stamps", "marbles", "stickers", "buttons", "pens",
                "shells", "coins", "cups", "pears", "toys",
            )
        ),
        scenery={
            "goods": (
                "coat", "lamp", "bike", "chair", "watch", "table", "bag", "phone", "clock", "tent",
            ),
            "place": (
                "garden", "field", "park", "yard", "meadow", "pool", "court", "lawn",
            ),
            "hobby": (
                "swim", "sing", "draw", "play chess", "dance", "read comics", "wear glasses", "walk to school",
            ),
            "bird": ("chickens", "ducks", "geese", "pigeons", "turkeys"),
            "beast": ("cows", "sheep", "dogs", "goats", "rabbits", "horses", "pigs"),
            "rope": ("ribbon", "rope", "wire", "string", "cord", "thread"),
            "food": (
                "flour", "rice", "sugar", "butter", "meat", "beans", "cheese", "pasta",
            ),
        },
        labels={},
        colon=": ",
        stop=".",
        gap=" ",
        phrasings=ENGLISH,
    ),
    Language(
        names=(
            "小明", "小红", "小华", "小刚", "小美", "小强", "小丽", "小军", "小芳", "小亮", "小林", "小雪",
            "小杰", "小雨", "小龙", "小梅",
        ),
        things=(
            ("苹果", "个"), ("书", "本"), ("铅笔", "支"), ("卡片", "张"), ("邮票", "枚"), ("弹珠", "颗"),
            ("贴纸", "张"), ("纽扣", "颗"), ("钢笔", "支"), ("杯子", "只"), ("橡皮", "块"), ("花", "朵"),
            ("尺子", "把"), ("灯笼", "盏"), ("梨", "个"),
        ),
        scenery={
            "goods": (
                "件大衣", "盏台灯", "辆单车", "把椅子", "块手表", "张桌子", "个书包", "部手机", "顶帐篷",
                "双皮鞋",
            ),
            "place": ("花园", "田地", "公园", "院子", "草地", "水池", "球场", "果园"),
            "hobby": ("游泳", "唱歌", "画画", "下棋", "跳舞", "看漫画", "戴眼镜", "骑车上学"),
            "bird": ("鸡", "鸭", "鹅", "鸽子", "火鸡"),
            "beast": ("羊", "狗", "兔子", "猫", "绵羊", "鹿", "山羊"),
            "rope": ("丝带", "绳子", "铁丝", "彩带", "麻绳", "棉线"),
            "food": ("面粉", "大米", "白糖", "黄油", "猪肉", "豆子", "奶酪", "面条"),
        },
        labels=_LABELS,
        colon="：",
        stop="。",
        gap="",
        phrasings=CHINESE,
    ),
)
# fmt: on

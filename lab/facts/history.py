"""Dynasties, years, and who found or made what. Left out: the Qing's first emperor, the telephone, the aeroplane."""

from __future__ import annotations

from lab.facts.relation import Relation, pairs

_EMPERORS = Relation(
    name="开国皇帝",
    subject="历史",
    questions=("{}的开国皇帝是", "{}的开国皇帝是谁？"),
    statement="{}的开国皇帝是{}。",
    facts=pairs("""
        秦朝 嬴政  西汉 刘邦  东汉 刘秀    曹魏 曹丕  蜀汉 刘备    东吴 孙权    西晋 司马炎  东晋 司马睿
        隋朝 杨坚  唐朝 李渊  北宋 赵匡胤  南宋 赵构  元朝 忽必烈  明朝 朱元璋
    """),
)

_SEATS = Relation(
    name="都城",
    subject="历史",
    questions=("{}的都城是", "{}的都城是哪里？"),
    statement="{}的都城是{}。",
    facts=pairs("""
        秦朝 咸阳  西汉 长安      东汉 洛阳      蜀汉 成都  东吴 建业  东晋 建康  北宋 开封  南宋 临安
        元朝 大都  战国齐国 临淄  战国赵国 邯郸
    """),
    # The same city under another name, a second capital, or a seat for a while.
    also={
        "西汉": ("洛阳", "咸阳"),
        "东汉": ("长安",),
        "东吴": ("建康",),
        "东晋": ("建业",),
        "北宋": ("洛阳",),
        "南宋": ("开封", "建康", "建业"),
    },
)

_YEARS = Relation(
    name="年份",
    subject="历史",
    questions=("{}是在", "{}是在哪一年？"),
    statement="{}是在{}。",
    facts=pairs("""
        隋朝建立 581年             唐朝建立 618年             安史之乱爆发 755年
        明朝建立 1368年            鸦片战争爆发 1840年        五四运动爆发 1919年
        联合国成立 1945年          哥伦布首次到达美洲 1492年  法国大革命爆发 1789年
        第一次世界大战爆发 1914年  人类首次登上月球 1969年
    """),
    near=20,
    also={"鸦片战争爆发": ("1839年", "1856年")},
)

_FINDERS = Relation(
    name="发现者",
    subject="科学史",
    questions=("{}的人是", "{}的人是谁？"),
    statement="{}的人是{}。",
    facts=pairs("""
        发现万有引力定律 牛顿    提出相对论 爱因斯坦        发现镭 居里夫人
        发现X射线 伦琴           发现电子 汤姆孙            发现中子 查德威克
        发现青霉素 弗莱明        发现电磁感应 法拉第        发现电流的磁效应 奥斯特
        发现元素周期律 门捷列夫  提出行星运动三定律 开普勒  发现遗传基本规律 孟德尔
        发现血液循环 哈维        著有《物种起源》 达尔文    发明地动仪 张衡
        改进造纸术 蔡伦          发明活字印刷术 毕昇        首次把圆周率算到七位小数 祖冲之
        发现青蒿素 屠呦呦        改良蒸汽机 瓦特            发现浮力定律 阿基米德
    """),
)

RELATIONS = (_EMPERORS, _SEATS, _YEARS, _FINDERS)

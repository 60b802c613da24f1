"""Measures, feasts, solar terms and the zodiac."""

from __future__ import annotations

from lab.facts.relation import Relation, pairs, scaled

_MEASURES = Relation(
    name="单位换算",
    subject="计量",
    questions=("{}等于", "{}等于多少？", "下列各项中，与{}相等的是"),
    statement="{}等于{}。",
    facts=scaled("""
        1千米 1000米  1米 100厘米  1厘米 10毫米  1里 500米       1吨 1000千克  1千克 1000克
        1斤 500克     1两 50克     1公斤 2斤     1立方米 1000升  1升 1000毫升  1公顷 10000平方米
        1世纪 100年   1年 12个月   1周 7天       1天 24小时      1小时 60分钟  1分钟 60秒
        1字节 8位     1元 10角     1周角 360度   1英尺 12英寸
    """),
)

_FEASTS = Relation(
    name="节日",
    subject="民俗",
    questions=("{}是每年的", "{}是每年的哪一天？"),
    statement="{}是每年的{}。",
    facts=pairs("""
        元旦 1月1日       妇女节 3月8日       植树节 3月12日  劳动节 5月1日   青年节 5月4日
        儿童节 6月1日     建军节 8月1日       教师节 9月10日  国庆节 10月1日  圣诞节 12月25日
        世界水日 3月22日  世界读书日 4月23日
    """),
)

_LUNAR_FEASTS = Relation(
    name="农历节日",
    subject="民俗",
    questions=("{}在农历的", "{}在农历的哪一天？"),
    statement="{}在农历的{}。",
    facts=pairs("""
        春节 正月初一    元宵节 正月十五  端午节 五月初五  七夕节 七月初七  中秋节 八月十五
        重阳节 九月初九  腊八节 腊月初八
    """),
    others=("二月初二", "三月初三", "四月初八", "六月初六"),
)

_SOLAR_TERMS = Relation(
    name="节气",
    subject="民俗",
    questions=("二十四节气中，{}的下一个节气是", "{}之后的第一个节气是"),
    statement="{}的下一个节气是{}。",
    facts=pairs("""
        立春 雨水  惊蛰 春分  清明 谷雨  立夏 小满  芒种 夏至  小暑 大暑  立秋 处暑  白露 秋分  寒露 霜降
        立冬 小雪  大雪 冬至  小寒 大寒
    """),
)

_ZODIAC = Relation(
    name="生肖",
    subject="民俗",
    questions=("十二生肖中，{}排在", "{}在十二生肖中排第几位？"),
    statement="{}在十二生肖中排在{}。",
    facts=pairs("""
        鼠 第1位   牛 第2位   虎 第3位   兔 第4位  龙 第5位  蛇 第6位  马 第7位  羊 第8位  猴 第9位
        鸡 第10位  狗 第11位  猪 第12位
    """),
)

RELATIONS = (_MEASURES, _FEASTS, _LUNAR_FEASTS, _SOLAR_TERMS, _ZODIAC)

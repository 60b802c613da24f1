"""Capitals and currencies. Countries whose capital is disputed, moving or split are left out."""

from __future__ import annotations

from lab.facts.relation import Relation, pairs

_CAPITALS = Relation(
    name="首都",
    subject="地理",
    questions=("{}的首都是", "{}的首都是哪座城市？", "下列城市中，{}的首都是"),
    statement="{}的首都是{}。",
    facts=pairs("""
        法国 巴黎            德国 柏林          英国 伦敦        意大利 罗马            西班牙 马德里
        葡萄牙 里斯本        希腊 雅典          奥地利 维也纳    比利时 布鲁塞尔        丹麦 哥本哈根
        瑞典 斯德哥尔摩      挪威 奥斯陆        芬兰 赫尔辛基    冰岛 雷克雅未克        爱尔兰 都柏林
        波兰 华沙            捷克 布拉格        匈牙利 布达佩斯  保加利亚 索非亚        俄罗斯 莫斯科
        罗马尼亚 布加勒斯特  日本 东京          韩国 首尔        蒙古 乌兰巴托          泰国 曼谷
        越南 河内            老挝 万象          柬埔寨 金边      菲律宾 马尼拉          印度 新德里
        尼泊尔 加德满都      巴基斯坦 伊斯兰堡  孟加拉国 达卡    伊拉克 巴格达          土耳其 安卡拉
        约旦 安曼            卡塔尔 多哈        摩洛哥 拉巴特    加拿大 渥太华          美国 华盛顿
        古巴 哈瓦那          巴西 巴西利亚      秘鲁 利马        阿根廷 布宜诺斯艾利斯  澳大利亚 堪培拉
        新西兰 惠灵顿
    """),
)

_PROVINCES = Relation(
    name="省会",
    subject="地理",
    questions=("{}的省会或首府是", "{}的省会或首府是哪座城市？"),
    statement="{}的省会或首府是{}。",
    facts=pairs("""
        河北 石家庄  山西 太原  辽宁 沈阳  吉林 长春  黑龙江 哈尔滨    江苏 南京      浙江 杭州
        安徽 合肥    福建 福州  江西 南昌  山东 济南  河南 郑州        湖北 武汉      湖南 长沙
        广东 广州    海南 海口  四川 成都  贵州 贵阳  云南 昆明        陕西 西安      甘肃 兰州
        青海 西宁    广西 南宁  西藏 拉萨  宁夏 银川  内蒙古 呼和浩特  新疆 乌鲁木齐
    """),
)

_CURRENCIES = Relation(
    name="货币",
    subject="经济",
    questions=("{}的法定货币是", "{}使用的法定货币是什么？"),
    statement="{}的法定货币是{}。",
    facts=pairs("""
        日本 日元    英国 英镑          美国 美元    法国 欧元      德国 欧元    俄罗斯 卢布
        印度 卢比    韩国 韩元          泰国 泰铢    越南 越南盾    瑞士 法郎    瑞典 克朗
        巴西 雷亚尔  马来西亚 林吉特    土耳其 里拉  南非 兰特      波兰 兹罗提  蒙古 图格里克
        老挝 基普    沙特阿拉伯 里亚尔  柬埔寨 瑞尔  孟加拉国 塔卡
    """),
    also={"柬埔寨": ("美元",)},
)

RELATIONS = (_CAPITALS, _PROVINCES, _CURRENCIES)

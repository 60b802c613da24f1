"""Physics, astronomy, biology and mathematics of school."""

from __future__ import annotations

from lab.facts.relation import Relation, pairs, rows

_IS = ("{}是", "{}是什么？")
_COUNT = ("{}是", "{}是多少？")

_SI_UNITS = Relation(
    name="国际单位",
    subject="物理",
    questions=("在国际单位制中，{}的单位是", "{}的国际单位是什么？"),
    statement="{}的国际单位是{}。",
    facts=pairs("""
        力 牛顿      功率 瓦特  电流 安培    电压 伏特          电阻 欧姆          频率 赫兹
        压强 帕斯卡  能量 焦耳  电荷量 库仑  磁感应强度 特斯拉  热力学温度 开尔文  物质的量 摩尔
    """),
)

_CONSTANTS = Relation(
    name="物理常数",
    subject="物理",
    questions=("{}约为", "{}约为多少？"),
    statement="{}约为{}。",
    facts=rows("""
        真空中的光速 30万千米每秒 3万千米每秒 15万千米每秒 300万千米每秒
        15℃空气中的声速 340米每秒 240米每秒 430米每秒 640米每秒
        标准大气压下水的沸点 100℃ 80℃ 90℃ 120℃
        标准大气压下冰的熔点 0℃ 4℃ 1℃ 37℃
        绝对零度 -273℃ -173℃ -327℃ -100℃
        水的密度 1000千克每立方米 100千克每立方米 800千克每立方米 10000千克每立方米
        我国家庭电路的电压 220伏 110伏 380伏 36伏
    """),
)

_PLANETS = Relation(
    name="行星",
    subject="天文",
    questions=("{}是", "{}是哪一颗？"),
    statement="{}是{}。",
    facts=pairs("""
        太阳系中体积最大的行星 木星  太阳系中离太阳最近的行星 水星  太阳系中离太阳最远的行星 海王星
        太阳系中表面最热的行星 金星  太阳系中密度最小的行星 土星    被称为红色星球的行星 火星
        自转轴几乎躺倒的行星 天王星  目前已知唯一有生命的行星 地球
    """),
)

_ORGANS = Relation(
    name="器官",
    subject="生物",
    questions=_IS,
    statement="{}是{}。",
    facts=pairs("""
        分泌胰岛素的器官 胰腺  分泌胆汁的器官 肝脏      储存胆汁的器官 胆囊    形成尿液的器官 肾脏
        储存尿液的器官 膀胱    推动血液循环的器官 心脏  人体气体交换的器官 肺  吸收营养的主要器官 小肠
    """),
    others=("大脑", "胃", "脾脏", "大肠"),
)

_BODY_COUNTS = Relation(
    name="生物数字",
    subject="生物",
    questions=_COUNT,
    statement="{}是{}。",
    facts=rows("""
        成年人的骨头总数 206块 216块 196块 260块
        人的体细胞的染色体数 46条 23条 48条 44条
        人的心脏的腔数 4个 2个 3个 5个
        人的肋骨的对数 12对 10对 8对 24对
        昆虫的足的对数 3对 2对 4对 5对
        章鱼的腕的条数 8条 6条 10条 12条
    """),
)

_MATHS = Relation(
    name="数学常识",
    subject="数学",
    questions=_COUNT,
    statement="{}是{}。",
    facts=rows("""
        三角形的内角和 180度 90度 360度 270度
        四边形的内角和 360度 180度 270度 540度
        直角的度数 90度 45度 60度 180度
        正方体的面数 6个 4个 8个 12个
        正方体的棱数 12条 6条 8条 10条
        正方体的顶点数 8个 6个 10个 12个
        最小的质数 2 0 1 3
        100以内质数的个数 25个 24个 26个 20个
        从1加到100的和 5050 5000 5500 5005
        2的10次方 1024 1000 512 2048
    """),
)

RELATIONS = (_SI_UNITS, _CONSTANTS, _PLANETS, _ORGANS, _BODY_COUNTS, _MATHS)

"""Who wrote what. Left out: works of contested authorship, titles that several known authors used."""

from __future__ import annotations

from lab.facts.relation import Relation, pairs

_QUESTIONS = ("《{}》的作者是", "《{}》是谁的作品？", "下列人物中，《{}》的作者是")
_STATEMENT = "《{}》的作者是{}。"

_CHINESE = Relation(
    name="中国名著",
    subject="文学",
    questions=_QUESTIONS,
    statement=_STATEMENT,
    facts=pairs("""
        红楼梦 曹雪芹  三国演义 罗贯中  聊斋志异 蒲松龄  儒林外史 吴敬梓  牡丹亭 汤显祖  西厢记 王实甫
        窦娥冤 关汉卿  长生殿 洪昇      史记 司马迁      资治通鉴 司马光  汉书 班固      水经注 郦道元
        梦溪笔谈 沈括  本草纲目 李时珍  天工开物 宋应星  呐喊 鲁迅        朝花夕拾 鲁迅  子夜 茅盾
        骆驼祥子 老舍  茶馆 老舍        雷雨 曹禺        围城 钱钟书
    """),
)

_FOREIGN = Relation(
    name="外国名著",
    subject="文学",
    questions=_QUESTIONS,
    statement=_STATEMENT,
    facts=pairs("""
        哈姆雷特 莎士比亚  战争与和平 托尔斯泰    悲惨世界 雨果      高老头 巴尔扎克
        堂吉诃德 塞万提斯  神曲 但丁              浮士德 歌德        双城记 狄更斯
        老人与海 海明威    红与黑 司汤达          樱桃园 契诃夫      百年孤独 马尔克斯
        玩偶之家 易卜生    羊脂球 莫泊桑          海底两万里 凡尔纳  格列佛游记 斯威夫特
        飞鸟集 泰戈尔      罪与罚 陀思妥耶夫斯基
    """),
)

_POEMS = Relation(
    name="古诗文",
    subject="文学",
    questions=("《{}》的作者是", "古诗文《{}》是谁写的？", "下列诗人或文人中，写《{}》的是"),
    statement="《{}》的作者是{}。",
    facts=pairs("""
        静夜思 李白      早发白帝城 李白  春望 杜甫        春晓 孟浩然          回乡偶书 贺知章
        游子吟 孟郊      枫桥夜泊 张继    江雪 柳宗元      黄鹤楼 崔颢          山居秋暝 王维
        夜雨寄北 李商隐  泊秦淮 杜牧      琵琶行 白居易    芙蓉楼送辛渐 王昌龄  师说 韩愈
        乌衣巷 刘禹锡    岳阳楼记 范仲淹  醉翁亭记 欧阳修  题西林壁 苏轼        泊船瓜洲 王安石
        爱莲说 周敦颐    石灰吟 于谦      游山西村 陆游    过零丁洋 文天祥      桃花源记 陶渊明
        离骚 屈原
    """),
)

RELATIONS = (_CHINESE, _FOREIGN, _POEMS)

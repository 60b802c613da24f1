"""Elements and compounds."""

from __future__ import annotations

from lab.facts.relation import Fact, Relation, pairs

_TABLE = """
氢 H 1    氦 He 2   锂 Li 3   铍 Be 4   硼 B 5    碳 C 6    氮 N 7    氧 O 8    氟 F 9    氖 Ne 10
钠 Na 11  镁 Mg 12  铝 Al 13  硅 Si 14  磷 P 15   硫 S 16   氯 Cl 17  氩 Ar 18  钾 K 19   钙 Ca 20
钛 Ti 22  钒 V 23   铬 Cr 24  锰 Mn 25  铁 Fe 26  钴 Co 27  镍 Ni 28  铜 Cu 29  锌 Zn 30  砷 As 33
硒 Se 34  溴 Br 35  氪 Kr 36  锶 Sr 38  钼 Mo 42  钯 Pd 46  银 Ag 47  镉 Cd 48  锡 Sn 50  碘 I 53
氙 Xe 54  铯 Cs 55  钡 Ba 56  镧 La 57  钕 Nd 60  钨 W 74   铂 Pt 78  金 Au 79  汞 Hg 80  铅 Pb 82
铋 Bi 83  氡 Rn 86  镭 Ra 88  钍 Th 90  铀 U 92
"""
_ELEMENTS = _TABLE.split()
_LETTERS = ("A", "B", "C", "D")

_NUMBERS = Relation(
    name="原子序数",
    subject="化学",
    questions=("在元素周期表中，{}的原子序数是", "{}的原子序数是多少？", "元素{}的原子序数为"),
    statement="{}的原子序数是{}。",
    facts={name: Fact(number) for name, number in zip(_ELEMENTS[::3], _ELEMENTS[2::3], strict=True)},
    near=10,
)

_SYMBOLS = Relation(
    name="元素符号",
    subject="化学",
    questions=("{}的元素符号是", "下列哪一个是{}的元素符号？", "元素{}用什么符号表示？"),
    statement="{}的元素符号是{}。",
    # An option that reads "C" cannot be told from the option C.
    facts={
        name: Fact(symbol)
        for name, symbol in zip(_ELEMENTS[::3], _ELEMENTS[1::3], strict=True)
        if symbol not in _LETTERS
    },
)

_FORMULAS = Relation(
    name="化学式",
    subject="化学",
    questions=("{}的化学式是", "下列哪一个是{}的化学式？", "{}的化学式怎样写？"),
    statement="{}的化学式是{}。",
    facts=pairs("""
        水 H2O        过氧化氢 H2O2  氢气 H2           氧气 O2       氮气 N2         一氧化碳 CO
        二氧化碳 CO2  二氧化硫 SO2   二氧化硅 SiO2     氨 NH3        甲烷 CH4        氯化钠 NaCl
        硫酸 H2SO4    硝酸 HNO3      氢氧化钠 NaOH     碳酸钙 CaCO3  碳酸钠 Na2CO3   氢氧化钙 Ca(OH)2
        氧化钙 CaO    氧化铁 Fe2O3   四氧化三铁 Fe3O4  硫酸铜 CuSO4  高锰酸钾 KMnO4  葡萄糖 C6H12O6
    """),
)

RELATIONS = (_NUMBERS, _SYMBOLS, _FORMULAS)

"""The kinds of word problems: the numbers each is made of, its right plan and three wrong ones by what they believe.

The four plans of a kind begin with four different operations under four different labels, so that they part at once.
"""

from __future__ import annotations

from lab.words.plans import Skill, kind

TABLE: tuple[Skill, ...] = (
    kind(
        "half",
        {"a": range(8, 99, 2), "b": range(4, 41, 2)},
        "half=a/2 now=half+b",
        {
            "forgets to halve": "sum=a+b",
            "doubles instead of halving": "double=a*2 now=double+b",
            "halves what is bought": "part=b/2 now=a+part",
        },
    ),
    kind(
        "times",
        {"a": range(5, 40), "k": range(3, 7)},
        "other=a*k total=other+a",
        {
            "adds instead of multiplying": "more=a+k total=more+a",
            "counts one time too few": "times=k-1 total=a*times",
            "takes away instead of multiplying": "less=a-k total=less+a",
        },
    ),
    kind(
        "change",
        {"n": range(2, 10), "p": range(2, 16), "m": (20, 50, 80, 100, 120, 150, 200)},
        "cost=n*p change=m-cost",
        {
            "adds instead of multiplying": "sum=n+p change=m-sum",
            "pays for one only": "left=m-p",
            "takes the number for the price": "rest=m-n",
        },
    ),
    kind(
        "distance",
        {"v": range(5, 31), "t": range(2, 7), "d": range(3, 50)},
        "ride=v*t total=ride+d",
        {
            "adds instead of multiplying": "sum=v+t total=sum+d",
            "counts one hour only": "way=v+d",
            "multiplies the wrong leg": "walk=d*t total=walk+v",
        },
    ),
    kind(
        "age",
        {"a": range(4, 16), "k": range(2, 7), "m": range(2, 13)},
        "times=a*k age=times+m",
        {
            "adds before multiplying": "sum=a+m age=sum*k",
            "adds instead of multiplying": "more=a+k age=more+m",
            "swaps the two numbers": "product=a*m age=product+k",
        },
    ),
    kind(
        "discount",
        {"q": range(3, 31), "k": (1, 2, 3, 4, 6, 7, 8, 9)},
        "tenth=a/10 off=tenth*k pay=a-off",
        {
            "takes the percent as money": "left=a-p",
            "raises the price": "more=a+p",
            "always takes half": "half=a/2",
        },
        derived="a=q*10 p=k*10",
    ),
    kind(
        "share",
        {"q": range(3, 16), "n": range(2, 10), "j": range(1, 6)},
        "rest=a-l each=rest/n",
        {
            "adds what is lost": "sum=a+l each=sum/n",
            "forgets what is lost": "part=a/n",
            "takes away instead of sharing": "less=a-n each=less-l",
        },
        derived="l=n*j s=q*n a=s+l",
    ),
    kind(
        "saving",
        {"a": range(10, 90), "s": range(3, 20), "w": range(2, 9), "c": range(5, 60)},
        "saved=s*w sum=saved+a left=sum-c",
        {
            "counts one week only": "money=a+s left=money-c",
            "adds instead of multiplying": "more=s+w sum=more+a left=sum-c",
            "forgets what is saved": "rest=a-c",
        },
    ),
    kind(
        "pages",
        {"d": range(2, 9), "r": range(4, 25), "q": range(8, 45)},
        "read=r*d left=p-read",
        {
            "counts one day only": "rest=p-r",
            "adds instead of multiplying": "sum=r+d left=p-sum",
            "divides by the days": "part=p/d left=part-r",
        },
        derived="p=d*q",
    ),
    kind(
        "boxes",
        {"n": range(2, 10), "b": range(3, 13), "m": range(2, 10), "c": range(3, 13)},
        "boxes=n*b bags=m*c total=boxes+bags",
        {
            "adds all the numbers": "sum=n+b more=sum+m total=more+c",
            "counts one of each": "both=b+c",
            "takes all for boxes": "packs=n+m total=packs*b",
        },
    ),
    kind(
        "machine",
        {"r": range(2, 11), "h": range(2, 8), "d": range(2, 8)},
        "day=r*h total=day*d",
        {
            "forgets the hours": "made=r*d",
            "adds hours and days": "time=h+d total=r*time",
            "adds instead of multiplying": "sum=r+h total=sum*d",
        },
    ),
    kind(
        "fewer",
        {"a": range(12, 95), "m": range(4, 41, 2)},
        "other=a-m total=other+a",
        {
            "adds instead of taking away": "more=a+m total=more+a",
            "forgets the difference": "double=a*2",
            "halves the difference": "half=m/2 total=a+half",
        },
    ),
    kind(
        "perimeter",
        {"a": range(6, 46), "b": range(3, 25)},
        "sum=a+b around=sum*2",
        {
            "takes the area": "area=a*b",
            "doubles one side only": "double=a*2 around=double+b",
            "takes the difference of the sides": "gap=a-b around=gap*2",
        },
    ),
    kind(
        "fraction",
        {"n": (3, 5, 7, 7), "k": range(2, 7), "q": range(3, 16)},
        "share=a/n group=share*k rest=a-group",
        {
            "takes both numbers away": "less=a-k rest=less-n",
            "forgets to divide": "times=a*k rest=times-n",
            "adds instead of dividing": "sum=a+n rest=sum-k",
        },
        derived="a=n*q",
    ),
    kind(
        "average",
        {"q": range(6, 41), "i": range(2, 16), "y": range(4, 50)},
        "sum=x+y all=sum+z mean=all/3",
        {
            "forgets the first number": "pair=y+z mean=pair/2",
            "forgets the middle number": "ends=x+z mean=ends/2",
            "divides the first number only": "third=x/3 sum=third+y mean=sum+z",
        },
        derived="x=i*3 s=q*3 r=s-x z=r-y",
    ),
    kind(
        "tank",
        {"a": range(10, 90), "f": range(6, 25), "l": range(2, 15), "h": range(2, 8)},
        "net=f-l gain=net*h now=a+gain",
        {
            "adds the leak": "both=f+l gain=both*h now=a+gain",
            "forgets the leak": "filled=f*h now=a+filled",
            "counts one hour only": "more=a+f now=more-l",
        },
    ),
    kind(
        "tickets",
        {"a": range(2, 8), "c": range(2, 10), "p": range(8, 16), "q": range(2, 8)},
        "adults=a*p children=c*q total=adults+children",
        {
            "takes all for adults": "people=a+c total=people*p",
            "counts as many children as adults": "pair=p+q total=pair*a",
            "swaps the prices": "cross=a*q other=c*p total=cross+other",
        },
    ),
    kind(
        "doubling",
        {"a": range(5, 60), "b": range(3, 45)},
        "double=a*2 again=double*2 left=again-b",
        {
            "adds two instead of doubling": "more=a+2 again=more+2 left=again-b",
            "takes away before doubling": "less=a-b double=less*2 again=double*2",
            "triples instead of doubling twice": "triple=a*3 left=triple-b",
        },
    ),
    kind(
        "bus",
        {"a": range(15, 60), "x": range(2, 20), "y": range(2, 20), "z": range(2, 15)},
        "left=a-x then=left+y now=then-z",
        {
            "swaps on and off": "sum=a+x then=sum-y now=then+z",
            "forgets the first to get off": "more=a+y now=more-z",
            "takes all for getting off": "off=x+y all=off+z now=a-all",
        },
    ),
    kind(
        "wage",
        {"h": range(3, 10), "r": range(4, 21), "b": range(5, 31)},
        "wage=h*r all=wage+b",
        {
            "pays the bonus every hour": "rate=r+b all=h*rate",
            "adds instead of multiplying": "sum=h+r all=sum+b",
            "swaps wage and bonus": "extra=h*b all=extra+r",
        },
    ),
    kind(
        "legs",
        {"c": range(2, 31), "d": range(2, 26)},
        "birds=c*2 beasts=d*4 legs=birds+beasts",
        {
            "gives all of them four legs": "animals=c+d legs=animals*4",
            "swaps the legs": "cross=c*4 other=d*2 legs=cross+other",
            "forgets the birds": "four=d*4",
        },
    ),
    kind(
        "ribbon",
        {"n": range(3, 11), "k": range(2, 9), "q": range(5, 26)},
        "piece=a/n used=piece*k left=a-used",
        {
            "takes pieces for centimetres": "less=a-n left=less-k",
            "counts pieces": "rest=n-k",
            "multiplies the pieces": "cuts=n*k left=a-cuts",
        },
        derived="a=n*q",
    ),
    kind(
        "later",
        {"a": range(8, 50), "d": range(2, 16), "t": range(2, 20)},
        "other=a+d age=other+t",
        {
            "takes older for younger": "less=a-d age=less+t",
            "goes back in time": "before=a-t age=before+d",
            "forgets the difference": "later=a+t",
        },
    ),
    kind(
        "recipe",
        {"n": range(2, 7), "q": range(5, 26), "m": range(3, 13)},
        "one=g/n all=one*m",
        {
            "adds the guests": "extra=m-n all=g+extra",
            "forgets to divide": "times=g*m",
            "always doubles": "double=g*2",
        },
        derived="g=n*q",
    ),
)

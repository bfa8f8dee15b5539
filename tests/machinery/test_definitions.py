"""Which edits of the owner's code make another run: those that can change what a definition does, and no others."""

import re
from pathlib import Path

import pytest

from foldwise.code.definitions import Definitions
from foldwise.code.source import Code

MODULE = """
import torch
from solution.losses import focal as loss
from .networks import Network

EPS = 1e-6
UNUSED = 3

class Module(torch.nn.Module):
    scale = EPS

    def forward(self, x):
        return loss(Network()(x))

class Second(Module):
    def forward(self, x):
        return UNUSED
"""
LOSSES = (
    "GAMMA = 2\ndef helper(x): return x\ndef focal(x): return helper(x) * GAMMA\ndef dice(x): return helper(x) + 1\n"
)
NETWORKS = "class Network: width = 3\nclass Wide(Network): width = 4\n"
BASE = {"module": MODULE, "losses": LOSSES, "networks": NETWORKS}


def identity(files, *targets):
    code = Code({f"solution/{name}.py": text.encode() for name, text in files.items()}, Path())
    return Definitions(code, targets or ["solution.module.Module"]).hashes()


def edited(name, old, new):
    assert old in BASE[name]
    return BASE | {name: BASE[name].replace(old, new)}


def test_keys_name_the_definitions():
    assert list(identity(BASE)) == [
        *("solution/losses.py:GAMMA", "solution/losses.py:helper", "solution/losses.py:focal"),
        *("solution/module.py:EPS", "solution/module.py:Module", "solution/module.py", "solution/networks.py:Network"),
    ]
    assert identity(BASE, "solution.module:Module") == identity(BASE)
    assert identity(BASE, "foldwise.models.losses.Dice") == {}


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("module", "UNUSED = 3", "UNUSED = 4"),
        ("module", "class Second(Module)", "class Third(Module)"),
        ("module", "return UNUSED", "return UNUSED + 1"),
        ("module", "class Module(", "# A comment.\nclass Module("),
        ("module", "    scale", '    """A docstring."""\n\n    scale'),
        ("module", "def forward(self, x):", "def forward(self, x: 'Tensor') -> torch.Tensor:"),
        ("module", "import torch\n", "import torch\nimport os\nfrom solution.networks import Wide\n"),
        ("module", "from solution.losses import focal as loss", "from .losses import (\n    focal as loss,\n)"),
        ("module", "EPS = 1e-6", "EPS: float = 0.000001"),
        ("module", "EPS = 1e-6\n", "EPS = 1e-6\nif __name__ == '__main__':\n    print(Second())\n"),
        ("module", "\nEPS = 1e-6\nUNUSED = 3", "\nUNUSED = 3\nEPS = 1e-6"),
        ("losses", "def dice(x): return helper(x) + 1", ""),
        ("losses", LOSSES, LOSSES + "\ndef third(GAMMA): GAMMA = 3\n"),
        ("losses", "def helper(x): return x\ndef focal(x): return helper(x) * GAMMA\n",
         "def focal(x): return helper(x) * GAMMA\ndef helper(x): return x\n"),
        ("networks", "width = 4", "width = 5"),
    ],
)  # fmt: skip
def test_an_unrelated_edit_changes_nothing(name, old, new):
    assert identity(edited(name, old, new)) == identity(BASE)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("module", "EPS = 1e-6", "EPS = 1e-5"),
        ("module", "Network()(x)", "Network()(x + 1)"),
        ("module", "torch.nn.Module)", "torch.nn.Sequential)"),
        ("module", "focal as loss", "dice as loss"),
        ("module", "import torch\n", "import other as torch\n"),
        ("module", "import torch\n", "import torch\ntorch.manual_seed(0)\n"),
        ("module", "import torch\n", "import torch\ntorch.backends.cudnn.benchmark = True\n"),
        ("module", "import torch\n", "import torch\n_ = torch.manual_seed(0)\n"),
        ("module", "UNUSED = 3", "for EPS in (1, 2): pass"),
        ("module", "UNUSED = 3", "EPS = 3"),
        ("module", "UNUSED = 3", "EPS += 3"),
        ("module", "class Second", "Module.forward = None\nclass Second"),
        ("module", "class Second(Module)", "class Module(Module)"),
        ("module", "class Second", "del loss\nclass Second"),
        ("losses", "GAMMA = 2", "GAMMA = 3"),
        ("losses", "return x\n", "return -x\n"),
        ("losses", "GAMMA = 2", "try:\n    from torch import GAMMA\nexcept ImportError:\n    GAMMA = 2"),
        ("losses", "GAMMA = 2", "GAMMA = 2\ndef set_gamma():\n    global GAMMA\n    GAMMA = 3\nX = set_gamma()"),
        ("losses", "GAMMA = 2", "print('loaded')\nGAMMA = 2"),
        ("networks", "width = 3", "width = 4"),
        ("networks", "class Network: ", "@decorated\nclass Network: "),
        ("networks", "class Network: ", "import solution.losses\nsolution.losses.GAMMA = 3\nclass Network: "),
    ],
)
def test_an_edit_that_can_change_the_behaviour_counts(name, old, new):
    assert identity(edited(name, old, new)) != identity(BASE)


MARK = re.compile(r"<<(.*?)\|(.*?)>>", re.DOTALL)


def counts(files, target="solution.a.T"):
    """Whether an edit changes the identity: from the text before the bar in <<before|after>> to the one after it."""
    before, after = ({name: MARK.sub(side, text) for name, text in files.items()} for side in (r"\1", r"\2"))
    assert before != after
    return identity(before, target) != identity(after, target)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        # names that are shadowed
        ("x = <<1|2>>\ndef T(x): return x", False),
        ("x = <<1|2>>\ndef T():\n    x = 3\n    return x", False),
        ("x = <<1|2>>\nT = lambda x: x", False),
        ("x = <<1|2>>\ndef T(y): return [x for x in y]", False),
        ("x = <<1|2>>\ndef T(y): return [x for y in x]", True),
        ("x = [<<1|2>>]\ndef T(): return [x for x in x]", True),
        ("x = <<1|2>>\ndef T(y): return [(x := z) for z in y], x", False),
        ("x = <<1|2>>\ndef T(y):\n    try: ...\n    except E as x: return x", False),
        ("x = <<1|2>>\ndef T(y):\n    match y:\n        case [*x]: return x", False),
        ("x = <<1|2>>\ndef T(y):\n    match y:\n        case {'a': 1, **x}: return x", False),
        ("class x:\n    y = <<1|2>>\ndef T(y):\n    match y:\n        case x(): ...", True),
        ("x = <<1|2>>\ndef T():\n    import x\n    return x", False),
        ("x = <<1|2>>\ndef T():\n    def x(): ...\n    return x", False),
        ("x = <<1|2>>\ndef T():\n    def f(): return x\n    return f", True),
        ("x = <<1|2>>\ndef T():\n    x = 5\n    def f(): return x\n    return f", False),
        ("x = <<1|2>>\ndef T():\n    x = 5\n    def f():\n        nonlocal x\n        x = 6", False),
        ("x = <<1|2>>\ndef T():\n    x = 5\n    def f():\n        global x\n        return x", True),
        ("y = <<1|2>>\ndef T(x=lambda y: y): return y", True),
        ("x = <<1|3>>\nclass T:\n    x = 2\n    def f(self): return x", True),
        ("x = <<1|3>>\nclass T:\n    x = x", True),
        ("x = <<1|3>>\nclass T:\n    x = 2\n    y = x", False),
        ("x = <<1|3>>\nclass T:\n    x: int\n    y = x", True),
        ("x = <<1|3>>\nclass T:\n    x: int = 2\n    y = x", False),
        ("x = <<1|3>>\nclass T:\n    if c: x = 2\n    y = x", True),
        ("x = <<1|3>>\nclass T:\n    x = 2\n    y = [x for _ in 'a']", True),
        ("x = <<1|3>>\nclass T:\n    for x in 'a': y = x", True),
        ("é = <<1|2>>\ndef T(): return é", True),
        ("π = <<1|2>>\ndef T(): return 1", False),
        # definitions of every kind
        ("x = <<1|2>>\ndef T(y=x): ...", True),
        ("x = <<1|2>>\ndef T(*, y=x): ...", True),
        ("def d(f): return <<f|None>>\n@d\ndef T(): ...", True),
        ("class B:\n    y = <<1|2>>\nclass T(B): ...", True),
        ("class M(type):\n    y = <<1|2>>\nclass T(metaclass=M): ...", True),
        ("x = <<1|2>>\n@dataclass\nclass T:\n    a: int = x", True),
        ("@dataclass\nclass T:\n    a: <<int|ClassVar[int]>> = 1", True),
        ("@dataclass\nclass T:\n    <<a: int|if c:\n        a: ClassVar[int]>> = 1", True),
        ("def f(): return <<1|2>>\n@dataclass\nclass T:\n    a: list = field(default_factory=f)", True),
        ("class T:\n    class Inner:\n        def f(self): return <<1|2>>", True),
        ("async def T(): return <<1|2>>", True),
        ("x = <<1|2>>\nasync def T():\n    async for y in x: ...", True),
        ("if cuda():\n    T = 1\nelse:\n    T = <<2|3>>", True),
        ("if <<cuda|cpu>>():\n    T = 1\n    U = 1\nelse:\n    T = 2", True),
        ("with open('<<x|y>>') as T: ...", True),
        ("T, U = 1, <<2|3>>", True),
        ("(T := <<1|2>>)", True),
        ("x = {'a': (T := <<1|2>>)}", True),
        ("U = [T := 1]\nV = <<3|4>>", False),
        ("T = U = <<1|2>>", True),
        ("T = <<1\nT = 2|2\nT = 1>>", True),
        ("def T(): ...\ndef T(): return <<2|3>>", True),
        ("def T(x<<|, />>): return x", True),
        ("def T(x): return f'{x:.<<2f|3f>>}'", True),
        # annotations
        ("def T(x: <<int|float>>) -> <<int|float>>: return x", False),
        ("def T(x):\n    y: <<int|float>> = x\n    return y", False),
        ("U = <<1|2>>\ndef T(x: U): return x", False),
        ("def T():\n    'solution.a.U'\n    return 1\nU = <<1|2>>", True),
        ("@typed\ndef T(x: <<int|float>>): return x", True),
        ("@staticmethod\ndef T(x: <<int|float>>): return x", False),
        (
            "from typing import TYPE_CHECKING as t\nimport typing\nT = 1\nif typing.TYPE_CHECKING:\n    T = <<2|3>>",
            False,
        ),
        ("TYPE_CHECKING = 0\nif TYPE_CHECKING:\n    T = 2\nelse:\n    T = <<4|5>>", True),
        # what code changes as the module loads
        (
            "R = {}\ndef register(c):\n    R[c] = 1\n    return c\n@register\nclass A: x = <<1|2>>\ndef T(): return R",
            True,
        ),
        ("R = {}\ndef register(c):\n    return c\n@register\nclass A: x = <<1|2>>\ndef T(): return 1", False),
        ("R = []\ndef add(x): R.append(x)\nX = add(<<1|2>>)\ndef T(): return R", True),
        ("R = []\ndef add(r, x): r.append(x)\nX = add(R, <<1|2>>)\ndef T(): return R", True),
        ("R = []\nQ = R\ndef add(x): Q.append(x)\nX = add(<<1|2>>)\ndef T(): return R", True),
        ("R = []\ndef get(): return R\nX = get().append(<<1|2>>)\ndef T(): return R", True),
        ("R = []\nX = [R.append(i) for i in range(<<3|4>>)]\ndef T(): return R", True),
        ("R = []\nX = list(map(lambda i: R.append(i), [<<3|4>>]))\ndef T(): return R", True),
        ("class S:\n    n = 0\ndef f(): S.n = <<1|2>>\nX = f()\ndef T(): return S", True),
        (
            "class S:\n    @classmethod\n    def f(cls, n): cls.n = n\nX = S.f(<<1|2>>)\ndef T(): return S.n",
            True,
        ),
        ("class S: ...\ndef f(): setattr(S, 'n', <<1|2>>)\nX = f()\ndef T(): return S.n", True),
        ("class S: ...\ndef f(k): k.n = <<1|2>>\nX = f(S)\ndef T(): return S.n", True),
        ("class S: ...\ndef f(s): type(s).n = <<1|2>>\nX = f(S())\ndef T(): return S.n", True),
        ("R = []\ndef add(x): R.append(x)\nX = sorted([<<1|2>>], key=add)\ndef T(): return R", True),
        ("N = 1\ndef f(): globals()['N'] = <<2|3>>\nX = f()\ndef T(): return N", True),
        ("def S(): ...\ndef f(): S.n = <<1|2>>\nX = f()\ndef T(): return S.n", True),
        ("def S(c={}): return c\nX = S().update(a=<<1|2>>)\ndef T(): return S()", True),
        ("class B:\n    def __init_subclass__(cls): B.n = cls\nclass C(B): x = <<1|2>>\ndef T(): return B.n", True),
        ("N = 0\ndef f():\n    global N\n    N = 1\n<<X = f()|>>\ndef T(): return N", True),
        ("N = 0\ndef f():\n    global N\n    N = <<1|2>>\ndef T(): return N", False),
        ("W = [1]\nclass L:\n    def __init__(self, g): self.g = W\nX = L(<<1|2>>)\ndef T(): return L", True),
        ("class L:\n    def __init__(self, g): self.g = g\nX = L(<<1|2>>)\ndef T(): return L", False),
        ("W = [1]\nX = <<len|sum>>(W)\ndef T(): return W", False),
        ("W = [1]\n@torch.no_grad()\ndef f(): return <<W|1>>\ndef T(): return W", False),
        ("W = [1]\nT = W\nW.append(<<2|3>>)", True),
        ("assert <<x|y>>\ndef T(): ...", True),
        ("import os\nos.environ['A'] = '<<1|2>>'\nT = 1", True),
        # names by strings
        ("U = <<1|2>>\ndef T(n): return globals()[n]", True),
        ("U = <<1|2>>\ndef T(n): return vars()[n]", True),
        ("U = <<1|2>>\ndef T(n): return vars(n)", False),
        ("U = <<1|2>>\ndef T(n): return eval(n)", True),
        ("def T(n):\n    x = 1\n    def f(): return x, globals(), eval(n)\nU = <<1|2>>", True),
        ("import sys\nU = <<1|2>>\ndef T(n): return getattr(sys.modules[__name__], n)", True),
        ("class B: ...\nclass C(B): x = <<1|2>>\ndef T(): return B.__subclasses__()", True),
        ("U = <<1|2>>\ndef T(make): return make({'_target_': 'solution.a:U'})", True),
        ('"""<<Doc|Text>>."""\nU = 1\ndef T(n): return globals()[n]', False),
        # order
        ("A = [1]\n<<B = A + [2]\nA += [3|A += [3]\nB = A + [2>>]\ndef T(): return B", True),
        ("class <<A: ...\nclass B|B: ...\nclass A>>: ...\ndef T(): return A, B", False),
    ],
)
def test_definitions_by_pythons_rules(source, expected):
    assert counts({"a": source}) is expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        # two files of one name
        ({"a": "from solution.p.x import f\nT = f", "p/x": "f = <<1|2>>", "q/x": "f = 1"}, True),
        ({"a": "from solution.p.x import f\nT = f", "p/x": "f = 1", "q/x": "f = <<1|2>>"}, False),
        ({"a": "from .q.x import f\nT = f", "q/x": "from ..x import f", "x": "f = <<1|2>>"}, True),
        # what is taken from a module
        ({"a": "import solution.b\ndef T(): return solution.b.f", "b": "f = <<1|2>>\ng = 1"}, True),
        ({"a": "import solution.b\ndef T(): return solution.b.f", "b": "f = 1\ng = <<1|2>>"}, False),
        ({"a": "import solution.b as m\ndef T(): return m.f", "b": "f = 1\ng = <<1|2>>"}, False),
        ({"a": "from . import b\ndef T(): return b.f", "b": "f = <<1|2>>\ng = 1"}, True),
        ({"a": "from . import b\ndef T(n): return getattr(b, n)", "b": "f = 1\ng = <<1|2>>"}, True),
        ({"a": "from . import b\ndef T(n): return b.__dict__[n]", "b": "f = 1\ng = <<1|2>>"}, True),
        ({"a": "from . import b\ndef T(n): return b.f", "b": "def __getattr__(n): return <<1|2>>"}, True),
        ({"a": "import solution\nT = solution", "b": "g = <<1|2>>"}, True),
        # imports within functions
        ({"a": "def T():\n    import solution.b as m\n    return m.f", "b": "f = <<1|2>>\ng = 1"}, True),
        ({"a": "def T():\n    import solution.b as m\n    return m.f", "b": "f = 1\ng = <<1|2>>"}, False),
        ({"a": "def T():\n    from .b import f", "b": "f = 1\nprint(<<3|4>>)"}, True),
        ({"a": "def T():\n    if x: import solution.b as m\n    else: m = 1\n    return m", "b": "g = <<1|2>>"}, True),
        ({"a": "class T:\n    from solution.b import f", "b": "f = <<1|2>>"}, True),
        # packages and what they pass on
        ({"a": "from solution import f\nT = f", "__init__": "from .b import g as f", "b": "g = <<1|2>>"}, True),
        ({"a": "T = 1", "__init__": "x = <<1|2>>"}, False),
        ({"a": "T = 1", "__init__": "<<x = 1|print(2)>>"}, True),
        (
            {
                "a": "from .p import m\ndef T(): return m.f",
                "p/__init__": "from .n import m",
                "p/m": "f = 1",
                "p/n": "m = <<1|2>>",
            },
            True,
        ),
        # modules that are loaded
        ({"a": "from .b import f\nT = 1", "b": "f = 1\nprint(<<1|2>>)"}, True),
        ({"a": "from .b import f\nT = 1", "b": "f = <<1|2>>\nprint(1)"}, False),
        ({"a": "T = 1", "b": "print(<<1|2>>)"}, False),
        ({"a": "import solution.<<b, solution.c|c, solution.b>>\nT = 1", "b": "f()", "c": "g()"}, True),
        ({"a": "import solution.<<b, solution.c|c, solution.b>>\nT = 1", "b": "f()", "c": "g = 1"}, False),
        (
            {
                "a": "from .r import R\nfrom . import b\ndef T(): return R",
                "b": "from .r import add\nX = add(<<1|2>>)",
                "r": "R = []\ndef add(x): R.append(x)",
            },
            True,
        ),
        (
            {
                "a": "from . import b\nfrom .c import X\ndef T(): return b.N",
                "b": "N = 1",
                "c": "from . import b\ndef f(): b.N = <<2|3>>\nX = f()",
            },
            True,
        ),
        (
            {
                "a": "from . import b\nfrom .c import X\ndef T(): return b.N",
                "b": "N = 1",
                "c": "from . import b\ndef f(): setattr(b, 'N', <<2|3>>)\nX = f()",
            },
            True,
        ),
        # everything of a module
        ({"a": "from .b import *\ndef T(): return f", "b": "f = <<1|2>>\ng = 1"}, True),
        ({"a": "from .b import *\ndef T(): return f", "b": "f = 1\n__all__ = [<<'f'|>>]"}, True),
        ({"a": "from .b import *\ndef T(x): return len(x)", "b": "<<f = 1|def len(x): return 3>>"}, True),
        ({"a": "from .b import *\ndef T(): return f", "b": "from .c import *", "c": "f = <<1|2>>"}, True),
        ({"a": "import importlib\ndef T(n): return importlib.import_module(n)", "b": "f = <<1|2>>"}, True),
        ({"a": "from importlib import import_module\ndef T(n): return import_module(n)", "b": "f = <<1|2>>"}, True),
        ({"a": "import importlib.metadata\ndef T(n): return importlib.metadata.version(n)", "b": "f = <<1|2>>"}, False),
        # what a name stands for
        ({"a": "from .b import <<f as g, h as i|h as g, f as i>>\ndef T(): return g, i", "b": "f = 1\nh = 2"}, True),
        ({"a": "from .b import <<f, h|h, f>>\ndef T(): return f, h", "b": "f = 1\nh = 2"}, False),
        (
            {"a": "from .<<b|c>> import f\nfrom .<<c|b>> import f\nT = f", "b": "f = 1", "c": "f = 2"},
            True,
        ),
        # cycles
        (
            {
                "a": "from . import b\nT = <<1|2>>\ndef f(): return b.g",
                "b": "from . import a\ndef g(): return a.T, a.f",
            },
            True,
        ),
        ({"a": "from .b import g\ndef T(): return g", "b": "from . import a\ndef g(): return a.T<<|()>>"}, True),
    ],
)
def test_definitions_across_files(files, expected):
    assert counts(files) is expected


def test_what_is_used_of_foldwise():
    files = {
        "a": "import foldwise.models.losses\nfrom foldwise.data import unused\nfrom .b import helper\n"
        "def T():\n    from foldwise.files import write_text\n"
        "    return helper, write_text, foldwise.models.losses.Dice\n",
        "b": "from foldwise.models.networks import *\nhelper = build\nother = foldwise_thing",
    }
    code = Code({f"solution/{name}.py": text.encode() for name, text in files.items()}, Path())
    found = Definitions(code, ["solution.a.T"]).foldwise()
    assert {"foldwise.models.losses.Dice", "foldwise.files.write_text", "foldwise.models.networks.build"} <= {*found}
    assert not [name for name in found if name.startswith("foldwise.data")]

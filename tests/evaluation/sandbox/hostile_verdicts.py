# ruff: noqa: E501 - one program a line, as it will be read
"""Programs that want to pass without adding: each stands where `add` was asked for, and none of them adds.

TESTS asks for sums in the form of HumanEval, of which most begin with `def check`. NEIGHBOUR is right. A name says what
is tried. In a sandbox that runs program and tests as one text, and keeps the verdict in a frame below them, those on
equality, frames, traces and built-in names pass.
"""

TESTS = """def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate(-7, 7) == 0
    assert candidate(10**20, 1) == 10**20 + 1
    assert candidate([1, 2], [3]) == [1, 2, 3]

METADATA = {}
check(add)
"""
NEIGHBOUR = "def add(a, b):\n    return a + b\n"
# No case is reached in these, if what maps, unpacks or walks them ends before the first.
WALKS = """
assert all(map(lambda a: add(a, 1) == a + 1, [2, 3]))
assert list(map(add, [], [])) == [] and not any(map(lambda a: add(a, a) != 2 * a, range(9)))
assert [a for a in filter(lambda a: add(a, 0) != a, range(9))] == []
for got, right in zip(map(lambda a: add(a, 2), [5, 6]), [7, 8]):
    assert got == right
"""
_WRONG = "def add(a, b):\n    return None\n"
_FORGE = """
import json, os, struct
def say(message, raw=None):
    content = raw if raw is not None else json.dumps(message).encode()
    content = struct.pack("<I", len(content)) + content
    for fd in range(3, 12):
        try:
            os.write(fd, content)
        except OSError:
            pass
"""
_EQUAL = "    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n    __hash__ = object.__hash__\n"
_FRAMES = """
import sys
def frames():
    frame = sys._getframe()
    while frame is not None:
        yield frame
        frame = frame.f_back
"""
_FDS = "for fd in range(1, 20):\n    try: os.write(fd, {text})\n    except OSError: pass\n"


def _subclass(base: str, made: str) -> str:
    return f"class Equal({base}):\n{_EQUAL}def add(a, b):\n    return {made}\n"


FALSE_PASSES = {
    # Objects that equal everything
    "an always-equal object": _subclass("object", "Equal()"),
    "an always-equal int": _subclass("int", "Equal(41)"),
    "an always-equal str": _subclass("str", "Equal('x')"),
    "an always-equal list": _subclass("list", "Equal([9])"),
    "an always-equal dict": _subclass("dict", "Equal(a=1)"),
    "an always-equal tuple": _subclass("tuple", "Equal((9,))"),
    "an always-equal float": _subclass("float", "Equal(0.5)"),
    "an always-equal exception": _subclass("Exception", "Equal()"),
    "an always-equal class": f"class Meta(type):\n{_EQUAL}class A(metaclass=Meta): pass\ndef add(a, b):\n    return A\n",
    "a reflected comparison": "class A(int):\n    def __rsub__(self, o): return 0\n" + _EQUAL + "def add(a, b): return A(0)\n",
    "unittest.mock.ANY": "from unittest.mock import ANY\ndef add(a, b):\n    return ANY\n",
    "NotImplemented": "def add(a, b):\n    return NotImplemented\n",
    "not a number": "def add(a, b):\n    return float('nan')\n",
    "a callable instance": f"class Add:\n{_EQUAL}    def __call__(self, a, b): return self\nadd = Add()\n",
    "a generator": "def add(a, b):\n    yield a + b\n",
    "an object that reduces": "class A:\n    def __reduce__(self): return (int, ('5',))\ndef add(a, b): return A()\n",
    "an int whose operators lie": "class A(int):\n    def __add__(self, o): return 5\n    def __index__(self): return 5\n"
    "def add(a, b): return A(1)\n",
    # Text that swallows the tests behind it
    "a decorator for check": _WRONG + "def skip(f):\n    return lambda candidate: None\n@skip",
    "an open string": _WRONG + '"""',
    "an open bracket": _WRONG + "x = (",
    "a line that goes on": _WRONG + "x = 1 \\",
    "an if that is never true": _WRONG + "if False:",
    "a check of its own": _WRONG + "def check(candidate):\n    pass\nMETADATA = {}\n",
    # Leaving
    "sys.exit(0)": _WRONG + "import sys\nsys.exit(0)\n",
    "os._exit(0)": _WRONG + "import os\nos._exit(0)\n",
    "raise SystemExit": _WRONG + "raise SystemExit\n",
    "KeyboardInterrupt": _WRONG + "raise KeyboardInterrupt\n",
    "GeneratorExit when asked": "def add(a, b):\n    raise GeneratorExit\n",
    "StopIteration when asked": "def add(a, b):\n    raise StopIteration\n",
    "os._exit(0) when asked": "import os\ndef add(a, b):\n    os._exit(0)\n",
    "sys.exit(0) when asked": "import sys\ndef add(a, b):\n    sys.exit(0)\n",
    "os._exit(0) in a thread": _WRONG + "import os, threading\nthreading.Timer(0.01, os._exit, (0,)).start()\n"
    "def add(a, b):\n    import time; time.sleep(1)\n",
    "atexit": _WRONG + "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit(0)\n",
    "__del__": "import os\nclass A:\n    def __del__(self): os._exit(0)\ndef add(a, b):\n    A()\n",
    "an alarm": _WRONG + "import os, signal, time\nsignal.signal(14, lambda *a: os._exit(0))\nsignal.setitimer(0, 0.01)\ntime.sleep(1)\n",
    "an exception hook": _WRONG + "import sys, os\nsys.excepthook = lambda *a: os._exit(0)\nraise ValueError\n",
    "no channel": _WRONG + "import os\nos.closerange(3, 100)\n",
    "a channel to nowhere": _WRONG + "import os\nos.dup2(0, 3)\n",
    # Saying so
    "printing": _WRONG + "print('passed\\n' * 9)\nimport sys\nsys.stderr.write('passed')\n",
    "passed on every descriptor": _WRONG + "import os\n" + _FDS.format(text="b'passed\\n'") + "os._exit(0)\n",
    "a verdict on every descriptor": _WRONG + "import os\n" + _FDS.format(text="b'{\"status\": \"passed\", \"detail\": \"\"}\\n'"),
    "a forged value": _FORGE + "say({'value': 5, 'nodes': []})\nos._exit(0)\n",
    "forged values without end": _FORGE + "def add(a, b):\n    for i in range(99): say({'value': 5, 'nodes': []})\n",
    "a forged definition": _FORGE + "say({'value': [0], 'nodes': [['d', 'check', ['T', 'len'], 'add', ['T', 'sum']]]})\nos._exit(0)\n",
    "a forged change": _FORGE + "def add(a, b):\n    say({'value': None, 'nodes': [], 'changed': {'0': ['t', 1], '1': ['d']}})\n",
    "a question about names": _FORGE + "def add(a, b):\n    say({'ask': 'names', 'arguments': [[0]], 'nodes': [['l', 'check']]})\n",
    "a question for an attribute": _FORGE
    + "def add(a, b):\n    say({'ask': 'getattr', 'arguments': [['H', 0], '__globals__'], 'nodes': []})\n",
    "a call of nothing lent": _FORGE + "def add(a, b):\n    say({'ask': 'call', 'arguments': [['T', 'len'], [0], [1]], "
    "'nodes': [['t', 'x'], ['d']]})\n",
    "4 GB": _FORGE + "def add(a, b):\n    for fd in range(3, 9):\n        try: os.write(fd, b'\\xff' * 4)\n        except OSError: pass\n",
    "no JSON": _FORGE + "def add(a, b):\n    say(None, b'\\x80{')\n",
    "a tower of brackets": _FORGE + "def add(a, b):\n    say(None, b'[' * 10**6)\n",
    "a tuple in itself": _FORGE + "def add(a, b):\n    say({'value': [0], 'nodes': [['t', [0]]]})\n",
    "a node that is not there": _FORGE + "def add(a, b):\n    say({'value': [7], 'nodes': []})\n",
    "an index below zero": _FORGE + "def add(a, b):\n    say({'value': ['H', -1], 'nodes': []})\n",
    "a pickle": _FORGE + "import pickle\ndef add(a, b):\n    say(None, pickle.dumps({'value': 5}))\n",
    # Frames, traces, replaced parts
    "locals of all frames": _FRAMES
    + "def add(a, b):\n    for frame in frames():\n        for name in list(frame.f_locals):\n"
    "            frame.f_locals[name] = 'passed'\n",
    "globals of all frames": _FRAMES
    + "def add(a, b):\n    for frame in frames():\n        for name in ('told', '_exception', 'check', 'judge', 'GoneError'):\n"
    "            frame.f_globals[name] = lambda *a: 'passed'\n",
    "token and writer in a frame": _WRONG + _FRAMES
    + "import os\nfor frame in frames():\n    if 'token' in frame.f_locals:\n"
    "        known = frame.f_locals\n        os.write(known['writer'], f\"{known['token']}\\npassed\\n\".encode())\n        os._exit(0)\n",
    "a trace of the frames below": _WRONG + _FRAMES
    + "def trace(frame, event, arg):\n    frame.f_locals.update(status='passed', verdict='passed', detail='')\n    return trace\n"
    "sys.settrace(trace)\nfor frame in list(frames())[1:]:\n    frame.f_trace = trace\n",
    "a replaced describe": _WRONG + _FRAMES
    + "import os\ndef say(error):\n    known = sys._getframe(1).f_locals\n"
    "    os.write(known['writer'], f\"{known['token']}\\npassed\\n\".encode())\n    os._exit(0)\n"
    "for frame in frames():\n    for name in ('describe', 'told', '_ended'):\n        frame.f_globals[name] = say\n",
    "a trace that jumps": _WRONG
    + "import sys\ndef trace(frame, event, arg):\n    frame.f_trace_lines = False\n    return trace\nsys.settrace(trace)\n",
    "a profile that replaces": _WRONG + "import sys\nsys.setprofile(lambda f, e, a: f.f_locals.update(status='passed'))\n",
    "tests in memory": _FRAMES
    + "import gc\ndef add(a, b):\n    text = [o for o in gc.get_objects() if isinstance(o, dict) and 'tests' in o]\n"
    "    text += [v for f in frames() for v in f.f_locals.values() if isinstance(v, str) and 'candidate' in v]\n"
    "    return 5 if text else None\n",
    "tests in linecache": "import linecache\ndef add(a, b):\n    return linecache.getlines('<program>')\n",
    "replaced builtins": _WRONG + "import builtins\nfor name in ('compile', 'exec', 'isinstance', 'type', 'getattr'):\n"
    "    setattr(builtins, name, lambda *a, **k: 'passed')\n",
    "AssertionError is Exception": _WRONG + "import builtins\nbuiltins.AssertionError = type('A', (Exception,), {})\n",
    "another __builtins__": _WRONG + "__builtins__ = {}\n",
    "another __main__": _WRONG + "import sys\nsys.modules['__main__'] = type(sys)('m')\nsys.modules['builtins'] = None\n",
    "unittest's assert": _WRONG + "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n",
    "a patched encoder": "import sys\nV = sys.modules['evaluation.sandbox.values']\nV.Encoder.value = lambda self, v: ['n']\n" + _WRONG,
    "a patched peer": "import sys\nP = sys.modules['evaluation.sandbox.peer']\nP.told = lambda e: ['passed', '', 0]\n" + _WRONG,
    "the judge, called": "import sys\nJ = sys.modules['evaluation.sandbox.judge']\nJ.run = lambda *a: None\n"
    "J.judge({}, 3)\n" + _WRONG,
    "a patched json": "import json\njson.dumps = lambda *a, **k: '{\"value\": true}'\n" + _WRONG,
    "a subclass of dict as globals": _WRONG + "import sys\nsys._getframe().f_globals.update(add=print)\n",
    "the judge killed": "import os, signal\ndef add(a, b):\n    for pid in (os.getppid(), 1, 2, 3):\n"
    "        try: os.kill(pid, 9)\n        except OSError: pass\n    return 5\n",
    "stopped for ever": "import os\ndef add(a, b):\n    os.kill(os.getpid(), 19)\n",
    "an answer that is asserted": "def add(a, b):\n    raise AssertionError\n",
}  # fmt: skip
ENDS_EARLY = {  # under WALKS
    "StopIteration": "def add(a, b):\n    raise StopIteration\n",
    "StopIteration of its own": "class Stop(StopIteration): pass\ndef add(a, b):\n    raise Stop\n",
    "StopIteration from an attribute": "class Add:\n    @property\n    def __call__(self): raise StopIteration\nadd = Add()\n",
    "a forged StopIteration": _FORGE + "def add(a, b):\n    say({'error': ['StopIteration', '', 1], 'nodes': []})\n",
    "StopAsyncIteration": "def add(a, b):\n    raise StopAsyncIteration\n",
    "IndexError": "def add(a, b):\n    raise IndexError\n",
}  # fmt: skip
_NEAR, _KIND, _IN = "assert abs(add(2, 3) - 5) < 1e-6", "assert isinstance(add(1, 1), int)", "assert 5 in add([5], [])"
_CLOSE, _CHECKED = "assert math.isclose(add(1, 2), 3)", "def check(f):\n    assert abs(f(2, 3) - 5) < 1e-6\ncheck(add)"
_NINE = _WRONG.replace("None", "9")
_OWN = "import builtins\n__builtins__ = {**vars(builtins), 'abs': lambda x: 0}\n"
BUILTIN_NAMES = {  # and the test of each: a right program defines `add` only, so tests take nothing else from it
    "its own abs": (_NINE + "def abs(x): return 0\n", _NEAR),
    "its own isinstance": (_WRONG + "def isinstance(*a): return True\n", _KIND),
    "its own math": (_NINE + "class math:\n    isclose = staticmethod(lambda *a: True)\n", _CLOSE),
    "math patched": (_NINE + "import math\nmath.isclose = lambda *a: True\n", _CLOSE),
    "builtins patched": (_NINE + "import builtins\nbuiltins.abs = lambda x: 0\n", _NEAR),
    "its own __builtins__": (_NINE + _OWN, _CHECKED),
    "an operator": ("class A:\n    def __sub__(s, o): return 0\ndef add(a, b): return A()\n", _NEAR),
    "a magnitude": ("class A:\n    def __sub__(s, o): return s\n    def __abs__(s): return 0\ndef add(a, b): return A()\n", _NEAR),
    "an order": ("class A:\n    def __sub__(s, o): return s\n    def __abs__(s): return s\n    def __lt__(s, o): return True\n"
                 "def add(a, b): return A()\n", _NEAR),
    "a float whose operators lie": ("class A(float):\n    def __sub__(s, o): return 0.0\ndef add(a, b): return A(9)\n", _NEAR),
    "a container of everything": ("class A:\n    def __contains__(s, o): return True\ndef add(a, b): return A()\n", _IN),
    "a list of everything": ("class A(list):\n    def __contains__(s, o): return True\ndef add(a, b): return A()\n", _IN),
    "a class that claims to be int": ("class A:\n    __class__ = int\ndef add(a, b): return A()\n", _KIND),
    "a forged abs": (_FORGE + "say({'value': [0], 'nodes': [['d', 'add', ['T', 'max'], 'abs', ['T', 'bool']]]})\n"
                     "def add(a, b): return 9\n", _NEAR),
}  # fmt: skip

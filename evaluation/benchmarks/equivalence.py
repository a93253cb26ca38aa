"""Whether two final answers are the same mathematics: cheap text comparison first, math-verify in a process of its own.

math-verify's timeouts are signals, which work in no other thread than the main one and cannot interrupt a big integer
power; a process can be ended. Run as a script, this module is that process.
"""

from __future__ import annotations

import json
import logging
import re
import select
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from types import TracebackType

_PHRASE = re.compile(r"final answer is:?\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\$?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
_START_SECONDS = 120.0  # importing sympy on a busy machine


def prediction(text: str) -> str | None:
    r"""The answer that a solution ends with: the last \boxed{...}, else what follows "final answer is"; else None.

    >>> prediction(r"so $x = \boxed{\frac{1}{2}}$. Final Answer: The final answer is $0.5$.")
    '\\frac{1}{2}'
    >>> prediction("The final answer is $12$. I hope it is correct.")
    '12'
    """
    found = _boxed(text)
    if found is None and (phrases := _PHRASE.findall(text)):
        line = phrases[-1].strip()
        quoted = re.match(r"\$+(.+?)\$+", line)
        found = quoted[1] if quoted else re.split(r"\.(?:\s|$)", line, maxsplit=1)[0]
    return (found.strip() or None) if found is not None else None


def _boxed(text: str) -> str | None:
    r"""Content of the last \boxed or \fbox that is closed; without braces, as in \boxed 5, the one token after it."""
    for match in reversed(list(re.finditer(r"\\(?:boxed|fbox)\s*", text))):
        at = match.end()
        if at >= len(text):
            continue
        if text[at] != "{":
            return re.findall(r"\\[a-zA-Z]+|.", text[at:], re.DOTALL)[0]
        depth = 0
        for end in range(at, len(text)):
            depth += (text[end] == "{") - (text[end] == "}")
            if depth == 0:
                return text[at + 1 : end]
    return None


def normalise(answer: str) -> str:
    r"""Spellings that are the same to any reader made the same text: spacing, \left, \dfrac, a final stop, dollars.

    >>> normalise(r"\left( 3, \dfrac{\pi}{2} \right).")
    '(3,\\frac{\\pi}{2})'
    """
    text = answer.strip().strip("$").strip().removesuffix(".")
    for name, plain in (("left", ""), ("right", ""), ("dfrac", r"\\frac"), ("tfrac", r"\\frac"), ("quad", "")):
        text = re.sub(rf"\\{name}(?![a-zA-Z])", plain, text)
    return re.sub(r"\\[!,;: ]|\s|~", "", text)


def same_number(answer: str, gold: str) -> bool:
    """Whether the last number in `answer` is the last one in `gold`, whatever commas, currency or zeros they have.

    >>> same_number("It costs $1,200.00 in all.", "... #### 1200"), same_number("12 apples, 5 pears", "#### 12")
    (True, False)
    """
    found, wanted = _last_number(answer), _last_number(gold)
    return found is not None and found == wanted


def _last_number(text: str) -> Decimal | None:
    numbers = _NUMBER.findall(text)
    return Decimal(re.sub(r"[$,]", "", numbers[-1])) if numbers else None


class Judge:
    """Answers whether two answers are equal; a context manager around the process that computes it.

    seconds: wall time for one comparison.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def equal(self, answer: str, gold: str) -> bool | None:
        """None: no verdict in time. Equal texts are equal without any parsing."""
        if normalise(answer) == normalise(gold):
            return True
        return self.verified(answer, gold)

    def verified(self, answer: str, gold: str) -> bool | None:
        """math-verify's verdict alone; None: none in time."""
        process = self._process = self._process or _start()
        assert process.stdin is not None
        process.stdin.write(json.dumps([answer, gold]) + "\n")
        process.stdin.flush()
        reply = _line(process, self._seconds)
        if reply is None:
            self._end()  # whatever it is at is given up; the next comparison gets a new process
            return None
        return json.loads(reply)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None


def _start() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "evaluation.benchmarks.equivalence"],
        cwd=Path(__file__).parents[2],  # from where `evaluation` is found: it is not installed
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
    )  # fmt: skip
    # A judge that cannot start must not look like a model that solves nothing.
    if _line(process, _START_SECONDS) is None:
        process.kill()
        raise RuntimeError(
            f"{sys.executable} -m evaluation.benchmarks.equivalence does not start: is math-verify installed? "
            "pip install 'math-verify[antlr4_9_3]'"
        )
    return process


def _line(process: subprocess.Popen[str], seconds: float) -> str | None:
    """One line of its output, or None at the end of it or past the time."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], seconds)
    return (process.stdout.readline() or None) if ready else None


def _serve() -> None:
    """Comparisons in as JSON lines [answer, gold], verdicts out."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)  # "timeout is disabled", once for each call
    _say("ready")
    for line in sys.stdin:
        answer, gold = json.loads(line)
        try:
            wanted, found = (parse(f"${text}$", parsing_timeout=0) for text in (gold, answer))  # 0: no signals
            verdict = bool(verify(wanted, found, timeout_seconds=None))
        except Exception:  # what cannot be parsed or compared is not equal: models write anything
            verdict = False
        _say(verdict)


def _say(what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    _serve()

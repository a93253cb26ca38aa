"""Which answers have written a stop string, looked for every few tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

EVERY = 4  # tokens between searches: decoding each step costs as much as a small model's forward


class Stops:
    """until: the strings. decode: token lists -> their texts.

    Looking rarely changes no answer, for they are cut at the string afterwards.
    """

    def __init__(self, until: Sequence[str], decode: Callable[[list[list[int]]], list[str]]) -> None:
        self._until, self._decode = until, decode
        # Enough tokens to hold a string that ended up to EVERY tokens ago, however it was cut into tokens.
        self._window = EVERY + max((len(stop.encode()) for stop in until), default=0)

    def due(self, written: int) -> bool:
        """Whether it is time to look at answers of so many tokens."""
        return bool(self._until) and written % EVERY == 0

    def heard(self, answers: Sequence[Sequence[int]]) -> list[bool]:
        """Whether there is a string in the latest tokens of each answer."""
        texts = self._decode([list(tokens[-self._window :]) for tokens in answers])
        return [any(stop in text for stop in self._until) for text in texts]

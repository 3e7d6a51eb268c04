"""Which class a prompt asks for."""

from __future__ import annotations

import re
from collections.abc import Sequence

from serving.errors import InvalidRequest, shown

MOST_LISTED = 20


class Classes:
    """The classes of a model by their names; see `DiffusionSettings.classes`."""

    def __init__(self, names: Sequence[Sequence[str]]):
        self._shown = [each[0] for each in names]
        self._by_name = {
            name.casefold(): number for number, each in enumerate(names) for name in each
        }
        # Longer names first, so that "sea lion" is no lion.
        longest_first = sorted(self._by_name, key=len, reverse=True)
        self._any = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first))})(?!\w)")

    def named(self, prompt: str) -> int:
        """The one class that a prompt names: it is its name, or has it as a word.

        Raises `InvalidRequest`.
        """
        found = {self._by_name[name] for name in self._any.findall(prompt.casefold())}
        if len(found) == 1:
            return found.pop()
        if found:
            named = ", ".join(self._shown[number] for number in sorted(found))
            raise InvalidRequest(f"prompt: expected the name of one class, got those of {named}")
        listed = ", ".join(self._shown[:MOST_LISTED])
        more = len(self._shown) - MOST_LISTED
        raise InvalidRequest(
            f"prompt: expected the name of a class, such as {listed}"
            f"{f' and {more} others' if more > 0 else ''}; got {shown(prompt)}"
        )

"""Changing a field in the text of a `config.pbtxt`, and nothing else in it.

Protobuf prints a message without the comments, the order and the layout of the text that it was
read from. The texts here must be ones that protobuf has parsed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""\#[^\n]* | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | [{}<>\[\]:,;]
    | [^\s{}<>\[\]:,;"'\#]+""",
    re.VERBOSE,
)


def set_field(text: str, message: str, name: str, value: str) -> str:
    """Give a field of a message of the root this value, as text format writes it: "[ 4, 8 ]".

    An empty one removes the field. The message is appended if there is none, and if it is repeated,
    its last one is meant.
    """
    bodies = _bodies(_Parser(text).root(), message)
    if not bodies:
        text = _appended(text, f"{message} {{\n}}\n")
        bodies = _bodies(_Parser(text).root(), message)
    return _set(text, bodies[-1], name, value)


def set_parameter(text: str, key: str, value: str) -> str:
    """Give an entry of `parameters` this value, which must need no escapes."""
    for entry in reversed(_bodies(_Parser(text).root(), "parameters")):
        keys = [text[each.value_start : each.end].strip("'\"") for each in entry.named("key")]
        values = _bodies(entry, "value")
        if keys == [key] and values:
            return _set(text, values[-1], "string_value", f'"{value}"')
    # Of two entries with one key the last holds.
    return _appended(
        text, f'parameters {{\n  key: "{key}"\n  value {{ string_value: "{value}" }}\n}}\n'
    )


@dataclass
class _Body:
    """What is between the brackets of a message; `end` is where the closing one is."""

    end: int = 0
    fields: list[_Field] = field(default_factory=list)

    def named(self, name: str) -> list[_Field]:
        return [each for each in self.fields if each.name == name]


@dataclass
class _Field:
    """A field from its name to the end of its value, and to the end of a separator after it."""

    name: str
    start: int
    value_start: int
    bodies: list[_Body]
    end: int
    separated_end: int


class _Parser:
    def __init__(self, text: str):
        found = [each for each in _TOKEN.finditer(text) if not each.group().startswith("#")]
        self._tokens = [(each.group(), each.start(), each.end()) for each in found]
        self._tokens.append(("", len(text), len(text)))
        self._at = 0

    def root(self) -> _Body:
        body = _Body()
        while self._next not in ("}", ">", ""):
            body.fields.append(self._field())
        body.end = self._tokens[self._at][1]
        return body

    @property
    def _next(self) -> str:
        return self._tokens[self._at][0]

    def _take(self) -> int:
        """Pass over a token, and return where it ends."""
        self._at += 1
        return self._tokens[self._at - 1][2]

    def _field(self) -> _Field:
        name, start, _ = self._tokens[self._at]
        self._take()
        if self._next == ":":
            self._take()
        value_start = self._tokens[self._at][1]
        bodies: list[_Body] = []
        if self._next in ("{", "<"):
            end = self._message(bodies)
        elif self._next == "[":
            while self._next != "]":
                if self._next in ("{", "<"):
                    self._message(bodies)
                else:
                    self._take()
            end = self._take()
        else:
            is_string = self._next[0] in "\"'"
            end = self._take()
            while is_string and self._next[:1] in ('"', "'"):
                end = self._take()
        separated_end = self._take() if self._next in (",", ";") else end
        return _Field(name, start, value_start, bodies, end, separated_end)

    def _message(self, bodies: list[_Body]) -> int:
        self._take()
        bodies.append(self.root())
        return self._take()


def _bodies(body: _Body, name: str) -> list[_Body]:
    return [each for item in body.named(name) for each in item.bodies]


def _set(text: str, body: _Body, name: str, value: str) -> str:
    written = f"{name}: {value}"
    present = body.named(name)
    if value and not present:
        return _inserted(text, body.end, written)
    for each in reversed(present):
        if value and each is present[0]:
            comments = _comments(text[each.start : each.end])
            text = text[: each.start] + " ".join([written, *comments]) + text[each.end :]
        else:
            text = _removed(text, each.start, each.separated_end)
    return text


def _inserted(text: str, end: int, written: str) -> str:
    """With a field before the closing bracket at `end`, laid out like its surroundings."""
    line_start = text.rfind("\n", 0, end) + 1
    indent = text[line_start:end]
    if not indent.strip():
        return f"{text[:line_start]}{indent}  {written}\n{text[line_start:]}"
    space = "" if text[end - 1].isspace() else " "
    return f"{text[:end]}{space}{written} {text[end:]}"


def _removed(text: str, start: int, end: int) -> str:
    comments = _comments(text[start:end])
    line_start = text.rfind("\n", 0, start) + 1
    line_end = text.find("\n", end) + 1
    if not comments and line_end and not (text[line_start:start] + text[end:line_end]).strip():
        start, end = line_start, line_end
    return text[:start] + "".join(comments) + text[end:]


def _appended(text: str, block: str) -> str:
    return text + ("" if text.endswith("\n") or not text else "\n") + block


def _comments(span: str) -> list[str]:
    """The comments inside a text, each with the end of its line."""
    found = (each.group() for each in _TOKEN.finditer(span))
    return [f"{each}\n" for each in found if each.startswith("#")]

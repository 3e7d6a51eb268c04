"""What a configuration was read from, to say where in it something is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2

from serving.errors import ConfigError

MAX_CONFIG_BYTES = 1 << 20
_MAX_NESTING = 32

_TOKEN = re.compile(
    r"""\#[^\n]* | "(?:\\.|[^"\\])*" | '(?:\\.|[^'\\])*' | [{}<>\[\]:] | [^\s{}<>\[\]:,;"'\#]+""",
    re.VERBOSE,
)
_JSON_STRING_OR_BRACKET = re.compile(r'"(?:\\.|[^"\\])*"?|[{}\[\]]', re.DOTALL)
_STEP = re.compile(r"(\w+)(?:\[([^\]]*)\])?")


class Source:
    """A configuration's text, and the message that it says."""

    def __init__(self, where: str, message: Any, outline: _Field | None = None):
        self.message = message
        self._where = where
        self._outline = outline

    @classmethod
    def of_text(cls, where: str, text: str) -> Source:
        """Protobuf's text format. Raises `ConfigError` with the line that cannot be parsed."""
        _check_size(where, text)
        message = model_config_pb2.ModelConfig()
        try:
            text_format.Parse(text, message)
        except text_format.ParseError as error:
            raise ConfigError(f"{where}:{_without_position(error)}") from error
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{where}: cannot be parsed: {_first_line(error)}") from error
        return cls(where, message, _outline(text))

    @classmethod
    def of_json(cls, where: str, text: str) -> Source:
        """Protobuf's JSON form. Raises `ConfigError` with the field that cannot be parsed."""
        _check_size(where, text)
        if _nesting(text) > _MAX_NESTING:
            raise ConfigError(f"{where}: is nested deeper than {_MAX_NESTING} levels")
        if not text.lstrip().startswith("{"):
            raise ConfigError(f"{where}: must be a JSON object")
        message = model_config_pb2.ModelConfig()
        try:
            json_format.Parse(text, message)
        except (json_format.ParseError, ValueError) as error:
            raise ConfigError(f"{where}: cannot be parsed: {_first_line(error)}") from error
        return cls(where, message)

    def error(self, name: str, problem: str) -> ConfigError:
        """A complaint about a field: `file:line: field problem`, without the line where it is JSON.

        `name` has the path to the field, with a position where it is repeated and a key where it is
        a map: "input[1].dims", "parameters['task']".
        """
        line = "" if self._outline is None else f":{self._outline.line_of(name)}"
        return ConfigError(f"{self._where}{line}: {name} {problem}")

    def enum_name(self, name: str, enum: Any, number: int) -> str:
        """What a number of a protobuf enum is called. Raises `ConfigError` if it is not known."""
        if number not in enum.values():
            raise self.error(name, f"has the unknown value {number}")
        return str(enum.Name(number))


@dataclass
class _Field:
    """One place in a text where a field is set; the root stands for the whole text."""

    name: str
    line: int
    key: str | None = None
    """Of an entry of a map."""
    children: dict[str, list[_Field]] = field(default_factory=dict)

    def add(self, child: _Field) -> None:
        self.children.setdefault(child.name, []).append(child)

    def line_of(self, path: str) -> int:
        """The line of the field at `path`, or else of the last one on the way to it."""
        at = self
        for name, key in _STEP.findall(path):
            found = at.children.get(name, [])
            if key.isdecimal() and all(child.key is None for child in found):
                found = found[int(key) :]
            elif key:
                # An entry of a map may leave out a key that is empty.
                found = [child for child in found if (child.key or "") == key.strip("'\"")]
                found = [child.children.get("value", [child])[0] for child in found]
            if not found:
                break
            at = found[0]
        return at.line


def _outline(text: str) -> _Field:
    """Where a text that protobuf has parsed sets which field."""
    tokens = [*_tokens(text), *[("", 0)] * 3]
    root = _Field("", 1)
    open_fields = [root]
    name = ""
    for position, (token, line) in enumerate(tokens[:-3]):
        if token in ("{", "<"):
            child = _Field(name, line)
            open_fields[-1].add(child)
            open_fields.append(child)
        elif token in ("}", ">"):
            # In a list of messages the name is written once and holds for the next one too.
            name = open_fields.pop().name
        elif token not in (":", "[", "]") and tokens[position + 1][0] in (":", "{", "<", "["):
            name = token
            following = [after for after, _ in tokens[position + 1 : position + 4]]
            value = next(after for after in following if after not in (":", "["))
            if value not in ("{", "<"):
                open_fields[-1].add(_Field(name, line))
                if name == "key":
                    open_fields[-1].key = value.strip("'\"")
    return root


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """The words and signs of a text with their lines, without comments and separators."""
    line, counted = 1, 0
    for found in _TOKEN.finditer(text):
        line += text.count("\n", counted, found.start())
        counted = found.start()
        if not found.group().startswith("#"):
            yield found.group(), line


def _check_size(where: str, text: str) -> None:
    if len(text) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{where}: is longer than {MAX_CONFIG_BYTES} characters")


def _nesting(text: str) -> int:
    """How deep a JSON text goes, at most."""
    depth = deepest = 0
    for found in _JSON_STRING_OR_BRACKET.finditer(text):
        if found.group() in ("{", "["):
            depth += 1
            deepest = max(deepest, depth)
        elif found.group() in ("}", "]"):
            depth -= 1
    return deepest


def _without_position(error: text_format.ParseError) -> str:
    """`line: message`, from a text that protobuf begins with "line:column : "."""
    return re.sub(r"^(\d+):\d+ : ", r"\1: ", _first_line(error))


def _first_line(error: Exception) -> str:
    text = str(error).partition("\n")[0]
    return text if len(text) <= 300 else text[:300] + "…"

"""Bodies of the kind multipart/form-data: fields and files (RFC 7578)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import InvalidRequest, TooLarge, shown
from serving.fronts.checked import about

MAX_PARTS = 100
MAX_FIELD_BYTES = 1 << 16
"""Of one field that is no file. Files are bounded by the body."""


@dataclass
class Form:
    """Fields that may come several times, and files, by their names."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def parse_form(content_type: str, body: bytes) -> Form:
    """Raises `InvalidRequest` for what is no form, `TooLarge` for a form that is too much."""
    kind, options = parse_options_header(content_type)
    if kind != b"multipart/form-data" or not options.get(b"boundary"):
        raise InvalidRequest(f"expected a body of multipart/form-data, got {shown(content_type)}")
    reader = _Reader()
    callbacks = {
        name: getattr(reader, name)
        for name in (
            "on_part_begin",
            "on_header_field",
            "on_header_value",
            "on_header_end",
            "on_headers_finished",
            "on_part_data",
            "on_part_end",
            "on_end",
        )
    }
    try:
        parser = MultipartParser(options[b"boundary"], callbacks)  # type: ignore[arg-type]
        parser.write(body)
    except FormParserError as error:
        raise InvalidRequest(f"the form cannot be read: {error}") from None
    if not reader.ended:
        raise InvalidRequest("the form is cut short: its last boundary is not there")
    return reader.form


class _Reader:
    """Builds a form from what the parser finds; the methods are the parser's callbacks."""

    def __init__(self) -> None:
        self.form = Form()
        self.ended = False
        self._parts = 0
        self._header = self._value = b""
        self._options: Mapping[bytes, bytes] = {}
        self._data: list[bytes] = []
        self._size = 0

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise TooLarge(f"the form has too many parts; the limit is {MAX_PARTS}")
        self._options, self._data, self._size = {}, [], 0

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, self._options = parse_options_header(self._value)
        self._header = self._value = b""

    def on_headers_finished(self) -> None:
        if not self._options.get(b"name"):
            raise InvalidRequest("a part of the form has no name")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data.append(data[start:end])
        self._size += end - start
        if b"filename" not in self._options and self._size > MAX_FIELD_BYTES:
            raise TooLarge(
                f"{self._name()}: the limit is {MAX_FIELD_BYTES} bytes without a filename"
            )

    def on_part_end(self) -> None:
        name, data = self._name(), b"".join(self._data)
        if b"filename" in self._options:
            self.form.files[name] = data
            return
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            raise about(
                name, f"expected text in UTF-8, or a file with a filename: {error.reason}"
            ) from None
        self.form.fields.setdefault(name, []).append(text)

    def on_end(self) -> None:
        self.ended = True

    def _name(self) -> str:
        """Clients that send several values call their field `name[]`."""
        return self._options[b"name"].decode(errors="replace").removesuffix("[]")

"""Protobuf messages as Triton writes them in JSON: snake_case names and plain numbers.

protobuf's own JSON mapping writes 64-bit integers as strings, which Triton's clients do not expect.
"""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message


def to_plain(message: Message) -> dict[str, Any]:
    """A message as dicts, lists and scalars, unset scalars included, unset messages left out."""
    plain: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            item = field.message_type.fields_by_name["value"]
            plain[field.name] = {str(key): _plain(item, value[key]) for key in value}
        elif field.is_repeated:
            plain[field.name] = [_plain(field, element) for element in value]
        elif not field.has_presence or message.HasField(field.name):
            plain[field.name] = _plain(field, value)
    return plain


def _plain(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_plain(value)
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    return value

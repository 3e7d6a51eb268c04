"""How the model cards of all tasks end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from training.parity import ParityReport


def last_sections(
    parity: ParityReport,
    commands: Sequence[str],
    sizes: Mapping[str, int] | None = None,
    contents: Mapping[str, str] | None = None,
) -> str:
    """Markdown: the parity, the files with their `sizes` in bytes and `contents`, the commands."""
    return f"""\
## Parity

What is served against the model it was made from. `parity.json` also has the names, types and \
axes that were compared, and the files' sha256.

{parity_table(parity)}

{_files(sizes, contents or {}) if sizes else ""}\
## How it was made

```sh
{chr(10).join(commands)}
```

The recipe in full, the seed, the hashes of data and split, and the package versions are in \
`manifest.json`.
"""


def parity_table(parity: ParityReport) -> str:
    """Numbers alone: what an interface must be can be longer than a line."""
    rows = [
        f"| {check.name} | {check.measured:.3g} | {check.limit:.3g} |"
        for check in parity.checks
        if isinstance(check.measured, float) and isinstance(check.limit, float)
    ]
    rows += [f"| {name} | {value:.3g} | |" for name, value in parity.measurements.items()]
    return "\n".join(["| check | measured | limit |", "|---|---|---|", *rows])


def _files(sizes: Mapping[str, int], contents: Mapping[str, str]) -> str:
    rows = "\n".join(
        f"| `{name}` | {size / 1000:.0f} | {contents.get(name, '')} |"
        for name, size in sizes.items()
    )
    return f"""\
## Files

| file | kB | what it is |
|---|---|---|
{rows}

"""

"""What translates, and how each of its servers is told to."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from processes import HERE, slipway
from wire import Wire


@dataclass(frozen=True)
class Contender:
    label: str
    server: str
    """Which of the `commands`: two ways to ask one server share it."""
    wire: Wire = "task"


CONTENDERS: Mapping[str, Contender] = {
    "slipway": Contender("Slipway, POST /models", "slipway"),
    "slipway-v2": Contender("Slipway, protocol v2, binary", "slipway", "v2"),
    "transformers": Contender("transformers.generate, LitServe", "transformers"),
    "ctranslate2": Contender("CTranslate2, LitServe", "ctranslate2"),
    "ctranslate2-queue": Contender("CTranslate2, batching queue", "ctranslate2-queue"),
    "ctranslate2-async": Contender("CTranslate2, inter_threads=2", "ctranslate2-async"),
}


@dataclass(frozen=True)
class Materials:
    """From what the servers are started."""

    checkpoint: Path
    repository: Path
    model: str
    converted: Path
    """The checkpoint as CTranslate2 wants it."""
    python: Path
    """Of the environment that has what Slipway is compared with."""
    max_new_tokens: int

    def command(self, server: str, port: int) -> list[str]:
        if server == "slipway":
            return slipway(self.repository, self.model, port)
        common = ["--checkpoint", str(self.checkpoint), "--model", self.model]
        common += ["--port", str(port), "--max-new-tokens", str(self.max_new_tokens)]
        if server == "transformers":
            return [str(self.python), str(HERE / "servers/transformers_server.py"), *common]
        common += ["--converted", str(self.converted)]
        common += {
            "ctranslate2": ["--behind", "litserve"],
            "ctranslate2-queue": ["--behind", "queue"],
            "ctranslate2-async": ["--behind", "queue", "--workers", "2"],
        }[server]
        return [str(self.python), str(HERE / "servers/ctranslate2_server.py"), *common]


def convert(python: Path, checkpoint: Path, destination: Path) -> None:
    finished = subprocess.run(
        [str(python), str(HERE / "servers/convert.py"), str(checkpoint), str(destination)],
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode:
        raise SystemExit(f"CTranslate2 cannot convert {checkpoint}:\n{finished.stderr[-2000:]}")

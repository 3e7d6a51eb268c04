"""Live speech recognition: how many callers a server keeps up with, and how soon they read a text.

Streams send recordings in pieces, each at the moment at which it would have been spoken: over the
WebSocket /v1/realtime, as OpenAI's clients do, and over ModelStreamInfer of protocol v2. Their
number grows until one falls behind: the median lag of its last answers is longer than a piece.

In protocol v2 every piece has an answer, and the lag is the time from the end of the piece to it.
Over the WebSocket only a piece that makes a text certain has one, a delta. Which pieces these are
is found out beforehand, with few streams; it is the model's doing and the same under load.

The few streams also tell how much audio passes from the end of the first word until the first of
the text is there, and until the whole word is, where the model hears that word rightly.

  python loadtests/bench/live.py --model-repository model_repo --model spoken-numbers-live

Nothing else should run meanwhile: what other processes take of the CPU is told with the results.
Results are tables on the terminal, and table.md and results.json in --out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import clips
import psutil
from clips import Clip
from live_load import Heard, Plan, Result, Wire
from machine import machine
from processes import ROOT, Server, free_port, run_script, slipway, start
from report import table
from scenarios import percentile

from serving.repository import Repositories
from serving.speech.recognizer import RecognizerSettings

LABELS: Mapping[Wire, str] = {
    "realtime": "WebSocket /v1/realtime",
    "stream": "ModelStreamInfer",
}
PACKAGES = ("onnxruntime", "numpy", "grpcio", "websockets")
LAST = 0.25
"""Of a stream's answers, by which it is judged whether it has fallen behind."""

Deltas = Mapping[int, Sequence[tuple[str, int]]]
"""By the recording: each text that becomes certain, and the piece that makes it so."""


@dataclass(frozen=True)
class FirstWord:
    """Seconds of audio from the end of a first word, as heard in one recording."""

    to_any_text: float
    """Negative if its first letters were there before its end."""
    to_whole_word: float


@dataclass
class Round:
    wire: Wire
    streams: int
    lags_s: list[float]
    completed_s: list[float]
    """From the end of each recording to its whole text."""
    behind: int
    """Streams that fell behind, or had no answer at all."""
    errors: list[str]
    different: int
    """Recordings of which another text was told than with few streams."""
    server_cores: float
    load_cores: float
    late_p99_s: float
    """By which the load generator itself was late."""
    rss_mb: float

    @property
    def holds(self) -> bool:
        return not self.behind and not self.errors


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    recordings = clips.utterances(options.out / "clips", options.recordings, options.seed)
    longest_s = max(clip.seconds for clip in recordings)
    if options.seconds < longest_s:
        # Then a stream could be without an end of a recording, and be taken for one behind.
        raise SystemExit(f"--seconds must be {longest_s:.1f} or more, as the longest recording is")
    [version] = Repositories([options.model_repository]).read(options.model)
    settings = RecognizerSettings.load(version.directory)
    others_cpu = psutil.cpu_percent(1.0) / 100
    rounds: list[Round] = []
    words: list[FirstWord] = []
    with ExitStack() as stack:
        bench = Bench(options, recordings, settings, stack)
        deltas: Deltas = {}
        if "realtime" in options.wires:
            alone = bench.measure("realtime", len(recordings), options.alone_s)
            deltas, words = by_piece(alone, bench.piece_s), first_words(alone, recordings, bench)
        for wire in options.wires:
            for streams in options.streams:
                result = bench.measure(wire, streams, options.seconds)
                rounds.append(judge(wire, streams, result, deltas, bench.piece_s_of(wire), options))
                print(_summary(rounds[-1]), flush=True)
                if not rounds[-1].holds:
                    break
    show(rounds, words, others_cpu, options, bench)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="spoken-numbers-live", help="one that hears live")
    add("--out", type=Path, default=ROOT / "runs/bench-live", metavar="DIR")
    add("--wires", nargs="+", choices=list(LABELS), default=list(LABELS), help="both")
    add("--streams", nargs="+", type=int, default=[50, 100, 150, 200, 250, 300, 400])
    add("--seconds", type=float, default=15.0, help="that each number of streams takes (15)")
    add("--warmup-s", type=float, default=5.0, help="before each, not measured (5)")
    add("--alone-s", type=float, default=10.0, help="of the few streams (10)")
    add("--piece-ms", type=int, default=100, help="of audio in a WebSocket message (100)")
    add("--rate-hz", type=int, default=24_000, help="of the WebSocket's audio (24000)")
    add("--recordings", type=int, default=16, help="that are sent again and again (16)")
    add("--seed", type=int, default=1, help="of the recordings (1)")
    return parser.parse_args()


class Bench:
    def __init__(
        self,
        options: argparse.Namespace,
        recordings: Sequence[Clip],
        settings: RecognizerSettings,
        stack: ExitStack,
    ):
        assert settings.chunk_samples is not None, "this model does not hear live"
        self.piece_s = options.piece_ms / 1000
        self._chunk_samples = settings.chunk_samples
        self._model_rate_hz = settings.sampling_rate
        self._options = options
        self._recordings = recordings
        self._ports = {"realtime": free_port(), "stream": free_port()}
        command = slipway(
            options.model_repository.resolve(),
            options.model,
            self._ports["realtime"],
            self._ports["stream"],
        )
        self._server: Server = start("slipway", command, self._ports["realtime"], options.out)
        stack.callback(self._server.stop)

    def piece_s_of(self, wire: Wire) -> float:
        return self.piece_s if wire == "realtime" else self._chunk_samples / self._model_rate_hz

    def measure(self, wire: Wire, streams: int, seconds: float) -> Result:
        options = self._options
        plan = Plan(
            wire=wire,
            port=self._ports[wire],
            model=options.model,
            server_pid=self._server.pid,
            streams=streams,
            recordings=[f"{clip.stem}.wav" for clip in self._recordings],
            rate_hz=options.rate_hz if wire == "realtime" else self._model_rate_hz,
            piece_samples=round(self.piece_s * options.rate_hz)
            if wire == "realtime"
            else self._chunk_samples,
            seconds=seconds,
            warmup_s=options.warmup_s,
        )
        document = run_script("live_load.py", asdict(plan))
        heard = [Heard(**each) for each in document.pop("heard")]
        return Result(**document, heard=heard)


def by_piece(alone: Result, piece_s: float) -> Deltas:
    """Of each recording the first hearing: with few streams an answer comes before the next piece.

    A piece is sent when it ends, so what comes in its second time is its answer.
    """
    deltas: dict[int, list[tuple[str, int]]] = {}
    for heard in alone.heard:
        if heard.recording not in deltas:
            deltas[heard.recording] = [
                (text, int(second / piece_s) - 1) for text, second in heard.deltas
            ]
    return deltas


def first_words(alone: Result, recordings: Sequence[Clip], bench: Bench) -> list[FirstWord]:
    """Of the recordings whose first word is heard rightly."""
    found: dict[int, FirstWord] = {}
    for heard in alone.heard:
        clip = recordings[heard.recording]
        if not f"{heard.text} ".startswith(f"{clip.first_word} ") or not heard.deltas:
            continue
        # A piece has ended when its answer comes; how soon after it is no matter of audio.
        ends = [math.floor(second / bench.piece_s) * bench.piece_s for _, second in heard.deltas]
        told, whole = "", ends[-1]
        for (text, _), end in zip(heard.deltas, ends, strict=True):
            told += text
            if len(told) >= len(clip.first_word):
                whole = end
                break
        end_s = clip.first_word_end_s
        found.setdefault(heard.recording, FirstWord(ends[0] - end_s, whole - end_s))
    return list(found.values())


def judge(
    wire: Wire,
    streams: int,
    result: Result,
    deltas: Deltas,
    piece_s: float,
    options: argparse.Namespace,
) -> Round:
    lags: dict[int, list[float]] = defaultdict(list)
    completed = []
    different = 0
    for heard in result.heard:
        own = list(heard.lags)
        if wire == "realtime":
            expected = deltas.get(heard.recording, ())
            own.append(heard.completed_lag)
            if [text for text, _ in heard.deltas] == [text for text, _ in expected]:
                own += [
                    second - (piece + 1) * piece_s
                    for (_, second), (_, piece) in zip(heard.deltas, expected, strict=True)
                ]
            else:
                different += 1
        if heard.ended >= options.warmup_s:
            lags[heard.stream] += own
            completed += [heard.completed_lag] if wire == "realtime" else []
    behind = streams - len(lags)
    for own in lags.values():
        last = own[-max(1, round(LAST * len(own))) :]
        behind += statistics.median(last) > piece_s
    return Round(
        wire=wire,
        streams=streams,
        lags_s=[lag for own in lags.values() for lag in own],
        completed_s=completed,
        behind=behind,
        errors=result.errors,
        different=different,
        server_cores=result.server_cpu_s / result.seconds,
        load_cores=result.load_cpu_s / result.seconds,
        late_p99_s=percentile(result.late_s, 99),
        rss_mb=result.rss_bytes / 1e6,
    )


def show(
    rounds: Sequence[Round],
    words: Sequence[FirstWord],
    others_cpu: float,
    options: argparse.Namespace,
    bench: Bench,
) -> None:
    parts = [
        f"Pieces of {options.piece_ms} ms at {options.rate_hz:,} Hz over the WebSocket,"
        f" {1000 * bench.piece_s_of('stream'):.0f} ms in protocol v2;"
        f" {machine(*PACKAGES)['cpu']}, {os.cpu_count()} cores, of which other processes took"
        f" {100 * others_cpu:.0f} % before.",
        _table(rounds),
    ]
    if "realtime" in options.wires:
        parts.append(_words(words, options.recordings))
    text = "\n\n".join(parts)
    print(f"\n{text}\n\nin {options.out}: table.md, results.json")
    (options.out / "table.md").write_text(text + "\n")
    document = {
        "machine": machine(*PACKAGES),
        "options": {name: str(value) for name, value in vars(options).items()},
        "others_cpu": others_cpu,
        "rounds": [asdict(each) for each in rounds],
        "first_words": [asdict(each) for each in words],
    }
    (options.out / "results.json").write_text(json.dumps(document) + "\n")


def _table(rounds: Sequence[Round]) -> str:
    rows = [
        [
            LABELS[each.wire],
            str(each.streams),
            *(f"{1000 * percentile(each.lags_s, q):,.1f}" for q in (50, 99)),
            f"{1000 * max(each.lags_s, default=math.nan):,.0f}",
            str(each.behind),
            f"{len(each.lags_s):,}",
            f"{1000 * each.late_p99_s:,.1f}",
            f"{each.server_cores:.2f}",
            f"{each.load_cores:.2f}",
            f"{each.rss_mb:,.0f}",
            str(each.different),
            str(len(each.errors)),
        ]
        for each in rounds
    ]
    header = [
        "protocol",
        "streams",
        "lag p50 ms",
        "p99 ms",
        "most ms",
        "fell behind",
        "answers",
        "load late p99 ms",
        "cores used",
        "load's cores",
        "RSS MB",
        "other texts",
        "errors",
    ]
    return table(header, rows)


def _words(words: Sequence[FirstWord], recordings: int) -> str:
    if not words:
        return f"The first word was heard rightly in none of {recordings} recordings."
    texts = [1000 * word.to_any_text for word in words]
    wholes = [1000 * word.to_whole_word for word in words]
    return (
        f"The first word was heard rightly in {len(words)} of {recordings} recordings. From its end"
        f" to the first of the text: {statistics.median(texts):.0f} ms of audio, at most"
        f" {max(texts):.0f}; to the whole word: {statistics.median(wholes):.0f} ms, at most"
        f" {max(wholes):.0f}."
    )


def _summary(each: Round) -> str:
    holds = "holds" if each.holds else f"does not hold: {each.behind} behind, {each.errors[:2]}"
    return (
        f"{LABELS[each.wire]}, {each.streams} streams: p99"
        f" {1000 * percentile(each.lags_s, 99):,.1f} ms, {holds}"
    )


if __name__ == "__main__":
    main()

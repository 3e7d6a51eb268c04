"""Translation: Slipway against transformers and CTranslate2, on the same weights in one run.

Every contender is a server of its own that takes the same requests over HTTP; they take turns in
several rounds, so that whatever else the machine does hits all of them, and stand still while
another is measured. Before anything is measured, all must give the same answers.

  throughput  texts of 5 to 120 tokens, most of them short, from many clients that each wait for
              their answer before they ask again
  short       p99 of short requests (at most 8 tokens) alone, and while others send long ones (80
              tokens and more) without a pause
  burst       1,000 requests at the same moment, to Slipway alone: each must be answered or
              refused, the server's own counts must say the same, and its memory must stay bounded

The model repository must have been made of the checkpoint: slipway import, or slipway export and
slipway publish. For example:

  python loadtests/bench/translation.py runs/translator/checkpoint --model-repository model_repo

Nothing else should run meanwhile: what other processes take of the CPU is told with the results.
What Slipway is compared with is installed into an environment below --out when it is first needed.
Results are tables on the terminal, and table.md, results.json and plot.png in --out.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch
from contenders import CONTENDERS, Materials, convert
from machine import machine
from processes import ROOT, environment, start_held
from report import burst_table, plot, short_table, throughput_table
from scenarios import Bench, Burst, Count, Settings, Short, Throughput, burst
from texts import Text, Writer, language_codes
from tqdm import tqdm
from transformers import MarianMTModel, MarianTokenizer

SCENARIOS = ("throughput", "short", "burst")
SAMPLE = 64
TEXTS = 2000
SHORT, LONG = (5, 8), (80, 120)
PACKAGES = ("onnxruntime", "torch", "transformers", "numpy")


@dataclass
class Results:
    others_cpu: list[float]
    """The share of the CPU that others took while all servers stood still, at each round."""
    same: dict[str, float]
    throughput: dict[str, Throughput]
    short: dict[str, Short]
    burst: list[Burst]


def main() -> None:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    # A thousand clients at once are more files than most shells allow.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    tokenizer = MarianTokenizer.from_pretrained(options.checkpoint)
    settings = Settings(**{each.name: getattr(options, each.name) for each in fields(Settings)})
    materials = prepare(options)
    phrases = options.phrases.read_text().splitlines() if options.phrases else ()

    @cache
    def count(text: str) -> int:
        return len(tokenizer(text).input_ids)

    @cache
    def count_answer(text: str) -> int:
        return len(tokenizer(text_target=text).input_ids)

    writer = Writer(count, language_codes(list(tokenizer.get_vocab())), phrases, options.seed)
    texts = writer.mixed(TEXTS)
    short, long = writer.between(TEXTS, *SHORT), writer.between(TEXTS // 4, *LONG)
    names = list(options.contenders)
    with ExitStack() as stack:
        wanted = dict.fromkeys(CONTENDERS[name].server for name in names)
        servers = start_held(wanted, materials.command, options.out, stack)
        bench = Bench(materials, servers, settings)
        expected = reference(options.checkpoint, tokenizer, texts[:SAMPLE], options.max_new_tokens)
        same = compare(bench, names, texts[:SAMPLE], expected, options.min_same)
        found = measure(bench, names, settings, options.scenario, texts, short, long, count_answer)
    bursts = []
    if "burst" in options.scenario:
        bursts = list(burst(materials, texts, settings, options.out))
    others_cpu, throughputs, shorts = found
    results = Results(others_cpu, same, throughputs, shorts, bursts)
    show(results, options, texts)
    if bursts and not all(burst.agrees for burst in bursts):
        raise SystemExit("clients and server do not agree on what became of the requests")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("checkpoint", type=Path, help="a Hugging Face directory of a Marian model")
    add("--model-repository", type=Path, default=ROOT / "model_repo", metavar="DIR")
    add("--model", default="translator", help="its name there (translator)")
    add("--out", type=Path, default=ROOT / "runs/bench", metavar="DIR", help="runs/bench")
    add("--scenario", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="all")
    add("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS), help="all")
    add("--rounds", type=int, default=3, help="turns that each contender gets (3)")
    add("--seconds", type=float, default=15.0, help="that each measurement takes (15)")
    add("--warmup-s", type=float, default=3.0, help="before each, not measured (3)")
    add("--clients", type=int, default=32, help="of throughput (32)")
    add("--short-clients", type=int, default=8, help="of short requests (8)")
    add("--long-clients", type=int, default=8, help="of long ones (8)")
    add("--requests", type=int, default=1000, help="of a burst (1000)")
    add("--bursts", type=int, default=3, help="one after the other (3)")
    add("--max-queue-size", type=int, default=200, help="of the burst that is refused (200)")
    add("--max-new-tokens", type=int, default=160, help="of any answer (160)")
    add("--phrases", type=Path, metavar="FILE", help="one a line, to make the texts of")
    add("--seed", type=int, default=1, help="of the texts (1)")
    add(
        "--min-same",
        type=float,
        default=0.95,
        help="share of answers that must equal those of transformers for the comparison to hold"
        " (0.95)",
    )
    return parser.parse_args()


def prepare(options: argparse.Namespace) -> Materials:
    converted = options.out / "ctranslate2"
    python = options.out / "venv/bin/python"
    servers = {CONTENDERS[name].server for name in options.contenders}
    if servers != {"slipway"}:
        python = environment(options.out / "venv")
    if any(server.startswith("ctranslate2") for server in servers):
        convert(python, options.checkpoint, converted)
    return Materials(
        options.checkpoint.resolve(),
        options.model_repository.resolve(),
        options.model,
        converted.resolve(),
        python.absolute(),
        options.max_new_tokens,
    )


def reference(
    checkpoint: Path, tokenizer: Any, texts: Sequence[Text], max_new_tokens: int
) -> list[str]:
    """What `transformers.generate` answers."""
    model: Any = MarianMTModel.from_pretrained(checkpoint, dtype=torch.float32)
    model.eval()
    # Only max_new_tokens is to count, and not the checkpoint's own limit beside it.
    model.generation_config.max_length = None
    inputs = tokenizer([each.text for each in texts], return_tensors="pt", padding=True)
    with torch.inference_mode():
        tokens = model.generate(
            **inputs, max_new_tokens=max_new_tokens, num_beams=1, do_sample=False
        )
    return [tokenizer.decode(row, skip_special_tokens=True) for row in tokens]


def compare(
    bench: Bench,
    names: Sequence[str],
    texts: Sequence[Text],
    expected: Sequence[str],
    min_same: float,
) -> dict[str, float]:
    """The share of answers that are the same. Ends the run if it is too small."""
    same = {}
    for name in tqdm(names, "comparing answers", leave=False):
        answers = bench.answers(name, [each.text for each in texts])
        pairs = list(zip(answers, expected, strict=True))
        same[name] = sum(answer == right for answer, right in pairs) / len(pairs)
        if same[name] < min_same:
            answer, right = next(pair for pair in pairs if pair[0] != pair[1])
            raise SystemExit(
                f"only {100 * same[name]:.1f} % of {name}'s answers are those of transformers, so"
                f" there is nothing to compare.\nexpected {right!r}\ngot      {answer!r}"
            )
    return same


def measure(
    bench: Bench,
    names: Sequence[str],
    settings: Settings,
    scenarios: Sequence[str],
    texts: Sequence[Text],
    short: Sequence[Text],
    long: Sequence[Text],
    count_answer: Count,
) -> tuple[list[float], dict[str, Throughput], dict[str, Short]]:
    throughputs = {name: Throughput() for name in names if "throughput" in scenarios}
    shorts = {name: Short() for name in names if "short" in scenarios}
    others_cpu = []
    turns = settings.rounds * (len(throughputs) + len(shorts))
    with tqdm(total=turns, desc="measuring") as progress:
        for turn in range(settings.rounds):
            others_cpu.append(psutil.cpu_percent(1.0) / 100)
            # Nobody always comes after the same other.
            order = [*names[turn % len(names) :], *names[: turn % len(names)]]
            for name in order:
                if name in throughputs:
                    progress.set_postfix_str(f"throughput of {name}")
                    bench.throughput(name, texts, throughputs[name], count_answer)
                    progress.update()
                if name in shorts:
                    progress.set_postfix_str(f"short requests of {name}")
                    bench.short(name, short, long, shorts[name])
                    progress.update()
    return others_cpu, throughputs, shorts


def show(results: Results, options: argparse.Namespace, texts: Sequence[Text]) -> None:
    lengths = sorted(each.tokens for each in texts)
    parts = [
        f"{SAMPLE} answers compared; texts of {lengths[0]} to {lengths[-1]} tokens, half of them"
        f" up to {lengths[len(lengths) // 2]}; {machine(*PACKAGES)['cpu']}, {os.cpu_count()} cores,"
        f" of which other processes took {100 * max(results.others_cpu):.0f} %."
    ]
    if results.throughput:
        parts.append(throughput_table(results.throughput, results.same))
    if results.short:
        parts.append(short_table(results.short))
    if results.burst:
        parts.append(burst_table(results.burst))
    text = "\n\n".join(parts)
    print(f"\n{text}\n\nin {options.out}: table.md, results.json, plot.png")
    (options.out / "table.md").write_text(text + "\n")
    document = {
        "machine": machine(*PACKAGES),
        "options": {name: str(value) for name, value in vars(options).items()},
        "text_tokens": lengths,
        **asdict(results),
    }
    (options.out / "results.json").write_text(json.dumps(document) + "\n")
    if results.throughput or results.short:
        plot(options.out / "plot.png", results.throughput, results.short)


if __name__ == "__main__":
    main()

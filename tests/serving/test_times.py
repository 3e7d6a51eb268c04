"""Times in a text: the rules by which they come are transformers', and so is what they cut."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration
from transformers.generation.logits_process import WhisperTimeStampLogitsProcessor

from serving.speech.whisper import WhisperSettings, marked
from serving.steppers.times import TimedText, TimeRules

WORDS, EOS, NO_TIMES, FIRST = 40, 40, 47, 48
TIMES = 51
VOCABULARY = FIRST + TIMES
PROMPT = [41, 42, 44]
RATE_HZ = 16_000
WINDOW = (TIMES - 1) * 320

SETTINGS = WhisperSettings(
    type="whisper",
    sampling_rate=RATE_HZ,
    window_samples=WINDOW,
    first_time_token=FIRST,
    no_times_token=NO_TIMES,
    last_initial_time=20,
)


class Words:
    """A tokenizer whose texts are the numbers of tokens."""

    special = frozenset(range(EOS, FIRST))
    unsettled: frozenset[int] = frozenset()
    languages: tuple[str, ...] = ()
    source_language: str | None = None
    eos: int | None = EOS

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, tokens: Any) -> str:
        return "".join(f" {token}" for token in tokens if token not in self.special)


def texts(count: int, *, longest: int = 12) -> list[list[int]]:
    """Texts as the rules would let them come, and other ones."""
    chance = np.random.default_rng(0)
    made = []
    for _ in range(count):
        text, time = [], 0
        for _ in range(chance.integers(0, longest)):
            if chance.random() < 0.5:
                text.append(int(chance.integers(0, WORDS)))
            else:
                time = min(TIMES - 1, time + int(chance.integers(0, 9)))
                text.append(FIRST + time)
        made.append(text)
    return made


def test_the_rules_are_those_of_transformers() -> None:
    config = SimpleNamespace(
        no_timestamps_token_id=NO_TIMES,
        eos_token_id=EOS,
        bos_token_id=EOS,
        max_initial_timestamp_index=20,
    )
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=len(PROMPT))  # type: ignore[arg-type]
    ours = TimeRules(SETTINGS, EOS, len(PROMPT))
    chance = np.random.default_rng(1)
    seen = set()
    for text in [[], *texts(400)]:
        # Two rows, as beams have them.
        sequences = np.array([[*PROMPT, *text]] * 2)
        scores = chance.normal(0, 3, (2, VOCABULARY)).astype(np.float32)
        # Words that are certain, so that a time does not always win.
        scores[:, : WORDS // 8] += np.float32(chance.choice([0.0, 8.0]))
        scores[:, chance.integers(0, WORDS, 3)] = -np.inf
        expected = theirs(torch.from_numpy(sequences), torch.from_numpy(scores)).numpy()
        ours(scores, sequences)
        np.testing.assert_array_equal(scores, expected)
        seen.add((bool(np.isinf(scores[0, :FIRST]).all()), bool(np.isinf(scores[0, FIRST:]).all())))
    assert seen == {(True, False), (False, True), (False, False)}


def ordered(text: list[int]) -> bool:
    """Whether it is one that the rules let come: it begins with a time, and they come in pairs."""
    times = [token >= FIRST for token in text]
    triples = zip(times, times[1:], times[2:], strict=False)
    return bool(text) and times[0] and times[:2] != [True, True] and (True,) * 3 not in triples


@pytest.mark.parametrize("start", [0, 3 * WINDOW])
@pytest.mark.parametrize("samples", [WINDOW, WINDOW // 2])
def test_segments_are_those_of_transformers(start: int, samples: int) -> None:
    retrieve: Any = WhisperForConditionalGeneration._retrieve_segment
    compared = 0
    for text in filter(ordered, texts(4000)):
        segments, frames = retrieve(
            seek_sequence=torch.tensor(text),
            seek_outputs=[None],
            time_offset=torch.tensor([start / RATE_HZ], dtype=torch.float64),
            timestamp_begin=FIRST,
            seek_num_frames=torch.tensor([samples / 160]),
            time_precision=0.02,
            time_precision_features=0.01,
            input_stride=2,
            prev_idx=0,
            idx=0,
            return_token_timestamps=False,
            decoder_input_ids=torch.tensor([PROMPT]),
        )
        end = (start + samples) / RATE_HZ
        expected = ""
        for segment in segments:
            words = [token for token in segment["tokens"].tolist() if token < FIRST]
            if words:
                # They do not stop at the end of the recording.
                times = [min(float(segment[name]), end) for name in ("start", "end")]
                expected += marked(times[0], Words().decode(words), times[1])
        timed = TimedText(Words(), SETTINGS, start, samples)
        written = "".join(timed.push([token]) for token in text) + timed.finish()
        assert written == expected
        heard = min(samples, max(round(float(frames) * 160), WINDOW // 30))
        assert timed.heard == heard
        compared += 1
    assert compared > 200


def test_a_window_moves_on_whatever_it_says() -> None:
    timed = TimedText(Words(), SETTINGS, 0, WINDOW)
    assert timed.push([FIRST, 7, FIRST, FIRST, 8]) == marked(0, " 7", 0)
    assert timed.finish() == ""
    assert timed.heard == WINDOW // 30


def test_what_breaks_off_is_left_to_the_next_window() -> None:
    timed = TimedText(Words(), SETTINGS, WINDOW, WINDOW)
    said = timed.push([FIRST, 1, 2, FIRST + 10])
    assert said == ""
    assert timed.push([FIRST + 12]) == "<|1.00|> 1 2<|1.20|>"
    assert timed.push([3, 4]) + timed.finish() == ""
    assert timed.heard == 10 * 320


def test_silence_says_nothing() -> None:
    for text in ([], [FIRST], [FIRST, EOS + 1, FIRST + 5]):
        timed = TimedText(Words(), SETTINGS, 0, WINDOW)
        assert timed.push(text) + timed.finish() == ""
        assert timed.heard == WINDOW

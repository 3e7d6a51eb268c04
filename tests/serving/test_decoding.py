"""Tokens equal those of transformers' `generate`; sampling is fair and repeatable."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from serving.errors import InferenceFailed
from serving.steppers.beam_search import BeamSearch
from serving.steppers.decoding import Greedy, Sampling, best_tokens, decoding_for
from serving.steppers.parameters import GenerationParameters
from serving.steppers.processors import Scores
from serving.steppers.ranking import largest
from serving.steppers.sampling import candidates
from serving.steppers.settings import GenerationSettings
from tests.serving.language_models import (
    TRANSLATOR,
    VOCABULARY,
    WRITER,
    generate,
    logits_of,
    run,
    tiny_gpt2,
    tiny_marian,
)

PATIENT = limits(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other only slow such tiny models down."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def draw_options(rng: random.Random, settings: GenerationSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        "max_new_tokens": rng.choice([1, 2, 5, 20, 40]),
        "num_beams": rng.choice([1, 1, 2, 3, 4, 5]),
    }
    if rng.random() < 0.4:
        options["repetition_penalty"] = rng.choice([0.7, 1.3, 2.0])
    if rng.random() < 0.4:
        options["no_repeat_ngram_size"] = rng.choice([1, 2, 3])
    if rng.random() < 0.4:
        options["min_new_tokens"] = min(options["max_new_tokens"], rng.choice([1, 4, 15]))
    if options["num_beams"] > 1:
        options["length_penalty"] = rng.choice([0.0, 0.6, 1.0, 2.0, -1.0])
        options["early_stopping"] = rng.choice([False, True, "never"])
    return options


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("make", [tiny_marian, tiny_gpt2])
def test_tokens_equal_those_of_generate(make: Any, seed: int) -> None:
    model = make(seed)
    base = TRANSLATOR if make is tiny_marian else WRITER
    rng = random.Random(seed)
    for _ in range(8):
        source = [rng.randrange(4, VOCABULARY) for _ in range(rng.randrange(1, 10))]
        prompt = [1] if base.is_encoder_decoder else source
        options = draw_options(rng, base)
        forced: dict[str, Any] = {}
        if rng.random() < 0.3:
            forced["forced_eos_token_id"] = rng.choice(base.eos_token_ids)
        if rng.random() < 0.3:
            forced["forced_bos_token_id"] = 7
        settings = base.model_copy(update=forced)

        decoding = decoding_for(settings, settings.parameters(options, len(source)), prompt)
        ours, reason = run(
            decoding, prompt, logits_of(model, source if base.is_encoder_decoder else [])
        )

        suppressed = [[token] for token in settings.suppressed_token_ids] or None
        theirs = generate(
            model,
            source,
            eos_token_id=list(settings.eos_token_ids),
            bad_words_ids=suppressed,
            **options,
            **forced,
        )
        if reason == "eos":
            assert theirs[-1] in settings.eos_token_ids
            theirs = theirs[:-1]
        assert ours == theirs, (options, forced)


@pytest.mark.parametrize("suppressed", [(), (4, 5)])
def test_the_fast_path_is_the_slow_one(suppressed: tuple[int, ...]) -> None:
    settings = WRITER.model_copy(
        update={
            "suppressed_token_ids": suppressed,
            "forced_bos_token_id": 9,
            "forced_eos_token_id": 3,
        }
    )
    rng = np.random.default_rng(0)
    rows = [Greedy(settings, GenerationParameters(max_new_tokens=n), [1]) for n in (1, 4, 50, 50)]
    twins = [Greedy(settings, GenerationParameters(max_new_tokens=n), [1]) for n in (1, 4, 50, 50)]
    assert all(row.plain for row in rows)
    active = list(range(4))
    while active:
        logits = rng.normal(size=(len(active), VOCABULARY)).astype(np.float32)
        tokens = best_tokens(logits, frozenset(suppressed))
        over = []
        for place, row in enumerate(active):
            fast = rows[row].take(tokens[place])
            assert fast == twins[row].advance(logits[place : place + 1])
            if fast.finished:
                over.append(row)
        active = [row for row in active if row not in over]


@pytest.mark.parametrize(
    "parameters",
    [
        GenerationParameters(),
        GenerationParameters(repetition_penalty=1.1),
        GenerationParameters(do_sample=True),
        GenerationParameters(num_beams=3),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_finite_fail_the_request(
    parameters: GenerationParameters, value: float
) -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, 7] = value
    with pytest.raises(InferenceFailed):
        decoding_for(WRITER, parameters, [5]).advance(logits)


def test_a_row_that_is_not_finite_fails_alone() -> None:
    logits = np.zeros((3, VOCABULARY), np.float32)
    logits[1, 7] = np.nan
    logits[2, 7] = 1.0
    tokens = best_tokens(logits, frozenset())
    assert tokens.tolist() == [0, -1, 7]
    row = Greedy(WRITER, GenerationParameters(), [5])
    with pytest.raises(InferenceFailed):
        row.take(tokens[1])


def test_minus_infinity_is_a_token_that_never_comes() -> None:
    logits = np.zeros((1, VOCABULARY), np.float32)
    logits[0, :50] = -np.inf
    for parameters in (
        GenerationParameters(),
        GenerationParameters(do_sample=True, seed=1),
        GenerationParameters(num_beams=3, repetition_penalty=1.5),
    ):
        advance = decoding_for(WRITER, parameters, [5]).advance(logits)
        assert all(token >= 50 for token in advance.tokens)


def test_all_beams_continue_the_one_prompt_at_first() -> None:
    logits = np.random.default_rng(0).normal(size=(1, VOCABULARY)).astype(np.float32)
    one, all_rows = (BeamSearch(WRITER, GenerationParameters(num_beams=4), [5]) for _ in range(2))
    advance = one.advance(logits)
    assert advance.sources == [0, 0, 0, 0]
    assert advance == all_rows.advance(np.repeat(logits, 4, axis=0))


finite = st.floats(-30, 30, width=32)
scores_with_ties = hnp.arrays(
    np.float32,
    st.integers(1, 700),
    elements=st.one_of(finite, st.sampled_from([0.0, 1.0, -np.inf])),
)


@PATIENT
@given(scores_with_ties, st.integers(1, 80))
def test_largest_is_a_stable_sort_cut_short(values: Any, count: int) -> None:
    expected = np.argsort(-values, kind="stable")[:count]
    assert largest(values, count).tolist() == expected.tolist()


def test_largest_of_many() -> None:
    values = np.random.default_rng(0).normal(size=200_001).astype(np.float32)
    for count in (1, 8, 50, 500):
        assert largest(values, count).tolist() == np.argsort(-values)[:count].tolist()


@PATIENT
@given(
    hnp.arrays(np.float32, st.sampled_from([1, 40]), elements=finite, unique=True)
    | st.integers(0, 99).map(lambda seed: np.random.default_rng(seed).normal(size=900)),
    st.integers(0, 1000),
    st.floats(0, 1, width=32),
)
def test_the_filters_leave_what_transformers_leaves(scores: Any, top_k: int, top_p: float) -> None:
    scores = scores.astype(np.float32)
    theirs = torch.from_numpy(scores[np.newaxis].copy())
    ids = torch.zeros((1, 1), dtype=torch.int64)
    if top_k:
        theirs = TopKLogitsWarper(top_k)(ids, theirs)
    margin = 1e-5
    looser, stricter = theirs, theirs
    if top_p < 1:
        # A token at the very border is a matter of rounding.
        looser = TopPLogitsWarper(min(1.0, top_p + margin))(ids, theirs)
        stricter = TopPLogitsWarper(max(0.0, top_p - margin))(ids, theirs)
    kept = set(candidates(scores, top_k, top_p)[0].tolist())
    assert kept <= set(torch.isfinite(looser[0]).nonzero().flatten().tolist())
    assert kept >= set(torch.isfinite(stricter[0]).nonzero().flatten().tolist())


def test_all_tokens_as_likely_as_the_last_of_top_k_stay() -> None:
    scores = np.array([1.0, 3.0, 2.0, 2.0, 2.0], np.float32)
    assert candidates(scores, 2, 1.0)[0].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.5, 10, 1.0), (1.3, 20, 0.8)],
)
def test_tokens_are_drawn_with_the_probabilities_of_transformers(
    temperature: float, top_k: int, top_p: float
) -> None:
    logits = np.random.default_rng(3).normal(size=(1, VOCABULARY)).astype(np.float32)
    expected = torch.from_numpy(logits.copy())
    ids = torch.zeros((1, 1), dtype=torch.int64)
    for warper in (
        TemperatureLogitsWarper(temperature),
        TopKLogitsWarper(top_k or VOCABULARY),
        TopPLogitsWarper(top_p),
    ):
        expected = warper(ids, expected)
    probabilities = expected.softmax(dim=-1)[0].double().numpy()

    settings = GenerationSettings(
        max_length=20_000, vocab_size=VOCABULARY, eos_token_ids=(), pad_token_id=0
    )
    draws = 10_000
    parameters = GenerationParameters(
        do_sample=True,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        max_new_tokens=draws + 1,
        seed=11,
    )
    sampling = Sampling(settings, parameters, [5])
    counts = np.zeros(VOCABULARY)
    for _ in range(draws):
        counts[sampling.advance(logits).tokens[0]] += 1
    likely = probabilities * draws >= 5
    assert counts[probabilities == 0].sum() == 0
    deviations = (counts - probabilities * draws)[likely] ** 2 / (probabilities * draws)[likely]
    freedom = int(likely.sum()) - 1
    # Five standard deviations of the chi-square distribution above its mean.
    assert deviations.sum() < freedom + 5 * (2 * freedom) ** 0.5


def test_the_seed_alone_decides() -> None:
    model = tiny_gpt2(4)

    def sample(seed: int | None) -> list[int]:
        parameters = GenerationParameters(do_sample=True, max_new_tokens=30, seed=seed)
        settings = WRITER.model_copy(update={"eos_token_ids": ()})
        return run(Sampling(settings, parameters, [5, 6]), [5, 6], logits_of(model, []))[0]

    assert sample(1) == sample(1)
    assert sample(1) != sample(2)
    assert sample(None) != sample(None)


def test_a_text_ends_where_no_token_may_be_repeated() -> None:
    settings = GenerationSettings(max_length=9, vocab_size=2, eos_token_ids=(), pad_token_id=0)
    logits: Scores = np.zeros((1, 2), np.float32)
    parameters = GenerationParameters(do_sample=True, no_repeat_ngram_size=1)
    assert Sampling(settings, parameters, [0, 1]).advance(logits).finished == "length"


@PATIENT
@given(
    st.integers(1, 5),
    st.integers(1, 12),
    st.sampled_from([False, True, "never"]),
    st.integers(0, 2**32 - 1),
)
def test_beams_end_in_time_and_stay_within_their_rows(
    beams: int, length: int, early_stopping: Any, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parameters = GenerationParameters(
        num_beams=beams, max_new_tokens=length, early_stopping=early_stopping
    )
    search = BeamSearch(WRITER, parameters, [5])
    for step in range(length):
        logits = rng.normal(size=(beams, VOCABULARY), scale=3).astype(np.float32)
        advance = search.advance(logits)
        if advance.finished:
            assert len(advance.emitted) <= step + 1
            assert not {2, 3} & set(advance.emitted)
            return
        assert advance.emitted == []
        assert len(advance.tokens) == beams
        assert all(0 <= source < beams for source in advance.sources or [])
    pytest.fail("more steps than max_new_tokens")

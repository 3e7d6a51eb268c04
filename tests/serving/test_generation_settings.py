"""What generation.json says, and what a request may choose."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as limits
from hypothesis import strategies as st

from serving.errors import InvalidRequest, ModelLoadError
from serving.steppers.parameters import GenerationParameters
from serving.steppers.settings import GENERATION_FILE, GenerationSettings
from serving.types import Parameter

PATIENT = limits(deadline=None, suppress_health_check=[HealthCheck.too_slow])

TRANSLATOR = GenerationSettings(
    max_length=64,
    max_source=48,
    vocab_size=100,
    decoder_start_token_id=1,
    eos_token_ids=(0,),
    pad_token_id=1,
    suppressed_token_ids=(1,),
)
WRITER = GenerationSettings(max_length=32, vocab_size=100, eos_token_ids=(2, 3), pad_token_id=2)


def test_settings_survive_a_round_trip(tmp_path: Path) -> None:
    for settings in (TRANSLATOR, WRITER):
        settings.save(tmp_path)
        assert GenerationSettings.load(tmp_path) == settings
    assert TRANSLATOR.is_encoder_decoder
    assert not WRITER.is_encoder_decoder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beams": 4}, "beams: Extra inputs"),
        ({"vocab_size": "100"}, "vocab_size: Input should be a valid integer, got '100'"),
        ({"max_length": None}, "max_length: Input should be a valid integer, got None"),
        ({"defaults": {"num_beams": 0}}, "defaults.num_beams: Input should be greater"),
        ({"defaults": {"num_beams": 2, "do_sample": True}}, "defaults: num_beams"),
        ({"eos_token_ids": [100]}, "token 100 is not below vocab_size, 100"),
        ({"max_source": None}, "max_source and decoder_start_token_id belong together"),
        ({"forced_eos_token_id": 1}, "forced_eos_token_id is one of suppressed_token_ids"),
    ],
)
def test_unusable_settings_are_refused_by_file_and_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    document = json.loads(TRANSLATOR.model_dump_json()) | change
    (tmp_path / GENERATION_FILE).write_text(json.dumps(document))
    with pytest.raises(ModelLoadError) as caught:
        GenerationSettings.load(tmp_path)
    assert str(tmp_path / GENERATION_FILE) in str(caught.value)
    assert message in str(caught.value)


@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff", b"{"])
def test_what_is_no_settings_file_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / GENERATION_FILE).write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"generation\.json"):
        GenerationSettings.load(tmp_path)


@pytest.mark.parametrize(
    ("requested", "message"),
    [
        ({"beams": 4}, "parameter 'beams' is not known; expected any of max_new_tokens"),
        ({"num_beams": 17}, "parameter 'num_beams': expected less than or equal to 16, got 17"),
        ({"num_beams": True}, "parameter 'num_beams': expected a valid integer, got True"),
        ({"num_beams": "4"}, "parameter 'num_beams': expected a valid integer, got '4'"),
        ({"max_new_tokens": 0}, "parameter 'max_new_tokens': expected greater"),
        ({"max_new_tokens": 64}, "parameter 'max_new_tokens': expected at most 63"),
        ({"max_new_tokens": 9, "min_new_tokens": 10}, "min_new_tokens is 10, more than"),
        ({"temperature": 0}, "parameter 'temperature': expected greater"),
        ({"temperature": float("nan")}, "parameter 'temperature': expected a finite number"),
        ({"temperature": 10**400}, "parameter 'temperature': expected a valid number, got 1000"),
        ({"early_stopping": "yes"}, "expected a valid boolean or expected 'never', got 'yes'"),
        ({"stop": 1}, "parameter 'stop': expected a string or several, got 1"),
        ({"stop": ""}, "parameter 'stop': String should have at least 1 character"),
        ({"stop": json.dumps(["a"] * 17)}, "parameter 'stop': Tuple should have at most 16"),
        ({"seed": -1}, "parameter 'seed': expected greater"),
        ({"num_beams": 2, "do_sample": True}, "does not go with do_sample"),
        ({"num_beams": 2, "stop": "a"}, "does not go with stop"),
    ],
)
def test_bad_parameters_are_refused_by_name(requested: dict[str, Parameter], message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        TRANSLATOR.parameters(requested, 5)
    assert message in str(caught.value)


def test_a_default_length_is_cut_to_the_model_and_a_wish_is_refused() -> None:
    assert TRANSLATOR.parameters({}, 48).max_new_tokens == 63
    assert WRITER.parameters({}, 30).max_new_tokens == 2
    assert WRITER.parameters({"max_new_tokens": 2}, 30).max_new_tokens == 2
    with pytest.raises(InvalidRequest, match="at most 2 after this input, got 3"):
        WRITER.parameters({"max_new_tokens": 3}, 30)
    with pytest.raises(InvalidRequest, match="'min_new_tokens': expected at most 2"):
        WRITER.parameters({"min_new_tokens": 3}, 30)


@pytest.mark.parametrize(("settings", "tokens"), [(TRANSLATOR, 49), (WRITER, 32), (WRITER, 0)])
def test_an_input_longer_than_the_model_is_refused(
    settings: GenerationSettings, tokens: int
) -> None:
    with pytest.raises(InvalidRequest, match=f"the input has {tokens} tokens"):
        settings.parameters({}, tokens)


def test_what_a_request_says_wins_over_the_defaults() -> None:
    beams = GenerationParameters(num_beams=4)
    sampling = GenerationParameters(do_sample=True)
    minimum = GenerationParameters(min_new_tokens=8)
    assert beams.replaced({"do_sample": True}).num_beams == 1
    assert beams.replaced({"stop": "a"}).num_beams == 1
    assert not sampling.replaced({"num_beams": 4}).do_sample
    assert minimum.replaced({"max_new_tokens": 4}).min_new_tokens == 4


def test_a_temperature_asks_for_sampling() -> None:
    defaults = GenerationParameters()
    assert defaults.replaced({"temperature": 0.7}).do_sample
    assert defaults.replaced({"top_p": 0.9}).do_sample
    assert not defaults.replaced({"temperature": 1.0, "top_p": 1, "top_k": 0}).do_sample
    assert not defaults.replaced({"temperature": 0.7, "do_sample": False}).do_sample
    assert not defaults.replaced({"temperature": 0.7, "num_beams": 4}).do_sample


@pytest.mark.parametrize(
    ("sent", "stop"),
    [
        ("\n", ("\n",)),
        ('["a", "b"]', ("a", "b")),
        ("[1]", ("[1]",)),
        ("[", ("[",)),
        ("[]", ()),
        ("3", ("3",)),
    ],
)
def test_stop_strings(sent: str, stop: tuple[str, ...]) -> None:
    assert WRITER.parameters({"stop": sent}, 1).stop == stop


VALUES = st.one_of(st.booleans(), st.integers(), st.floats(), st.text('a[]"\n', max_size=9))


@PATIENT
@given(
    st.dictionaries(
        st.sampled_from([*GenerationParameters.model_fields, "other"]), VALUES, max_size=4
    ),
    st.integers(0, 80),
)
def test_whatever_is_sent_is_bounded_or_refused(
    requested: dict[str, Parameter], tokens: int
) -> None:
    for settings in (TRANSLATOR, WRITER):
        try:
            chosen = settings.parameters(requested, tokens)
        except InvalidRequest:
            continue
        prompt = 1 if settings.is_encoder_decoder else tokens
        assert 1 <= chosen.max_new_tokens <= settings.max_length - prompt
        assert 0 <= chosen.min_new_tokens <= chosen.max_new_tokens
        assert 1 <= chosen.num_beams <= 16

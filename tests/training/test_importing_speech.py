"""`slipway import` of models that hear: what is served is what `transformers` computes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import tritonclient.http
from openai import OpenAI
from transformers import Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

from serving.pbtxt import read_config
from tests.serving.recordings import encoded
from tests.support import RunningServer, call, serving
from tests.training import checkpoints
from tests.training.test_importing import edit, sentence, slipway_import
from training.parity import ParityReport
from training.recognizers.clips import clips

RATE_HZ = 16_000

LAYER_NORM: dict[str, Any] = {
    "feat_extract_norm": "layer",
    "do_stable_layer_norm": True,
    "conv_bias": True,
}
"""As the large models have it; the others normalise each channel over the whole recording."""


@pytest.fixture(scope="module", params=["base", "large", "as it is"])
def letters(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of letters."""
    directory = tmp_path_factory.mktemp("checkpoints") / "letters"
    if request.param == "large":
        checkpoints.wav2vec2(directory, **LAYER_NORM)
    else:
        checkpoints.wav2vec2(directory, normalizes=request.param == "base")
    return directory


@pytest.fixture(scope="module")
def served(
    letters: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningServer, Path]]:
    """A server of what is made of it, and the repository."""
    repository = tmp_path_factory.mktemp("repository")
    result = slipway_import(letters, "--model-repository", repository)
    assert result.exit_code == 0, result.exc_info
    with serving(repository) as server:
        yield server, repository


def waveforms() -> list[npt.NDArray[np.float32]]:
    lengths = np.random.default_rng(3).integers(400, 2 * RATE_HZ, 20).tolist()
    return clips([400, *lengths], RATE_HZ)


def log_probs(checkpoint: Path, waveform: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """By transformers, with all that the checkpoint says of itself."""
    model: Any = Wav2Vec2ForCTC.from_pretrained(checkpoint)
    extractor = Wav2Vec2FeatureExtractor.from_pretrained(checkpoint)
    inputs = extractor(waveform, sampling_rate=RATE_HZ, return_tensors="pt")
    with torch.no_grad():
        logits = model(inputs.input_values).logits[0]
    answer: npt.NDArray[np.float32] = logits.log_softmax(-1).numpy()
    return answer


def infer(server: RunningServer, waveform: npt.NDArray[np.float32]) -> dict[str, Any]:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        given = tritonclient.http.InferInput("waveform", [1, len(waveform)], "FP32")
        given.set_data_from_numpy(waveform[np.newaxis])
        result = client.infer("letters", [given])
        return {name: result.as_numpy(name) for name in ("logits", "frames")}


def test_a_ctc_checkpoint_is_served_as_it_computes(
    letters: Path, served: tuple[RunningServer, Path]
) -> None:
    server, repository = served
    report = ParityReport.load(repository / "letters" / "1" / "parity.json")
    assert report.passed
    assert read_config(repository / "letters").backend == "onnxruntime"
    recordings = waveforms()
    expected = [log_probs(letters, waveform) for waveform in recordings]
    with ThreadPoolExecutor(16) as threads:
        alone = [infer(server, waveform) for waveform in recordings]
        together = list(threads.map(lambda waveform: infer(server, waveform), recordings))
        for answers in (alone, together):
            for answer, rows in zip(answers, expected, strict=True):
                assert answer["frames"].tolist() == [[len(rows)]]
                np.testing.assert_allclose(answer["logits"][0, : len(rows)], rows, atol=1e-4)
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(letters)
    # 16 bits are what a WAV file has.
    heard = (recordings[1] * 32767).astype(np.int16)
    rows = log_probs(letters, np.divide(heard, 32768, dtype=np.float32))
    text = re.sub("<.*?>", "", tokenizer.decode(rows.argmax(axis=1)))
    status, body = call(server.http_port, "POST", "/models/letters", encoded(heard))
    answer = json.loads(body)
    assert (status, answer["text"]) == (200, " ".join(text.split()))
    assert answer["text"]
    assert [chunk["text"] for chunk in answer["chunks"]] == text.split()
    client = OpenAI(base_url=f"http://{server.http}/v1", api_key="none", max_retries=0)
    transcript = client.audio.transcriptions.create(
        file=("recording.wav", encoded(heard)), model="letters"
    )
    assert transcript.text == answer["text"]


def test_a_recording_shorter_than_one_frame_needs_is_heard(
    served: tuple[RunningServer, Path],
) -> None:
    for samples in (1, 200, 399):
        answer = infer(served[0], np.full(samples, 0.1, np.float32))
        assert answer["frames"].tolist() == [[1]]
        assert np.isfinite(answer["logits"]).all()


def adapter(checkpoint: Path) -> None:
    edit(checkpoint, adapter_attn_dim=16)


def no_preprocessor(checkpoint: Path) -> None:
    (checkpoint / "preprocessor_config.json").unlink()


def padded_with_ones(checkpoint: Path) -> None:
    path = checkpoint / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"padding_value": 1.0}))


def vocabulary(checkpoint: Path, **tokens: object) -> None:
    path = checkpoint / "vocab.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | tokens))


def large_vocabulary(checkpoint: Path) -> None:
    vocabulary(checkpoint, X=15)


def several_languages(checkpoint: Path) -> None:
    vocabulary(checkpoint, eng={"A": 1})


def no_blank(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pad_token": "[PAD]"}))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (adapter, "adapters are not exported"),
        (no_preprocessor, "has no preprocessor_config.json"),
        (padded_with_ones, "padding_value is 1.0, and has to be 0.0"),
        (large_vocabulary, "'X' has the number 15, and the model has 15 classes"),
        (several_languages, "has a vocabulary for each of several languages"),
        (no_blank, "has no '[PAD]', which is CTC's blank"),
    ],
)
def test_a_mistake_gets_one_sentence(
    tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    checkpoints.wav2vec2(tmp_path / "own")
    spoil(tmp_path / "own")
    result = slipway_import(tmp_path / "own", "--model-repository", tmp_path / "repository")
    assert said in sentence(result)
    assert not (tmp_path / "repository" / "own").exists()
    shutil.rmtree(tmp_path / "own")

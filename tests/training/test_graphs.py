"""The graphs of models that generate text: what they compute, whatever else is in the batch."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from tests.training import checkpoints
from training.errors import CheckpointError
from training.graphs.export import export_generation
from training.graphs.reference import Logits, ReferenceHost, Row

CAPACITY = 48
TEXTS = 32

Make = Callable[..., Any]


@dataclass
class Exported:
    directory: Path
    model: Any
    host: ReferenceHost
    sources: list[list[int]] | list[None]
    targets: list[list[int]]
    expected: list[Logits]
    """Of torch, after each token of each target."""

    def begin(self) -> list[Row]:
        return [self.host.begin(source) for source in self.sources]


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}

VARIANTS: dict[str, tuple[Make, dict[str, Any]]] = {
    "marian": (checkpoints.marian, {}),
    "marian, one layer and head, not scaled": (
        checkpoints.marian,
        {
            "encoder_layers": 1,
            "decoder_layers": 1,
            "decoder_attention_heads": 1,
            "activation_function": "gelu",
            "scale_embedding": False,
        },
    ),
    "marian, own embeddings, heads of nine": (
        checkpoints.marian,
        {
            "d_model": 36,
            "activation_function": "relu",
            "share_encoder_decoder_embeddings": False,
            "decoder_vocab_size": 95,
            "decoder_start_token_id": 94,
            "tie_word_embeddings": False,
        },
    ),
    "gpt2": (checkpoints.gpt2, {}),
    "gpt2, scaled by layer, heads of five": (
        checkpoints.gpt2,
        {
            "n_embd": 20,
            "n_inner": 24,
            "scale_attn_weights": False,
            "scale_attn_by_inverse_layer_idx": True,
            "reorder_and_upcast_attn": True,
            "activation_function": "relu",
        },
    ),
    "llama, grouped queries": (checkpoints.llama, {}),
    "llama, biases, rope of llama3": (
        checkpoints.llama,
        {
            "num_key_value_heads": 4,
            "attention_bias": True,
            "mlp_bias": True,
            "rope_parameters": LLAMA3,
        },
    ),
    "llama, tied, one key, heads of six, yarn": (
        checkpoints.llama,
        {
            "num_key_value_heads": 1,
            "head_dim": 6,
            "tie_word_embeddings": True,
            "rope_parameters": YARN,
        },
    ),
}


@pytest.fixture(scope="module", params=VARIANTS)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    make, settings = VARIANTS[request.param]
    directory = tmp_path_factory.mktemp("checkpoint")
    model = make(directory, **settings)
    export_generation(directory, directory / "export")
    rng = np.random.default_rng(0)

    def random(vocabulary: int, longest: int) -> list[int]:
        tokens: list[int] = rng.integers(0, vocabulary, rng.integers(1, longest)).tolist()
        return tokens

    vocabulary = model.lm_head.out_features
    targets = [random(vocabulary, 34) for _ in range(TEXTS - 2)]
    # As wide as products are computed differently, and the narrowest.
    targets += [random(vocabulary, 34) * 17, [1]]
    targets[-2] = targets[-2][:17]
    sources: Any = [None] * TEXTS
    if model.config.is_encoder_decoder:
        sources = [random(model.config.vocab_size, 40) for _ in targets]
        targets = [[model.config.decoder_start_token_id, *target] for target in targets]
    return Exported(
        directory / "export",
        model,
        ReferenceHost(directory / "export", CAPACITY),
        sources,
        targets,
        [by_torch(model, *text) for text in zip(sources, targets, strict=True)],
    )


def by_torch(model: Any, source: list[int] | None, target: list[int]) -> Logits:
    with torch.no_grad():
        if source is None:
            output = model(input_ids=torch.tensor([target]))
        else:
            output = model(torch.tensor([source]), decoder_input_ids=torch.tensor([target]))
    logits: Logits = output.logits[0].numpy()
    return logits


def step_by_step(exported: Exported, size: int, every: int) -> list[Logits]:
    """Logits after each token; at most `size` rows at once, one more joins in `every`th turn."""
    rows = exported.begin()
    logits: list[list[Logits]] = [[] for _ in rows]
    waiting, active, turn = list(range(len(rows))), list[int](), 0
    while waiting or active:
        if waiting and len(active) < size and (turn % every == 0 or not active):
            active.append(waiting.pop(0))
        new = [[exported.targets[index][rows[index].length]] for index in active]
        answers = exported.host.run([rows[index] for index in active], new)
        for index, answer in zip(active, answers, strict=True):
            logits[index].append(answer)
        active = [index for index in active if rows[index].length < len(exported.targets[index])]
        turn += 1
    return [np.stack(steps) for steps in logits]


def difference(one: Iterable[Logits], other: Iterable[Logits]) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))


def test_every_step_is_torchs_whatever_else_is_in_the_batch(exported: Exported) -> None:
    alone = step_by_step(exported, 1, 1)
    measured = difference(alone, exported.expected)
    print(f"difference from torch {measured:.1e}")
    assert measured <= 1e-5
    for size, every in ((2, 1), (7, 2), (32, 1)):
        for one, other in zip(step_by_step(exported, size, every), alone, strict=True):
            np.testing.assert_array_equal(one, other)


def test_prompts_of_different_lengths_at_once_and_then_steps(exported: Exported) -> None:
    if exported.host.encoder is not None:
        pytest.skip("an encoder-decoder's texts begin with one token")
    lengths = [max(1, len(target) - 2) for target in exported.targets]
    prompts = [target[:n] for target, n in zip(exported.targets, lengths, strict=True)]
    rows = exported.begin()
    logits = exported.host.run(rows, prompts)
    expected = [of[n - 1] for of, n in zip(exported.expected, lengths, strict=True)]
    assert difference(logits, expected) <= 1e-5

    for size in (1, 2, 7):
        for start in range(0, TEXTS, size):
            some = exported.begin()[start : start + size]
            again = exported.host.run(some, prompts[start : start + size])
            np.testing.assert_array_equal(again, logits[start : start + size])

    old = [index for index, target in enumerate(exported.targets) if len(target) > 2]
    young = exported.begin()[0]
    steps = exported.host.run(
        [*(rows[index] for index in old), young],
        [*([exported.targets[index][lengths[index]]] for index in old), prompts[0][:1]],
    )
    expected = [exported.expected[index][lengths[index]] for index in old]
    assert difference(steps, [*expected, exported.expected[0][0]]) <= 1e-5


def test_sources_encode_together_as_they_do_alone(exported: Exported) -> None:
    if exported.host.encoder is None:
        pytest.skip("has no encoder")
    sources = [source for source in exported.sources if source is not None]
    together = exported.host.encode(sources)
    for source, one in zip(sources, together, strict=True):
        for name, alone in exported.host.encode([source])[0].items():
            np.testing.assert_array_equal(one[name], alone)


def test_the_cache_is_updated_where_it_is(exported: Exported) -> None:
    row = exported.begin()[0]
    before = {name: cache.copy() for name, cache in row.cache.items()}
    addresses = {name: cache.ctypes.data for name, cache in row.cache.items()}
    exported.host.run([row], [exported.targets[0][:1]])
    for name, cache in row.cache.items():
        assert cache.ctypes.data == addresses[name]
        changed = (cache != before[name]).any(axis=(0, 1, 3))
        assert changed.tolist() == [name.startswith("past_"), *[False] * (len(changed) - 1)]


def test_greedy_tokens_are_those_of_generate(exported: Exported) -> None:
    model = exported.model
    for index in range(20):
        source, prompt = exported.sources[index], exported.targets[index]
        if source is not None:
            prompt = prompt[:1]
        read = torch.tensor([source or prompt])
        with torch.no_grad():
            output = model.generate(
                read,
                attention_mask=torch.ones_like(read),
                do_sample=False,
                max_new_tokens=12,
                pad_token_id=0,
                forced_eos_token_id=None,
            )
        expected = output[0].tolist()[len(prompt) :]
        row = exported.host.begin(source)
        logits = exported.host.run([row], [prompt])
        tokens: list[int] = []
        while len(tokens) < 12 and 0 not in tokens:
            tokens.append(int(logits[0].argmax()))
            logits = exported.host.run([row], [tokens[-1:]])
        assert tokens == expected


def test_graphs_say_nothing_of_where_they_were_made(exported: Exported) -> None:
    for path in exported.directory.glob("*.onnx"):
        onnx.checker.check_model(onnx.load(path), full_check=True)
        assert b".py" not in path.read_bytes()
        assert path.stat().st_size < 1_000_000


def test_weights_that_are_the_same_in_fp16_are_stored_so(tmp_path: Path) -> None:
    model = checkpoints.gpt2(tmp_path, n_layer=1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(weight.half().float())
    model.save_pretrained(tmp_path)
    export_generation(tmp_path, tmp_path / "export")
    graph = onnx.load(tmp_path / "export" / "decoder.onnx").graph
    stored: dict[int, int] = {onnx.TensorProto.FLOAT: 0, onnx.TensorProto.FLOAT16: 0}
    for tensor in graph.initializer:
        if tensor.data_type in stored:
            stored[tensor.data_type] += int(np.prod(tensor.dims))
    assert stored[onnx.TensorProto.FLOAT16] > 20 * stored[onnx.TensorProto.FLOAT]
    host = ReferenceHost(tmp_path / "export", CAPACITY)
    logits = host.run([host.begin()], [[5, 6, 7]])
    assert difference(logits, by_torch(model, None, [5, 6, 7])[-1:]) <= 1e-5


# How a checkpoint wants its texts to be generated


def settings_of(directory: Path, **generation: Any) -> dict[str, Any]:
    path = directory / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    export_generation(directory, directory / "export")
    settings: dict[str, Any] = json.loads((directory / "export" / "generation.json").read_text())
    return settings


def test_settings_of_a_translator(tmp_path: Path) -> None:
    checkpoints.marian(tmp_path, encoder_layers=1, decoder_layers=1)
    settings = settings_of(
        tmp_path,
        bad_words_ids=[[checkpoints.PAD]],
        max_length=50,
        num_beams=4,
        length_penalty=2,
        renormalize_logits=True,
    )
    assert settings.pop("defaults") == {
        "max_new_tokens": 49,
        "num_beams": 4,
        "length_penalty": 2.0,
        "early_stopping": False,
        "do_sample": False,
        "temperature": 1.0,
        "top_k": 50,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "no_repeat_ngram_size": 0,
        "min_new_tokens": 0,
        "seed": None,
        "stop": [],
    }
    assert settings == {
        "max_length": 64,
        "max_source": 64,
        "vocab_size": checkpoints.VOCABULARY,
        "decoder_start_token_id": checkpoints.PAD,
        "forced_bos_token_id": None,
        "forced_eos_token_id": 0,
        "eos_token_ids": [0],
        "pad_token_id": checkpoints.PAD,
        "suppressed_token_ids": [checkpoints.PAD],
        "begin_suppressed_token_ids": [],
    }
    # Probabilities are to be those among the other tokens, which is in the graph.
    host = ReferenceHost(tmp_path / "export", CAPACITY)
    logits = host.run([host.begin([3, 4])], [[checkpoints.PAD]])[0]
    assert np.isneginf(logits).nonzero()[0].tolist() == [checkpoints.PAD]


def test_settings_of_a_language_model(tmp_path: Path) -> None:
    checkpoints.gpt2(tmp_path, n_layer=1)
    settings = settings_of(
        tmp_path, max_length=40, do_sample=True, top_p=0.9, eos_token_id=[0, 5], suppress_tokens=[7]
    )
    # Counts the prompt, so it limits the positions.
    assert settings["max_length"] == 40
    assert settings["max_source"] is None
    assert settings["decoder_start_token_id"] is None
    assert settings["eos_token_ids"] == [0, 5]
    assert settings["pad_token_id"] == 0
    assert settings["suppressed_token_ids"] == [7]
    assert settings["defaults"]["do_sample"] is True
    assert settings["defaults"]["top_p"] == 0.9


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("typical_p", 0.5),
        ("min_p", 0.1),
        ("guidance_scale", 2.0),
        ("encoder_repetition_penalty", 1.5),
        ("bad_words_ids", [[1, 2]]),
        ("forced_bos_token_id", [1, 2]),
        ("forced_bos_token_id", 4000),
        ("begin_suppress_tokens", [3]),
        ("stop_strings", ["."]),
        ("min_length", 5),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_named(
    tmp_path: Path, setting: str, value: object
) -> None:
    checkpoints.gpt2(tmp_path)
    with pytest.raises(CheckpointError, match=setting):
        settings_of(tmp_path, **{setting: value})
    assert not (tmp_path / "export").exists()

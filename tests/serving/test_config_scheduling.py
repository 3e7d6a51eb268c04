"""Reading `sequence_batching`, `ensemble_scheduling` and `model_warmup`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.config import (
    Control,
    ControlKind,
    EnsembleStep,
    ModelConfig,
    SequenceBatching,
    SequenceStrategy,
    State,
    Warmup,
    WarmupInput,
)
from serving.errors import ConfigError
from serving.pbtxt import read_config, read_override
from tests.support import config, write_config


def read(tmp_path: Path, text: str) -> ModelConfig:
    return read_config(write_config(tmp_path, "m", text))


def refusal(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read(tmp_path, text)
    return str(refused.value)


# Sequences.


def sequences(tmp_path: Path, settings: str) -> SequenceBatching:
    found = read(tmp_path, config(extra=f"sequence_batching {{ {settings} }}")).sequences
    assert found is not None
    return found


def test_sequences_are_direct_and_idle_for_a_second_unless_told_otherwise(tmp_path: Path) -> None:
    assert sequences(tmp_path, "") == SequenceBatching(
        SequenceStrategy.DIRECT, max_candidate_sequences=0
    )
    message: Any = read(tmp_path, config(extra="sequence_batching { oldest { } }")).message
    assert message.sequence_batching.max_sequence_idle_microseconds == 1_000_000
    assert list(message.sequence_batching.oldest.preferred_batch_size) == [64]


def test_the_strategies_of_sequences(tmp_path: Path) -> None:
    direct = "direct { max_queue_delay_microseconds: 7 minimum_slot_utilization: 0.5 }"
    assert sequences(tmp_path, f"{direct} max_sequence_idle_microseconds: 5") == SequenceBatching(
        SequenceStrategy.DIRECT,
        max_idle_s=5e-6,
        max_candidate_sequences=0,
        max_queue_delay_s=7e-6,
        minimum_slot_utilization=0.5,
    )
    oldest = (
        "oldest { max_candidate_sequences: 9 max_queue_delay_microseconds: 7"
        " preferred_batch_size: [4, 2] preserve_ordering: true }"
    )
    assert sequences(tmp_path, oldest) == SequenceBatching(
        SequenceStrategy.OLDEST,
        max_candidate_sequences=9,
        max_queue_delay_s=7e-6,
        preferred_batch_sizes=(2, 4),
    )


def test_controls(tmp_path: Path) -> None:
    found = sequences(
        tmp_path,
        """
    control_input { name: "s"
                    control { kind: CONTROL_SEQUENCE_START int32_false_true: [-1, 7] } }
    control_input { name: "r" control { kind: CONTROL_SEQUENCE_READY fp32_false_true: [0, .5] } }
    control_input { name: "e"
                    control { kind: CONTROL_SEQUENCE_END bool_false_true: [true, false] } }
    control_input { name: "i" control { kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_STRING } }
    """,
    )
    assert found.controls == (
        Control("s", ControlKind.START, "INT32", -1, 7),
        Control("r", ControlKind.READY, "FP32", 0, 0.5),
        Control("e", ControlKind.END, "BOOL", True, False),
        Control("i", ControlKind.CORRID, "BYTES"),
    )


def test_states_and_what_they_begin_with(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "m", "")
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "raw").write_bytes(bytes(range(30)))
    (directory / "initial_state" / "words").write_bytes(b"\1\0\0\0a\0\0\0\0")
    found = sequences(
        tmp_path,
        """
    state { input_name: "a" output_name: "b" data_type: TYPE_INT32 dims: [2, -1] }
    state { input_name: "c" output_name: "d" data_type: TYPE_INT32 dims: [2, -1]
            initial_state { name: "n" data_type: TYPE_INT32 dims: [2, 1] data_file: "raw" } }
    state { input_name: "e" output_name: "f" data_type: TYPE_INT32 dims: [2, -1]
            initial_state { name: "n" data_type: TYPE_INT32 dims: [2, 1] zero_data: true } }
    state { input_name: "g" output_name: "h" data_type: TYPE_INT32 dims: [-1, -1]
            initial_state { name: "n" data_type: TYPE_INT32 dims: [1, 1] zero_data: true } }
    state { input_name: "i" output_name: "j" data_type: TYPE_STRING dims: [2]
            initial_state { name: "n" data_type: TYPE_STRING dims: [2] data_file: "words" } }
    """,
    )
    assert found.states == (
        State("a", "b", "INT32", (2, -1)),
        State("c", "d", "INT32", (2, -1), bytes(range(8))),
        State("e", "f", "INT32", (2, -1)),
        State("g", "h", "INT32", (-1, -1)),
        State("i", "j", "BYTES", (2,), b"\1\0\0\0a\0\0\0\0"),
    )


STATE = 'state { input_name: "i" output_name: "o" data_type: TYPE_FP32 dims: [2] %s }'


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("iterative_sequence: true", "iterative_sequence is not supported"),
        ("direct { minimum_slot_utilization: 1.5 }", "must lie between 0 and 1, got 1.5"),
        ("direct { minimum_slot_utilization: nan }", "must lie between 0 and 1, got nan"),
        ("oldest { max_candidate_sequences: -1 }", "must be 0 or more, got -1"),
        ("oldest { preferred_batch_size: 65 }", "must lie between 1 and max_batch_size 64"),
        ("control_input { }", "control_input[0].name is required"),
        ('control_input { name: "c" }', "control_input[0].control must be given once, got 0"),
        (
            'control_input { name: "c" control { } }',
            "control[0] must have one of int32_false_true, fp32_false_true and bool_false_true,"
            " got 0",
        ),
        (
            'control_input { name: "c" control {'
            " int32_false_true: [0, 1] fp32_false_true: [0, 1] } }",
            "bool_false_true, got 2",
        ),
        (
            'control_input { name: "c" control { int32_false_true: [0, 1, 2] } }',
            "int32_false_true must have 2 values, got 3",
        ),
        (
            'control_input { name: "c" control { int32_false_true: [0, 1] data_type: TYPE_FP32 } }',
            "data_type must be that of the values, INT32, got FP32",
        ),
        (
            'control_input { name: "c" control { int32_false_true: [0, 1] } }'
            'control_input { name: "d" control { int32_false_true: [0, 1] } }',
            "control_input[1].control[0].kind CONTROL_SEQUENCE_START is that of 'c' already",
        ),
        (
            'control_input { name: "x" control { int32_false_true: [0, 1] } }',
            "control_input[0].name 'x' is declared twice",
        ),
        (
            'control_input { name: "c" control { kind: CONTROL_SEQUENCE_CORRID'
            " data_type: TYPE_FP32 } }",
            "data_type must be one of ['INT32', 'INT64', 'UINT32', 'UINT64', 'BYTES'], got FP32",
        ),
        (
            'control_input { name: "c" control { kind: CONTROL_SEQUENCE_CORRID'
            " data_type: TYPE_INT32 int32_false_true: [0, 1] } }",
            "must not have int32_false_true",
        ),
        ('state { input_name: "i" }', "state[0].output_name is required"),
        ((STATE % "") * 2, "state[1].input_name 'i' is declared twice"),
        ((STATE % "").replace('"i"', '"x"'), "state[0].input_name 'x' is declared twice"),
        (STATE % "use_growable_memory: true", "state[0].use_growable_memory is not supported"),
        (STATE % "dims: [1000000, 1000000]", "must make a tensor of at most 2147483647 bytes"),
        (STATE % "initial_state { }", "initial_state[0].name is required"),
        (
            STATE % 'initial_state { name: "n" data_type: TYPE_INT32 }',
            "initial_state[0].data_type must be that of the state, FP32, got INT32",
        ),
        (
            STATE % 'initial_state { name: "n" data_type: TYPE_FP32 dims: [3] zero_data: true }',
            "initial_state[0].dims must be those of the state with 1 for dynamic, [2], got [3]",
        ),
        (
            (STATE % 'initial_state { name: "n" data_type: TYPE_FP32 dims: [2, 1] }').replace(
                "dims: [2] ", "dims: [-1, -1] "
            ),
            "dims must be those of the state with 1 for dynamic, [1, 1], got [2, 1]",
        ),
        (
            STATE % 'initial_state { name: "n" data_type: TYPE_FP32 dims: [2] }',
            "initial_state[0] must have zero_data or data_file",
        ),
        (
            STATE % 'initial_state { name: "n" data_type: TYPE_FP32 dims: [2] data_file: "short" }',
            "data_file must hold 8 bytes: 'short' has 5 bytes",
        ),
    ],
)
def test_sequences_that_make_no_sense(tmp_path: Path, settings: str, problem: str) -> None:
    directory = write_config(tmp_path, "m", "")
    (directory / "initial_state").mkdir()
    (directory / "initial_state" / "short").write_bytes(b"12345")
    text = refusal(tmp_path, config(extra=f"sequence_batching {{ {settings} }}"))
    assert problem in text
    assert "config.pbtxt:6: sequence_batching." in text


# Ensembles.

Maps = dict[str, str]


def ensemble(
    steps: list[tuple[Maps, Maps]], inputs: str = "a", outputs: str = "z", extra: str = ""
) -> str:
    def tensors(group: str, names: str) -> str:
        return "".join(
            f'{group} {{ name: "{name}" data_type: TYPE_FP32 dims: [1] }}\n' for name in names
        )

    def entries(name: str, items: Maps) -> str:
        return "".join(f'{name} {{ key: "{k}" value: "{v}" }} ' for k, v in items.items())

    return f"""platform: "ensemble"
{tensors("input", inputs)}{tensors("output", outputs)}{extra}
ensemble_scheduling {{ step [ {
        ",".join(
            f'{{ model_name: "part{index}" model_version: -1'
            f" {entries('input_map', taken)} {entries('output_map', made)} }}"
            for index, (taken, made) in enumerate(steps)
        )
    } ] }}
"""


def test_an_ensemble(tmp_path: Path) -> None:
    text = ensemble([({"I": "b"}, {"O": "z"}), ({"I": "a"}, {"O": "b"})]).replace(
        "model_version: -1", "model_version: 3", 1
    )
    found = read(tmp_path, text + "response_cache { enable: true }")
    assert found.steps == (
        EnsembleStep("part0", "3", {"I": "b"}, {"O": "z"}),
        EnsembleStep("part1", "", {"I": "a"}, {"O": "b"}),
    )
    assert (found.backend, found.platform, found.model_filename) == ("ensemble", "ensemble", "")
    assert found.cache_responses
    message: Any = found.message
    assert not message.instance_group
    assert read(tmp_path, str(message)).message == message


A_Z = [({"I": "a"}, {"O": "z"})]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (ensemble([({"I": "a"}, {"O": "b"})]), "step[0].output_map['O'] makes 'b', which no"),
        (ensemble(A_Z, outputs="zy"), "output[1] 'y' is made by no step"),
        (ensemble(A_Z, outputs="za"), "output[1] 'a' is made by no step"),
        (ensemble(A_Z, inputs="ab"), "input[1] 'b' is used by no step"),
        (
            ensemble([({"I": "a", "J": "q"}, {"O": "z"})]),
            "ensemble_scheduling.step[0].input_map['J'] needs 'q', which no input and no step",
        ),
        (
            ensemble([({"I": "a"}, {"O": "z"}), ({"I": "a"}, {"P": "z"})]),
            "step[1].output_map['P'] makes 'z', which comes from step[0] already",
        ),
        (
            ensemble([({"I": "a"}, {"O": "z", "P": "a"})]),
            "step[0].output_map['P'] makes 'a', which comes from an input already",
        ),
        (
            ensemble([({"I": "a", "J": "c"}, {"O": "z", "P": "b"}), ({"I": "b"}, {"O": "c"})]),
            "waits for",
        ),
        (ensemble([({"I": "a", "J": "b"}, {"O": "z", "P": "b"})]), "step[0] waits for 'b' of ste"),
        (ensemble([({}, {"O": "z"})]), "step[0].input_map is required"),
        (ensemble([({"I": "a"}, {})]), "step[0].output_map is required"),
        (ensemble([({"I": ""}, {"O": "z"})]), "step[0].input_map['I'] must map a name to a name"),
        (ensemble(A_Z).replace("part0", ""), "step[0].model_name is required"),
        (ensemble(A_Z).replace("part0", "m"), "step[0].model_name must be another model"),
        (ensemble(A_Z).replace("-1", "0"), "step[0].model_version must be a version, or -1"),
        (ensemble(A_Z, extra="instance_group { }"), "instance_group must not be given for an"),
        (ensemble(A_Z, extra="optimization { }"), "optimization must not be given for an"),
        (ensemble(A_Z, extra="dynamic_batching { }"), "scheduling_choice"),
        (ensemble(A_Z, extra='backend: "fake"'), "backend must not be given for an ensemble"),
        (
            ensemble(A_Z).replace("dims: [1]", "dims: [1] reshape { }", 1),
            "input[0].reshape must not be given for an ensemble",
        ),
        ('platform: "ensemble"', "ensemble_scheduling.step is required"),
        (ensemble(A_Z).replace("platform", "backend"), 'needs platform: "ensemble"'),
        (config(backend="ensemble"), 'backend must be empty with platform: "ensemble"'),
    ],
)
def test_ensembles_that_make_no_sense(tmp_path: Path, text: str, problem: str) -> None:
    assert problem in refusal(tmp_path, text)


@settings(deadline=None)
@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.permutations(range(n)), st.booleans())))
def test_any_order_of_steps_is_taken_and_any_cycle_refused(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[list[int], bool]
) -> None:
    """A chain a -> 0 -> 1 -> ... -> z, its steps shuffled, and perhaps a thread back."""
    order, is_cyclic = case
    last = len(order) - 1
    steps = []
    for place in order:
        taken = {"I": "a" if place == 0 else f"t{place}"}
        made = {"O": "z" if place == last else f"t{place + 1}"}
        if is_cyclic and place == 0:
            taken["J"] = "back"
        if is_cyclic and place == last:
            made["P"] = "back"
        steps.append((taken, made))
    text = ensemble(steps)
    repository = tmp_path_factory.mktemp("repository", numbered=True)
    if is_cyclic:
        assert "waits for" in refusal(repository, text)
    else:
        assert len(read(repository, text).steps) == len(order)


# Warm-up.


def test_warm_up(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "m", "")
    (directory / "warmup").mkdir()
    (directory / "warmup" / "raw").write_bytes(bytes(range(17)))
    text = config(
        extra="""
    sequence_batching {
      control_input { name: "c" control { int32_false_true: [0, 1] } }
    }
    model_warmup { name: "zeros"
      inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 zero_data: true } }
      inputs { key: "c" value { data_type: TYPE_INT32 dims: 1 zero_data: true } } }
    model_warmup { name: "random" batch_size: 3 count: 2
      inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 random_data: true } } }
    model_warmup { name: "file"
      inputs { key: "x" value { data_type: TYPE_FP32 dims: 4 input_data_file: "raw" } } }
    """
    )
    assert read(tmp_path, text).warmups == (
        Warmup("zeros", 1, 0, {"x": WarmupInput("FP32", (4,))}),
        Warmup("random", 3, 2, {"x": WarmupInput("FP32", (4,), random=True)}),
        Warmup("file", 1, 0, {"x": WarmupInput("FP32", (4,), bytes(range(16)))}),
    )
    single = (
        'model_warmup { batch_size: 1 inputs { key: "x" value {'
        " data_type: TYPE_FP32 dims: 4 zero_data: true } } }"
    )
    assert read(tmp_path, config(max_batch_size=0, extra=single)).warmups[0].rows == 0


def test_strings_in_warm_up_files(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "m", "")
    (directory / "warmup").mkdir()
    text = config(
        datatype="BYTES",
        dims="[-1]",
        extra='model_warmup { inputs { key: "x" value { data_type: TYPE_STRING dims: 2'
        ' input_data_file: "words" } } }',
    )
    for content in (b"", b"\1\0\0\0ab", b"\0\0\0\0\1\0\0\0", b"\0\0\0\0" * 3, b"\xff" * 8, b"\0"):
        (directory / "warmup" / "words").write_bytes(content)
        assert "must hold 2 strings" in refusal(tmp_path, text)
    (directory / "warmup" / "words").write_bytes(b"\1\0\0\0a\0\0\0\0")
    assert read(tmp_path, text).warmups[0].inputs["x"].data == b"\1\0\0\0a\0\0\0\0"


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ("batch_size: 65", "model_warmup[0].batch_size must be at most 64 for this model, got 65"),
        ("", "model_warmup[0].inputs must have the input 'x'"),
        ("data_type: TYPE_FP32 dims: 0 zero_data: true", "must be 1 or more, got [0]"),
        ("data_type: TYPE_FP32 dims: -1 zero_data: true", "must be 1 or more, got [-1]"),
        ("data_type: TYPE_FP32 dims: 5 zero_data: true", "those of the input [4], got [5]"),
        ("data_type: TYPE_INT8 dims: 4 zero_data: true", "that of the input, FP32, got INT8"),
        ("dims: 4 zero_data: true", "inputs['x'].data_type is required"),
        ("data_type: TYPE_FP32 dims: 4", "must have zero_data, random_data or input_data_file"),
        (
            "data_type: TYPE_FP32 dims: [100000, 100000] zero_data: true",
            "inputs['x'].dims must make a tensor of at most 2147483647 bytes",
        ),
        (
            'data_type: TYPE_FP32 dims: 4 input_data_file: "../x"',
            "inputs['x'].input_data_file must stay inside the model directory",
        ),
    ],
)
def test_warm_ups_that_make_no_sense(tmp_path: Path, settings: str, problem: str) -> None:
    if "data" in settings:
        settings = f'inputs {{ key: "x" value {{ {settings} }} }}'
    text = refusal(tmp_path, config(extra=f"model_warmup {{ {settings} }}"))
    assert problem in text
    assert "config.pbtxt:6: model_warmup[0]" in text


def test_a_warm_up_with_a_tensor_that_the_model_does_not_have(tmp_path: Path) -> None:
    both = "".join(
        f'inputs {{ key: "{name}" value {{ data_type: TYPE_FP32 dims: 4 zero_data: true }} }}\n'
        for name in "xq"
    )
    text = refusal(tmp_path, config(extra=f"model_warmup {{\n{both} }}"))
    assert "config.pbtxt:8: model_warmup[0].inputs['q'] is no input of the model" in text


def test_the_files_of_an_override_come_from_the_directory(tmp_path: Path) -> None:
    directory = write_config(tmp_path, "m", "")
    (directory / "warmup").mkdir()
    (directory / "warmup" / "raw").write_bytes(b"\x07")
    found = read_override(
        '{"backend": "onnxruntime", "model_warmup": [{"inputs": {"x":'
        ' {"data_type": "TYPE_INT8", "dims": [1], "input_data_file": "raw"}}}]}',
        directory,
    )
    assert found.warmups[0].inputs["x"].data == b"\x07"

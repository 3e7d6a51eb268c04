"""`slipway tune`: the search, the measurements, and the change to the text of a config."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import soundfile
from click.testing import CliRunner, Result
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.cache import ResponseCache
from serving.cli import main
from serving.config import ModelConfig
from serving.errors import OperatorError
from serving.loading import Surroundings, load_model
from serving.pbtxt.edit import set_field, set_parameter
from serving.repository import Repositories
from serving.scheduling.meter import LateMeter
from serving.tuning.files import replace_text_file
from serving.tuning.report import pareto
from serving.tuning.search import choose, explore, finalists, rank, summarize
from serving.tuning.setting import Axes, Setting, parse, setting_of, written
from serving.tuning.trial import Point, Trial, made_inputs
from serving.types import InferRequest, InferResponse
from tests.conftest import SHIPPED
from tests.support import config, write_config, write_model

COMMENTED = """
# Of the night shift.
dynamic_batching {  # batches
  preferred_batch_size: 4
  max_queue_delay_microseconds: 20000  # far too long
  default_queue_policy { max_queue_size: 512 }
}
instance_group [ { count: 3  # three
  kind: KIND_CPU } ]
parameters: { key: "other" value { string_value: "a # } b" } }
# The end, without a new line"""


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fewer cores, the fewer settings."""
    monkeypatch.setattr("serving.tuning.setting.cores", lambda: 1)


def tune(tmp_path: Path, *arguments: str) -> Result:
    out = str(tmp_path / "out")
    options = ["--model-repository", str(tmp_path), "--seconds", "0.03", "--out", out]
    options += ["--concurrency", "1,3", "--latency-ms", "1000"]
    return CliRunner().invoke(main, ["tune", *options, *arguments])


def untuned(text: str) -> Any:
    """A config without the fields that are tuned."""
    message = parse(text)
    message.parameters.pop("intra_op_thread_count", None)
    for group in message.instance_group:
        group.count = 0
    if not message.instance_group:
        message.instance_group.add()
    message.dynamic_batching.preferred_batch_size[:] = []
    message.dynamic_batching.max_queue_delay_microseconds = 0
    return message


def comments(text: str) -> list[str]:
    without_strings = re.sub(r'"[^"\n]*"' + r"|'[^'\n]*'", "", text)
    return [comment.rstrip() for comment in re.findall(r"#.*", without_strings)]


def test_writes_the_tuned_fields_and_nothing_else(tmp_path: Path) -> None:
    directory = write_model(tmp_path, "m", max_batch_size=4, extra=COMMENTED)
    path = directory / "config.pbtxt"
    path.chmod(0o640)
    before = path.read_text()

    shown = tune(tmp_path, "m")
    assert shown.exit_code == 0, shown.output
    assert path.read_text() == before
    header, today, *others = shown.stdout.partition("\n\n")[0].splitlines()
    assert " ".join(header.split()) == (
        "instances threads batches delay µs 1: rows/s p50 ms p99 ms 3: rows/s p50 ms p99 ms"
    )
    assert re.match(r" +3 +auto +4 +20000 ", today)
    assert today.endswith("  today")
    assert sum(line.endswith("chosen") for line in others) == 1
    assert "\n--- today\n+++ best\n" in shown.stdout

    result = tune(tmp_path, "m", "--write")
    assert result.exit_code == 0, result.output
    after = path.read_text()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    # Three callers make no batch of four, so each waits for 20 ms, and others are faster.
    assert results["chosen"] != results["today"]
    assert setting_of(parse(after)) == Setting(
        **{**results["chosen"], "batches": tuple(results["chosen"]["batches"])}
    )
    assert f"Written to {path.resolve()}: {setting_of(parse(after))}." in result.stdout
    assert untuned(after) == untuned(before)
    assert comments(after) == comments(before)
    assert path.stat().st_mode & 0o777 == 0o640
    assert [each.name for each in directory.iterdir()].count("config.pbtxt") == 1
    assert not list(directory.glob(".tune-*"))

    assert results["trials"][0]["setting"] == results["today"]
    assert len(results["rounds"]) in (3, 4, 5)
    for trial in results["trials"]:
        for point in trial["points"]:
            # Closed loops: clients are either asking or being answered (Little's law).
            assert point["rows_per_s"] * point["p50_ms"] / 1000 < 2 * point["concurrency"] + 1
    assert (tmp_path / "out" / "trade-off.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(tmp_path, "m", shape=(4,), max_batch_size=0, extra="")
    monkeypatch.setattr("serving.tuning.report.find_spec", lambda name: None)
    result = tune(tmp_path, "m")
    assert result.exit_code == 0, result.output
    assert "for a plot of the trade-off install matplotlib" in result.stdout
    assert not (tmp_path / "out" / "trade-off.png").exists()
    # Without a batch dimension there is nothing to batch.
    trials = json.loads((tmp_path / "out" / "results.json").read_text())["trials"]
    assert {trial["setting"]["batches"] for trial in trials} == {None}


def test_a_bound_that_nothing_keeps(tmp_path: Path) -> None:
    path = write_model(tmp_path, "m", max_batch_size=2) / "config.pbtxt"
    before = path.read_text()
    result = tune(tmp_path, "m", "--latency-ms", "0.000001", "--write")
    assert result.exit_code == 1
    assert re.search(
        r"^Error: no setting keeps p99 within 1e-06 ms; the lowest found is [\d.e-]+ ms, at"
        r" concurrency [13], with \d instances?, .* thread.*; nothing is written to the config$",
        result.stderr,
        re.MULTILINE,
    ), result.stderr
    assert "chosen" not in result.stdout
    assert path.read_text() == before


def test_dynamic_shapes(tmp_path: Path) -> None:
    write_model(tmp_path, "m", shape=("batch", "length"), dims="[-1]", max_batch_size=1, extra="")
    refused = tune(tmp_path, "m")
    assert refused.exit_code == 2
    assert refused.stderr.endswith(
        "Error: input 'x' of model 'm' has no fixed shape; say which to measure with --shape x:N\n"
    )
    assert tune(tmp_path, "m", "--shape", "x:7").exit_code == 0
    warmup = 'model_warmup { name: "w" batch_size: 1 inputs { key: "x" value'
    warmup += " { data_type: TYPE_FP32 dims: [5] random_data: true } } }"
    write_config(tmp_path, "m", config(dims="[-1]", max_batch_size=1, extra=warmup))
    assert tune(tmp_path, "m").exit_code == 0


def test_requests_that_are_refused_do_not_count(tmp_path: Path) -> None:
    extra = (
        "dynamic_batching { preserve_ordering: true default_queue_policy { max_queue_size: 1 } }"
    )
    write_model(tmp_path, "m", max_batch_size=1, extra=extra)
    result = tune(tmp_path, "m")
    assert result.exit_code == 0, result.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    alone, crowded = results["trials"][0]["points"]
    assert alone["p99_ms"] > 0
    assert crowded["p99_ms"] is None
    assert "refused" in result.stdout
    # Of several instances one overtakes another.
    assert {trial["setting"]["instances"] for trial in results["trials"]} == {1}


async def test_an_example_is_asked_where_there_is_one() -> None:
    """The shipped recogniser takes recordings of any length."""

    async def ask(request: InferRequest) -> InferResponse:
        raise AssertionError(request)

    def find(name: str, version: str) -> ModelConfig:
        raise AssertionError(name)

    (version,) = Repositories([SHIPPED]).read("spoken-numbers")
    surroundings = Surroundings(ResponseCache(0), ask, find)
    model = await load_model(version, surroundings, LateMeter())
    recording = soundfile.info(version.directory / "example.wav")
    try:
        found = made_inputs(model, version.directory, {})
        assert found["waveform"].shape == (1, round(recording.duration * 16_000))
        assert model.rows(InferRequest(model.config.name, found)) == 1
        assert made_inputs(model, version.directory, {"waveform": (480,)})["waveform"].shape == (
            1,
            480,
        )
    finally:
        await model.close()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nobody"], "model 'nobody' is in no model repository"),
        (["fake"], "model 'fake' has backend 'fake'; only one graph of onnxruntime can be tuned"),
        (
            ["both"],
            "model 'both' is an ensemble, which has no settings of its own; tune the models it is"
            " made of",
        ),
        (
            ["stepped"],
            "model 'stepped' answers in steps, and its batches are not set but follow from who is"
            " there",
        ),
        (
            ["sequence"],
            "model 'sequence' has sequence_batching; only requests that stand alone can be"
            " measured",
        ),
        (["groups"], "model 'groups' has 2 instance_groups; one count can be tuned"),
        (["m", "--model-repository", "/nowhere"], "/nowhere: no such directory, and a model"),
        (["m", "--latency-ms", "0"], "'--latency-ms': 0.0 is not in the range x>0."),
        (["m", "--latency-ms", "nan"], "--latency-ms: expected a number above 0, got nan"),
        (["m", "--seconds", "0"], "'--seconds': 0.0 is not in the range"),
        (["m", "--shape", "x"], "expected an input and its sizes, such as x:3,224,224, got 'x'"),
        (["m", "--shape", "x:0"], "expected an input and its sizes, such as x:3,224,224, got"),
        (["m", "--shape", "z:4"], "--shape z: model 'm' has ['x']"),
        (["m", "--shape", "x:4,4"], "--shape x: expected sizes that fit [4], got [4, 4]"),
        (["m", "--shape", "x:5"], "--shape x: expected sizes that fit [4], got [5]"),
        (["m", "--concurrency", "1,x"], "expected numbers of clients from 1 to 1024, such as"),
        (["m", "--concurrency", "0"], "expected numbers of clients from 1 to 1024, such as"),
        (["m", "--out", "/proc/here"], "--out /proc/here: cannot be made: "),
        (["bare"], "config.pbtxt: no such file; begin with one that says max_batch_size"),
        (["broken"], "config.pbtxt:2: "),
        (["threads"], "intra_op_thread_count must be a whole number of 0 or more, got 'many'"),
    ],
)
def test_mistakes(zoo: Path, arguments: list[str], message: str) -> None:
    texts = {path: path.read_text() for path in zoo.glob("*/config.pbtxt")}
    result = tune(zoo, *arguments, "--write")
    assert result.exit_code == 2, result.output
    assert message in result.stderr.splitlines()[-1]
    assert {path: path.read_text() for path in zoo.glob("*/config.pbtxt")} == texts


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zoo")
    write_model(path, "m")
    (write_model(path, "bare") / "config.pbtxt").unlink()
    write_model(path, "broken")
    write_config(path, "broken", 'backend: "onnxruntime"\nmax_batch_size: }')
    write_model(path, "groups", extra="instance_group { count: 1 } instance_group { count: 2 }")
    write_model(path, "sequence", extra="sequence_batching { }")
    threads = 'parameters { key: "intra_op_thread_count" value { string_value: "many" } }'
    write_model(path, "threads", extra=threads)
    (write_config(path, "fake", config(backend="fake")) / "1").mkdir()
    stepper = 'parameters { key: "stepper" value { string_value: "generation" } }'
    write_config(path, "stepped", config(backend="python", extra=stepper))
    step = 'step { model_name: "m" model_version: -1 input_map { key: "x" value: "x" }'
    step += ' output_map { key: "y" value: "y" } }'
    ensemble = config(extra=f"ensemble_scheduling {{ {step} }}")
    write_config(path, "both", ensemble.replace('backend: "onnxruntime"', 'platform: "ensemble"'))
    (path / "both" / "1").mkdir()
    return path


# What the search and the choice do, without a clock.


def trial(setting: Setting, *points: tuple[float, float]) -> Trial:
    """Points of 1, 2, 4 … clients, as rows a second and p99."""
    return Trial(
        setting,
        tuple(
            Point(1 << place, rows, p99_ms / 2, p99_ms)
            for place, (rows, p99_ms) in enumerate(points)
        ),
    )


TODAY = Setting(1, 0, (), 2000)


@given(
    data=st.data(),
    today=st.sampled_from([TODAY, Setting(3, 2, None), Setting(1, 1, (4, 8), 700)]),
)
def test_the_search_finds_the_top_of_a_hill(data: st.DataObject, today: Setting) -> None:
    axes = Axes.of(today, cores=8, max_batch_size=64, concurrency=32, bound_ms=50)
    top = (
        data.draw(st.sampled_from(axes.workers)),
        data.draw(st.sampled_from([sizes for sizes in axes.batches if sizes is not None])),
        data.draw(st.sampled_from(axes.delays_us)),
    )
    asked: list[Setting] = []

    def measure(some: Sequence[Setting]) -> list[Trial]:
        asked.extend(some)
        return [trial(each, (1000 - distance(each), 1)) for each in some]

    def distance(setting: Setting) -> int:
        return (
            abs(
                axes.workers.index((setting.instances, setting.threads))
                - axes.workers.index(top[0])
            )
            + abs(axes.batches.index(setting.batches) - axes.batches.index(top[1]))
            + abs(axes.delays_us.index(setting.delay_us) - axes.delays_us.index(top[2]))
        )

    found = explore(today, axes, 50, measure)
    assert asked[0] == today
    assert len(set(asked)) == len(asked) < 45
    assert {each.setting for each in found} == set(asked)
    assert found[0].setting == Setting(*top[0], *top[1:])


def test_the_search_leaves_out_what_cannot_be() -> None:
    axes = Axes.of(TODAY, cores=2, max_batch_size=4, concurrency=8, bound_ms=1)
    assert axes.workers == ((1, 0), (1, 1), (1, 2), (2, 1), (3, 1))
    assert axes.batches == ((1,), (2,), ())
    assert axes.delays_us == (0, 100, 500, 2000)
    found = explore(
        TODAY, axes, 1, lambda some: [trial(each, (1, 1)) for each in some if each.instances == 1]
    )
    assert {each.setting.instances for each in found} == {1}


def test_rank_and_choice() -> None:
    one, two, three = Setting(1, 1, ()), Setting(2, 1, ()), Setting(3, 1, ())
    # Throughput counts at the largest concurrency that keeps the bound.
    assert rank(trial(one, (100, 5), (300, 9), (500, 11)), 10) == (True, 300)
    assert rank(trial(one, (100, 50), (300, 20)), 10) == (False, -20)
    assert rank(trial(one, (1, 11)), 10) < rank(trial(one, (0.1, 10)), 10)

    def chosen(*trials: Trial, today: Setting = TODAY) -> Setting | None:
        final = choose([summarize([each] * 3) for each in trials], today, 10, cores=2)
        return final.median.setting if final else None

    assert chosen(trial(one, (100, 5)), trial(two, (150, 5)), trial(three, (200, 11))) == two
    assert chosen(trial(one, (100, 5)), trial(two, (102, 5)), trial(three, (101, 5))) == one
    assert chosen(trial(two, (100, 11))) is None
    # Of two that cost as much, the one that is there already.
    other = Setting(2, 1, (4,))
    assert chosen(trial(two, (100, 5)), trial(other, (99, 5)), today=other) == other
    assert chosen(trial(two, (100, 5)), trial(other, (90, 5)), today=other) == two
    # Else the one that waits less, and the one that says less.
    assert chosen(trial(other, (100, 5)), trial(two, (99, 5))) == two
    patient = Setting(2, 1, (8,), 100)
    assert chosen(trial(patient, (100, 5)), trial(other, (99, 5)), today=patient) == other
    assert chosen(trial(patient, (100, 5)), trial(other, (80, 5))) == patient
    # Where no size is preferred a delay costs nothing, and stays what it is.
    ready = Setting(2, 1, (), TODAY.delay_us)
    assert chosen(trial(two, (100, 5)), trial(ready, (99, 5)), trial(other, (99, 5))) == ready
    assert chosen(trial(two, (100, 5)), trial(ready, (99, 5)), today=two) == two
    # Rounds that differ tell how large the noise is.
    noisy = summarize([trial(two, (rows, 5)) for rows in (90, 100, 110)])
    steady = summarize([trial(one, (91, 5))] * 3)
    assert choose([noisy, steady], TODAY, 10, cores=2) == steady
    assert noisy.median == trial(two, (100, 5))


def test_finalists() -> None:
    tried = [Setting(2, 1, (), delay_us) for delay_us in (500, 100, 2000, 0)]
    explored = [trial(each, (1, 1)) for each in [*tried, Setting(1, 1, ()), TODAY]]
    assert finalists(explored, TODAY) == [*tried, TODAY]
    assert finalists(explored[4:], TODAY) == [Setting(1, 1, ()), TODAY]
    assert finalists(explored[5:], TODAY) == [TODAY]


def test_pareto_front() -> None:
    points = [Point(1, rows, 1, p99) for rows, p99 in [(5, 3), (1, 1), (4, 2), (3, 2), (5, 4)]]
    assert [(point.rows_per_s, point.p99_ms) for point in pareto(points)] == [
        (1, 1),
        (4, 2),
        (5, 3),
    ]


# The change to the text.

NOTES = st.sampled_from(["", "", "# a note\n", "# it's \"quoted } [\n", "\n\n", "  ; # x\n"[4:]])
GROUPS = [
    "",
    "instance_group { }",
    "instance_group [ ]",
    "instance_group {\n  kind: KIND_CPU\n}",
    "instance_group [\n  {\n    count: 2  # two\n    kind: KIND_CPU\n  }\n]",
    "instance_group: [ { kind: KIND_CPU, count: # how many\n 2 } ]",
    "instance_group < count: 7; name: 'count: 3' >",
]
PARAMETERS = [
    "",
    'parameters { key: "intra_op_thread_count" value { string_value: "1" } }',
    "parameters {\n  key: 'intra_op_thread_count'  # a key\n  value: <\n string_value: '2' >\n}",
    'parameters [ { value { string_value: "4" "" }, key: "intra_op_thread_count" },'
    ' { key: "z" value: { string_value: "intra # } \\" {" } } ]',
    'parameters { key: "intra_op_" "thread_count" value { string_value: "8" } }',
    'parameters { key: "intra_op_thread_count" }',
    'parameters { key: "y" value { string_value: "1" } }',
]
BATCHINGS = [
    "",
    "dynamic_batching { }",
    "dynamic_batching {\n}",
    "dynamic_batching: { preferred_batch_size: [ 4, # four\n 8 ], priority_levels: 2,"
    " default_priority_level: 1 }",
    "dynamic_batching {\n  preferred_batch_size: 4\n  preferred_batch_size: [2]\n"
    "  max_queue_delay_microseconds: 100;\n  preferred_batch_size: 16  # more\n}",
    "dynamic_batching < preferred_batch_size: 0x10 # c\n , max_queue_delay_microseconds: 7 >",
    "dynamic_batching {\n\tdefault_queue_policy { max_queue_size: 3 }\n\t# last\n\t}",
]
SETTINGS = st.builds(
    Setting,
    st.integers(1, 9),
    st.integers(1, 9),
    st.one_of(st.none(), st.lists(st.integers(1, 64), max_size=3).map(tuple)),
    st.sampled_from([0, 100, 2000]),
)


@st.composite
def texts(draw: st.DrawFn) -> str:
    parts = [
        'backend: "onnxruntime"',
        "max_batch_size: 64,",
        "input [ { name: '#' data_type: TYPE_FP32 dims: [ -1, 1 ] } ];",
        "output < name: \"y\" 'z' data_type: TYPE_FP32 dims: 3 dims: 4 >",
        draw(st.sampled_from(GROUPS)),
        draw(st.sampled_from(PARAMETERS)),
        draw(st.sampled_from(BATCHINGS)),
    ]
    text = ""
    for part in draw(st.permutations(parts)):
        text += draw(NOTES) + part + draw(st.sampled_from(["\n", " ", "  # after\n", "\r\n"]))
    return text + draw(st.sampled_from(["", "\n", "# the end"]))


@given(text=texts(), setting=SETTINGS)
@settings(max_examples=300, deadline=None)
def test_only_tuned_fields_change(text: str, setting: Setting) -> None:
    if setting.batches is None:
        today = setting_of(parse(text))
        setting = Setting(setting.instances, setting.threads, today.batches, today.delay_us)
    new = written(text, setting, Path("m"))
    assert setting_of(parse(new)) == setting
    assert untuned(new) == untuned(text)
    assert comments(new) == comments(text)
    assert written(new, setting, Path("m")) == new


def test_the_change_is_laid_out_like_its_surroundings() -> None:
    text = set_field("dynamic_batching {\n  a: 1\n}\n", "dynamic_batching", "b", "[ 2 ]")
    assert text == "dynamic_batching {\n  a: 1\n  b: [ 2 ]\n}\n"
    assert set_field(text, "dynamic_batching", "a", "") == "dynamic_batching {\n  b: [ 2 ]\n}\n"
    assert set_field("x [ { a: 1 } ]", "x", "b", "2") == "x [ { a: 1 b: 2 } ]"
    assert set_parameter("# end", "k", "v") == (
        '# end\nparameters {\n  key: "k"\n  value { string_value: "v" }\n}\n'
    )


def test_a_change_that_would_say_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "max_batch_size: 8 instance_group { count: 1 }"
    monkeypatch.setattr("serving.tuning.setting.set_field", lambda text, *rest: text)
    with pytest.raises(OperatorError, match=r"m/config.pbtxt: is written in a way that cannot be"):
        written(text, Setting(2, 0, None), Path("m"))
    monkeypatch.setattr("serving.tuning.setting.set_field", lambda text, *rest: text + "}")
    with pytest.raises(OperatorError, match=r"put in yourself what is best: 2 instances, auto"):
        written(text, Setting(2, 0, None), Path("m"))
    with pytest.raises(text_format.ParseError):
        parse(text + "}")


def test_a_file_that_has_changed_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "real.pbtxt"
    target.write_text("theirs")
    path = tmp_path / "config.pbtxt"
    path.symlink_to(target)
    with pytest.raises(OperatorError, match="has changed since tuning began"):
        replace_text_file(path, "ours", "new")
    assert target.read_text() == "theirs"
    replace_text_file(path, "theirs", "new")
    assert path.is_symlink()
    assert target.read_text() == "new"
    assert len(list(tmp_path.iterdir())) == 2

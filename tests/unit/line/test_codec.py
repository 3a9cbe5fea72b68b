import io
import itertools
import math
import subprocess
import sys

import numpy as np
import orjson
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fedops_mqtt.line import codec, flwr_private
from fedops_mqtt.line.errors import FrameError, MessageTooLargeError
from fedops_mqtt.line.records import open_npy
from fedops_mqtt.line.wire import LineCompression
from fedops_mqtt.protocol import MAX_REASON_CHARS

NO_LIMIT = 1 << 40
names = st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable())
floats = st.floats(allow_nan=False)
ints = st.integers(-(2**63), 2**63 - 1)
config_scalars = st.one_of(
    st.booleans(), ints, floats, st.text(max_size=8).filter(str.isprintable), st.binary(max_size=8)
)
ndarrays = npst.arrays(
    dtype=st.sampled_from(["float32", "float64", "int8", "bool", "uint16", "complex64"]),
    shape=npst.array_shapes(min_dims=0, min_side=0, max_side=4),
)


def same_type_lists(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    return st.one_of(values, st.lists(values, max_size=4))


records = st.one_of(
    st.dictionaries(names, ndarrays.map(lambda a: Array(np.asarray(a))), max_size=4).map(ArrayRecord),
    st.dictionaries(names, st.one_of(same_type_lists(ints), same_type_lists(floats)), max_size=4).map(MetricRecord),
    st.dictionaries(
        names,
        st.one_of(config_scalars, *(st.lists(x, max_size=3) for x in (ints, floats, st.binary(max_size=4)))),
        max_size=4,
    ).map(ConfigRecord),
)
contents = st.dictionaries(names, records, max_size=4).map(RecordDict)


@pytest.fixture(autouse=True, scope="module")
def _identity() -> None:
    flwr_private.set_identity(run_id=5, node_id=1)


def make(content: RecordDict) -> Message:
    flwr_private.set_identity(run_id=5, node_id=1)
    return Message(content, dst_node_id=7, message_type="train", group_id="3")


def to_bytes(message: Message, compression: LineCompression | None = None) -> bytes:
    content = codec.encode_content(message.content, codec.compress_with(compression))
    frame = codec.encode_message(message, content)
    blob = b"".join(frame.chunks(max_bytes=1000))
    assert len(blob) == frame.num_bytes
    return blob


def from_bytes(blob: bytes, max_bytes: int = NO_LIMIT) -> Message:
    return codec.read_message(io.BytesIO(blob).read, num_bytes=len(blob), max_bytes=max_bytes)


def reheaded(blob: bytes, change: dict[str, object]) -> bytes:
    """Return a frame with its first array's header changed; the metadata and the buffers stay."""
    magic, metadata_bytes, content_bytes = codec.HEAD.unpack_from(blob)
    start = codec.HEAD.size + metadata_bytes
    content = orjson.loads(blob[start : start + content_bytes])
    item = content["records"][0]["items"][0]
    for at, value in change.items():
        item[{"dtype": 1, "shape": 2, "stype": 3, "num_bytes": 4, "wire_bytes": 5}[at]] = value
    packed = orjson.dumps(content)
    head = codec.HEAD.pack(magic, metadata_bytes, len(packed))
    return head + blob[codec.HEAD.size : start] + packed + blob[start + content_bytes :]


def arrays_message(array: np.ndarray) -> Message:
    return make(RecordDict({"arrays": ArrayRecord({"w": Array(array)})}))


@given(contents)
def test_what_is_decoded_is_what_was_encoded(content: RecordDict) -> None:
    message = make(content)
    got = from_bytes(to_bytes(message))
    assert got.content == content
    assert list(got.content) == list(content)
    assert vars(got.metadata) == vars(message.metadata)


@given(contents, st.lists(st.integers(0, 400), max_size=6))
def test_a_frame_may_arrive_in_any_pieces(content: RecordDict, cuts: list[int]) -> None:
    blob = to_bytes(make(content))
    reader = codec.FrameReader(num_bytes=len(blob), max_bytes=NO_LIMIT)
    edges = [0, *sorted(min(cut, len(blob)) for cut in cuts), len(blob)]
    for start, end in itertools.pairwise(edges):
        reader.feed(blob[start:end])
    assert reader.take().content == content


@given(contents, st.integers(0, 2000), st.integers(1, 50))
def test_the_rest_of_a_frame_starts_at_any_byte(content: RecordDict, offset: int, max_bytes: int) -> None:
    message = make(content)
    frame, blob = codec.encode_message(message), to_bytes(message)
    assert b"".join(frame.chunks(offset=offset, max_bytes=max_bytes)) == blob[offset:]


def test_large_buffers_are_not_copied_into_chunks() -> None:
    message = arrays_message(np.zeros(300_000, "f4"))
    data = message.content["arrays"]["w"].data
    chunks = list(codec.encode_message(message).chunks(max_bytes=1 << 20))
    assert [chunk.obj is data for chunk in chunks if isinstance(chunk, memoryview)] == [True, True]


@given(st.binary(max_size=300))
def test_any_bytes_give_a_message_or_our_error(blob: bytes) -> None:
    with pytest.raises(FrameError):
        from_bytes(blob)


@given(contents, st.data())
def test_a_damaged_frame_gives_a_message_or_our_error(content: RecordDict, data: st.DataObject) -> None:
    blob = bytearray(to_bytes(make(content)))
    at = data.draw(st.integers(0, 2**20)) % len(blob)
    blob[at] = data.draw(st.integers(0, 255))
    try:
        from_bytes(bytes(blob))
    except (FrameError, EOFError):
        return


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_diverged_metric_arrives_as_it_is(value: float) -> None:
    got = from_bytes(to_bytes(make(RecordDict({"m": MetricRecord({"loss": value, "all": [value, 1.0]})}))))
    np.testing.assert_equal(got.content["m"]["loss"], value)
    np.testing.assert_equal(got.content["m"]["all"], [value, 1.0])


def test_a_numpy_float_is_a_float() -> None:
    got = from_bytes(to_bytes(make(RecordDict({"m": MetricRecord({"x": np.float64(0.5)})}))))
    assert type(got.content["m"]["x"]) is float


def test_an_error_travels_in_the_place_of_content() -> None:
    asked = make(RecordDict())
    blob = b"".join(codec.encode_message(Message(Error(5, "gone"), reply_to=asked)).chunks(max_bytes=99))
    got = from_bytes(blob)
    assert (got.has_content(), got.error.code, got.error.reason) == (False, 5, "gone")


def test_bytes_after_the_end_of_a_frame_are_our_error_whatever_it_carries() -> None:
    """An endless loop once: of an error nothing but the headers was looked at."""
    asked = make(RecordDict())
    failed = b"".join(codec.encode_message(Message(Error(5, "gone"), reply_to=asked)).chunks(max_bytes=99))
    for blob in (failed, to_bytes(arrays_message(np.ones(2, "f4"))), to_bytes(asked)):
        longer = blob + b"more"
        with pytest.raises(FrameError, match="headers describe"):
            codec.FrameReader(num_bytes=len(longer), max_bytes=NO_LIMIT).feed(longer)
        with pytest.raises(FrameError, match="headers describe"):
            codec.read_message(io.BytesIO(longer).read, num_bytes=len(longer), max_bytes=NO_LIMIT)


def test_the_reason_of_an_error_is_as_long_as_reasons_are() -> None:
    asked = make(RecordDict())
    blob = b"".join(codec.encode_message(Message(Error(5, "x" * 1_000_000), reply_to=asked)).chunks(max_bytes=1 << 20))
    assert len(from_bytes(blob).error.reason or "") == MAX_REASON_CHARS


def test_classic_arrays_without_dtype_and_shape_are_moved_and_checked() -> None:
    data = Array(np.ones(3)).data
    classic = make(RecordDict({"p": ArrayRecord({"0": Array(dtype="", shape=(), stype="numpy.ndarray", data=data)})}))
    assert from_bytes(to_bytes(classic)).content["p"]["0"].data == data
    classic.content["p"]["0"].data = data[:-1]
    with pytest.raises(FrameError, match="bytes"):
        from_bytes(to_bytes(classic))


def test_arrays_of_another_serialisation_are_moved_as_they_are() -> None:
    own = Array(dtype="mine", shape=(2,), stype="mine/v1", data=b"abc")
    got = from_bytes(to_bytes(make(RecordDict({"a": ArrayRecord({"x": own})}))))
    assert got.content["a"]["x"] == own


@pytest.mark.parametrize("declared", ["object", ""])
def test_pickled_arrays_are_refused(declared: str) -> None:
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    array = Array(dtype=declared, shape=(1,), stype="numpy.ndarray", data=stream.getvalue())
    with pytest.raises(FrameError, match="unpickled"):
        from_bytes(to_bytes(make(RecordDict({"a": ArrayRecord({"x": array})}))))


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float64"},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [2**62, 2**62]},
        {"shape": "2"},
        {"num_bytes": 3},
        {"num_bytes": -1},
        {"num_bytes": 10**12},
        {"num_bytes": 10**12, "wire_bytes": 10**15},
        {"num_bytes": 10**12, "shape": [10**15 // 4]},
        {"num_bytes": True},
        {"stype": None},
        {"dtype": "object"},
        {"dtype": "int32"},
    ],
)
def test_an_array_that_differs_from_its_header_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(FrameError):
        from_bytes(reheaded(to_bytes(arrays_message(np.ones(2, "f4"))), change))


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2L,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2,",
        "{'descr': '<f4', 'fortran_order': False, 'shape': ('2',), }",
        "{'descr': '<f4', 'fortran_order': False}",
        "{'descr': [('a', 'O')], 'fortran_order': False, 'shape': (2,), }",
        "{'descr': [('a',)], 'fortran_order': False, 'shape': (2,), }",
        "__import__('os').abort()",
        "[" * 5000,
        "",
    ],
)
def test_a_npy_header_that_is_none_is_refused(header: str) -> None:
    data = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(8)
    array = Array(dtype="", shape=(), stype="numpy.ndarray", data=data)
    with pytest.raises(FrameError):
        from_bytes(to_bytes(make(RecordDict({"a": ArrayRecord({"x": array})}))))


USUAL_ARRAYS = [
    np.zeros(shape, dtype, order)
    for dtype in ("<f4", ">f8", "<f2", "?", "|i1", "<u8", "<c16", "|S3", "<U2", "<M8[ns]", "|V4")
    for shape in ((), (0,), (3,), (2, 3), (1, 1, 10))
    for order in ("C", "F")
]


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def test_a_view_of_an_npy_array_is_what_numpy_loads() -> None:
    for array in [*USUAL_ARRAYS, np.zeros(2, [("a", "<f4"), ("b", "<i8", 3)])]:
        found, loaded = open_npy(npy(array)), np.load(io.BytesIO(npy(array)))
        assert (found.dtype, found.shape) == (loaded.dtype, loaded.shape), repr(array)
        assert found.tobytes() == loaded.tobytes(), repr(array)


def test_headers_as_numpy_writes_them_are_read_without_pythons_parser() -> None:
    """With Python 3.11 a strategy that loads an array at the same moment would get a SystemError, or the line would."""
    lines = [npy(array).hex() for array in USUAL_ARRAYS]
    program = """if True:
        import sys
        from fedops_mqtt.line.records import open_npy
        compiled = []
        sys.addaudithook(lambda event, arguments: compiled.append(arguments) if event == "compile" else None)
        sizes = [open_npy(bytes.fromhex(line)).size for line in sys.stdin]
        print(len(sizes), compiled)
    """
    done = subprocess.run(
        [sys.executable, "-c", program], input="\n".join(lines), capture_output=True, text=True, check=True, timeout=300
    )
    assert done.stdout == f"{len(USUAL_ARRAYS)} []\n"


def test_a_lie_about_the_length_is_found_before_memory_is_taken() -> None:
    blob = reheaded(to_bytes(arrays_message(np.ones(2, "f4"))), {"num_bytes": 10**12, "wire_bytes": 10**12})
    asked: list[int] = []
    stream = io.BytesIO(blob)

    def read(num_bytes: int) -> bytes:
        asked.append(num_bytes)
        return stream.read(num_bytes)

    with pytest.raises(FrameError):
        codec.read_message(read, num_bytes=len(blob), max_bytes=NO_LIMIT)
    assert max(asked) < len(blob)


def test_a_message_over_the_limit_is_refused_at_once() -> None:
    with pytest.raises(MessageTooLargeError) as caught:
        codec.FrameReader(num_bytes=2000, max_bytes=1000)
    assert (caught.value.size_bytes, caught.value.limit_bytes) == (2000, 1000)


def test_a_frame_that_ends_early_is_no_message() -> None:
    blob = to_bytes(arrays_message(np.ones(2, "f4")))
    reader = codec.FrameReader(num_bytes=len(blob), max_bytes=NO_LIMIT)
    reader.feed(blob[:-1])
    assert not reader.is_complete
    with pytest.raises(FrameError, match="ends after"):
        reader.take()
    with pytest.raises(EOFError):
        codec.read_message(io.BytesIO(blob[:-1]).read, num_bytes=len(blob), max_bytes=NO_LIMIT)


def test_more_bytes_than_announced_are_refused() -> None:
    blob = to_bytes(arrays_message(np.ones(2, "f4")))
    reader = codec.FrameReader(num_bytes=len(blob), max_bytes=NO_LIMIT)
    with pytest.raises(FrameError, match="more than"):
        reader.feed(blob + b"x")


def test_zeros_are_compressed_and_noise_is_not() -> None:
    compression = LineCompression(level=1, threshold_bytes=1000)
    zeros, noise = arrays_message(np.zeros(10_000)), arrays_message(np.random.default_rng(1).random(10_000))
    assert len(to_bytes(zeros, compression)) < 2000
    assert len(to_bytes(noise, compression)) > 80_000
    for message in (zeros, noise):
        assert from_bytes(to_bytes(message, compression)).content == message.content


def test_a_zstd_bomb_is_not_unpacked() -> None:
    blob = to_bytes(arrays_message(np.zeros(10_000)), LineCompression(threshold_bytes=1000))
    with pytest.raises(FrameError, match="zstd"):
        from_bytes(reheaded(blob, {"num_bytes": 80_000, "dtype": ""}))


def test_a_small_frame_of_a_message_over_the_limit_is_refused_before_anything_is_unpacked() -> None:
    message = arrays_message(np.zeros(10_000))
    blob = to_bytes(message, LineCompression(threshold_bytes=1000))
    reader = codec.FrameReader(num_bytes=len(blob), max_bytes=20_000)
    with pytest.raises(MessageTooLargeError) as caught:
        reader.feed(blob)
    content = codec.encode_content(message.content, codec.compress_with(LineCompression(threshold_bytes=1000)))
    assert caught.value.size_bytes == codec.encode_message(message, content).message_bytes > 80_000
    assert reader.received_bytes == len(blob) < 2000


@pytest.mark.parametrize("value", [[[{"bytes": 1}]], {"float": "1"}, {"bytes": "1"}, {}, None, [1, "a"], {"bytes": -1}])
def test_a_config_value_that_means_nothing_is_refused(value: object) -> None:
    metadata = orjson.dumps(vars_of(make(RecordDict())))
    content = orjson.dumps({"records": [{"name": "c", "kind": "configs", "items": [["key", value]]}]})
    blob = codec.HEAD.pack(codec.MAGIC, len(metadata), len(content)) + metadata + content
    with pytest.raises(FrameError):
        from_bytes(blob)


def with_header(content: bytes) -> bytes:
    """Return a frame of a header alone."""
    metadata = orjson.dumps(vars_of(make(RecordDict())))
    return codec.HEAD.pack(codec.MAGIC, len(metadata), len(content)) + metadata + content


@pytest.mark.parametrize("value", [b"[]", b"{}", b'{"bytes":0}', b"1", b'""'])
def test_a_header_of_too_many_values_is_refused_before_it_is_read(value: bytes) -> None:
    values = b",".join([value] * (codec.MAX_HEADER_VALUES + 2))
    blob = with_header(b'{"records":[' + values + b"]}")
    with pytest.raises(FrameError, match="send numbers as arrays"):
        from_bytes(blob)


def test_metadata_is_short() -> None:
    metadata = b" " * (codec.MAX_METADATA_BYTES + 1)
    with pytest.raises(FrameError, match="headers are longer"):
        from_bytes(codec.HEAD.pack(codec.MAGIC, len(metadata), 2) + metadata + b"{}")


@pytest.mark.long
def test_a_model_of_a_hundred_thousand_arrays_fits() -> None:
    array = Array(np.zeros((1, 1, 1, 1), "f4"))
    record = ArrayRecord({f"blocks[{number}].conv.weight": array for number in range(100_000)})
    message = make(RecordDict({"arrays": record}))
    assert len(from_bytes(to_bytes(message)).content["arrays"]) == 100_000


def vars_of(message: Message) -> dict[str, object]:
    return {name.removeprefix("_"): value for name, value in vars(message.metadata).items()}


def test_an_integer_over_64_bits_cannot_be_sent() -> None:
    with pytest.raises(FrameError, match="cannot be written"):
        to_bytes(make(RecordDict({"m": MetricRecord({"x": 2**70})})))

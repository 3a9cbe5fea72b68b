"""Is a reply an update of the model that was sent: its arrays by name, shape and dtype, its values, its weight?

A strategy averages replies without looking: one that does not fit would fail the round for everybody, or change the
model for good. So a reply is checked before the strategy gets it, and what does not fit is its client's failure.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from numpy.typing import NDArray

from fedops_mqtt.line import flwr_private
from fedops_mqtt.line.errors import FrameError
from fedops_mqtt.line.records import npy_header, open_npy
from fedops_mqtt.line.rounds import kind_of, round_of

_ROOM_BYTES = 64 * 1024 * 1024
"""Beside twice the model: a reply's metrics and state of its own."""
_SLICE_ITEMS = 1 << 20
"""Values are looked at in slices, so that the answer takes a megabyte and not a quarter of the array."""
_QUICK_BYTES = 4 * 1024 * 1024
_QUICK_ARRAYS = 256
"""With so little in a message and its reply, a check takes below a millisecond; a change of threads takes more."""
_MAX_SHOWN = 3
_MAX_NAME_CHARS = 80
_HINT = "accept_any_shape takes replies as they are"
LIMIT_RULE = f"twice the model that was sent and 64 MiB; {_HINT}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyCheck:
    """What a strategy wants of the replies to its `train` and `evaluate` messages."""

    any_shape: bool = False
    """Replies need not be the model: nothing but values and weights is checked."""
    nonfinite: bool = False
    """NaN and infinities are taken too."""
    weight_key: str | None = None
    """The metric that replies are averaged by; None: the strategy does not name it."""
    averaged: frozenset[str] = frozenset()
    """Kinds of messages whose replies Flower's own aggregation takes. It raises, for everybody, where one reply has not
    exactly one record of metrics with `weight_key` in it (and one of arrays, to `train`), or others than the rest."""

    def limit_bytes(self, sent: Message, max_bytes: int) -> int:
        """Return how large a reply may be once it is unpacked; `max_bytes` where no model was sent."""
        records = [] if self.any_shape else list(_records(sent.content, ArrayRecord).values())
        model_bytes = sum(len(array.data) for record in records for array in record.values())
        return min(max_bytes, 2 * model_bytes + _ROOM_BYTES) if records else max_bytes

    def problem(self, sent: Message, reply: Message) -> str | None:
        """Return what is wrong with a reply, or None. Reads every value: an event loop asks `is_quick` first."""
        kind = kind_of(sent)
        if kind not in ("train", "evaluate") or reply.has_error() or _has_failed(reply.content):
            return None  # a failure that the client reports itself is the strategy's business
        problem = self._weight_problem(kind, reply.content)
        model = {name: record for name, record in _records(sent.content, ArrayRecord).items() if _is_numpy(record)}
        if problem or kind != "train" or not model:
            return problem
        return self._arrays_problem(model, _records(reply.content, ArrayRecord))

    def odd_ones(self, sent: Sequence[Message], replies: Sequence[Message]) -> dict[str, str]:
        """Return which replies have other records or metrics than most, by what they answer, and what differs.

        Where as many have the one as the other, those that were asked first decide.
        """
        if not self.averaged:
            return {}
        kinds = {message.metadata.message_id: kind_of(message) for message in sent}
        forms = {
            message_id: _form(reply.content)
            for reply in replies
            if kinds.get(message_id := reply.metadata.reply_to_message_id) in self.averaged and reply.has_content()
        }
        if len(set(forms.values())) < 2:
            return {}
        ((usual, _),) = Counter(forms[each] for each in kinds if each in forms).most_common(1)
        return {
            message_id: f"not what most clients answered: {_listed(form - usual)} more, {_listed(usual - form)} less"
            for message_id, form in forms.items()
            if form != usual
        }

    def _arrays_problem(self, model: Mapping[str, ArrayRecord], replied: Mapping[str, ArrayRecord]) -> str | None:
        if not self.any_shape and (not replied or ("train" in self.averaged and len(replied) != 1)):
            return f"{len(replied)} records of arrays, one is expected; {_HINT}"
        pairs = [(model[name], replied[name]) for name in model if name in replied]
        if not pairs and len(model) == len(replied) == 1:
            pairs = list(zip(model.values(), replied.values(), strict=True))
        if not pairs and len(model) == 1 and not self.any_shape:
            return f"{len(replied)} records of arrays and none is called {next(iter(model))!r}; {_HINT}"
        for sent, found in pairs:
            differences = [] if self.any_shape else list(_differences(sent, found))
            if differences:
                more = f" and {len(differences) - _MAX_SHOWN} more" if len(differences) > _MAX_SHOWN else ""
                return f"not the model that was sent: {'; '.join(differences[:_MAX_SHOWN])}{more}; {_HINT}"
            if not self.nonfinite and (problem := _value_problem(sent, found)):
                return problem
        return None

    def _weight_problem(self, kind: str, content: RecordDict) -> str | None:
        metrics = _records(content, MetricRecord)
        if kind in self.averaged and len(metrics) != 1:
            return f"{len(metrics)} records of metrics, one is expected"
        weights = [record[self.weight_key] for record in metrics.values() if self.weight_key in record]
        if kind in self.averaged and not weights:
            return f"no {self.weight_key!r} among its metrics, and replies are averaged by that"
        for weight in weights:
            if isinstance(weight, list) or not math.isfinite(weight) or weight < 0:
                found = f"a list of {len(weight)}" if isinstance(weight, list) else weight
                return f"{self.weight_key!r} is {found}, not a number from 0 on"
        return None


def is_quick(sent: Message, reply: Message) -> bool:
    """Return whether the check of this reply takes so little time that an event loop can wait for it."""
    if reply.has_error():
        return True
    records = [record for message in (sent, reply) for record in _records(message.content, ArrayRecord).values()]
    num_bytes = sum(len(array.data) for record in records for array in record.values())
    return sum(map(len, records)) <= _QUICK_ARRAYS and num_bytes <= _QUICK_BYTES


def refusal_of(sent: Message, problem: str) -> str:
    """Return why a reply is refused, for people."""
    what = "update" if kind_of(sent) == "train" else "reply"
    round_ = round_of(sent)
    return f"{what} of round {round_} refused: {problem}" if round_ is not None else f"{what} refused: {problem}"


def count_nonfinite(values: NDArray[Any], allowed: NDArray[Any] | None = None) -> int:
    """Return how many values are NaN or infinite; an infinity that stands in `allowed` too (a mask) does not count."""
    if values.dtype.kind not in "fc" or _is_finite(values):
        return 0
    is_bad = ~np.isfinite(values)
    if allowed is not None and allowed.shape == values.shape:
        is_bad &= values != allowed  # NaN is never equal to itself
    return int(is_bad.sum())


def _is_finite(values: NDArray[Any]) -> bool:
    if values.size <= _SLICE_ITEMS:
        return bool(np.isfinite(values).all())
    flat = values.reshape(-1, order="A")
    return all(bool(np.isfinite(flat[at : at + _SLICE_ITEMS]).all()) for at in range(0, flat.size, _SLICE_ITEMS))


def _records(content: RecordDict, kind: type[Any]) -> dict[str, Any]:
    """Not `content.array_records`: Flower's views are reference cycles around the arrays."""
    return {name: record for name, record in content.items() if isinstance(record, kind)}


def _is_numpy(record: ArrayRecord) -> bool:
    """Return whether a record is a model: classic XGBoost sends bytes of no type, or nothing yet."""
    return bool(record) and all(array.stype == flwr_private.NUMPY_STYPE and array.data for array in record.values())


def _form(content: RecordDict) -> frozenset[str]:
    """Return what Flower's own aggregation wants to be the same in all replies: names of records and of metrics."""
    arrays, metrics = _records(content, ArrayRecord), _records(content, MetricRecord)
    return frozenset([*arrays, *(f"{name}.{key}" for name, record in metrics.items() for key in record)])


def _listed(form: frozenset[str]) -> str:
    names = sorted(form)
    return (", ".join(map(_shown, names[:_MAX_SHOWN])) or "nothing") + (", …" if len(names) > _MAX_SHOWN else "")


def _has_failed(content: RecordDict) -> bool:
    statuses = (content.get("fitres.status"), content.get("evaluateres.status"))
    return any(
        isinstance(status, ConfigRecord) and status.get("code") != flwr_private.CLASSIC_OK.value for status in statuses
    )


def _differences(model: ArrayRecord, found: ArrayRecord) -> Iterator[str]:
    if len(found) != len(model):
        yield f"{len(found)} arrays, the model has {len(model)}"
    for name in model:
        if name not in found:
            yield f"array {_shown(name)} is missing"
            continue
        if problem := _difference(model[name], found[name]):
            yield f"array {_shown(name)} {problem}"
    yield from (f"array {_shown(name)} is not one of the model's" for name in found if name not in model)


def _difference(model: Array, found: Array) -> str | None:
    if found.stype != flwr_private.NUMPY_STYPE:
        return f"is of type {found.stype[:_MAX_NAME_CHARS]!r}, not a NumPy array"
    try:
        if npy_header(model.data) == npy_header(found.data):
            return None
        wanted, given = open_npy(model.data), open_npy(found.data)
    except FrameError as error:
        return f"cannot be read: {error.problem}"
    if _is_bytes(wanted) and _is_bytes(given):
        return None
    if given.shape != wanted.shape:
        return f"has shape {given.shape}, the model's {wanted.shape}"
    # Averaging makes float64 of a model's integers (and some strategies of its float32), and clients answer in the
    # model's own dtype: what fits without loss is the same model.
    if not np.can_cast(given.dtype, wanted.dtype, "safe"):
        return f"has dtype {given.dtype}, the model's {wanted.dtype}"
    return None


def _is_bytes(array: NDArray[Any]) -> bool:
    """Return whether an array is a serialized model, of any length: Flower's XGBoost strategies send trees so."""
    return array.dtype == np.uint8 and array.ndim == 1


def _value_problem(model: ArrayRecord, found: ArrayRecord) -> str | None:
    for name, array in found.items():
        if array.stype != flwr_private.NUMPY_STYPE or not array.data:
            continue
        values = open_npy(array.data)
        if not count_nonfinite(values):
            continue
        sent = open_npy(model[name].data) if name in model else None
        if count := count_nonfinite(values, sent):
            return f"array {_shown(name)} has {count} values that are NaN or infinite; accept_nonfinite takes them"
    return None


def _shown(name: str) -> str:
    return repr(name if len(name) <= _MAX_NAME_CHARS else f"{name[:_MAX_NAME_CHARS]}…")

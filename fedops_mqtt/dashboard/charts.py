"""Charts as ECharts options, made of the API's records: pure. Colours are legible on light and on dark."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from fedops_mqtt.dashboard.texts import amount, readable, short_reason
from fedops_mqtt.protocol import number_of

Record = Mapping[str, Any]
Options = dict[str, Any]

MAX_LANES = 60
"""Clients in a Gantt chart; more are no picture. Failed and lost ones come first."""
LANES_S = 10.0
"""Lanes go to other clients at most this often: of a large run clients fail all the time."""

INK, GRID = "#7b8794", "rgba(123,135,148,0.25)"
COLOURS = ("#1c7ed6", "#f08c00", "#2f9e44", "#ae3ec9", "#e03131", "#0c8599", "#e8590c", "#5f3dc4")
PARTS = (("compute_s", "train", "#1c7ed6"), ("transfer_s", "transfer", "#f08c00"), ("wait_s", "wait", "#adb5bd"))
LANE = {
    "download_s": "#fab005",
    "train": "#1c7ed6",
    "evaluate": "#15aabf",
    "upload_s": "#f76707",
}
_UNNAMED_PX = 24
"""Below a chart whose axis has no name."""
_AROUND_MS = 30_000
_AS_TEXT = "(p) => { const text = document.createElement('span'); text.textContent = p.name || ''; return text; }"
"""A text from a formatter would be taken for HTML, and names have reasons in them that devices wrote."""
_DRAW_BAR = """(params, api) => {
  const start = api.coord([api.value(1), api.value(0)]), end = api.coord([api.value(2), api.value(0)]);
  const height = Math.min(18, api.size([0, 1])[1] * 0.7);
  const bar = {x: start[0], y: start[1] - height / 2, width: Math.max(1.5, end[0] - start[0]), height: height};
  const area = params.coordSys;
  const left = Math.max(bar.x, area.x), right = Math.min(bar.x + bar.width, area.x + area.width);
  if (right <= left) { return; }
  return {type: 'rect', shape: {...bar, x: left, width: right - left}, style: api.style()};
}"""


def by_round(rounds: Sequence[Record], ending: str) -> list[tuple[str, list[list[float]]]]:
    """Return the series of the metrics whose name ends so, each as `[round, value]`, in the journal's order."""
    found: dict[str, list[list[float]]] = defaultdict(list)
    for row in rounds:
        for name, value in row["metrics"].items():
            if name.endswith(ending) and (value := number_of(value)) is not None:
                found[readable(name)].append([row["round"], value])
    return sorted(found.items(), key=lambda each: len(each[0]))


def runs_compared(rounds: Mapping[str, Sequence[Record]], ending: str) -> list[tuple[str, list[list[float]]]]:
    """Return the series of several runs, one for each, of the most telling metric; named by the run's last letters.

    A run without numbers has an empty series: the colours are those of the runs, in their order.
    """
    found = {run_id: by_round(rows, ending)[:1] for run_id, rows in rounds.items()}
    return [(run_id.rpartition("-")[2], series[0][1] if series else []) for run_id, series in found.items()]


def lines(series: Iterable[tuple[str, list[list[float]]]], *, is_share: bool = False) -> Options:
    """Return a line chart over rounds; a share is drawn from 0 to 1, as long as its values are."""
    drawn: list[Options] = [
        {
            "type": "line",
            "name": name,
            "data": points,
            "showSymbol": len(points) < 60,
            "symbol": "circle",
            "symbolSize": 5,
            "lineStyle": {"width": 2},
            "color": COLOURS[index % len(COLOURS)],
        }
        for index, (name, points) in enumerate(series)
    ]
    is_share = is_share and all(0 <= value <= 1 for each in drawn for _, value in each["data"])
    return _frame(
        x={"type": "value", "name": "round", "nameLocation": "middle", "nameGap": 26, "minInterval": 1},
        y={"type": "value", "min": 0, "max": 1} if is_share else {"type": "value", "scale": True},
        series=drawn,
    )


def over_time(series: Sequence[tuple[str, list[list[Any]]]]) -> Options:
    """Return a line chart over time, from 0; points are `[ISO time, value]`."""
    options = lines(series)
    options["xAxis"] = _axis(
        {"type": "time"} | _around_the_only({point[0] for _, points in series for point in points})
    )
    options["yAxis"] = _axis({"type": "value", "min": 0})
    options["grid"]["bottom"] = _UNNAMED_PX
    return options


def _around_the_only(times: set[str]) -> Options:
    """Return the ends of an axis for a single moment: left alone, it would span two days."""
    if len(times) != 1:
        return {}
    at = 1000 * datetime.fromisoformat(times.pop()).timestamp()
    return {"min": at - _AROUND_MS, "max": at + _AROUND_MS}


Spent = dict[int, dict[str, list[float]]]
"""Seconds of computing and of transfer, by round and client."""


def add_spent(spent: Spent, metrics: Sequence[Record]) -> None:
    """Add what clients report to what is known."""
    for row in _messages(metrics):
        sums = spent.setdefault(row["round"], {}).setdefault(row["client_mac"], [0.0, 0.0])
        sums[0] += amount(row["values"], "compute_s")
        sums[1] += amount(row["values"], "download_s") + amount(row["values"], "upload_s")


def round_times(rounds: Sequence[Record], spent: Spent) -> Options:
    """Return each round's time, split: of the mean client training and transfer, and what is left of the round."""
    took = {row["round"]: row["duration_s"] for row in rounds if row["duration_s"] is not None}
    bars: dict[str, list[float]] = {name: [] for name, _, _ in PARTS}
    for number, duration_s in took.items():
        clients = spent.get(number, {}).values()
        compute, transfer = (sum(each[part] for each in clients) / max(1, len(clients)) for part in (0, 1))
        bars["compute_s"].append(round(compute, 4))
        bars["transfer_s"].append(round(transfer, 4))
        bars["wait_s"].append(round(max(0.0, duration_s - compute - transfer), 4))
    series = [
        {"type": "bar", "stack": "time", "name": label, "data": bars[name], "color": colour, "barMaxWidth": 40}
        for name, label, colour in PARTS
    ]
    return _frame(
        x={"type": "category", "data": list(took), "name": "round", "nameLocation": "middle", "nameGap": 26},
        y={"type": "value"},
        series=series,
    )


def _messages(metrics: Sequence[Record]) -> list[Record]:
    return [row for row in metrics if row["kind"] == "round" and "compute_s" in row["values"]]


def choose_lanes(statuses: Mapping[str, str]) -> list[str]:
    """Return the clients of a run that get a lane, by their MAC, the topmost first."""
    return sorted(statuses, key=lambda mac: (_LANE_ORDER.get(statuses[mac], 9), mac))[:MAX_LANES]


def are_lanes_due(drawn: Sequence[str] | None, wanted: Sequence[str], age_s: float, *, is_full: bool = False) -> bool:
    """Return whether lanes that were drawn `age_s` ago (None: never) are drawn again; who fits does not wait."""
    if drawn is None or len(wanted) > len(drawn):
        return True
    return age_s >= LANES_S and (is_full or list(wanted) != list(drawn))


def lane_data(
    macs: Sequence[str], metrics: Sequence[Record], events: Sequence[Record]
) -> tuple[list[Record], list[Record]]:
    """Return the bars and the marks of some clients' lanes."""
    lane = {mac: index for index, mac in enumerate(reversed(macs))}
    bars: list[Record] = [
        _bar(lane[row["client_mac"]], *part)
        for row in _messages(metrics)
        if row["client_mac"] in lane
        for part in _parts(row)
    ]
    marks: list[Record] = [
        {
            "value": [1000 * event["at"].timestamp(), lane[event["client_mac"]]],
            "name": _mark_text(event),
            "itemStyle": {"color": _mark_colour(event)},
        }
        for event in events
        if event["client_mac"] in lane and _mark_colour(event)
    ]
    return bars, marks


def lanes(names: Sequence[str], bars: list[Record], marks: list[Record]) -> Options:
    """Return the Gantt chart of a run: a lane for each name, the topmost first."""
    options = _frame(
        x={"type": "time"},
        y={"type": "category", "data": list(reversed(names)), "axisLabel": {"fontSize": 11}},
        series=[
            {
                "type": "custom",
                "name": "phases",
                ":renderItem": _DRAW_BAR,
                "encode": {"x": [1, 2], "y": 0},
                "data": bars,
                "animation": False,
            },
            {"type": "scatter", "name": "events", "symbol": "diamond", "symbolSize": 11, "data": marks, "z": 5},
        ],
    )
    options["legend"] = {"show": False}
    options["grid"] |= {"left": 130, "top": 6, "bottom": _UNNAMED_PX}
    options["tooltip"] = {"trigger": "item", ":formatter": _AS_TEXT, "confine": True}
    return options


_LANE_ORDER = {"failed": 0, "lost": 1, "rejected": 2, "stopped": 3}


def _parts(row: Record) -> Iterable[tuple[str, float, float, int]]:
    """Yield what a client did for one message, backwards from the moment of the report."""
    end, values = 1000 * row["at"].timestamp(), row["values"]
    for name in ("upload_s", "compute_s", "download_s"):
        spent = 1000 * amount(values, name)
        label = readable(values.get("stage")) if name == "compute_s" else name
        yield label, end - spent, end, row["round"]
        end -= spent


def _bar(lane: int, label: str, start: float, end: float, number: int) -> Record:
    colour = LANE.get(label, "#1c7ed6")
    text = f"{label.removesuffix('_s')}, round {number}: {(end - start) / 1000:.3f} s"
    return {"value": [lane, start, end], "name": text, "itemStyle": {"color": colour}}


def _mark_colour(event: Record) -> str | None:
    status = (event["detail"] or {}).get("status")
    if event["kind"] == "TriggerFired":
        return "#868e96"
    if event["kind"] not in ("MemberSaid", "MemberGaveUp"):
        return None
    return {
        "failed": "#e03131",
        "lost": "#e03131",
        "rejected": "#e03131",
        "finished": "#2f9e44",
        "stopped": "#f08c00",
    }.get(str(status))


def _mark_text(event: Record) -> str:
    detail = event["detail"] or {}
    status = "triggered" if event["kind"] == "TriggerFired" else detail.get("status")
    return f"{status}: {short_reason(detail.get('reason'))}".removesuffix(": ")


def _frame(*, x: Options, y: Options, series: list[Options]) -> Options:
    return {
        "backgroundColor": "transparent",
        "animationDuration": 300,
        "useUTC": True,
        "textStyle": {"color": INK, "fontFamily": "inherit"},
        "grid": {"left": 52, "right": 16, "top": 34, "bottom": 42},
        "legend": {"top": 0, "textStyle": {"color": INK}, "type": "scroll"},
        "tooltip": {"trigger": "axis", "confine": True},
        "xAxis": _axis(x),
        "yAxis": _axis(y),
        "series": series,
    }


def _axis(own: Options) -> Options:
    label = {"color": INK, "hideOverlap": True, **own.get("axisLabel", {})}
    return {
        **own,
        "axisLabel": label,
        "nameTextStyle": {"color": INK},
        "axisLine": {"lineStyle": {"color": GRID}},
        "splitLine": {"lineStyle": {"color": GRID}},
    }

"""The small parts that pages are made of."""

from collections.abc import Mapping
from typing import Any

from nicegui import ui

from fedops_mqtt.dashboard.texts import readable
from fedops_mqtt.dashboard.view import PageView

Record = Mapping[str, Any]


def section(title: str) -> Any:
    """Return a card with a heading, to be entered."""
    card = ui.element("section").classes("fed-card")
    with card:
        ui.label(title).classes("fed-heading").props('role="heading" aria-level="2"')
    return card


def facts(pairs: list[tuple[str, Any]]) -> dict[str, ui.label]:
    """Draw names and values; return the labels of the values, for what changes all the time."""
    labels = {}
    with ui.element("dl").classes("fed-facts"):
        for name, value in pairs:
            with ui.element("div"):
                with ui.element("dt"):
                    ui.label(readable(name))
                with ui.element("dd"):
                    labels[name] = ui.label(readable(value))
    return labels


def chip(label: str) -> ui.label:
    """Draw a status in its colour."""
    return ui.label(label).classes(f"fed-chip fed-{label.lower()}")


def set_chip(chip_: ui.label, label: str) -> None:
    """Show another status."""
    if chip_.text != label:
        chip_.classes(remove=f"fed-{chip_.text.lower()}", add=f"fed-{label.lower()}")
        chip_.set_text(label)


def draw_chart(title: str, *, unit: str = "", colours: Mapping[str, str] | None = None, remark: str = "") -> ui.echart:
    """Draw a card with an empty chart; `colours` and `remark` are its legend where the chart has none of its own."""
    with section(f"{title} ({unit})" if unit else title) as card:
        card.props(f'aria-label="{title}"')
        if colours:
            with ui.element("div").classes("fed-row fed-legend"):
                for name, colour in colours.items():
                    ui.label(name).style(f"--swatch:{colour}")
                ui.label(remark).classes("fed-remark")
        return ui.echart({"series": []}).classes("fed-chart").props(f'role="img" aria-label="{title}"')


def hint(text: str, command: str | None = None) -> None:
    """Draw what to do where there is nothing to show."""
    with ui.column().classes("fed-hint"):
        ui.label(readable(text))
        if command:
            ui.label(command).classes("fed-code")


def set_chart(chart: ui.echart, options: dict[str, Any]) -> None:
    """Show options, if they differ from those that are shown."""
    if chart.options != options:
        chart.options.clear()
        chart.options.update(options)
        chart.update()


def clear_section(card: ui.element) -> None:
    """Remove everything but the heading from a section."""
    for child in card.default_slot.children[1:]:
        card.remove(child)


def table(*columns: str) -> ui.element:
    """Draw a table's head and return its body, to be entered; on a phone a row is a few lines of named values."""
    scroll = ui.element("div").classes("fed-scroll").props('tabindex="0" role="region" aria-label="Table"')
    names = ";".join(f"--name{number}:'{name}'" for number, name in enumerate(columns, 1))
    with scroll, ui.element("table").classes("fed-table").style(names):
        with ui.element("thead"), ui.element("tr"):
            for name in columns:
                with ui.element("th").props('scope="col"'):
                    ui.label(name)
        return ui.element("tbody")


def cells(*values: Any, words: str | None = None) -> list[ui.label]:
    """Draw cells of the row that is entered; only `words`, the last one, may break into lines."""
    labels = []
    for value in values:
        with ui.element("td"):
            labels.append(ui.label(readable(value)))
    if words is not None:
        with ui.element("td").classes("fed-words"):
            labels.append(ui.label(readable(words)))
    return labels


_PLAIN = "flat no-caps"


async def ask_to_stop(view: PageView, run_id: str, around: ui.element) -> None:
    """Stop a run if the visitor confirms; the dialog is drawn in `around`, which has to outlive the button."""
    question = "Stop this run? Its clients end their training; the last good model stays."
    if await is_confirmed(around, question, yes="Stop it", no="Go on"):
        async with view.refusals_shown():
            await view.api.stop_run(run_id)
            ui.notify("The run is being stopped.")


async def is_confirmed(around: ui.element, question: str, *, yes: str, no: str) -> bool:
    """Return the visitor's answer in a dialog, drawn in `around`; closing it is a no."""
    with around, ui.dialog().props('aria-label="Please confirm"') as dialog, ui.card().classes("fed-card"):
        ui.label(question)
        with ui.row():
            ui.button(yes, color=None, on_click=lambda: dialog.submit("yes")).classes("fed-danger").props(_PLAIN)
            ui.button(no, color=None, on_click=dialog.close).props(_PLAIN)
    answer = await dialog
    dialog.delete()
    return bool(answer == "yes")


def stop_button(view: PageView, run_id: str, around: ui.element) -> ui.button:
    """Draw the button that stops a run after a confirmation."""
    button = ui.button("Stop this run", color=None, on_click=lambda: ask_to_stop(view, run_id, around))
    return button.props(_PLAIN).classes("fed-danger")

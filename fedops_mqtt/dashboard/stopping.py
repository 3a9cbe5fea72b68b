"""The question before a run is stopped, wherever it can be stopped."""

from nicegui import ui

from fedops_mqtt.dashboard.view import PageView

_PLAIN = "flat no-caps"


async def ask_to_stop(view: PageView, run_id: str, around: ui.element) -> None:
    """Stop a run if the visitor says so; the dialog is drawn in `around`, which has to outlive the button."""
    with around, ui.dialog() as dialog, ui.card().classes("fed-card"):
        ui.label("Stop this run? Its clients end their training; the last good model stays.")
        with ui.row():
            ui.button("Stop it", color=None, on_click=lambda: dialog.submit("yes")).classes("fed-danger").props(_PLAIN)
            ui.button("Go on", color=None, on_click=dialog.close).props(_PLAIN)
    answer = await dialog
    dialog.delete()
    if answer == "yes":
        async with view.refusals_shown():
            await view.api.stop_run(run_id)
            ui.notify("The run is being stopped.")


def stop_button(view: PageView, run_id: str, around: ui.element) -> ui.button:
    """Draw the button that asks, and stops."""
    button = ui.button("Stop this run", color=None, on_click=lambda: ask_to_stop(view, run_id, around))
    return button.props(_PLAIN).classes("fed-danger")

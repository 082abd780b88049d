"""Prune tab: sliders for the sizes, a preview of the model, and the pruning itself."""

from collections.abc import Iterator
from os import environ
from typing import Any

import gradio as gr

from minitron.errors import MinitronError
from minitron.space.jobs.catalog import CatalogModel
from minitron.space.jobs.distilling import can_distill
from minitron.space.jobs.preview import LABELS, SIZES, Sizes, slider_ranges
from minitron.space.jobs.pruning import push_with_token
from minitron.space.jobs.request import VisitorError
from minitron.space.jobs.service import SAMPLE_PROMPT, Service
from minitron.space.ui.cards import (
    lesson_card,
    preview_card,
    progress_card,
    recipe_card,
    result_card,
    waiting_card,
)
from minitron.space.ui.handlers import on_gpu, show_errors
from minitron.space.ui.html import byte_size

_FIRST_SHARE, _LEAST_PERCENT = 0.5, 5
_INFO = {
    "hidden_size": "Width of the residual stream: every layer reads and writes it.",
    "intermediate_size": "Neurons in each layer's MLP.",
    "num_attention_heads": "Query heads in each layer; each KV group keeps the same number.",
    "num_hidden_layers": "The least important layers are removed.",
}
_LINK = """(model, hidden, ffn, heads, layers) => window.minitronLink({
  tab: "prune", model, hidden_size: hidden, intermediate_size: ffn, num_attention_heads: heads,
  num_hidden_layers: layers
})"""
_MEASURING = "(model) => window.minitronMeasuring(model)"
_MEASURED = "() => window.minitronMeasured()"
_SHOW_LESSON = "() => window.minitronShow('#mt-lesson')"
_SHOW_RESULT = "() => window.minitronShow('#mt-result')"
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
# gradio refuses a size beyond its slider's range, which a link, another model or a keyboard sends
# for a moment: the handlers replace it by the nearest size of the range.
_ANY_SIZE: dict[str, Any] = {**_QUIET, "preprocess": False}


def prune_tab(service: Service, tab: gr.Tab) -> dict[str, gr.Component]:
    """Lay out the tab; returns the components that a link may set, by their name there."""
    names = service.catalog.names
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            model = gr.Dropdown(names, value=names[0], label="Model", elem_id="mt-model")
            share = gr.Slider(
                least_percent(service.catalog.model(names[0])),
                100,
                round(100 * _FIRST_SHARE),
                step=1,
                buttons=[],
                elem_id="mt-share",
                label="Parameter budget (%)",
                info="Narrows the hidden size and the MLPs together; heads and layers stay whole.",
            )
            sliders = _sliders(service, names[0])
            with gr.Row(elem_classes="mt-actions"):
                start = gr.Button(
                    "Prune", variant="primary", elem_id="mt-prune", scale=0, min_width=190
                )
                link = gr.Button("Copy link", scale=0, min_width=110)
        with gr.Column(scale=3, min_width=280):
            shown = gr.HTML(
                waiting_card(), elem_classes="mt-block mt-plan", elem_id="mt-cut", padding=False
            )
    result = gr.HTML("", elem_classes="mt-block", elem_id="mt-result", padding=False)
    folder = gr.State("")
    with gr.Row(visible=False, elem_classes="mt-actions") as after:
        archive = gr.DownloadButton(
            "Download", elem_id="mt-zip", scale=0, min_width=190, variant="primary"
        )
        distill = gr.Button("Distill it here", elem_id="mt-distill", scale=0, min_width=190)
        stop = gr.Button(
            "Stop", interactive=False, elem_id="mt-distill-stop", scale=0, min_width=110
        )
    lesson = gr.HTML("", elem_classes="mt-block", elem_id="mt-lesson", padding=False)
    _connect_distillation(service, folder, distill, stop, lesson)
    recipe = gr.HTML("", elem_classes="mt-block", elem_id="mt-recipe", padding=False)
    if environ.get("SPACE_ID"):
        _push_row(service, folder)
    _connect_sliders(service, tab, model, share, sliders, [shown, recipe])

    def prune(
        model: str,
        hidden_size: float,
        intermediate_size: float,
        num_attention_heads: float,
        num_hidden_layers: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        given = (hidden_size, intermediate_size, num_attention_heads, num_hidden_layers)
        sizes = Sizes.on_sliders(service.catalog.model(model), *given)
        service.stop_distilling(request.session_hash)  # of the result that this one replaces
        done = None
        for done in service.prune(model, *vars(sizes).values(), visitor=request.session_hash):
            is_packed = done.archive is not None
            note = "Both models write a text …" if is_packed else done.note
            yield progress_card(note), *[gr.skip()] * 4
        if done is None or done.archive is None:
            raise VisitorError("nothing was pruned: choose smaller sizes")
        entry, size = done.preview.entry, byte_size(done.archive.stat().st_size)
        length = service.measurements.sequence_length(entry)
        yield (
            result_card(done, service.sample(done), SAMPLE_PROMPT, length),
            gr.update(value=str(done.archive), label=f"Download ({size})"),
            str(done.folder),
            gr.update(visible=can_distill(entry)),
            gr.update(visible=True),
        )

    pruning = start.click(
        lambda: (
            gr.update(value="Pruning …", interactive=False),
            progress_card("Waiting …"),
            gr.update(visible=False),
            "",
        ),
        outputs=[start, result, after, lesson],
        queue=False,
        **_QUIET,
    )
    pruning.then(None, js=_SHOW_RESULT, **_QUIET)
    pruning = pruning.then(
        show_errors(on_gpu(prune)),
        inputs=[model, *sliders.values()],
        outputs=[result, archive, folder, distill, after],
        concurrency_id="prune",
        concurrency_limit=1,
        **_ANY_SIZE,
    )
    pruning.success(_idle, outputs=start, queue=False, js=_SHOW_RESULT, **_QUIET)
    pruning.failure(lambda: (_idle(), ""), outputs=[start, result], queue=False, **_QUIET)
    link.click(None, inputs=[model, *sliders.values()], js=_LINK, api_visibility="private")
    return {"model": model, **sliders}


def _connect_distillation(
    service: Service, folder: gr.State, start: gr.Button, stop: gr.Button, lesson: gr.HTML
) -> None:
    """The buttons start and stop a distillation of the visitor's pruned model."""

    def distill(folder: str, request: gr.Request) -> Iterator[str]:
        for now in service.distill(folder, visitor=request.session_hash):
            yield lesson_card(now, SAMPLE_PROMPT)

    def stop_distilling(request: gr.Request) -> None:
        service.stop_distilling(request.session_hash)

    def buttons(*, is_running: bool) -> tuple[Any, Any]:
        name = "Distilling …" if is_running else "Distill it here"
        return gr.update(value=name, interactive=not is_running), gr.update(interactive=is_running)

    running = start.click(
        lambda: (*buttons(is_running=True), progress_card("Waiting …")),
        outputs=[start, stop, lesson],
        queue=False,
        **_QUIET,
    )
    running.then(None, js=_SHOW_LESSON, **_QUIET)
    running = running.then(
        show_errors(on_gpu(distill)),
        inputs=folder,
        outputs=lesson,
        concurrency_id="distill",
        concurrency_limit=1,
        **_QUIET,
    )
    running.success(lambda: buttons(is_running=False), outputs=[start, stop], queue=False, **_QUIET)
    running.failure(
        lambda: (*buttons(is_running=False), ""),
        outputs=[start, stop, lesson],
        queue=False,
        **_QUIET,
    )
    stop.click(stop_distilling, queue=False, **_QUIET)


def slider_updates(service: Service, name: str, sizes: Sizes) -> dict[str, Any]:
    """The sliders of a model, at these sizes."""
    ranges = slider_ranges(service.catalog.model(name))
    return {size: gr.update(value=getattr(sizes, size), **vars(ranges[size])) for size in SIZES}


def _connect_sliders(
    service: Service,
    tab: gr.Tab,
    model: gr.Dropdown,
    share: gr.Slider,
    sliders: dict[str, gr.Slider],
    outputs: list[gr.HTML],
) -> None:
    """A slider updates the preview and the budget; the model and the budget update the sliders."""
    every = [*sliders.values()]

    def preview(model: str, *sizes: float) -> list[Any]:
        entry = service.catalog.model(model)
        shown = Sizes.on_sliders(entry, *sizes)
        most = vars(Sizes.full(entry))
        # The browser bounds a typed number itself; the size may be that of the model before.
        moved = [
            gr.skip() if size > most[name] else _moved(size, value)
            for (name, value), size in zip(vars(shown).items(), sizes, strict=True)
        ]
        found, wanted = service.preview(model, *vars(shown).values(), timed=False)
        length = service.measurements.sequence_length(entry)
        cards = [preview_card(found, timed=False), recipe_card(found, wanted, length)]
        # Always: two previews may run at once, and the budget shown may be that of the other one.
        return [*cards, round(100 * found.share), *moved]

    def speed(model: str, *sizes: float) -> str:
        entry = service.catalog.model(model)
        shown = Sizes.on_sliders(entry, *sizes)
        return preview_card(service.preview(model, *vars(shown).values())[0])

    def choose_model(model: str) -> list[Any]:
        updates = slider_updates(service, model, first_sizes(service, model))
        least = least_percent(service.catalog.model(model))
        return [gr.update(value=round(100 * _FIRST_SHARE), minimum=least), *updates.values()]

    def choose_share(model: str, share: float) -> list[Any]:
        entry = service.catalog.model(model)
        wanted = Sizes.of_share(entry, min(100, max(_LEAST_PERCENT, share)) / 100)
        return [_moved(share, round(100 * wanted.share_of(entry))), *vars(wanted).values()]

    chosen = model.input(None, inputs=model, js=_MEASURING, api_visibility="private").then(
        show_errors(choose_model), inputs=model, outputs=[share, *every], **_QUIET
    )
    shown: dict[str, Any] = {
        "fn": show_errors(preview),
        "inputs": [model, *every],
        "outputs": [*outputs, share, *every],
        "trigger_mode": "always_last",
        **_ANY_SIZE,
    }
    moved = gr.on([tab.select, *(slider.change for slider in every)], **shown)
    for previewed in (moved, chosen.success(**shown)):
        # The same figures again do not replace the marked ones.
        previewed.success(None, js=_MEASURED, **_QUIET)
        previewed.success(
            show_errors(speed),
            inputs=[model, *every],
            outputs=outputs[0],
            trigger_mode="always_last",
            **_ANY_SIZE,
        )
    share.input(
        show_errors(choose_share),
        inputs=[model, share],
        outputs=[share, *every],
        trigger_mode="always_last",
        **_ANY_SIZE,
    )


def _idle() -> Any:
    """The button between two prunings; gradio changes the update that it is given."""
    return gr.update(value="Prune", interactive=True)


def _moved(before: float, value: int) -> Any:
    """An update where the value changes: any other would disturb a visitor who drags the slider."""
    return gr.skip() if before == value else value


def least_percent(entry: CatalogModel) -> int:
    """The least budget on the slider: no widths of a small model have 5 % of its parameters."""
    try:
        least = Sizes.of_share(entry, _LEAST_PERCENT / 100).share_of(entry)
    except MinitronError:
        return _LEAST_PERCENT
    return min(max(_LEAST_PERCENT, round(100 * least)), round(100 * _FIRST_SHARE))


def first_sizes(service: Service, name: str) -> Sizes:
    """About half of the parameters, or all where no sizes give that."""
    entry = service.catalog.model(name)
    try:
        return Sizes.of_share(entry, _FIRST_SHARE)
    except MinitronError:
        return Sizes.full(entry)


def _sliders(service: Service, name: str) -> dict[str, gr.Slider]:
    ranges, sizes = slider_ranges(service.catalog.model(name)), first_sizes(service, name)
    return {
        size: gr.Slider(
            value=getattr(sizes, size),
            label=LABELS[size],
            info=_INFO[size],
            buttons=[],  # the reset button would set the first model's size
            elem_id=f"mt-{size}",
            **vars(ranges[size]),
        )
        for size in SIZES
    }


def _push_row(service: Service, folder: gr.State) -> None:
    """On a Space: push the result to the visitor's own account, with the visitor's own token."""
    with gr.Row():
        gr.LoginButton(min_width=180)
        repo = gr.Textbox(label="Repository", placeholder="name/my-pruned-model", min_width=200)
        send = gr.Button("Push to the Hub", min_width=160)
    address = gr.Markdown("")

    def push(repo: str, folder: str, token: gr.OAuthToken | None) -> str:
        if token is None:
            raise VisitorError("you are not signed in: use the sign-in button first")
        if not folder:
            raise VisitorError("there is nothing to push yet: prune a model first")
        return f"Pushed: {push_with_token(token.token, service.pruner.check_folder(folder), repo)}"

    send.click(
        show_errors(push),
        inputs=[repo, folder],
        outputs=address,
        api_visibility="private",
        concurrency_id="push",
        concurrency_limit=2,
    )

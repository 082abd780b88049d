"""Prune tab: sizes to drag, what they would leave, and the cut itself."""

from collections.abc import Iterator
from os import environ
from typing import Any

import gradio as gr

from minitron.errors import MinitronError
from minitron.space.jobs.errors import VisitorError
from minitron.space.jobs.preview import SIZES, WORDS, Sizes, steps_of
from minitron.space.jobs.pruning import push_as
from minitron.space.jobs.service import Service
from minitron.space.ui.handlers import on_gpu, told
from minitron.space.ui.pruning_cards import (
    cut_card,
    progress_card,
    recipe_card,
    result_card,
    waiting_card,
)

_FIRST_SHARE = 0.5
_INFO = {
    "hidden_size": "Width of the residual stream: every layer reads and writes it.",
    "intermediate_size": "Neurons in each layer's MLP.",
    "num_attention_heads": "Query heads in each layer; every KV group keeps equally many.",
    "num_hidden_layers": "Depth: the least important layers go.",
}
_LINK = """(model, hidden, ffn, heads, layers) => window.minitronLink({
  tab: "prune", model, hidden_size: hidden, intermediate_size: ffn, num_attention_heads: heads,
  num_hidden_layers: layers
})"""


def prune_tab(service: Service, tab: gr.Tab) -> dict[str, gr.Component]:
    """Lay it out; returns what a link may set, by its name there."""
    names = service.family.names
    first = _first_sizes(service, names[0])
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            model = gr.Dropdown(names, value=names[0], label="Model", elem_id="mt-model")
            share = gr.Slider(
                10,
                100,
                round(100 * _FIRST_SHARE),
                step=1,
                elem_id="mt-share",
                label="Parameter budget (%)",
                info="Moves both widths by one factor.",
            )
            sliders = _sliders(service, names[0], first)
            with gr.Row(elem_classes="mt-actions"):
                go = gr.Button(
                    "Prune", variant="primary", elem_id="mt-prune", scale=0, min_width=190
                )
                link = gr.Button("Copy link", scale=0, min_width=110)
        with gr.Column(scale=3, min_width=280):
            shown = gr.HTML(
                waiting_card(), elem_classes="mt-block mt-plan", elem_id="mt-cut", padding=False
            )
    result = gr.HTML("", elem_classes="mt-block", elem_id="mt-result", padding=False)
    archive = gr.File(
        label="The pruned model: a folder ready for the Hub", visible=False, elem_id="mt-zip"
    )
    folder = gr.State("")
    recipe = gr.HTML("", elem_classes="mt-block", elem_id="mt-recipe", padding=False)
    if environ.get("SPACE_ID"):
        _push_row(service, folder)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

    def plan(model: str, *sizes: float) -> tuple[str, str]:
        cut, wanted = service.cut(model, *sizes)
        length = service.measures.sequence_length(cut.member)
        return cut_card(cut), recipe_card(cut.member, wanted, length)

    def choose(model: str) -> list[Any]:
        wanted = _first_sizes(service, model)
        steps = steps_of(service.family.member(model))
        return [
            round(100 * _FIRST_SHARE),
            *(
                gr.update(
                    minimum=steps[name].least,
                    maximum=steps[name].most,
                    step=steps[name].step,
                    value=getattr(wanted, name),
                )
                for name in SIZES
            ),
        ]

    def by_share(model: str, share: float) -> list[int]:
        wanted = Sizes.of_share(service.family.member(model), share / 100)
        return [getattr(wanted, name) for name in SIZES]

    def cut(
        model: str,
        hidden_size: float,
        intermediate_size: float,
        num_attention_heads: float,
        num_hidden_layers: float,
        request: gr.Request,
    ) -> Iterator[tuple[Any, Any, Any]]:
        sizes = (hidden_size, intermediate_size, num_attention_heads, num_hidden_layers)
        done = None
        for done in service.prune(model, *sizes, visitor=request.session_hash):
            yield progress_card(done), gr.skip(), gr.skip()
        if done is None or done.archive is None:
            raise VisitorError("nothing was cut: choose smaller sizes")
        yield (
            result_card(done, service.tried(done)),
            gr.update(value=str(done.archive), visible=True),
            str(done.folder),
        )

    gr.on(
        [tab.select, *(slider.change for slider in sliders.values())],
        told(plan),
        inputs=[model, *sliders.values()],
        outputs=[shown, recipe],
        trigger_mode="always_last",
        **quiet,
    )
    model.input(told(choose), inputs=model, outputs=[share, *sliders.values()], **quiet)
    share.input(
        told(by_share),
        inputs=[model, share],
        outputs=[*sliders.values()],
        trigger_mode="always_last",
        **quiet,
    )
    go.click(
        told(on_gpu(cut)),
        inputs=[model, *sliders.values()],
        outputs=[result, archive, folder],
        concurrency_id="prune",
        concurrency_limit=1,
        **quiet,
    )
    link.click(None, inputs=[model, *sliders.values()], js=_LINK, api_visibility="private")
    return {"model": model, **sliders}


def _first_sizes(service: Service, name: str) -> Sizes:
    """About half of the parameters, or all where that has no sizes."""
    member = service.family.member(name)
    try:
        return Sizes.of_share(member, _FIRST_SHARE)
    except MinitronError:
        return Sizes.checked(member, *[None] * len(SIZES))


def _sliders(service: Service, name: str, values: Sizes) -> dict[str, gr.Slider]:
    steps = steps_of(service.family.member(name))
    return {
        size: gr.Slider(
            steps[size].least,
            steps[size].most,
            getattr(values, size),
            step=steps[size].step,
            label=WORDS[size],
            info=_INFO[size],
            elem_id=f"mt-{size}",
        )
        for size in SIZES
    }


def _push_row(service: Service, folder: gr.State) -> None:
    """On a Space: send the result to the visitor's own account, with the visitor's own token."""
    with gr.Row():
        gr.LoginButton(min_width=180)
        repo = gr.Textbox(label="Repository", placeholder="name/my-pruned-model", min_width=200)
        send = gr.Button("Push to the Hub", min_width=160)
    said = gr.Markdown("")

    def push(repo: str, place: str, token: gr.OAuthToken | None) -> str:
        if token is None:
            raise VisitorError("you are not signed in: use the button beside it first")
        if not place:
            raise VisitorError("there is nothing to push yet: prune a model first")
        url = push_as(token.token, service.workshop.place_of(place), repo)
        return f"Pushed: {url}"

    send.click(
        told(push),
        inputs=[repo, folder],
        outputs=said,
        api_visibility="private",
        concurrency_id="push",
        concurrency_limit=2,
    )

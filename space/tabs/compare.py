"""Compare tab: one prompt, several models side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from minitron.space.jobs.models import INT8, can_quantize
from minitron.space.jobs.request import MAX_NEW_TOKENS, MAX_TEMPERATURE, Settings
from minitron.space.jobs.service import Service
from minitron.space.ui.column_cards import cards, empty_cards, how_measured
from minitron.space.ui.handlers import on_gpu, told
from minitron.space.ui.html import Html

EXAMPLES = (
    "It was the best of times,",
    "The old house stood at the end of the lane, and",
    "“I do not believe you,” said the captain.",
    "When the rain had stopped, the children",
)
_LINK = """(prompt, models, tokens, temperature, top_p, seed) => window.minitronLink({
  tab: "compare", prompt, models: models.join(","), max_new_tokens: tokens, temperature, top_p, seed
})"""


def compare_tab(service: Service) -> dict[str, gr.Component]:
    """Lay it out; returns what a link may set, by its name there."""
    names = service.family.names
    chosen = names[:2]
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            prompt = gr.Textbox(
                EXAMPLES[0], label="Prompt", lines=3, max_lines=8, elem_id="mt-prompt"
            )
            with gr.Row(elem_classes="mt-examples"):
                for example in EXAMPLES[1:]:
                    button = gr.Button(example, size="sm", scale=0, min_width=60)
                    button.click(
                        lambda text=example: text,
                        outputs=prompt,
                        queue=False,
                        api_visibility="private",
                        show_progress="hidden",
                    )
        with gr.Column(scale=2, min_width=280):
            models = gr.CheckboxGroup(
                names,
                value=chosen,
                label="Models",
                elem_id="mt-models",
                info="The first is the teacher: it reads along with the others.",
            )
            with gr.Accordion("Sampling", open=False):
                tokens = gr.Slider(
                    1,
                    MAX_NEW_TOKENS,
                    96,
                    step=1,
                    label="New tokens",
                    info="At most; a model may end its text before.",
                )
                temperature = gr.Slider(
                    0,
                    MAX_TEMPERATURE,
                    0,
                    step=0.05,
                    label="Temperature",
                    info="0 takes the likeliest token every time.",
                )
                top_p = gr.Slider(
                    0.05,
                    1,
                    1,
                    step=0.05,
                    label="Top p",
                    info="Draw from the likeliest tokens that together reach this probability.",
                )
                seed = gr.Number(0, label="Seed", precision=0, minimum=0)
                int8 = gr.Checkbox(
                    False,
                    label="Also with int8 weights",
                    visible=can_quantize(),
                    info="Each model again with its layers' weights as 8-bit integers; "
                    "its full weights read along.",
                )
    with gr.Row(elem_classes="mt-actions"):
        run = gr.Button("Compare", variant="primary", elem_id="mt-run", scale=0, min_width=190)
        stop = gr.Button("Stop", interactive=False, elem_id="mt-stop", scale=0, min_width=110)
        link = gr.Button("Copy link", elem_id="mt-link", scale=0, min_width=110)
    shown = gr.HTML(
        empty_cards(chosen), elem_classes="mt-block", elem_id="mt-answers", padding=False
    )
    gr.HTML(how_measured(), elem_classes="mt-block", padding=False)

    settings = [tokens, temperature, top_p, seed]

    def compare(
        models: list[str],
        prompt: str,
        tokens: float,
        temperature: float,
        top_p: float,
        seed: float,
        int8: bool,
        request: gr.Request,
    ) -> Iterator[Html]:
        wanted = Settings.checked(tokens, temperature, top_p, seed)
        quantization = INT8 if int8 and can_quantize() else None
        visitor = request.session_hash
        for columns in service.compare(
            models, prompt, wanted, quantization=quantization, visitor=visitor
        ):
            yield cards(columns)

    def leave(request: gr.Request) -> None:
        service.stop(request.session_hash)

    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    answering = gr.on(
        [run.click, prompt.submit],
        lambda: (gr.update(interactive=False), gr.update(interactive=True)),
        outputs=[run, stop],
        queue=False,
        **quiet,
    ).then(told(on_gpu(compare)), inputs=[models, prompt, *settings, int8], outputs=shown, **quiet)
    for ended in (answering.success, answering.failure):  # `then` is left out after a mistake
        ended(
            lambda: (gr.update(interactive=True), gr.update(interactive=False)),
            outputs=[run, stop],
            queue=False,
            **quiet,
        )
    stop.click(leave, queue=False, **quiet)
    link.click(None, inputs=[prompt, models, *settings], js=_LINK, api_visibility="private")
    return {
        "prompt": prompt,
        "models": models,
        "max_new_tokens": tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
    }

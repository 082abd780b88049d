"""Compare tab: one prompt, several models side by side."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from minitron.space.jobs.comparing import Column
from minitron.space.jobs.models import INT8, can_quantize
from minitron.space.jobs.request import MAX_NEW_TOKENS, MAX_TEMPERATURE, Settings
from minitron.space.jobs.service import Service
from minitron.space.ui.cards import answer_cards, how_measured
from minitron.space.ui.handlers import on_gpu, show_errors

EXAMPLES = (  # of the kind of text that the embedded models learned: novels with dialogues
    "“Good morning, Mr. Darcy,” said Elizabeth,",
    "“Will you dance with me?” asked the young officer.",
    "Jim looked at the river and said,",
    "She took the letter from the table and",
)
_SAMPLING = Settings(max_new_tokens=96, temperature=0.7, top_p=0.9, seed=0)
_LINK = """(prompt, models, tokens, temperature, top_p, seed) => window.minitronLink({
  tab: "compare", prompt, models: models.join(","), max_new_tokens: tokens, temperature, top_p, seed
})"""
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}


def compare_tab(service: Service) -> dict[str, gr.Component]:
    """Lay out the tab; returns the components that a link may set, by their name there."""
    names = service.catalog.names
    chosen = names[:2]
    with gr.Row(equal_height=False):
        with gr.Column(scale=3, min_width=280):
            prompt = _prompt()
        with gr.Column(scale=2, min_width=280):
            models = gr.CheckboxGroup(
                names,
                value=chosen,
                label="Models",
                elem_id="mt-models",
                info=f"{names[0]} is the teacher: other answers are compared with its choices.",
            )
            settings, int8 = _sampling()
    with gr.Row(elem_classes="mt-actions"):
        run = gr.Button("Compare", variant="primary", elem_id="mt-run", scale=0, min_width=190)
        stop = gr.Button("Stop", interactive=False, elem_id="mt-stop", scale=0, min_width=110)
        link = gr.Button("Copy link", elem_id="mt-link", scale=0, min_width=110)
    answers = gr.HTML(
        answer_cards(service.columns(chosen), are_running=False),
        elem_classes="mt-block",
        elem_id="mt-answers",
        padding=False,
    )
    answered: gr.State = gr.State([])  # the columns of the last comparison
    gr.HTML(how_measured(), elem_classes="mt-block", padding=False)

    def compare(
        models: list[str],
        prompt: str,
        tokens: float,
        temperature: float,
        top_p: float,
        seed: float,
        int8: bool,
        request: gr.Request,
    ) -> Iterator[tuple[str, Any]]:
        wanted = Settings.checked(tokens, temperature, top_p, seed)
        visitor = request.session_hash
        columns: list[Column] = []
        for columns in service.compare(
            models, prompt, wanted, quantization=_quantization(int8), visitor=visitor
        ):
            yield answer_cards(columns), gr.skip()
        yield answer_cards(columns), columns

    def show_chosen(models: list[str], int8: bool, answered: list[Column]) -> str:
        answers = {column.key: column for column in answered}
        chosen = service.columns(models, _quantization(int8))
        return answer_cards([answers.get(c.key, c) for c in chosen], are_running=False)

    def stop_comparing(request: gr.Request) -> None:
        service.stop(request.session_hash)

    comparison = gr.on(
        [run.click, prompt.submit],
        lambda: (gr.update(interactive=False), gr.update(interactive=True)),
        outputs=[run, stop],
        queue=False,
        **_QUIET,
    ).then(
        show_errors(on_gpu(compare)),
        inputs=[models, prompt, *settings.values(), int8],
        outputs=[answers, answered],
        **_QUIET,
    )
    gr.on(
        [models.change, int8.change],
        show_errors(show_chosen),
        inputs=[models, int8, answered],
        outputs=answers,
        trigger_mode="always_last",
        **_QUIET,
    )
    for ended in (comparison.success, comparison.failure):  # `then` does not run after an error
        ended(
            lambda: (gr.update(interactive=True), gr.update(interactive=False)),
            outputs=[run, stop],
            queue=False,
            **_QUIET,
        )
    stop.click(stop_comparing, queue=False, **_QUIET)
    inputs = [prompt, models, *settings.values()]
    link.click(None, inputs=inputs, js=_LINK, api_visibility="private")
    return {"prompt": prompt, "models": models, **settings}


def _quantization(int8: bool) -> str | None:
    return INT8 if int8 and can_quantize() else None


def _prompt() -> gr.Textbox:
    prompt = gr.Textbox(EXAMPLES[0], label="Prompt", lines=3, max_lines=8, elem_id="mt-prompt")
    with gr.Row(elem_classes="mt-examples"):
        for example in EXAMPLES[1:]:
            button = gr.Button(example, size="sm", scale=0, min_width=60)
            button.click(lambda text=example: text, outputs=prompt, queue=False, **_QUIET)
    return prompt


def _sampling() -> tuple[dict[str, gr.Component], gr.Checkbox]:
    """The settings by their name in a link, and the choice of int8 weights."""
    with gr.Accordion("Sampling", open=False):
        settings: dict[str, gr.Component] = {
            "max_new_tokens": gr.Slider(
                1,
                MAX_NEW_TOKENS,
                _SAMPLING.max_new_tokens,
                step=1,
                label="New tokens",
                info="At most; a model may end its text earlier.",
            ),
            "temperature": gr.Slider(
                0,
                MAX_TEMPERATURE,
                _SAMPLING.temperature,
                step=0.05,
                label="Temperature",
                info="0 always chooses the most likely token.",
            ),
            "top_p": gr.Slider(
                0.05,
                1,
                _SAMPLING.top_p,
                step=0.05,
                label="Top p",
                info="Choose among the most likely tokens that together have this probability.",
            ),
            "seed": gr.Number(_SAMPLING.seed, label="Seed", precision=0, minimum=0),
        }
        int8 = gr.Checkbox(
            False,
            label="Also with int8 weights",
            visible=can_quantize(),
            info="Each model again with its layers' weights as 8-bit integers, compared with its "
            "full weights.",
        )
    return settings, int8

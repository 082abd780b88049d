"""Page: the three tabs and the endpoints, and how they are served.

serve(Family.read())
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from minitron.errors import MinitronError
from minitron.space.api import endpoints
from minitron.space.guard import Guard
from minitron.space.jobs.catalog import Family
from minitron.space.jobs.preview import SIZES, Sizes, steps_of
from minitron.space.jobs.request import Prompt, Settings
from minitron.space.jobs.service import Service
from minitron.space.tabs import evidence
from minitron.space.tabs.compare import compare_tab
from minitron.space.tabs.prune import prune_tab
from minitron.space.termination import exit_on_termination
from minitron.space.ui.html import Html, count, tag
from minitron.space.ui.theme import script, style, theme

CONCURRENT, WAITING = 8, 64  # requests at once, and in the queue
SESSIONS = 100  # whose state is kept, some 0.1 MB each; more than can be in the queue
_TABS = ("compare", "prune", "evidence")


def serve(family: Family, **options: Any) -> gr.Blocks:
    """Serve the family's page until interrupted or terminated, and remove all visitors' files.

    `options` are gradio's own of `launch`.
    """
    with exit_on_termination():
        service = Service.of(family)
        try:
            page = build(service)
            page.launch(**{**serving(), **options})
        finally:
            if not options.get("prevent_thread_lock"):  # then it has only begun
                service.close()
    return page


def serving() -> dict[str, Any]:
    """How the page is launched: its look, endpoints for models (MCP), nothing from elsewhere."""
    return {
        "theme": theme(),
        "css": style(),
        "head": script(),
        "mcp_server": find_spec("mcp") is not None,
        "footer_links": ["api"],
        "ssr_mode": False,
        "show_error": True,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {"middleware": [Middleware(Guard)]},
    }


def build(service: Service) -> gr.Blocks:
    """The page with everything on it."""
    # Gradio sums up every request there ever was after each one, with pandas: 18 ms after 10,000.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    gr.set_static_paths([service.workshop.results.place])  # served from there, and not copied
    page = gr.Blocks(title="Minitron: smaller language models", analytics_enabled=False)
    with page:
        endpoints(service)  # first, as gradio gives each name to who asks first
        gr.HTML(_head(service.family), elem_classes="mt-block", padding=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Compare", id="compare"):
                linked = compare_tab(service)
            with gr.Tab("Prune", id="prune") as prune_shown:
                linked |= prune_tab(service, prune_shown)
            with gr.Tab("Evidence", id="evidence"):
                gr.HTML(evidence.page(service.family), elem_classes="mt-block", padding=False)
        gr.HTML(_foot(), elem_classes="mt-block", padding=False)

        def from_link(request: gr.Request) -> list[Any]:
            wanted = link_values(service.family, dict(request.query_params))
            tab = wanted.pop("tab", None)
            shown = gr.skip() if tab is None else gr.Tabs(selected=tab)
            return [shown, *(wanted.get(name, gr.skip()) for name in linked)]

        def leave(request: gr.Request) -> None:
            service.leave(request.session_hash)

        page.load(
            from_link,
            outputs=[tabs, *linked.values()],
            api_visibility="private",
            show_progress="hidden",
        )
        page.unload(leave)
    page.queue(default_concurrency_limit=CONCURRENT, max_size=WAITING)
    return page


def link_values(family: Family, query: dict[str, str]) -> dict[str, Any]:
    """What a link sets; whatever means nothing is left as it is."""
    wanted: dict[str, Any] = {}

    def take(name: str, read: Callable[[str], Any]) -> None:
        if name in query:
            try:
                wanted[name] = read(query[name])
            except (MinitronError, ValueError):
                return

    def setting(name: str) -> Callable[[str], Any]:
        return lambda text: getattr(_settings(**{name: float(text)}), name)

    if query.get("tab") in _TABS:
        wanted["tab"] = query["tab"]
    take("prompt", lambda text: Prompt.checked(text).text)
    take("models", lambda text: [family.member(name).name for name in text.split(",")])
    for name in ("max_new_tokens", "temperature", "top_p", "seed"):
        take(name, setting(name))
    take("model", lambda text: family.member(text).name)
    wanted.update(_sizes(family, wanted.get("model", family.names[0]), query))
    return wanted


def _settings(**given: float) -> Settings:
    values: dict[str, Any] = {**vars(Settings()), **given}
    return Settings.checked(**values)


def _sizes(family: Family, name: str, query: dict[str, str]) -> dict[str, Any]:
    """The sliders of a model, at the sizes that a link names."""
    if not {"model", *SIZES} & query.keys():
        return {}
    member = family.member(name)
    try:
        given = [float(query[size]) if size in query else None for size in SIZES]
        sizes = Sizes.checked(member, *given)
    except (MinitronError, ValueError):
        sizes = Sizes.checked(member, *[None] * len(SIZES))
    steps = steps_of(member)
    return {
        size: gr.update(
            minimum=steps[size].least,
            maximum=steps[size].most,
            step=steps[size].step,
            value=getattr(sizes, size),
        )
        for size in SIZES
    }


def _head(family: Family) -> Html:
    square = {"rx": 5, "stroke_width": 2}
    logo = tag(
        "svg",
        tag("rect", x=3, y=3, width=46, height=46, class_="mt-logo-big", **square),
        tag("rect", x=23, y=23, width=21, height=21, rx=3, class_="mt-logo-small"),
        viewBox="0 0 52 52",
        aria_hidden="true",
    )
    chips = (
        tag(
            "span",
            tag("b", member.name),
            count(member.inspection.parameters),
            class_="mt-chip",
            title=f"{member.inspection.parameters:,} parameters, embeddings included",
        )
        for member in family.members
    )
    told = (
        "A language model, cut to a fraction of its size by what matters in it. Compare the "
        "family, cut one yourself, see what was measured."
    )
    return tag(
        "div",
        logo,
        tag("div", tag("h1", "Minitron"), tag("p", told)),
        tag("div", *chips, class_="mt-family"),
        class_="mt-head",
    )


def _foot() -> Html:
    return tag(
        "p",
        "Method: ",
        tag("a", "arXiv 2407.14679", href="https://arxiv.org/abs/2407.14679"),
        " and ",
        tag("a", "2408.11796", href="https://arxiv.org/abs/2408.11796"),
        " · On your own machine: ",
        tag("code", "minitron demo"),
        class_="mt-foot",
    )

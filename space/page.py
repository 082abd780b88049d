"""Page: the three tabs and the endpoints, and how they are served.

serve(Catalog.read())
"""

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from minitron.errors import MinitronError
from minitron.space.api import add_endpoints
from minitron.space.guard import RequestGuard
from minitron.space.jobs.catalog import Catalog
from minitron.space.jobs.preview import SIZES, Sizes
from minitron.space.jobs.process import exit_on_termination
from minitron.space.jobs.request import Prompt, Settings, whole
from minitron.space.jobs.service import Service
from minitron.space.tabs.compare import compare_tab
from minitron.space.tabs.evidence import evidence_tab
from minitron.space.tabs.prune import first_sizes, prune_tab, slider_updates
from minitron.space.ui.html import render
from minitron.space.ui.theme import script, style, theme

CONCURRENT, WAITING = 8, 64  # requests at once, and in the queue
SESSIONS = 100  # whose state is kept, some 0.1 MB each; more than can be in the queue
_TABS = ("compare", "prune", "evidence")


def serve(catalog: Catalog, **options: Any) -> gr.Blocks:
    """Serve the page until interrupted or terminated, then remove all visitors' files.

    `options` are those of gradio's `launch`.
    """
    with exit_on_termination():
        service = Service.create(catalog)
        try:
            page = build(service)
            page.launch(**{**launch_options(), **options})
        finally:
            if not options.get("prevent_thread_lock"):  # then `launch` returns at once
                service.close()
    return page


def launch_options() -> dict[str, Any]:
    """The look, endpoints for MCP, bounds; nothing is fetched from elsewhere."""
    return {
        "theme": theme(),
        "css": style(),
        "head": script(),
        "mcp_server": find_spec("mcp") is not None,
        "footer_links": ["api"],
        "ssr_mode": False,
        "show_error": True,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {"middleware": [Middleware(RequestGuard)]},
    }


def build(service: Service) -> gr.Blocks:
    """The page with all tabs."""
    # After each request gradio sums up all requests so far with pandas: 18 ms after 10,000.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(10**9))
    gr.set_static_paths([service.pruner.results.root])  # served from there, without a copy
    page = gr.Blocks(title="Minitron: smaller language models", analytics_enabled=False)
    with page:
        add_endpoints(service)  # first, as gradio gives a name to the function that asks first
        models = [(model.name, model.inspection.parameters) for model in service.catalog.models]
        gr.HTML(render("head", models=models), elem_classes="mt-block", padding=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Compare", id="compare"):
                linked = compare_tab(service)
            with gr.Tab("Prune", id="prune") as tab:
                linked |= prune_tab(service, tab)
            with gr.Tab("Evidence", id="evidence"):
                evidence = evidence_tab(service.catalog)
                gr.HTML(evidence, elem_classes="mt-block", padding=False)
        gr.HTML(render("foot"), elem_classes="mt-block", padding=False)

        def apply_link(request: gr.Request) -> list[Any]:
            values, refused = link_values(service, dict(request.query_params))
            if refused:
                gr.Warning(f"Not valid here, so this link does not set: {', '.join(refused)}.")
            return [values.get("tab"), *(values.get(name, gr.skip()) for name in linked)]

        def select_tab(name: str | None) -> Any:
            return gr.skip() if name is None else gr.Tabs(selected=name)

        def leave(request: gr.Request) -> None:
            service.leave(request.session_hash)

        tab_of_link = gr.State(None)
        quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        # The tab last: showing it makes its preview, from the values that the components then have.
        page.load(apply_link, outputs=[tab_of_link, *linked.values()], **quiet).then(
            select_tab, inputs=tab_of_link, outputs=tabs, **quiet
        )
        page.unload(leave)
    page.queue(default_concurrency_limit=CONCURRENT, max_size=WAITING)
    return page


def link_values(service: Service, query: dict[str, str]) -> tuple[dict[str, Any], list[str]]:
    """The values that a link sets, and the names of those that the Space refuses."""
    catalog = service.catalog
    values: dict[str, Any] = {}
    refused: list[str] = []

    def read(name: str, parse: Callable[[str], Any], into: dict[str, Any] = values) -> None:
        if name in query:
            try:
                into[name] = parse(query[name])
            except (MinitronError, ValueError):
                refused.append(name)

    def setting(name: str) -> Callable[[str], Any]:
        return lambda text: getattr(_settings(**{name: float(text)}), name)

    def size(name: str, most: int) -> Callable[[str], int]:
        return lambda text: whole(float(text), name, 1, most)

    if query.get("tab") in _TABS:
        values["tab"] = query["tab"]
    read("prompt", lambda text: Prompt.checked(text).text)
    read("models", lambda text: [catalog.model(name).name for name in text.split(",")])
    for name in ("max_new_tokens", "temperature", "top_p", "seed"):
        read(name, setting(name))
    read("model", lambda text: catalog.model(text).name)
    if "model" in refused or not {"model", *SIZES} & query.keys():
        return values, refused
    model = values.get("model", catalog.names[0])
    full, half = Sizes.full(catalog.model(model)), first_sizes(service, model)
    sizes = vars(full if query.keys() & SIZES else half)  # an unnamed size is whole
    for name in SIZES:
        read(name, size(name, sizes[name]), sizes)
    return values | slider_updates(service, model, Sizes(**sizes)), refused


def _settings(**given: float) -> Settings:
    values: dict[str, Any] = {**vars(Settings()), **given}
    return Settings.checked(**values)

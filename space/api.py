"""API: the named endpoints of the Space, with the same checks as the page.

from gradio_client import Client
Client("http://127.0.0.1:7860").predict("tiny", "It was", 16, 0.0, 1.0, 0, api_name="/generate")
"""

import inspect
import json
from typing import Any

import gradio as gr
from gradio.events import api

from minitron.space.jobs.comparing import MEASURED
from minitron.space.jobs.preview import SIZES
from minitron.space.jobs.request import Settings
from minitron.space.jobs.service import Service
from minitron.space.ui.handlers import Handler, on_gpu, show_errors


def _on_one_line(run: Handler) -> Handler:
    """`run` with what it returns on one line: gradio joins lines with commas for tools."""
    before, mark, returns = inspect.cleandoc(run.__doc__ or "").partition("Returns:\n")
    run.__doc__ = f"{before}{mark}    {' '.join(returns.split())}"
    return run


def add_endpoints(service: Service) -> None:
    """Add /generate, /compare, /plan and /prune to the page."""

    def generate(
        model: str,
        prompt: str,
        max_new_tokens: int = 96,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Continue a prompt with one model of this Space.

        Args:
            model: A model's name, as /compare and the page show it.
            prompt: Text to continue; the text of special tokens is text.
            max_new_tokens: Tokens to generate at most, 1 to 256.
            temperature: 0 chooses the most likely token; up to 5 samples more randomly.
            top_p: Sample among the most likely tokens that together have this probability.
            seed: Seed of sampling; equal requests return equal texts.

        Returns:
            The text that follows the prompt, without the prompt.
        """
        text, notices = service.generate(model, prompt, max_new_tokens, temperature, top_p, seed)
        for notice in notices:
            gr.Warning(notice)
        return text

    def compare(
        models: list[str],
        prompt: str,
        max_new_tokens: int = 96,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> dict[str, Any]:
        """Continue one prompt with several models, each compared with its teacher.

        Args:
            models: Names of one to four models.
            prompt: Text to continue.
            max_new_tokens: Tokens to generate at most, 1 to 256.
            temperature: 0 chooses the most likely token; up to 5 samples more randomly.
            top_p: Sample among the most likely tokens that together have this probability.
            seed: Seed of sampling.

        Returns:
            `columns`, one a model: text, tokens, tokens_per_second, seconds_to_first_token,
            parameters, weight_bytes, kv_cache_bytes_per_token, agreement_with_teacher (0 to 1),
            differences; and `measured`, how each number is measured.
        """
        settings = Settings.checked(max_new_tokens, temperature, top_p, seed)
        *_, columns = service.compare(models, prompt, settings)
        return {
            "columns": [column.to_json() for column in columns],
            "measured": MEASURED,
        }

    def plan(
        model: str,
        hidden_size: int | None = None,
        intermediate_size: int | None = None,
        num_attention_heads: int | None = None,
        num_hidden_layers: int | None = None,
    ) -> dict[str, Any]:
        """Preview a model at smaller sizes; nothing is pruned.

        Args:
            model: A model's name.
            hidden_size: Width of the residual stream to keep; null keeps all of it.
            intermediate_size: Neurons of each MLP to keep; null keeps all.
            num_attention_heads: Query heads of each layer to keep; null keeps all.
            num_hidden_layers: Layers to keep; null keeps all.

        Returns:
            The keys of `minitron inspect --json`, share_of_importance_kept by axis (0 to 1),
            tokens_per_second_estimated (null where this machine is too busy to time it), kept
            indices, and `before`, the same of the full model.
        """
        return service.plan(
            model, hidden_size, intermediate_size, num_attention_heads, num_hidden_layers
        )

    api(show_errors(on_gpu(_on_one_line(generate))), api_name="generate")
    api(show_errors(on_gpu(_on_one_line(compare))), api_name="compare")
    api(show_errors(_on_one_line(plan)), api_name="plan")
    _prune_endpoint(service)


def _prune_endpoint(service: Service) -> None:
    """Hidden components, as gradio returns a file through a component only."""
    model = gr.Textbox(visible=False, label="model")
    sizes = [gr.Number(None, visible=False, label=name) for name in SIZES]
    archive, record = gr.File(visible=False, label="zip"), gr.JSON(visible=False, label="record")

    def prune(
        model: str,
        hidden_size: float | None = None,
        intermediate_size: float | None = None,
        num_attention_heads: float | None = None,
        num_hidden_layers: float | None = None,
        request: gr.Request | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """Prune a model to smaller sizes by importance, and evaluate it.

        Args:
            model: A model's name.
            hidden_size: Width of the residual stream to keep; null keeps all of it.
            intermediate_size: Neurons of each MLP to keep; null keeps all.
            num_attention_heads: Query heads of each layer to keep; null keeps all.
            num_hidden_layers: Layers to keep; null keeps all.

        Returns:
            A zip of the Hub folder, and sizes and losses before and after.
        """
        sizes = (hidden_size, intermediate_size, num_attention_heads, num_hidden_layers)
        visitor = request.session_hash if request else None
        *_, result = service.prune(model, *sizes, visitor=visitor)
        return str(result.archive), json.loads(json.dumps(result.to_json()))

    gr.Button(visible=False).click(
        show_errors(on_gpu(_on_one_line(prune))),
        inputs=[model, *sizes],
        outputs=[archive, record],
        api_name="prune",
        concurrency_id="prune",
        concurrency_limit=1,
    )

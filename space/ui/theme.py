"""Theme: colours, fonts, style sheet and script of the page; none is fetched from elsewhere."""

from pathlib import Path

import gradio as gr
from gradio.themes.utils.colors import Color

_HERE = Path(__file__).parent

FERN = Color(
    name="fern",
    c50="#eef7f1", c100="#d6ecdd", c200="#aedabd", c300="#7fc197", c400="#4da272",
    c500="#2b8557", c600="#1d6b45", c700="#185638", c800="#15452f", c900="#113927", c950="#082017",
)  # fmt: skip
STONE = Color(
    name="paper",
    c50="#faf9f6", c100="#f2f0ea", c200="#e4e1d8", c300="#cdc9bd", c400="#a19d91",
    c500="#77746a", c600="#5a584f", c700="#403f39", c800="#26261f", c900="#191a16", c950="#101210",
)  # fmt: skip
SANS = ("ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")


def theme() -> gr.themes.Base:
    """Light and dark, on gradio's base theme."""
    base = gr.themes.Base(
        primary_hue=FERN,
        secondary_hue=FERN,
        neutral_hue=STONE,
        font=list(SANS),
        font_mono=list(MONO),
        radius_size=gr.themes.sizes.radius_md,
    )
    return base.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_border_color="*neutral_200",
        block_border_color_dark="*neutral_800",
        block_label_text_color="*neutral_600",
        block_label_text_color_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_400",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        block_title_text_weight="600",
        block_shadow="none",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_500",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
        button_secondary_background_fill="*neutral_100",
        button_secondary_background_fill_hover="*neutral_200",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_large_padding="*spacing_sm *spacing_xl",
        button_large_text_size="*text_md",
        input_background_fill="*neutral_100",
        input_background_fill_dark="*neutral_800",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
    )


def style() -> str:
    """The style sheet."""
    return (_HERE / "style.css").read_text(encoding="utf-8")


def script() -> str:
    """The page's script: copies texts and shows the hint of a marked token."""
    return f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>"

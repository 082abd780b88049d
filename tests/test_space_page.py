"""The page in a real browser: what a visitor sees, on a desktop and on a phone, light and dark."""

import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio")
playwright = pytest.importorskip("playwright.sync_api")

from tests.space_visitor import (  # noqa: E402
    CHROMIUM,
    QUIET_BROWSER,
    RunningSpace,
    running_space,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which(CHROMIUM) is None, reason=f"{CHROMIUM} is not installed"),
]

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
PATIENCE = 60_000  # milliseconds
RULES = (Path(__file__).parent / "page_rules.js").read_text(encoding="utf-8")
COVERED_DOTS = """[...document.querySelectorAll('.mt-plot-track')].flatMap(track => {
    const at = [...track.querySelectorAll('.mt-plot-dot')].map(dot => dot.getBoundingClientRect());
    const apart = (a, b) => Math.hypot(a.x - b.x, a.y - b.y) / a.width;
    return at.filter((a, i) => at.slice(i + 1).some(b => apart(a, b) < 0.9));
}).length"""
COVERED_LABELS = """[...document.querySelectorAll('.mt-change:has(.mt-values)')].filter(row => {
    const label = row.querySelector('.mt-label').getBoundingClientRect();
    const values = [...row.querySelectorAll('.mt-values > *')];
    for (const value of values) value.textContent = '1234 tokens/s';
    return values.some(value => value.getBoundingClientRect().x < label.right);
}).length"""
TWINS = "[{name: tiny, source: tiny}, {name: tiny-twin, source: tiny}]"


@dataclass
class Visit:
    """A page, and what its browser complained of or asked others for."""

    page: Any
    complaints: list[str] = field(default_factory=list)

    def answers(self) -> Any:
        return self.page.locator("#mt-answers .mt-card")

    def compare(self) -> None:
        self.page.click("#mt-run")
        self.page.wait_for_selector("#mt-answers .mt-card[data-state]", timeout=PATIENCE)

    def wait_for_answers(self) -> None:
        self.page.wait_for_function(
            "() => { const all = [...document.querySelectorAll('#mt-answers .mt-card')];"
            " return all.length && all.every(card => card.dataset.state === 'done') }",
            timeout=PATIENCE,
        )

    def wait_for_temperature(self, value: str) -> None:
        """Open Sampling and wait until a link's temperature is there."""
        self.page.get_by_text("Sampling").click()
        temperature = self.page.get_by_label("number input for Temperature")
        playwright.expect(temperature).to_have_value(value, timeout=PATIENCE)

    def show_prune(self) -> None:
        self.page.get_by_role("tab", name="Prune").click()
        self.page.wait_for_selector("#mt-cut .mt-maps", timeout=PATIENCE)

    def number(self, slider: str) -> Any:
        return self.page.locator(f"#{slider} input[type=number]")

    def type_number(self, slider: str, text: str) -> None:
        self.number(slider).fill(text)
        self.page.keyboard.press("Tab")

    def check_rules(self) -> None:
        """Contrast, labels and width, with all that is folded unfolded."""
        self.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        self.page.mouse.move(0, 0)
        self.page.wait_for_timeout(250)  # colours of buttons change slowly
        assert self.page.evaluate(RULES) == []


@pytest.fixture(scope="module")
def space(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSpace]:
    place = tmp_path_factory.mktemp("space")
    with running_space(place, MINITRON_SPACE_MODELS=TWINS) as running:
        yield running


@pytest.fixture(scope="module")
def whole_zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningSpace]:
    with running_space(tmp_path_factory.mktemp("zoo"), MINITRON_SPACE_MODELS="") as running:
        yield running


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=list(QUIET_BROWSER))
        yield browser
        browser.close()


@pytest.fixture
def visit(space: RunningSpace, browser: Any) -> Iterator[Visit]:
    yield from visiting(space, browser, DESKTOP, "light")


def visiting(
    space: RunningSpace, browser: Any, viewport: dict[str, int], scheme: str, query: str = ""
) -> Iterator[Visit]:
    """A visit; at its end nothing was complained of and nobody else was asked for anything."""
    context = browser.new_context(viewport=viewport, color_scheme=scheme, accept_downloads=True)
    visit = Visit(context.new_page())
    own = (space.url, "data:", "blob:")

    def heard(message: Any) -> None:
        if message.type == "error":
            visit.complaints.append(message.text)

    def asked(request: Any) -> None:
        if not request.url.startswith(own):
            visit.complaints.append(f"asked for {request.url}")

    visit.page.on("console", heard)
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("request", asked)
    visit.page.goto(space.url + query)
    # A link may choose another tab, which hides it.
    state: Any = "attached" if query else "visible"
    visit.page.wait_for_selector("#mt-run", timeout=PATIENCE, state=state)
    yield visit
    assert visit.complaints == []
    context.close()


def test_two_columns_grow_and_end_with_their_numbers(space: RunningSpace, browser: Any) -> None:
    for visit in visiting(space, browser, DESKTOP, "light", "?temperature=0"):
        visit.wait_for_temperature("0")
        visit.compare()
        heights = visit.page.evaluate("document.querySelector('#mt-answers').offsetHeight")
        visit.wait_for_answers()
        assert visit.answers().count() == 2
        assert visit.page.evaluate("document.querySelector('#mt-answers').offsetHeight") == heights
        shown = stats(visit.answers().nth(1))
        assert shown["agreement"] == "100 %"
        assert shown["parameters"] == "6.72 M"
        for stat in visit.page.locator("#mt-answers .mt-stat").all():
            assert stat.get_attribute("title")


def stats(card: Any) -> dict[str, str]:
    """The numbers of an answer by their names."""
    rows = zip(card.locator("dt").all(), card.locator("dd").all(), strict=True)
    return {name.inner_text(): value.inner_text() for name, value in rows}


def known_stats(card: Any) -> dict[str, str]:
    """The numbers that are known before a comparison."""
    known = {name: stats(card)[name] for name in ("parameters", "weights", "KV / token")}
    assert all(value[0].isdigit() for value in known.values())
    return known


def test_stop_ends_a_text_early(visit: Visit) -> None:
    visit.page.get_by_text("Sampling").click()
    visit.page.get_by_label("number input for New tokens").fill("256")
    visit.page.keyboard.press("Tab")
    visit.compare()
    visit.page.wait_for_function(
        "() => document.querySelector('#mt-answers .mt-text').innerText.length > 20"
    )
    visit.page.click("#mt-stop")
    visit.wait_for_answers()
    words = visit.answers().first.locator(".mt-text").inner_text()
    assert 0 < len(words) < 900
    visit.page.wait_for_selector("#mt-run:enabled")


def test_int8_weights_are_shown_with_speed_memory_and_agreement(
    space: RunningSpace, browser: Any
) -> None:
    pytest.importorskip("optimum.quanto")
    for visit in visiting(space, browser, DESKTOP, "light", "?temperature=0"):
        visit.wait_for_temperature("0")
        visit.page.get_by_label("Also with int8 weights").check()
        playwright.expect(visit.answers()).to_have_count(4)
        visit.compare()
        visit.wait_for_answers()
        assert visit.answers().count() == 4
        full, integers = (
            stats(visit.page.locator(f'#mt-answers .mt-card[data-model="{model}"]'))
            for model in ("tiny", "tiny · int8")
        )
        assert float(integers["tokens / s"]) > 0
        assert integers["weights"].endswith(" MB")
        assert float(integers["weights"][:-3]) < float(full["weights"][:-3])
        assert integers["parameters"] == full["parameters"] == "6.72 M"
        assert int(integers["agreement"].rstrip(" %").partition(".")[0]) > 50
        assert full["agreement"] == "–"


def test_the_zoo_is_compared_pruned_and_shown(whole_zoo: RunningSpace, browser: Any) -> None:
    for visit in visiting(whole_zoo, browser, DESKTOP, "light"):
        assert visit.answers().count() == 2
        visit.compare()
        visit.wait_for_answers()
        shown = [visit.answers().nth(at).get_attribute("data-model") for at in range(2)]
        assert shown == ["tiny", "tiny-half"]
        visit.show_prune()
        visit.page.get_by_label("Model", exact=True).first.click()
        offered = visit.page.get_by_role("option").all_inner_texts()
        assert [name.strip("✓ \n") for name in offered] == ["tiny", "tiny-half", "tiny-quarter"]
        visit.page.keyboard.press("Escape")
        visit.page.get_by_role("tab", name="Evidence").click()
        dots = visit.page.locator(".mt-evidence", has_text="Loss against parameters")
        for name in ("tiny", "tiny-half", "tiny-quarter"):
            playwright.expect(dots.first.get_by_text(name, exact=True)).to_be_visible()


def test_boxes_of_answers_show_whole_lines_and_their_end(visit: Visit) -> None:
    visit.page.get_by_text("Sampling").click()
    visit.page.get_by_label("number input for New tokens").fill("256")
    visit.page.keyboard.press("Tab")
    visit.compare()
    visit.wait_for_answers()
    assert whole_lines_above(visit.answers().first.locator(".mt-text")) >= 1
    visit.page.get_by_label("tiny-twin").uncheck()  # keeps the other answer
    playwright.expect(visit.answers()).to_have_count(1)
    assert len(visit.answers().first.locator(".mt-text").inner_text()) > 200
    visit.page.get_by_label("tiny-twin").check()
    playwright.expect(visit.answers()).to_have_count(2)
    first, second = (known_stats(card) for card in visit.answers().all())
    assert first == second


def whole_lines_above(box: Any) -> int:
    """How many lines are scrolled away; none is cut, and the text's end is shown."""
    measured = """box => {
        const line = parseFloat(getComputedStyle(box).lineHeight);
        return [box.clientHeight / line, box.scrollTop / line, box.scrollTop + box.clientHeight
                - box.scrollHeight] }"""
    lines, above, below = box.evaluate(measured)
    assert lines == pytest.approx(round(lines), abs=0.05)
    assert above == pytest.approx(round(above), abs=0.05)
    assert abs(below) <= 1
    return round(above)


def test_an_error_is_shown_and_the_page_works_on(visit: Visit) -> None:
    visit.page.locator("#mt-prompt textarea").fill("")
    visit.page.click("#mt-run")
    visit.page.get_by_text("the prompt is empty").wait_for(timeout=PATIENCE)
    visit.page.locator("#mt-prompt textarea").fill("It was")
    visit.compare()
    visit.wait_for_answers()


def test_the_keyboard_alone_compares(visit: Visit) -> None:
    visit.page.locator("#mt-prompt textarea").focus()
    visit.page.keyboard.press("Shift+Enter")
    visit.page.wait_for_selector("#mt-answers .mt-card[data-state]", timeout=PATIENCE)
    visit.wait_for_answers()
    visit.page.locator("#mt-answers .mt-copy").first.focus()
    visit.page.keyboard.press("Enter")
    visit.page.get_by_text("Copied").wait_for()


def test_sliders_change_the_numbers_and_the_map(visit: Visit) -> None:
    visit.show_prune()
    numbers = visit.page.locator("#mt-cut .mt-changes")
    before, drawn = numbers.inner_text(), visit.page.locator("#mt-cut svg").nth(3).inner_html()
    visit.page.locator("#mt-num_hidden_layers input[type=number]").fill("4")
    visit.page.keyboard.press("Tab")
    playwright.expect(numbers).not_to_have_text(before)
    visit.page.wait_for_function(
        "before => document.querySelector('[data-name=Parameters]').innerText !== before",
        arg=before,
    )
    visit.page.get_by_text("4 of 6 kept").wait_for()
    assert visit.page.locator("#mt-cut svg").nth(3).inner_html() != drawn
    assert "--num-hidden-layers 4" in visit.page.locator("#mt-command").inner_text()


def test_a_budget_moves_both_widths(visit: Visit) -> None:
    visit.show_prune()
    hidden = visit.page.locator("#mt-hidden_size input[type=number]")
    before = hidden.input_value()
    visit.page.locator("#mt-share input[type=number]").fill("30")
    visit.page.keyboard.press("Tab")
    playwright.expect(hidden).not_to_have_value(before)
    assert int(hidden.input_value()) < int(before)


def test_a_link_opens_the_page_for_programs(space: RunningSpace, browser: Any) -> None:
    for visit in visiting(space, browser, DESKTOP, "light", "?view=api"):
        playwright.expect(visit.page.locator(".api-docs")).to_be_visible(timeout=PATIENCE)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_what_the_prune_tab_shows_belongs_to_what_is_chosen(
    viewport: dict[str, int], scheme: str, whole_zoo: RunningSpace, browser: Any
) -> None:
    for visit in visiting(whole_zoo, browser, viewport, scheme):
        page = visit.page
        visit.show_prune()
        # Another model: the old one's figures are marked until the new ones are there.
        page.evaluate(
            "new MutationObserver(() => { const old = document.querySelector('.mt-stale');"
            " if (old) window.note = old.dataset.note })"
            ".observe(document.body, {subtree: true, attributes: true})"
        )
        for name in ("tiny-quarter", "tiny", "tiny-half"):  # without a wait
            page.get_by_label("Model", exact=True).first.click()
            page.get_by_role("option", name=name, exact=True).click()
        command = page.locator("#mt-command")
        playwright.expect(command).to_contain_text("minitron prune tiny-half ", timeout=PATIENCE)
        assert page.evaluate("window.note") == "Measuring tiny-half, once …"
        playwright.expect(page.locator(".mt-stale")).to_have_count(0)
        # Budget and sizes: each follows the other; heads move by whole groups.
        visit.type_number("mt-num_attention_heads", "3")
        playwright.expect(visit.number("mt-num_attention_heads")).to_have_value("4")
        ratio = page.locator("[data-name=Parameters] .mt-ratio")
        page.wait_for_function(
            "() => document.querySelector('[data-name=Parameters] .mt-ratio').innerText"
            " === '×0.' + document.querySelector('#mt-share input[type=number]').value"
        )
        visit.type_number("mt-share", "30")
        playwright.expect(ratio).to_have_text("×0.30")
        playwright.expect(visit.number("mt-num_attention_heads")).to_have_value("6")
        playwright.expect(visit.number("mt-share")).to_have_value("30")
        # All bars have one length, and no flag is broken.
        widths = page.evaluate(
            "[...document.querySelectorAll('#mt-cut .mt-bar')].map(bar => bar.offsetWidth)"
        )
        assert len(set(widths)) == 1
        lines = page.evaluate(
            "[...document.querySelectorAll('#mt-command span')].map(part => part.offsetHeight)"
        )
        assert len(set(lines)) == 1
        assert page.evaluate(COVERED_LABELS) == 0
        # Pruning: the button shows its state, and the result comes into view.
        button, result = page.locator("#mt-prune"), page.locator("#mt-result")
        button.click()
        playwright.expect(button).to_have_text("Pruning …")
        playwright.expect(button).to_be_disabled()
        page.wait_for_selector("#mt-result [data-state=done]", timeout=PATIENCE)
        playwright.expect(button).to_have_text("Prune")
        playwright.expect(button).to_be_enabled()
        playwright.expect(result).to_be_in_viewport(ratio=0.3)
        playwright.expect(page.locator("#mt-zip")).to_contain_text(" MB")
        command = page.locator("#mt-next")
        playwright.expect(command).to_contain_text("--teacher tiny-half --corpus self")
        # Distilling: shown as it proceeds, stopped, and the model writes before and after.
        page.click("#mt-distill")
        playwright.expect(page.locator("#mt-distill")).to_be_disabled()
        page.wait_for_selector("#mt-lesson .mt-dot", timeout=PATIENCE)
        playwright.expect(page.locator("#mt-lesson")).to_be_in_viewport(ratio=0.3)
        page.get_by_text("Distilling: step").wait_for(timeout=PATIENCE)
        # The result of before is marked; the next one stops the distillation and marks it, too.
        assert page.locator(".mt-other").count() == 0
        visit.type_number("mt-share", "60")
        playwright.expect(page.locator("#mt-result .mt-other")).to_have_count(1, timeout=PATIENCE)
        if viewport is DESKTOP:
            button.click()
            page.wait_for_selector("#mt-result [data-state=done]", timeout=PATIENCE)
            playwright.expect(page.locator("#mt-result .mt-other")).to_have_count(0)
        else:
            page.click("#mt-distill-stop")
        page.wait_for_selector("#mt-lesson [data-state=done]", timeout=PATIENCE)
        others = page.locator("#mt-lesson .mt-other")
        playwright.expect(others).to_have_count(1 if viewport is DESKTOP else 0)
        playwright.expect(page.locator("#mt-lesson .mt-text")).to_have_count(2)
        playwright.expect(page.locator("#mt-distill")).to_be_enabled()
        visit.check_rules()


def test_prune_gives_a_folder_that_loads_in_transformers(visit: Visit, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    visit.show_prune()
    visit.page.click("#mt-prune")
    visit.page.wait_for_selector("#mt-result [data-state=done]", timeout=PATIENCE)
    assert "Perplexity" in visit.page.locator("#mt-result").inner_text()
    with visit.page.expect_download(timeout=PATIENCE) as download:
        visit.page.click("#mt-zip")
    download.value.save_as(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as file:
        file.extractall(tmp_path / "model")
    (folder,) = (tmp_path / "model").iterdir()
    model = AutoModelForCausalLM.from_pretrained(folder)
    shown = visit.page.locator("#mt-result tr", has_text="Parameters").inner_text()
    assert f"{model.num_parameters():,}" in shown


def test_a_link_carries_the_settings(space: RunningSpace, browser: Any) -> None:
    query = (
        "?prompt=Call+me&models=tiny-twin&temperature=0.5&seed=7&max_new_tokens=9&top_p=nonsense"
    )
    for visit in visiting(space, browser, DESKTOP, "light", query):
        prompt = visit.page.locator("#mt-prompt textarea")
        playwright.expect(prompt).to_have_value("Call me")
        visit.compare()
        visit.wait_for_answers()
        assert visit.answers().count() == 1
        visit.page.evaluate(
            "navigator.clipboard.writeText = async text => { window.copied = text }"
        )
        visit.page.click("#mt-link")
        visit.page.wait_for_function("() => window.copied")
        copied = visit.page.evaluate("window.copied")
        assert re.search(
            r"prompt=Call\+me&models=tiny-twin&max_new_tokens=9&temperature=0.5", copied
        )


def test_a_size_beyond_its_slider_is_replaced_everywhere_and_a_link_keeps_its_sizes(
    whole_zoo: RunningSpace, browser: Any
) -> None:
    query = "?tab=prune&model=tiny-half&hidden_size=300&num_attention_heads=4&num_hidden_layers=3"
    for visit in visiting(whole_zoo, browser, DESKTOP, "light", query):
        command, toast = visit.page.locator("#mt-command"), visit.page.locator(".toast-body")
        playwright.expect(command).to_contain_text("--num-hidden-layers 3", timeout=PATIENCE)
        playwright.expect(command).to_contain_text("--num-attention-heads 4")
        playwright.expect(toast).to_have_count(1)  # no error beside it
        playwright.expect(toast).to_contain_text("this link does not set: hidden_size")
        for name, value in (("num_attention_heads", "4"), ("num_hidden_layers", "3")):
            playwright.expect(visit.number(f"mt-{name}")).to_have_value(value)
        visit.number("mt-num_hidden_layers").fill("99")
        visit.page.keyboard.press("Enter")
        playwright.expect(command).not_to_contain_text("--num-hidden-layers")
        visit.page.keyboard.press("Tab")
        playwright.expect(visit.number("mt-num_hidden_layers")).to_have_value("5")
        resets = visit.page.locator("#mt-share button, #mt-num_hidden_layers button")
        playwright.expect(resets).to_have_count(0)
        # Typed key by key: the budget that follows from "3" is not put before the "0".
        budget = visit.number("mt-share")
        budget.press("Control+A")
        visit.page.keyboard.type("30", delay=200)
        visit.page.keyboard.press("Tab")
        playwright.expect(command).to_contain_text("tiny-half-h72-f232-a6-l5")
        budget.fill("")  # an empty box is no number: the last one stays
        visit.page.keyboard.press("Tab")
        playwright.expect(budget).to_have_value("30")
        playwright.expect(toast).to_have_count(1)


def test_a_page_that_breaks_the_rules_is_found(browser: Any) -> None:
    page = browser.new_page(viewport=PHONE)
    page.set_content(
        '<body style="background:#fff"><p style="color:#888">Pale</p>'
        '<p style="color:#767676">Read</p><p style="opacity:.5">Faint</p>'
        "<button></button><label>Name<input></label>"
        '<div style="width:500px;background:#222"><a href="#" style="color:#555">Link</a></div>'
    )
    broken = page.evaluate(RULES)
    page.close()
    assert [rule.partition(":")[0] for rule in broken] == [
        "contrast 3.54",
        "contrast 3.98",
        "contrast 2.13",
        "no label",
        "the page is 508 pixels wide",
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("name", "viewport"), [("desktop", DESKTOP), ("phone", PHONE)])
def test_every_tab_can_be_read_and_its_picture_is_taken(
    name: str,
    viewport: dict[str, int],
    scheme: str,
    whole_zoo: RunningSpace,
    browser: Any,
    tmp_path: Path,
) -> None:
    """Into MINITRON_SPACE_PICTURES, for README, where that names a folder."""
    place = Path(os.environ.get("MINITRON_SPACE_PICTURES") or tmp_path)

    def look(visit: Visit, tab: str) -> None:
        visit.page.mouse.move(0, 0)
        path = place / f"{tab}-{name}-{scheme}.png"
        visit.page.screenshot(path=path, full_page=True)
        assert path.stat().st_size > 10_000
        visit.check_rules()

    for visit in visiting(whole_zoo, browser, viewport, scheme):
        visit.page.get_by_text("Sampling").click()
        visit.check_rules()
        visit.page.get_by_text("Sampling").click()
        before = [known_stats(card) for card in visit.answers().all()]
        assert [shown["parameters"] for shown in before] == ["6.72 M", "3.45 M"]
        visit.compare()
        visit.wait_for_answers()
        visit.page.wait_for_selector("#mt-run:enabled")
        for text in visit.page.locator("#mt-answers .mt-text").all():
            assert text.inner_text().startswith("“Good morning, Mr. Darcy,” said Elizabeth, ")
            assert whole_lines_above(text) == 0 or name == "desktop"
        assert [known_stats(card) for card in visit.answers().all()] == before
        look(visit, "compare")
        visit.show_prune()
        playwright.expect(visit.page.locator("#mt-cut")).not_to_contain_text(
            "being measured", timeout=PATIENCE
        )
        look(visit, "prune")
        visit.page.get_by_role("tab", name="Evidence").click()
        visit.page.wait_for_selector(".mt-evidence")
        assert visit.page.locator(".mt-finding").count() == 4
        look(visit, "evidence")  # unfolds all
        tables = "[...document.querySelectorAll('.mt-fold .mt-scroll')]"
        wide = visit.page.evaluate(f"{tables}.filter(t => t.scrollWidth > t.clientWidth).length")
        assert wide == 0 or name == "phone"
        assert visit.page.evaluate(COVERED_DOTS) == 0

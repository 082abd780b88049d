// Copy buttons, and the line below a text that shows the hint of the touched or focused mark.
(() => {
  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      const box = document.createElement("textarea");
      box.value = text;
      document.body.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
    }
  };
  document.addEventListener("click", async (event) => {
    const button = event.target.closest(".mt-copy");
    if (!button) return;
    await copy(button.dataset.copy);
    const before = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = before), 1200);
  });
  const showHint = (event) => {
    const mark = event.target.closest && event.target.closest("mark[data-tip]");
    if (!mark) return;
    const line = mark.closest(".mt-card").querySelector(".mt-tip");
    line.textContent = mark.dataset.tip;
  };
  for (const kind of ["click", "focusin", "mouseover"]) document.addEventListener(kind, showHint);
  // Every update replaces the answers: each box shows its last line, or where the visitor scrolled.
  const scrolled = {};
  const model = (box) => box.closest("[data-model]")?.dataset.model;
  const follow = () => {
    for (const box of document.querySelectorAll("[data-model] > .mt-text")) {
      if (box.scrollHeight <= box.clientHeight) delete scrolled[model(box)];
      else box.scrollTop = scrolled[model(box)] ?? box.scrollHeight;
    }
  };
  const remember = ({ target: box }) => {
    if (!box.matches?.("[data-model] > .mt-text")) return;
    const isAtEnd = box.scrollTop + box.clientHeight > box.scrollHeight - 8;
    scrolled[model(box)] = isAtEnd ? undefined : box.scrollTop;
  };
  document.addEventListener("scroll", remember, true);
  // A result stays when the sizes change, and a distillation when another model is pruned.
  const markOthers = () => {
    const [recipe, result, lesson] = ["recipe", "result", "lesson"].map((name) =>
      document.querySelector(`#mt-${name} [data-out]`),
    );
    const mark = (card, owner) =>
      card?.classList.toggle("mt-other", card.dataset.out !== owner?.dataset.out);
    mark(result, recipe);
    mark(lesson, result);
  };
  const refresh = () => {
    follow();
    markOthers();
  };
  new MutationObserver(refresh).observe(document, { childList: true, subtree: true });
  // Budget and sizes follow one another, so a typed number counts once it is complete: on Enter, when
  // its box is left, or after a pause. Else "30" would be a 0 behind the budget that follows from "3".
  const PAUSE = 1200;
  let pause;
  const isTyped = ({ isTrusted, target }) =>
    isTrusted && target.matches?.("[id^=mt-] input[type=number]");
  const commit = (box) => {
    clearTimeout(pause);
    const { min, max, value } = box.closest("[id^=mt-]").querySelector("input[type=range]");
    const typed = box.valueAsNumber;
    const wanted = Number.isNaN(typed) ? value : `${Math.min(max, Math.max(min, typed))}`;
    if (box.value !== wanted) box.value = wanted;
    if (wanted !== value) box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const whileTyping = (event) => {
    if (!isTyped(event)) return;
    event.stopImmediatePropagation();
    clearTimeout(pause);
    if (event.target.value !== "") pause = setTimeout(() => commit(event.target), PAUSE);
  };
  document.addEventListener("input", whileTyping, true);
  document.addEventListener("change", (event) => isTyped(event) && commit(event.target), true);
  // The Prune tab's figures and commands are another model's until the server sends the new ones,
  // which replace the marked elements.
  window.minitronMeasured = () => {
    for (const card of document.querySelectorAll(".mt-stale")) {
      card.classList.remove("mt-stale");
      card.removeAttribute("aria-busy");
    }
  };
  window.minitronMeasuring = (model) => {
    for (const card of document.querySelectorAll("#mt-cut .mt-card, #mt-recipe .mt-card")) {
      card.classList.add("mt-stale");
      card.setAttribute("aria-busy", "true");
      card.dataset.note = `Measuring ${model}, once …`;
    }
  };
  // With ?view=api gradio marks its page for programs as open, but loads it on a click alone: close
  // and open it.
  if (new URLSearchParams(location.search).get("view") === "api") {
    const opening = new MutationObserver(() => {
      const button = document.querySelector("footer .show-api");
      if (!button) return;
      opening.disconnect();
      button.click();
      setTimeout(() => button.click());
    });
    opening.observe(document, { childList: true, subtree: true });
  }
  window.minitronShow = (selector) => {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const block = document.querySelector(selector);
    if (block) block.scrollIntoView({ behavior: calm ? "auto" : "smooth", block: "start" });
  };
  window.minitronLink = async (values) => {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(values)) query.set(key, value);
    const link = `${location.origin}${location.pathname}?${query}`;
    history.replaceState(null, "", `?${query}`);
    await copy(link);
    return link;
  };
})();

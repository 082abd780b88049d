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
  new MutationObserver(follow).observe(document, { childList: true, subtree: true });
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

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
  window.minitronLink = async (values) => {
    const query = new URLSearchParams();
    for (const [key, value] of Object.entries(values)) query.set(key, value);
    const link = `${location.origin}${location.pathname}?${query}`;
    history.replaceState(null, "", `?${query}`);
    await copy(link);
    return link;
  };
})();

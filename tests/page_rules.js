// Which rules a page breaks: contrast of its visible texts, labels of its controls, its width.
// Colours are blended over their backgrounds as WCAG 2 defines the ratio; images are not read.
() => {
  const parse = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return text.startsWith("color(srgb") ? [255 * r, 255 * g, 255 * b, a] : [r, g, b, a];
  };
  const blend = (top, below) => below.map((v, i) => top[i] * top[3] + v * (1 - top[3]));
  const luminance = (colour) => {
    const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    const [r, g, b] = colour.map((v) => linear(v / 255));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ancestors = (element) => {
    const found = [];
    for (let at = element; at; at = at.parentElement) found.unshift(getComputedStyle(at));
    return found;
  };
  const contrast = (element) => {
    const styles = ancestors(element), own = styles.at(-1);
    const below = styles.reduce((b, s) => blend(parse(s.backgroundColor), b), [255, 255, 255]);
    const ink = parse(element instanceof SVGElement ? own.fill : own.color);
    ink[3] *= styles.reduce((opacity, style) => opacity * Number(style.opacity), 1);
    const [dark, light] = [luminance(blend(ink, below)), luminance(below)].sort((a, b) => a - b);
    return (light + 0.05) / (dark + 0.05);
  };
  const isVisible = (element) =>
    element.checkVisibility({ opacityProperty: true, visibilityProperty: true }) &&
    element.getBoundingClientRect().width > 0;
  const named = (element) => `<${element.tagName} ${element.id || element.getAttribute("class")}>`;
  const isLabelled = (element) => {
    const ids = (element.getAttribute("aria-labelledby") || "").split(" ").filter(Boolean);
    const isField = element.matches("input, textarea, select");
    const texts = [element.ariaLabel, element.title, isField ? "" : element.textContent];
    texts.push(...ids.map((id) => document.getElementById(id)?.textContent));
    texts.push(...[...(element.labels || [])].map((label) => label.textContent));
    return texts.some((text) => text?.trim());
  };
  const broken = new Set();
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const text = texts.currentNode.textContent.trim(), element = texts.currentNode.parentElement;
    if (!text || !isVisible(element)) continue;
    if (element.closest("script, style, title, :disabled, [aria-disabled=true]")) continue;
    const ratio = contrast(element);
    if (ratio < 4.5) broken.add(`contrast ${ratio.toFixed(2)}: ${named(element)} ${text.slice(0, 40)}`);
  }
  const controls = "button, input, textarea, select, a[href], [role=slider], [role=tab], [role=img]";
  for (const element of document.querySelectorAll(`${controls}, [tabindex="0"]`)) {
    if (isVisible(element) && !isLabelled(element)) broken.add(`no label: ${named(element)}`);
  }
  const width = document.documentElement.scrollWidth;
  if (width > innerWidth) broken.add(`the page is ${width} pixels wide`);
  return [...broken];
}

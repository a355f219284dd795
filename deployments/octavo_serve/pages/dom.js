// Elements without HTML: text stays text.

/** An element; properties by name, `on` for listeners, `data` for data-*, `aria` for aria-*; then its children. */
export function el(tag, properties = {}, ...children) {
  const { on = {}, data = {}, aria = {}, ...others } = properties;
  const made = Object.assign(document.createElement(tag), others);
  for (const [name, listener] of Object.entries(on)) made.addEventListener(name, listener);
  Object.assign(made.dataset, data);
  for (const [name, value] of Object.entries(aria)) made.setAttribute(`aria-${name}`, value);
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

/** A small button. */
export function button(label, click, properties = {}) {
  return el("button", { type: "button", className: "button bare", on: { click }, ...properties }, label);
}

/** Copy a text, and say so on the button for a moment. */
export async function copy(text, from) {
  const before = from.textContent;
  try {
    await navigator.clipboard.writeText(text);
    from.textContent = "Copied";
  } catch {  // without HTTPS browsers have no clipboard
    from.textContent = select(text) ? "Copied" : "Not allowed";
  }
  setTimeout(() => { from.textContent = before; }, 1500);
}

function select(text) {
  const area = el("textarea", { value: text, className: "unseen" });
  document.body.append(area);
  area.select();
  const done = document.execCommand("copy");
  area.remove();
  return done;
}

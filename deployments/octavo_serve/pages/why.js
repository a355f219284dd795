// "Why did this take so long?": where an answer's time went, and why its prompt was found in the cache or not.

import { explanation } from "./api.js";
import { el } from "./dom.js";

/** A question that can be opened about the answer of this id; `ask` is asked once it is. */
export function why(id, ask = explanation) {
  const body = el("div", { className: "why-body", role: "status" });
  const asks = el("summary", {}, "Why did this take so long?");
  const made = el("details", { className: "why" }, asks, body);
  made.addEventListener("toggle", async () => {
    if (!made.open || body.childElementCount) return;
    body.replaceChildren(el("p", {}, "…"));
    try {
      body.replaceChildren(...told(await ask(id)));
    } catch (error) {
      body.replaceChildren(el("p", { className: "error" }, error.message));
    }
  });
  return made;
}

function told({ sentence, seconds, prompts: [prompt] }) {
  return [el("p", {}, sentence), spans(prompt.spans, seconds), ...prefix(prompt.prefix)];
}

function spans(all, seconds) {
  const rows = all.map((span) => {
    const part = el("span", { className: `part ${span.what}` });
    part.style.marginInlineStart = `${(100 * span.at) / seconds}%`;
    part.style.width = `${(100 * span.seconds) / seconds}%`;
    const says = span.what === "wait" ? `waits: ${span.cause}` : [span.what, span.cause].filter(Boolean).join(": ");
    return el(
      "tr",
      {},
      el("td", { className: "number" }, `${span.seconds.toFixed(3)} s`),
      el("td", {}, span.where),
      el("td", {}, says + (span.tokens ? `, ${span.tokens} tokens` : "")),
      el("td", { className: "time", aria: { hidden: "true" } }, part),
    );
  });
  const heads = ["Took", "Where", "What", ""].map((head) => el("th", { scope: "col" }, head));
  return el("table", { className: "spans" }, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows));
}

function prefix(found) {
  if (!found) return [];
  const counts = `${found.cached_tokens} of ${found.possible_tokens} tokens came from the cache, ${found.predicted_tokens} were predicted. `;
  const near = found.nearest;
  const sides = near?.now ? ["then", "now"].map((side) => el("p", {}, el("b", {}, `${side}: `), el("code", {}, near.before + near[side]))) : [];
  return [el("p", {}, counts + found.sentence), ...sides];
}

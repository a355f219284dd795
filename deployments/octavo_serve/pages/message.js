// One turn of a conversation as elements.

import { button, copy, el } from "./dom.js";
import { coloured, facts, legend } from "./facts.js";
import { code, render } from "./markdown.js";
import { why } from "./why.js";

/** A turn that is complete, or an answer that grows: see AnswerView. `actions` are what its buttons do. */
export function turn(node, place, actions) {
  if (node.role === "assistant") return new AnswerView(node, place, actions).element;
  const isTool = node.role === "tool";
  const says = isTool ? `Result of ${node.name}` : "You";
  const body = el("div", { className: "said" }, node.content);
  const heading = el("h2", { className: isTool ? "label" : "unseen" }, says);
  return el(
    "article",
    { className: `turn ${node.role}`, data: { node: node.id } },
    heading,
    body,
    el(
      "div",
      { className: "actions" },
      button("Copy", (event) => copy(node.content, event.currentTarget)),
      button("Edit", () => actions.edit(node, body)),
      versions(node, place, actions),
    ),
  );
}

/** What is left of a bubble while its text is edited. */
export function editor(text, save, cancel) {
  const area = el("textarea", { value: text, className: "editing", ariaLabel: "Edit this message" });
  const done = () => save(area.value);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      done();
    } else if (event.key === "Escape") {
      event.stopPropagation();
      cancel();
    }
  });
  const buttons = el("div", { className: "actions shown" }, button("Cancel", cancel), button("Save", done, { className: "button main" }));
  return { area, element: el("div", { className: "editor" }, area, buttons) };
}

function versions(node, [place, count], actions) {
  if (count < 2) return null;
  const at = el("span", {}, `${place + 1} / ${count}`);
  const step = (label, sign, by, off) => button(sign, () => actions.turn(node, by), { ariaLabel: label, disabled: off });
  return el(
    "span",
    { className: "versions", role: "group", ariaLabel: "Versions" },
    step("Earlier version", "‹", -1, place === 0),
    at,
    step("Later version", "›", 1, place === count - 1),
  );
}

/** An answer. `update` shows what has come; rarely where that takes long. */
export class AnswerView {
  constructor(node, place, actions) {
    this.node = node;
    this.growing = false;
    this.due = 0;
    this.waits = null;
    this.thought = el("div", { className: "thought" });
    this.thinking = el("summary", {}, "Reasoning");
    this.reasoning = el("details", { className: "reasoning", hidden: true }, this.thinking, this.thought);
    this.content = el("div", { className: "said" });
    this.calls = el("div", { className: "calls" });
    this.below = el("div");
    this.buttons = el("div", { className: "actions" }, ...this.actionsOf(place, actions));
    this.element = el(
      "article",
      { className: "turn assistant", data: { node: node.id } },
      el("h2", { className: "unseen" }, node.info?.model ?? "Answer"),
      this.reasoning,
      this.content,
      this.calls,
      this.below,
      this.buttons,
    );
    this.update();
  }

  actionsOf(place, actions) {
    const { node } = this;
    this.toggle = button(tokenLabel(node), () => {
      node.shown = node.shown === "tokens" ? "" : "tokens";
      this.toggle.textContent = tokenLabel(node);
      this.update();
    });
    return [
      button("Copy", (event) => copy(node.content, event.currentTarget)),
      button("Edit", () => actions.edit(node, this.content)),
      button("Regenerate", () => actions.again(node)),
      this.toggle,
      versions(node, place, actions),  // last: the others stay where the pointer is
    ];
  }

  /** Show the node as it is now; where that takes long, not for each token. */
  grow() {
    if (this.waits !== null) return;
    const wait = Math.max(0, this.due - performance.now());
    this.waits = setTimeout(() => {
      this.waits = null;
      const begin = performance.now();
      this.update();
      this.due = performance.now() + Math.max(30, 4 * (performance.now() - begin));
    }, wait);
  }

  /** Show the node as it is now. */
  update() {
    const { node } = this;
    const error = node.info?.error;
    this.element.classList.toggle("growing", this.growing);
    this.reasoning.hidden = !node.reasoning;
    this.thought.textContent = node.reasoning;
    this.thinking.textContent = this.growing && !node.content ? "Reasoning…" : "Reasoning";
    this.content.replaceChildren(...this.said());
    this.calls.replaceChildren(...(node.calls ?? []).map((call) => callCard(call, node.shown === "tokens")));
    const line = node.info ? facts(node.info) : null;
    if (node.info?.id && !this.growing) this.why ??= why(node.info.id);
    const said = error ? el("div", { className: "error", role: "alert" }, error) : null;
    this.below.replaceChildren(...[said, line, this.why].filter(Boolean));
    this.buttons.hidden = this.growing;
  }

  said() {
    const { content, shown, runs } = this.node;
    if (!content) return this.growing && !this.node.calls.length ? [el("span", { className: "waiting" }, "…")] : [];
    return shown === "tokens" && runs?.length ? [coloured(runs), legend()] : [render(content)];
  }
}

function tokenLabel(node) {
  return node.shown === "tokens" ? "Text" : "Tokens";
}

function callCard(call, tokens) {
  const head = el("div", { className: "code-head" }, el("span", {}, "Calls ", el("b", {}, call.name)));
  const said = tokens && call.runs?.length ? coloured(call.runs) : code(indented(call.arguments), "json");
  return el("div", { className: "call" }, head, said);
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

/** What asks for the results of calls; `send` gets a text for each. */
export function results(calls, send) {
  const areas = calls.map((call) => el("textarea", { rows: 2, placeholder: `What ${call.name} returned` }));
  const rows = calls.map((call, place) => el("label", {}, el("span", {}, "Result of ", el("b", {}, call.name)), areas[place]));
  const sending = button(calls.length > 1 ? "Send results" : "Send result", () => send(areas.map((area) => area.value)), {
    className: "button main",
  });
  return el("section", { className: "results", ariaLabel: "Results of the tools" }, ...rows, sending);
}

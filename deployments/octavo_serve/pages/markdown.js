// Markdown to elements. What a model says is hostile until it is proven otherwise: HTML in it is shown as text, what
// markdown makes of it goes through a sanitiser with a short list of elements, and nothing in it is ever loaded.

import { button, copy, el } from "./dom.js";

const TAGS = [
  "a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s",
  "span", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul",
];
const ATTRIBUTES = ["class", "href", "start"];
const LINKS = /^(?:https?|mailto):/i;

/** Longest code that is coloured, and a line that is too long for it: the time grows with the square of both. 60,000
 *  characters of C# took 10 s, 30,000 zeros in one line of an INI file 13 s; within these limits it is 1 s at worst. */
const LARGE = 20_000;
const LONG_LINE = /[^\n]{1000}/;

const parser = globalThis.markdownit({ html: false, linkify: false, highlight: coloured });
parser.disable("image");  // ![what it says](where) becomes a link
for (const cell of ["th_open", "td_open"]) parser.renderer.rules[cell] = aligned;

/** A text as elements. */
export function render(text) {
  const clean = globalThis.DOMPurify.sanitize(parser.render(text), {
    ALLOWED_TAGS: TAGS,
    ALLOWED_ATTR: ATTRIBUTES,
    ALLOWED_URI_REGEXP: LINKS,
    ALLOW_DATA_ATTR: false,
    ALLOW_ARIA_ATTR: false,
    RETURN_DOM_FRAGMENT: true,
  });
  for (const link of clean.querySelectorAll("a")) leadAway(link);
  for (const block of clean.querySelectorAll("pre")) block.replaceWith(codeBlock(block));
  for (const table of clean.querySelectorAll("table")) table.replaceWith(el("div", { className: "table" }, table.cloneNode(true)));
  return clean;
}

/** Code as elements, coloured. */
export function code(text, language) {
  return render(`${fenceFor(text)}${language}\n${text}\n${fenceFor(text)}`);
}

function fenceFor(text) {
  const longest = (text.match(/`+/g) ?? []).reduce((most, run) => Math.max(most, run.length), 2);
  return "`".repeat(longest + 1);
}

function coloured(text, language) {
  if (!globalThis.hljs.getLanguage(language) || text.length > LARGE || LONG_LINE.test(text)) return "";
  return globalThis.hljs.highlight(text, { language, ignoreIllegals: true }).value;
}

function aligned(tokens, index, options, env, self) {
  const style = tokens[index].attrGet("style");  // text-align:right; the page's policy lets no style in
  if (style) tokens[index].attrs = [["class", `to-${style.split(":")[1]}`]];
  return self.renderToken(tokens, index, options);
}

function leadAway(link) {
  if (!link.getAttribute("href")) return;
  link.target = "_blank";
  link.rel = "noopener noreferrer nofollow";
  link.title = link.href;
}

function codeBlock(block) {
  const inner = block.querySelector("code");
  const language = [...(inner?.classList ?? [])].find((name) => name.startsWith("language-"))?.slice(9) ?? "";
  const text = block.textContent;
  const copying = button("Copy", (event) => copy(text, event.currentTarget), { ariaLabel: `Copy this code` });
  const head = el("div", { className: "code-head" }, el("span", {}, language || "text"), copying);
  const body = el("pre", { tabIndex: 0 }, ...block.childNodes);
  return el("div", { className: "code" }, head, body);
}

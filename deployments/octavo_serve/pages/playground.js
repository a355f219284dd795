// The playground: a chat with the models of this server. What belongs where:
//
//     tree.js      the conversation, with its branches        settings.js   what a request says beside it
//     answer.js    an answer as it comes in                   message.js    a turn as elements
//     store.js     what is kept, and where                    api.js        the server

import { Answer } from "./answer.js";
import { ApiError, chat, models } from "./api.js";
import { askKey, setUp, showExport, showHelp } from "./dialogs.js";
import { button, el } from "./dom.js";
import { editor, results, turn, AnswerView } from "./message.js";
import { asked, form, showForm, WrongField } from "./settings.js";
import { load, move, save, watch } from "./store.js";
import { Tree } from "./tree.js";

const IDEAS = [
  "Explain how a prefix cache works, for someone who knows what a prompt is.",
  "Write a Python function that merges two sorted lists, and a test for it.",
  "List five small things that make documentation better, as a table.",
];
const LOOK_AGAIN = 4000;  // milliseconds, while a model loads

const byId = (id) => document.getElementById(id);
const input = byId("input");
const scroll = byId("scroll");

const fresh = () => ({ keeps: false, chats: [], at: null, model: "", system: "", values: {}, panel: false });
const state = { ...fresh(), ...load() };
let tree = new Tree();
let running = null;  // {controller, node, view, answer} of the answer that grows

// ---- chats ----------------------------------------------------------------------------------------------------------

function open(kept) {
  stop();
  state.at = kept?.id ?? null;
  tree = new Tree(kept?.nodes);
  notice("");
  show();
  save(state);
  input.focus();
}

function keepChat() {
  const kept = { id: state.at ?? crypto.randomUUID?.() ?? String(Date.now()), title: tree.title(), nodes: tree.nodes };
  state.at = kept.id;
  state.chats = [kept, ...state.chats.filter((each) => each.id !== kept.id)];
  save(state);
  showChats();
}

function showChats() {
  const row = (kept) => el(
    "li",
    { className: kept.id === state.at ? "current" : "" },
    button(kept.title || "Untitled", () => { open(kept); closeSides(); }, { className: "chat", ariaCurrent: kept.id === state.at ? "true" : null }),
    button("×", () => remove(kept), { ariaLabel: `Delete the chat ${kept.title}`, title: "Delete" }),
  );
  byId("chat-list").replaceChildren(...state.chats.map(row));
}

function remove(kept) {
  if (kept.id === state.at) stop();
  state.chats = state.chats.filter((each) => each !== kept);
  if (kept.id === state.at) open(null);
  else save(state);
  showChats();
}

/** What another tab keeps is kept here too; otherwise the one that writes last would drop the chats of the other. */
function takeOver(theirs) {
  if (!state.keeps) return;
  if (theirs) state.chats = theirs.chats;
  else state.keeps = byId("keeps").checked = false;
  showChats();
}

// ---- what is shown --------------------------------------------------------------------------------------------------

const actions = {
  turn: (node, by) => { stop(); tree.turn(node, by); keepChat(); show(); },
  again: (node) => { stop(); answerTo(tree.parent(node)); },
  edit,
};

function show() {
  const held = heldButton();
  const path = tree.path();
  const shown = path.map((node) => (running?.node === node ? running.view.element : turn(node, tree.place(node), actions)));
  byId("turns").replaceChildren(...shown, ...asksForResults(path.at(-1)));
  byId("empty").hidden = path.length > 0;
  byId("send").hidden = running !== null;
  byId("stop").hidden = running === null;
  showChats();
  toEnd();
  if (document.activeElement === document.body) focusAgain(held);
}

/** The button of a turn that has the focus, as far as it can be found again when the turns are made anew. */
function heldButton() {
  const held = document.activeElement;
  const place = [...byId("turns").children].indexOf(held.closest(".turn"));
  return { place, name: held.ariaLabel ?? held.textContent };
}

/** Give the focus to the same button, to another of its group if it is off now, or to the input. */
function focusAgain({ place, name }) {
  const buttons = [...(byId("turns").children[place]?.querySelectorAll(".actions button:enabled") ?? [])];
  const same = buttons.find((each) => (each.ariaLabel ?? each.textContent) === name);
  const found = same ?? (name.endsWith("version") ? buttons.at(-1) : null);
  if (found) found.focus();
  else if (matchMedia("(hover: hover)").matches) input.focus();  // elsewhere it would bring up the keyboard
}

function asksForResults(last) {
  if (running || last?.role !== "assistant" || !last.calls?.length) return [];
  return [results(last.calls, (texts) => answerTo(withResults(last, texts)))];
}

function withResults(node, texts) {
  const add = (parent, call, place) => (
    tree.add(parent, { role: "tool", content: texts[place], name: call.name, tool_call_id: call.id })
  );
  return node.calls.reduce(add, node);
}

function atEnd() {
  return scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 80;
}

function toEnd() {
  scroll.scrollTop = scroll.scrollHeight;
}

function edit(node, body) {
  stop();
  const cancel = () => show();
  const { area, element } = editor(node.content, (text) => saveEdit(node, text), cancel);
  body.replaceChildren(element);
  body.closest(".turn").classList.add("is-edited");
  area.style.height = `${Math.min(area.scrollHeight + 4, 400)}px`;
  area.focus();
}

function saveEdit(node, text) {
  const { role, name, tool_call_id } = node;
  if (role === "assistant") {
    tree.add(tree.parent(node), { role, content: text, calls: node.calls, info: { model: "edited by you", first: undefined } });
    keepChat();
    show();
  } else {
    answerTo(tree.add(tree.parent(node), { role, content: text, name, tool_call_id }));
  }
}

function notice(text, ...more) {
  byId("notice").replaceChildren(text, ...more);
  byId("notice").hidden = !text;
}

function announce(text) {
  byId("announcer").textContent = text;
}

// ---- asking ---------------------------------------------------------------------------------------------------------

function send() {
  const text = input.value.trim();
  if (!text || running) return;
  if (answerTo(tree.last(), text)) input.value = "";
}

/** What the API gets for an answer after `node`. Raises WrongField. */
function bodyAfter(node, text) {
  const path = [];
  for (let at = node; at.parent !== null; at = tree.parent(at)) path.unshift(at);
  const messages = path.flatMap(messageOf);
  if (state.system.trim()) messages.unshift({ role: "system", content: state.system });
  if (text) messages.push({ role: "user", content: text });
  return {
    model: state.model,
    messages,
    ...asked(state.values),
    stream: true,
    stream_options: { include_usage: true },
    return_token_origins: true,
  };
}

function messageOf({ role, content, calls, tool_call_id }) {
  if (role !== "assistant") return [tool_call_id ? { role, content, tool_call_id } : { role, content }];
  if (!calls?.length) return content ? [{ role, content }] : [];
  const tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
  return [{ role, content: content || null, tool_calls }];
}

/** Have the model answer after `node`, or after a text of the reader's there; false if the settings keep it from it. */
function answerTo(node, text = "") {
  let body;
  try {
    body = bodyAfter(node, text);
  } catch (error) {
    if (!(error instanceof WrongField)) throw error;
    showWrong(error);
    return false;
  }
  notice("");
  const parent = text ? tree.add(node, { role: "user", content: text }) : node;
  run(tree.add(parent, { role: "assistant", shown: body.response_format || body.structured_outputs ? "tokens" : "" }), body);
  return true;
}

async function run(node, body) {
  const answer = new Answer(node, state.model);
  const view = new AnswerView(node, tree.place(node), actions);
  const mine = { controller: new AbortController(), node, view };
  running = mine;
  view.growing = true;
  view.update();
  announce("Answering");
  keepChat();
  show();
  try {
    for await (const event of chat(body, mine.controller.signal)) {
      if (running !== mine) return;
      const follows = atEnd();
      answer.take(event);
      view.grow();
      if (follows) requestAnimationFrame(toEnd);
    }
  } catch (error) {
    failed(node, error);
  } finally {
    if (running === mine) ended(node);
  }
}

function failed(node, error) {
  if (error.name === "AbortError") {
    node.info.finish = "stopped";
    return;
  }
  node.info.error = error instanceof ApiError ? error.message : `The page failed: ${error.message}`;
  if (error.status === 401) askKey(error.message);
}

function ended(node) {
  const follows = atEnd();
  const had = scroll.scrollTop;
  running = null;
  keepChat();
  show();
  if (!follows) scroll.scrollTop = had;
  announce(node.info.error ?? (node.content || `Calls ${node.calls.map((call) => call.name).join(", ")}`));
}

function stop() {
  if (!running) return;
  const { controller, node } = running;
  node.info.finish = "stopped";
  controller.abort();
  ended(node);
}

function showWrong(error) {
  setPanel(true);
  const field = byId(`field-${error.field}`);
  field.closest("details").open = true;
  field.focus();
  notice(error.message);
}

// ---- models ---------------------------------------------------------------------------------------------------------

async function loadModels() {
  try {
    showModels(await models());
  } catch (error) {
    if (error.status === 401) askKey(error.message);
    else notice(error.message, " ", button("Try again", () => { notice(""); loadModels(); }));
  }
}

function showModels(cards) {
  const option = (card) => {
    const off = card.status === "ready" ? "" : ` (${card.status})`;
    return el("option", { value: card.id, title: card.reason ?? "" }, card.id + off);
  };
  const [own, aliases] = [cards.filter((card) => !card.alias_of), cards.filter((card) => card.alias_of)];
  const groups = aliases.length
    ? [el("optgroup", { label: "Models" }, ...own.map(option)), el("optgroup", { label: "Aliases" }, ...aliases.map(option))]
    : own.map(option);
  byId("model").replaceChildren(...groups);
  if (!cards.some((card) => card.id === state.model)) state.model = (own.find((card) => card.status === "ready") ?? own[0])?.id ?? "";
  byId("model").value = state.model;
  showModel();
  if (cards.some((card) => card.status === "loading")) setTimeout(loadModels, LOOK_AGAIN);
}

function showModel() {
  byId("empty-model").textContent = state.model ? `${state.model} answers, on this server.` : "";
}

// ---- settings -------------------------------------------------------------------------------------------------------

function showSettings() {
  byId("system").value = state.system;
  byId("keeps").checked = state.keeps;
  const root = byId("fields");
  root.replaceChildren(form(state.values, (name) => {
    if (name === "form") showForm(root, state.values);
    save(state);
  }));
  showForm(root, state.values);
}

function setPanel(isOpen) {
  state.panel = isOpen;
  byId("settings").hidden = !isOpen;
  byId("open-settings").setAttribute("aria-expanded", String(isOpen));
  shade();
  save(state);
}

function setChats(isOpen) {
  byId("chats").classList.toggle("open", isOpen);
  byId("open-chats").setAttribute("aria-expanded", String(isOpen));
  shade();
}

const isNarrow = () => matchMedia("(max-width: 860px)").matches;

function shade() {
  byId("shade").hidden = !(isNarrow() && (state.panel || byId("chats").classList.contains("open")));
}

function closeSides() {
  setChats(false);
  if (isNarrow()) setPanel(false);
}

// ---- the reader -----------------------------------------------------------------------------------------------------

function onKey(event) {
  const control = event.ctrlKey || event.metaKey;
  const shortcuts = { k: () => { open(null); closeSides(); }, ",": () => setPanel(!state.panel), "/": showHelp };
  if (control && shortcuts[event.key.toLowerCase()]) {
    event.preventDefault();
    shortcuts[event.key.toLowerCase()]();
  } else if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if (running) stop();
    else closeSides();
  }
}

function onInputKey(event) {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    send();
  } else if (event.key === "ArrowUp" && !input.value) {
    const mine = tree.path().findLast((node) => node.role === "user");
    if (!mine) return;
    event.preventDefault();
    edit(mine, document.querySelector(`[data-node="${mine.id}"] .said`));
  }
}

function start() {
  setUp(() => { notice(""); loadModels(); });
  document.addEventListener("keydown", onKey);
  input.addEventListener("keydown", onInputKey);
  if (!CSS.supports("field-sizing", "content")) input.rows = 3;
  const on = (id, kind, listener) => byId(id).addEventListener(kind, listener);
  on("composer", "submit", (event) => { event.preventDefault(); send(); });
  on("stop", "click", stop);
  on("new-chat", "click", () => { open(null); closeSides(); });
  on("open-chats", "click", () => setChats(!byId("chats").classList.contains("open")));
  on("open-settings", "click", () => setPanel(!state.panel));
  on("open-help", "click", showHelp);
  on("open-key", "click", () => askKey());
  on("open-export", "click", exportNext);
  on("shade", "click", closeSides);
  on("model", "change", (event) => { state.model = event.target.value; showModel(); save(state); });
  on("system", "input", (event) => { state.system = event.target.value; save(state); });
  on("keeps", "change", (event) => { state.keeps = event.target.checked; move(state); showChats(); });
  watch(takeOver);
  on("reset", "click", () => { state.values = {}; state.system = ""; showSettings(); save(state); });
  byId("ideas").append(...IDEAS.map((idea) => button(idea, () => { input.value = idea; send(); }, { className: "idea" })));
  showSettings();
  setPanel(state.panel && !isNarrow());
  tree = new Tree(state.chats.find((kept) => kept.id === state.at)?.nodes);
  show();
  input.focus();
  loadModels();
}

function exportNext() {
  try {
    showExport(bodyAfter(tree.last(), input.value.trim() || (tree.last().role === "assistant" || !tree.path().length ? "Hello" : "")));
  } catch (error) {
    if (!(error instanceof WrongField)) throw error;
    showWrong(error);
  }
}

start();

// The dialogs: a key, the next request as a program, the keyboard's shortcuts.

import { button, copy, el } from "./dom.js";
import { curl, python } from "./export.js";
import { keep, key } from "./key.js";

const byId = (id) => document.getElementById(id);

/** Make the dialogs work; `keyed` is called when the key has changed. */
export function setUp(keyed) {
  for (const closing of document.querySelectorAll("[data-closes]")) {
    closing.addEventListener("click", () => closing.closest("dialog").close());
  }
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  }
  const changed = (value) => {
    keep(value);
    byId("key").value = "";
    byId("key-dialog").close();
    keyed();
  };
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (byId("key").value.trim()) changed(byId("key").value.trim());
  });
  byId("forget").addEventListener("click", () => changed(""));
}

/** Ask for a key. `says` is why. */
export function askKey(says = "") {
  byId("key-says").textContent = says || (key() ? "A key is set in this tab." : "No key is set. This server may not need one.");
  byId("key-says").classList.toggle("error", Boolean(says));
  byId("forget").hidden = !key();
  if (!byId("key-dialog").open) byId("key-dialog").showModal();
  byId("key").focus();
}

/** Show a request's body as programs. */
export function showExport(body) {
  const base = new URL("v1/", document.baseURI).href;
  const keyed = Boolean(key());
  const part = (name, text) => el(
    "div",
    { className: "code" },
    el("div", { className: "code-head" }, el("span", {}, name), button("Copy", (event) => copy(text, event.currentTarget))),
    el("pre", { tabIndex: 0 }, text),
  );
  byId("exported").replaceChildren(part("curl", curl(body, base, keyed)), part("Python", python(body, base, keyed)));
  byId("export-dialog").showModal();
}

/** Show the shortcuts. */
export function showHelp() {
  byId("help-dialog").showModal();
}

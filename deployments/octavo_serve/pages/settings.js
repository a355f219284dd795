// What a request says beside its messages: a table of fields, the form made of it, and the body made of the form.

import { button, el } from "./dom.js";

const number = (name, label, hint, limits) => ({ name, label, hint, kind: "number", ...limits });
const text = (name, label, hint, kind, rows = 2) => ({ name, label, hint, kind, rows });
const choice = (name, label, hint, options) => ({ name, label, hint, kind: "choice", options });
const flag = (name, label, hint) => ({ name, label, hint, kind: "flag" });

/** Groups of fields, by the names of the API. A field that is left empty is not sent: the model's own default holds. */
const GROUPS = [
  ["Sampling", [
    number("temperature", "Temperature", "0 always takes the likeliest token", { min: 0, max: 100, step: 0.1 }),
    number("top_p", "Top p", "Keep the likeliest tokens up to this sum", { min: 0, max: 1, step: 0.05 }),
    number("top_k", "Top k", "Keep so many; 0 keeps all", { min: -1, step: 1 }),
    number("min_p", "Min p", "Drop what is less likely than this times the likeliest", { min: 0, max: 1, step: 0.01 }),
    number("presence_penalty", "Presence penalty", "Against tokens that were said", { min: -2, max: 2, step: 0.1 }),
    number("frequency_penalty", "Frequency penalty", "For each time they were", { min: -2, max: 2, step: 0.1 }),
    number("repetition_penalty", "Repetition penalty", "Of prompt and answer; 1 is none", { min: 0, max: 100, step: 0.05 }),
    number("seed", "Seed", "The same seed, the same answer", { step: 1 }),
  ]],
  ["Length", [
    number("max_tokens", "Max tokens", "Of the answer", { min: 1, step: 1 }),
    number("min_tokens", "Min tokens", "No end before", { min: 0, step: 1 }),
    text("stop", "Stop at", "One text a line", "lines"),
    flag("ignore_eos", "Go on after the model's end", ""),
  ]],
  ["Reasoning", [
    choice("reasoning_effort", "Effort", "For models whose template reads it", ["", "none", "low", "medium", "high"]),
    number("thinking_token_budget", "Budget", "Tokens that the model may think", { min: 0, step: 1 }),
  ]],
  ["Form of the answer", [
    choice("form", "The answer is", "", ["", "json_object", "json_schema", "regex", "choice", "grammar"]),
    text("form_text", "Schema", "", "text", 7),
  ]],
  ["Tools", [
    text("tools", "Tools", "A JSON list, as the API takes it", "json", 7),
    choice("tool_choice", "The model", "", ["", "auto", "required", "none"]),
  ]],
  ["More", [
    text("logit_bias", "Logit bias", "JSON: token id → number", "json"),
    text("bad_words", "Never say", "One text a line", "lines"),
    text("stop_token_ids", "Stop at tokens", "JSON list of ids", "json", 1),
    text("others", "Further fields", "JSON object, added to the request", "json"),
  ]],
];
const FIELDS = GROUPS.flatMap(([, fields]) => fields);

const SAYS = {
  form: {
    "": "any text", json_object: "a JSON object", json_schema: "JSON of a schema", regex: "of a regular expression",
    choice: "one of these lines", grammar: "of a grammar",
  },
  tool_choice: { "": "may call them (default)", auto: "may call them", required: "must call one", none: "must not call any" },
  reasoning_effort: { "": "default" },
};

const SCHEMA = {
  type: "object",
  properties: {
    name: { type: "string" },
    occupation: { enum: ["writer", "mathematician", "painter"] },
    country_of_birth: { type: "string" },
  },
  required: ["name", "occupation", "country_of_birth"],
  additionalProperties: false,
};
const TOOLS = [{
  type: "function",
  function: {
    name: "weather",
    description: "The weather in a city, now",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];
const pretty = (value) => JSON.stringify(value, null, 2);
const EXAMPLES = {
  tools: pretty(TOOLS),
  json_schema: pretty(SCHEMA),
  regex: "(yes|no), because [a-z ]{10,80}\\.",
  choice: "positive\nneutral\nnegative",
  grammar: 'start: "It is " NUMBER " degrees."\nNUMBER: /-?[0-9]{1,2}/',
};

/** A field that says what cannot be sent. */
export class WrongField extends Error {
  constructor(field, message) {
    super(`${field.label}: ${message}`);
    this.field = field.name;
  }
}

/** The form. `values` are texts by field, and are changed as the reader types; `changed` is called then. */
export function form(values, changed) {
  const groups = GROUPS.map(([title, fields], place) => {
    const parts = fields.map((field) => control(field, values, changed));
    const isSet = fields.some((field) => values[field.name]);
    return el("details", { className: "group", open: place === 0 || isSet }, el("summary", {}, title), ...parts);
  });
  return el("div", { className: "fields" }, ...groups);
}

function control(field, values, changed) {
  const id = `field-${field.name}`;
  const input = INPUTS[field.kind](field, values[field.name] ?? "");
  input.id = id;
  input.addEventListener("input", () => {
    values[field.name] = field.kind === "flag" ? (input.checked ? "1" : "") : input.value;
    changed(field.name);
  });
  const hint = field.hint ? el("span", { className: "hint", id: `${id}-hint` }, field.hint) : null;
  if (hint) input.setAttribute("aria-describedby", hint.id);
  const label = el("label", { htmlFor: id }, field.label);
  const made = el("div", { className: `field ${field.kind}` }, label, input, hint);
  if (field.name === "tools" || field.name === "form_text") made.append(example(field, values, input));
  if (field.name === "form_text") made.hidden = !EXAMPLES[values.form];
  return made;
}

const INPUTS = {
  number: (field, value) => el("input", {
    type: "number", value, placeholder: "default", min: field.min ?? "", max: field.max ?? "", step: field.step,
    inputMode: "decimal",
  }),
  text: area,
  lines: area,
  json: area,
  flag: (field, value) => el("input", { type: "checkbox", checked: Boolean(value) }),
  choice: (field, value) => {
    const options = field.options.map((each) => el("option", { value: each }, SAYS[field.name][each] ?? each));
    const select = el("select", {}, ...options);
    select.value = value;
    return select;
  },
};

function area(field, value) {
  return el("textarea", { value, rows: field.rows, spellcheck: false, autocapitalize: "off" });
}

function example(field, values, input) {
  const insert = () => {
    input.value = EXAMPLES[field.name === "tools" ? "tools" : values.form];
    input.dispatchEvent(new Event("input"));
    input.focus();
  };
  return button("Insert an example", insert);
}

/** Show and name the field of the answer's form as its kind wants it. */
export function showForm(root, values) {
  const input = root.querySelector("#field-form_text");
  input.parentElement.hidden = !EXAMPLES[values.form];
  const names = { json_schema: "Schema", regex: "Expression", choice: "One of these lines", grammar: "Grammar (Lark or GBNF)" };
  root.querySelector("label[for=field-form_text]").textContent = names[values.form] ?? "";
}

/** The fields of a request. Raises WrongField. */
export function asked(values) {
  const body = {};
  for (const field of FIELDS) {
    const value = (values[field.name] ?? "").trim();
    if (value && !["form", "form_text", "others", "tool_choice"].includes(field.name)) {
      body[field.name] = READ[field.kind](field, value, values[field.name]);
    }
  }
  if (body.tools && values.tool_choice) body.tool_choice = values.tool_choice;
  return { ...body, ...formOf(values), ...others(values) };
}

const READ = {
  number: (field, value) => {
    if (!Number.isFinite(Number(value))) throw new WrongField(field, "this is no number");
    return Number(value);
  },
  lines: (field, value, whole) => whole.split("\n").filter((line) => line !== ""),
  json: json,
  flag: () => true,
  choice: (field, value) => value,
  text: (field, value) => value,
};

function json(field, value) {
  try {
    return JSON.parse(value);
  } catch (error) {
    throw new WrongField(field, `this is not valid JSON (${error.message})`);
  }
}

function formOf(values) {
  const written = (values.form_text ?? "").trim();
  const field = FIELDS.find((each) => each.name === "form_text");
  if (!values.form) return {};
  if (values.form === "json_object") return { response_format: { type: "json_object" } };
  if (!written) throw new WrongField(field, "it is empty");
  if (values.form === "json_schema") {
    return { response_format: { type: "json_schema", json_schema: { name: "answer", schema: json(field, written) } } };
  }
  const said = values.form === "choice" ? written.split("\n").filter((line) => line) : written;
  return { structured_outputs: { [values.form]: said } };
}

function others(values) {
  const field = FIELDS.find((each) => each.name === "others");
  const found = (values.others ?? "").trim() ? json(field, values.others) : {};
  if (typeof found !== "object" || found === null || Array.isArray(found)) throw new WrongField(field, "it must be a JSON object");
  return found;
}

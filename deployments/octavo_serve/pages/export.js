// A request as a program: what `curl` and OpenAI's Python library would send. The key stays in an environment variable.

const OPENAI = new Set([
  "model", "messages", "stream", "stream_options", "temperature", "top_p", "presence_penalty", "frequency_penalty",
  "logit_bias", "seed", "stop", "max_tokens", "max_completion_tokens", "response_format", "tools", "tool_choice",
  "parallel_tool_calls", "reasoning_effort", "user", "n", "logprobs", "top_logprobs", "metadata",
]);

/** The request as a shell command. `keyed`: whether the server wants a key. */
export function curl(body, base, keyed) {
  const key = keyed ? ` \\\n  -H "Authorization: Bearer $OCTAVO_API_KEY"` : "";
  const data = json(plain(body), 2).replaceAll("'", "'\\''");
  return `curl -N ${base}chat/completions${key} \\\n  -H 'Content-Type: application/json' \\\n  -d '${data}'\n`;
}

/** The request as Python. */
export function python(body, base, keyed) {
  const whole = plain(body);
  const names = Object.keys(whole);
  const given = names.filter((name) => OPENAI.has(name)).map((name) => `    ${name}=${literal(whole[name], 4)},`);
  const extra = Object.fromEntries(names.filter((name) => !OPENAI.has(name)).map((name) => [name, whole[name]]));
  if (Object.keys(extra).length) given.push(`    extra_body=${literal(extra, 4)},`);
  const key = keyed ? 'os.environ["OCTAVO_API_KEY"]' : '"none"';
  return `${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url="${base.slice(0, -1)}", api_key=${key})
stream = client.chat.completions.create(
${given.join("\n")}
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
`;
}

function plain({ return_token_origins: _, stream_options: __, ...body }) {
  return body;
}

/** What no JSON escapes, and nobody sees: pasted into a terminal a DEL takes back the quote before it, and what a model
 *  has said after that is a command; marks of direction show a text in another order than the one that counts. */
const UNSEEN = /[\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;

/** JSON in which every character can be seen. */
function json(value, indent) {
  const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value, null, indent).replace(UNSEEN, escaped);
}

/** A value as Python writes it. */
function literal(value, indent) {
  const inner = " ".repeat(indent + 4);
  const outer = " ".repeat(indent);
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value !== "object") return json(value);
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((each) => literal(each, indent + 4))
    : Object.entries(value).map(([name, each]) => `${json(name)}: ${literal(each, indent + 4)}`);
  const line = `${open}${items.join(", ")}${close}`;
  if (line.length < 90 && !line.includes("\n")) return line;
  return `${open}\n${items.map((item) => `${inner}${item},`).join("\n")}\n${outer}${close}`;
}

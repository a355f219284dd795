// What the scripts for Node share, as cases.py does for Python's.
import { readFileSync } from "node:fs";

export const URL = process.env.COMPAT_URL ?? "http://127.0.0.1:8000";
export const MODEL = process.env.COMPAT_MODEL ?? "scripted";
export const CAPITAL = "What is the capital of France?";
export const WEATHER = "What is the weather in Paris?";
export const PERSON = "Describe Ada Lovelace.";
export const RESULT = "14 degrees, rain";
export const SCHEMA = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

export function check(told, ...found) {
  if (!told) throw new Error(found.map((value) => JSON.stringify(value)).join(" "));
}

export async function run(client, name, cases) {
  const { version } = JSON.parse(readFileSync(`node_modules/${name}/package.json`));
  const done = [];
  for (const [name, body] of Object.entries(cases)) {
    try {
      done.push({ name, ok: true, why: (await body()) ?? "" });
    } catch (error) {
      console.error(error);
      done.push({ name, ok: false, why: `${error.name}: ${error.message}`.slice(0, 600) });
    }
  }
  console.log(JSON.stringify({ client, version, cases: done }));
}

// What the scripts for Node share, as cases.py does for Python's.
import { readFileSync } from "node:fs";

export const URL = process.env.COMPAT_URL ?? "http://127.0.0.1:8000";
export const MODEL = process.env.COMPAT_MODEL ?? "scripted";
export const EMBEDDER = process.env.COMPAT_EMBEDDER ?? "minilm";
export const CAPITAL = "What is the capital of France?";
export const WEATHER = "What is the weather in Paris?";
export const PERSON = "Describe Ada Lovelace.";
export const RESULT = "14 degrees, rain";
export const SCHEMA = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };

// The second answers CAPITAL.
export const DOCUMENTS = ["Cats sleep for most of the day.", "Paris is the capital of France.", "Bread is made of flour."];

export function check(told, ...found) {
  if (!told) throw new Error(found.map((value) => JSON.stringify(value)).join(" "));
}

export function checkNear(query, documents, dimensions = 384) {
  check([query, ...documents].every((vector) => vector.length === dimensions), query.length);
  const near = documents.map((document) => document.reduce((sum, value, i) => sum + value * query[i], 0));
  check(near.length === 3 && near[1] === Math.max(...near), near);
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

// The OpenAI SDK for Node.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { CAPITAL, DOCUMENTS, EMBEDDER, MODEL, PERSON, RESULT, SCHEMA, URL, WEATHER, check, checkNear, run } from "./cases.mjs";

const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const Person = z.object({ name: z.string(), born: z.number() });
const user = (content) => [{ role: "user", content }];
const weather = {
  type: "function",
  function: { name: "weather", parameters: SCHEMA, parse: JSON.parse, function: async () => RESULT },
};
const flat = { type: "function", name: "weather", parameters: SCHEMA, strict: false };

await run("openai-node", "openai", {
  async chat() {
    const said = await client.chat.completions.create({ model: MODEL, messages: user(CAPITAL) });
    check(said.choices[0].message.content.includes("Paris"), said);
  },
  async stream() {
    const said = await client.chat.completions.stream({ model: MODEL, messages: user(CAPITAL) }).finalContent();
    check(said.includes("Paris"), said);
  },
  async parse() {
    const said = await client.chat.completions.parse({
      model: MODEL, messages: user(PERSON), response_format: zodResponseFormat(Person, "person"),
    });
    check(said.choices[0].message.parsed.born === 1815, said);
  },
  async run_tools() {
    const runner = client.chat.completions.runTools({ model: MODEL, messages: user(WEATHER), tools: [weather] });
    check((await runner.finalContent()).includes("14 degrees"));
  },
  async run_tools_streamed() {
    const asked = { model: MODEL, messages: user(WEATHER), tools: [weather], stream: true };
    check((await client.chat.completions.runTools(asked).finalContent()).includes("14 degrees"));
  },
  async responses_create() {
    const said = await client.responses.create({ model: MODEL, input: CAPITAL });
    check(said.output_text.includes("Paris"), said);
  },
  async responses_stream() {
    const said = await client.responses.stream({ model: MODEL, input: CAPITAL }).finalResponse();
    check(said.output_text.includes("Paris"), said);
  },
  async responses_parse() {
    const said = await client.responses.parse({
      model: MODEL, input: PERSON, text: { format: zodTextFormat(Person, "person") },
    });
    check(said.output_parsed.born === 1815, said);
  },
  async responses_tools() {
    const input = user(WEATHER);
    const first = await client.responses.create({ model: MODEL, input, tools: [flat], store: false });
    const call = first.output.find((item) => item.type === "function_call");
    input.push(...first.output, { type: "function_call_output", call_id: call.call_id, output: RESULT });
    const said = await client.responses.create({ model: MODEL, input, tools: [flat], store: false });
    check(said.output_text.includes("14 degrees"), said);
  },
  async embeddings() {
    const said = await client.embeddings.create({ model: EMBEDDER, input: [CAPITAL, ...DOCUMENTS] });
    const [query, ...documents] = said.data.map((item) => item.embedding);
    checkNear(query, documents);
    check(said.usage.total_tokens > 20, said.usage);
  },
  async embeddings_float() {
    const asked = { model: EMBEDDER, encoding_format: "float", dimensions: 128 };
    const said = await client.embeddings.create({ ...asked, input: CAPITAL });
    const documents = await client.embeddings.create({ ...asked, input: DOCUMENTS });
    checkNear(said.data[0].embedding, documents.data.map((item) => item.embedding), 128);
  },
});

// Anthropic's SDK for Node.
import Anthropic from "@anthropic-ai/sdk";
import { CAPITAL, MODEL, RESULT, SCHEMA, URL, WEATHER, check, run } from "./cases.mjs";

const client = new Anthropic({ baseURL: URL, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const tool = { name: "weather", description: "The weather.", input_schema: SCHEMA };
const asked = { model: MODEL, max_tokens: 200 };
const user = (content) => [{ role: "user", content }];

await run("anthropic-node", "@anthropic-ai/sdk", {
  async messages() {
    const said = await client.messages.create({ ...asked, messages: user(CAPITAL) });
    check(said.content[0].text.includes("Paris") && said.stop_reason === "end_turn", said);
  },
  async stream() {
    const said = await client.messages.stream({ ...asked, messages: user(CAPITAL) }).finalMessage();
    check(said.content[0].text.includes("Paris"), said);
  },
  async tool_loop() {
    const messages = user(WEATHER);
    const first = await client.messages.create({ ...asked, messages, tools: [tool] });
    const call = first.content.find((block) => block.type === "tool_use");
    const content = [{ type: "tool_result", tool_use_id: call.id, content: RESULT }];
    messages.push({ role: "assistant", content: first.content }, { role: "user", content });
    const said = await client.messages.create({ ...asked, messages, tools: [tool] });
    check(said.content[0].text.includes("14 degrees"), said);
  },
  async tools_streamed() {
    const said = await client.messages.stream({ ...asked, messages: user(WEATHER), tools: [tool] }).finalMessage();
    check(said.content.at(-1).input.city === "Paris", said);
  },
  async count_tokens() {
    const counted = await client.messages.countTokens({ model: MODEL, messages: user(CAPITAL) });
    check(counted.input_tokens > 5, counted);
  },
});

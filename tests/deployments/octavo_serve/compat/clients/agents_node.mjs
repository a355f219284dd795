// OpenAI's Agents SDK for Node, over chats and over Responses.
import { Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, run as go, setTracingDisabled, tool } from "@openai/agents";
import OpenAI from "openai";
import { z } from "zod";
import { CAPITAL, MODEL, PERSON, RESULT, URL, WEATHER, check, run } from "./cases.mjs";

setTracingDisabled(true);
const client = new OpenAI({ baseURL: `${URL}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const Person = z.object({ name: z.string(), born: z.number() });
const weather = tool({
  name: "weather", description: "The weather.", parameters: z.object({ city: z.string() }), execute: async () => RESULT,
});
const models = { chat: OpenAIChatCompletionsModel, responses: OpenAIResponsesModel };
const cases = {};
for (const [name, Model] of Object.entries(models)) {
  const agent = (given) => new Agent({ name: "a", model: new Model(client, MODEL), ...given });
  cases[`${name}_text`] = async () => {
    const said = await go(agent({}), CAPITAL);
    check(said.finalOutput.includes("Paris"), said.finalOutput);
  };
  cases[`${name}_tool_loop`] = async () => {
    const said = await go(agent({ tools: [weather] }), WEATHER);
    check(said.finalOutput.includes("14 degrees"), said.finalOutput);
  };
  cases[`${name}_tool_loop_streamed`] = async () => {
    const said = await go(agent({ tools: [weather] }), WEATHER, { stream: true });
    await said.completed;
    check(said.finalOutput.includes("14 degrees"), said.finalOutput);
  };
  cases[`${name}_typed`] = async () => {
    const said = await go(agent({ outputType: Person }), PERSON);
    check(said.finalOutput.born === 1815, said.finalOutput);
  };
}
await run("agents-node", "@openai/agents", cases);

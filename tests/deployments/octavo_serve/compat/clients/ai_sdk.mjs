// The AI SDK, with its providers for OpenAI-compatible servers (chats) and for OpenAI (Responses).
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { CAPITAL, MODEL, PERSON, RESULT, URL, WEATHER, check, run } from "./cases.mjs";

const given = { baseURL: `${URL}/v1`, apiKey: "none" };
const models = {
  chat: createOpenAICompatible({ name: "octavo", supportsStructuredOutputs: true, ...given })(MODEL),
  responses: createOpenAI(given).responses(MODEL),
};
const tools = {
  weather: tool({
    description: "The weather.", inputSchema: z.object({ city: z.string() }), execute: async () => RESULT,
  }),
};
const Person = z.object({ name: z.string(), born: z.number() });
const cases = {};
for (const [name, model] of Object.entries(models)) {
  const asked = { model, maxRetries: 0 };
  cases[`${name}_text`] = async () => {
    const { text } = await generateText({ ...asked, prompt: CAPITAL });
    check(text.includes("Paris"), text);
  };
  cases[`${name}_stream`] = async () => {
    let text = "";
    for await (const part of streamText({ ...asked, prompt: CAPITAL }).textStream) text += part;
    check(text.includes("Paris"), text);
  };
  cases[`${name}_object`] = async () => {
    const { output } = await generateText({ ...asked, prompt: PERSON, output: Output.object({ schema: Person }) });
    check(output.born === 1815, output);
  };
  cases[`${name}_tools`] = async () => {
    const { text } = await generateText({ ...asked, prompt: WEATHER, tools, stopWhen: stepCountIs(3) });
    check(text.includes("14 degrees"), text);
  };
  cases[`${name}_tools_streamed`] = async () => {
    const said = streamText({ ...asked, prompt: WEATHER, tools, stopWhen: stepCountIs(3) });
    check((await said.text).includes("14 degrees"), await said.text);
  };
}
await run("ai-sdk", "ai", cases);

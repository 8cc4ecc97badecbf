// The AI SDK with its provider for servers of OpenAI's kind: text, streams, objects, tools.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { ANSWER, BASE, checkOrder, Order, QUESTION } from "./order.mjs";

const provider = createOpenAICompatible({
  name: "evenflow",
  baseURL: BASE,
  apiKey: "x",
  includeUsage: true,
  supportsStructuredOutputs: true,
});
const model = provider("base");
const asked = { model, prompt: QUESTION, temperature: 0, maxRetries: 0 };

const said = await generateText({ ...asked, maxOutputTokens: 40 });
assert.match(said.text, ANSWER);
assert.equal(said.finishReason, "stop");
assert.ok(said.usage.outputTokens > 3);

const stream = streamText({ ...asked, maxOutputTokens: 40 });
let text = "";
for await (const part of stream.textStream) text += part;
assert.match(text, ANSWER);
assert.equal((await stream.usage).outputTokens, said.usage.outputTokens);

const { object } = await generateObject({ ...asked, schema: Order, maxOutputTokens: 120 });
checkOrder(object);

const orders = [];
const price = tool({
  description: "What it costs.",
  inputSchema: Order,
  execute: async (order) => {
    orders.push(order);
    return "6 shells";
  },
});
const called = await generateText({ ...asked, tools: { price }, toolChoice: "required", maxOutputTokens: 120 });
checkOrder(called.toolCalls[0].input);
assert.equal(called.toolResults[0].output, "6 shells");

const streamed = streamText({ ...asked, tools: { price }, toolChoice: { type: "tool", toolName: "price" }, maxOutputTokens: 120 });
checkOrder((await streamed.toolCalls)[0].input);
assert.equal(orders.length >= 2, true);
console.log("ok");

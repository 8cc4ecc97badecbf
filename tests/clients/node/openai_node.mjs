// OpenAI's own client for Node: chat, streams, tools, parsed answers, responses.
import assert from "node:assert/strict";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { ANSWER, BASE, checkOrder, Order, QUESTION } from "./order.mjs";

const client = new OpenAI({ baseURL: BASE, apiKey: "x", maxRetries: 0 });
const asked = { model: "base", messages: [{ role: "user", content: QUESTION }], temperature: 0 };
const parameters = z.toJSONSchema(Order);
const tools = [{ type: "function", function: { name: "price", description: "What it costs.", parameters } }];

const said = await client.chat.completions.create({ ...asked, max_tokens: 40 });
assert.match(said.choices[0].message.content, ANSWER);

let text = "";
const stream = await client.chat.completions.create({ ...asked, max_tokens: 40, stream: true });
for await (const chunk of stream) text += chunk.choices[0]?.delta?.content ?? "";
assert.match(text, ANSWER);

const parsed = await client.chat.completions.parse({
  ...asked,
  max_tokens: 120,
  response_format: zodResponseFormat(Order, "order"),
});
checkOrder(parsed.choices[0].message.parsed);

const called = await client.chat.completions.create({ ...asked, max_tokens: 120, tools, tool_choice: "required" });
checkOrder(JSON.parse(called.choices[0].message.tool_calls[0].function.arguments));

// The helper puts the pieces of a streamed call together.
const pieces = client.chat.completions.stream({ ...asked, max_tokens: 120, tools, tool_choice: "required" });
const whole = await pieces.finalChatCompletion();
assert.equal(whole.choices[0].message.tool_calls[0].function.name, "price");
checkOrder(JSON.parse(whole.choices[0].message.tool_calls[0].function.arguments));

// Runs the tool, and goes on with its result.
const costs = [];
const runner = client.chat.completions.runTools({
  ...asked,
  max_tokens: 200,
  tools: [
    {
      type: "function",
      function: {
        name: "price",
        description: "What it costs.",
        parameters,
        parse: JSON.parse,
        function: (order) => {
          costs.push(order);
          return "6 shells";
        },
      },
    },
  ],
  tool_choice: { type: "function", function: { name: "price" } },
});
await runner.done();
assert.equal(costs.length, 1);
checkOrder(costs[0]);
assert.ok(runner.messages.some((message) => message.role === "tool" && message.content === "6 shells"));

const response = await client.responses.create({ model: "base", input: QUESTION, temperature: 0, max_output_tokens: 40 });
assert.match(response.output_text, ANSWER);
const structured = await client.responses.parse({
  model: "base",
  input: QUESTION,
  max_output_tokens: 120,
  text: { format: zodTextFormat(Order, "order") },
});
checkOrder(structured.output_parsed);
const events = client.responses.stream({ model: "base", input: QUESTION, temperature: 0, max_output_tokens: 40 });
assert.match((await events.finalResponse()).output_text, ANSWER);

await assert.rejects(
  client.chat.completions.create({ ...asked, tools, tool_choice: { type: "function", function: { name: "nobody" } } }),
  (error) => error instanceof OpenAI.BadRequestError && /nobody/.test(error.message),
);
console.log("ok");

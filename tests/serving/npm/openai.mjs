// OpenAI's own client: a plain call, a stream, one that is left, a stop text, a failure.
import assert from "node:assert";
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = { model: "s2p", messages: [{ role: "user", content: "3 + 4 = ?" }], max_tokens: 8 };

const whole = await client.chat.completions.create(asked);
const text = whole.choices[0].message.content;
assert(text && whole.usage.total_tokens > 8);

let streamed = "";
let usage = null;
for await (const chunk of await client.chat.completions.create({
  ...asked,
  stream: true,
  stream_options: { include_usage: true },
})) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(streamed, text);
assert.equal(usage.total_tokens, whole.usage.total_tokens);

const left = await client.chat.completions.create({ ...asked, max_tokens: 500, stream: true });
for await (const chunk of left) {
  assert.equal(chunk.choices[0].delta.role, "assistant");
  left.controller.abort();
  break;
}

const stopped = await client.chat.completions.create({ ...asked, max_tokens: 40, stop: ["="] });
assert.equal(stopped.choices[0].finish_reason, "stop");
assert(!stopped.choices[0].message.content.includes("="));

await assert.rejects(client.chat.completions.create({ ...asked, n: 2 }), (error) => {
  return error instanceof OpenAI.BadRequestError && error.param === "n";
});
await assert.rejects(client.chat.completions.create({ ...asked, model: "s2q" }), OpenAI.NotFoundError);
console.log("well");

// The AI SDK: a plain call, a stream, one that is left, a stop text, a failure.
import assert from "node:assert";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, generateText, streamText } from "ai";

const flows = createOpenAICompatible({ name: "flowinfer", baseURL: process.argv[2], includeUsage: true });
const asked = { model: flows("s2p"), prompt: "3 + 4 = ?", maxOutputTokens: 8, maxRetries: 0 };

const whole = await generateText(asked);
assert(whole.text && whole.usage.totalTokens > 8);
assert(whole.reasoningText.startsWith("[Yi]"));

const stream = streamText({ ...asked, onError: ({ error }) => assert.fail(String(error)) });
let streamed = "";
for await (const piece of stream.textStream) streamed += piece;
assert.equal(streamed, whole.text);
assert.equal((await stream.usage).totalTokens, whole.usage.totalTokens);

const leaving = new AbortController();
const left = streamText({ ...asked, maxOutputTokens: 500, abortSignal: leaving.signal, onError: () => {} });
for await (const piece of left.fullStream) {
  if (piece.type === "text-delta" || piece.type === "reasoning-delta") {
    leaving.abort();
    break;
  }
}

const stopped = await generateText({ ...asked, maxOutputTokens: 40, stopSequences: ["="] });
assert.equal(stopped.finishReason, "stop");
assert(!stopped.text.includes("="));

await assert.rejects(generateText({ ...asked, model: flows("s2q") }), (error) => {
  return APICallError.isInstance(error) && error.statusCode === 404 && error.message.includes("did you mean 's2p'?");
});
console.log("well");

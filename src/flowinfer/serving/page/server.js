/* The server: JSON, streams of events, and whether it is there. */
class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const server = {
  key: sessionStorage.getItem("key") ?? "",
  headers() {
    return this.key ? { Authorization: `Bearer ${this.key}` } : {};
  },
  async reply(path, options = {}) {
    const reply = await fetch(path, { ...options, headers: { ...this.headers(), ...options.headers }, cache: "no-store" });
    if (reply.ok) return reply;
    const said = await reply.json().catch(() => ({}));
    throw new Refused(reply.status, said.error?.message ?? `the server answers ${reply.status}`);
  },
  async json(path) {
    return (await this.reply(path)).json();
  },
  async text(path) {
    return (await this.reply(path)).text();
  },

  /* Yield the events of an answer, those of one network packet together. */
  async *told(body, signal) {
    const reply = await this.reply("/flowinfer/chat", {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), signal,
    });
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let rest = ""; ;) {
      const { done, value } = await reader.read();
      if (done) throw new TypeError("the server is gone");
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      const data = blocks.filter((block) => block.startsWith("data: ")).map((block) => block.slice(6));
      const isLast = data.at(-1) === "[DONE]";
      const events = data.slice(0, isLast ? -1 : undefined).map((one) => JSON.parse(one));
      const failed = events.find((event) => event.error);
      if (events.length) yield events.filter((event) => !event.error);
      if (failed) throw new Refused(500, failed.error.message);
      if (isLast) return;
    }
  },
};

/* Whether the server is there and its models loaded: asked now and then, and shown where it is not so. */
const readiness = {
  state: "", // "", ready, loading, draining, failed, gone
  listeners: [],
  async watch() {
    for (;;) {
      await this.look();
      const pause = this.state === "ready" && !this.isLoading ? 5000 : 1000;
      await new Promise((wake) => { this.wake = wake; setTimeout(wake, pause); });
    }
  },
  soon() {
    this.wake?.();
  },
  async look() {
    let said;
    try {
      const reply = await fetch("/ready", { cache: "no-store" });
      said = await reply.json();
    } catch {
      said = { status: "gone" };
    }
    const before = this.state;
    this.state = said.status;
    this.show(said, before);
    if (before !== this.state) for (const hear of this.listeners) hear(this.state, before);
  },
  show(said, before) {
    const place = $("notice");
    this.isLoading = said.status === "loading" || (said.status === "ready" && Boolean(said.loading)); // some are loaded when first asked
    const words = this.words(said, before);
    place.hidden = !words;
    place.className = said.status;
    const share = this.isLoading ? this.share(said) : null;
    const bar = share === null ? null : (place.querySelector("progress") ?? make("progress", { max: 1, "aria-label": "Models loaded" }));
    if (bar) bar.value = share;
    if (place.dataset.words === words) return; // it is read out again only where it says something else
    place.dataset.words = words ?? "";
    place.replaceChildren(...[words, bar].filter(Boolean));
    if (this.passing) clearTimeout(this.passing);
    if (words && said.status === "ready") this.passing = setTimeout(() => { place.hidden = true; }, 4000);
  },
  words(said, before) {
    switch (this.isLoading ? "loading" : said.status) {
      case "gone": return before === "" ? "The server does not answer; trying again." : "The server is gone; trying again every second.";
      case "loading": {
        const loaded = Object.keys(said.loaded ?? {}), others = (said.waiting_for ?? []).filter((one) => one !== `loading ${said.loading}`);
        const now = said.loading ? `Loading ${said.loading}` : others.length ? `Making ready (${others.join(", ")})` : "Loading models";
        return `${now}${loaded.length ? `; in memory: ${loaded.join(", ")}` : ""}.`;
      }
      case "draining": return "The server is stopping and takes no questions.";
      case "failed": return "The server cannot answer any more; its log says why.";
      default: return before === "gone" ? "The server is back." : before === "loading" ? "All models are loaded." : null;
    }
  },
  /* How much is in memory: by bytes where the server tells them, else by models. */
  share(said) {
    const models = Object.values(said.models ?? {});
    if (models.length && models.every((model) => model.bytes)) {
      const read = models.map((model) => (model.state === "loaded" ? model.bytes : Math.min(model.bytes_read ?? 0, model.bytes)));
      return read.reduce((sum, one) => sum + one, 0) / models.reduce((sum, model) => sum + model.bytes, 0);
    }
    const names = new Set(flows.all.flatMap((flow) => flow.heads));
    return names.size ? Math.min(1, Object.keys(said.loaded ?? {}).length / names.size) : null;
  },
};

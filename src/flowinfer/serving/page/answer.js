/* One answer: what was told of it so far. It knows nothing of what is shown. */
class Step {
  constructor(described) {
    Object.assign(this, described); // id, title, label, heads, groups
    this.begin("waiting");
    this.starts = 0;
  }

  begin(state) {
    this.state = state;
    this.starts = (this.starts ?? 0) + 1; // one that begins again starts from nothing
    this.tokens = [];
    this.since = performance.now();
    this.result = null;
    this.decoder = new TextDecoder();
  }

  write(token) {
    this.state = "writing";
    token.text = token.bytes === null ? "" : this.decoder.decode(Uint8Array.from(token.bytes), { stream: true });
    token.name = token.bytes === null ? null : token.text;
    this.tokens.push(token);
  }

  /* Take text of an endpoint, which does not tell who wanted it. */
  append(text) {
    this.state = "writing";
    this.tokens.push({ text, name: text, bytes: [], probability: null, lead: null, heads: [] });
  }

  get written() {
    return this.result?.tokens ?? this.tokens.filter((token) => token.bytes !== null).length;
  }

  get seconds() {
    if (this.result) return this.result.seconds;
    return this.state === "waiting" ? null : (performance.now() - this.since) / 1000;
  }
}

class Answer {
  constructor(flow, question, body) {
    this.flow = flow.id;
    this.question = question;
    this.body = body;
    this.steps = new Map(flow.steps.map((step) => [step.id, new Step(step)]));
    this.finals = flow.answer.steps;
    this.known = new Set(flow.answer.finals); // steps whose text is the answer wherever they run
    this.final = null; // the one of them that has begun; none where it is decided later whose text is the answer
    this.indices = new Set(); // of the last step's tokens, those of the answer
    this.tokens = []; // those of the answer, as far as they are known
    this.text = null; // once it is whole
    this.state = "waiting"; // waiting, answering, answered, stopped, failed
    this.reason = "";
    this.views = [];
    this.control = new AbortController();
  }

  get isOver() {
    return ["answered", "stopped", "failed"].includes(this.state);
  }

  async ask() {
    try {
      for await (const events of server.told({ model: this.flow, ...this.body }, this.control.signal)) {
        for (const event of events) this.hear(event);
        this.changed();
      }
    } catch (error) {
      this.end(error);
    }
    this.changed();
  }

  stop() {
    this.control.abort();
  }

  hear(event) {
    if (this.state === "waiting") this.state = "answering";
    const step = this.steps.get(event.step);
    if (event.event === "step_began") {
      step.begin("reading");
      if (this.known.has(step.id)) this.final = step;
      if (step === this.final) this.tokens = [];
    } else if (event.event === "text") {
      step.append(event.text);
      if (step === this.final) this.tokens.push(step.tokens.at(-1));
    } else if (event.event === "token") {
      step.write(event);
      if (step === this.final && this.indices.has(event.index)) this.tokens.push(event); // told of before it began again
    } else if (event.event === "step_ended") {
      step.result = event;
      step.state = "done";
    } else if (event.event === "answered") {
      Object.assign(this, { text: event.text, seconds: event.seconds, finish: event.finish_reason, ballot: event.ballot, selections: event.selections, state: "answered" });
      const writer = this.final ?? this.winner;
      if (writer !== this.final) this.tokens = [...writer.tokens];
      else if (writer.tokens.at(-1)?.bytes === null) this.tokens.push(writer.tokens.at(-1));
    }
    for (const index of event.answer ?? []) this.settle(index);
  }

  settle(index) {
    if (this.indices.has(index)) return;
    this.indices.add(index);
    if (this.final.tokens[index]) this.tokens.push(this.final.tokens[index]);
  }

  /* The step whose text was taken, its thoughts left out. */
  get winner() {
    const members = this.finals.map((id) => this.steps.get(id));
    return members.find((step) => step.result?.text === this.text) ?? members.find((step) => step.result?.text.endsWith(this.text)) ?? members[0];
  }

  end(error) {
    if (this.state === "answered") return; // all that was to come is here
    this.state = error.name === "AbortError" ? "stopped" : "failed";
    if (this.state === "failed") {
      this.reason = error instanceof Refused ? error.message : "The server is gone. What was written so far is here.";
      if (!(error instanceof Refused)) readiness.soon();
    }
    for (const step of this.steps.values()) if (step.state === "reading" || step.state === "writing") step.state = this.state;
  }

  changed() {
    for (const view of this.views) frames.ask(view);
  }

  get said() {
    return this.text ?? this.tokens.map((token) => token.text).join("");
  }

  get writes() {
    return this.final ?? this.steps.get(this.finals.at(-1));
  }

  drafts() {
    const ended = [...this.steps.values()].map((step) => step.result).filter(Boolean);
    const sum = (name) => ended.reduce((total, result) => total + (result[name] ?? 0), 0);
    return { drafted: sum("drafted_tokens"), accepted: sum("accepted_tokens") };
  }
}

/* How many of each head's favourites were written, counted as tokens come. */
class Agreement {
  count(tokens) {
    if (tokens !== this.tokens) Object.assign(this, { tokens, next: 0, heads: new Map() });
    for (; this.next < tokens.length; this.next += 1) {
      const token = tokens[this.next];
      let agreed = 0;
      for (const head of token.heads) {
        const own = this.heads.get(head.node) ?? { model: head.model, agreed: 0, all: 0 };
        this.heads.set(head.node, own);
        own.all += 1;
        if (agrees(head, token)) {
          own.agreed += 1;
          agreed += 1;
        }
      }
      token.share = token.heads.length ? agreed / token.heads.length : 1;
    }
    return [...this.heads.values()].map((own) => ({ model: own.model, share: own.agreed / own.all }));
  }
}

const agrees = (head, token) => (head.bytes === null || token.bytes === null ? head.bytes === token.bytes
  : head.bytes.length === token.bytes.length && head.bytes.every((byte, at) => byte === token.bytes[at]));
const nameOf = (bytes) => (bytes === null ? null : new TextDecoder().decode(Uint8Array.from(bytes)));

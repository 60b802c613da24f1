/* A question with its answer, or with two answers of two flows side by side. */
class AnswerView {
  constructor(answer, onKeep) {
    this.answer = answer;
    this.agreement = new Agreement();
    this.text = new TokenText(this, `Answer of ${answer.flow}`, "the answer", () => answer.tokens, () => answer.text);
    this.state = make("span", { class: "chip" });
    this.doing = make("p", { class: "doing" });
    this.reason = make("p", { class: "reason", role: "alert", hidden: true });
    this.strip = make("canvas", { class: "strip", role: "img", height: 24, hidden: true, onclick: (event) => this.jump(event) });
    this.facts = make("dl", { class: "facts" });
    this.stages = make("div", { class: "stages" });
    this.keep = make("button", { type: "button", class: "keep", hidden: true, onclick: onKeep }, "Go on with this");
    this.element = make("article", { class: "answer", "aria-label": `Answer of ${answer.flow}` },
      make("h3", {}, answer.flow, this.state, this.keep), this.doing, this.text.element, this.reason, this.strip, this.facts, this.stages);
    this.stageViews = new Map();
    answer.views.push(this);
    frames.ask(this);
  }

  paint() {
    const { answer } = this, active = [...answer.steps.values()].filter((step) => step.state === "reading" || step.state === "writing");
    this.text.paint();
    this.element.dataset.state = answer.state;
    this.element.setAttribute("aria-busy", String(!answer.isOver));
    this.state.textContent = { waiting: "waiting", answering: "writing", answered: "", stopped: "stopped", failed: "failed" }[answer.state];
    this.state.hidden = answer.state === "answered";
    const early = answer.isOver || answer.tokens.length ? [] : active;
    this.doing.textContent = early.map((step) => `${step.title} is ${step.state}${step.written ? `, ${count(step.written, "token")}` : ""}`).join(" · ");
    this.doing.hidden = !early.length;
    if (answer.text === "") this.doing.replaceChildren("The answer is empty.");
    this.doing.hidden = !this.doing.textContent;
    this.reason.hidden = answer.state !== "failed";
    if (this.reason.textContent !== answer.reason) this.reason.textContent = answer.reason;
    this.measure();
    this.paintStages();
    this.hear?.();
  }

  measure() {
    const { answer } = this, heads = this.agreement.count(answer.tokens);
    const saved = answer.saved?.facts;
    const facts = saved ?? this.measured(heads);
    const shown = JSON.stringify(facts);
    if (shown !== this.shownFacts) this.facts.replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
    this.shownFacts = shown;
    this.strip.hidden = heads.length < 2 || answer.tokens.length < 2;
    if (!this.strip.hidden) this.draw(heads);
  }

  measured(heads) {
    const { answer } = this, facts = [], step = answer.writes;
    if (heads.length > 1) {
      const mean = heads.reduce((sum, head) => sum + head.share, 0) / heads.length;
      facts.push(["agreement", `${percent(mean)} (${heads.map((head) => `${head.model} ${Math.round(100 * head.share)}`).join(", ")})`]);
    }
    if (step?.written) {
      facts.push(["tokens", String(step.written)]);
      if (step.seconds > 0) facts.push(["tokens/s", (step.written / step.seconds).toFixed(1)]);
    }
    if (answer.isOver && answer.state === "answered") {
      const { drafted, accepted } = answer.drafts();
      facts.push(["drafts accepted", drafted ? `${accepted} of ${drafted}` : "none made"], ["seconds", answer.seconds.toFixed(2)]);
      if (answer.finish === "length" || answer.finish === "context") facts.push(["ended", answer.finish === "length" ? "at most tokens" : "at the context's end"]);
      for (const taken of answer.selections) facts.push(["taken", taken]);
      if (answer.ballot) facts.push(["vote", answer.ballot]);
    }
    return facts;
  }

  /* How many heads agreed, token after token: full height where all did. */
  draw(heads) {
    const { strip } = this, { tokens } = this.answer, width = strip.clientWidth || 300, scale = devicePixelRatio || 1;
    if (strip.width !== Math.round(width * scale)) strip.width = Math.round(width * scale);
    strip.height = Math.round(24 * scale);
    const pen = strip.getContext("2d"), style = getComputedStyle(document.documentElement);
    const columns = Math.min(tokens.length, Math.floor(strip.width / 2)), wide = Math.min(strip.width / columns, 14 * scale);
    const [good, bad] = [style.getPropertyValue("--strip"), style.getPropertyValue("--strip-out")];
    pen.clearRect(0, 0, strip.width, strip.height);
    for (let column = 0; column < columns; column += 1) {
      const from = Math.floor(column * tokens.length / columns), to = Math.max(from + 1, Math.floor((column + 1) * tokens.length / columns));
      let least = 1;
      for (let index = from; index < to; index += 1) least = Math.min(least, tokens[index].share);
      const height = Math.max(2 * scale, least * strip.height);
      pen.fillStyle = least === 1 ? good : bad;
      pen.fillRect(column * wide, strip.height - height, Math.max(1, wide - scale), height);
    }
    this.stripEnd = columns * wide / scale;
    strip.setAttribute("aria-label", `Agreement over the answer: ${heads.map((head) => `${head.model} ${percent(head.share)}`).join(", ")}`);
  }

  jump(event) {
    const share = event.offsetX / this.stripEnd;
    if (share > 1 || !this.text.spans.length) return;
    this.text.select(Math.floor(share * this.text.spans.length));
    this.text.spans[this.text.at].scrollIntoView({ block: "nearest" });
  }

  paintStages() {
    this.stages.hidden = !$("stages").checked || !this.answer.steps.size;
    if (this.stages.hidden) return;
    for (const step of this.answer.steps.values()) {
      if (!this.stageViews.has(step.id)) {
        this.stageViews.set(step.id, new StageView(this, step));
        this.stages.append(this.stageViews.get(step.id).element);
      }
      this.stageViews.get(step.id).paint();
    }
  }
}

class StageView {
  constructor(owner, step) {
    this.step = step;
    this.head = make("h4");
    this.prompts = make("div");
    this.text = new TokenText(owner, `Text of ${step.title}`, step.title, () => step.tokens, () => (step.tokens.length ? null : step.result?.text ?? null));
    this.element = make("section", { class: "stage", "aria-label": `Stage ${step.title}` }, this.head, this.prompts, this.text.element);
  }

  paint() {
    const { step } = this, told = step.result;
    this.head.replaceChildren(step.title, step.label ? ` as ${step.label}` : "", make("span", { class: "soft" },
      ` ${step.state}${step.written ? ` · ${count(step.written, "token")}` : ""}${step.seconds === null ? "" : ` · ${seconds(step.seconds)}`}`));
    this.text.paint();
    if (!told || this.shown === told) return;
    this.shown = told;
    const nodes = new Map(told.heads.map((head) => [head.node, head.model])); // equal stages of a flow may share a loop, and its nodes
    this.prompts.replaceChildren(...Object.entries(told.prompts).map(([node, prompt]) => make("details", {},
      make("summary", {}, `Prompt of ${nodes.get(node) ?? node}`), make("pre", { dir: "auto" }, prompt))));
  }
}

class Turn {
  constructor(question, turns) {
    this.question = question;
    this.before = turns; // what the chat was when it was asked
    this.answers = [];
    this.kept = 0;
    this.other = make("select", { "aria-label": "Flow to ask the same" });
    this.button = make("button", { type: "button", onclick: () => chat.askAgain(this, this.other.value) }, "Ask it too");
    this.again = make("div", { class: "again" }, this.other, this.button);
    this.difference = make("p", { class: "difference", hidden: true });
    this.pair = make("div", { class: "pair" });
    this.element = make("section", { class: "turn", "aria-label": "Question and answer" },
      make("div", { class: "asked" }, make("p", { class: "question", dir: "auto" }, question), this.again), this.difference, this.pair);
    this.offer();
  }

  /* Offer the flows that can be asked the same. */
  offer() {
    const first = this.answers[0]?.answer.flow;
    const names = flows.all.map((flow) => flow.id).filter((name) => name !== first);
    this.other.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
    this.again.hidden = !names.length || !this.answers.length;
  }

  add(answer) {
    if (this.answers.length > 1) {
      this.answers[1].answer.stop();
      this.answers.pop();
    }
    const index = this.answers.length, view = new AnswerView(answer, () => this.keep(index));
    this.answers.push(view);
    this.pair.replaceChildren(...this.answers.map((one) => one.element));
    this.pair.classList.toggle("two", this.answers.length > 1);
    for (const one of this.answers) one.text.hear = this.answers.length > 1 ? () => this.compare() : undefined;
    this.same = 0;
    this.keep(Math.min(this.kept, index));
    this.offer();
    return view;
  }

  /* Which answer the chat goes on with. */
  keep(index) {
    this.kept = index;
    this.answers.forEach((view, at) => {
      view.keep.hidden = this.answers.length < 2;
      view.keep.setAttribute("aria-pressed", String(at === index));
      view.keep.textContent = at === index ? "The chat goes on with this" : "Go on with this";
    });
    chat.save();
  }

  get answer() {
    return this.answers[this.kept]?.answer;
  }

  /* Mark the first token in which two answers differ. */
  compare() {
    const [one, two] = this.answers.map((view) => view.text), over = this.answers.every((view) => view.answer.isOver);
    const least = Math.min(one.text.length, two.text.length);
    if (this.same > least) this.same = 0; // one has begun again
    while (this.same < least && one.text[this.same] === two.text[this.same]) this.same += 1;
    const differ = this.same < least || (over && one.text.length !== two.text.length);
    const marked = differ ? [one, two].map((text) => text.spans[text.tokenAt(this.same)]) : [];
    for (const text of [one, two]) for (const span of text.element.querySelectorAll(".differs")) if (!marked.includes(span)) span.classList.remove("differs");
    for (const span of marked) span?.classList.add("differs");
    this.difference.hidden = !differ && !over;
    const words = !differ ? "Both answers are the same." : `First difference at tokens ${marked.map((span) => (span ? span.index + 1 : "?")).join(" and ")}: `;
    this.difference.replaceChildren(words, ...marked.flatMap((span, at) => [at ? " here, there " : "", make("bdi", { class: "piece" }, span ? visible([one, two][at].tokens[span.index].name) : "nothing")]));
  }
}

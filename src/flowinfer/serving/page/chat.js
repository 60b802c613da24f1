/* The conversation: what was said, what is asked next, and what a reload keeps of it. */
const flows = {
  all: [],
  chosen: null,
  async load() {
    const { data } = await server.json("/v1/models");
    this.all = data.map((model) => ({ id: model.id, ...model.flowinfer, source: model.flowinfer.flow.replace(/^\s*#.*$/gm, "").replace(/\s+/g, " ").trim() }));
    const before = sessionStorage.getItem("flow");
    this.chosen = this.all.find((flow) => flow.id === (this.chosen?.id ?? before)) ?? this.all[0] ?? null;
    $("flow-list").replaceChildren(...this.all.map((flow) => this.entry(flow)));
    graph.forget();
    if (this.chosen) this.choose(this.chosen.id);
  },
  entry(flow) {
    const radio = make("input", { type: "radio", name: "flow", value: flow.id, onchange: () => this.choose(flow.id) });
    radio.checked = flow === this.chosen;
    return make("label", { class: "choice" }, radio, make("span", {}, make("b", {}, flow.id), make("code", {}, flow.source)));
  },
  choose(id) {
    this.chosen = this.find(id);
    sessionStorage.setItem("flow", id);
    for (const radio of document.querySelectorAll("#flow-list input")) radio.checked = radio.value === id;
    if (graph.answer?.flow !== id) graph.follow(null);
    graph.flow(this.chosen);
  },
  find(id) {
    return this.all.find((flow) => flow.id === id) ?? { id, steps: [], heads: [], answer: { kind: "vote", steps: [] } };
  },
};

const chat = {
  turns: [],
  running: new Set(),
  start() {
    const field = $("question");
    $("ask").addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    $("stop").addEventListener("click", () => this.stop());
    $("new").addEventListener("click", () => this.clear());
    $("stages").addEventListener("change", () => { for (const turn of this.turns) for (const view of turn.answers) frames.ask(view); });
    field.addEventListener("input", () => this.fit());
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      if (this.running.size) this.stop();
      else inspector.close();
    });
    addEventListener("beforeunload", () => this.stop()); // who leaves has stopped; nothing has failed
    addEventListener("pagehide", () => this.save());
  },
  fit() {
    const field = $("question");
    field.style.height = "auto";
    field.style.height = `${Math.min(field.scrollHeight + 2, innerHeight / 3)}px`;
  },
  send(question = $("question").value) {
    if (!question.trim() || !flows.chosen) return;
    $("question").value = this.running.size ? question : ""; // one at a time: it waits to be sent
    if (this.running.size) return;
    this.fit();
    const turn = new Turn(question, [...this.turns]);
    this.turns.push(turn);
    $("turns").append(turn.element);
    this.put(turn, flows.chosen);
    turn.element.scrollIntoView({ block: "end" });
    this.follows = true;
  },
  askAgain(turn, name) {
    const flow = flows.all.find((one) => one.id === name);
    if (!flow || this.running.size) return;
    flows.choose(name);
    this.put(turn, flow);
  },
  async put(turn, flow) {
    const answer = new Answer(flow, turn.question, this.body(turn));
    this.running.add(answer);
    const view = turn.add(answer);
    view.text.hear = ((before) => () => { before?.(); this.scroll(); })(view.text.hear);
    graph.follow(answer);
    graph.flow(flow);
    this.shown();
    say(`${flow.id} is asked.`);
    setTimeout(() => readiness.soon(), 500); // its models may have to be loaded first
    await answer.ask();
    this.running.delete(answer);
    this.shown();
    this.save();
    say(answer.state === "answered" ? `${flow.id} has answered: ${answer.text.slice(0, 500)}` : answer.state === "stopped" ? "Stopped." : "");
  },
  body(turn) {
    const messages = [], system = $("system").value.trim();
    if (system) messages.push({ role: "system", content: system });
    for (const earlier of turn.before) {
      const text = earlier.answer?.said;
      if (text?.trim()) messages.push({ role: "user", content: earlier.question }, { role: "assistant", content: text });
    }
    messages.push({ role: "user", content: turn.question });
    const options = {};
    for (const name of ["max_tokens", "temperature", "seed"]) if ($(name).value !== "") options[name] = Number($(name).value);
    return { messages, ...options };
  },
  stop() {
    for (const answer of this.running) answer.stop();
  },
  clear() {
    this.stop();
    this.turns = [];
    $("turns").replaceChildren();
    inspector.close();
    graph.follow(null);
    this.save();
    this.shown();
    $("question").focus();
  },
  shown() {
    $("empty").hidden = this.turns.length > 0;
    $("stop").hidden = !this.running.size;
    $("send").hidden = Boolean(this.running.size);
    $("new").hidden = !this.turns.length;
    for (const turn of this.turns) turn.button.disabled = Boolean(this.running.size);
  },
  /* Stay at the end of an answer that is being written, unless its reader has gone elsewhere. */
  scroll() {
    const place = document.scrollingElement;
    if (this.follows) place.scrollTop = place.scrollHeight;
  },
  save() {
    const kept = this.turns.map((turn) => ({ question: turn.question, kept: turn.kept,
      answers: turn.answers.map(({ answer, shownFacts }) => ({ flow: answer.flow, text: answer.said, state: answer.isOver ? answer.state : "stopped", reason: answer.reason, facts: JSON.parse(shownFacts ?? "[]") })) }));
    try {
      sessionStorage.setItem("chat", JSON.stringify(kept));
    } catch { /* more than a browser keeps: a reload begins anew */ }
  },
  restore() {
    let kept = [];
    try {
      kept = JSON.parse(sessionStorage.getItem("chat") ?? "[]");
    } catch { /* not ours */ }
    for (const saved of kept) {
      const turn = new Turn(saved.question, [...this.turns]);
      this.turns.push(turn);
      $("turns").append(turn.element);
      for (const one of saved.answers) {
        const answer = new Answer(flows.find(one.flow), saved.question, {});
        answer.steps.clear();
        Object.assign(answer, { text: one.text, state: one.state, reason: one.reason, saved: one });
        turn.add(answer);
      }
      turn.keep(saved.kept);
    }
    this.shown();
  },
};

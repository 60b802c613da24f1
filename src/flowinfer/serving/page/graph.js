/* The flow's drawing, its parts coloured by what they do, and the same as a table. */
const GRAPH_STYLE = `
  :host { display: block; }
  svg { display: block; margin: 0 auto; max-width: 100%; height: auto; overflow: visible; }
  .paper { fill: none; }
  .waiting > rect { stroke-dasharray: 3 3; }
  .reading > rect { fill: var(--reading); stroke-width: 2.6; } .writing > rect { fill: var(--writing); stroke-width: 2.6; }
  .done > rect { fill: var(--done); } .failed > rect, .stopped > rect { fill: var(--failed); }
  [class] > .stat { fill: var(--ink); } .stat { font-variant-numeric: tabular-nums; } .beside { text-anchor: start; }
  .writing > rect { animation: beat 1s ease-in-out infinite alternate; }
  @keyframes beat { to { stroke-width: 4.5; } }
  @media (prefers-reduced-motion: reduce) { .writing > rect { animation: none; } }
`;

const graph = {
  answer: null,
  colours: new Map(), // by model; a model has one colour in every drawing
  parts: new Map(),
  drawings: new Map(),
  start() {
    this.root = $("graph").attachShadow({ mode: "open" });
  },
  async flow(flow) {
    if (this.shown === flow.id) return;
    this.shown = flow.id;
    this.steps = flow.steps.map((step) => new Step(step));
    let text = this.drawings.get(flow.id);
    if (text === undefined) {
      text = await server.text(`/flowinfer/flows/${encodeURIComponent(flow.id)}.svg?direction=down`).catch(() => "");
      if (text) this.drawings.set(flow.id, text);
    }
    if (this.shown !== flow.id) return;
    this.draw(text);
    frames.ask(this);
  },
  forget() {
    this.drawings.clear();
    this.shown = null;
  },
  draw(text) {
    const style = make("style", {}, GRAPH_STYLE);
    this.parts.clear();
    const svg = text ? document.importNode(new DOMParser().parseFromString(text, "image/svg+xml").documentElement, true) : "";
    this.root.replaceChildren(...(svg ? [svg, style] : [style]));
    if (!svg) return;
    for (const part of svg.querySelectorAll("[data-part]")) {
      const box = part.querySelector("rect"), role = part.querySelector(".soft"); // what a model has done stands where its role stood
      const stat = role ?? document.createElementNS("http://www.w3.org/2000/svg", "text");
      if (!role) {
        stat.setAttribute("class", "soft beside");
        stat.setAttribute("x", Number(box.getAttribute("width")) + 8);
        stat.setAttribute("y", 21);
        part.append(stat);
      }
      stat.classList.add("stat");
      this.parts.set(part.dataset.part, { part, stat, idle: stat.textContent });
      if (role) this.colours.set(part.querySelector("text").textContent, box.getAttribute("stroke"));
    }
  },
  follow(answer) {
    if (this.answer) this.answer.views = this.answer.views.filter((view) => view !== this);
    this.answer = answer;
    answer?.views.push(this);
    clearInterval(this.clock);
    if (answer && !answer.isOver) this.clock = setInterval(() => frames.ask(this), 250); // seconds go on without tokens
    frames.ask(this);
  },
  paint() {
    const answer = this.answer?.flow === this.shown ? this.answer : null;
    if (this.answer?.isOver) clearInterval(this.clock);
    const steps = answer ? [...answer.steps.values()] : this.steps ?? [];
    for (const step of steps) {
      for (const group of step.groups) this.mark(group, answer ? step.state : "", answer ? this.stat(step, step.seconds) : "");
      for (const head of step.heads) this.mark(head.node, answer ? step.state : "", answer ? this.stat(step, this.secondsOf(step, head)) : "");
    }
    this.mark("question", answer ? "done" : "", "");
    this.mark("answer", answer?.isOver ? (answer.state === "answered" ? "done" : answer.state) : "", answer?.seconds ? seconds(answer.seconds) : "");
    this.table(steps, answer);
  },
  secondsOf(step, head) {
    const told = step.result?.heads ?? [];
    return (told.find((one) => one.node === head.node) ?? told.find((one) => one.model === head.model))?.seconds ?? step.seconds;
  },
  stat(step, time) {
    return step.state === "waiting" ? "" : `${step.written} tok · ${seconds(time)}`;
  },
  mark(name, state, stat) {
    const found = this.parts.get(name);
    if (!found) return;
    found.part.setAttribute("class", state);
    if (found.stat.textContent !== (stat || found.idle)) found.stat.textContent = stat || found.idle;
  },
  table(steps, answer) {
    const rows = steps.map((step) => make("tr", {}, make("th", { scope: "row" }, step.title), make("td", { class: answer ? step.state : "" }, answer ? step.state : ""),
      make("td", { class: "num" }, step.state === "waiting" ? "" : String(step.written)), make("td", { class: "num" }, step.seconds === null ? "" : step.seconds.toFixed(2))));
    $("steps").tBodies[0].replaceChildren(...rows);
    const active = steps.filter((step) => step.state === "reading" || step.state === "writing");
    $("flow-state").textContent = active.map((step) => `${step.title} ${step.state} ${step.written || ""}`).join(", ") || (answer ? answer.state : "");
  },
};

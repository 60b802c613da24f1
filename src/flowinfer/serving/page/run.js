/* A run folder's samples: those that were right, wrong, or changed on their way through the flow. */
const PER_PAGE = 100;
const KINDS = ["all", "right", "wrong", "changed", "failed"];

const run = {
  data: null,
  kind: "all",
  async load() {
    this.data = await server.json("/flowinfer/run");
    if (!this.data) return;
    $("run-name").textContent = this.data.name;
    $("run-says").textContent = this.data.says.join(" · ");
    const has = (kind) => kind === "all" || this.data.samples.some((sample) => this.is(sample, kind));
    $("run-kinds").replaceChildren(...KINDS.filter(has).map((kind) => {
      const number = this.data.samples.filter((sample) => this.is(sample, kind)).length;
      const radio = make("input", { type: "radio", name: "kind", value: kind, onchange: () => { this.kind = kind; this.list(); } });
      radio.checked = kind === this.kind;
      return make("label", { class: "pill" }, radio, make("span", {}, `${kind} ${number}`));
    }));
    $("run-words").addEventListener("input", () => this.list());
    $("run-filter").addEventListener("submit", (event) => event.preventDefault());
    $("run-more").addEventListener("click", () => this.more());
    this.list();
  },
  is(sample, kind) {
    return kind === "all" || (kind === "changed" ? sample.changed : sample.verdict === kind);
  },
  list() {
    const words = $("run-words").value.toLowerCase().split(/\s+/).filter(Boolean);
    this.found = this.data.samples.filter((sample) => this.is(sample, this.kind)
      && words.every((word) => `${sample.id} ${sample.question} ${sample.found ?? ""}`.toLowerCase().includes(word)));
    this.next = 0;
    $("samples").replaceChildren();
    $("run-count").textContent = count(this.found.length, "sample");
    this.more();
  },
  more() {
    const some = this.found.slice(this.next, this.next + PER_PAGE);
    this.next += some.length;
    $("samples").append(...some.map((sample) => this.entry(sample)));
    $("run-more").hidden = this.next >= this.found.length;
  },
  entry(sample) {
    const whole = make("div"), marks = [make("span", { class: `verdict ${sample.verdict}` }, sample.verdict)];
    if (sample.changed) marks.push(make("span", { class: "verdict changed" }, "changed"));
    return make("details", { class: "sample", ontoggle: (event) => { if (event.target.open && !whole.childElementCount) this.open(sample, whole); } },
      make("summary", {}, make("span", { class: "marks" }, ...marks), make("bdi", { class: "what" }, sample.question), make("bdi", { class: "found" }, sample.found ?? "no answer")), whole);
  },
  async open(sample, place) {
    let record;
    try {
      record = await server.json(`/flowinfer/run/samples?id=${encodeURIComponent(sample.id)}`);
    } catch (error) {
      place.replaceChildren(make("p", { class: "reason", role: "alert" }, error.message ?? "the server is gone"));
      return;
    }
    const { question, trace, score } = record;
    const text = (title, body) => make("section", { class: "stage" }, make("h4", {}, ...title), make("pre", { dir: "auto" }, body));
    const stages = trace.steps.map((step) => {
      const heads = step.heads.map((head) => (head.agreement === null || step.heads.length < 2 ? head.model : `${head.model} ${percent(head.agreement)}`)).join(", ");
      const made = text([this.data.titles[step.step] ?? step.step, make("span", { class: "soft" }, ` ${heads} · ${count(step.tokens, "token")} · ${seconds(step.seconds)}`)], step.text);
      const models = new Map(step.heads.map((head) => [head.node, head.model]));
      made.querySelector("h4").after(...Object.entries(step.prompts).map(([node, prompt]) => make("details", {}, make("summary", {}, `Prompt of ${models.get(node) ?? node}`), make("pre", { dir: "auto" }, prompt))));
      return made;
    });
    const choices = Object.entries(question.choices).map(([letter, choice]) => `\n${letter}. ${choice}`).join("");
    const asked = question.question + choices;
    place.replaceChildren(text([`Question ${question.id}`], asked), ...stages,
      make("p", {}, trace.error ? `Failed: ${trace.error}` : score ? `Found ${score.extracted ?? "nothing"}, reference ${question.reference.split("\n").at(-1)}` : "Not judged"));
    if (flows.chosen) place.append(make("button", { type: "button", onclick: () => { show("chat"); chat.send(asked); } }, "Ask it here, token by token"));
  },
};

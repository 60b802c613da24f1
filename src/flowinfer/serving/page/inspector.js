/* One token: what each head gave it, and what each wanted itself. */
const inspector = {
  view: null,
  start() {
    $("token-at").addEventListener("input", () => this.view?.select(Number($("token-at").value) - 1));
    $("close").addEventListener("click", () => this.close());
  },
  show(view, index) {
    if (this.view) this.view.spans[this.view.at]?.classList.remove("on");
    this.view = view;
    view.at = index;
    view.spans[index].classList.add("on");
    frames.ask(this);
  },
  close() {
    if (!this.view) return;
    this.view.spans[this.view.at]?.classList.remove("on");
    this.view.at = undefined;
    this.view = null;
    frames.ask(this);
  },
  paint() {
    const { view } = this, token = view?.tokens?.[view.at];
    $("token").hidden = !token;
    $("hint").hidden = Boolean(token);
    $("inspector").classList.toggle("open", Boolean(token));
    if (!token) return;
    $("token-is").replaceChildren(make("bdi", { class: "piece" }, visible(token.name)), make("span", { class: "soft" }, ` ${view.at + 1} of ${view.tokens.length} of ${view.title}`));
    const lead = Math.round(100 * token.lead), drawn = token.lead < 0;
    $("token-says").textContent = token.probability === null ? "told without probabilities" : `fused ${percent(token.probability)}${token.lead === null ? "" : drawn ? `, drawn: ${-lead} points behind the first` : `, ${lead} points before the next`}`;
    const range = $("token-at");
    range.max = view.tokens.length;
    range.value = view.at + 1;
    range.setAttribute("aria-valuetext", this.words(token));
    $("heads").replaceChildren(...token.heads.map((head) => this.head(head, token)));
    if (document.activeElement === view.element) say(this.words(token));
  },
  head(head, token) {
    const agreed = agrees(head, token), bar = make("span", { class: "bar", "aria-hidden": "true" });
    const fill = (name, share) => {
      const part = make("i", { class: name });
      part.style.width = `${100 * Math.min(1, share)}%`;
      part.style.background = graph.colours.get(head.model) ?? "";
      return part;
    };
    bar.append(fill("wish", head.probability), fill("gave", head.probability_of_emitted));
    const verdict = agreed ? make("span", { class: "agreed" }, "agreed")
      : make("span", {}, make("b", { class: "outvoted" }, "outvoted"), " wanted ", make("bdi", { class: "piece" }, visible(nameOf(head.bytes))), ` ${percent(head.probability)}`);
    return make("li", {}, make("span", { class: "who" }, head.model), bar, make("span", { class: "num" }, percent(head.probability_of_emitted)), make("span", { class: "verdict" }, verdict));
  },
  words(token) {
    const heads = token.heads.map((head) => (agrees(head, token) ? `${head.model} agreed, ${percent(head.probability_of_emitted)}`
      : `${head.model} outvoted, gave ${percent(head.probability_of_emitted)}, wanted ${visible(nameOf(head.bytes))} ${percent(head.probability)}`));
    const fused = token.probability === null ? "told without probabilities" : `fused ${percent(token.probability)}`;
    return [`${visible(token.name)}, ${fused}`, ...heads].join("; ");
  },
};

/* Elements: everything that is shown goes through textContent and text nodes, never through HTML. */
const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== undefined && child !== null));
  return made;
}

/* What a token writes, so that nothing of it is unseen and nothing turns the words around it. */
function visible(text) {
  if (text === null) return "the end";
  const shown = text
    .replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length))
    .replace(/\n/g, "↵").replace(/\t/g, "⇥")
    .replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu, (one) => `U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`)
    .replace(/^(?=\p{M})/u, "◌");
  return shown === "" ? "part of a character" : shown;
}

const percent = (share) => `${share > 0 && share < 0.01 ? "<1" : Math.round(100 * share)} %`;
const seconds = (value) => `${value < 9.95 ? value.toFixed(value < 0.1 ? 2 : 1) : Math.round(value)} s`;
const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/* Views are painted at most once a frame, whatever comes in between. */
const frames = {
  waiting: new Set(),
  ask(view) {
    if (!this.waiting.size) requestAnimationFrame(() => this.paint());
    this.waiting.add(view);
  },
  paint() {
    const views = [...this.waiting];
    this.waiting.clear();
    for (const view of views) view.paint();
  },
};

/* Said once to who cannot see it; never token by token. */
function say(text) {
  $("said").textContent = "";
  requestAnimationFrame(() => { $("said").textContent = text; });
}

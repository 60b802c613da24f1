/* A text token by token, each shaded by the lead it had; only what is new is added, a frame's worth at a time. */
const MOST_A_FRAME = 400;
/* Tokens stand in blocks, so that a browser lays out only the last one again: a block ends at a line break of the text, or, in
   a paragraph that is longer than most, where its line has wrapped. */
const BLOCK = 100, MOST_IN_BLOCK = 400;

const level = (token) => (token.lead === null || token.lead >= 0.8 ? 0 : token.lead >= 0.5 ? 1 : token.lead >= 0.25 ? 2 : token.lead >= 0.1 ? 3 : 4);
const isOutvoted = (token) => token.heads.some((head) => !agrees(head, token));

class TokenText {
  /* owner: the view that paints it; tokens: gives those to show now; whole: gives the whole text once it is known, else null. */
  constructor(owner, label, title, tokens, whole) {
    Object.assign(this, { owner, title, list: tokens, whole });
    this.element = make("div", { class: "text", dir: "auto", tabindex: "0", role: "group", "aria-label": label,
      "aria-description": "Arrow keys go from token to token.",
      onpointerover: (event) => this.point(event), onclick: (event) => this.point(event, true), onkeydown: (event) => this.key(event), oncopy: (event) => this.copy(event),
      onfocus: () => { if (this.spans.length && this.element.matches(":focus-visible")) this.select(this.at ?? 0); } });
    this.clear(null);
  }

  clear(tokens) {
    this.tokens = tokens;
    this.spans = [];
    this.offsets = [];
    this.text = "";
    this.isWhole = false;
    this.block = make("div");
    this.element.replaceChildren(this.block);
  }

  paint() {
    const tokens = this.list();
    if (tokens !== this.tokens) this.clear(tokens);
    const end = Math.min(tokens.length, this.spans.length + MOST_A_FRAME);
    for (let index = this.spans.length; index < end; index += 1) {
      const span = this.span(tokens[index], index), { block } = this;
      block.append(span);
      if (block.childElementCount >= BLOCK && span.textContent.endsWith("\n")) this.begin();
      else if (block.childElementCount >= MOST_IN_BLOCK) this.begin(this.lastLine());
    }
    if (end < tokens.length) frames.ask(this.owner);
    else this.fit();
    this.element.hidden = !this.text;
    this.hear?.();
  }

  begin(spans = []) {
    this.block = make("div", {}, ...spans);
    this.element.append(this.block);
  }

  /* Those of the block's tokens that stand on its last line; none where it has only one line. */
  lastLine() {
    const spans = [...this.block.children], top = spans.at(-1).offsetTop;
    const before = spans.findLastIndex((span) => span.offsetTop !== top);
    return before < 0 ? [] : spans.slice(before + 1);
  }

  span(token, index) {
    const made = document.createElement("span");
    made.className = `t l${level(token)}${isOutvoted(token) ? " o" : ""}${token.bytes === null ? " end" : ""}`;
    made.textContent = token.text;
    made.index = index;
    this.spans.push(made);
    this.offsets.push(this.text.length);
    this.text += token.text;
    return made;
  }

  /* Show the text as it was told in the end: without stop texts, with what it was made to begin with. */
  fit() {
    const whole = this.whole();
    if (whole === null || this.isWhole) return;
    this.isWhole = true;
    if (whole === this.text) return;
    const inside = this.text.indexOf(whole), around = whole.indexOf(this.text);
    if (whole && inside >= 0) this.cut(inside, inside + whole.length);
    else if (this.text && around >= 0) {
      this.element.firstChild.prepend(whole.slice(0, around));
      this.block.append(whole.slice(around + this.text.length));
    } else this.block.replaceChildren(whole);
    this.text = whole;
  }

  cut(from, to) {
    const { text, offsets } = this;
    this.spans.forEach((span, index) => {
      const start = offsets[index], end = offsets[index + 1] ?? text.length;
      span.textContent = text.slice(Math.max(start, from), Math.max(Math.min(end, to), from));
      offsets[index] = Math.min(Math.max(start - from, 0), to - from);
    });
  }

  /* Index of the token that wrote a character; of the end, or of none, behind the last one. */
  tokenAt(character) {
    if (character >= this.text.length && this.tokens.at(-1)?.bytes !== null) return this.spans.length;
    let low = 0, high = this.offsets.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.offsets[middle] <= character) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  point(event, isWish = false) {
    const index = event.target.index;
    if (index === undefined || (!isWish && event.pointerType === "touch")) return;
    this.select(index);
  }

  select(index) {
    inspector.show(this, Math.max(0, Math.min(index, this.spans.length - 1)));
  }

  key(event) {
    if (event.altKey || event.metaKey || !this.spans.length) return;
    const at = this.at ?? -1, isFar = event.ctrlKey;
    const to = {
      ArrowRight: () => (isFar ? this.outvoted(at, 1) : at + 1), ArrowLeft: () => (isFar ? this.outvoted(at, -1) : at - 1),
      ArrowDown: () => this.line(at, 1), ArrowUp: () => this.line(at, -1), Home: () => 0, End: () => this.spans.length - 1,
    }[event.key];
    if (!to) return;
    event.preventDefault();
    this.select(to());
    this.spans[this.at].scrollIntoView({ block: "nearest" });
  }

  /* Blocks are no line breaks. */
  copy(event) {
    const range = getSelection().rangeCount ? getSelection().getRangeAt(0) : null;
    if (!range || !this.element.contains(range.commonAncestorContainer)) return;
    event.clipboardData.setData("text/plain", range.cloneContents().textContent);
    event.preventDefault();
  }

  outvoted(at, step) {
    let index = at + step;
    while (this.tokens[index] && !isOutvoted(this.tokens[index])) index += step;
    return this.tokens[index] ? index : at;
  }

  /* The token above or below. */
  line(at, step) {
    const from = this.spans[Math.max(at, 0)].getBoundingClientRect();
    let best = at, gap = Infinity, row = null;
    for (let index = at + step; this.spans[index]; index += step) {
      const box = this.spans[index].getBoundingClientRect();
      if (step * (box.top - from.top) < from.height / 2) continue;
      if (row === null) row = box.top;
      if (Math.abs(box.top - row) > from.height / 2) break;
      if (Math.abs(box.left - from.left) < gap) [best, gap] = [index, Math.abs(box.left - from.left)];
    }
    return best;
  }
}

"use strict";
document.documentElement.classList.add("scripted");

/* Tables: click a heading to sort, write words to filter. */
const order = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
const keyOf = (cell) => {
  const value = cell.dataset.v;
  if (value === undefined || value === "") return null;
  return cell.classList.contains("num") ? Number(value) : value;
};
for (const table of document.querySelectorAll("section.table table")) {
  const body = table.tBodies[0], first = [...body.rows];
  [...table.tHead.rows[0].cells].forEach((head, index) => {
    for (const row of first) row.cells[index].dataset.l = head.textContent; // names the value where rows are cards
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const before = head.getAttribute("aria-sort");
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      const numeric = first.some((row) => row.cells[index].classList.contains("num"));
      const next = numeric ? { null: "descending", descending: "ascending" }[before] : { null: "ascending", ascending: "descending" }[before];
      if (!next) { body.append(...first); return; }
      head.setAttribute("aria-sort", next);
      const sign = next === "ascending" ? 1 : -1;
      const sorted = first.map((row) => [row, keyOf(row.cells[index])]);
      sorted.sort((a, b) => (a[1] === null || b[1] === null ? order(a[1], b[1]) : sign * order(a[1], b[1])));
      body.append(...sorted.map((pair) => pair[0]));
    });
  });
  const field = table.closest("section").querySelector(".filter input");
  if (field) field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of body.rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    field.parentElement.querySelector("output").textContent = words.length ? `${shown} of ${first.length} rows` : "";
  });
}

/* Side by side: texts are packed (gzip, base64) and shown as text only. */
const packed = document.getElementById("texts");
const $ = (id) => document.getElementById(id);
const make = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};
async function unpack() {
  const bytes = Uint8Array.from(atob(packed.textContent.trim()), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
}
function start(data) {
  const option = (key, name) => { const made = make("option", name); made.value = key; return made; };
  for (const set of data.sets) $("pick-set").append(option(set.key, set.label));
  for (const pick of ["pick-one", "pick-two"]) for (const path of data.paths) $(pick).append(option(path.key, path.name));
  for (const pick of ["pick-set", "pick-one", "pick-two", "pick-which"]) $(pick).addEventListener("change", () => {
    history.replaceState(null, "", `#diff/${$("pick-set").value}/${$("pick-one").value}/${$("pick-two").value}`);
    list(data);
  });
  const follow = () => {
    const [place, set, one, two] = location.hash.slice(1).split("/");
    if (place !== "diff") return;
    if (set && one && two) { $("pick-set").value = set; $("pick-one").value = one; $("pick-two").value = two; }
    list(data);
    $("diff").scrollIntoView();
  };
  $("pick-two").selectedIndex = Math.min(1, data.paths.length - 1);
  addEventListener("hashchange", follow);
  list(data);
  follow();
}
const mark = (answer) => (answer[0] === 1 ? "right" : answer[0] === 0 ? "wrong" : "not judged");
function list(data) {
  const set = $("pick-set").value, one = $("pick-one").value, two = $("pick-two").value, which = $("pick-which").value;
  const first = data.cells[`${one}/${set}`], second = data.cells[`${two}/${set}`];
  const out = $("diff-list");
  out.replaceChildren();
  if (!first || !second) { $("diff-says").textContent = "One of these paths has no answers to these questions."; return; }
  const ids = Object.keys(first.answers).filter((id) => id in second.answers);
  const differs = (id) => first.answers[id][0] !== second.answers[id][0];
  const other = (id) => first.answers[id][2].at(-1)?.[1] !== second.answers[id][2].at(-1)?.[1];
  const chosen = ids.filter(which === "changed" ? differs : which === "texts" ? other : () => true);
  const gained = ids.filter((id) => first.answers[id][0] === 1 && second.answers[id][0] === 0).length;
  const lost = ids.filter((id) => first.answers[id][0] === 0 && second.answers[id][0] === 1).length;
  $("diff-says").textContent = `${ids.length} questions; only the path right: ${gained}, only the other: ${lost}; shown: ${chosen.length}`;
  for (const id of chosen) out.append(entry(data, set, id, [[one, first], [two, second]]));
}
function entry(data, set, id, sides) {
  const question = data.questions[set][id], made = make("details"), head = make("summary");
  head.append(make("b", id), ` ${data.texts[question[0]].slice(0, 120)} `);
  for (const [, cell] of sides) head.append(make("span", mark(cell.answers[id]), mark(cell.answers[id])), " ");
  made.append(head);
  made.addEventListener("toggle", () => {
    if (!made.open || made.childElementCount > 1) return;
    made.append(make("pre", data.texts[question[0]]), make("p", `Reference: ${question[1]}`, "stage"));
    const pair = make("div", undefined, "pair");
    for (const [key, cell] of sides) pair.append(side(data, key, cell, id));
    made.append(pair);
  });
  return made;
}
function side(data, key, cell, id) {
  const [, extracted, steps] = cell.answers[id], box = make("div");
  const head = make("h3", data.paths.find((path) => path.key === key).name + " ");
  head.append(make("span", mark(cell.answers[id]), mark(cell.answers[id])));
  box.append(head, make("p", `Found: ${extracted}`, "stage"));
  for (const [title, text, ending] of steps) box.append(make("div", `${title} · ${ending}`, "stage"), make("pre", data.texts[text]));
  box.append(make("div", "In the terminal", "stage"), make("pre", `flowinfer show ${cell.run} ${id}`));
  return box;
}
if (packed) unpack().then(start, () => { $("diff-says").textContent = "This browser cannot unpack the texts; flowinfer show RUN ID shows them."; });

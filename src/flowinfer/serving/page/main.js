/* The start. */
function show(name) {
  $("chat").hidden = name !== "chat";
  $("run").hidden = name !== "run";
  $("to-chat").setAttribute("aria-pressed", String(name === "chat"));
  $("to-run").setAttribute("aria-pressed", String(name === "run"));
  document.body.dataset.view = name;
  scrollTo(0, name === "run" ? 0 : document.body.scrollHeight);
}

async function open() {
  try {
    await flows.load();
    if (!run.data) await run.load();
  } catch (error) {
    if (error instanceof Refused && error.status === 401) askKey();
    return; // it is asked again once the server is there
  }
  $("views").hidden = !run.data || !flows.all.length;
  if (!flows.all.length && run.data) show("run");
  if (!chat.turns.length) chat.restore();
  for (const turn of chat.turns) turn.offer();
  examples();
}

function examples() {
  const texts = ["3 + 4 = ?", "Solve 3*x + 5 = 20 for x."];
  $("examples").replaceChildren(...texts.map((text) => make("button", { type: "button", onclick: () => chat.send(text) }, text)));
}

function askKey() {
  const dialog = $("key");
  if (dialog.open) return;
  $("key-wrong").textContent = server.key ? "This is not one of its keys." : "";
  dialog.showModal();
  dialog.addEventListener("close", () => {
    server.key = $("key-text").value.trim();
    sessionStorage.setItem("key", server.key);
    open();
  }, { once: true });
}

graph.start();
inspector.start();
chat.start();
$("to-chat").addEventListener("click", () => show("chat"));
$("to-run").addEventListener("click", () => show("run"));
addEventListener("scroll", () => {
  const place = document.scrollingElement;
  chat.follows = place.scrollHeight - place.scrollTop - place.clientHeight < 60;
}, { passive: true });
if (matchMedia("(max-width: 56rem)").matches) $("flow").open = false;
readiness.listeners.push((state, before) => { if (before === "gone") open(); });
show("chat");
open();
readiness.watch();

// Makes a form of what the engine asks (GET /engine), sends it to the engine's route, and shows what comes back by its
// fields: a span, classes, entities or a similarity. Texts are only ever set as text, so none can bring markup along.
"use strict";

const STAGES = [["queue_ms", "waiting"], ["tokenise_ms", "text to tokens"], ["compute_ms", "model"]];
const PARTS = ["similarity", "shares-part", "passage-part", "others-part"];
const given = new URLSearchParams(location.search); // a link may bring a request along: /?question=...&context=...&ask
const part = (id) => document.getElementById(id);
const box = (name) => part(`field-${name}`);

let engine = null; // what it says of itself, once that is known
let sent = ""; // the first text of what was asked: the fields may have changed since
let asking = false;

function say(text, wrong = false) {
  part("said").textContent = text;
  part("said").classList.toggle("wrong", wrong);
}

function made(name, about = {}, ...children) {
  const element = Object.assign(document.createElement(name), about);
  element.append(...children);
  return element;
}

// What the server says, or null after its refusal was shown.
async function send(path, about = {}) {
  const headers = { "Content-Type": "application/json" };
  if (part("secret").value) headers.Authorization = `Bearer ${part("secret").value}`;
  const response = await fetch(path, { ...about, headers });
  const told = await response.json();
  if (response.ok) return told;
  part("result").hidden = true;
  say(told.error, true);
  if (response.status === 401) {
    part("secret-row").hidden = false;
    part("secret").focus();
  }
  return null;
}

// --- the form

function field(about) {
  const id = `field-${about.name}`;
  const area = made(about.long ? "textarea" : "input", { id, required: about.needed, autocomplete: "off" });
  area.value = given.get(about.name) ?? about.sample;
  if (about.long) {
    area.rows = 6;
    area.setAttribute("aria-describedby", "hint");
    area.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) part("form").requestSubmit();
    });
  }
  return [made("label", { htmlFor: id, textContent: about.title }), area];
}

const texts = () => engine.fields.filter((about) => !about.many);

async function load() {
  engine = await send("engine" + (given.has("model") ? `?model=${encodeURIComponent(given.get("model"))}` : ""));
  if (!engine) return;
  document.title = part("invites").textContent = engine.invites;
  part("fields").replaceChildren(...texts().flatMap(field));
  part("hint").hidden = !texts().some((about) => about.long);
}

// --- what comes back

// Marks spans of a text. Their places count characters; JavaScript's own strings count halves of some, hence the list.
function mark(spans) {
  const characters = Array.from(sent);
  const between = (from, to) => characters.slice(from, to).join("");
  const found = [];
  let done = 0;
  for (const span of spans.filter(({ start, end }) => end > start)) {
    const kind = span.kind ? [made("span", { className: "kind", textContent: span.kind })] : [];
    found.push(between(done, span.start), made("mark", {}, between(span.start, span.end), ...kind));
    done = span.end;
  }
  part("where-title").textContent = `In the ${texts()[0].title.toLowerCase()}`;
  part("passage").replaceChildren(...found, between(done));
  part("passage-part").hidden = false;
  part("passage").querySelector("mark")?.scrollIntoView({ block: "nearest" });
}

function runnerUp(found) {
  const button = made("button", { type: "button", textContent: found.text });
  button.addEventListener("click", () => {
    mark([found]);
    say(`Highlighted: ${found.text}`);
  });
  return made("li", {}, button, made("span", { className: "number", textContent: ` score ${found.score.toFixed(2)}` }));
}

function barRow(name, number, share) {
  const bar = made("div");
  bar.style.width = `${Math.min(100, 100 * share)}%`;
  return made(
    "tr", {}, made("th", { scope: "row", textContent: name }), made("td", { className: "ms", textContent: number }),
    made("td", { className: "bar" }, bar)
  );
}

// Field of a response -> [what it says, what is beside it], once the parts that belong to it are shown.
const VIEWS = {
  answer(told) {
    mark([told]);
    part("others").replaceChildren(...told.runners_up.map(runnerUp));
    part("others-part").hidden = !told.runners_up.length;
    const against = `no answer ${told.no_answer_score.toFixed(2)} against it`;
    return [told.answer || "The passage does not say.", `score ${told.score.toFixed(2)}, ${against}`];
  },
  probabilities(told) {
    const shares = Object.entries(told.probabilities).sort(([, one], [, other]) => other - one);
    part("shares").replaceChildren(
      ...shares.slice(0, 50).map(([name, share]) => barRow(name, (100 * share).toFixed(1), share))
    );
    part("shares-part").hidden = false;
    return [told.label, `${(100 * told.score).toFixed(1)} %`];
  },
  entities(told) {
    mark(told.entities);
    const names = told.entities.map((entity) => `${entity.text} (${entity.kind})`);
    return [names.join(", ") || "No entity.", ""];
  },
  similarity(told) {
    part("similarity").hidden = false;
    part("similarity").value = told.similarity;
    return [`similarity ${told.similarity.toFixed(3)}`, "of -1 to 1"];
  },
  value: (told) => [told.value.toFixed(3), ""],
  embedding: (told) => [`a vector of ${told.embedding.length} numbers`, ""],
  encoded: (told) => [`${told.encoded.length} tokens, a vector of ${told.encoded[0].length} numbers each`, ""],
};

function show({ model, timing, ...told }, roundTrip) {
  part("result").hidden = false;
  for (const id of PARTS) part(id).hidden = true;
  const name = Object.keys(VIEWS).find((name) => name in told);
  const [text, beside] = name ? VIEWS[name](told) : [JSON.stringify(told).slice(0, 1000), ""];
  part("text").textContent = text;
  part("score").textContent = beside;
  const known = STAGES.map(([key, name]) => [name, timing[key]]);
  const spent = known.reduce((sum, [, ms]) => sum + ms, 0);
  known.push(["making the answer, hand-over", Math.max(0, timing.total_ms - spent)]);
  known.push(["HTTP and the way here", Math.max(0, roundTrip - timing.total_ms)]);
  part("stages").replaceChildren(...known.map(([name, ms]) => barRow(name, ms.toFixed(2), ms / roundTrip)));
  const size = `${timing.batch_sequences} windows, ${timing.batch_tokens} tokens`;
  part("batch").textContent = `${roundTrip.toFixed(1)} ms in all; engine ${model}; its batch had ${size}.`;
  say(`Answer: ${text}`);
}

async function request() {
  const body = { model: engine.model };
  for (const { name, needed } of texts()) if (needed || box(name).value.trim()) body[name] = box(name).value;
  if (engine.runners_up) body.runners_up = Math.min(4, engine.runners_up);
  sent = box(texts()[0].name).value;
  const begin = performance.now();
  const told = await send(engine.route.slice(1), { method: "POST", body: JSON.stringify(body) });
  if (told) show(told, performance.now() - begin);
}

async function ask(event) {
  event?.preventDefault();
  if (asking) return;
  asking = true;
  part("ask").setAttribute("aria-disabled", "true"); // not `disabled`, which would take the focus away
  say(event ? "Asking ..." : "");
  try {
    const opened = Boolean(engine);
    if (!opened) await load();
    if (engine && (opened || given.has("ask"))) await request();
    else if (engine && event) say("The form is ready: ask."); // a secret was given, and the form is new
  } catch (error) {
    say(`The server did not answer (${error.message}).`, true);
  } finally {
    asking = false;
    part("ask").removeAttribute("aria-disabled");
  }
}

part("form").addEventListener("submit", ask);
ask();

// Asks POST /answer and shows what comes back. Texts are only ever set as text, so a passage cannot bring markup along.
"use strict";

const STAGES = [["queue_ms", "waiting"], ["tokenise_ms", "text to tokens"], ["compute_ms", "model"]];
const part = (id) => document.getElementById(id);

function say(text, wrong = false) {
  part("said").textContent = text;
  part("said").classList.toggle("wrong", wrong);
}

// `start` and `end` count characters; JavaScript's own strings count halves of some, so the passage comes as a list.
function highlight(characters, start, end) {
  const mark = document.createElement("mark");
  mark.textContent = characters.slice(start, end).join("");
  const text = (from, to) => document.createTextNode(characters.slice(from, to).join(""));
  const found = end > start ? [text(0, start), mark, text(end)] : [text(0)];
  part("passage").replaceChildren(...found);
  if (end > start) mark.scrollIntoView({ block: "nearest" });
}

function runnerUp(found, characters) {
  const item = document.createElement("li");
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = found.text;
  button.addEventListener("click", () => {
    highlight(characters, found.start, found.end);
    say(`Highlighted: ${found.text}`);
  });
  const score = document.createElement("span");
  score.className = "number";
  score.textContent = ` score ${found.score.toFixed(2)}`;
  item.append(button, score);
  return item;
}

function stageRow(name, ms, total) {
  const row = document.createElement("tr");
  const head = document.createElement("th");
  head.scope = "row";
  head.textContent = name;
  const value = document.createElement("td");
  value.className = "ms";
  value.textContent = ms.toFixed(2);
  const cell = document.createElement("td");
  cell.className = "bar";
  const bar = document.createElement("div");
  bar.style.width = `${Math.min(100, (100 * ms) / total)}%`;
  cell.append(bar);
  row.append(head, value, cell);
  return row;
}

function show(told, context, roundTrip) {
  const characters = Array.from(context);
  const answer = told.answer || "The passage does not say.";
  part("result").hidden = false;
  part("text").textContent = answer;
  part("score").textContent = `score ${told.score.toFixed(2)}, no answer ${told.no_answer_score.toFixed(2)} against it`;
  highlight(characters, told.start, told.end);
  part("others").replaceChildren(...told.runners_up.map((found) => runnerUp(found, characters)));
  part("others-part").hidden = !told.runners_up.length;
  const known = STAGES.map(([key, name]) => [name, told.timing[key]]);
  const spent = known.reduce((sum, [, ms]) => sum + ms, 0);
  known.push(["choosing the answer, hand-over", Math.max(0, told.timing.total_ms - spent)]);
  known.push(["runners-up, HTTP and the way here", Math.max(0, roundTrip - told.timing.total_ms)]);
  part("stages").replaceChildren(...known.map(([name, ms]) => stageRow(name, ms, roundTrip)));
  const size = `${told.timing.batch_sequences} windows, ${told.timing.batch_tokens} tokens`;
  part("batch").textContent = `${roundTrip.toFixed(1)} ms in all; engine ${told.model}; its batch had ${size}.`;
  say(`Answer: ${answer}`);
}

let asking = false;

async function ask(event) {
  event?.preventDefault();
  if (asking) return;
  asking = true;
  const context = part("context").value;
  const headers = { "Content-Type": "application/json" };
  if (part("secret").value) headers.Authorization = `Bearer ${part("secret").value}`;
  part("ask").setAttribute("aria-disabled", "true"); // not `disabled`, which would take the focus away
  say("Asking ...");
  try {
    const begin = performance.now();
    const body = JSON.stringify({ question: part("question").value, context, runners_up: 4 });
    const response = await fetch("answer", { method: "POST", headers, body });
    const told = await response.json();
    if (response.ok) {
      show(told, context, performance.now() - begin);
    } else {
      part("result").hidden = true;
      say(told.error, true);
      if (response.status === 401) {
        part("secret-row").hidden = false;
        part("secret").focus();
      }
    }
  } catch (error) {
    say(`The server did not answer (${error.message}).`, true);
  } finally {
    asking = false;
    part("ask").removeAttribute("aria-disabled");
  }
}

part("form").addEventListener("submit", ask);
part("context").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) part("form").requestSubmit();
});

// A link may bring question and passage along: /?question=...&context=...&ask
const given = new URLSearchParams(location.search);
for (const name of ["question", "context"]) if (given.has(name)) part(name).value = given.get(name);
if (given.has("ask")) ask();

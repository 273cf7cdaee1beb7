// The chat: a conversation that lives in this tab alone, and one answer at a time.
import { brokenOff, failureOf, unreachable } from "./failures.js";
import { Message } from "./message.js";
import { events } from "./stream.js";
import { text, told } from "./words.js";

const $ = (id) => document.getElementById(id);
const STORE = `opengate-chat-${told.user}`;
const NUMBERS = ["temperature", "top_p", "max_tokens"];
const SAID_MOST = 2000; // characters of an answer that are read out

const composer = $("composer"), input = $("message"), list = $("messages"), scroller = $("scroller"), settings = $("settings-form");
let messages = [];
let shown = [];
let running = null; // the AbortController of the answer under way
let isAtEnd = true;

// What the tab remembers

function save() {
  const fields = Object.fromEntries(["model", "system", ...NUMBERS, "stop"].map((name) => [name, settings.elements[name].value]));
  fields.searched = checked().map((box) => box.id);
  try {
    sessionStorage.setItem(STORE, JSON.stringify({ messages: messages.filter((message) => !message.running), fields }));
  } catch { // full, or not allowed: the conversation lives as long as the page
  }
}

function restore() {
  let kept = null;
  try {
    kept = JSON.parse(sessionStorage.getItem(STORE));
  } catch { // not ours
  }
  if (!kept) return;
  messages = kept.messages ?? [];
  for (const [name, value] of Object.entries(kept.fields ?? {})) {
    const field = settings.elements[name];
    if (name === "searched") value.forEach((id) => { const box = $(id); if (box) box.checked = true; });
    else if (name === "model" && (field.querySelector("[data-chosen]") || ![...field.options].some((option) => option.value === value))) continue;
    else if (field) field.value = value;
  }
}

// The page

function scrolled() {
  isAtEnd = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 48;
  $("to-end").hidden = isAtEnd;
}

function follow() {
  if (isAtEnd) scroller.scrollTop = scroller.scrollHeight;
  else $("to-end").hidden = false;
}

function toEnd() {
  isAtEnd = true;
  $("to-end").hidden = true;
  follow();
}

function show() {
  shown = messages.map((message) => new Message(message, regenerate));
  list.replaceChildren(...shown.map((one) => one.item));
  settle();
}

function add(message) {
  messages.push(message);
  const one = new Message(message, regenerate);
  shown.push(one);
  list.append(one.item);
  settle();
  return one;
}

function settle() {
  $("greeting").hidden = messages.length > 0;
  shown.forEach((one, index) => { one.isLast = index === shown.length - 1 && !running; });
  follow();
}

function say(words) {
  $("announcer").textContent = words;
}

function work(controller) {
  const hadFocus = [$("send"), $("stop")].includes(document.activeElement);
  running = controller;
  $("send").hidden = Boolean(controller);
  $("stop").hidden = !controller;
  $("new-conversation").disabled = Boolean(controller);
  if (hadFocus) input.focus();
}

/** Renders when the browser draws, and less often the longer that takes. */
function drawer(one) {
  let isDue = false, cost = 0, last = 0;
  return () => {
    if (isDue) return;
    isDue = true;
    const draw = (now) => {
      if (now - last < 4 * cost) {
        requestAnimationFrame(draw);
        return;
      }
      isDue = false;
      const began = performance.now();
      one.update();
      last = performance.now();
      cost = last - began;
      follow();
    };
    requestAnimationFrame(draw);
  };
}

// The call

function checked() {
  return [...settings.querySelectorAll("#search-in input:checked")];
}

function payload() {
  const fields = settings.elements;
  const turns = [];
  if (fields.system.value.trim()) turns.push({ role: "system", content: fields.system.value });
  for (const { role, content } of messages) {
    const last = turns.at(-1);
    if (!content) continue; // an answer that did not come
    if (last?.role === role) last.content += `\n\n${content}`; // many models want the speakers to take turns
    else turns.push({ role, content });
  }
  const body = { model: fields.model.value, stream: true, messages: turns };
  for (const name of NUMBERS) if (fields[name].value !== "") body[name] = Number(fields[name].value);
  if (fields.stop.value) body.stop = [fields.stop.value];
  const boxes = checked();
  if (boxes.length) {
    const everywhere = boxes.some((box) => box.name === "everywhere");
    body.tools = [{ type: "search", limit: 5, collection_ids: everywhere ? [] : boxes.map((box) => Number(box.value)) }];
  }
  return body;
}

async function ask() {
  if (!settings.checkValidity()) {
    $("settings").open = true;
    settings.reportValidity();
    return;
  }
  const body = payload();
  const controller = new AbortController();
  const message = { role: "assistant", model: body.model, content: "", thoughts: "", running: true };
  const began = performance.now();
  work(controller);
  isAtEnd = true;
  const one = add(message);
  const draw = drawer(one);
  say(text("writing"));
  try {
    const response = await fetch(told.addresses.chat, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRFToken": composer.elements.csrfmiddlewaretoken.value },
      body: JSON.stringify(body),
      signal: controller.signal,
      redirect: "error",
    });
    if (!response.ok || !response.headers.get("Content-Type")?.startsWith("text/event-stream")) {
      message.failure = await failureOf(response);
    } else {
      for await (const event of events(response)) {
        if (event.detail !== undefined && !event.choices) {
          message.failure = brokenOff(event.detail);
          break;
        }
        take(event, message, began);
        draw();
      }
    }
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else message.failure = message.content ? brokenOff("") : unreachable();
  }
  message.latency = performance.now() - began;
  message.running = false;
  work(null);
  one.update();
  settle();
  save();
  const outcome = message.failure ? message.failure.words : message.stopped ? text("stopped") : text("finished");
  say(`${one.body.textContent.slice(0, SAID_MOST)} ${outcome}`);
}

function take(event, message, began) {
  const choice = event.choices?.[0];
  const delta = choice?.delta ?? {};
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (typeof delta.content === "string") message.content += delta.content;
  if (typeof thought === "string") message.thoughts += thought;
  if (!message.ttft && (message.content || message.thoughts)) message.ttft = performance.now() - began;
  if (choice?.finish_reason) message.reason = choice.finish_reason;
  if (event.usage?.impacts) message.usage = event.usage;
  if (Array.isArray(event.search_results)) message.sources = event.search_results;
}

function regenerate() {
  if (running) return;
  if (messages.at(-1)?.role === "assistant") {
    messages.pop();
    shown.pop().item.remove();
  }
  input.focus();
  ask();
}

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const content = input.value.trim();
  if (!content || running) return;
  if (!settings.checkValidity()) {
    $("settings").open = true;
    settings.reportValidity();
    return;
  }
  add({ role: "user", content });
  input.value = "";
  grow();
  ask();
});

input.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  composer.requestSubmit();
});

function grow() {
  input.rows = Math.min(Math.max(input.value.split("\n").length, 2), 10);
}

input.addEventListener("input", grow);
document.addEventListener("keydown", (event) => { if (event.key === "Escape") running?.abort(); });
$("stop").addEventListener("click", () => running?.abort());
$("to-end").addEventListener("click", () => { toEnd(); input.focus(); });
$("new-conversation").addEventListener("click", () => {
  if (running || (messages.length && !confirm(text("new_conversation")))) return;
  messages = [];
  show();
  save();
  input.focus();
});
scroller.addEventListener("scroll", scrolled);
settings.addEventListener("submit", (event) => event.preventDefault());
settings.addEventListener("change", (event) => {
  if (event.target.name === "everywhere" && event.target.checked) {
    settings.querySelectorAll("[name=collection]:checked").forEach((box) => { box.checked = false; });
  } else if (event.target.name === "collection" && event.target.checked) {
    settings.elements.everywhere.checked = false;
  }
  save();
});

restore();
show();
toEnd();
$("send").disabled = false;
if (matchMedia("(max-width: 60rem)").matches) $("settings").open = false;
else input.focus();

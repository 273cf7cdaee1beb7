// One message of the conversation on the page. Whatever a model or a document says is text, or Markdown made safe.
import { rendered } from "./markdown.js";
import { duration, number, text } from "./words.js";

export function element(name, { className = "", content, ...properties } = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  if (className) made.className = className;
  if (content !== undefined) made.textContent = content;
  made.append(...children);
  return made;
}

async function copy(button, value) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(value);
  } catch { // not over HTTPS
    const area = element("textarea", { value });
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = text("copied");
  setTimeout(() => { button.textContent = said; }, 2000);
}

const small = (words, act) => {
  const button = element("button", { type: "button", className: "button-like second small", content: words });
  button.addEventListener("click", () => act(button));
  return button;
};

function codeBar(block) {
  const language = /language-(\S+)/.exec(block.firstElementChild?.className ?? "")?.[1] ?? "";
  const button = small(text("copy"), () => copy(button, block.textContent));
  button.setAttribute("aria-label", text("copy_code"));
  return element("div", { className: "code-head" }, element("span", { content: language }), button);
}

function figures({ usage, ttft, latency }) {
  const told = [];
  if (usage) {
    told.push(text("tokens", { prompt: number(usage.prompt_tokens), completion: number(usage.completion_tokens) }));
    told.push(text("cost", { cost: number(usage.cost) }));
    told.push(text("carbon", { grams: number((usage.impacts?.kgCO2eq ?? 0) * 1000, 3) }));
  }
  if (latency) told.push(text("latency", { time: duration(latency) }));
  if (ttft) told.push(text("ttft", { time: duration(ttft) }));
  return element("p", { className: "figures-line" }, ...told.map((words) => element("span", { content: words })));
}

function sources(results) {
  const items = results.map(({ document: name, score, chunk }) => {
    const page = chunk?.metadata?.page;
    const beside = [page ? text("page", { page }) : "", text("score", { score: number(score, 3) })].filter(Boolean).join(" · ");
    return element("li", {},
      element("span", { className: "name", content: name ?? text("deleted_document") }), ` (${beside})`,
      element("p", { className: "excerpt", tabIndex: 0, content: chunk?.content ?? "" }));
  });
  return element("details", { className: "sources", open: true },
    element("summary", { content: `${text("sources")} (${results.length})` }), element("ol", { className: "sources-list" }, ...items));
}

export function failureNotice({ words, detail, link }) {
  const notice = element("div", { className: "notice bad failure" }, element("p", { content: words }));
  if (link) notice.firstChild.append(" ", element("a", { href: link.href, content: link.words }));
  if (detail && detail !== words) notice.append(element("p", { className: "mono", content: detail }));
  return notice;
}

/** The element of a message; `update()` after it has changed, `isLast` says whether it can be asked anew. */
export class Message {
  constructor(message, regenerate) {
    this.message = message;
    this.regenerate = regenerate;
    this.body = element("div", { className: message.role === "user" ? "body" : "body markdown" });
    this.before = element("div");
    this.after = element("div");
    const who = message.role === "user" ? text("you") : message.model;
    this.item = element("li", { className: `message ${message.role}` },
      element("p", { className: "who", content: who }), this.before, this.body, this.after);
    this.update();
  }

  update() {
    const { message, body } = this;
    if (message.role === "user") {
      body.textContent = message.content;
      return;
    }
    const isWaiting = message.running && !message.content;
    if (isWaiting) body.replaceChildren(element("p", { className: "waiting", content: text("searching") }));
    else body.replaceChildren(rendered(message.content, codeBar));
    this.thoughts();
    if (!message.running) this.finished();
  }

  thoughts() {
    const { thoughts } = this.message;
    if (!thoughts) return;
    if (!this.before.firstChild) {
      this.before.append(element("details", {}, element("summary", { content: text("thinking") }), element("div", { className: "thoughts" })));
    }
    this.before.querySelector(".thoughts").textContent = thoughts;
  }

  finished() {
    const { message, after } = this;
    const parts = [];
    if (message.failure) parts.push(failureNotice(message.failure));
    else if (!message.content && !message.stopped) parts.push(element("p", { className: "quiet", content: text("empty_answer") }));
    if (message.stopped) parts.push(element("p", { className: "quiet stopped", content: text("stopped") }));
    if (message.reason === "length") parts.push(element("p", { className: "notice fair", content: text("cut_off") }));
    if (message.sources?.length) parts.push(sources(message.sources));
    parts.push(figures(message));
    const actions = element("div", { className: "actions" });
    if (message.content) actions.append(small(text("copy_answer"), (button) => copy(button, message.content)));
    this.again = small(text("regenerate"), this.regenerate);
    this.again.classList.add("regenerate");
    actions.append(this.again);
    parts.push(actions);
    after.replaceChildren(...parts);
  }

  set isLast(value) {
    if (this.again) this.again.hidden = !value;
  }
}

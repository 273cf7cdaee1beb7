// A model's Markdown as a fragment of the page. Nothing in it is trusted: no HTML, no pictures, no addresses but http(s) and mailto.
/* global markdownit, DOMPurify */

const reader = markdownit({ html: false, linkify: true });

// A picture would make the browser ask whatever host the model names: it becomes a link.
reader.renderer.rules.image = (tokens, index) => {
  const { escapeHtml } = reader.utils;
  const address = tokens[index].attrGet("src") ?? "";
  return `<a href="${escapeHtml(address)}">${escapeHtml(tokens[index].content || address)}</a>`;
};

// Cells say where they stand with a class; a style would be refused.
reader.core.ruler.push("cells", (state) => {
  for (const token of state.tokens) {
    if (token.type !== "th_open" && token.type !== "td_open") continue;
    const where = /text-align:(right|center)/.exec(token.attrGet("style") ?? "");
    token.attrs = where ? [["class", where[1]]] : null;
  }
});

const ALLOWED = {
  ALLOWED_TAGS: ["a", "blockquote", "br", "code", "del", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"],
  ALLOWED_ATTR: ["class", "href", "start", "title"],
  ALLOWED_URI_REGEXP: /^(?:https?:|mailto:)/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

export function rendered(text, codeBar) {
  const fragment = DOMPurify.sanitize(reader.render(text), ALLOWED);
  for (const link of fragment.querySelectorAll("a[href]")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const block of fragment.querySelectorAll("pre")) {
    const frame = document.createElement("div");
    frame.className = "code";
    block.replaceWith(frame);
    block.tabIndex = 0;
    frame.append(codeBar(block), block);
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = document.createElement("div");
    frame.className = "table-wrap";
    frame.tabIndex = 0;
    table.replaceWith(frame);
    frame.append(table);
  }
  return fragment;
}

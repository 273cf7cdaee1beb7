// Parts of a page that follow what goes on: `data-live` is the address of their content. It is asked for every two
// seconds as long as something in it is unfinished and somebody looks.
"use strict";

const EVERY_MS = 2000;

function follow(part) {
  const content = part.querySelector("[data-live-content]");
  let last = null;
  let waits = null;
  let failures = 0;

  async function refresh() {
    waits = null;
    try {
      const response = await fetch(part.dataset.live, { credentials: "same-origin", redirect: "error" });
      if (response.status === 403 || response.status === 404) return; // logged out, or it is gone
      if (!response.ok) throw new Error(String(response.status));
      const html = await response.text();
      failures = 0;
      if (html !== last) show(html);
      last = html;
    } catch {
      failures += 1;
      if (failures > 30) return;
    }
    wait();
  }

  function show(html) {
    const focused = content.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    content.innerHTML = html; // our own page's: names in it are escaped as in any other
    if (focused) content.querySelector(`a[href="${CSS.escape(focused)}"]`)?.focus({ preventScroll: true });
  }

  function wait() {
    if (waits === null && !document.hidden && content.querySelector("[data-unfinished]")) {
      waits = setTimeout(refresh, EVERY_MS);
    }
  }

  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      clearTimeout(waits);
      waits = null;
    } else {
      wait();
    }
  });
  wait();
}

document.querySelectorAll("[data-live]").forEach(follow);

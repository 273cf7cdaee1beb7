// What every page of the playground does: forget conversations with the session, ask again where a page was sent.
"use strict";

(() => {
  const forget = () => {
    for (const name of Object.keys(sessionStorage)) if (name.startsWith("opengate-chat-")) sessionStorage.removeItem(name);
  };
  if (document.getElementById("login-form")) forget();
  document.getElementById("logout-form")?.addEventListener("submit", forget);

  document.querySelector(".menu [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

  // A reload asks for the page instead of sending its form again.
  if (document.querySelector("[data-sent]")) history.replaceState(null, "", location.href);
})();

// The test of a model: without leaving the page, and what was typed there. Without this script the result is a page.
"use strict";

document.addEventListener("submit", async (event) => {
  const button = event.submitter;
  const place = document.getElementById(button?.dataset.trial ?? "");
  if (!place) return;
  event.preventDefault();
  const body = new FormData(event.target);
  body.append("part", "1");
  button.disabled = true;
  place.textContent = "Asking …";
  try {
    const answer = await fetch(button.formAction, { method: "POST", body });
    if (!answer.ok) throw new Error(`The console answered ${answer.status}.`);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const result = page.querySelector("section.trial");
    if (!result) throw new Error("The console gave no result. You may have to log in again.");
    place.replaceChildren(result);
  } catch (error) {
    place.textContent = error.message;
  } finally {
    button.disabled = false;
  }
});

// A table of limits: find a row by its name, and let a choice for all four cells fill them at once.
"use strict";

for (const limits of document.querySelectorAll("[data-limits]")) {
  const filter = limits.querySelector("[data-limits-filter]");
  filter.hidden = limits.querySelectorAll("tbody tr").length < 10;
  filter.addEventListener("input", (event) => {
    const wanted = event.target.value.toLowerCase();
    for (const row of limits.querySelectorAll("tbody tr")) {
      row.hidden = !(row.dataset.name ?? "").toLowerCase().includes(wanted);
    }
  });
  filter.addEventListener("keydown", (event) => {
    if (event.key === "Enter") event.preventDefault(); // finding is not saving
  });
  limits.addEventListener("change", (event) => {
    const word = { open: "unlimited", close: "closed" }[event.target.value];
    if (!event.target.matches("select") || !word) return;
    for (const cell of event.target.closest("tr").querySelectorAll("input[type=text]")) cell.value = word;
    event.target.value = "";
  });
}

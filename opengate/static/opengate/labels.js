// Names for fields that Django's admin leaves without: those in tables, dates with their times, and choosers.
"use strict";

{
  const words = (element) => element?.textContent.trim().replace(/:$/, "") ?? "";
  const name = (field, said) => { if (said && !field.labels?.length) field.setAttribute("aria-label", said); };

  // In a table of rows, a field is called as its column.
  const nameCells = (within) => {
    for (const field of within.querySelectorAll(".tabular td :is(input:not([type=hidden]), select, textarea)")) {
      const cell = field.closest("td");
      const heading = field.closest("table")?.tHead?.rows[0]?.cells[cell.cellIndex];
      name(field, words(heading) || (cell.classList.contains("delete") ? "Delete" : ""));
    }
  };

  // A date and its time share the label of their row.
  const nameDates = (within) => {
    for (const part of within.querySelectorAll(".datetime input")) {
      const row = words(part.closest(".form-row, .fieldBox")?.querySelector("label, legend"));
      name(part, `${row}, ${part.classList.contains("vTimeField") ? "time" : "date"}`);
    }
  };

  // Select2 says what is chosen, and not what for.
  const nameChoosers = (within) => {
    for (const chooser of within.querySelectorAll(".select2-selection")) {
      const select = chooser.closest(".select2")?.previousElementSibling;
      const said = select?.getAttribute("aria-label") || words(select?.labels?.[0]);
      if (!said) continue;
      chooser.removeAttribute("aria-labelledby");
      const shown = chooser.querySelector(".select2-selection__rendered");
      const tell = () => {
        const chosen = select.selectedOptions?.[0]?.textContent.trim();
        chooser.setAttribute("aria-label", chosen ? `${said}: ${chosen}` : said);
      };
      shown?.removeAttribute("role"); // a part of the chooser, and no field of its own
      shown?.removeAttribute("aria-readonly");
      tell();
      django.jQuery(select).on("change", tell);
    }
  };

  const nameAll = (within) => { nameCells(within); nameDates(within); nameChoosers(within); };
  document.getElementById("searchbar")?.setAttribute("aria-label", "Search");
  // Choosers are made when the page is ready, by a handler that was there before this one.
  if (globalThis.django?.jQuery) django.jQuery(() => nameAll(document));
  else nameAll(document);
  document.addEventListener("formset:added", (event) => setTimeout(() => nameAll(event.target.parentElement)));
}

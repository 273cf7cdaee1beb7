// The page's texts and numbers, in its language.

export const told = JSON.parse(document.getElementById("told").textContent);
const language = document.documentElement.lang;

/** The text of that name, with `{…}` filled in. */
export const text = (name, values = {}) =>
  told.texts[name].replace(/\{(\w+)\}/g, (whole, key) => String(values[key] ?? whole));

export const number = (value, digits = 6) => new Intl.NumberFormat(language, { maximumSignificantDigits: digits }).format(value);

export const duration = (ms) =>
  ms < 1000 ? text("milliseconds", { number: number(Math.round(ms)) }) : text("seconds", { number: number(ms / 1000, 3) });

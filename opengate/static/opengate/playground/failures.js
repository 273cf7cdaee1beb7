// What stands in the way of an answer, in words.
import { text, told } from "./words.js";

const BY_DETAIL = { "Insufficient budget.": "no_budget", "Insufficient carbon budget.": "no_carbon_budget" };
const BY_STATUS = {
  400: "invalid", 401: "signed_out", 403: "closed", 404: "no_model", 413: "too_long", 422: "invalid", 429: "rate_limit",
  500: "unexpected", 502: "busy", 503: "busy", 504: "busy",
};

function sentence(detail) {
  if (typeof detail === "string") return detail;
  if (Array.isArray(detail)) return detail.map((fault) => `${(fault.loc ?? []).slice(1).join(".")}: ${fault.msg}`).join("\n");
  return JSON.stringify(detail ?? "");
}

/** What to show of an answer that is no stream: `{words, detail, link}`. */
export async function failureOf(response) {
  let detail = "";
  try {
    detail = (await response.json()).detail;
  } catch { // no JSON: a proxy's page, of no use to the reader
    detail = `HTTP ${response.status}`;
  }
  const isOld = response.status === 403 && detail === "Please load the page again.";
  const name = isOld ? "reload" : BY_DETAIL[detail] ?? BY_STATUS[response.status] ?? "unexpected";
  const words = [text(name)];
  const seconds = Number(response.headers.get("Retry-After"));
  if (seconds > 0) words.push(text("try_again_in", { seconds }));
  const failure = { words: words.join(" "), detail: ["signed_out", "reload"].includes(name) ? "" : sentence(detail) };
  if (name === "signed_out") failure.link = { href: told.addresses.login, words: text("sign_in") };
  if (["rate_limit", "no_budget", "no_carbon_budget"].includes(name)) {
    failure.link = { href: told.addresses.limits, words: text("see_limits") };
  }
  return failure;
}

/** The same of an error that comes in the middle of a stream. */
export const brokenOff = (detail) => ({ words: text("broken_off"), detail: sentence(detail) });

export const unreachable = () => ({ words: text("no_network"), detail: "" });

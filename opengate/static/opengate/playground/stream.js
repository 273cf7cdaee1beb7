// Server-sent events of an answer, one parsed object at a time; ends with `[DONE]` or the stream.

export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const parts = rest.split("\n\n");
      rest = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        const data = lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
        if (data === "[DONE]") return;
        let event = null;
        try {
          event = JSON.parse(data);
        } catch { // not JSON: nothing of ours
          continue;
        }
        if (event && typeof event === "object") yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Server-sent events, read from the body of an answer.

const LONGEST_LINE = 64 << 20;

/**
 * Yield the name and the data of each event. The bytes may be cut anywhere, also inside a character.
 * An event without its empty line at the end is not complete, and is not yielded.
 */
async function* eventsOf(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let pieces = [], length = 0, name = "", data = [];
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    let from = 0;
    for (let end; (end = value.indexOf("\n", from)) >= 0; from = end + 1) {
      pieces.push(value.slice(from, end));
      const line = pieces.join("").replace(/\r$/, "");
      pieces = [];
      length = 0;
      const [, field, content] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (line === "") {
        if (data.length) yield { name, data: JSON.parse(data.join("\n")) };
        name = "";
        data = [];
      } else if (field === "event") name = content;
      else if (field === "data") data.push(content);
    }
    pieces.push(value.slice(from));
    if ((length += value.length - from) > LONGEST_LINE) throw new Error("a line of the stream is too long");
  }
}

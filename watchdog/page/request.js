// The request of a run, and commands that make the same call.

/**
 * Return the request for an input: `{ url, headers, body, name, form }`.
 * `form` is the value of ?output=. The page is at _/try, so the function is one level up.
 */
const requestOf = ({ body, name, form, timeout }) => {
  const url = new URL(`../?input=raw&output=${form}`, location.href);
  const headers = { "Content-Type": "application/octet-stream" };
  if (name) headers["X-Filename"] = encodeURIComponent(name.toWellFormed?.() ?? name);
  if (timeout) headers["X-Timeout"] = timeout;
  return { url: url.href, headers, body, name, form };
};

const LONGEST_ARGUMENT = 100000; // bytes; Linux allows 128 KiB

/** Return the bytes of a character as octal numbers, which a shell reads in the same way in each locale. */
const octal = (character) => Array.from(new TextEncoder().encode(character), (byte) => `\\${byte.toString(8).padStart(3, 0)}`).join("");

/** Return a text as one word of a shell. Control characters become escapes, so a terminal never gets them. */
const shellWord = (text) => {
  if (text.search(UNSEEN) < 0) return `'${text.replaceAll("'", "'\\''")}'`;
  const inside = text.replace(/[\\']/g, "\\$&").replaceAll("\n", "\\n").replaceAll("\t", "\\t");
  return `$'${inside.replace(UNSEEN, octal)}'`;
};

/** Return a text as a literal of Python. */
const pythonText = (text) => JSON.stringify(text).replace(UNSEEN, escaped);

/** Commands by the name of their program. `output`: the value of ?output= that gives the outputs as a file. */
const COMMANDS = {
  curl({ url, headers, body, file }, { output, hasToken }) {
    const lines = [`curl --fail-with-body ${shellWord(withOutput(url, output))}`];
    for (const [name, value] of Object.entries(headers)) lines.push(`-H ${shellWord(`${name}: ${value}`)}`);
    if (hasToken) lines.push('-H "Authorization: Bearer $TOKEN"');
    lines.push(file ? `--data-binary @${shellWord(file)}` : `--data-raw ${shellWord(body)}`);
    lines.push(`--output ${ANSWERS[output]}`);
    return lines.join(" \\\n  ");
  },
  oscar({ body, file }, { service }) {
    const input = file ? `--input ${shellWord(file)}` : `--text-input ${shellWord(body)}`;
    return `oscar-cli service run ${service ? shellWord(service) : "SERVICE"} \\\n  ${input} \\\n  --output answer`;
  },
  python({ url, headers, body, file }, { output, hasToken }) {
    const items = Object.entries(headers).map(([name, value]) => `    ${pythonText(name)}: ${pythonText(value)},`);
    if (hasToken) items.push('    "Authorization": "Bearer " + os.environ["TOKEN"],');
    return [
      ...(hasToken ? ["import os"] : []),
      "from pathlib import Path",
      "from urllib.request import Request, urlopen",
      "",
      file ? `body = Path(${pythonText(file)}).read_bytes()` : `body = ${pythonText(body)}.encode()`,
      "headers = {",
      ...items,
      "}",
      `request = Request(${pythonText(withOutput(url, output))}, body, headers, method="POST")`,
      "with urlopen(request) as answer:",
      `    Path("${ANSWERS[output]}").write_bytes(answer.read())`,
      "",
    ].join("\n");
  },
};

const ANSWERS = { raw: "answer.bin", zip: "answer.zip", json: "answer.json", base64: "answer.txt" };

const withOutput = (url, output) => url.replace(/output=\w+$/, `output=${output}`);

/** Return the command that makes a call. A file is named as if it were in the current directory. */
const commandFor = (program, { body, name, ...request }, options) => {
  const isFile = body instanceof Blob || new Blob([body]).size > LONGEST_ARGUMENT || body.includes("\0") || (program === "oscar" && !body);
  const file = isFile ? `./${(body.name ?? name ?? "").split("/").pop() || "FILE"}` : null;
  return COMMANDS[program]({ ...request, body, file }, options);
};

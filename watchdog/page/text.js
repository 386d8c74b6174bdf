// Texts: what a reader sees of names, numbers and lines that others wrote.

const ESCAPE_SEQUENCES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])/g;
// Control characters, and characters that change the direction of the text beside them.
const UNSEEN = /[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

const escaped = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;

/** Return a text without colours of a terminal, and with each unseen character as its number. */
const visible = (text) => String(text).replace(ESCAPE_SEQUENCES, "").replace(UNSEEN, escaped);

/** Return a name of a header. If its bytes are not UTF-8, they stay percent-encoded. */
const decoded = (name) => {
  try {
    return decodeURIComponent(name);
  } catch {
    return name;
  }
};

/** Return the name under which a browser keeps an output. */
const fileName = (name) => name.split("/").pop().replace(UNSEEN, "_") || "output";

const sizeText = (bytes) => {
  if (bytes < 1000) return `${bytes} B`;
  const power = Math.min(3, Math.floor(Math.log10(bytes) / 3));
  return `${Number((bytes / 1000 ** power).toPrecision(3))} ${["kB", "MB", "GB"][power - 1]}`;
};

const timeText = (seconds) => {
  if (seconds < 1) return `${seconds ? Math.max(1, Math.round(seconds * 1000)) : 0} ms`;
  if (seconds < 60) return `${Number(seconds.toPrecision(3))} s`;
  return `${Math.floor(seconds / 60)} min ${Math.floor(seconds % 60)} s`;
};

const count = (number, word) => `${number} ${word}${number === 1 ? "" : "s"}`;

/** Return a new element. Its text is never read as markup. */
const element = (tag, classes = "", text = "") => {
  const made = document.createElement(tag);
  if (classes) made.className = classes;
  made.textContent = text;
  return made;
};

const byId = (id) => document.getElementById(id);

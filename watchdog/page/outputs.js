// Outputs: collect their bytes, show them by type, and offer them as downloads.
// The bytes are never a document of this page's origin: an <img> runs nothing, and a link downloads bytes without a type.

const PICTURES = /^image\/(png|jpe?g|gif|webp|bmp|avif|x-icon|vnd\.microsoft\.icon)$/;
const TEXTS = /^(text\/|application\/(json|xml|yaml|x-yaml|javascript|toml|x-ndjson|x-sh)\b)|\+(json|xml)$/;
const SHOWN_CHARACTERS = 100000;
const LARGEST = 1 << 20; // bytes of a JSON or SVG file that is shown
const SHOWN_ROWS = 200;
const SHOWN_COLUMNS = 100; // a browser takes minutes for a table with 100,000 columns

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

class Output {
  constructor({ name, content_type: type, size }) {
    Object.assign(this, { name, type: String(type || "").split(";")[0].trim().toLowerCase(), size, parts: [], received: 0 });
    this.title = name === null ? "Printed text" : name;
    this.urls = [];
  }

  add(bytes) {
    this.parts.push(new Blob([bytes]));
    this.received += bytes.length;
  }

  url(type) {
    const url = URL.createObjectURL(new Blob(this.parts, { type }));
    this.urls.push(url);
    return url;
  }

  /** Free the memory of the output. */
  close() {
    for (const url of this.urls) URL.revokeObjectURL(url);
    this.urls = this.parts = [];
  }

  /** Return an element with the output. */
  show() {
    const card = element("section", "card output");
    const head = element("div", "output-head");
    const link = element("a", "", "Download");
    link.href = this.url("application/octet-stream");
    link.download = this.name === null ? `output.${TEXTS.test(this.type) ? "txt" : "bin"}` : fileName(this.name);
    link.ariaLabel = `Download ${visible(this.title)}`;
    head.append(element("h2", "", visible(this.title)), element("span", "soft", `${sizeText(this.size)} · ${this.type}`), link);
    card.append(head);
    this.content().then((content) => content && card.append(content), () => {});
    return card;
  }

  async content() {
    const { type } = this;
    const blob = new Blob(this.parts);
    if (PICTURES.test(type) || (type === "image/svg+xml" && this.size <= LARGEST)) {
      const picture = element("img");
      picture.alt = `The output ${visible(this.title)}`;
      // Nothing opens a data URL as a document, so an SVG cannot run its scripts.
      picture.src = PICTURES.test(type) ? this.url(type) : `data:${type},${encodeURIComponent(await blob.text())}`;
      return picture;
    }
    if (/^(audio|video)\//.test(type)) {
      const player = element(type.startsWith("a") ? "audio" : "video");
      player.controls = true;
      player.src = this.url(type);
      player.ariaLabel = `The output ${visible(this.title)}`;
      return player;
    }
    if (type === "application/zip") return table([["Entry", "Size"], ...(await entriesOfZip(blob))], this.title);
    if (!TEXTS.test(type)) return null;
    if (/json$/.test(type) && this.size <= LARGEST) return text(pretty(await blob.text()), this.title);
    // A character of UTF-8 has up to four bytes.
    const shown = await blob.slice(0, 4 * SHOWN_CHARACTERS).text();
    return type === "text/csv" ? table(rowsOf(shown), this.title) : text(shown, this.title);
  }
}

const pretty = (json) => {
  try {
    return JSON.stringify(JSON.parse(json), null, 2);
  } catch {
    return json;
  }
};

/** Let the keyboard scroll a region. */
const scrollable = (region, title) => {
  return Object.assign(region, { tabIndex: 0, role: "region", ariaLabel: `Content of ${visible(title)}` });
};

const text = (content, title) => {
  const rest = content.length > SHOWN_CHARACTERS ? "\n… download the output to see the rest" : "";
  return scrollable(element("pre", "", content.slice(0, SHOWN_CHARACTERS) + rest), title);
};

const table = (rows, title) => {
  const made = element("table");
  rows.slice(0, SHOWN_ROWS).forEach((row, at) => {
    const line = made.insertRow();
    for (const cell of row.slice(0, SHOWN_COLUMNS)) line.append(element(at ? "td" : "th", "", visible(cell)));
  });
  const region = scrollable(element("div", "table"), title);
  region.append(made);
  if (rows.length > SHOWN_ROWS || rows.some((row) => row.length > SHOWN_COLUMNS)) region.append(element("p", "soft", "… download the output to see the rest"));
  return region;
};

/** Return the rows of CSV. Quotes may contain commas, line ends and doubled quotes. */
const rowsOf = (content) => {
  const rows = [];
  let row = [];
  const cell = /("(?:[^"]|"")*"?|[^,\r\n]*)(,|\r?\n|\r|$)/gy;
  for (let found; rows.length <= SHOWN_ROWS && cell.lastIndex < content.length && (found = cell.exec(content)); ) {
    row.push(found[1].startsWith('"') ? found[1].slice(1).replace(/"$/, "").replaceAll('""', '"') : found[1]);
    if (found[2] !== ",") {
      rows.push(row);
      row = [];
    }
  }
  return row.length ? [...rows, row] : rows;
};

/** Return the name and the size of each entry, from the directory at the end of a ZIP. */
const entriesOfZip = async (blob) => {
  const end = await view(blob.slice(-65557));
  let at = end.byteLength - 22;
  while (at >= 0 && end.getUint32(at, true) !== 0x06054b50) at--;
  if (at < 0) return [];
  const start = end.getUint32(at + 16, true);
  const directory = await view(blob.slice(start, start + Math.min(end.getUint32(at + 12, true), 1 << 20)));
  const entries = [];
  for (let entry = 0; entry + 46 <= directory.byteLength && directory.getUint32(entry, true) === 0x02014b50; ) {
    const length = directory.getUint16(entry + 28, true);
    const name = directory.buffer.slice(entry + 46, entry + 46 + length);
    entries.push([new TextDecoder().decode(name), sizeText(directory.getUint32(entry + 24, true))]);
    entry += 46 + length + directory.getUint16(entry + 30, true) + directory.getUint16(entry + 32, true);
  }
  return entries;
};

const view = async (blob) => new DataView(await blob.arrayBuffer());

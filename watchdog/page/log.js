// The log of a run: the last lines, filtered by level and text.

const KEPT_LINES = 5000;
const LONGEST_SHOWN = 8192; // characters of a line
const LEVELS = { debug: 0, warning: 3, error: 4, critical: 4 };

class Log {
  constructor(section) {
    const [level, filter, count, list] = section.querySelectorAll(".level, .filter, .count, .lines");
    Object.assign(this, { section, list, count, level, filter, lines: [], added: [], unkept: 0 });
    level.onchange = filter.oninput = () => this.showAll();
  }

  add({ level, text }) {
    const line = visible(text.slice(0, LONGEST_SHOWN)) + (text.length > LONGEST_SHOWN ? " …" : "");
    const rank = LEVELS[level] ?? 2; // 2: info
    // The level is also a word, for readers who do not see the colours.
    const isNamed = rank <= 2 || line.toLowerCase().includes(level);
    this.put({ rank, text: isNamed ? line : `${level.toUpperCase()}  ${line}` });
  }

  /** Note that lines are missing here. */
  addDropped({ lines }) {
    this.put({ rank: 9, text: `${count(lines, "line")} dropped: they came too fast` });
  }

  put(line) {
    if (!this.added.length) setTimeout(() => this.show(), 50);
    this.added.push(line);
    if (this.added.length > KEPT_LINES) {
      this.added.shift();
      this.unkept++;
    }
  }

  passes({ rank, text }) {
    return rank >= Number(this.level.value) && (rank === 9 || text.toLowerCase().includes(this.filter.value.toLowerCase()));
  }

  /** Show the lines that were added. The view follows them if it is at its end. */
  show() {
    const follows = this.list.scrollHeight - this.list.scrollTop - this.list.clientHeight < 40;
    this.section.hidden = false;
    this.lines.push(...this.added);
    this.append(this.added);
    this.added = [];
    const surplus = this.lines.length - KEPT_LINES;
    if (surplus > 0) {
      this.unkept += surplus;
      for (const line of this.lines.splice(0, surplus)) line.row?.remove();
    }
    if (follows) this.list.scrollTop = this.list.scrollHeight;
    this.count.textContent = count(this.lines.length, "line") + (this.unkept ? `, ${this.unkept} earlier ones not kept` : "");
  }

  showAll() {
    this.list.replaceChildren();
    for (const line of this.lines) line.row = null;
    this.append(this.lines);
    this.list.scrollTop = this.list.scrollHeight;
  }

  append(lines) {
    const rows = document.createDocumentFragment();
    for (const line of lines) {
      if (!this.passes(line)) continue;
      line.row = element("div", `l${line.rank}`, line.text);
      rows.append(line.row);
    }
    this.list.append(rows);
  }
}

// One run: the call, its events, and what the page shows of them.

const SIGNS = { running: "●", good: "✓", failed: "✗", cancelled: "■" };
const KEPT_TEXT = 20000; // characters of a proxy's answer
const MOST_OUTPUTS = 500;

class Run {
  /** `announce` reports each new state to a screen reader. */
  constructor(request, title, announce) {
    const view = byId("run-template").content.cloneNode(true).firstElementChild;
    Object.assign(this, { request, title, announce, view, outputs: [], began: new Date(), abort: new AbortController() });
    this.parts = Object.fromEntries([...view.querySelectorAll("[class]")].map((part) => [part.className.split(" ").pop(), part]));
    this.log = new Log(this.parts.log);
    this.on_log = (line) => this.log.add(line);
    this.on_dropped = (gap) => this.log.addDropped(gap);
    this.item = element("li");
    this.button = element("button");
    this.sign = element("span");
    this.set("running", "Sending the input");
    this.timer = setInterval(() => (this.parts.clock.textContent = timeText(Math.round((Date.now() - this.began) / 1000))), 1000);
  }

  get bytes() {
    return this.outputs.reduce((sum, output) => sum + output.received, 0);
  }

  set(state, title, detail = "") {
    this.state = state;
    for (const sign of [this.parts.sign, this.sign]) {
      sign.className = `sign ${state}`;
      sign.textContent = SIGNS[state];
    }
    this.parts.title.textContent = visible(title);
    this.parts.detail.textContent = visible(detail);
    this.announce(visible(`${title}. ${detail}`));
  }

  cancel() {
    this.isCancelled = true;
    this.abort.abort();
  }

  close() {
    this.outputs.forEach((output) => output.close());
    this.view.remove();
    this.item.remove();
  }

  /** Call the function, and show what happens until the end. */
  async follow(token) {
    try {
      await this.call(token);
    } catch (error) {
      this.abort.abort(); // ends the script, whose answer nobody reads
      if (this.isCancelled) this.set("cancelled", "Cancelled", "The server ends the script.");
      else if (this.hasAnswer) this.set("failed", "The connection ended before the result", `The run may have failed, and outputs may be missing. Reason: ${error.message}`);
      else this.set("failed", "The server does not answer", `Check that the server runs, then run again. Reason: ${error.message}`);
    }
    clearInterval(this.timer);
    this.parts.progress.hidden ||= this.state === "good";
    for (const output of this.outputs) {
      if (!output.isShown) output.close();
    }
  }

  async call(token) {
    const headers = new Headers(this.request.headers);
    if (token) headers.set("Authorization", `Bearer ${token}`);
    const { url, body } = this.request;
    const { signal } = this.abort;
    const answer = await fetch(url, { method: "POST", headers, body, signal });
    this.hasAnswer = true;
    this.status = answer.status;
    const type = (answer.headers.get("Content-Type") ?? "").split(";")[0];
    if (type === "text/event-stream") {
      for await (const { name, data } of eventsOf(answer.body)) {
        this[`on_${name}`]?.(data);
        if (name === "completed") return;
      }
      throw new Error("the stream has no verdict");
    }
    if (type === "application/problem+json") await this.showProblem(await answer.json(), answer.headers);
    else if (answer.ok) await this.showAnswer(answer);
    else this.set("failed", `The answer has status ${answer.status}`, (await answer.text()).slice(0, KEPT_TEXT).trim());
  }

  on_queued({ position }) {
    this.set("running", `Waiting at position ${position} of the queue`);
  }

  on_started({ worker }) {
    this.worker = worker;
    this.set("running", "Running");
  }

  on_progress({ fraction, text }) {
    this.parts.progress.hidden = false;
    this.parts.progress.firstElementChild.value = fraction;
    this.parts["progress-text"].textContent = visible(`${Math.round(fraction * 100)} % ${text ?? ""}`);
  }

  on_output(event) {
    let output = this.outputs.at(-1);
    if (!output || output.isShown) this.outputs.push((output = new Output(event)));
    if (output.name !== event.name || output.received !== event.offset) throw new Error("a part of an output is missing");
    output.add(bytesOf(event.data));
    if (output.received === output.size) this.showOutput(output);
  }

  on_completed({ call_id, error, exit_code: code, duration_s: ran, queue_wait_s: waited, warnings = [] }) {
    const isWhole = this.outputs.every((output) => output.isShown);
    if (error) this.showProblem(error);
    else if (!isWhole) this.set("failed", "An output is incomplete", "The server did not send all bytes. Run again.");
    else this.showEnd(code, warnings);
    this.showFacts({ code, ran, waited, call_id, warm: this.worker?.calls, signal: error?.signal });
    this.showWarnings(warnings);
    if (!error && !this.outputs.length) this.parts.detail.textContent ||= "The script left no output.";
  }

  /** Show an answer that is not a stream, as the server sent it. */
  async showAnswer(answer) {
    const bytes = new Uint8Array(await answer.arrayBuffer());
    const { headers } = answer;
    const { form } = this.request;
    const given = form === "raw" && headers.get("X-Output-Name");
    const name = given ? decoded(given) : ANSWERS[form] ?? null;
    const output = new Output({ name, content_type: headers.get("Content-Type"), size: bytes.length });
    output.add(bytes);
    this.outputs.push(output);
    this.showOutput(output);
    const number = (header) => (headers.has(header) ? Number(headers.get(header)) : undefined);
    const code = number("X-Exit-Code");
    const warnings = (headers.get("X-Warning") ?? "").match(/[^, ]+/g) ?? [];
    this.showEnd(code, warnings);
    this.showWarnings(warnings.map((name) => ({ name, detail: "" })));
    this.showFacts({ code, ran: number("X-Duration-Seconds"), call_id: headers.get("X-Call-Id"), warm: number("X-Warm") });
  }

  /** Show a problem document (RFC 9457). `headers` are given if the call was refused. */
  showProblem(problem, headers) {
    const { title, detail, status, call_id, exit_code: code, signal, stderr } = problem;
    const wait = headers?.get("Retry-After");
    this.set("failed", title || `Status ${status}`, (detail || "") + (wait ? `. Try again in ${wait} s.` : ""));
    if (headers) this.showFacts({ status, code, signal, call_id });
    this.parts.stderr.hidden = !stderr;
    this.parts.stderr.textContent = visible(stderr || "");
  }

  showOutput(output) {
    output.isShown = true;
    this.parts.outputs.hidden = false;
    if (this.outputs.length <= MOST_OUTPUTS) return this.parts.outputs.append(output.show());
    output.close();
    this.parts.more.textContent = `The first ${MOST_OUTPUTS} outputs are shown. Select the answer ZIP to get all.`;
  }

  showFacts({ code, ran, waited, call_id, warm, signal, status }) {
    const add = (name, value, form = visible) => {
      if (value === undefined || value === null) return;
      const fact = element("div");
      fact.append(element("dt", "", name), element("dd", "", form(value)));
      this.parts.facts.append(fact);
    };
    add("Status", status);
    add("Exit code", code);
    add("Signal", signal);
    add("Ran for", ran, timeText);
    add("Waited in the queue", waited, timeText);
    add("Worker", warm, (calls) => `warm, ${count(calls, "call")} before`);
    add("Call", call_id);
  }

  /** Show the verdict of a run that the server reports as a success. */
  showEnd(code, warnings) {
    if (code) this.set("failed", `Ended with exit code ${code}`);
    else this.set("good", warnings.length ? "Done, with a warning" : "Done");
  }

  showWarnings(warnings) {
    for (const { name, detail } of warnings) this.parts.warnings.append(element("li", "", visible(detail ? `${name}: ${detail}` : name)));
  }
}

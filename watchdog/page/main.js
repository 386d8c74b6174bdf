// The form, the keys, and the list of the last runs.

const facts = JSON.parse(document.querySelector("meta[name=facts]").content);
const KEPT_RUNS = 10;
const KEPT_BYTES = 512 << 20;
const TOKEN = `watchdog-token ${location.pathname}`; // other services may have the same origin
const form = byId("form");
const runs = [];
let shown;

byId("service").textContent = visible(facts.service || "the function");
document.title = byId("service").parentNode.textContent;
byId("kind").textContent = facts.kind;
if (facts.exec_timeout_s) byId("timeout").placeholder = timeText(facts.exec_timeout_s);
byId("token-field").hidden = !facts.has_token;
byId("token").value = stored() ?? "";

function stored(token) {
  try {
    if (token !== undefined) sessionStorage.setItem(TOKEN, token);
    return sessionStorage.getItem(TOKEN);
  } catch {} // The browser keeps nothing for this page.
}

const announce = (text) => (byId("status").textContent = text);

const complain = (text, field) => {
  byId("complaint").textContent = text;
  field?.focus();
};

/** Return the request that the form describes, or nothing after a complaint. */
const requestOfForm = () => {
  complain("");
  const isText = form.elements.kind.value === "text";
  const body = isText ? byId("text").value : byId("file").files[0];
  const timeout = byId("timeout").value.trim();
  if (!body && !isText) return complain("Choose a file first, or select Text.", byId("file"));
  if (!/^[ -~]*$/.test(timeout)) return complain("A time limit is a text such as 30s or 2m.", byId("timeout"));
  const limit = facts.max_input_size_bytes;
  if (limit && (body.size ?? new Blob([body]).size) > limit) {
    return complain(`The input is over ${sizeText(limit)}, the limit of this server (max_input_size).`);
  }
  return requestOf({ body, name: byId("name").value, form: byId("answer").value, timeout });
};

const start = async () => {
  if (runs[0]?.state === "running") return;
  const request = requestOfForm();
  if (!request) return;
  const token = byId("token").value.trim();
  if (!/^[!-~]*$/.test(token)) return complain("A token has only ASCII characters without spaces.", byId("token"));
  stored(token);
  const run = new Run(request, request.name || (typeof request.body === "string" ? "text" : "file"), announce);
  runs.unshift(run);
  list(run);
  show(run);
  run.view.scrollIntoView({ block: "nearest" });
  setRunning(true);
  await run.follow(token);
  setRunning(false);
  forget();
  if (run.status === 401) {
    byId("token-field").hidden = false;
    complain("The server needs the right token.", byId("token"));
    byId("token").select();
  }
};

/** Swap the buttons. The focus stays at the same place. */
const setRunning = (isRunning) => {
  const [gone, here] = isRunning ? ["run", "cancel"] : ["cancel", "run"];
  const hasFocus = document.activeElement === byId(gone);
  byId(gone).hidden = true;
  byId(here).hidden = false;
  if (hasFocus) byId(here).focus();
};

const show = (run) => {
  shown = run;
  byId("results").replaceChildren(run.view);
  for (const each of runs) each.button.ariaCurrent = each === run;
};

/** Remove old runs, so that the page keeps a bounded number of runs and bytes. */
const forget = () => {
  let bytes = 0;
  for (const [at, run] of [...runs].entries()) {
    bytes += run.bytes;
    if (at === 0 || (at < KEPT_RUNS && bytes <= KEPT_BYTES)) continue;
    run.close();
    runs.splice(runs.indexOf(run), 1);
    if (shown === run) show(runs[0]);
  }
};

/** Add a run to the list of the last runs. */
const list = (run) => {
  run.button.type = "button";
  run.button.onclick = () => show(run);
  run.button.append(run.sign, element("span", "what", visible(run.title)), element("span", "soft", run.began.toLocaleTimeString()));
  run.item.append(run.button);
  byId("history").prepend(run.item);
};

const showChosen = () => {
  const file = byId("file").files[0];
  byId("chosen").textContent = file ? visible(file.name) : "Choose a file";
  byId("chosen-size").textContent = file ? sizeText(file.size) : "or drop it anywhere on this page";
  if (file) byId("name").value = file.name;
};

const copy = async (program) => {
  const request = requestOfForm();
  if (!request) return;
  const output = request.form !== "events" ? request.form : shown?.outputs.length > 1 ? "zip" : "raw";
  const field = byId("command");
  field.value = commandFor(program, request, { output, hasToken: !byId("token-field").hidden, service: facts.service });
  field.hidden = false;
  field.select();
  // Without TLS, a browser offers only the older way.
  const isCopied = navigator.clipboard ? await navigator.clipboard.writeText(field.value).then(() => true, () => false) : document.execCommand("copy");
  announce(isCopied ? "The command is copied." : "Press Ctrl + C to copy the command.");
};

form.onsubmit = (event) => {
  event.preventDefault();
  start();
};
form.onkeydown = (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) start();
};
for (const button of form.querySelectorAll("[data-copy]")) button.onclick = () => copy(button.dataset.copy);
byId("cancel").onclick = () => runs[0].cancel();
byId("file").onchange = showChosen;
document.ondragover = (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
};
document.ondragleave = ({ relatedTarget }) => void (relatedTarget || document.body.classList.remove("dropping"));
document.ondrop = (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const { files } = event.dataTransfer;
  if (!files.length) return;
  byId("file").files = files;
  form.elements.kind.value = "file";
  showChosen();
  if (files.length > 1) complain("The function gets one file: the first of those that you dropped.");
};
showChosen();

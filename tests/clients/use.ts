// Calls a server with the types that openapi-typescript generated: node use.js URL
import type { components, paths } from "./client.js";

type Invoke = paths["/"]["post"];
type Outcome = Invoke["responses"][200]["content"]["application/json"];
type Problem = Invoke["responses"][500]["content"]["application/problem+json"];
type Events = components["schemas"]["Events"];

const query: NonNullable<Invoke["parameters"]["query"]> = { input: "raw", output: "json" };
// @ts-expect-error The server has no such form.
const wrong: typeof query = { output: "xml" };

async function call(url: string, body: string): Promise<Outcome | Problem> {
  const answer = await fetch(`${url}/?${new URLSearchParams(query)}`, { method: "POST", body });
  return answer.ok ? ((await answer.json()) as Outcome) : ((await answer.json()) as Problem);
}

// Never called: only the types count.
export function lastLine(event: Events["log"] | Events["completed"]): string {
  if ("text" in event) return `${event.level} ${event.stream}: ${event.text}`;
  const names: string[] = event.outputs.map((output) => output.name);
  return event.error === null ? names.join() : `${event.error.status} ${event.error.detail}`;
}

declare const process: { argv: string[] };
const url = process.argv[2];
const outcome = await call(url, 'printf text > "$TMP_OUTPUT_DIR/x.txt"');
if ("outputs" in outcome) {
  const code: number | null = outcome.exit_code;
  // @ts-expect-error A result has no such property.
  outcome.no_such_property;
  console.log(code, outcome.outputs.map((output) => `${output.name} ${output.size} ${atob(output.data)}`).join());
}
const problem = await call(url, "echo reason >&2; exit 3");
if ("title" in problem) console.log(problem.status, problem.exit_code, problem.stderr?.trim());

/**
 * Where the networks run: behind a server, or in this browser. Both offer the same four functions:
 *
 * - `models()`: what there is; `run` is null where no run of the visitor's own is served
 * - `characters(support, query)`: `probabilities[step][class]` for one query, from one drawing of each class
 * - `curve(points, steps)`: `x`, `maml[step]`, `pretrained[step]`
 * - `run(support, queries)`: `classes` and `predictions` for image files
 *
 * each with `adaptation_ms`. They throw an Error whose message is a sentence for the visitor.
 */

export async function chooseBackend() {
  const kind = document.querySelector('meta[name="headstart-backend"]').content;
  if (kind === "browser") return (await import("./browser-backend.js")).browserBackend();
  return serverBackend();
}

/** Relative, so that the page also works below a path of its host. */
const API = "api/";

function serverBackend() {
  return {
    where: "server",
    models: () => ask("models"),
    characters: (support, query) =>
      ask("characters", json({ support, labels: support.map((_, index) => index), query })),
    curve: (points, steps) => ask("curve", json({ points, steps })),
    run(support, queries) {
      const form = new FormData();
      for (const { name, files } of support) {
        for (const file of files) form.append("support", file, `${name}/${file.name}`);
      }
      for (const file of queries) form.append("query", file, file.name);
      return ask("run", { method: "POST", body: form });
    },
  };
}

const json = (body) => ({
  method: "POST",
  headers: { "Content-Type": "application/json" },
  body: JSON.stringify(body),
});

async function ask(path, options) {
  let response;
  try {
    response = await fetch(API + path, options);
  } catch {
    throw new Error("The server does not answer. Is headstart serve still running?");
  }
  const answer = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(answer.error ?? `The server answered with status ${response.status}.`);
  return answer;
}

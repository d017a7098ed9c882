import { html, useRef, useState } from "./vendor/preact-htm.js";
import { Failure } from "./failure.js";
import { Files, Thumb } from "./files.js";
import { latest } from "./latest.js";
import { count, milliseconds, percent, shortPercent } from "./words.js";

let made = 0;
const newClass = () => ({ key: ++made, name: "", files: [] });

/** A few images per class for the run that the server was started with; an adapted model needs none. */
export function YourModel({ backend, models }) {
  if (backend.where === "browser" || !models.run) return html`<${HowTo} />`;
  return html`<${Form} backend=${backend} run=${models.run} />`;
}

const HowTo = () => html`
  <h2>Your own model</h2>
  <p class="lead">
    Train on your own images, start the server with that run, and this tab takes a few images of new classes, adapts
    to them and names others.
  </p>
  <pre><code>pip install '.[serve]'
headstart train my-images --data PHOTOS --out RUN
headstart serve RUN</code></pre>
`;

function Form({ backend, run }) {
  const [classes, setClasses] = useState(() => (run.classes ? [] : [newClass(), newClass()]));
  const [queries, setQueries] = useState([]);
  const [outcome, setOutcome] = useState(null); // {answer, queries} or {error}
  const [busy, setBusy] = useState(false);
  const ask = useRef(latest(0)).current;

  const changed = () => {
    ask();
    setBusy(false);
    setOutcome(null);
  };
  const lacking = missing(classes, queries) || tooMuch(classes, queries, run.limits);
  const submit = (event) => {
    event.preventDefault();
    if (lacking) return setOutcome({ error: lacking });
    const support = classes.map(({ name, files }) => ({ name: name.trim(), files }));
    setBusy(true);
    const finish = (result) => {
      setBusy(false);
      setOutcome(result);
    };
    return ask(
      () => backend.run(support, queries),
      (answer) => finish({ answer, queries }),
      (error) => finish({ error }),
    );
  };

  return html`
    <form onSubmit=${submit} novalidate>
      <h2>${run.classes ? "Your adapted model" : "A few images of each class"}</h2>
      <p class="lead">${about(run)}</p>
      ${!run.classes && html`<${Classes} classes=${classes} most=${run.classes_limit} onChange=${(next) => (changed(), setClasses(next))} />`}
      <h2>Images to name</h2>
      <${Files} label="Images to name" files=${queries} onChange=${(files) => (changed(), setQueries(files))} />
      <div class="actions">
        <button class="primary" disabled=${busy}>${busy ? "Working…" : run.classes ? "Predict" : "Adapt and predict"}</button>
      </div>
      <div class="verdict" role="status">
        ${outcome?.error && html`<${Failure} message=${outcome.error} />`}
        ${outcome?.answer && html`<${Predictions} ...${outcome} done=${run.classes ? "Predicted" : "Adapted"} />`}
      </div>
    </form>
  `;
}

/** Names and images of classes, as many as there may be. */
function Classes({ classes, most, onChange }) {
  const edit = (key, values) => onChange(classes.map((each) => (each.key === key ? { ...each, ...values } : each)));
  return html`
    <div class="classes">
      ${classes.map(
        (each, index) => html`
          <fieldset key=${each.key} class="class">
            <legend class="hidden">Class ${index + 1}</legend>
            <div class="class-name">
              <input
                type="text" value=${each.name} maxlength="60" aria-label=${`Name of class ${index + 1}`}
                placeholder=${`Class ${index + 1}`} onInput=${(event) => edit(each.key, { name: event.currentTarget.value })}
              />
              <button
                type="button" class="quiet" disabled=${classes.length <= 2} aria-label=${`Remove class ${index + 1}`}
                onClick=${() => onChange(classes.filter(({ key }) => key !== each.key))}
              >
                Remove
              </button>
            </div>
            <${Files} label=${`Images of ${each.name || `class ${index + 1}`}`} files=${each.files} onChange=${(files) => edit(each.key, { files })} />
          </fieldset>
        `,
      )}
      <button type="button" class="add" disabled=${classes.length >= most} onClick=${() => onChange([...classes, newClass()])}>Add a class</button>
    </div>
  `;
}

function about(run) {
  if (run.classes) {
    return `Your model, adapted from a run of ${run.recipe} in ${count(run.steps, "gradient step")}, tells apart ${run.classes.join(", ")}.`;
  }
  const most = `up to ${count(run.classes_limit, "class", "classes")}, which need not be among those it was trained on`;
  return `Your run of ${run.recipe} adapts to ${most}, in ${count(run.steps, "gradient step")}.`;
}

/** What is still to be given, in words; "" when nothing is. */
function missing(classes, queries) {
  const names = classes.map(({ name }) => name.trim());
  if (names.some((name) => !name)) return "Give every class a name.";
  if (names.some((name) => /[/\\]/.test(name))) return "A class name cannot contain a slash.";
  if (new Set(names).size < names.length) return "Give every class a name of its own.";
  const without = classes.find(({ files }) => !files.length);
  if (without) return `The class ${without.name.trim()} has no image: add at least one.`;
  return queries.length ? "" : "Add at least one image to name.";
}

/** What the server would refuse to take, in words; "" when nothing is. */
function tooMuch(classes, queries, limits) {
  const support = classes.flatMap(({ files }) => files);
  const files = [...support, ...queries];
  if (support.length > limits.support) return `There are ${support.length} images of classes: give ${limits.support} at most.`;
  if (queries.length > limits.queries) return `There are ${queries.length} images to name: give ${limits.queries} at most.`;
  const large = files.find(({ size }) => size > limits.file_bytes);
  if (large) return `${large.name} is larger than ${mebibytes(limits.file_bytes)}: make it smaller.`;
  const bytes = files.reduce((sum, { size }) => sum + size, 0);
  return bytes > limits.upload_bytes ? `The images are larger than ${mebibytes(limits.upload_bytes)} together: leave some out.` : "";
}

const mebibytes = (bytes) => `${bytes / 2 ** 20} MiB`;

function Predictions({ answer, queries, done }) {
  const { classes, predictions, notes, adaptation_ms } = answer;
  return html`
    ${(notes ?? []).map((note) => html`<p class="note">${note}</p>`)}
    <div class="scroll">
      <table class="predictions">
        <caption class="hidden">The class of each image, and the probability of every class</caption>
        <thead>
          <tr>
            <th scope="col">Image</th>
            <th scope="col">Class</th>
            <th scope="col">Probabilities</th>
          </tr>
        </thead>
        <tbody>
          ${predictions.map(
            (prediction, index) => html`
              <tr>
                <th scope="row"><${Thumb} file=${queries[index]} /><span class="file">${prediction.file}</span></th>
                <td><strong class="winner">${prediction.class}</strong><br /><span class="muted">${percent(prediction.probability)}</span></td>
                <td>
                  <ul class="bars">
                    ${classes.map((name) => {
                      const value = prediction.probabilities[name];
                      return html`
                        <li class=${name === prediction.class ? "best" : ""}>
                          <span class="file">${name}</span>
                          <span class="track"><span class="bar" style=${{ width: `${100 * value}%` }}></span></span>
                          <span class="value">${shortPercent(value)}</span>
                        </li>
                      `;
                    })}
                  </ul>
                </td>
              </tr>
            `,
          )}
        </tbody>
      </table>
    </div>
    <p class="muted">${done} in ${milliseconds(adaptation_ms)}.</p>
  `;
}

import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { EMPTY, isEmpty, pixels } from "./drawing.js";
import { Failure } from "./failure.js";
import { latest } from "./latest.js";
import { randomTask } from "./omniglot.js";
import { Pad } from "./pad.js";
import { Steps } from "./steps.js";
import { milliseconds, percent } from "./words.js";

const CLASSES = ["A", "B", "C", "D", "E"];
const BLANK = { support: CLASSES.map(() => EMPTY), query: EMPTY, answer: null };

/** Draw five characters once each and one of them again; the network learns them and tells which it is. */
export function Characters({ backend, models }) {
  const { steps, accuracy } = models.characters;
  const [task, setTask] = useState(BLANK);
  const [result, setResult] = useState(null); // {probabilities, adaptation_ms}, and for which task and images
  const [error, setError] = useState(null);
  const ask = useRef(latest(120)).current;

  useEffect(() => {
    setError(null);
    if (missing(task)) {
      setResult(null);
      return ask();
    }
    const images = task.support.map(pixels);
    ask(
      () => backend.characters(images, pixels(task.query)),
      (found) => setResult({ ...found, images, task }),
      (message) => {
        setResult(null);
        setError(message);
      },
    );
  }, [task]);

  const lacking = missing(task);
  const busy = !lacking && !error && result?.task !== task;
  const drawn = (index) => (drawing) =>
    setTask((before) => ({
      ...before,
      support: before.support.map((old, other) => (other === index ? drawing : old)),
      answer: null,
    }));
  const fill = async () => {
    try {
      const found = await randomTask(CLASSES.length);
      const drawing = (cell) => ({ strokes: [], cell });
      setTask({ support: found.support.map(drawing), query: drawing(found.query), answer: found.answer });
    } catch {
      setError("The Omniglot drawings could not be loaded: try again.");
    }
  };

  return html`
    <h2>Draw five new characters, once each</h2>
    <p class="lead">
      Anything: letters of your own, signs, doodles. The network has never seen them and gets one example of each.
    </p>
    <div class="pads">
      ${CLASSES.map(
        (name, index) => html`
          <${Pad}
            key=${name} label=${name} title=${`Character ${name}`} describedBy="keys"
            drawing=${task.support[index]} onChange=${drawn(index)}
          />
        `,
      )}
    </div>
    <div class="actions">
      <button class="primary" onClick=${fill}>Fill with Omniglot characters</button>
      <button disabled=${!CLASSES.some((_, i) => !isEmpty(task.support[i])) && isEmpty(task.query)} onClick=${() => setTask(BLANK)}>
        Clear all
      </button>
    </div>
    <div class="answer">
      <section>
        <h2>Draw one again</h2>
        <${Pad}
          label="?" title="Character to recognise" describedBy="keys" drawing=${task.query}
          onChange=${(drawing) => setTask((before) => ({ ...before, query: drawing, answer: null }))}
        />
      </section>
      <section>
        <h2>What the network says</h2>
        <div class="verdict" role="status" aria-busy=${busy ? "true" : "false"}>
          ${error ? html`<${Failure} message=${error} />` : result ? html`<${Verdict} ...${result} />` : lacking || "Adapting…"}
        </div>
        <${Steps}
          names=${CLASSES} steps=${steps} images=${result?.images} probabilities=${result?.probabilities}
        />
        ${accuracy && html`<p class="muted">On test tasks of Omniglot it is right ${percent(accuracy)} of the time after ${steps} steps.</p>`}
      </section>
    </div>
    <details id="keys">
      <summary>Drawing with the keyboard</summary>
      <p>
        Tab to a square. The arrow keys move the pen, with Shift in larger steps; Space puts it down and lifts it.
        Backspace takes back the last stroke, Delete clears the square.
      </p>
    </details>
  `;
}

/** What is still to be drawn, in words; "" when nothing is. */
function missing({ support, query }) {
  const empty = CLASSES.filter((_, index) => isEmpty(support[index]));
  if (empty.length === CLASSES.length) return "Draw five characters, or fill the squares with Omniglot's.";
  if (empty.length) return `Still to draw: ${empty.join(", ")}${isEmpty(query) ? " and the one to recognise" : ""}.`;
  return isEmpty(query) ? "Now draw one of the five again." : "";
}

function Verdict({ probabilities, adaptation_ms, task: { answer } }) {
  const [before, after] = [probabilities[0], probabilities.at(-1)];
  const winner = after.indexOf(Math.max(...after));
  const told =
    answer === null
      ? ""
      : answer === winner
        ? "Right: another person drew the same character."
        : `Wrong: it is ${CLASSES[answer]}, drawn by another person.`;
  return html`
    <p class="verdict-line">
      <strong class="winner">${CLASSES[winner]}</strong>, ${percent(after[winner])} sure; ${percent(before[winner])}
      ${" "}before it adapted. ${told}
    </p>
    <p class="muted">Adapted in ${milliseconds(adaptation_ms)}.</p>
  `;
}

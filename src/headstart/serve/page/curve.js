import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { Errors } from "./errors.js";
import { Failure } from "./failure.js";
import { latest } from "./latest.js";
import { still } from "./motion.js";
import { Plot, RANGE } from "./plot.js";
import { count, figure, milliseconds } from "./words.js";

const STEPS = 10;
const RANDOM_POINTS = 5;
const PACE_MS = { quick: 70, slow: 500 };

/** Points of an unknown sine; two networks that adapt to them, step by step. */
export function Curve({ backend, models }) {
  const most = models.curve.points[1];
  const [points, setPoints] = useState([]);
  const [sine, setSine] = useState(null); // the true curve, where there is one
  const [found, setFound] = useState(null); // {x, maml, pretrained, adaptation_ms}, and for which points and sine
  const [error, setError] = useState(null);
  const [step, setStep] = useState(STEPS);
  const [pace, setPace] = useState(null); // "quick" or "slow" while the steps play
  const [said, setSaid] = useState("");
  const ask = useRef(latest(120)).current;

  useEffect(() => {
    setError(null);
    if (!points.length) {
      setFound(null);
      return ask();
    }
    const failed = (message) => {
      setFound(null);
      setError(message);
    };
    ask(() => backend.curve(points, STEPS), (answer) => setFound({ ...answer, points, sine }), failed);
  }, [points]);
  useEffect(() => {
    if (!pace) return undefined;
    const timer = setInterval(() => setStep((now) => Math.min(STEPS, now + 1)), PACE_MS[pace]);
    return () => clearInterval(timer);
  }, [pace]);
  useEffect(() => {
    if (step === STEPS) setPace(null);
  }, [step]);

  const play = (how) => {
    setStep(0);
    setPace(how);
  };
  const change = (next, words) => {
    setPoints(next);
    setSaid(`${words}; ${count(next.length, "point")}.`);
    if (!found && next.length) still() ? setStep(STEPS) : play("quick");
  };
  const add = ([x, y]) => {
    if (points.length < most) change([...points, [x, y]], `Point at ${x.toFixed(1)}, ${y.toFixed(1)} added`);
    else setSaid(`${most} points are the most there can be.`);
  };
  const remove = (index) => change(points.filter((_, other) => other !== index), "Point removed");
  const random = () => {
    const drawn = randomSine();
    setSine(drawn);
    setFound(null);
    setPoints(samples(drawn));
    setSaid(`A random sine and ${RANDOM_POINTS} points of it.`);
    still() ? setStep(STEPS) : play("slow");
  };
  const clear = () => {
    setPoints([]);
    setSine(null);
    setFound(null);
    setSaid("No points.");
  };

  const busy = points.length > 0 && !error && found?.points !== points;
  const errors = found && {
    maml: found.maml.map((curve) => meanSquare(curve, found)),
    pretrained: found.pretrained.map((curve) => meanSquare(curve, found)),
  };
  return html`
    <h2>Points of an unknown sine</h2>
    <p class="lead">
      Click or tap to add points; a click on a point removes it. Both networks start from what they learned on other
      sines and take gradient steps on your points alone.
    </p>
    <div class="actions">
      <button class="primary" onClick=${random}>Draw a random sine</button>
      <button disabled=${!points.length} onClick=${() => remove(points.length - 1)}>Undo point</button>
      <button disabled=${!points.length && !sine} onClick=${clear}>Clear all</button>
    </div>
    <div class="curve">
      <section>
        <${Legend} sine=${sine} />
        <${Plot} points=${points} sine=${sine} found=${found} step=${step} onAdd=${add} onRemove=${remove} />
        <div class="player">
          <button disabled=${!found} onClick=${() => (pace ? setPace(null) : play("slow"))}>${pace ? "Stop" : "Play"}</button>
          <input
            type="range" min="0" max=${STEPS} step="1" value=${step} disabled=${!found} aria-label="Gradient steps"
            aria-valuetext=${count(step, "step")}
            onInput=${(event) => {
              setPace(null);
              setStep(Number(event.currentTarget.value));
            }}
          />
          <output>${step === 0 ? "before" : count(step, "step")}</output>
        </div>
      </section>
      <section>
        <h2>Error ${sine ? "against the true sine" : "at your points"}</h2>
        <${Errors} errors=${errors} step=${step} />
        <div class="verdict" aria-busy=${busy ? "true" : "false"}>
          ${error
            ? html`<div role="alert"><${Failure} message=${error} /></div>`
            : found
              ? html`<p class="muted">Adapted in ${milliseconds(found.adaptation_ms)}, ${count(STEPS, "step")}.</p>`
              : html`<p class="muted">Add a point, and both networks adapt to it.</p>`}
        </div>
      </section>
    </div>
    <p class="hidden" role="status">${said} ${errors && summary(errors)}</p>
    <details id="plot-keys">
      <summary>Adding points with the keyboard</summary>
      <p>
        Tab to the plot. The arrow keys move a cross, with Shift in larger steps; Enter or Space adds a point there,
        Delete or Backspace removes the point next to it.
      </p>
    </details>
  `;
}

const Legend = ({ sine }) => html`
  <ul class="legend">
    <li><span class="line maml"></span>MAML</li>
    <li><span class="line pretrained"></span>ordinary pretrained network</li>
    ${sine && html`<li><span class="line truth"></span>true sine</li>`}
  </ul>
`;

const summary = ({ maml, pretrained }) =>
  `Error after ${STEPS} steps: MAML ${figure(maml[STEPS])}, pretrained ${figure(pretrained[STEPS])}.`;

/** As the sines that the networks learned from. */
function randomSine() {
  const amplitude = 1 + 3.5 * Math.random(); // flat ones are left out: there is nothing to see
  const phase = Math.PI * Math.random();
  return { of: (x) => amplitude * Math.sin(x - phase) };
}

/** Points of a sine, one in each fifth of the range, so that the whole curve is told. */
function samples(sine) {
  return [...Array(RANDOM_POINTS).keys()].map((place) => {
    const x = -RANGE + (2 * RANGE * (place + 0.1 + 0.8 * Math.random())) / RANDOM_POINTS;
    return [x, sine.of(x)];
  });
}

/** Mean squared error over the whole range against the true sine or, where none is known, at the points. */
function meanSquare(curve, { x: xs, sine, points }) {
  const pairs = sine ? xs.map((x, index) => [curve[index], sine.of(x)]) : points.map(([x, y]) => [at(xs, curve, x), y]);
  return pairs.reduce((sum, [guess, truth]) => sum + (guess - truth) ** 2, 0) / pairs.length;
}

/** A curve's value between the xs it is known at. */
function at(xs, curve, x) {
  const after = Math.max(1, xs.findIndex((known) => known >= x));
  const part = (x - xs[after - 1]) / (xs[after] - xs[after - 1]);
  return curve[after - 1] + part * (curve[after] - curve[after - 1]);
}

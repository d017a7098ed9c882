import { html, useRef } from "./vendor/preact-htm.js";
import { axis, path, useWidth } from "./axes.js";
import { figure } from "./words.js";

const HEIGHT = 170;
const MARGIN = { left: 34, right: 10, top: 10, bottom: 24 };

/** Both networks' mean squared error before adaptation and after each step, and its values at `step`. */
export function Errors({ errors, step }) {
  const svg = useRef();
  const width = useWidth(svg);
  const steps = errors ? errors.maml.length - 1 : 10;
  // Steps can diverge: what is far above where both began is cut off.
  const begin = errors ? Math.max(errors.maml[0], errors.pretrained[0], 0.1) : 1;
  const most = errors ? Math.min(1.5 * begin, Math.max(begin, ...errors.maml, ...errors.pretrained)) : 1;
  const x = axis(0, steps, MARGIN.left, width - MARGIN.right);
  const y = axis(0, most * 1.05, HEIGHT - MARGIN.bottom, MARGIN.top);
  const cut = (error) => Math.min(error, 1.05 * most);
  const places = [...Array(steps + 1).keys()];
  return html`
    <div class="errors">
      <svg class="error-plot" ref=${svg} width=${width} height=${HEIGHT} viewBox=${`0 0 ${width} ${HEIGHT}`} aria-hidden="true">
        <line class="axis" x1=${MARGIN.left} x2=${width - MARGIN.right} y1=${y.at(0)} y2=${y.at(0)} />
        ${places
          .filter((place) => place % 2 === 0)
          .map((place) => html`<text x=${x.at(place)} y=${HEIGHT - 6} text-anchor="middle">${place}</text>`)}
        <text x=${MARGIN.left - 8} y=${y.at(0) + 4} text-anchor="end">0</text>
        ${errors && html`
          <text x=${MARGIN.left - 8} y=${y.at(most) + 4} text-anchor="end">${figure(most)}</text>
          <line class="now" x1=${x.at(step)} x2=${x.at(step)} y1=${MARGIN.top} y2=${y.at(0)} />
          ${["pretrained", "maml"].map(
            (name) => html`
              <path class=${name} d=${path(places, errors[name].map(cut), x, y)} />
              <circle class=${name} cx=${x.at(step)} cy=${y.at(cut(errors[name][step]))} r="4" />
            `,
          )}
        `}
      </svg>
      <dl>
        ${[
          ["maml", "MAML"],
          ["pretrained", "pretrained"],
        ].map(
          ([name, title]) => html`
            <div class=${name}>
              <dt>${title}</dt>
              <dd data-errors=${errors ? errors[name].join(" ") : ""}>${errors ? figure(errors[name][step]) : "–"}</dd>
            </div>
          `,
        )}
      </dl>
    </div>
  `;
}

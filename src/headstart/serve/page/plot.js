import { html, useRef, useState } from "./vendor/preact-htm.js";
import { axis, path, useWidth } from "./axes.js";

/** Both axes go from -RANGE to RANGE, as the sines that the networks learned from. */
export const RANGE = 5;

const TICKS = [-4, -2, 0, 2, 4];
const MARGIN = { left: 30, right: 8, top: 8, bottom: 24 };
const MOVE = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
const NEAR_PX = 14; // as near as a finger hits
const within = (value) => Math.min(RANGE, Math.max(-RANGE, value));

/** The points, the true sine and both networks' curves; `onAdd([x, y])` and `onRemove(index)` by pointer or keys. */
export function Plot({ points, sine, found, step, onAdd, onRemove }) {
  const svg = useRef();
  const width = useWidth(svg);
  const [cross, setCross] = useState(null);
  const height = Math.max(240, Math.min(400, Math.round(width * 0.62)));
  const x = axis(-RANGE, RANGE, MARGIN.left, width - MARGIN.right);
  const y = axis(-RANGE - 0.6, RANGE + 0.6, height - MARGIN.bottom, MARGIN.top);

  const nearest = ([px, py]) => {
    const distances = points.map(([a, b]) => Math.hypot(x.at(a) - px, y.at(b) - py));
    const least = Math.min(...distances);
    return least <= NEAR_PX ? distances.indexOf(least) : -1;
  };
  const toggle = (pixel) => {
    const near = nearest(pixel);
    if (near >= 0) onRemove(near);
    else onAdd([within(x.from(pixel[0])), within(y.from(pixel[1]))]);
  };
  const onClick = (event) => {
    const box = svg.current.getBoundingClientRect();
    setCross(null);
    toggle([event.clientX - box.left, event.clientY - box.top]);
  };
  const onKeyDown = (event) => {
    const [a, b] = cross ?? [0, 0];
    const by = event.shiftKey ? 1 : 0.25;
    if (event.key in MOVE) {
      setCross([within(a + by * MOVE[event.key][0]), within(b + by * MOVE[event.key][1])]);
    } else if (event.key === "Enter" || event.key === " ") {
      setCross([a, b]);
      onAdd([a, b]);
    } else if (event.key === "Delete" || event.key === "Backspace") {
      const near = nearest([x.at(a), y.at(b)]);
      if (near >= 0) onRemove(near);
    } else return;
    event.preventDefault();
  };

  const line = (curve) => path(found.x, curve, x, y);
  const earlier = found ? found.maml.slice(0, step) : [];
  const dense = [...Array(101).keys()].map((index) => -RANGE + (2 * RANGE * index) / 100);
  return html`
    <svg
      class="plot" ref=${svg} width=${width} height=${height} viewBox=${`0 0 ${width} ${height}`} tabindex="0"
      role="application" aria-label=${`Plot of ${points.length} points${cross ? `, cross at ${cross[0]}, ${cross[1]}` : ""}`}
      aria-describedby="plot-keys" onClick=${onClick} onKeyDown=${onKeyDown} onBlur=${() => setCross(null)}
    >
      <defs>
        <clipPath id="plot-area">
          <rect x=${MARGIN.left} y=${MARGIN.top} width=${Math.max(0, width - MARGIN.left - MARGIN.right)} height=${height - MARGIN.top - MARGIN.bottom} />
        </clipPath>
      </defs>
      ${TICKS.map(
        (tick) => html`
          <line class="grid" x1=${x.at(tick)} x2=${x.at(tick)} y1=${MARGIN.top} y2=${height - MARGIN.bottom} />
          <line class="grid" x1=${MARGIN.left} x2=${width - MARGIN.right} y1=${y.at(tick)} y2=${y.at(tick)} />
          <text x=${x.at(tick)} y=${height - 6} text-anchor="middle">${words(tick)}</text>
          <text x=${MARGIN.left - 8} y=${y.at(tick) + 4} text-anchor="end">${words(tick)}</text>
        `,
      )}
      <g clip-path="url(#plot-area)">
        ${sine && html`<path class="truth" d=${path(dense, dense.map(sine.of), x, y)} />`}
        ${earlier.map((curve) => html`<path class="earlier" d=${line(curve)} />`)}
        ${found && html`<path class="pretrained" d=${line(found.pretrained[step])} />`}
        ${found && html`<path class="maml" d=${line(found.maml[step])} />`}
      </g>
      ${points.map(([a, b]) => html`<circle class="point" cx=${x.at(a)} cy=${y.at(b)} r="5.5" />`)}
      ${cross && html`<path class="cross" d=${`M${x.at(cross[0]) - 9} ${y.at(cross[1])}h18M${x.at(cross[0])} ${y.at(cross[1]) - 9}v18`} />`}
      ${!points.length && html`<text class="invite" x=${(width + MARGIN.left) / 2} y=${height / 2 - 14} text-anchor="middle">click or tap to add a point</text>`}
    </svg>
  `;
}

const words = (tick) => String(tick).replace("-", "−");

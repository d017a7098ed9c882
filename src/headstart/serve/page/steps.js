import { html, useLayoutEffect, useRef } from "./vendor/preact-htm.js";
import { INPUT } from "./drawing.js";
import { count, shortPercent } from "./words.js";

/** Class probabilities before adaptation and after each step: a row for each class, a column for each step. */
export function Steps({ names, steps, images, probabilities }) {
  const heads = ["before", ...Array.from({ length: steps }, (_, index) => count(index + 1, "step"))];
  const best = probabilities?.map(clearBest);
  return html`
    <table class=${`steps ${probabilities ? "" : "steps-empty"}`}>
      <caption class="hidden">Probability of each character, before adaptation and after each gradient step</caption>
      <thead>
        <tr>
          <th scope="col"><span class="hidden">Character</span></th>
          ${heads.map((head) => html`<th scope="col">${head}</th>`)}
        </tr>
      </thead>
      <tbody>
        ${names.map(
          (name, index) => html`
            <tr key=${name}>
              <th scope="row"><${Seen} values=${images?.[index]} />${name}</th>
              ${heads.map((_, step) => {
                const value = probabilities?.[step][index] ?? 0;
                return html`
                  <td class=${`at-${step} ${best?.[step] === index ? "best" : ""}`}>
                    <div class="cell">
                      <div class="track"><div class="bar" style=${{ width: `${100 * value}%` }}></div></div>
                      <span class="value">${probabilities ? shortPercent(value) : ""}</span>
                    </div>
                  </td>
                `;
              })}
            </tr>
          `,
        )}
      </tbody>
    </table>
  `;
}

/** The class that is ahead of all others by what shows, or -1. */
function clearBest(row) {
  const [first, second] = [...row].sort((a, b) => b - a);
  return first - second < 0.005 ? -1 : row.indexOf(first);
}

/** A character as the network sees it, 28 x 28. */
function Seen({ values }) {
  const canvas = useRef();
  useLayoutEffect(() => {
    const context = canvas.current.getContext("2d");
    context.clearRect(0, 0, INPUT, INPUT);
    if (!values) return;
    const image = context.createImageData(INPUT, INPUT);
    values.forEach((ink, index) => image.data.set([255 - ink, 255 - ink, 255 - ink, 255], 4 * index));
    context.putImageData(image, 0, 0);
  }, [values]);
  return html`<canvas class="seen" ref=${canvas} width=${INPUT} height=${INPUT} aria-hidden="true"></canvas>`;
}

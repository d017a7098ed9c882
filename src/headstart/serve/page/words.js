/** Numbers as a visitor reads them. */

export function percent(probability) {
  const value = 100 * probability;
  if (value > 99.5 && value < 100) return "over 99 %";
  return `${value < 1 && value > 0 ? "under 1" : Math.round(value)} %`;
}

/** As `percent`, in the space a bar leaves. */
export const shortPercent = (probability) => `${Math.round(100 * probability)} %`;

export const milliseconds = (ms) => (ms < 1 ? "under 1 ms" : ms < 10 ? `${ms.toFixed(1)} ms` : `${Math.round(ms)} ms`);

export const count = (number, thing, things = `${thing}s`) => `${number} ${number === 1 ? thing : things}`;

/** An error: two or three digits that count. */
export const figure = (value) => (value < 0.001 ? "< 0.001" : Number(value.toPrecision(value < 1 ? 2 : 3)).toString());

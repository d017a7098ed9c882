/** What both plots share. */

import { useEffect, useState } from "./vendor/preact-htm.js";

/** From values to pixels (`at`) and back (`from`). */
export function axis(low, high, start, end) {
  const scale = (end - start) / (high - low);
  return { at: (value) => start + (value - low) * scale, from: (pixel) => low + (pixel - start) / scale };
}

/** A curve through the points (xs, ys), for the `d` of an SVG path. */
export const path = (xs, ys, x, y) =>
  xs.map((value, index) => `${index ? "L" : "M"}${x.at(value).toFixed(1)} ${y.at(ys[index]).toFixed(1)}`).join("");

/** The width in pixels that an element's parent gives it, now and after every change. */
export function useWidth(ref) {
  const [width, setWidth] = useState(320);
  useEffect(() => {
    const watcher = new ResizeObserver(([entry]) => {
      const found = Math.round(entry.contentRect.width);
      if (found) setWidth(found);
    });
    watcher.observe(ref.current.parentElement);
    return () => watcher.disconnect();
  }, []);
  return width;
}

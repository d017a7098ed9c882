import { html, useLayoutEffect, useRef, useState } from "./vendor/preact-htm.js";
import { isEmpty, paint, SIDE, undone, EMPTY } from "./drawing.js";

const RESOLUTION = 4; // canvas pixels per unit of a drawing
const MOVE = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const within = (value) => Math.min(SIDE, Math.max(0, value));

/** A square to draw in by mouse, finger, pen or keyboard; `onChange(drawing)` comes when a stroke has ended. */
export function Pad({ label, title, drawing, onChange, describedBy }) {
  const canvas = useRef();
  const [stroke, setStroke] = useState(null); // what is being drawn
  const [cursor, setCursor] = useState(null); // the keyboard's pen: {at, down}
  const shown = stroke ? { ...drawing, strokes: [...drawing.strokes, stroke] } : drawing;

  useLayoutEffect(() => {
    const context = canvas.current.getContext("2d");
    context.setTransform(RESOLUTION, 0, 0, RESOLUTION, 0, 0);
    paint(context, shown);
    if (cursor) paintCursor(context, cursor);
  });

  const end = () => {
    if (stroke) onChange({ ...drawing, strokes: [...drawing.strokes, stroke] });
    setStroke(null);
  };
  const place = (event) => {
    const box = canvas.current.getBoundingClientRect();
    const unit = SIDE / box.width;
    return [within((event.clientX - box.left) * unit), within((event.clientY - box.top) * unit)];
  };
  const pointer = {
    onPointerDown(event) {
      if (event.button !== 0 || !event.isPrimary) return;
      canvas.current.setPointerCapture(event.pointerId);
      setCursor(null);
      setStroke([place(event)]);
    },
    onPointerMove(event) {
      if (!stroke || !event.isPrimary) return;
      const passed = event.getCoalescedEvents?.() ?? [];
      const points = (passed.length ? passed : [event]).map(place);
      setStroke((points_before) => points_before && [...points_before, ...points]);
    },
    onPointerUp: end,
    onPointerCancel: end,
  };

  const onKeyDown = (event) => {
    const { key } = event;
    const { at, down } = cursor ?? { at: [SIDE / 2, SIDE / 2], down: false };
    if (key in MOVE) {
      const by = event.shiftKey ? 12 : 4;
      const next = [within(at[0] + by * MOVE[key][0]), within(at[1] + by * MOVE[key][1])];
      setCursor({ at: next, down });
      if (down) setStroke([...stroke, next]);
    } else if (key === " " || key === "Enter") {
      setCursor({ at, down: !down });
      if (down) end();
      else setStroke([at]);
    } else if (key === "Backspace" || (key === "z" && (event.ctrlKey || event.metaKey))) {
      if (stroke) setStroke(null);
      else onChange(undone(drawing));
      setCursor({ at, down: false });
    } else if (key === "Delete") {
      setStroke(null);
      setCursor({ at, down: false });
      onChange(EMPTY);
    } else if (key !== "Escape") {
      return;
    } else {
      end();
      setCursor(null);
    }
    event.preventDefault();
  };
  const onBlur = () => {
    end();
    setCursor(null);
  };

  const none = isEmpty(drawing);
  return html`
    <div class="pad">
      <div class="pad-paper">
        <canvas
          ref=${canvas} width=${SIDE * RESOLUTION} height=${SIDE * RESOLUTION} tabindex="0" role="application"
          aria-label=${`${title}, ${none ? "empty" : "drawn"}`} aria-describedby=${describedBy}
          ...${pointer} onKeyDown=${onKeyDown} onBlur=${onBlur}
        ></canvas>
        <span class="pad-label" aria-hidden="true">${label}</span>
        ${cursor && html`<span class="pad-pen" aria-live="polite">pen ${cursor.down ? "down" : "up"}</span>`}
      </div>
      <div class="pad-tools">
        <button class="quiet" disabled=${none} onClick=${() => onChange(undone(drawing))} aria-label=${`Undo in ${title}`}>
          Undo
        </button>
        <button class="quiet" disabled=${none} onClick=${() => onChange(EMPTY)} aria-label=${`Clear ${title}`}>
          Clear
        </button>
      </div>
    </div>
  `;
}

function paintCursor(context, { at: [x, y], down }) {
  context.lineWidth = 1.2;
  context.strokeStyle = "#0b62c4";
  context.beginPath();
  context.arc(x, y, down ? 3 : 6, 0, 7);
  context.stroke();
}

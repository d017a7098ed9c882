import { html, useEffect, useRef, useState } from "./vendor/preact-htm.js";

const THUMB = 96;

/** Image files, dropped or chosen; each can be taken out again. */
export function Files({ label, files, onChange }) {
  const [over, setOver] = useState(false);
  const add = (list) => onChange([...files, ...list]);
  const drop = {
    onDragOver(event) {
      event.preventDefault();
      setOver(true);
    },
    onDragLeave: () => setOver(false),
    onDrop(event) {
      event.preventDefault();
      setOver(false);
      add(event.dataTransfer.files);
    },
  };
  const choose = (event) => {
    add(event.currentTarget.files);
    event.currentTarget.value = ""; // so that the same file can be chosen again
  };
  return html`
    <div class=${`files ${over ? "over" : ""}`} ...${drop}>
      ${files.map(
        (file, index) => html`
          <button
            type="button" class="thumb-button" title=${`Remove ${file.name}`} aria-label=${`Remove ${file.name} from ${label}`}
            onClick=${() => onChange(files.filter((_, other) => other !== index))}
          >
            <${Thumb} file=${file} />
          </button>
        `,
      )}
      <label class="choose">
        <input class="hidden" type="file" multiple accept="image/*" aria-label=${label} onChange=${choose} />
        <span>Choose or drop images</span>
      </label>
    </div>
  `;
}

/** A small picture of an image file, cut square; the start of its name where the browser cannot read it. */
export function Thumb({ file }) {
  const canvas = useRef();
  const [unreadable, setUnreadable] = useState(false);
  useEffect(() => {
    let current = true;
    setUnreadable(false);
    createImageBitmap(file).then(
      (image) => {
        if (current && canvas.current) paintCover(canvas.current.getContext("2d"), image);
        image.close();
      },
      () => current && setUnreadable(true),
    );
    return () => (current = false);
  }, [file]);
  return html`
    <span class="thumb">
      ${unreadable ? html`<span class="thumb-name">${file.name}</span>` : html`<canvas ref=${canvas} width=${THUMB} height=${THUMB} aria-hidden="true"></canvas>`}
    </span>
  `;
}

function paintCover(context, image) {
  const side = Math.min(image.width, image.height);
  context.imageSmoothingQuality = "high";
  context.drawImage(image, (image.width - side) / 2, (image.height - side) / 2, side, side, 0, 0, THUMB, THUMB);
}

/**
 * A drawing and what the network sees of it.
 *
 * A drawing is strokes of points [x, y] in a square of SIDE units, over at most one drawing of Omniglot's (`cell`).
 * The network sees INPUT x INPUT values from 0 (paper) to 255 (ink): means over squares of SIDE / INPUT units.
 */

export const SIDE = 112;
export const INPUT = 28;

/** As wide as Omniglot's strokes: they measure 5 pixels of its 105. */
const PEN = 5.3;

export const EMPTY = { strokes: [], cell: null };

export const isEmpty = (drawing) => drawing.strokes.length === 0 && drawing.cell === null;

/** The drawing without its last stroke or, where there is none, without its Omniglot drawing. */
export function undone(drawing) {
  return drawing.strokes.length ? { ...drawing, strokes: drawing.strokes.slice(0, -1) } : EMPTY;
}

/** Paints black on white on a context whose unit is the drawing's. */
export function paint(context, drawing) {
  context.fillStyle = "#fff";
  context.fillRect(0, 0, SIDE, SIDE);
  const { cell } = drawing;
  if (cell) {
    context.imageSmoothingQuality = "high";
    context.drawImage(cell.image, cell.x, cell.y, cell.size, cell.size, 0, 0, SIDE, SIDE);
  }
  context.lineWidth = PEN;
  context.lineCap = context.lineJoin = "round";
  context.strokeStyle = "#000";
  for (const stroke of drawing.strokes) {
    context.beginPath();
    context.moveTo(...stroke[0]);
    if (stroke.length === 1) context.lineTo(stroke[0][0] + 0.01, stroke[0][1]); // a dot
    for (const point of stroke.slice(1)) context.lineTo(...point);
    context.stroke();
  }
}

/** What the network sees: INPUT * INPUT integers from 0 to 255, row by row, ink high. */
export function pixels(drawing) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  paint(context, drawing);
  const { data } = context.getImageData(0, 0, SIDE, SIDE);
  const block = SIDE / INPUT;
  const values = [];
  for (let row = 0; row < INPUT; row++) {
    for (let column = 0; column < INPUT; column++) {
      let paper = 0;
      for (let y = row * block; y < (row + 1) * block; y++) {
        for (let x = column * block; x < (column + 1) * block; x++) paper += data[4 * (y * SIDE + x)];
      }
      values.push(Math.round(255 - paper / block ** 2));
    }
  }
  return values;
}

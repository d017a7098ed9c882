/** Drawings of Omniglot's test characters, from one image that holds them all. */

let loading = null;

/** Fetched once, when first asked for. */
function load() {
  loading ??= (async () => {
    const folder = new URL("omniglot/", import.meta.url);
    const image = new Image();
    image.src = new URL("drawings.png", folder).href;
    const [list] = await Promise.all([fetch(new URL("characters.json", folder)).then((found) => found.json()), image.decode()]);
    return { ...list, image };
  })();
  loading.catch(() => (loading = null));
  return loading;
}

/** One drawing, as a `cell` of a drawing (see drawing.js). */
function cellOf(sheet, character, drawing) {
  const index = character * sheet.drawings + drawing;
  return {
    image: sheet.image,
    x: (index % sheet.columns) * sheet.size,
    y: Math.floor(index / sheet.columns) * sheet.size,
    size: sheet.size,
    name: sheet.characters[character],
  };
}

/** `count` numbers below `total`, all different. */
function sample(total, count) {
  const found = new Set();
  while (found.size < count) found.add(Math.floor(Math.random() * total));
  return [...found];
}

/** One drawing of each of `ways` characters, and one of the same characters drawn by somebody else. */
export async function randomTask(ways) {
  const sheet = await load();
  const characters = sample(sheet.characters.length, ways);
  const answer = Math.floor(Math.random() * ways);
  const [first, second] = sample(sheet.drawings, 2);
  const support = characters.map((character) => cellOf(sheet, character, first));
  return { support, query: cellOf(sheet, characters[answer], second), answer };
}

/** Every drawing there is, character by character. */
export async function allCells() {
  const sheet = await load();
  const drawings = [...Array(sheet.drawings).keys()];
  return sheet.characters.map((_, character) => drawings.map((drawing) => cellOf(sheet, character, drawing)));
}

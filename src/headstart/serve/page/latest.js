/**
 * Only the newest of several requests counts.
 *
 * Gives `ask(work, done, failed)`: waits until no newer call came for `pause_ms`, runs `work`, and hands its outcome
 * on unless a newer call came meanwhile. `ask()` without work only makes what is under way stale.
 */
export function latest(pause_ms) {
  let newest = 0;
  let timer = 0;
  return (work, done, failed) => {
    const mine = ++newest;
    clearTimeout(timer);
    if (!work) return;
    timer = setTimeout(async () => {
      try {
        const found = await work();
        if (mine === newest) done(found);
      } catch (error) {
        if (mine === newest) failed(error.message);
      }
    }, pause_ms);
  };
}

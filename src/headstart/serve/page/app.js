import { html, render, useEffect, useRef, useState } from "./vendor/preact-htm.js";
import { chooseBackend } from "./backend.js";
import { Characters } from "./characters.js";
import { Curve } from "./curve.js";
import { Failure } from "./failure.js";
import { YourModel } from "./your-model.js";

const TABS = [
  { name: "characters", title: "Characters", panel: Characters },
  { name: "curve", title: "Curve", panel: Curve },
  { name: "your-model", title: "Your model", panel: YourModel },
];

const fromAddress = () => TABS.find(({ name }) => location.hash === `#${name}`) ?? TABS[0];

/** Three tabs; each keeps its state while another is shown. */
function App({ backend, models }) {
  const [chosen, setChosen] = useState(fromAddress);
  const buttons = useRef({});

  useEffect(() => {
    const follow = () => setChosen(fromAddress());
    addEventListener("hashchange", follow);
    return () => removeEventListener("hashchange", follow);
  }, []);
  const choose = (tab) => {
    history.replaceState(null, "", `#${tab.name}`);
    setChosen(tab);
  };
  const onKeyDown = (event) => {
    const place = TABS.indexOf(chosen);
    const next = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: TABS.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    const tab = TABS.at(next % TABS.length);
    choose(tab);
    buttons.current[tab.name].focus();
  };

  return html`
    <${Top}>
      <div class="tabs" role="tablist" aria-label="What to try" onKeyDown=${onKeyDown}>
        ${TABS.map((tab) => {
          const on = tab === chosen;
          return html`
            <button
              role="tab" id=${`tab-${tab.name}`} aria-controls=${`panel-${tab.name}`} aria-selected=${on ? "true" : "false"}
              tabindex=${on ? 0 : -1} ref=${(button) => (buttons.current[tab.name] = button)} onClick=${() => choose(tab)}
            >
              ${tab.title}
            </button>
          `;
        })}
      </div>
    <//>
    <main class="wrap">
      ${TABS.map(
        (tab) => html`
          <div role="tabpanel" id=${`panel-${tab.name}`} aria-labelledby=${`tab-${tab.name}`} hidden=${tab !== chosen}>
            <${tab.panel} backend=${backend} models=${models} shown=${tab === chosen} />
          </div>
        `,
      )}
    </main>
    <${Bottom} backend=${backend} />
  `;
}

const Top = ({ children }) => html`
  <header>
    <div class="wrap top">
      <div>
        <h1>Headstart</h1>
        <p class="muted">Networks that learned to learn: a few examples, a few gradient steps.</p>
      </div>
      ${children}
    </div>
  </header>
`;

const Bottom = ({ backend }) => html`
  <footer class="wrap muted">
    <p>
      ${backend.where === "browser"
        ? "The networks run and learn in this browser; nothing you draw leaves it."
        : "The networks run and learn on the server that sent this page; it keeps nothing you draw."}
      ${" "}Example drawings: Omniglot, © 2015 Brenden Lake, MIT licence.
    </p>
  </footer>
`;

async function start() {
  const root = document.getElementById("app");
  try {
    const backend = await chooseBackend();
    const models = await backend.models();
    render(html`<${App} backend=${backend} models=${models} />`, root);
  } catch (error) {
    render(html`<${Top} /><main class="wrap"><${Failure} message=${error.message} /></main>`, root);
  }
}

start();
